# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
"""Gradients of `triton_pooling_forward`, in three kernels that need no atomics, so that a run repeats bit for bit.

1. The convolution is computed once more from the tokens (cheaper than to have kept it) and the gradient passes the
   LayerNorm. That of the norm's parameters is left as one partial sum per program.
2. Every token gathers its gradient from the outputs that it took part in.
3. Every filter tap sums, over output tokens, gradient times token; one partial sum per program.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from memvit.kernels.triton_pooling_geometry import Geometry
from memvit.kernels.triton_tiles import Tiling, place_tokens, standardize, tile_tokens

# How many programs share the sum over all tokens. A constant, so that the order of the sum is the same on every GPU.
NUM_WEIGHT_PROGRAMS = 1024


@triton.jit
def _convolve(
    x_ptr,  # this stream's and head's first channel of the first token
    weight_ptr,  # (poolings, taps, C)
    stride_n,
    t,
    h,
    w,
    NUM_POOLINGS: tl.constexpr,
    GRID: tl.constexpr,
    OUT_GRID: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The convolutions at output tokens (t, h, w), each float32 (tokens, BLOCK_C), 0 past channel C."""
    # Named, as static_range takes no member of a tuple in Triton 3.6.
    kernel_h: tl.constexpr = KERNEL[1]
    kernel_w: tl.constexpr = KERNEL[2]
    num_taps: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    c = tl.arange(0, BLOCK_C)
    in_head = c < C
    # The class token passes: every sum starts from it in its tile, and from 0 in all others.
    if NUM_CLASS == 1:
        is_class = (t == OUT_GRID[0]) & (h == 0) & (w == 0)
        start = tl.load(x_ptr + c[None, :] + h[:, None] * 0, mask=is_class[:, None] & in_head[None, :], other=0.0)
        start = start.to(tl.float32)
    else:
        start = tl.zeros((h.shape[0], BLOCK_C), tl.float32)
    sums = (start,) * NUM_POOLINGS
    x_ptr += NUM_CLASS * stride_n
    for kt in range(KERNEL[0]):
        in_t = t * STRIDE[0] - PADDING[0] + kt
        in_time = (t < OUT_GRID[0]) & (in_t >= 0) & (in_t < GRID[0])
        for kh in tl.static_range(kernel_h):
            in_h = h * STRIDE[1] - PADDING[1] + kh
            in_rows = in_time & (in_h >= 0) & (in_h < GRID[1])
            for kw in tl.static_range(kernel_w):
                in_w = w * STRIDE[2] - PADDING[2] + kw
                seen = in_rows & (in_w >= 0) & (in_w < GRID[2])
                place = (in_t * GRID[1] + in_h) * GRID[2] + in_w
                x = tl.load(
                    x_ptr + place[:, None] * stride_n + c[None, :], mask=seen[:, None] & in_head[None, :], other=0.0
                ).to(tl.float32)
                tap_ptr = weight_ptr + ((kt * KERNEL[1] + kh) * KERNEL[2] + kw) * C
                added = ()
                for p in tl.static_range(NUM_POOLINGS):
                    weight = tl.load(tap_ptr + p * (num_taps * C) + c, mask=in_head, other=0.0)
                    added = added + (tl.fma(x, weight.to(tl.float32)[None, :], sums[p]),)  # noqa: RUF005
                sums = added
    return sums


