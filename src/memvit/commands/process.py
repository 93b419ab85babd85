"""What our commands set for their own process, whose owner they are; a library must leave it to the program that uses it."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_KEPT_BYTES = 1 << 30


def share_cores() -> None:
    """Leaves to decoding the time that the model's threads would spend spinning while they wait for one another.

    OpenMP reads this as it is loaded, with PyTorch: nothing happens where that is done, or where the user has chosen.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> bool:
    """Keeps up to 1 GiB of freed memory for the next step instead of giving it back to the system.

    A step of a video transformer frees large tensors and wants as large ones at once. Fresh from the system, every page is
    cleared when it is first touched: some 10,000 of them a step, a tenth of its time in bfloat16. The process takes as much
    memory as in its largest step all the same.

    Returns:
        Whether the C library can do that (glibc), and the user has not chosen (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_).
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = _of_c_library("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def give_back_freed_memory() -> bool:
    """Gives freed memory to the system, what is kept for a next step as well: for a process that has nothing to do.

    Returns:
        Whether the C library can do that (glibc).
    """
    trim = _of_c_library("malloc_trim")
    if trim is None:
        return False
    gc.collect()
    trim(0)
    return True


def _of_c_library(name: str) -> Callable[..., int] | None:
    """A function of glibc; None with other C libraries."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
