"""The kernels as operators of PyTorch, so that torch.compile and export see one node each and trace through none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_library = torch.library.Library("memvit", "FRAGMENT")


ON_GPUS = ("CUDA", "CPU")  # there for Triton's interpreter

# What each operator runs: whoever records a step looks inside (`recording`).
implementations: dict[Callable[..., Any], Callable[..., Any]] = {}


def register(
    schema: str, run: Callable[..., Any], fake: Callable[..., Any], keys: Sequence[str] = ("CPU",)
) -> Callable[..., Any]:
    """Makes an operator `memvit::NAME`.

    Args:
        schema: its signature in PyTorch's notation, "name(Tensor x) -> Tensor".
        run: what it computes.
        fake: shapes and dtypes of its results, for tracing.
        keys: PyTorch's dispatch keys of what it is for: tensors on CPUs, `ON_GPUS`, or no tensors at all.

    Returns:
        The operator, to be called.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in keys:
        _library.impl(name, run, key)
    torch.library.register_fake(f"memvit::{name}", fake, lib=_library)
    operator = getattr(torch.ops.memvit, name).default
    implementations[operator] = run
    return operator
