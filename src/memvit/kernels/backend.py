"""Which implementation of a kernel runs: the fast one, or, inside `reference_kernels()`, the plain definition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_reference: ContextVar[bool] = ContextVar("memvit_reference_kernels", default=False)


@contextmanager
def reference_kernels() -> Iterator[None]:
    """Inside this context every kernel computes its plain PyTorch definition: for tests and for counting operations."""
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


@torch.compiler.assume_constant_result  # torch 2.11 cannot trace the question; a graph keeps the answer of its making
def use_reference() -> bool:
    """Whether the plain definitions are wanted."""
    return _reference.get()


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which matrix products of x are computed: autocast's, where it is on."""
    device = x.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
