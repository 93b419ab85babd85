"""The kernels as operators of PyTorch, so that torch.compile and export see one node each and trace through none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("memvit", "FRAGMENT")


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Makes an operator `memvit::NAME` for tensors on CPUs.

    Args:
        schema: its signature in PyTorch's notation, "name(Tensor x) -> Tensor".
        run: what it computes.
        fake: shapes and dtypes of its results, for tracing.

    Returns:
        The operator, to be called.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, "CPU")
    torch.library.register_fake(f"memvit::{name}", fake, lib=_library)
    return getattr(torch.ops.memvit, name).default
