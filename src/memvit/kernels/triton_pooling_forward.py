# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
"""Depthwise 3-D convolution and LayerNorm of tokens in one Triton kernel, and what its backward shares with it.

A program makes a tile of output tokens of one time, one head and one stream. It reads the tokens it needs where they lie
in (B, N, C), once for all the poolings it computes, holds the convolutions in float32 registers, normalises them there
and writes the result. One more tile per head and stream is the class token, which is normed alone.

Grids, kernels and strides are compile-time constants (so that dividing by them costs a multiplication); loops run over
constants alone, which Triton's interpreter needs too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memvit.kernels.triton_pooling import Geometry, Size3


class Tiling(NamedTuple):
    """How a grid of tokens is cut: tiles of `height` x `width` tokens of one time, with all channels of one head."""

    height: int
    width: int
    num_tiles: int
    block_c: int
    num_warps: int

    @classmethod
    def of(cls, grid: Size3, geometry: Geometry, *, num_sums: int) -> Tiling:
        """Of a grid's tokens and the class token, where a program holds `num_sums` numbers for each channel of a token.

        Tiles are wide and high because neighbours read the same tokens. A thread gets 16 channels: with 32 it spilled
        registers.
        """
        block_c = triton.next_power_of_2(geometry.channels)
        num_tokens = min(max((4096 if num_sums == 1 else 2048) // block_c, 1), 64)
        width = min(triton.next_power_of_2(grid[2]), 8, num_tokens)
        height = min(triton.next_power_of_2(grid[1]), num_tokens // width)
        num_tiles = grid[0] * triton.cdiv(grid[1], height) * triton.cdiv(grid[2], width) + geometry.num_class
        num_warps = min(max(height * width * block_c // 512, 1), 8)
        return cls(height, width, num_tiles, block_c, num_warps)


@triton.jit
def tile_tokens(GRID: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """This program's tokens of a grid: times, rows and columns, each (tokens,); past the grid's edge where the tile is."""
    tiles_h: tl.constexpr = (GRID[1] + TILE_H - 1) // TILE_H
    tiles_w: tl.constexpr = (GRID[2] + TILE_W - 1) // TILE_W
    tile = tl.program_id(0)
    token = tl.arange(0, TILE_H * TILE_W)
    h = tile // tiles_w % tiles_h * TILE_H + token // TILE_W
    w = tile % tiles_w * TILE_W + token % TILE_W
    # Each token has the time, though all share it: the interpreter cannot join conditions on blocks and on scalars.
    t = tile // (tiles_h * tiles_w) + token * 0
    return t, h, w


@triton.jit
def place_tokens(t, h, w, GRID: tl.constexpr, NUM_CLASS: tl.constexpr):
    """Each token's place in its stream and whether there is such a token. Past the last time comes the class token."""
    is_class = (t == GRID[0]) & (h == 0) & (w == 0)
    place = tl.where(is_class, 0, NUM_CLASS + (t * GRID[1] + h) * GRID[2] + w)
    return place, is_class | ((t < GRID[0]) & (h < GRID[1]) & (w < GRID[2]))


@triton.jit
def convolve(
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
                    weight = tl.load(tap_ptr + p * (KERNEL[0] * KERNEL[1] * KERNEL[2] * C) + c, mask=in_head, other=0.0)
                    added = added + (tl.fma(x, weight.to(tl.float32)[None, :], sums[p]),)  # noqa: RUF005
                sums = added
    return sums


@triton.jit
def standardize(y, eps, C: tl.constexpr):
    """(y - mean) / std over the channels, which are 0 past C, and 1 / std (tokens,)."""
    in_head = tl.arange(0, y.shape[1]) < C
    centred = tl.where(in_head[None, :], y - (tl.sum(y, axis=1) / C)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def _pool_norm_kernel(
    x_ptr,
    weight_ptr,
    norm_weight_ptrs,
    norm_bias_ptrs,
    out_ptrs,
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
    t, h, w = tile_tokens(OUT_GRID, TILE_H, TILE_W)
    x_ptr += stream * stride_b + head * C
    sums = convolve(
        x_ptr, weight_ptr, stride_n, t, h, w,
        NUM_POOLINGS, GRID, OUT_GRID, KERNEL, STRIDE, PADDING, NUM_CLASS, C, BLOCK_C,
    )  # fmt: skip
    c = tl.arange(0, BLOCK_C)
    in_head = c < C
    place, exists = place_tokens(t, h, w, OUT_GRID, NUM_CLASS)
    num_out: tl.constexpr = NUM_CLASS + OUT_GRID[0] * OUT_GRID[1] * OUT_GRID[2]
    offset = (stream * num_out + place)[:, None] * (tl.num_programs(1) * C) + head * C + c[None, :]
    for p in tl.static_range(NUM_POOLINGS):
        normed, _ = standardize(sums[p], eps, C)
        norm_weight = tl.load(norm_weight_ptrs[p] + c, mask=in_head, other=0.0).to(tl.float32)
        norm_bias = tl.load(norm_bias_ptrs[p] + c, mask=in_head, other=0.0).to(tl.float32)
        out = tl.fma(normed, norm_weight[None, :], norm_bias[None, :])
        tl.store(out_ptrs[p] + offset, out.to(out_ptrs[p].dtype.element_ty), mask=exists[:, None] & in_head[None, :])


def pack_filters(weights: Sequence[Tensor]) -> Tensor:
    """(poolings, taps, c), channels last, of filters (c, 1, kt, kh, kw)."""
    return torch.stack([weight.flatten(1).t() for weight in weights])


def forward(
    x: Tensor,
    filters: Tensor,
    norm_weights: Sequence[Tensor],
    norm_biases: Sequence[Tensor],
    geometry: Geometry,
    eps: float,
) -> list[Tensor]:
    """Poolings of one kernel and one stride.

    Args:
        x: (B, N, C), the channels of a token side by side.
        filters: of `pack_filters`.

    Returns:
        (B, N', C) for each.
    """
    B, _, C = x.shape
    outs = [x.new_empty(B, geometry.num_out, C) for _ in norm_weights]
    tiling = Tiling.of(geometry.out_grid, geometry, num_sums=len(outs))
    _pool_norm_kernel[(tiling.num_tiles, C // geometry.channels, B)](
        x,
        filters,
        tuple(norm_weights),
        tuple(norm_biases),
        tuple(outs),
        x.stride(0),
        x.stride(1),
        eps,
        NUM_POOLINGS=len(outs),
        BLOCK_C=tiling.block_c,
        TILE_H=tiling.height,
        TILE_W=tiling.width,
        num_warps=tiling.num_warps,
        **geometry.constants,
    )
    return outs
