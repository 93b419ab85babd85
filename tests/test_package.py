"""What `import memvit` gives, and how little it loads."""

import subprocess
import sys

import pytest


def run(program: str) -> str:
    """What a program prints in a process of its own, where nothing is imported yet."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def test_packages_and_their_modules_are_there_without_an_import_of_their_own() -> None:
    program = """
import sys, memvit
assert "torch" not in sys.modules
import memvit.models.config
assert len(memvit.models.zoo.list_weights()) == 6
print(memvit.metrics.ava.evaluate.__name__, memvit.video.open_video.__name__, memvit.online.SharedEngine.__name__,
      memvit.kernels.reference_kernels.__name__)
"""
    assert run(program) == "evaluate open_video SharedEngine reference_kernels"


def test_what_is_not_there_is_no_attribute() -> None:
    import memvit

    assert {"models", "video", "create_model"} <= set(dir(memvit))
    for module, name in ((memvit, "nothing"), (memvit.models, "nothing"), (memvit.models, "__wrapped__")):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute '{name}'"):
            getattr(module, name)
