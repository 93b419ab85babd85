# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
"""Folding of queries and keys (`triton_folding`), and what its backward shares with it.

A program of the kernel for queries has some of one row, that is, of one time and one height, so that their entries along
time and height are one table each, and products with them are matrix products. Along width every query has a table of its
own. One more program has the class token, which takes no positions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from memvit.kernels.triton_folding import Folding

# Queries of a program. With more of them it needs so many registers that too few programs run at a time.
BLOCK_W = 16


@triton.jit
def queries_of_a_row(T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, NUM_CLASS: tl.constexpr, BLOCK_W: tl.constexpr):
    """This program's time, height and widths, its queries' places in the stream and which of them are there.

    Past the last row comes the class token, with the time of the last row, for tables to be read within bounds.
    """
    tiles: tl.constexpr = (W + BLOCK_W - 1) // BLOCK_W
    row = tl.program_id(0) // tiles
    is_class = row == T * H
    t, h = tl.minimum(row // H, T - 1), row % H
    w = tl.program_id(0) % tiles * BLOCK_W + tl.arange(0, BLOCK_W)
    place = tl.where(is_class, w, NUM_CLASS + (t * H + h) * W + w)
    exists = tl.where(is_class, w < 1, w < W)
    return t, h, w, place, exists, is_class


@triton.jit
def entry_column(entry, PAST: tl.constexpr, START: tl.constexpr, IS_BASE: tl.constexpr):
    """The dimension of each entry of an axis; meaningless for entries that have none."""
    if IS_BASE:
        return START + entry
    if PAST == 0:
        return START + entry - 1
    return START + entry - 1 - (entry >= PAST).to(tl.int32)


@triton.jit
def is_first(entry, PAST: tl.constexpr):
    """Which entries are the first of their part."""
    return (entry == 0) | (entry == PAST)


@triton.jit
def _first_of_part(values, entry, PAST: tl.constexpr):
    """(queries, entries) -> the first values of past and of present entries, (queries,) each."""
    past = tl.sum(tl.where((entry == 0)[None, :], values, 0.0), axis=1)
    present = tl.sum(tl.where((entry == PAST)[None, :], values, 0.0), axis=1)
    return past, present


@triton.jit
def _times_table(q, table_ptr, entry, c, NUM: tl.constexpr, D: tl.constexpr):
    """(queries, D) times one table (NUM, D)."""
    table = tl.load(
        table_ptr + entry[:, None] * D + c[None, :], mask=(entry < NUM)[:, None] & (c < D)[None, :], other=0.0
    )
    return tl.dot(q, tl.trans(table), input_precision="ieee")


@triton.jit
def _times_own_tables(q, table_ptr, w, entry, c, NUM: tl.constexpr, W: tl.constexpr, D: tl.constexpr):
    """(queries, D), each times the table of its w, (W, NUM, D)."""
    values = tl.zeros((q.shape[0], entry.shape[0]), tl.float32)
    mask = (w < W)[:, None] & (c < D)[None, :]
    for e in range(NUM):
        table = tl.load(table_ptr + (w * NUM + e)[:, None] * D + c[None, :], mask=mask, other=0.0)
        product = tl.sum(q.to(tl.float32) * table.to(tl.float32), axis=1)
        values = tl.where((entry == e)[None, :], product[:, None], values)
    return values


@triton.jit
def _store_entries(
    out_ptr, values, entry, exists, PAST: tl.constexpr, NUM: tl.constexpr, START: tl.constexpr, IS_BASE: tl.constexpr
):
    """Writes an axis' values to their dimensions; out_ptr: (queries, 1)."""
    stored = entry < NUM
    if not IS_BASE:
        stored = stored & ~is_first(entry, PAST)
    column = entry_column(entry, PAST, START, IS_BASE)
    tl.store(out_ptr + column[None, :], values.to(out_ptr.dtype.element_ty), mask=exists[:, None] & stored[None, :])