@triton.jit
def _norm_backward_kernel(
    grad_ptrs,
    x_ptr,
    weight_ptr,
    norm_weight_ptrs,
    conv_grad_ptr,  # (poolings, B, N', C)
    partial_ptr,  # (programs, poolings, 2, c)
    stride_b,
    stride_n,
    eps,
    NUM_POOLINGS: tl.constexpr,
    GRID: tl.constexpr,
    OUT_GRID: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    head, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_heads, num_streams = tl.num_programs(1), tl.num_programs(2)
    t, h, w = tile_tokens(OUT_GRID, TILE_H, TILE_W)
    x_ptr += stream * stride_b + head * C
    sums = _convolve(
        x_ptr, weight_ptr, stride_n, t, h, w,
        NUM_POOLINGS, GRID, OUT_GRID, KERNEL, STRIDE, PADDING, NUM_CLASS, C, BLOCK_C,
    )  # fmt: skip
    c = tl.arange(0, BLOCK_C)
    in_head = c < C
    place, exists = place_tokens(t, h, w, OUT_GRID, NUM_CLASS)
    mask = exists[:, None] & in_head[None, :]
    num_out: tl.constexpr = NUM_CLASS + OUT_GRID[0] * OUT_GRID[1] * OUT_GRID[2]
    offset = (stream * num_out + place)[:, None] * (num_heads * C) + head * C + c[None, :]
    program = (stream * num_heads + head) * tl.num_programs(0) + tl.program_id(0)
    partial_ptr += program * (NUM_POOLINGS * 2 * C)
    for p in tl.static_range(NUM_POOLINGS):
        normed, rstd = standardize(sums[p], eps, C)
        norm_weight = tl.load(norm_weight_ptrs[p] + c, mask=in_head, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptrs[p] + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(partial_ptr + 2 * p * C + c, tl.sum(grad * normed, axis=0), mask=in_head)
        tl.store(partial_ptr + (2 * p + 1) * C + c, tl.sum(grad, axis=0), mask=in_head)
        grad = grad * norm_weight[None, :]
        along = tl.sum(grad * normed, axis=1) / C
        grad = (grad - (tl.sum(grad, axis=1) / C)[:, None] - normed * along[:, None]) * rstd[:, None]
        out_ptr = conv_grad_ptr + p * num_streams.to(tl.int64) * (num_out * num_heads * C)
        tl.store(out_ptr + offset, grad.to(conv_grad_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _token_grad_kernel(
    conv_grad_ptr,  # (poolings, B, N', C)
    weight_ptr,  # (poolings, taps, c)
    x_grad_ptr,  # (B, N, C)
    ADDS: tl.constexpr,
    NUM_POOLINGS: tl.constexpr,
    GRID: tl.constexpr,
    OUT_GRID: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    head, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_heads, num_streams = tl.num_programs(1), tl.num_programs(2)
    t, h, w = tile_tokens(GRID, TILE_H, TILE_W)
    c = tl.arange(0, BLOCK_C)
    in_head = c < C
    place, exists = place_tokens(t, h, w, GRID, NUM_CLASS)
    is_token = exists & (t < GRID[0])
    num_out: tl.constexpr = NUM_CLASS + OUT_GRID[0] * OUT_GRID[1] * OUT_GRID[2]
    num_taps: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    conv_grad_ptr += stream * (num_out * num_heads * C) + head * C
    pooling_stride = num_streams.to(tl.int64) * (num_out * num_heads * C)

    total = tl.zeros((TILE_H * TILE_W, BLOCK_C), tl.float32)
    touched = exists & (t == GRID[0])
    if NUM_CLASS == 1:
        for p in tl.static_range(NUM_POOLINGS):
            class_ptr = conv_grad_ptr + p * pooling_stride + h[:, None] * 0 + c[None, :]
            total += tl.load(class_ptr, mask=touched[:, None] & in_head[None, :], other=0.0).to(tl.float32)
    conv_grad_ptr += NUM_CLASS * num_heads * C
    # Along an axis the taps that reach a token are (token + padding) mod stride and every stride-th after it.
    taps_t: tl.constexpr = (KERNEL[0] + STRIDE[0] - 1) // STRIDE[0]
    taps_h: tl.constexpr = (KERNEL[1] + STRIDE[1] - 1) // STRIDE[1]
    taps_w: tl.constexpr = (KERNEL[2] + STRIDE[2] - 1) // STRIDE[2]
    for jt in range(taps_t):
        kt = (t + PADDING[0]) % STRIDE[0] + jt * STRIDE[0]
        out_t = (t + PADDING[0]) // STRIDE[0] - jt
        in_time = is_token & (kt < KERNEL[0]) & (out_t >= 0) & (out_t < OUT_GRID[0])
        for jh in tl.static_range(taps_h):
            kh = (h + PADDING[1]) % STRIDE[1] + jh * STRIDE[1]
            out_h = (h + PADDING[1]) // STRIDE[1] - jh
            in_rows = in_time & (kh < KERNEL[1]) & (out_h >= 0) & (out_h < OUT_GRID[1])
            for jw in tl.static_range(taps_w):
                kw = (w + PADDING[2]) % STRIDE[2] + jw * STRIDE[2]
                out_w = (w + PADDING[2]) // STRIDE[2] - jw
                reached = in_rows & (kw < KERNEL[2]) & (out_w >= 0) & (out_w < OUT_GRID[2])
                touched = touched | reached
                mask = reached[:, None] & in_head[None, :]
                out_place = (out_t * OUT_GRID[1] + out_h) * OUT_GRID[2] + out_w
                offset = out_place[:, None] * (num_heads * C) + c[None, :]
                tap = (kt * KERNEL[1] + kh) * KERNEL[2] + kw
                for p in tl.static_range(NUM_POOLINGS):
                    grad = tl.load(conv_grad_ptr + p * pooling_stride + offset, mask=mask, other=0.0).to(tl.float32)
                    if STRIDE[0] * STRIDE[1] * STRIDE[2] == 1:  # then all tokens meet the same tap
                        tap_ptr = weight_ptr + (p * num_taps + (jt * KERNEL[1] + jh) * KERNEL[2] + jw) * C
                        weight = tl.load(tap_ptr + c, mask=in_head, other=0.0)[None, :]
                    else:
                        tap_ptr = weight_ptr + (p * num_taps + tap)[:, None] * C
                        weight = tl.load(tap_ptr + c[None, :], mask=mask, other=0.0)
                    total = tl.fma(grad, weight.to(tl.float32), total)

    out_ptr = x_grad_ptr + stream * ((NUM_CLASS + GRID[0] * GRID[1] * GRID[2]) * num_heads * C) + head * C
    out_ptr += place[:, None] * (num_heads * C) + c[None, :]
    mask = exists[:, None] & in_head[None, :]
    if ADDS:
        mask = mask & touched[:, None]
        total += tl.load(out_ptr, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr, total.to(x_grad_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _filter_grad_kernel(
    conv_grad_ptr,  # (poolings, B, N', C)
    x_ptr,
    partial_ptr,  # (chunks, heads, poolings, taps, c)
    num_streams,
    stride_b,
    stride_n,
    NUM_POOLINGS: tl.constexpr,
    GRID: tl.constexpr,
    OUT_GRID: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TILE_N: tl.constexpr,
    NUM_STEPS: tl.constexpr,
):
    """The KERNEL[1] x KERNEL[2] taps of one time of one pooling's filter, over one chunk of all streams' tokens."""
    chunk, head = tl.program_id(0), tl.program_id(2)
    p, kt = tl.program_id(1) // KERNEL[0], tl.program_id(1) % KERNEL[0]
    num_heads = tl.num_programs(2)
    num_taps: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    num_tokens: tl.constexpr = OUT_GRID[0] * OUT_GRID[1] * OUT_GRID[2]
    kernel_h: tl.constexpr = KERNEL[1]
    kernel_w: tl.constexpr = KERNEL[2]
    c = tl.arange(0, BLOCK_C)
    in_head = c < C
    x_ptr += head * C + NUM_CLASS * stride_n
    conv_grad_ptr += p.to(tl.int64) * num_streams * ((NUM_CLASS + num_tokens) * num_heads * C) + head * C

    sums = (tl.zeros((TILE_N, BLOCK_C), tl.float32),) * (kernel_h * kernel_w)
    for step in range(NUM_STEPS):
        token = (chunk * NUM_STEPS + step) * TILE_N + tl.arange(0, TILE_N)
        stream, place = (token // num_tokens).to(tl.int64), token % num_tokens
        w = place % OUT_GRID[2]
        h = place // OUT_GRID[2] % OUT_GRID[1]
        in_t = place // (OUT_GRID[2] * OUT_GRID[1]) * STRIDE[0] - PADDING[0] + kt
        in_time = (stream < num_streams) & (in_t >= 0) & (in_t < GRID[0])
        grad_place = stream * (NUM_CLASS + num_tokens) + NUM_CLASS + place
        grad = tl.load(
            conv_grad_ptr + grad_place[:, None] * (num_heads * C) + c[None, :],
            mask=in_time[:, None] & in_head[None, :],
            other=0.0,
        ).to(tl.float32)
        added = ()
        for kh in tl.static_range(kernel_h):
            in_h = h * STRIDE[1] - PADDING[1] + kh
            in_rows = in_time & (in_h >= 0) & (in_h < GRID[1])
            for kw in tl.static_range(kernel_w):
                in_w = w * STRIDE[2] - PADDING[2] + kw
                seen = in_rows & (in_w >= 0) & (in_w < GRID[2])
                in_place = stream * stride_b + ((in_t * GRID[1] + in_h) * GRID[2] + in_w) * stride_n
                x = tl.load(
                    x_ptr + in_place[:, None] + c[None, :], mask=seen[:, None] & in_head[None, :], other=0.0
                ).to(tl.float32)
                added = added + (tl.fma(x, grad, sums[kh * KERNEL[2] + kw]),)  # noqa: RUF005
        sums = added

    first_tap = (p * KERNEL[0] + kt) * KERNEL[1] * KERNEL[2]
    partial_ptr += (chunk * num_heads + head) * (NUM_POOLINGS * num_taps * C) + first_tap * C
    for i in tl.static_range(kernel_h * kernel_w):
        tl.store(partial_ptr + i * C + c, tl.sum(sums[i], axis=0), mask=in_head)


def pack_filters(weights: Sequence[Tensor]) -> Tensor:
    """(poolings, taps, c), channels last, of filters (c, 1, kt, kh, kw)."""
    return torch.stack([weight.flatten(1).t() for weight in weights])


def norm_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    filters: Tensor,
    norm_weights: Sequence[Tensor],
    geometry: Geometry,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Past the LayerNorm.

    Args:
        grads: (B, N', C) for each pooling, contiguous.
        filters: of `pack_filters`.

    Returns:
        Gradients of the convolutions (poolings, B, N', C) and of the norms' weights and biases (poolings, 2, c), float32.
    """
    (B, _, C), num_poolings, c = x.shape, len(grads), geometry.channels
    num_heads = C // c
    conv_grads = x.new_empty(num_poolings, B, geometry.num_out, C)
    tiling = Tiling.of(geometry.out_grid, geometry, num_sums=num_poolings)
    partials = x.new_empty(B * num_heads * tiling.num_tiles, num_poolings, 2, c, dtype=torch.float32)
    _norm_backward_kernel[(tiling.num_tiles, num_heads, B)](
        tuple(grads),
        x,
        filters,
        tuple(norm_weights),
        conv_grads,
        partials,
        x.stride(0),
        x.stride(1),
        eps,
        NUM_POOLINGS=num_poolings,
        BLOCK_C=tiling.block_c,
        TILE_H=tiling.height,
        TILE_W=tiling.width,
        num_warps=tiling.num_warps,
        **geometry.constants,
    )
    return conv_grads, partials.sum(0)


def token_grad(conv_grads: Tensor, filters: Tensor, x_grad: Tensor, geometry: Geometry, *, adds: bool) -> None:
    """Writes the gradient of the tokens (B, N, C) to `x_grad`, contiguous, or adds it to what is there."""
    B, _, C = x_grad.shape
    tiling = Tiling.of(geometry.grid, geometry, num_sums=1)
    _token_grad_kernel[(tiling.num_tiles, C // geometry.channels, B)](
        conv_grads,
        filters,
        x_grad,
        ADDS=adds,
        NUM_POOLINGS=len(conv_grads),
        BLOCK_C=tiling.block_c,
        TILE_H=tiling.height,
        TILE_W=tiling.width,
        num_warps=tiling.num_warps,
        **geometry.constants,
    )


def filter_grad(conv_grads: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of the filters, float32 (poolings, taps, c)."""
    (B, _, C), num_poolings, c = x.shape, len(conv_grads), geometry.channels
    num_heads = C // c
    kt, kh, kw = geometry.kernel
    block_c = triton.next_power_of_2(c)
    num_warps = 8 if block_c > 512 else 4
    # A thread holds about 72 sums, so that they stay in registers.
    tile_n = max(1, triton.next_power_of_2(32 * num_warps * 72 // (kh * kw) + 1) // 2 // block_c)
    num_rows = triton.cdiv(B * (geometry.num_out - geometry.num_class), tile_n)
    num_chunks = max(1, NUM_WEIGHT_PROGRAMS // (num_poolings * kt * num_heads))
    num_steps = triton.next_power_of_2(triton.cdiv(num_rows, num_chunks))  # few values: each is compiled
    num_chunks = triton.cdiv(num_rows, num_steps)
    partials = x.new_empty(num_chunks * num_heads, num_poolings, kt * kh * kw, c, dtype=torch.float32)
    _filter_grad_kernel[(num_chunks, num_poolings * kt, num_heads)](
        conv_grads,
        x,
        partials,
        B,
        x.stride(0),
        x.stride(1),
        NUM_POOLINGS=num_poolings,
        BLOCK_C=block_c,
        TILE_N=tile_n,
        NUM_STEPS=num_steps,
        num_warps=num_warps,
        **geometry.constants,
    )
    return partials.sum(0)
