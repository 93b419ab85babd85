"""Every public name of the package is in the API reference, and every name in it exists."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

import memvit
from docs.blocks import ROOT
from memvit.cli import COMMANDS, TRAINING_COMMANDS, Group
from memvit.training.data import AnnotatedData, VideoData

PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
DIRECTIVE = re.compile(r"^\.\. auto(\w+):: ([\w.]+)", re.MULTILINE)
# How things are done and measured, and no interface: commands are used from a shell, benchmarks are run.
NO_INTERFACE = ("memvit.benchmarks", "memvit.commands", "memvit.demo")


def _resolve(name: str) -> Any:
    """What a dotted name stands for; a function goes before the module that it is called like."""
    home, _, last = name.rpartition(".")
    module = importlib.import_module(home)
    return getattr(module, last) if hasattr(module, last) else importlib.import_module(name)


def _members(module: ModuleType) -> list[str]:
    """What `automodule` shows of a module: `__all__`, or what is public and made there."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]


def _documented() -> list[object]:
    found: list[object] = []
    for page in PAGES:
        for kind, name in DIRECTIVE.findall(page.read_text()):
            value = _resolve(name)
            found += [getattr(value, member) for member in _members(value)] if kind == "module" else [value]
    return found


def _declared() -> dict[str, object]:
    """Every name in the `__all__` of a module of ours."""
    modules = [info.name for info in pkgutil.walk_packages(memvit.__path__, "memvit.")]
    declared = {f"memvit.{name}": getattr(memvit, name) for name in memvit.__all__}
    for name in modules:
        if not name.startswith(NO_INTERFACE) and not name.rpartition(".")[2].startswith("_"):
            module = importlib.import_module(name)
            declared |= {f"{name}.{member}": getattr(module, member) for member in getattr(module, "__all__", ())}
    return declared


def test_every_public_name_is_in_the_reference() -> None:
    documented = _documented()
    declared = _declared()
    assert len(declared) > 50
    missing = [name for name, value in declared.items() if not any(value is one for one in documented)]
    assert missing == []


def test_so_is_all_that_a_configuration_file_can_name() -> None:
    documented = _documented()
    modules = [f"memvit.training.{info.name}" for info in pkgutil.iter_modules(_resolve("memvit.training").__path__)]
    kinds = {
        kind
        for name in modules
        for kind in vars(importlib.import_module(name)).values()
        if inspect.isclass(kind) and issubclass(kind, VideoData) and kind is not AnnotatedData
    }
    assert len(kinds) == 5
    assert [kind for kind in kinds if kind not in documented] == []


def test_every_command_is_shown_somewhere() -> None:
    pages = "\n".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    names = [*TRAINING_COMMANDS]
    for name, command in COMMANDS.items():
        names += [f"{name} {sub}" for sub in command.commands] if isinstance(command, Group) else [name]
    assert [name for name in names if f"memvit {name}" not in pages] == []
