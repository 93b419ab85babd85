"""The second half of a transformer block: a sum, its LayerNorm, the MLP of that, and the sum added to it.

On CPUs with AMX's tiles or AVX2 it is one kernel, in which neither the sum nor its norm is ever written to memory; in bfloat16
on a GPU it is three launches; elsewhere it is what `add_layer_norm` and `mlp` make of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from memvit.kernels import cpu, products, triton_norm
from memvit.kernels.linear import MLP, bfloat16_weights, gelu_linear, packed_dtype
from memvit.kernels.norm import add_layer_norm, kernel_dtype, norm_parameters
from memvit.kernels.ops import register


def residual_mlp(x: Tensor, added: Tensor, norm: nn.LayerNorm, mlp: nn.Module) -> Tensor:
    """t + mlp(norm(t)) of t = x + added, where no gradients are wanted: (..., dim) -> (..., dim).

    Args:
        mlp: of the kind `MLP`, its layers may run in its place.
    """
    dtype = _fused_dtype(x, added, norm, mlp)
    if dtype is None:
        out = _on_gpu(x, added, norm, mlp)
        if out is not None:
            return out
        total, normed = add_layer_norm(x, added, norm)
        return total.add_(mlp(normed))
    fc1: Any = mlp.fc1
    fc2: Any = mlp.fc2
    return _residual_mlp(x, added, *norm_parameters(norm), norm.eps, fc1.weight, fc1.bias, fc2.weight, fc2.bias, dtype)


def _on_gpu(x: Tensor, added: Tensor, norm: nn.LayerNorm, mlp: nn.Module) -> Tensor | None:
    """The same in bfloat16 in three launches: the last layer adds its products to the sum. None: leave it to the parts."""
    if type(mlp) is not MLP or mlp.training or not triton_norm.can_norm(x, added, norm):
        return None
    weights = bfloat16_weights(x, mlp.fc2)
    if weights is None or not x.dtype == added.dtype == torch.bfloat16:
        return None
    weight, bias = weights
    total, normed = triton_norm.triton_add_layer_norm_before(x, added, norm, bias)
    hidden = gelu_linear(normed, mlp.fc1, mlp.act)
    if hidden is None:
        hidden = mlp.act(mlp.fc1(normed)).to(torch.bfloat16)
    total.view(-1, total.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), weight.t())
    return total


def _fused_dtype(x: Tensor, added: Tensor, norm: nn.LayerNorm, mlp: nn.Module) -> torch.dtype | None:
    """The dtype to compute in by our kernel; None: it does not take these."""
    if not cpu.has_products() or type(mlp) is not MLP or mlp.training:
        return None
    if type(mlp.act) is not nn.GELU or mlp.act.approximate != "none":
        return None
    dtype = packed_dtype(x, mlp.fc1, mlp.fc2)
    return dtype if dtype is not None and dtype == kernel_dtype(x, added, norm) else None


@torch.no_grad()
def _run(
    x: Tensor,
    added: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    layers = products.packed_layer(weight1, bias1, dtype), products.packed_layer(weight2, bias2, dtype)
    return products.residual_mlp(x, added, norm_weight, norm_bias, eps, *layers, dtype)


def _fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_residual_mlp = register(
    "residual_mlp(Tensor x, Tensor added, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight1, Tensor? bias1, "
    "Tensor weight2, Tensor? bias2, ScalarType dtype) -> Tensor",
    _run,
    _fake,
)


@register_flop_formula(torch.ops.memvit.residual_mlp)
def _flops(
    x: Sequence[int],
    added: object,
    norm_weight: object,
    norm_bias: object,
    eps: object,
    weight1: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    return 4 * math.prod(x[:-1]) * math.prod(weight1)
