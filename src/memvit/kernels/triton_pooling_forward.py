# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment, misc"
"""Depthwise 3-D convolution and LayerNorm of tokens in one Triton kernel, and what its backward shares with it.

There are two. In one, a program makes a tile of output tokens of one time, one head and one stream. It reads the tokens it
needs where they lie in (B, N, C), once for all the poolings it computes, holds the convolutions in float32 registers,
normalises them there and writes the result. One more tile per head and stream is the class token, which is normed alone.
In the other one, a program slides along time: what it reads it adds to all the output times that it is part of.

Grids, kernels and strides are compile-time constants (so that dividing by them costs a multiplication); loops run over
constants alone, which Triton's interpreter needs too.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memvit.kernels.triton_pooling import MAX_SHARED, Geometry, Job, Size3


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
    weight_ptr,  # (poolings, WEIGHT_ROWS, C), of which the first are the taps
    stride_n,
    t,
    h,
    w,
    NUM_POOLINGS: tl.constexpr,
    WEIGHT_ROWS: tl.constexpr,
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
                    weight = tl.load(tap_ptr + p * (WEIGHT_ROWS * C) + c, mask=in_head, other=0.0)
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
    x_ptrs,  # of each pooling, the same
    parameter_ptr,  # (poolings, taps + 2, C) of `Launch.pack`
    out_ptrs,
    strides_b,
    STRIDE_N: tl.constexpr,
    EPS: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    FIRST_ROWS: tl.constexpr,
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
    dim = tl.num_programs(1) * C
    num_taps: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    t, h, w = tile_tokens(OUT_GRID, TILE_H, TILE_W)
    x_ptr = x_ptrs[0] + (stream * strides_b[0] + head * C)
    sums = convolve(
        x_ptr, parameter_ptr, STRIDE_N, t, h, w,
        NUM_POOLINGS, num_taps + 2, GRID, OUT_GRID, KERNEL, STRIDE, PADDING, NUM_CLASS, C, BLOCK_C,
    )  # fmt: skip
    c = tl.arange(0, BLOCK_C)
    in_head = c < C
    place, exists = place_tokens(t, h, w, OUT_GRID, NUM_CLASS)
    offset = place[:, None] * dim + head * C + c[None, :]
    for p in tl.static_range(NUM_POOLINGS):
        normed, _ = standardize(sums[p], EPS, C)
        norm_ptr = parameter_ptr + (p * (num_taps + 2) + num_taps) * C + c
        norm_weight = tl.load(norm_ptr, mask=in_head, other=0.0).to(tl.float32)
        norm_bias = tl.load(norm_ptr + C, mask=in_head, other=0.0).to(tl.float32)
        out = tl.fma(normed, norm_weight[None, :], norm_bias[None, :])
        out_ptr = out_ptrs[p] + (stream * NUM_ROWS[p] + FIRST_ROWS[p]) * dim
        tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=exists[:, None] & in_head[None, :])


@triton.jit
def _convolve_times(
    x_ptr,  # (rows, 1), where the convolution's corner lies at tap 0, time 0
    weight_ptr,  # (taps, C), from this block's first channel on
    exists,
    t,  # the first input time, at tap 0
    h,
    w,
    STRIDE_N: tl.constexpr,
    GRID: tl.constexpr,
    OUT_GRID: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    C: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    TIMES: tl.constexpr,
):
    """The convolutions of `TIMES` output times, each float32 (rows, BLOCK). What is read serves all that it takes part in."""
    kernel_t: tl.constexpr = KERNEL[0]
    kernel_w: tl.constexpr = KERNEL[2]
    num_in_times: tl.constexpr = (TIMES - 1) * STRIDE[0] + KERNEL[0]
    c = tl.arange(0, BLOCK)
    in_head = c < NUM_CHANNELS
    sums = (tl.zeros((h.shape[0], BLOCK), tl.float32),) * TIMES
    for kh in range(KERNEL[1]):
        seen_h = exists & (h + kh >= 0) & (h + kh < GRID[1])
        for kw in tl.static_range(kernel_w):
            seen = seen_h & (w + kw >= 0) & (w + kw < GRID[2])
            tap_ptr = x_ptr + (kh * GRID[2] + kw) * STRIDE_N + c[None, :]
            weights = ()
            for kt in tl.static_range(kernel_t):
                tap = (kt * KERNEL[1] + kh) * KERNEL[2] + kw
                weight = tl.load(weight_ptr + tap * C + c, mask=in_head, other=0.0).to(tl.float32)
                weights = weights + (weight[None, :],)  # noqa: RUF005
            for i in tl.static_range(num_in_times):
                if OUT_GRID[0] > TIMES:
                    mask = (seen & (t + i >= 0) & (t + i < GRID[0]))[:, None] & in_head[None, :]
                else:
                    mask = seen[:, None] & in_head[None, :]
                if OUT_GRID[0] > TIMES or (i >= PADDING[0] and i < GRID[0] + PADDING[0]):
                    x = tl.load(tap_ptr + i * (GRID[1] * GRID[2] * STRIDE_N), mask=mask, other=0.0).to(tl.float32)
                    added = ()
                    for j in tl.static_range(TIMES):
                        if i >= j * STRIDE[0] and i < j * STRIDE[0] + kernel_t:
                            added = added + (tl.fma(x, weights[i - j * STRIDE[0]], sums[j]),)  # noqa: RUF005
                        else:
                            added = added + (sums[j],)  # noqa: RUF005
                    sums = added
    return sums


@triton.jit
def _norm_and_store(
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


@triton.jit
def _sliding_pool_norm_kernel(
    x_ptrs,  # of each pooling
    parameter_ptr,  # (poolings, taps + 2, C) of `Launch.pack`
    out_ptrs,
    strides_b,
    STRIDE_N: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    EPS: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    FIRST_ROWS: tl.constexpr,
    NUM_POOLINGS: tl.constexpr,
    GRID: tl.constexpr,
    OUT_GRID: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    NUM_CLASS: tl.constexpr,
    C: tl.constexpr,
    STARTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    TIMES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Heads share their filters: a row is one head of one token, and a program makes some rows at `TIMES` times."""
    stream = tl.program_id(2).to(tl.int64)
    x_ptr, stride_b, out_ptr = x_ptrs[0], strides_b[0], out_ptrs[0]
    out_row = stream * NUM_ROWS[0] + FIRST_ROWS[0]
    for p in tl.static_range(1, NUM_POOLINGS):
        if tl.program_id(1) == p:
            x_ptr, stride_b, out_ptr = x_ptrs[p], strides_b[p], out_ptrs[p]
            out_row = stream * NUM_ROWS[p] + FIRST_ROWS[p]
    x_ptr += stream * stride_b
    out_ptr += out_row * (NUM_HEADS * C)
    num_taps: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    parameter_ptr += tl.program_id(1) * ((num_taps + 2) * C)
    norm_ptr = parameter_ptr + num_taps * C
    norm_weights, norm_biases = (), ()
    for b in tl.static_range(NUM_BLOCKS):
        c = STARTS[b] + tl.arange(0, BLOCKS[b])
        norm_weight = tl.load(norm_ptr + c, mask=c < C, other=0.0).to(tl.float32)
        norm_bias = tl.load(norm_ptr + C + c, mask=c < C, other=0.0).to(tl.float32)
        norm_weights = norm_weights + (norm_weight[None, :],)  # noqa: RUF005
        norm_biases = norm_biases + (norm_bias[None, :],)  # noqa: RUF005

    num_row_tiles: tl.constexpr = (OUT_GRID[1] * OUT_GRID[2] * NUM_HEADS + ROWS - 1) // ROWS
    num_tiles: tl.constexpr = num_row_tiles * ((OUT_GRID[0] + TIMES - 1) // TIMES)
    tile = tl.program_id(0)
    if tile >= num_tiles:  # class tokens pass the convolution by
        head = (tile - num_tiles) * ROWS + tl.arange(0, ROWS)
        exists = head < NUM_HEADS
        ys = ()
        for b in tl.static_range(NUM_BLOCKS):
            c = STARTS[b] + tl.arange(0, BLOCKS[b])
            y = tl.load(x_ptr + (head * C)[:, None] + c[None, :], mask=exists[:, None] & (c < C)[None, :], other=0.0)
            ys = ys + (y.to(tl.float32),)  # noqa: RUF005
        class_ptr = out_ptr + (head * C)[:, None]
        _norm_and_store(ys, norm_weights, norm_biases, class_ptr, exists, EPS, C, STARTS, BLOCKS, NUM_BLOCKS)
    else:
        row = tile % num_row_tiles * ROWS + tl.arange(0, ROWS)
        # Every row has the time, though all share it: the interpreter cannot join conditions on blocks and on scalars.
        first_t = tile // num_row_tiles * TIMES + row * 0
        place, head = row // NUM_HEADS, row % NUM_HEADS
        exists = place < OUT_GRID[1] * OUT_GRID[2]
        t = first_t * STRIDE[0] - PADDING[0]
        h = place // OUT_GRID[2] * STRIDE[1] - PADDING[1]
        w = place % OUT_GRID[2] * STRIDE[2] - PADDING[2]
        corner = (NUM_CLASS + (t * GRID[1] + h) * GRID[2] + w) * STRIDE_N + head * C
        by_block = ()
        for b in tl.static_range(NUM_BLOCKS):
            sums = _convolve_times(
                x_ptr + STARTS[b] + corner[:, None], parameter_ptr + STARTS[b], exists, t, h, w,
                STRIDE_N, GRID, OUT_GRID, KERNEL, STRIDE, PADDING, C, C - STARTS[b], BLOCKS[b], TIMES,
            )  # fmt: skip
            by_block = by_block + (sums,)  # noqa: RUF005
        for j in tl.static_range(TIMES):
            ys = ()
            for b in tl.static_range(NUM_BLOCKS):
                ys = ys + (by_block[b][j],)  # noqa: RUF005
            out_place = NUM_CLASS + (first_t + j) * (OUT_GRID[1] * OUT_GRID[2]) + place
            place_ptr = out_ptr + (out_place * (NUM_HEADS * C) + head * C)[:, None]
            in_time = exists & (first_t + j < OUT_GRID[0])
            _norm_and_store(ys, norm_weights, norm_biases, place_ptr, in_time, EPS, C, STARTS, BLOCKS, NUM_BLOCKS)


def pack_filters(weights: Sequence[Tensor]) -> Tensor:
    """(poolings, taps, c), channels last, of filters (c, 1, kt, kh, kw)."""
    return torch.stack([weight.flatten(1).t() for weight in weights])


class Sliding(NamedTuple):
    """How `_sliding_pool_norm_kernel` cuts its work.

    Attributes:
        times: output times of a program; what it reads serves all of them.
        rows: (token, head) pairs of a program, at each of these times.
        blocks: powers of two, which the channels of a head are cut into; fewer than a program has threads, as wider filters
            would be brought to the threads through shared memory.
        max_registers: of a thread; None: as many as the compiler likes.
    """

    times: int
    rows: int
    blocks: tuple[int, ...]
    num_warps: int
    max_registers: int | None = None

    @classmethod
    def of(cls, geometry: Geometry, num_heads: int, num_jobs: int) -> Sliding:
        """For tokens of that many heads, and as many poolings of one stream. The numbers are what was fastest on an H200.

        A thread gets at most 96 sums: with more it spilled registers.
        """
        out_t, out_h, out_w = geometry.out_grid
        blocks = split(geometry.channels)
        if out_t <= 2 and len(blocks) == 3:
            blocks = blocks[0] + blocks[1], blocks[2]
        num_warps = min(triton.next_power_of_2(triton.cdiv(sum(blocks), 24)), 16)
        pairs = out_h * out_w * num_heads
        times, rows = min(out_t, 8), min(triton.next_power_of_2(pairs), 16)
        num_programs = triton.cdiv(out_t, times) * triton.cdiv(pairs, rows) * num_jobs
        # The fewer programs there are, the less work each of them should have.
        if out_t > 2 and num_programs < 512:
            times = min(times, 4)
        elif out_t <= 2 and num_programs < 128 and sum(blocks) > 256:
            times, rows = 1, min(rows, 8)
        sums = triton.cdiv(rows * sum(blocks), 32 * num_warps)
        return cls(min(times, max(96 // sums, 1)), rows, blocks, num_warps)


SLIDES = True  # whether that kernel is used


def split(channels: int) -> tuple[int, ...]:
    """Powers of two that hold so many: three alike, if they just do, as of 96 channels; otherwise one or two."""
    third = channels // 3
    if channels == 3 * third and third & (third - 1) == 0:
        return third, third, third
    first = 1 << (channels.bit_length() - 1)
    return (first,) if first == channels else (first, triton.next_power_of_2(channels - first))


class _Prepared(NamedTuple):
    """A kernel for arguments of certain shapes and dtypes."""

    kernel: Any
    grid: tuple[int, int, int]
    constants: dict[str, Any]
    options: dict[str, int]


class Launch:
    """Poolings with one geometry: one launch.

    Args:
        jobs: what there is to do.
        members: which of them this launch does; of the same tokens unless kernels slide.
        num_rows: tokens of each result.
        first_rows: for each member, where in its result it begins.
    """

    def __init__(
        self, jobs: Sequence[Job], members: Sequence[int], num_rows: Sequence[int], first_rows: Sequence[int]
    ) -> None:
        self.members = members
        self.geometry = jobs[members[0]].geometry
        self.sources = [jobs[i].source for i in members]
        self.targets = [jobs[i].target for i in members]
        self.constants: dict[str, Any] = {
            "EPS": jobs[members[0]].eps,
            "NUM_ROWS": tuple(num_rows[target] for target in self.targets),
            "FIRST_ROWS": tuple(first_rows),
            "NUM_POOLINGS": len(members),
            **self.geometry.constants,
        }
        self._prepared: dict[Hashable, _Prepared] = {}
        self._compiled: dict[Hashable, Any] = {}

    def pack(self, parameters: Sequence[Tensor]) -> Tensor:
        """(poolings x (taps + 2), c): for each pooling its filters, channels last, and the norm's weight and bias.

        Args:
            parameters: of all jobs, each filters (c, 1, kt, kh, kw), weight and bias (c,).
        """
        rows = []
        for i in self.members:
            weight, norm_weight, norm_bias = parameters[3 * i : 3 * i + 3]
            rows += [weight.flatten(1).t(), norm_weight[None], norm_bias[None]]
        return torch.cat(rows)

    def __call__(self, xs: Sequence[Tensor], packed: Tensor, outs: Sequence[Tensor]) -> None:
        """Pools tokens (B, N, C), of which a token's channels lie side by side, into rows of (B, N', C).

        Triton finds a compiled kernel by all arguments, constants too, which takes longer than the launch; all that it would
        look at is in our key. What is odd goes its way.
        """
        xs = [xs[i] for i in self.sources]
        outs = [outs[i] for i in self.targets]
        x = xs[0]
        stride_n = x.stride(1)
        if len(xs) > 1:
            xs = [other if other.stride(1) == stride_n else other.contiguous() for other in xs]
        strides = tuple([x.stride(0) for x in xs])
        key = x.shape[0], x.shape[2], stride_n, strides, x.device, x.dtype, packed.dtype, outs[0].dtype
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepared[key] = self._prepare(x, len(xs))
        arguments = tuple(xs), packed, tuple(outs), strides
        is_aligned = all(t.data_ptr() % 16 == 0 for t in (*xs, packed))
        if is_aligned and key in self._compiled:
            compiled, constants = self._compiled[key]
            compiled[prepared.grid](*arguments, *constants)
            return
        kernel, grid, constants, options = prepared
        compiled = kernel[grid](*arguments, **constants, **options)
        if is_aligned and compiled is not None:  # there is none in the interpreter
            self._compiled[key] = compiled, [constants[name] for name in kernel.arg_names[len(arguments) :]]

    def _prepare(self, x: Tensor, num_poolings: int) -> _Prepared:
        B, _, C = x.shape
        geometry, num_heads = self.geometry, C // self.geometry.channels
        constants = {"STRIDE_N": x.stride(1), **self.constants}
        if not SLIDES:
            tiling = Tiling.of(geometry.out_grid, geometry, num_sums=num_poolings)
            constants |= {"BLOCK_C": tiling.block_c, "TILE_H": tiling.height, "TILE_W": tiling.width}
            grid = tiling.num_tiles, num_heads, B
            return _Prepared(_pool_norm_kernel, grid, constants, {"num_warps": tiling.num_warps})
        sliding = Sliding.of(geometry, num_heads, B * num_poolings)
        constants |= {
            "NUM_HEADS": num_heads,
            "STARTS": tuple(sum(sliding.blocks[:i]) for i in range(len(sliding.blocks))),
            "BLOCKS": sliding.blocks,
            "NUM_BLOCKS": len(sliding.blocks),
            "TIMES": sliding.times,
            "ROWS": sliding.rows,
        }
        out_t, out_h, out_w = geometry.out_grid
        num_tiles = triton.cdiv(out_t, sliding.times) * triton.cdiv(out_h * out_w * num_heads, sliding.rows)
        num_tiles += geometry.num_class * triton.cdiv(num_heads, sliding.rows)
        options = {"num_warps": sliding.num_warps}
        if sliding.max_registers:
            options["maxnreg"] = sliding.max_registers
        return _Prepared(_sliding_pool_norm_kernel, (num_tiles, num_poolings, B), constants, options)


@lru_cache(maxsize=256)
def plan(jobs: tuple[Job, ...]) -> tuple[list[int], list[Launch]]:
    """How many tokens each result has, and the launches; poolings with one geometry share one."""
    num_rows = [0] * (max(job.target for job in jobs) + 1)
    first_rows = []
    for job in jobs:
        first_rows.append(num_rows[job.target])
        num_rows[job.target] += job.geometry.num_out
    groups: dict[Hashable, list[list[int]]] = {}
    for i, job in enumerate(jobs):
        alike = groups.setdefault(job._replace(source=0 if SLIDES else job.source, target=0), [])
        if not alike or len(alike[-1]) == MAX_SHARED:
            alike.append([])
        alike[-1].append(i)
    launches = [
        Launch(jobs, members, num_rows, [first_rows[i] for i in members])
        for alike in groups.values()
        for members in alike
    ]
    return num_rows, launches


def run(
    xs: Sequence[Tensor],
    num_rows: Sequence[int],
    launches: Sequence[Launch],
    packed: Sequence[Tensor],
    dtype: torch.dtype,
) -> list[Tensor]:
    """All jobs of a `plan`.

    Args:
        xs: tokens (B, N, C) that jobs read.
        packed: for each launch, its parameters.
        dtype: of the results.

    Returns:
        (B, N', C) for each target.
    """
    x = xs[0]
    outs = [x.new_empty((x.shape[0], n, x.shape[2]), dtype=dtype) for n in num_rows]
    xs = [x if x.stride(2) == 1 else x.contiguous() for x in xs]
    with torch.cuda.device_of(x):
        for launch, parameters in zip(launches, packed, strict=True):
            launch(xs, parameters, outs)
    return outs
