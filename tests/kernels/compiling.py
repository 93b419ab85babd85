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
        unwritten: instructions that read a uniform register to which nothing was written before. ptxas 12.8, Triton 3.6's, forgot
            to set some that hold addresses of matrix products: these read beyond shared memory.
    """

    name: str
    ptx: str
    spilled_bytes: int
    unwritten: list[str]


class CompilesOnly:
    """In a kernel's place: compiles it for the arguments of a launch, as Triton does, and launches nothing."""

    def __init__(self, kernel: Any, compiled: list[Compiled]) -> None:
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        files = self.kernel.warmup(*arguments, grid=grid, **options).asm
        cubin = files["cubin"]
        self.compiled.append(
            Compiled(self.kernel.__name__, files["ptx"], stack_bytes(cubin), unwritten(dump(cubin, "-sass")))
        )


def stack_bytes(cubin: bytes) -> int:
    """Of a thread. Our kernels have no arrays of their own: what lies there was spilled."""
    (stack,) = re.findall(r"STACK:(\d+)", dump(cubin, "-res-usage"))
    return int(stack)


def unwritten(code: str) -> list[str]:
    """Instructions that read a uniform register before any has written to it, in the order of the code, as cuobjdump has it."""
    written: set[int] = set()
    found = []
    for name, text in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*(.*?);", code):
        operands = text.split(",")
        target = re.fullmatch(r"\s*UR(\d+)\s*", operands[0])
        sources = operands[1:] if target else operands
        if any(int(n) not in written for source in sources for n in re.findall(r"(?<![\w\[])UR(\d+)\b", source)):
            found.append(f"{name} {text}")
        if target:
            first, width = int(target[1]), 4 if ".128" in name else 2 if ".64" in name or ".WIDE" in name else 1
            written.update(range(first, first + width))
    return found


def dump(cubin: bytes, option: str) -> str:
    """What NVIDIA's tool, which comes with Triton, says of compiled code."""
    from triton import knobs

    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, option, str(file)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


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
    assert not {kernel.name: kernel.unwritten for kernel in compiled if kernel.unwritten}