@triton.jit
def _fold_queries_kernel(
    q_ptr,
    table_ptr,
    out_ptr,  # (B, N, heads, WIDTH)
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
    USED: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_MASK: tl.constexpr,
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
    num_queries: tl.constexpr = NUM_CLASS + T * H * W
    q_ptr += stream * stride_b + head * stride_head
    mask = exists[:, None] & (c < D)[None, :]
    q = tl.load(q_ptr + place[:, None] * stride_n + c[None, :], mask=mask, other=0.0)
    out_row = out_ptr + ((stream * num_queries + place) * num_heads + head)[:, None] * WIDTH
    tl.store(out_row + c[None, :], (q.to(tl.float32) * scale).to(out_ptr.dtype.element_ty), mask=mask)
    q = tl.where(is_class, tl.zeros_like(q), q)  # takes no positions

    et, eh, ew = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_E)
    num_t: tl.constexpr = PT + ET
    num_h: tl.constexpr = PH + EH
    num_w: tl.constexpr = PW + EW
    # What the first entries of the other axes add to the base axis, in past and present keys.
    past = tl.zeros((BLOCK_W,), tl.float32)
    present = tl.zeros((BLOCK_W,), tl.float32)
    if num_w > 0:
        values_w = _times_own_tables(q, table_ptr + (T * num_t + H * num_h) * D, w, ew, c, num_w, W, D)
        if BASE != 2:
            first_past, first_present = _first_of_part(values_w, ew, PW)
            past += first_past
            present += first_present
            values_w -= tl.where((ew < PW)[None, :], first_past[:, None], first_present[:, None])
        _store_entries(out_row, values_w, ew, exists, PW, num_w, START_W, BASE == 2)
    if num_h > 0:
        values_h = _times_table(q, table_ptr + (T * num_t + h * num_h) * D, eh, c, num_h, D)
        if BASE != 1:
            first_past, first_present = _first_of_part(values_h, eh, PH)
            past += first_past
            present += first_present
            values_h -= tl.where((eh < PH)[None, :], first_past[:, None], first_present[:, None])
        else:
            values_h += tl.where((eh < PH)[None, :], past[:, None], present[:, None])
        _store_entries(out_row, values_h, eh, exists, PH, num_h, START_H, BASE == 1)
    if num_t > 0:
        values_t = _times_table(q, table_ptr + t * num_t * D, et, c, num_t, D)
        values_t += tl.where((et < PT)[None, :], past[:, None], present[:, None])
        _store_entries(out_row, values_t, et, exists, PT, num_t, START_T, True)
    rest = USED - HAS_MASK + tl.arange(0, 16)
    is_one = (rest < USED)[None, :] & exists[:, None]
    tl.store(
        out_row + rest[None, :],
        tl.where(is_one, 1.0, 0.0).to(out_ptr.dtype.element_ty),
        mask=exists[:, None] & (rest < WIDTH)[None, :],
    )


@triton.jit
def _fold_keys_kernel(
    k_ptr,
    v_ptr,
    past_k_ptr,
    past_v_ptr,
    column_ptr,  # (3, keys)
    mask_ptr,
    out_k_ptr,  # (B, keys, heads, WIDTH)
    out_v_ptr,  # (B, keys, heads, V_WIDTH)
    k_stride_b,
    k_stride_head,
    k_stride_n,
    v_stride_b,
    v_stride_head,
    v_stride_n,
    past_k_stride_b,
    past_k_stride_head,
    past_k_stride_n,
    past_v_stride_b,
    past_v_stride_head,
    past_v_stride_n,
    mask_stride_b,
    NUM_PAST: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    MASK_COLUMN: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_EXTRA: tl.constexpr,
):
    head, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_heads = tl.num_programs(1)
    key = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists, is_past = key < NUM_KEYS, key < NUM_PAST
    c = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (c < D)[None, :]
    present = key - NUM_PAST
    k_at = k_ptr + stream * k_stride_b + head * k_stride_head + present[:, None] * k_stride_n + c[None, :]
    v_at = v_ptr + stream * v_stride_b + head * v_stride_head + present[:, None] * v_stride_n + c[None, :]
    if NUM_PAST > 0:
        k = tl.load(k_at, mask=mask & ~is_past[:, None], other=0.0)
        v = tl.load(v_at, mask=mask & ~is_past[:, None], other=0.0)
        past_mask = mask & is_past[:, None]
        k_at = past_k_ptr + stream * past_k_stride_b + head * past_k_stride_head + key[:, None] * past_k_stride_n
        v_at = past_v_ptr + stream * past_v_stride_b + head * past_v_stride_head + key[:, None] * past_v_stride_n
        k = tl.where(is_past[:, None], tl.load(k_at + c[None, :], mask=past_mask, other=0.0), k)
        v = tl.where(is_past[:, None], tl.load(v_at + c[None, :], mask=past_mask, other=0.0), v)
    else:
        k = tl.load(k_at, mask=mask, other=0.0)
        v = tl.load(v_at, mask=mask, other=0.0)
    out_row = ((stream * NUM_KEYS + key) * num_heads + head)[:, None]
    tl.store(out_k_ptr + out_row * WIDTH + c[None, :], k, mask=mask)
    tl.store(out_v_ptr + out_row * V_WIDTH + c[None, :], v, mask=exists[:, None] & (c < V_WIDTH)[None, :])
    extra = D + tl.arange(0, BLOCK_EXTRA)
    folded = tl.zeros((BLOCK_N, BLOCK_EXTRA), tl.float32)
    if HAS_COLUMNS:
        for axis in range(3):
            column = tl.load(column_ptr + axis * NUM_KEYS + key, mask=exists, other=-1)
            folded = tl.where(column[:, None] == extra[None, :] - D, 1.0, folded)
    if MASK_COLUMN >= 0:
        is_seen = tl.load(mask_ptr + stream * mask_stride_b + key, mask=exists, other=1) != 0
        folded = tl.where((extra == MASK_COLUMN)[None, :] & ~is_seen[:, None], MASKED, folded)
    tl.store(
        out_k_ptr + out_row * WIDTH + extra[None, :],
        folded.to(out_k_ptr.dtype.element_ty),
        mask=exists[:, None] & (extra < WIDTH)[None, :],
    )


