# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment, misc"
"""The kernel of `triton_attention`.

A program has some queries of one head: of one height, side by side, at several times. It first works out the terms of their
positions, of which a key takes one along each axis: these are further dimensions of a query, for which keys have ones and zeros,
which lie in a table of their own. Then it goes through past keys and through present ones, where they lie, with a running
softmax. Dimensions of heads lie in blocks of powers of two, of which matrix products are made.

Queries of a program share one table along height; along time and width they have tables of their own. They are multiplied by
many of these at once, and each picks its own products: sixteen times the work takes less time than as many single products.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Of keys that take no part. Finite, as of two infinities there is no difference; a running softmax forgets them at the first
# key that does take part.
MASKED = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _queries_of_a_tile(
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    TIMES: tl.constexpr,
):
    """This program's first time, its height and first width, its queries' places in the stream, which are there, and which are
    on the grid: behind the last tile comes the class token.
    """
    tiles_w: tl.constexpr = (W + BLOCK_W - 1) // BLOCK_W
    num_tiles: tl.constexpr = (T + TIMES - 1) // TIMES * H * tiles_w
    tile = tl.program_id(0)
    is_class = tile >= num_tiles
    row = tl.arange(0, TIMES * BLOCK_W)
    first_t = tl.where(is_class, 0, tile // (tiles_w * H) * TIMES)
    h = tile // tiles_w % H
    first_w = tl.where(is_class, 0, tile % tiles_w * BLOCK_W)
    t, w = first_t + row // BLOCK_W, first_w + row % BLOCK_W
    # Every query knows, though all share it: the interpreter cannot join conditions on blocks and on scalars.
    on_grid = row * 0 + tile < num_tiles
    place = tl.where(on_grid, NUM_CLASS + (t * H + h) * W + w, row)
    exists = tl.where(on_grid, (t < T) & (w < W), row < 1)
    return first_t, h, first_w, place, exists, on_grid


@triton.jit
def _times_tables(
    q,
    table_ptr,
    first,
    c,
    COUNT: tl.constexpr,
    LIMIT: tl.constexpr,
    NUM: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    """Queries' dimensions c times those of `COUNT` tables (NUM, D) from the `first` of `LIMIT` on: (queries, COUNT x BLOCK)."""
    column = tl.arange(0, COUNT * BLOCK)
    table, entry = first + column // BLOCK, column % BLOCK
    rows = tl.load(
        table_ptr + (table * NUM + entry)[:, None] * D + c[None, :],
        mask=((table < LIMIT) & (entry < NUM))[:, None] & (c < D)[None, :],
        other=0.0,
    )
    return tl.dot(q, tl.trans(rows), input_precision="ieee")


