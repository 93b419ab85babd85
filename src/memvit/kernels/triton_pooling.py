"""Pooling of tokens on GPUs, written in Triton: what `memvit.kernels.pooling` computes, in one launch per kernel and stride.

`memvit::pool_norm` and `memvit::pool_norm_backward` are operators of their own, opaque to torch.compile, which keeps one
graph around them. (A `torch.library.triton_op` would be traced into, has nothing there to fuse with, and cannot hold
the kernels of Triton's interpreter.) Triton is imported at the first launch: this module can be imported everywhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from memvit.kernels.pooling import Pooling

Size3 = tuple[int, int, int]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_CHANNELS = 1024  # of a head: one program holds them all
MAX_SHARED = 3  # poolings that one program computes: more would not fit its registers

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def is_available() -> bool:
    """Whether Triton is installed. It comes with PyTorch for GPUs on Linux, not on macOS and Windows."""
    return _HAS_TRITON


def can_pool(x: Tensor, poolings: Sequence[Pooling]) -> bool:
    """Whether `triton_pool_norm` takes these: tokens on a GPU, of a dtype and width that it knows."""
    widest = max(pooling.weight.shape[0] for pooling in poolings)
    return is_available() and x.is_cuda and x.dtype in DTYPES and widest <= MAX_CHANNELS


def triton_pool_norm(x: Tensor, grid: Size3, poolings: Sequence[Pooling], *, num_class: int) -> list[Tensor]:
    """Depthwise convolution, then LayerNorm over each head's channels, of the same tokens for each pooling.

    Sums and statistics are float32. Tokens and parameters get gradients, once (no second derivatives), and these repeat
    bit for bit from run to run.

    Args:
        x: (B, N, C), float32, bfloat16 or float16, N = num_class + T x H x W.
        grid: (T, H, W).
        poolings: their parameters may be of another floating dtype than x.
        num_class: 1: the first token is a class token, normed but not convolved; 0: there is none.

    Returns:
        (B, N', C) of x's dtype for each pooling.
    """
    assert x.shape[1] == num_class + grid[0] * grid[1] * grid[2], (x.shape, grid, num_class)
    return _pool_norm(
        x,
        [pooling.weight for pooling in poolings],
        [pooling.norm_weight for pooling in poolings],
        [pooling.norm_bias for pooling in poolings],
        list(grid),
        [size for pooling in poolings for size in pooling.stride],
        [pooling.causal for pooling in poolings],
        [pooling.eps for pooling in poolings],
        num_class,
    )


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


class _Group(NamedTuple):
    """Poolings that are computed together, by their positions in the call."""

    members: list[int]
    geometry: Geometry
    eps: float

    def pick(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[i] for i in self.members]


def _group(
    weights: Sequence[Tensor],
    grid: Sequence[int],
    strides: Sequence[int],
    causal: Sequence[bool],
    eps: Sequence[float],
    num_class: int,
) -> list[_Group]:
    """The finest stride first: its gradient reaches the most tokens, and those of the others are added to it."""
    groups: list[_Group] = []
    for i, weight in enumerate(weights):
        geometry = pooling_geometry(weight, grid, strides[3 * i : 3 * i + 3], causal[i], num_class)
        for members, *shared in groups:  # no dictionary: sizes may be symbols of torch.compile, which have no hash
            if shared == [geometry, eps[i]] and len(members) < MAX_SHARED:
                members.append(i)
                break
        else:
            groups.append(_Group([i], geometry, eps[i]))
    return sorted(groups, key=lambda group: group.geometry.stride)


@torch.library.custom_op(
    "memvit::pool_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor[] weights, Tensor[] norm_weights, Tensor[] norm_biases, int[] grid, int[] strides, "
    "bool[] causal, float[] eps, int num_class) -> Tensor[]",
)
def _pool_norm(
    x: Tensor,
    weights: Sequence[Tensor],
    norm_weights: Sequence[Tensor],
    norm_biases: Sequence[Tensor],
    grid: Sequence[int],
    strides: Sequence[int],
    causal: Sequence[bool],
    eps: Sequence[float],
    num_class: int,
) -> list[Tensor]:
    from memvit.kernels.triton_pooling_forward import forward, pack_filters

    x = _rows(x)
    outs: dict[int, Tensor] = {}
    with torch.cuda.device_of(x):
        for group in _group(weights, grid, strides, causal, eps, num_class):
            filters = pack_filters(group.pick(weights))
            pooled = forward(x, filters, group.pick(norm_weights), group.pick(norm_biases), group.geometry, group.eps)
            outs |= zip(group.members, pooled, strict=True)
    return [outs[i] for i in range(len(weights))]


@_pool_norm.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
    norm_weights: Sequence[Tensor],
    norm_biases: Sequence[Tensor],
    grid: Sequence[int],
    strides: Sequence[int],
    causal: Sequence[bool],
    eps: Sequence[float],
    num_class: int,
) -> list[Tensor]:
    geometries = [
        pooling_geometry(weight, grid, strides[3 * i : 3 * i + 3], causal[i], num_class)
        for i, weight in enumerate(weights)
    ]
    return [x.new_empty(x.shape[0], geometry.num_out, x.shape[2]) for geometry in geometries]


@torch.library.custom_op(
    "memvit::pool_norm_backward",
    mutates_args=(),
    schema="(Tensor[] grads, Tensor x, Tensor[] weights, Tensor[] norm_weights, int[] grid, int[] strides, "
    "bool[] causal, float[] eps, int num_class, bool needs_x_grad) -> Tensor[]",
)
def _pool_norm_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    norm_weights: Sequence[Tensor],
    grid: Sequence[int],
    strides: Sequence[int],
    causal: Sequence[bool],
    eps: Sequence[float],
    num_class: int,
    needs_x_grad: bool,
) -> list[Tensor]:
    """The gradient of x (B, N, C), empty where it is not needed, then for each group those of its filters (poolings, taps, c) and
    of its norms' weights and biases (poolings, 2, c), float32.
    """
    from memvit.kernels.triton_pooling_backward import filter_grad, norm_backward, token_grad
    from memvit.kernels.triton_pooling_forward import pack_filters

    x_grad = x.new_empty(x.shape if needs_x_grad else 0)
    x = _rows(x)
    parameter_grads = []
    with torch.cuda.device_of(x):
        for i, group in enumerate(_group(weights, grid, strides, causal, eps, num_class)):
            filters = pack_filters(group.pick(weights))
            conv_grads, norm_grads = norm_backward(
                [grad.contiguous() for grad in group.pick(grads)],
                x,
                filters,
                group.pick(norm_weights),
                group.geometry,
                group.eps,
            )
            if needs_x_grad:
                token_grad(conv_grads, filters, x_grad, group.geometry, adds=i > 0)
            parameter_grads += [filter_grad(conv_grads, x, group.geometry), norm_grads]
    return [x_grad, *parameter_grads]


@_pool_norm_backward.register_fake
def _(
    grads: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    norm_weights: Sequence[Tensor],
    grid: Sequence[int],
    strides: Sequence[int],
    causal: Sequence[bool],
    eps: Sequence[float],
    num_class: int,
    needs_x_grad: bool,
) -> list[Tensor]:
    results = [x.new_empty(x.shape if needs_x_grad else 0)]
    for members, geometry, _ in _group(weights, grid, strides, causal, eps, num_class):
        num_taps = geometry.kernel[0] * geometry.kernel[1] * geometry.kernel[2]
        for rows in (num_taps, 2):
            results.append(x.new_empty(len(members), rows, geometry.channels, dtype=torch.float32))
    return results


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, norm_weights, norm_biases, *ctx.numbers = inputs
    ctx.bias_dtypes = [bias.dtype for bias in norm_biases]
    ctx.save_for_backward(x, *weights, *norm_weights)


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    x, *parameters = ctx.saved_tensors
    weights, norm_weights = parameters[: len(grads)], parameters[len(grads) :]
    needs_x_grad = ctx.needs_input_grad[0]
    x_grad, *parameter_grads = _pool_norm_backward(list(grads), x, weights, norm_weights, *ctx.numbers, needs_x_grad)
    weight_grads: dict[int, Tensor] = {}
    norm_grads: dict[int, Tensor] = {}
    for index, group in enumerate(_group(weights, *ctx.numbers)):
        weight_grads |= zip(group.members, parameter_grads[2 * index], strict=True)
        norm_grads |= zip(group.members, parameter_grads[2 * index + 1], strict=True)
    order = range(len(grads))
    return (
        x_grad if needs_x_grad else None,
        [weight_grads[i].t().reshape(weights[i].shape).to(weights[i].dtype) for i in order],
        [norm_grads[i][0].to(norm_weights[i].dtype) for i in order],
        [norm_grads[i][1].to(ctx.bias_dtypes[i]) for i in order],
        *(None,) * len(ctx.numbers),
    )


_pool_norm.register_autograd(_backward, setup_context=_setup_context)


def _rows(x: Tensor) -> Tensor:
    """With the channels of a token side by side, as the kernels read them. A part of wider tokens is taken as it is."""
    return x if x.stride(2) == 1 else x.contiguous()


def _size3(size: Sequence[int]) -> Size3:
    t, h, w = size
    return t, h, w
