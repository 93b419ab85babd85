# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment, misc"
"""The kernel of `triton_attention`.

A program has some queries of one head: of one height, side by side, at several times. It first works out the terms of their
positions, of which a key takes one along each axis: these are further dimensions of a query, for which keys have ones and zeros,
which lie in a table of their own. One more dimension, very low in all queries, is that of keys which a mask hides. Then it goes
through past keys and through present ones, where they lie, with a running softmax. Dimensions of heads lie in blocks of powers
of two, of which matrix products are made.

Queries of a program share one table along height; along time and width they have tables of their own. They are multiplied by all
of them at once, each keeps its own products, and another matrix product brings these together: sixteen times the work takes less
time than as many single ones, and nothing leaves the registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Of keys that take no part. Finite, as of two infinities there is no difference; a running softmax forgets them at the first
# key that does take part.
MASKED = tl.constexpr(-1e30)
MASKED_IN_FLOAT16 = tl.constexpr(-6e4)  # the logit itself, before it is scaled
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
def _table_rows(
    table_ptr,
    first,
    AT_ONCE: tl.constexpr,
    LIMIT: tl.constexpr,
    NUM: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    STARTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    """Tables (NUM, D) from the `first` of `LIMIT` on, for each block of dimensions (AT_ONCE x BLOCK, dimensions)."""
    column = tl.arange(0, AT_ONCE * BLOCK)
    table, entry = first + column // BLOCK, column % BLOCK
    there = ((table < LIMIT) & (entry < NUM))[:, None]
    rows = ()
    for b in tl.static_range(NUM_BLOCKS):
        c = STARTS[b] + tl.arange(0, BLOCKS[b])
        of_block = tl.load(
            table_ptr + (table * NUM + entry)[:, None] * D + c[None, :], mask=there & (c < D)[None, :], other=0.0
        )
        rows = rows + (of_block,)  # noqa: RUF005
    return rows


@triton.jit
def _places(
    entry,
    COLUMNS: tl.constexpr,
    PAST: tl.constexpr,
    NUM: tl.constexpr,
    START: tl.constexpr,
    IS_BASE: tl.constexpr,
    BASE_PAST: tl.constexpr,
    BASE_NUM: tl.constexpr,
    BASE_START: tl.constexpr,
):
    """What the product with each entry of an axis adds to each column of the terms, (COLUMNS, entries): see `triton_folding`.

    An entry of the base axis has a column. Of the other axes the first past and the first present entry have none: they are
    subtracted from the others of their part, and added to those of the base axis.
    """
    column, e = tl.arange(0, COLUMNS)[:, None], entry[None, :]
    if IS_BASE:
        return ((column == START + e) & (e < NUM)).to(tl.float32)
    no_past: tl.constexpr = 1 if PAST > 0 else 0  # columns that the first past entry leaves out
    present: tl.constexpr = START + PAST - no_past
    end: tl.constexpr = present + NUM - PAST - 1
    base_present: tl.constexpr = BASE_START + BASE_PAST
    base_end: tl.constexpr = BASE_START + BASE_NUM
    is_first_present = e == PAST
    adds = (column >= base_present) & (column < base_end)
    subtracts = (column >= present) & (column < end)
    # Of a present entry behind the first, two are left out before it, or one.
    own = (e > PAST) & (e < NUM) & (column == START + e - 1 - no_past)
    places = (
        own.to(tl.float32) + (is_first_present & adds).to(tl.float32) - (is_first_present & subtracts).to(tl.float32)
    )
    if PAST > 0:
        is_first_past = e == 0
        adds = (column >= BASE_START) & (column < base_present)
        subtracts = (column >= START) & (column < present)
        own = (e > 0) & (e < PAST) & (column == START + e - 1)
        places += (
            own.to(tl.float32) + (is_first_past & adds).to(tl.float32) - (is_first_past & subtracts).to(tl.float32)
        )
    return places


@triton.jit
def _add_terms(
    terms,  # (queries, columns)
    qs,  # for each block of dimensions (queries, block)
    rows,  # of `_table_rows`
    own,
    places,  # of `_places`, for the entries of all these tables
    scale,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    """Adds products of queries with their `own` one of some tables, over the scale of logits, where they belong."""
    column = tl.arange(0, rows[0].shape[0])
    products = tl.zeros((own.shape[0], column.shape[0]), tl.float32)
    for b in tl.static_range(NUM_BLOCKS):
        products = tl.dot(qs[b], tl.trans(rows[b]), products)
    is_own = own[:, None] == (column // BLOCK)[None, :]
    products = tl.where(is_own, products / scale, 0.0).to(qs[0].dtype)
    # Laid out by columns: ptxas 12.8 gets the addresses of the other way round wrong.
    return tl.dot(products, tl.trans(places.to(qs[0].dtype)), terms)


@triton.jit
def attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    past_k_ptr,
    past_v_ptr,
    table_ptr,
    ones_ptr,  # (B or 1, past and present keys, ENTRIES); where there are clips, (2, keys, ENTRIES), as keys take part and do not
    seen_ptr,  # (B, NUM_CLIPS)
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
    ones_stride_b,
    scale,
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    D: tl.constexpr,
    NUM_T: tl.constexpr,  # entries along time, of past and present keys
    NUM_H: tl.constexpr,
    NUM_W: tl.constexpr,
    PAST_T: tl.constexpr,  # of these, of past keys
    PAST_H: tl.constexpr,
    PAST_W: tl.constexpr,
    START_T: tl.constexpr,  # first columns of the axes, as of `Folding`
    START_H: tl.constexpr,
    START_W: tl.constexpr,
    BASE: tl.constexpr,
    NUM_PAST: tl.constexpr,
    NUM_PRESENT: tl.constexpr,
    MASK_COLUMN: tl.constexpr,
    NUM_CLIPS: tl.constexpr,  # past clips, of which some may not be seen; 0: `ones` tells which keys take part
    BLOCK_CLIPS: tl.constexpr,
    RESIDUAL_FROM: tl.constexpr,  # queries from here on are added to the result; negative: none
    STARTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ENTRIES: tl.constexpr,
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

    if NUM_CLIPS > 0:  # a bit for each clip that takes no part
        clip = tl.arange(0, BLOCK_CLIPS)
        seen = tl.load(seen_ptr + stream * NUM_CLIPS + clip, mask=clip < NUM_CLIPS, other=1)
        hidden = tl.sum((seen == 0).to(tl.int32) << clip, axis=0)
    qs, sums = (), ()
    for b in tl.static_range(NUM_BLOCKS):
        c = STARTS[b] + tl.arange(0, BLOCKS[b])
        q = tl.load(q_row + c[None, :], mask=exists[:, None] & (c < D)[None, :], other=0.0)
        qs = qs + (q,)  # noqa: RUF005
        sums = sums + (tl.zeros(q.shape, tl.float32),)  # noqa: RUF005
    # Of as many tables at a time that their products are 128 columns. All are asked for before any is used.
    at_once_t: tl.constexpr = min(TIMES, max(128 // BLOCK_T, 1))
    at_once_w: tl.constexpr = min(BLOCK_W, max(128 // BLOCK_E, 1))
    table_h_ptr = table_ptr + T * NUM_T * D
    table_w_ptr = table_h_ptr + H * NUM_H * D
    own_t, own_w = row // BLOCK_W, row % BLOCK_W
    if NUM_T > 0:
        rows_t = _table_rows(table_ptr, first_t, at_once_t, T, NUM_T, BLOCK_T, D, STARTS, BLOCKS, NUM_BLOCKS)
    if NUM_H > 0:
        rows_h = _table_rows(table_h_ptr, h, 1, H, NUM_H, BLOCK_H, D, STARTS, BLOCKS, NUM_BLOCKS)
    if NUM_W > 0:
        rows_w = _table_rows(table_w_ptr, first_w, at_once_w, W, NUM_W, BLOCK_E, D, STARTS, BLOCKS, NUM_BLOCKS)
    base_past: tl.constexpr = PAST_T if BASE == 0 else PAST_H if BASE == 1 else PAST_W
    base_num: tl.constexpr = NUM_T if BASE == 0 else NUM_H if BASE == 1 else NUM_W
    base_start: tl.constexpr = START_T if BASE == 0 else START_H if BASE == 1 else START_W
    terms = tl.zeros((rows, ENTRIES), tl.float32)
    if NUM_T > 0:
        entry_t = tl.arange(0, at_once_t * BLOCK_T) % BLOCK_T
        places = _places(entry_t, ENTRIES, PAST_T, NUM_T, START_T, BASE == 0, base_past, base_num, base_start)
        terms = _add_terms(terms, qs, rows_t, own_t, places, scale, BLOCK_T, NUM_BLOCKS)
        for part in tl.static_range(at_once_t, TIMES, at_once_t):
            rows_t = _table_rows(table_ptr, first_t + part, at_once_t, T, NUM_T, BLOCK_T, D, STARTS, BLOCKS, NUM_BLOCKS)
            terms = _add_terms(terms, qs, rows_t, own_t - part, places, scale, BLOCK_T, NUM_BLOCKS)
    if NUM_H > 0:
        entry_h = tl.arange(0, BLOCK_H)
        places = _places(entry_h, ENTRIES, PAST_H, NUM_H, START_H, BASE == 1, base_past, base_num, base_start)
        terms = _add_terms(terms, qs, rows_h, row * 0, places, scale, BLOCK_H, NUM_BLOCKS)
    if NUM_W > 0:
        entry_w = tl.arange(0, at_once_w * BLOCK_E) % BLOCK_E
        places = _places(entry_w, ENTRIES, PAST_W, NUM_W, START_W, BASE == 2, base_past, base_num, base_start)
        terms = _add_terms(terms, qs, rows_w, own_w, places, scale, BLOCK_E, NUM_BLOCKS)
        for part in tl.static_range(at_once_w, BLOCK_W, at_once_w):
            rows_w = _table_rows(
                table_w_ptr, first_w + part, at_once_w, W, NUM_W, BLOCK_E, D, STARTS, BLOCKS, NUM_BLOCKS
            )
            terms = _add_terms(terms, qs, rows_w, own_w - part, places, scale, BLOCK_E, NUM_BLOCKS)
    terms = tl.where(on_grid[:, None], terms, 0.0)  # the class token takes no positions
    masked: tl.constexpr = MASKED_IN_FLOAT16 if dtype == tl.float16 else MASKED
    entry = tl.arange(0, ENTRIES)
    terms = tl.where((entry == MASK_COLUMN)[None, :], masked, terms).to(dtype)

    largest = tl.full((rows,), MASKED, tl.float32)
    total = tl.zeros((rows,), tl.float32)
    ones_ptr += stream * ones_stride_b
    k_ptr += stream * k_stride_b + head * k_stride_head
    v_ptr += stream * v_stride_b + head * v_stride_head
    past_k_ptr += stream * past_k_stride_b + head * past_k_stride_head
    past_v_ptr += stream * past_v_stride_b + head * past_v_stride_head
    num_keys: tl.constexpr = NUM_PAST + NUM_PRESENT
    num_blocks: tl.constexpr = (num_keys + BLOCK_N - 1) // BLOCK_N
    in_block = tl.arange(0, BLOCK_N)
    for block in range(num_blocks):
        key = block * BLOCK_N + in_block
        there = key < num_keys
        # Past and present keys in one loop, past ones first: each key's place is chosen for itself.
        k_row, v_row = k_ptr + (key - NUM_PAST) * k_stride_n, v_ptr + (key - NUM_PAST) * v_stride_n
        if NUM_PAST > 0:
            k_row = tl.where(key < NUM_PAST, past_k_ptr + key * past_k_stride_n, k_row)
            v_row = tl.where(key < NUM_PAST, past_v_ptr + key * past_v_stride_n, v_row)
        logits = tl.zeros((rows, BLOCK_N), tl.float32)
        for b in tl.static_range(NUM_BLOCKS):
            c = STARTS[b] + tl.arange(0, BLOCKS[b])
            k = tl.load(k_row[:, None] + c[None, :], mask=there[:, None] & (c < D)[None, :], other=0.0)
            logits = tl.dot(qs[b], tl.trans(k), logits)
        ones_row = key
        if NUM_CLIPS > 0:
            ones_row += (hidden >> tl.minimum(key // (NUM_PAST // NUM_CLIPS), NUM_CLIPS) & 1) * num_keys
        ones = tl.load(ones_ptr + ones_row[:, None] * ENTRIES + entry[None, :], mask=there[:, None], other=0.0)
        logits = tl.dot(terms, tl.trans(ones), logits)
        logits = tl.where(there[None, :], logits * (scale * LOG2_E), MASKED)
        larger = tl.maximum(largest, tl.max(logits, axis=1))
        weights = tl.exp2(logits - larger[:, None])
        shrinks = tl.exp2(largest - larger)
        total = total * shrinks + tl.sum(weights, axis=1)
        largest = larger
        weights = weights.to(dtype)
        added = ()
        for b in tl.static_range(NUM_BLOCKS):
            c = STARTS[b] + tl.arange(0, BLOCKS[b])
            v = tl.load(v_row[:, None] + c[None, :], mask=there[:, None] & (c < D)[None, :], other=0.0)
            added = added + (tl.dot(weights, v, sums[b] * shrinks[:, None]),)  # noqa: RUF005
        sums = added

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
