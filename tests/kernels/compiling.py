"""Triton's kernels compiled for an H100 that is not here: the interpreter does without the compiler and its checks."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import pytest

# For tests of them: Triton 3.9 warns that a default is going to change.
ignores_defaults = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


class Compiled(NamedTuple):
    """What a launch was compiled to.

    Attributes:
        spilled_bytes: of memory that a thread needs as its registers do not suffice.
    """

    name: str
    ptx: str
    spilled_bytes: int


class CompilesOnly:
    """In a kernel's place: compiles it for the arguments of a launch, as Triton does, and launches nothing."""

    def __init__(self, kernel: Any, compiled: list[Compiled]) -> None:
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        files = self.kernel.warmup(*arguments, grid=grid, **options).asm
        self.compiled.append(Compiled(self.kernel.__name__, files["ptx"], stack_bytes(files["cubin"])))


def stack_bytes(cubin: bytes) -> int:
    """Of a thread. Our kernels have no arrays of their own: what lies there was spilled."""
    from triton import knobs

    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    return int(stack)


class NoDriver:
    """In the place of a GPU's driver: says what to compile for."""

    def get_current_device(self) -> str:
        return "none"  # by which Triton keeps what it compiled, apart from what is for a GPU that is here

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@contextmanager
def compiling(*modules: ModuleType) -> Iterator[list[Compiled]]:
    """Launches of these modules' kernels, `..._kernel`, only compile them. Yields what was compiled."""
    from triton.runtime import driver

    compiled: list[Compiled] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", NoDriver())
        for module in modules:
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                patch.setattr(module, name, CompilesOnly(getattr(module, name), compiled))
        yield compiled
