# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment, misc"
"""What Triton kernels share that hold some tokens with all or some of their channels: tiles of a grid, and LayerNorm."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from memvit.kernels.triton_pooling_geometry import Geometry, Size3


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
def standardize(y, eps, C: tl.constexpr):
    """(y - mean) / std over the channels, which are 0 past C, and 1 / std (tokens,)."""
    in_head = tl.arange(0, y.shape[1]) < C
    centred = tl.where(in_head[None, :], y - (tl.sum(y, axis=1) / C)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / C + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def norm_and_store(
    ys,  # for each block (rows, channels), 0 past the last channel
    norm_weights,  # for each block (1, channels)
    norm_biases,
    out_ptr,  # (rows, 1), the first channel
    exists,
    EPS: tl.constexpr,
    C: tl.constexpr,
    STARTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
):
    """LayerNorm over channels that lie in several blocks."""
    mean = tl.sum(ys[0], axis=1)
    for b in tl.static_range(1, NUM_BLOCKS):
        mean += tl.sum(ys[b], axis=1)
    mean = (mean / C)[:, None]
    centred = ()
    for b in tl.static_range(NUM_BLOCKS):
        if STARTS[b] + BLOCKS[b] <= C:
            centred = centred + (ys[b] - mean,)  # noqa: RUF005
        else:
            in_head = STARTS[b] + tl.arange(0, BLOCKS[b]) < C
            centred = centred + (tl.where(in_head[None, :], ys[b] - mean, 0.0),)  # noqa: RUF005
    variance = tl.sum(centred[0] * centred[0], axis=1)
    for b in tl.static_range(1, NUM_BLOCKS):
        variance += tl.sum(centred[b] * centred[b], axis=1)
    rstd = tl.rsqrt(variance / C + EPS)[:, None]
    for b in tl.static_range(NUM_BLOCKS):
        c = STARTS[b] + tl.arange(0, BLOCKS[b])
        out = tl.fma(centred[b] * rstd, norm_weights[b], norm_biases[b])
        tl.store(out_ptr + c[None, :], out.to(out_ptr.dtype.element_ty), mask=exists[:, None] & (c < C)[None, :])
