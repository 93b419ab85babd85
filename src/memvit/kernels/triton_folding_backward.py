# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
"""Gradients of folded queries (`triton_folding_forward`), without atomics, so that a run repeats bit for bit.

1. Queries: each gathers from its own dimensions, and from the tables that it was multiplied with.
2. Tables: one program sums over the queries that took it, of a part of all streams and heads; parts are added up after it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from memvit.kernels.triton_folding import Folding
from memvit.kernels.triton_folding_forward import (
    BLOCK_W,
    blocks,
    entry_column,
    is_first,
    num_programs,
    queries_of_a_row,
)

# Into how many parts the sum over all streams and heads is cut. A constant, so that its order is the same on every GPU.
NUM_TABLE_PARTS = 16


@triton.jit
def _entry_grads(
    grad_row, entry, exists, base_past, base_present,
    PAST: tl.constexpr, NUM: tl.constexpr, START: tl.constexpr, IS_BASE: tl.constexpr,
):  # fmt: skip
    """Gradients of an axis' values, (queries, entries) float32; those of the base axis in sums: what firsts add to it."""
    stored = entry < NUM
    if not IS_BASE:
        stored = stored & ~is_first(entry, PAST)
    column = entry_column(entry, PAST, START, IS_BASE)
    grads = tl.load(grad_row + column[None, :], mask=exists[:, None] & stored[None, :], other=0.0).to(tl.float32)
    if not IS_BASE:
        # The first entry of a part was added to the base axis and subtracted from the part's others.
        in_past = (entry < PAST)[None, :]
        past = base_past - tl.sum(tl.where(in_past, grads, 0.0), axis=1)
        present = base_present - tl.sum(tl.where(in_past, 0.0, grads), axis=1)
        if PAST > 0:
            grads = tl.where((entry == 0)[None, :], past[:, None], grads)
        grads = tl.where((entry == PAST)[None, :], present[:, None], grads)
    return grads


@triton.jit
def _base_sums(grads, entry, PAST: tl.constexpr):
    """The sums of the base axis' gradients over past and over present entries, (queries,) each."""
    in_past = (entry < PAST)[None, :]
    return tl.sum(tl.where(in_past, grads, 0.0), axis=1), tl.sum(tl.where(in_past, 0.0, grads), axis=1)


@triton.jit
def _all_entry_grads(
    grad_row, exists, et, eh, ew,
    BASE: tl.constexpr,
    PT: tl.constexpr, ET: tl.constexpr, PH: tl.constexpr, EH: tl.constexpr, PW: tl.constexpr, EW: tl.constexpr,
    START_T: tl.constexpr, START_H: tl.constexpr, START_W: tl.constexpr,
):  # fmt: skip
    """Gradients of the values along time, height and width."""
    nothing = tl.zeros((exists.shape[0],), tl.float32)
    past, present = nothing, nothing
    grads_t = tl.zeros((exists.shape[0], et.shape[0]), tl.float32)
    grads_h = tl.zeros((exists.shape[0], eh.shape[0]), tl.float32)
    grads_w = tl.zeros((exists.shape[0], ew.shape[0]), tl.float32)
    if PT + ET > 0:
        grads_t = _entry_grads(grad_row, et, exists, past, present, PT, PT + ET, START_T, True)
        past, present = _base_sums(grads_t, et, PT)
    if PH + EH > 0:
        grads_h = _entry_grads(grad_row, eh, exists, past, present, PH, PH + EH, START_H, BASE == 1)
        if BASE == 1:
            past, present = _base_sums(grads_h, eh, PH)
    if PW + EW > 0:
        grads_w = _entry_grads(grad_row, ew, exists, past, present, PW, PW + EW, START_W, BASE == 2)
    return grads_t, grads_h, grads_w


