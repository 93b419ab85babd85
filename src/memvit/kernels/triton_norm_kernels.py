# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
"""LayerNorm, alone or of a sum, in one Triton kernel, and its gradients in another.

A program holds whole rows of channels, several where these are narrow, in float32 registers. What goes in and out keeps
its own dtype: no pass over memory does nothing but convert.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memvit.kernels.triton_tiles import standardize

# How many programs share the sums over all rows. A constant, so that the order of the sums is the same on every GPU;
# four for each of the largest ones' processors.
NUM_SUM_PROGRAMS = 4 * 132


class Rows(NamedTuple):
    """What a program holds at a time: `num` rows of up to `block_c` channels."""

    num: int
    block_c: int
    num_warps: int

    @classmethod
    def of(cls, channels: int, num_elements: int) -> Rows:
        """About `num_elements`, or one row where that is more."""
        block_c = max(triton.next_power_of_2(channels), 16)
        num = max(num_elements // block_c, 1)
        return cls(num, block_c, 8 if num * block_c > num_elements else 4)


@cache
def forward_rows(channels: int) -> Rows:
    """Many, as each program reads the parameters once."""
    return Rows.of(channels, 4096)


@cache
def backward_rows(channels: int) -> Rows:
    """Fewer: a program holds sums besides, and reads the parameters once for all the rows of its loop."""
    return Rows.of(channels, 2048)


@triton.jit(do_not_specialize=["num_rows"])
def _norm_kernel(
    x_ptr,
    added_ptr,  # None: nothing is added
    total_ptr,  # contiguous, as `out_ptr`
    later_ptr,  # (C,), is added to what is kept of the total, but not to what is normed; None: nothing is
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    x_stride,
    added_stride,
    eps,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    in_row = c < C
    mask = (row < num_rows)[:, None] & in_row[None, :]
    row = row.to(tl.int64)
    offset = row[:, None] * C + c[None, :]
    total = tl.load(x_ptr + row[:, None] * x_stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
    if added_ptr is not None:
        added = tl.load(added_ptr + row[:, None] * added_stride + c[None, :], mask=mask, other=0.0)
        rounded = (total + added.to(tl.float32)).to(total_ptr.dtype.element_ty)
        total = rounded.to(tl.float32)
        if later_ptr is not None:
            later = tl.load(later_ptr + c, mask=in_row, other=0.0).to(tl.float32)
            rounded = (total + later[None, :]).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + offset, rounded, mask=mask)
    normed, _ = standardize(total, eps, C)
    weight = tl.load(weight_ptr + c, mask=in_row, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=in_row, other=0.0).to(tl.float32)
    out = tl.fma(normed, weight[None, :], bias[None, :])
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _norm_backward_kernel(
    total_ptr,
    weight_ptr,
    out_grad_ptr,  # this and all below contiguous, and None where there is no such gradient or none is wanted
    total_grad_ptr,
    x_grad_ptr,
    added_grad_ptr,
    partial_ptr,  # (programs, 2, C)
    num_rows,
    total_stride,
    eps,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
):
    c = tl.arange(0, BLOCK_C)
    in_row = c < C
    weight = tl.load(weight_ptr + c, mask=in_row, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((ROWS, BLOCK_C), tl.float32)
    bias_sum = tl.zeros((ROWS, BLOCK_C), tl.float32)
    first = tl.program_id(0) * ROWS
    while first < num_rows:  # Triton 3.6's interpreter has no loop over a range that is not constant
        row = first + tl.arange(0, ROWS)
        mask = (row < num_rows)[:, None] & in_row[None, :]
        # Past the end the last row is read once more: rows of zeros would not be finite after a LayerNorm without eps.
        row = tl.minimum(row, num_rows - 1).to(tl.int64)
        total = tl.load(total_ptr + row[:, None] * total_stride + c[None, :], mask=in_row[None, :], other=0.0)
        offset = row[:, None] * C + c[None, :]
        out_grad = tl.load(out_grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        normed, rstd = standardize(total.to(tl.float32), eps, C)
        if x_grad_ptr is not None or added_grad_ptr is not None:
            grad = out_grad * weight[None, :]
            along = tl.sum(grad * normed, axis=1) / C
            grad = (grad - (tl.sum(grad, axis=1) / C)[:, None] - normed * along[:, None]) * rstd[:, None]
            if total_grad_ptr is not None:
                grad += tl.load(total_grad_ptr + offset, mask=mask, other=0.0).to(tl.float32)
            if x_grad_ptr is not None:
                tl.store(x_grad_ptr + offset, grad.to(x_grad_ptr.dtype.element_ty), mask=mask)
            if added_grad_ptr is not None:
                tl.store(added_grad_ptr + offset, grad.to(added_grad_ptr.dtype.element_ty), mask=mask)
        if partial_ptr is not None:  # here, as further up registers would spill
            weight_sum = tl.fma(out_grad, normed, weight_sum)
            bias_sum += out_grad
        first += tl.num_programs(0) * ROWS
    if partial_ptr is not None:
        partial_ptr += tl.program_id(0) * (2 * C) + c
        tl.store(partial_ptr, tl.sum(weight_sum, axis=0), mask=in_row)
        tl.store(partial_ptr + C, tl.sum(bias_sum, axis=0), mask=in_row)


def forward(
    x: Tensor,
    added: Tensor | None,
    total: Tensor | None,
    later: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out: Tensor,
) -> None:
    """Writes x + added to `total`, where something is added, and the LayerNorm of that to `out`; (..., C), both contiguous.

    Args:
        later: (C,), is added to `total` as well, but not normed.
    """
    channels = x.shape[-1]
    num_rows = x.numel() // channels
    x, x_stride = _as_rows(x)
    added_stride = 0
    if added is not None:
        added, added_stride = _as_rows(added)
    rows = forward_rows(channels)
    _norm_kernel[(_ceil_div(num_rows, rows.num),)](
        x,
        added,
        total,
        later,
        weight,
        bias,
        out,
        num_rows,
        x_stride,
        added_stride,
        eps,
        C=channels,
        BLOCK_C=rows.block_c,
        ROWS=rows.num,
        num_warps=rows.num_warps,
    )


def backward(
    total: Tensor,
    weight: Tensor,
    eps: float,
    out_grad: Tensor,
    total_grad: Tensor | None,
    x_grad: Tensor | None,
    added_grad: Tensor | None,
    *,
    needs_parameter_grads: bool,
) -> Tensor | None:
    """Writes the gradient of what was normed to `x_grad` and `added_grad`, contiguous, each in its own dtype.

    Args:
        total: (..., C), what was normed.
        total_grad: the gradient that reached it elsewhere, which is added.
        x_grad, added_grad: None where not wanted.

    Returns:
        The gradients of weight and bias (2, C), float32, where needed.
    """
    channels = total.shape[-1]
    num_rows = total.numel() // channels
    total, total_stride = _as_rows(total)
    rows = backward_rows(channels)
    num_programs = min(_ceil_div(num_rows, rows.num), NUM_SUM_PROGRAMS)
    partials = None
    if needs_parameter_grads:
        partials = total.new_empty(num_programs, 2, channels, dtype=torch.float32)
    _norm_backward_kernel[(num_programs,)](
        total,
        weight,
        out_grad.contiguous(),
        None if total_grad is None else total_grad.contiguous(),
        x_grad,
        added_grad,
        partials,
        num_rows,
        total_stride,
        eps,
        C=channels,
        BLOCK_C=rows.block_c,
        ROWS=rows.num,
        num_warps=rows.num_warps,
    )
    return None if partials is None else partials.sum(0)


def _as_rows(x: Tensor) -> tuple[Tensor, int]:
    """x with the channels of a row side by side, copied only where they do not lie so, and the stride from row to row."""
    channels = x.shape[-1]
    if x.is_contiguous():
        return x, channels
    x = x.reshape(-1, channels)
    if x.stride(1) != 1:
        x = x.contiguous()
    return x, x.stride(0)


def _ceil_div(n: int, divisor: int) -> int:
    return -(-n // divisor)  # triton.cdiv costs microseconds of the host
