"""LayerNorm on GPUs, written in Triton: what `memvit.kernels.norm` computes, in one launch, and one more for its gradients.

For eager execution: torch.compile fuses PyTorch's own LayerNorm. Triton is imported at the first launch: this module can be
imported everywhere.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from memvit.kernels.backend import compute_dtype
from memvit.kernels.ops import ON_GPUS, register
from memvit.kernels.triton_pooling import DTYPES
from memvit.kernels.triton_pooling import is_available as is_available

MAX_CHANNELS = 4096  # one program holds them all


def can_norm(x: Tensor, added: Tensor | None, norm: nn.LayerNorm) -> bool:
    """Whether the functions below take these: tokens on a GPU, of a dtype and width that they know, outside torch.compile."""
    if not x.is_cuda or torch.compiler.is_compiling() or not is_available() or type(norm) is not nn.LayerNorm:
        return False
    weight, bias = norm.weight, norm.bias
    if weight is None or bias is None or weight.device != x.device:
        return False
    if norm.normalized_shape != x.shape[-1:] or x.shape[-1] > MAX_CHANNELS:
        return False
    if added is not None and (added.shape != x.shape or added.device != x.device or added.dtype not in DTYPES):
        return False
    return x.dtype in DTYPES and weight.dtype in DTYPES and bias.dtype in DTYPES


def triton_layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(x), from float32 statistics; under autocast in its dtype. Gradients can be had once, and repeat bit for bit.

    Args:
        x: (..., C), float32, bfloat16 or float16, whatever its strides.
        norm: with weight and bias over C, of any of these dtypes.
    """
    arguments = x, None, norm.weight, norm.bias, norm.eps
    return _LayerNorm.apply(*arguments) if _needs_grad(*arguments[:4]) else _forward(*arguments)[1]


def triton_add_layer_norm(x: Tensor, added: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """x + added, as PyTorch computes it, and its LayerNorm as `triton_layer_norm` does."""
    arguments = x, added, norm.weight, norm.bias, norm.eps
    total, out = (_LayerNorm.apply if _needs_grad(*arguments[:4]) else _forward)(*arguments)
    return total, out


def triton_add_layer_norm_before(x: Tensor, added: Tensor, norm: nn.LayerNorm, later: Tensor) -> tuple[Tensor, Tensor]:
    """x + added + later, and the LayerNorm of x + added, where no gradients are wanted.

    Args:
        later: (C,), for instance the bias of a layer whose products are then added to the sum.
    """
    dtype = _sum_dtype_in_autocast(x, added)
    total, out = _norm(x, added, later, norm.weight, norm.bias, norm.eps, dtype)
    return total, out


def _needs_grad(x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or weight.requires_grad or bias.requires_grad or (added is not None and added.requires_grad)


def _forward(x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, which is x where nothing is added, and its LayerNorm."""
    dtype = compute_dtype(x) if added is None else _sum_dtype_in_autocast(x, added)
    total, out = _norm(x, added, None, weight, bias, eps, dtype)
    return x if added is None else total, out


def _sum_dtype_in_autocast(x: Tensor, added: Tensor) -> torch.dtype:
    return compute_dtype(x) if torch.is_autocast_enabled(x.device.type) else torch.promote_types(x.dtype, added.dtype)


def _run(
    x: Tensor,
    added: Tensor | None,
    later: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    total, out = _fake(x, added, later, weight, bias, eps, dtype)
    with torch.cuda.device_of(x):
        _kernels().forward(x, added, None if added is None else total, later, weight, bias, eps, out)
    return total, out


def _fake(
    x: Tensor,
    added: Tensor | None,
    later: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    total = x.new_empty(0) if added is None else _empty(x, torch.promote_types(x.dtype, added.dtype))
    return total, _empty(x, dtype)


def _run_backward(
    total: Tensor,
    weight: Tensor,
    eps: float,
    out_grad: Tensor,
    total_grad: Tensor | None,
    x_dtype: torch.dtype | None,
    added_dtype: torch.dtype | None,
    needs_parameter_grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and of what was added, empty without a dtype, and of weight and bias (2, C), float32."""
    x_grad, added_grad, nothing = _fake_backward(
        total, weight, eps, out_grad, total_grad, x_dtype, added_dtype, needs_parameter_grads=False
    )
    with torch.cuda.device_of(total):
        parameter_grads = _kernels().backward(
            total,
            weight,
            eps,
            out_grad,
            total_grad,
            None if x_dtype is None else x_grad,
            None if added_dtype is None else added_grad,
            needs_parameter_grads=needs_parameter_grads,
        )
    return x_grad, added_grad, nothing if parameter_grads is None else parameter_grads


def _fake_backward(
    total: Tensor,
    weight: Tensor,
    eps: float,
    out_grad: Tensor,
    total_grad: Tensor | None,
    x_dtype: torch.dtype | None,
    added_dtype: torch.dtype | None,
    needs_parameter_grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x_grad, added_grad = (
        total.new_empty(0) if dtype is None else _empty(total, dtype) for dtype in (x_dtype, added_dtype)
    )
    size = (2, total.shape[-1]) if needs_parameter_grads else (0,)
    return x_grad, added_grad, total.new_empty(size, dtype=torch.float32)


_norm = register(
    "gpu_layer_norm(Tensor x, Tensor? added, Tensor? later, Tensor weight, Tensor bias, float eps, ScalarType dtype) "
    "-> (Tensor, Tensor)",
    _run,
    _fake,
    ON_GPUS,
)

_norm_backward = register(
    "gpu_layer_norm_backward(Tensor total, Tensor weight, float eps, Tensor out_grad, Tensor? total_grad, "
    "ScalarType? x_dtype, ScalarType? added_dtype, bool needs_parameter_grads) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
    ON_GPUS,
)


@cache
def _kernels() -> ModuleType:
    from memvit.kernels import triton_norm_kernels

    return triton_norm_kernels


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)  # half the time of new_empty


class _LayerNorm(torch.autograd.Function):
    """Keeps what was normed alone: its statistics cost less to compute again than to read."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        total, out = _forward(x, added, weight, bias, eps)
        ctx.save_for_backward(total, weight)
        ctx.set_materialize_grads(False)
        ctx.dtypes = x.dtype, x.dtype if added is None else added.dtype, bias.dtype
        ctx.eps = eps
        return out if added is None else (total, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total_grad, out_grad = grads if len(grads) == 2 else (None, *grads)
        x_dtype, added_dtype, bias_dtype = ctx.dtypes
        needs_x, needs_added, needs_weight, needs_bias, _ = ctx.needs_input_grad
        if out_grad is None:  # the sum alone was used, or nothing
            if total_grad is None:
                return (None,) * 5
            return total_grad.to(x_dtype), total_grad.to(added_dtype), None, None, None
        total, weight = ctx.saved_tensors
        shares = needs_x and needs_added and x_dtype == added_dtype
        x_grad, added_grad, parameter_grads = _norm_backward(
            total,
            weight,
            ctx.eps,
            out_grad,
            total_grad,
            x_dtype if needs_x else None,
            added_dtype if needs_added and not shares else None,
            needs_weight or needs_bias,
        )
        weight_grad = bias_grad = None
        if needs_weight or needs_bias:
            weight_grad, bias_grad = parameter_grads[0].to(weight.dtype), parameter_grads[1].to(bias_dtype)
        if shares:
            added_grad = x_grad
        return x_grad if needs_x else None, added_grad if needs_added else None, weight_grad, bias_grad, None
