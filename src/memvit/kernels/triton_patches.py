# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
"""Patches of clips as rows of a matrix, in one Triton kernel, which converts them on the way.

A program writes a part of the columns for patches side by side, all of one time and height. So what a column needs (its
channel, time and height, and whether these are in the clip) is worked out once for all of them, and a patch adds its width
alone. Reads hit the cache: in memvit's clips a pixel is in 4.6 patches on average.

Sizes are compile-time constants (so that dividing by them costs a multiplication). Batches may pass 2^31 numbers: offsets
have 64 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from memvit.kernels.patches import patch_grid, row_length

BLOCK_K = 64  # columns that a program writes: 128 bytes in low precision, 16 per thread
MAX_WIDTH = 32  # patches that a program writes


@triton.jit
def _gather_kernel(
    clips_ptr,
    rows_ptr,  # (B, IS_BEHIND + N, ROW)
    stride_b,
    stride_c,
    stride_t,
    stride_h,
    stride_w,
    SIZE: tl.constexpr,
    GRID: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    PATCH: tl.constexpr,  # pixels of a patch, all channels
    ROW: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_W: tl.constexpr,
    IS_BEHIND: tl.constexpr,  # rows of patches have a one behind their pixels; before a clip's comes one with only the next one
):
    parts: tl.constexpr = (ROW + BLOCK_K - 1) // BLOCK_K
    tiles_w: tl.constexpr = (GRID[2] + TILE_W - 1) // TILE_W
    # The parts of a patch one after the other, so that its pixels are still in the cache.
    program = tl.program_id(0)
    tile = program // parts
    line = tile // tiles_w  # of patches side by side, among those of all streams
    h = line % GRID[1]
    t = line // GRID[1] % GRID[0]
    stream = (line // (GRID[1] * GRID[0])).to(tl.int64)

    # Read in one dimension, columns fastest: of two, the compiler would choose which is. So threads side by side read columns
    # side by side, and a thread the same column of many patches, for which it works out once where that lies.
    part, first = program % parts * BLOCK_K, tile % tiles_w * TILE_W
    i = tl.arange(0, TILE_W * BLOCK_K)
    k, w = part + i % BLOCK_K, first + i // BLOCK_K
    in_t = k // (KERNEL[2] * KERNEL[1]) % KERNEL[0] + (t * STRIDE[0] - PADDING[0])
    in_h = k // KERNEL[2] % KERNEL[1] + (h * STRIDE[1] - PADDING[1])
    in_w = k % KERNEL[2] + (w * STRIDE[2] - PADDING[2])
    c = k // (KERNEL[2] * KERNEL[1] * KERNEL[0])
    seen = (in_t >= 0) & (in_t < SIZE[0]) & (in_h >= 0) & (in_h < SIZE[1]) & (in_w >= 0) & (in_w < SIZE[2])
    place = c.to(tl.int64) * stride_c + in_t.to(tl.int64) * stride_t + in_h.to(tl.int64) * stride_h
    place += in_w.to(tl.int64) * stride_w
    pixels = tl.load(clips_ptr + stream * stride_b + place, mask=seen & (k < PATCH) & (w < GRID[2]), other=0.0)

    if IS_BEHIND:
        pixels = tl.where(k == PATCH, 1.0, pixels.to(tl.float32))
    # Written in two, in whole pieces of 16 bytes.
    pixels = tl.reshape(pixels.to(rows_ptr.dtype.element_ty), (TILE_W, BLOCK_K))
    k, w = part + tl.arange(0, BLOCK_K), first + tl.arange(0, TILE_W)
    row = line.to(tl.int64) * GRID[2] + w
    if IS_BEHIND:
        row += stream + 1
        # Of all programs of a clip; as a block, for the interpreter cannot join conditions on blocks and on scalars.
        is_first = k * 0 + t + h + first == 0
        front = stream * (GRID[0] * GRID[1] * GRID[2] + 1) * ROW + k
        tl.store(
            rows_ptr + front, (k == PATCH + 1).to(tl.float32).to(rows_ptr.dtype.element_ty), mask=(k < ROW) & is_first
        )
    mask = (w < GRID[2])[:, None] & (k < ROW)[None, :]
    tl.store(rows_ptr + row[:, None] * ROW + k[None, :], pixels, mask=mask)


def gather(
    clips: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dtype: torch.dtype,
    *,
    is_behind: bool = False,
) -> Tensor:
    """Patches in the order time, height, width; the numbers of each in the order channel, time, height, width, then zeros.

    Args:
        clips: (B, channels, frames, height, width), of any strides.
        dtype: of the rows.
        is_behind: the first zero of a patch is a one instead, and before each clip's rows comes one whose only one is at the
            next zero: places for a bias, and for a token before those of the patches.

    Returns:
        (B, N, row length), or (B, 1 + N, row length) if behind another row; 0 outside the clip.
    """
    B, channels, *size = clips.shape
    t, h, w = grid = patch_grid(clips, kernel, stride, padding)
    row = row_length(channels, kernel)
    rows = clips.new_empty(B, int(is_behind) + t * h * w, row, dtype=dtype)
    tile_w = min(triton.next_power_of_2(w), MAX_WIDTH)
    num_programs = B * t * h * triton.cdiv(w, tile_w) * triton.cdiv(row, BLOCK_K)
    _gather_kernel[(num_programs,)](
        clips,
        rows,
        *clips.stride(),
        SIZE=tuple(size),
        GRID=grid,
        KERNEL=tuple(kernel),
        STRIDE=tuple(stride),
        PADDING=tuple(padding),
        PATCH=channels * math.prod(kernel),
        ROW=row,
        BLOCK_K=BLOCK_K,
        TILE_W=tile_w,
        IS_BEHIND=is_behind,
        num_warps=max(tile_w * BLOCK_K // 1024, 1),
    )
    return rows
