"""LayerNorm, alone or of a sum that is wanted too; under autocast our kernels' results are in autocast's dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memvit.kernels import cpu, triton_norm
from memvit.kernels.backend import compute_dtype, use_reference
from memvit.kernels.frozen import frozen
from memvit.kernels.ops import register


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(x): (..., C) -> (..., C)."""
    if triton_norm.can_norm(x, None, norm) and not use_reference():
        return triton_norm.triton_layer_norm(x, norm)
    dtype = kernel_dtype(x, None, norm)
    if dtype is None:
        return norm(x)
    return _cpu_layer_norm(x, None, *norm_parameters(norm), norm.eps, dtype)[1]


def add_layer_norm(x: Tensor, added: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """x + added, and its LayerNorm, from one pass."""
    if triton_norm.can_norm(x, added, norm) and not use_reference():
        return triton_norm.triton_add_layer_norm(x, added, norm)
    dtype = kernel_dtype(x, added, norm)
    if dtype is None:
        total = x + added
        return total, norm(total)
    return _cpu_layer_norm(x, added, *norm_parameters(norm), norm.eps, dtype)


def kernel_dtype(x: Tensor, added: Tensor | None, norm: nn.LayerNorm) -> torch.dtype | None:
    """The dtype of the result of the kernel for CPUs; None: it does not take these."""
    if use_reference() or type(norm) is not nn.LayerNorm or norm.weight is None or norm.bias is None:
        return None
    if not cpu.can_run(x, added, norm.weight, norm.bias) or norm.weight.shape != x.shape[-1:]:
        return None
    dtype = compute_dtype(x)
    if x.shape[-1] % cpu.lanes() or dtype not in (torch.float32, torch.bfloat16):
        return None
    if added is not None and (added.shape != x.shape or (x.dtype, added.dtype) == (torch.bfloat16, torch.float32)):
        return None
    return None if (x.dtype, dtype) == (torch.bfloat16, torch.float32) else dtype


def norm_parameters(norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias in float32, each in one piece."""
    weight, bias = norm.weight, norm.bias
    if weight.dtype == torch.float32 and weight.is_contiguous() and bias.is_contiguous():
        return weight, bias
    return frozen([weight, bias], "norm", lambda: (weight.float().contiguous(), bias.float().contiguous()))


def _fake(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    total = x.new_empty(0) if added is None else torch.empty_like(x)
    return total, torch.empty_like(x, dtype=dtype)


_cpu_layer_norm = register(
    "cpu_layer_norm(Tensor x, Tensor? added, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> (Tensor, Tensor)",
    cpu.layer_norm,
    _fake,
)
