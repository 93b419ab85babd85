"""What our commands set for their own process, whose owner they are; a library must leave it to the program that uses it."""

from __future__ import annotations

import ctypes
import os
import sys

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
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
