# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment, misc"
"""Pooling where few tokens come out: a program makes one of them, and reads all that it is made of at once.

`triton_pooling_forward` reads one tap after the other, which serves neighbours too. Where there are fewer tokens than the GPU
has room for, as for one remembered clip of one stream, nothing is gained by sharing, and it is the waiting that takes the
time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from memvit.kernels.triton_pooling_geometry import Geometry
from memvit.kernels.triton_tiles import norm_and_store

MAX_FEW = 512  # programs
MAX_READ = 16384  # numbers of a block of channels, of all taps: 128 per thread
# Every warp has sums of its own, which have to be brought together: 16 took half as long again as 8 (H200, 384 channels: 12.3
# and 8.3 us). A recorded step of one stream with M = 2 took 1.204 ms with 8, 1.194 with 4 and 1.196 with 2.
NUM_WARPS = 4


@triton.jit
def pool_few_kernel(
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
    TAPS: tl.constexpr,
):
    """One head of one token that comes out of one pooling; class tokens, which come last, have one tap of weight one."""
    stream = tl.program_id(2).to(tl.int64)
    x_ptr, stride_b, out_ptr = x_ptrs[0], strides_b[0], out_ptrs[0]
    out_row = stream * NUM_ROWS[0] + FIRST_ROWS[0]
    for p in tl.static_range(1, NUM_POOLINGS):
        if tl.program_id(1) == p:
            x_ptr, stride_b, out_ptr = x_ptrs[p], strides_b[p], out_ptrs[p]
            out_row = stream * NUM_ROWS[p] + FIRST_ROWS[p]
    num_taps: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    num_out: tl.constexpr = OUT_GRID[0] * OUT_GRID[1] * OUT_GRID[2]
    parameter_ptr += tl.program_id(1) * ((num_taps + 2) * C)
    place, head = tl.program_id(0) // NUM_HEADS, tl.program_id(0) % NUM_HEADS

    tap = tl.arange(0, TAPS)
    # Every tap has the place, though all share it: the interpreter cannot join conditions on blocks and on scalars.
    of_tap = tap * 0 + place
    is_class = of_tap >= num_out
    t = of_tap // (OUT_GRID[1] * OUT_GRID[2]) * STRIDE[0] - PADDING[0] + tap // (KERNEL[1] * KERNEL[2])
    h = of_tap // OUT_GRID[2] % OUT_GRID[1] * STRIDE[1] - PADDING[1] + tap // KERNEL[2] % KERNEL[1]
    w = of_tap % OUT_GRID[2] * STRIDE[2] - PADDING[2] + tap % KERNEL[2]
    in_grid = (t >= 0) & (t < GRID[0]) & (h >= 0) & (h < GRID[1]) & (w >= 0) & (w < GRID[2])
    seen = (is_class & (tap == 0)) | (~is_class & (tap < num_taps) & in_grid)
    from_place = tl.where(is_class, 0, NUM_CLASS + (t * GRID[1] + h) * GRID[2] + w)
    x_ptr += stream * stride_b + head * C + from_place[:, None] * STRIDE_N
    ys, norm_weights, norm_biases = (), (), ()
    for b in tl.static_range(NUM_BLOCKS):
        c = STARTS[b] + tl.arange(0, BLOCKS[b])
        mask = seen[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + c[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(parameter_ptr + tap[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.where(is_class[:, None], 1.0, weight)
        ys = ys + (tl.sum(x * weight, axis=0)[None, :],)  # noqa: RUF005
        norm_weight = tl.load(parameter_ptr + num_taps * C + c, mask=c < C, other=0.0).to(tl.float32)
        norm_bias = tl.load(parameter_ptr + (num_taps + 1) * C + c, mask=c < C, other=0.0).to(tl.float32)
        norm_weights = norm_weights + (norm_weight[None, :],)  # noqa: RUF005
        norm_biases = norm_biases + (norm_bias[None, :],)  # noqa: RUF005
    row = tl.arange(0, 1)
    out_row += tl.where(row + place >= num_out, 0, NUM_CLASS + row + place)
    out_ptr += (out_row * (NUM_HEADS * C) + head * C)[:, None]
    norm_and_store(ys, norm_weights, norm_biases, out_ptr, row == 0, EPS, C, STARTS, BLOCKS, NUM_BLOCKS)


def taps_block(geometry: Geometry) -> int:
    """The power of two that holds the taps of a filter."""
    t, h, w = geometry.kernel
    return triton.next_power_of_2(t * h * w)