@triton.jit
def _own_products(products, table, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """(queries, COUNT x BLOCK) -> (queries, BLOCK): those with each query's table."""
    apart = tl.reshape(products, (table.shape[0], COUNT, BLOCK))
    is_own = table[:, None, None] == tl.arange(0, COUNT)[None, :, None]
    return tl.sum(tl.where(is_own, apart, 0.0), axis=1)


@triton.jit
def _position_terms(
    q_row,
    on_grid,
    table_ptr,
    first,
    own,
    COUNT: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LIMIT: tl.constexpr,
    NUM: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Products of queries with their own one of `COUNT` tables (NUM, D) from the `first` of `LIMIT` on: (queries, BLOCK)."""
    terms = tl.zeros((own.shape[0], BLOCK), tl.float32)
    for part in tl.static_range(0, COUNT, AT_ONCE):
        products = tl.zeros((own.shape[0], AT_ONCE * BLOCK), tl.float32)
        for start in tl.static_range(0, D, BLOCK_D):
            c = start + tl.arange(0, BLOCK_D)
            q = tl.load(q_row + c[None, :], mask=on_grid[:, None] & (c < D)[None, :], other=0.0)
            products += _times_tables(q, table_ptr, first + part, c, AT_ONCE, LIMIT, NUM, BLOCK, D)
        if COUNT == 1:
            terms = products
        else:
            terms += _own_products(products, own - part, AT_ONCE, BLOCK)
    return terms


@triton.jit
def _attend(
    qs,  # for each block of dimensions (queries, block), scaled
    terms,  # for each axis (queries, entries), scaled
    largest,  # (queries,) of the keys so far
    total,  # (queries,) of their weights
    sums,  # for each block of dimensions, of their values
    k_ptr,  # this stream's and head's
    v_ptr,
    ones_ptr,  # (keys, entries of all axes)
    mask_ptr,
    k_stride,
    v_stride,
    NUM_KEYS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    D: tl.constexpr,
    STARTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    ENTRY_BLOCKS: tl.constexpr,
    ENTRY_STARTS: tl.constexpr,
    NUM_AXES: tl.constexpr,
    NUM_ENTRIES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    for start in range(0, NUM_KEYS, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        exists = key < NUM_KEYS
        logits = tl.zeros((largest.shape[0], BLOCK_N), tl.float32)
        for b in tl.static_range(NUM_BLOCKS):
            c = STARTS[b] + tl.arange(0, BLOCKS[b])
            mask = exists[:, None] & (c < D)[None, :]
            k = tl.load(k_ptr + key[:, None] * k_stride + c[None, :], mask=mask, other=0.0)
            logits = tl.dot(qs[b], tl.trans(k), logits)
        for axis in tl.static_range(NUM_AXES):
            entry = ENTRY_STARTS[axis] + tl.arange(0, ENTRY_BLOCKS[axis])
            ones = tl.load(ones_ptr + key[:, None] * NUM_ENTRIES + entry[None, :], mask=exists[:, None], other=0.0)
            logits = tl.dot(terms[axis], tl.trans(ones), logits)
        if HAS_MASK:
            exists = tl.load(mask_ptr + key, mask=exists, other=0) != 0
        logits = tl.where(exists[None, :], logits, MASKED)
        larger = tl.maximum(largest, tl.max(logits, axis=1))
        weights = tl.exp2(logits - larger[:, None])
        shrinks = tl.exp2(largest - larger)
        total = total * shrinks + tl.sum(weights, axis=1)
        largest = larger
        weights = weights.to(v_ptr.dtype.element_ty)
        added = ()
        for b in tl.static_range(NUM_BLOCKS):
            c = STARTS[b] + tl.arange(0, BLOCKS[b])
            mask = (key < NUM_KEYS)[:, None] & (c < D)[None, :]
            v = tl.load(v_ptr + key[:, None] * v_stride + c[None, :], mask=mask, other=0.0)
            added = added + (tl.dot(weights, v, sums[b] * shrinks[:, None]),)  # noqa: RUF005
        sums = added
    return largest, total, sums


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    past_k_ptr,
    past_v_ptr,
    table_ptr,
    ones_ptr,
    mask_ptr,
    out_ptr,  # (B, N, heads, D)
    q_stride_b,
    q_stride_head,
    q_stride_n,
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
    scale,
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    D: tl.constexpr,
    NUM_T: tl.constexpr,  # entries along time, of past and present keys
    NUM_H: tl.constexpr,
    NUM_W: tl.constexpr,
    NUM_PAST: tl.constexpr,
    NUM_PRESENT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    RESIDUAL_FROM: tl.constexpr,  # queries from here on are added to the result; negative: none
    STARTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ENTRY_BLOCKS: tl.constexpr,
    ENTRY_STARTS: tl.constexpr,
    NUM_AXES: tl.constexpr,
    NUM_ENTRIES: tl.constexpr,
    BLOCK_W: tl.constexpr,
    TIMES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attention of `TIMES` x `BLOCK_W` queries of one head of one stream."""
    head, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_heads = tl.num_programs(1)
    first_t, h, first_w, place, exists, on_grid = _queries_of_a_tile(T, H, W, NUM_CLASS, BLOCK_W, TIMES)
    num_queries: tl.constexpr = NUM_CLASS + T * H * W
    rows: tl.constexpr = TIMES * BLOCK_W
    row = tl.arange(0, rows)
    q_row = q_ptr + stream * q_stride_b + head * q_stride_head + place[:, None] * q_stride_n
    dtype = out_ptr.dtype.element_ty
    takes = exists & on_grid

    # Of as many tables at a time that their products are 128 columns.
    at_once_t: tl.constexpr = min(TIMES, max(128 // BLOCK_T, 1))
    at_once_w: tl.constexpr = min(BLOCK_W, max(128 // BLOCK_E, 1))
    terms = ()
    if NUM_T > 0:
        terms_t = _position_terms(
            q_row, takes, table_ptr, first_t, row // BLOCK_W, TIMES, at_once_t, T, NUM_T, BLOCK_T, D, BLOCK_D
        )
        terms = terms + ((terms_t * LOG2_E).to(dtype),)  # noqa: RUF005
    if NUM_H > 0:
        table_h_ptr = table_ptr + T * NUM_T * D
        terms_h = _position_terms(q_row, takes, table_h_ptr, h, row, 1, 1, H, NUM_H, BLOCK_H, D, BLOCK_D)
        terms = terms + ((terms_h * LOG2_E).to(dtype),)  # noqa: RUF005
    if NUM_W > 0:
        table_w_ptr = table_ptr + (T * NUM_T + H * NUM_H) * D
        terms_w = _position_terms(
            q_row, takes, table_w_ptr, first_w, row % BLOCK_W, BLOCK_W, at_once_w, W, NUM_W, BLOCK_E, D, BLOCK_D
        )
        terms = terms + ((terms_w * LOG2_E).to(dtype),)  # noqa: RUF005
    qs, sums = (), ()
    for b in tl.static_range(NUM_BLOCKS):
        c = STARTS[b] + tl.arange(0, BLOCKS[b])
        q = tl.load(q_row + c[None, :], mask=exists[:, None] & (c < D)[None, :], other=0.0)
        qs = qs + ((q.to(tl.float32) * (scale * LOG2_E)).to(dtype),)  # noqa: RUF005
        sums = sums + (tl.zeros(q.shape, tl.float32),)  # noqa: RUF005

    largest = tl.full((rows,), MASKED, tl.float32)
    total = tl.zeros((rows,), tl.float32)
    mask_ptr += stream * mask_stride_b
    if NUM_PAST > 0:
        largest, total, sums = _attend(
            qs, terms, largest, total, sums,
            past_k_ptr + stream * past_k_stride_b + head * past_k_stride_head,
            past_v_ptr + stream * past_v_stride_b + head * past_v_stride_head,
            ones_ptr, mask_ptr, past_k_stride_n, past_v_stride_n, NUM_PAST, HAS_MASK,
            D, STARTS, BLOCKS, NUM_BLOCKS, ENTRY_BLOCKS, ENTRY_STARTS, NUM_AXES, NUM_ENTRIES, BLOCK_N,
        )  # fmt: skip
    largest, total, sums = _attend(
        qs, terms, largest, total, sums,
        k_ptr + stream * k_stride_b + head * k_stride_head,
        v_ptr + stream * v_stride_b + head * v_stride_head,
        ones_ptr + NUM_PAST * NUM_ENTRIES, mask_ptr + NUM_PAST, k_stride_n, v_stride_n, NUM_PRESENT, HAS_MASK,
        D, STARTS, BLOCKS, NUM_BLOCKS, ENTRY_BLOCKS, ENTRY_STARTS, NUM_AXES, NUM_ENTRIES, BLOCK_N,
    )  # fmt: skip

    out_row = out_ptr + ((stream * num_queries + place) * num_heads + head)[:, None] * D
    for b in tl.static_range(NUM_BLOCKS):
        c = STARTS[b] + tl.arange(0, BLOCKS[b])
        mask = exists[:, None] & (c < D)[None, :]
        out = sums[b] / total[:, None]
        if RESIDUAL_FROM >= 0:
            is_added = mask & (place >= RESIDUAL_FROM)[:, None]
            # Rounded before, as where PyTorch adds them.
            out = out.to(dtype).to(tl.float32) + tl.load(q_row + c[None, :], mask=is_added, other=0.0).to(tl.float32)
        tl.store(out_row + c[None, :], out.to(dtype), mask=mask)
