"""What a pooling is to the kernels of `triton_pooling`: where the tokens lie that it reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Size3 = tuple[int, int, int]

# Poolings of one launch. In the backward pass one program computes them all: more would not fit its registers.
MAX_SHARED = 3


class Geometry(NamedTuple):
    """Where the tokens lie that a pooling reads and writes; poolings with the same one are computed together.

    Attributes:
        grid, out_grid: (time, height, width) of the tokens that come in and go out.
        kernel, stride: of the convolution.
        padding: before the first token along each axis.
        num_class: 0 or 1, tokens in front of the grid.
        channels: of one head.
    """

    grid: Size3
    out_grid: Size3
    kernel: Size3
    stride: Size3
    padding: Size3
    num_class: int
    channels: int

    @property
    def num_out(self) -> int:
        """Tokens of one stream that go out."""
        t, h, w = self.out_grid
        return self.num_class + t * h * w

    @property
    def constants(self) -> dict[str, object]:
        """What the kernels are compiled for."""
        return {
            "GRID": self.grid,
            "OUT_GRID": self.out_grid,
            "KERNEL": self.kernel,
            "STRIDE": self.stride,
            "PADDING": self.padding,
            "NUM_CLASS": self.num_class,
            "C": self.channels,
        }


def pooling_geometry(
    weight: Tensor, grid: Sequence[int], stride: Sequence[int], causal: bool, num_class: int
) -> Geometry:
    """Of filters (c, 1, kt, kh, kw) on tokens of `grid`."""
    channels, _, *kernel = weight.shape
    padding = [size // 2 for size in kernel]
    out = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(grid, padding, kernel, stride, strict=True)]
    if causal:
        padding[0] = kernel[0] - 1
        out[0] = (grid[0] - 1) // stride[0] + 1
    assert min(out) > 0, (grid, kernel, stride)
    return Geometry(_size3(grid), _size3(out), _size3(kernel), _size3(stride), _size3(padding), num_class, channels)


class Job(NamedTuple):
    """One pooling.

    Attributes:
        source: which tokens it reads; -1: what is pooled to its target, in front of which it goes.
        target: which result it goes to.
    """

    source: int
    target: int
    geometry: Geometry
    eps: float


def _size3(size: Sequence[int]) -> Size3:
    t, h, w = size
    return t, h, w
