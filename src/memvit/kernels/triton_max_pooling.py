# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
"""Max-pooling of tokens in one Triton kernel, class tokens included.

A program makes a tile of output tokens of one time, with a part of their channels, of one stream; it reads the tokens it
needs where they lie in (B, N, C). One more tile per stream is the class token, which is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from memvit.kernels.triton_tiles import place_tokens, tile_tokens

MAX_CHANNELS = 128  # of a program
NUM_MAXIMA = 2048  # that a program holds, 16 per thread


@triton.jit
def _max_pool_kernel(
    x_ptr,
    out_ptr,
    stride_b,
    stride_n,
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
    # Named, as static_range takes no member of a tuple in Triton 3.6.
    kernel_h: tl.constexpr = KERNEL[1]
    kernel_w: tl.constexpr = KERNEL[2]
    t, h, w = tile_tokens(OUT_GRID, TILE_H, TILE_W)
    place, exists = place_tokens(t, h, w, OUT_GRID, NUM_CLASS)
    stream = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_token = c < C
    x_ptr += stream * stride_b
    # The class token passes: every maximum starts from it in its tile, and from -inf in all others.
    is_class = exists & (t == OUT_GRID[0])
    largest = tl.load(
        x_ptr + c[None, :] + h[:, None] * 0, mask=is_class[:, None] & in_token[None, :], other=float("-inf")
    ).to(tl.float32)
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
                in_place = (in_t * GRID[1] + in_h) * GRID[2] + in_w
                x = tl.load(
                    x_ptr + in_place[:, None] * stride_n + c[None, :],
                    mask=seen[:, None] & in_token[None, :],
                    other=float("-inf"),
                )
                largest = tl.maximum(largest, x.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    num_out: tl.constexpr = NUM_CLASS + OUT_GRID[0] * OUT_GRID[1] * OUT_GRID[2]
    tl.store(
        out_ptr + (stream * num_out + place)[:, None] * C + c[None, :],
        largest.to(out_ptr.dtype.element_ty),
        mask=exists[:, None] & in_token[None, :],
    )


def max_pool(
    x: Tensor,
    grid: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    out_grid: Sequence[int],
    num_class: int,
) -> Tensor:
    """The largest value of each channel in windows; class tokens pass it by, NaN wins.

    Args:
        x: (B, num_class + T H W, C), num_class 0 or 1.

    Returns:
        (B, num_class + T' H' W', C) of x's dtype.
    """
    if x.stride(2) != 1:
        x = x.contiguous()
    B, _, C = x.shape
    out = x.new_empty(B, num_class + math.prod(out_grid), C)
    # Parts without a rest where threads still get 16 bytes each.
    block_c = min(C & -C if C % 16 == 0 else triton.next_power_of_2(C), MAX_CHANNELS)
    t, h, w = out_grid
    num_tokens = NUM_MAXIMA // block_c
    tile_w = min(triton.next_power_of_2(w), 8, num_tokens)
    tile_h = min(triton.next_power_of_2(h), num_tokens // tile_w)
    num_tiles = t * triton.cdiv(h, tile_h) * triton.cdiv(w, tile_w) + num_class
    _max_pool_kernel[(num_tiles, triton.cdiv(C, block_c), B)](
        x,
        out,
        x.stride(0),
        x.stride(1),
        GRID=tuple(grid),
        OUT_GRID=tuple(out_grid),
        KERNEL=tuple(kernel),
        STRIDE=tuple(stride),
        PADDING=tuple(padding),
        NUM_CLASS=num_class,
        C=C,
        BLOCK_C=block_c,
        TILE_H=tile_h,
        TILE_W=tile_w,
        num_warps=max(tile_h * tile_w * block_c // 512, 1),
    )
    return out
