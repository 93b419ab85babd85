# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment, misc"
"""Depthwise 3-D convolution and LayerNorm of tokens in one Triton kernel.

A program has some (token, head) pairs of one stream and slides along time: it reads each token it needs once, where it lies
in (B, N, C), and adds it to all the output times that the token is part of. It holds the convolutions in float32 registers,
normalises them there and writes the result. Class tokens have programs of their own, which norm them alone. One launch does
up to `MAX_SHARED` poolings of one geometry, of the same or of other tokens. Where few tokens come out, another kernel makes
them (`triton_pooling_few`).

Grids, kernels and strides are compile-time constants (so that dividing by them costs a multiplication); loops run over
constants alone, which Triton's interpreter needs too.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from memvit.kernels import triton_pooling_few as few
from memvit.kernels.branches import run_branches
from memvit.kernels.triton_pooling_geometry import MAX_SHARED, Geometry, Job
from memvit.kernels.triton_tiles import norm_and_store


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
def _pool_norm_kernel(
    x_ptrs,  # of each pooling, all of one dtype
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
    """Heads share their filters: a row is one head of one token. A program makes some rows of one pooling, at `TIMES` times."""
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
        norm_and_store(ys, norm_weights, norm_biases, class_ptr, exists, EPS, C, STARTS, BLOCKS, NUM_BLOCKS)
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
            norm_and_store(ys, norm_weights, norm_biases, place_ptr, in_time, EPS, C, STARTS, BLOCKS, NUM_BLOCKS)


class Sliding(NamedTuple):
    """How `_pool_norm_kernel` cuts its work.

    Attributes:
        times: output times of a program; what it reads serves all of them.
        rows: (token, head) pairs of a program, at each of these times.
        blocks: powers of two, which the channels of a head are cut into; fewer than a program has threads, as wider filters
            would be brought to the threads through shared memory.
    """

    times: int
    rows: int
    blocks: tuple[int, ...]
    num_warps: int

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
    num_warps: int


class Launch:
    """Poolings with one geometry: one launch.

    Args:
        jobs: what there is to do.
        members: which of them this launch does.
        num_rows: tokens of each result.
        first_rows: for each member, where in its result it begins.
    """

    def __init__(
        self, jobs: Sequence[Job], members: Sequence[int], num_rows: Sequence[int], first_rows: Sequence[int]
    ) -> None:
        self.members = members
        self.geometry = jobs[members[0]].geometry
        self.sources = [jobs[i].source for i in members]
        self.pools_results = self.sources[0] < 0
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
        """Pools tokens (B, N, C), of which a token's channels lie side by side, or results, into rows of (B, N', C).

        Triton finds a compiled kernel by all arguments, constants too, which takes longer than the launch; all that it would
        look at is in our key. What is odd goes its way.
        """
        outs = [outs[i] for i in self.targets]
        xs = [out[:, self.geometry.num_out :] for out in outs] if self.pools_results else [xs[i] for i in self.sources]
        x = xs[0]
        strides = tuple([x.stride(0) for x in xs])
        key = x.shape[0], x.shape[2], x.stride(1), strides, x.device, x.dtype, packed.dtype, outs[0].dtype
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepared[key] = self._prepare(x, len(xs))
        arguments = tuple(xs), packed, tuple(outs), strides
        is_aligned = all(t.data_ptr() % 16 == 0 for t in (*xs, packed))
        if is_aligned and key in self._compiled:
            compiled, constants = self._compiled[key]
            compiled[prepared.grid](*arguments, *constants)
            return
        kernel, grid, constants, num_warps = prepared
        compiled = kernel[grid](*arguments, **constants, num_warps=num_warps)
        if is_aligned and compiled is not None:  # there is none in the interpreter
            self._compiled[key] = compiled, [constants[name] for name in kernel.arg_names[len(arguments) :]]

    def _prepare(self, x: Tensor, num_poolings: int) -> _Prepared:
        B, _, C = x.shape
        geometry, num_heads = self.geometry, C // self.geometry.channels
        constants = {"STRIDE_N": x.stride(1), "NUM_HEADS": num_heads, **self.constants}
        num_rows = geometry.num_out * num_heads
        taps, blocks = few.taps_block(geometry), split(geometry.channels)
        if num_rows * num_poolings * B <= few.MAX_FEW and taps * max(blocks) <= few.MAX_READ:
            constants |= {**_cut(blocks), "TAPS": taps}
            return _Prepared(few.pool_few_kernel, (num_rows, num_poolings, B), constants, few.NUM_WARPS)
        sliding = Sliding.of(geometry, num_heads, B * num_poolings)
        constants |= {**_cut(sliding.blocks), "TIMES": sliding.times, "ROWS": sliding.rows}
        out_t, out_h, out_w = geometry.out_grid
        num_tiles = triton.cdiv(out_t, sliding.times) * triton.cdiv(out_h * out_w * num_heads, sliding.rows)
        num_tiles += geometry.num_class * triton.cdiv(num_heads, sliding.rows)
        return _Prepared(_pool_norm_kernel, (num_tiles, num_poolings, B), constants, sliding.num_warps)


def _cut(blocks: tuple[int, ...]) -> dict[str, Any]:
    """Channels in blocks, as the kernels are told."""
    starts = tuple(sum(blocks[:i]) for i in range(len(blocks)))
    return {"STARTS": starts, "BLOCKS": blocks, "NUM_BLOCKS": len(blocks)}


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
        # What pools results has to wait for them.
        alike = groups.setdefault(job._replace(source=min(job.source, 0), target=0), [])
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
        xs: tokens (B, N, C), all of one dtype.
        packed: for each launch, its parameters.
        dtype: of the results.

    Returns:
        (B, N', C) for each target.
    """
    x = xs[0]
    outs = [x.new_empty((x.shape[0], n, x.shape[2]), dtype=dtype) for n in num_rows]
    xs = [x if x.stride(2) == 1 else x.contiguous() for x in xs]
    first: list[Callable[[], None]] = []
    second: list[Callable[[], None]] = []
    for launch, parameters in zip(launches, packed, strict=True):
        (second if launch.pools_results else first).append(partial(launch, xs, parameters, outs))
    with torch.cuda.device_of(x):
        run_branches(x, first)
        if second:
            run_branches(x, second)
    return outs