@triton.jit
def _query_grad_kernel(
    grad_ptr,
    table_ptr,
    q_grad_ptr,  # (B, N, heads, D)
    stride_b,
    stride_head,
    stride_n,
    scale,
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    PT: tl.constexpr,
    ET: tl.constexpr,
    PH: tl.constexpr,
    EH: tl.constexpr,
    PW: tl.constexpr,
    EW: tl.constexpr,
    START_T: tl.constexpr,
    START_H: tl.constexpr,
    START_W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    head, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_heads = tl.num_programs(1)
    t, h, w, place, exists, is_class = queries_of_a_row(T, H, W, NUM_CLASS, BLOCK_W)
    c = tl.arange(0, BLOCK_D)
    in_head = c < D
    num_queries: tl.constexpr = NUM_CLASS + T * H * W
    mask = exists[:, None] & in_head[None, :]
    grad_row = grad_ptr + stream * stride_b + head * stride_head + place[:, None] * stride_n
    et, eh, ew = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_E)
    takes = exists & (w * 0 + is_class.to(tl.int32) == 0)
    grads_t, grads_h, grads_w = _all_entry_grads(
        grad_row, takes, et, eh, ew, BASE, PT, ET, PH, EH, PW, EW, START_T, START_H, START_W
    )
    num_t: tl.constexpr = PT + ET
    num_h: tl.constexpr = PH + EH
    num_w: tl.constexpr = PW + EW
    total = tl.load(grad_row + c[None, :], mask=mask, other=0.0).to(tl.float32) * scale
    dtype = table_ptr.dtype.element_ty
    if num_t > 0:
        table = tl.load(
            table_ptr + (t * num_t + et)[:, None] * D + c[None, :],
            mask=(et < num_t)[:, None] & in_head[None, :],
            other=0.0,
        )
        total += tl.dot(grads_t.to(dtype), table, input_precision="ieee")
    if num_h > 0:
        table = tl.load(
            table_ptr + (T * num_t + h * num_h + eh)[:, None] * D + c[None, :],
            mask=(eh < num_h)[:, None] & in_head[None, :],
            other=0.0,
        )
        total += tl.dot(grads_h.to(dtype), table, input_precision="ieee")
    own_mask = (w < W)[:, None] & in_head[None, :]
    for e in range(num_w):
        own_table = tl.load(
            table_ptr + (T * num_t + H * num_h + w * num_w + e)[:, None] * D + c[None, :], mask=own_mask, other=0.0
        )
        grad = tl.sum(tl.where((ew == e)[None, :], grads_w, 0.0), axis=1)
        total += grad[:, None] * own_table.to(tl.float32)
    out_row = q_grad_ptr + ((stream * num_queries + place) * num_heads + head)[:, None] * D
    tl.store(out_row + c[None, :], total.to(q_grad_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _table_grad_kernel(
    grad_ptr,
    q_ptr,
    partial_ptr,  # (parts, rows of all tables, D)
    grad_stride_b,
    grad_stride_head,
    grad_stride_n,
    q_stride_b,
    q_stride_head,
    q_stride_n,
    num_heads,
    num_pairs,
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    D: tl.constexpr,
    BASE: tl.constexpr,
    PT: tl.constexpr,
    ET: tl.constexpr,
    PH: tl.constexpr,
    EH: tl.constexpr,
    PW: tl.constexpr,
    EW: tl.constexpr,
    START_T: tl.constexpr,
    START_H: tl.constexpr,
    START_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
    AXIS: tl.constexpr,
    PARTS: tl.constexpr,
    NUM_STEPS: tl.constexpr,
):
    """One table of one axis: its queries, of a part of all streams and heads."""
    row, part = tl.program_id(0), tl.program_id(1)
    num_t: tl.constexpr = PT + ET
    num_h: tl.constexpr = PH + EH
    num_w: tl.constexpr = PW + EW
    c = tl.arange(0, BLOCK_D)
    et, eh, ew = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_E)
    num_here: tl.constexpr = H * W if AXIS == 0 else T * W if AXIS == 1 else T * H
    if AXIS == 0:
        entry, num, first = et, num_t, row * num_t
        total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    elif AXIS == 1:
        entry, num, first = eh, num_h, T * num_t + row * num_h
        total = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    else:
        entry, num, first = ew, num_w, T * num_t + H * num_h + row * num_w
        total = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    dtype = q_ptr.dtype.element_ty
    for step in range(NUM_STEPS):
        pair = part + step * PARTS
        stream, head = (pair // num_heads).to(tl.int64), pair % num_heads
        for start in range(0, num_here, BLOCK_N):
            i = start + tl.arange(0, BLOCK_N)
            exists = (i < num_here) & (pair + i * 0 < num_pairs)
            if AXIS == 0:
                place = row * (H * W) + i
            elif AXIS == 1:
                place = (i // W * H + row) * W + i % W
            else:
                place = i * W + row
            place += NUM_CLASS
            grad_row = grad_ptr + stream * grad_stride_b + head * grad_stride_head + place[:, None] * grad_stride_n
            grads_t, grads_h, grads_w = _all_entry_grads(
                grad_row, exists, et, eh, ew, BASE, PT, ET, PH, EH, PW, EW, START_T, START_H, START_W
            )
            q = tl.load(
                q_ptr + stream * q_stride_b + head * q_stride_head + place[:, None] * q_stride_n + c[None, :],
                mask=exists[:, None] & (c < D)[None, :],
                other=0.0,
            )
            if AXIS == 0:
                total += tl.dot(tl.trans(grads_t.to(dtype)), q, input_precision="ieee")
            elif AXIS == 1:
                total += tl.dot(tl.trans(grads_h.to(dtype)), q, input_precision="ieee")
            else:
                total += tl.dot(tl.trans(grads_w.to(dtype)), q, input_precision="ieee")
    num_rows: tl.constexpr = T * num_t + H * num_h + W * num_w
    out_ptr = partial_ptr + (part * num_rows + first + entry)[:, None] * D + c[None, :]
    tl.store(out_ptr, total, mask=(entry < num)[:, None] & (c < D)[None, :])


def launch_query_grad(grad: Tensor, tables: Tensor, q_grad: Tensor, folding: Folding) -> None:
    """Writes the gradient of queries, (B, heads, N, head_dim), from that of folded ones."""
    B, heads = grad.shape[:2]
    _query_grad_kernel[(num_programs(folding), heads, B)](
        grad,
        tables,
        q_grad,
        grad.stride(0),
        grad.stride(1),
        grad.stride(2),
        folding.head_dim**-0.5,
        BLOCK_W=BLOCK_W,
        num_warps=4,
        **blocks(folding),
        **folding.constants,
    )


def launch_table_grad(grad: Tensor, q: Tensor, tables: Tensor, folding: Folding) -> Tensor:
    """The gradient of the tables, float32 (rows, head_dim)."""
    B, heads = grad.shape[:2]
    parts = min(NUM_TABLE_PARTS, B * heads)
    partials = grad.new_empty(parts, *tables.shape, dtype=torch.float32)
    for axis in range(3):
        if folding.num_entries(axis):
            _table_grad_kernel[(folding.grid[axis], parts)](
                grad,
                q,
                partials,
                *grad.stride()[:3],
                *q.stride()[:3],
                heads,
                B * heads,
                BLOCK_N=64,
                AXIS=axis,
                PARTS=parts,
                NUM_STEPS=triton.cdiv(B * heads, parts),
                num_warps=4,
                **blocks(folding),
                **folding.constants,
            )
    return partials.sum(0)