def blocks(folding: Folding) -> dict[str, int]:
    """Powers of two that hold the dimensions, and the entries along each axis."""
    blocks = {
        f"BLOCK_{name}": max(16, triton.next_power_of_2(folding.num_entries(axis))) for axis, name in enumerate("THE")
    }
    return {"BLOCK_D": max(16, triton.next_power_of_2(folding.head_dim)), **blocks}


def num_programs(folding: Folding) -> int:
    """For the queries of one head of one stream."""
    t, h, w = folding.grid
    return t * h * triton.cdiv(w, BLOCK_W) + folding.num_class


def launch_fold_queries(q: Tensor, tables: Tensor, out: Tensor, folding: Folding) -> None:
    """Writes `triton_folding.fold_queries` to `out`."""
    B, heads = q.shape[:2]
    _fold_queries_kernel[(num_programs(folding), heads, B)](
        q,
        tables,
        out,
        q.stride(0),
        q.stride(1),
        q.stride(2),
        folding.head_dim**-0.5,
        USED=folding.used,
        WIDTH=folding.width,
        HAS_MASK=int(folding.has_mask),
        BLOCK_W=BLOCK_W,
        num_warps=4,
        **blocks(folding),
        **folding.constants,
    )


def launch_fold_keys(
    k: Tensor,
    v: Tensor,
    past_k: Tensor,
    past_v: Tensor,
    columns: Tensor,
    key_mask: Tensor | None,
    out_k: Tensor,
    out_v: Tensor,
    mask_column: int,
) -> None:
    """Writes `triton_folding.fold_keys` to `out_k` and `out_v`; without past keys, `past_k` is not read."""
    B, heads, num_present, head_dim = k.shape
    num_keys, width, v_width = out_k.shape[2], out_k.shape[3], out_v.shape[3]
    if key_mask is None:
        mask, mask_stride, mask_column = columns, 0, -1
    else:
        mask = key_mask.contiguous().view(torch.uint8)
        mask_stride = num_keys if len(key_mask) > 1 else 0
    block_n = 16
    _fold_keys_kernel[(triton.cdiv(num_keys, block_n), heads, B)](
        k,
        v,
        past_k,
        past_v,
        columns,
        mask,
        out_k,
        out_v,
        *k.stride()[:3],
        *v.stride()[:3],
        *past_k.stride()[:3],
        *past_v.stride()[:3],
        mask_stride,
        NUM_PAST=num_keys - num_present,
        NUM_KEYS=num_keys,
        D=head_dim,
        WIDTH=width,
        V_WIDTH=v_width,
        HAS_COLUMNS=columns.shape[1] > 0,
        MASK_COLUMN=mask_column,
        MASKED=-3e4 if k.dtype == torch.float16 else -1e9,
        BLOCK_N=block_n,
        BLOCK_D=max(16, triton.next_power_of_2(max(head_dim, v_width))),
        BLOCK_EXTRA=max(16, triton.next_power_of_2(width - head_dim)) if width > head_dim else 16,
        num_warps=4,
    )
