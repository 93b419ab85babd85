"""Learned pooling of tokens: a depthwise 3-D convolution on their grid and a LayerNorm, per head (MViT, Fan et al. 2021).

Tokens are channels-last already, so no axis moves. The definition is PyTorch's channels-last convolution; on CPUs, where no
gradients are wanted, and on CUDA, kernels of ours pool queries, keys and values from one read and norm them on the way out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memvit.kernels import cpu, triton_pooling
from memvit.kernels.backend import compute_dtype, use_reference
from memvit.kernels.frozen import frozen
from memvit.kernels.ops import register

Size3 = tuple[int, int, int]


class Pooling(NamedTuple):
    """One learned pooling.

    Attributes:
        weight: (c, 1, kt, kh, kw), shared by all heads; c channels per head.
        stride: along time, height, width.
        norm_weight, norm_bias: (c,), the LayerNorm over each head's channels.
        eps: of the LayerNorm.
        causal: the kernel is shifted so that a time sees itself and earlier times alone.
    """

    weight: Tensor
    stride: Size3
    norm_weight: Tensor
    norm_bias: Tensor
    eps: float
    causal: bool = False

    @property
    def kernel(self) -> Size3:
        """Its size along time, height, width."""
        t, h, w = self.weight.shape[2:]
        return t, h, w

    @property
    def padding(self) -> Size3:
        """Zeros in front along time, height, width."""
        t, h, w = (k // 2 for k in self.kernel)
        return (self.kernel[0] - 1 if self.causal else t), h, w

    def output_grid(self, grid: Size3) -> Size3:
        """The grid of the pooled tokens."""
        behind = [0 if self.causal and axis == 0 else k // 2 for axis, k in enumerate(self.kernel)]
        t, h, w = (
            (n + before + after - k) // s + 1
            for n, before, after, k, s in zip(grid, self.padding, behind, self.kernel, self.stride, strict=True)
        )
        return t, h, w


def pool_norm(x: Tensor, grid: Size3, poolings: Sequence[Pooling], *, num_class: int) -> list[Tensor]:
    """Pools tokens in one or several ways; class tokens pass the convolution by, not the LayerNorm.

    Args:
        x: (B, num_class + T H W, C), class tokens first, then time, height, width.
        grid: (T, H, W).

    Returns:
        (B, num_class + T' H' W', C) for each pooling; by our kernels, under autocast, in autocast's dtype.
    """
    dtype = compute_dtype(x)
    if not poolings:
        return []
    parameters = [t for p in poolings for t in (p.weight, p.norm_weight, p.norm_bias)]
    if not use_reference():
        if dtype in (torch.float32, torch.bfloat16) and cpu.can_run(x, *parameters):
            plan = frozen(parameters, ("pool_norm", grid, cpu.lanes()), lambda: _make_plan(grid, poolings))
            if plan is not None:
                return _cpu_pool_norm(x, list(grid), *plan, poolings[0].eps, num_class, dtype)
        cast = x.to(dtype) if x.is_cuda else x
        if triton_pooling.can_pool(cast, poolings):
            return triton_pooling.triton_pool_norm(cast, grid, poolings, num_class=num_class)
    return [pool_norm_reference(x, grid, pooling, num_class) for pooling in poolings]


def pool_norm_reference(x: Tensor, grid: Size3, pooling: Pooling, num_class: int) -> Tensor:
    """What `pool_norm` computes, by one pooling, in PyTorch's operators."""
    pooled = pool_conv(x, grid, pooling.weight, None, pooling.stride, num_class, causal=pooling.causal)
    c = pooling.norm_weight.shape[0]
    return F.layer_norm(
        pooled.unflatten(-1, (-1, c)), (c,), pooling.norm_weight, pooling.norm_bias, pooling.eps
    ).flatten(-2)


def pool_conv(
    x: Tensor, grid: Size3, weight: Tensor, bias: Tensor | None, stride: Size3, num_class: int, *, causal: bool = False
) -> Tensor:
    """The depthwise convolution alone: (B, N, C) -> (B, N', C). Seen as one over all channels, every head has a copy."""
    kernel = weight.shape[2:]
    num_heads = x.shape[-1] // weight.shape[0]
    padding = [k // 2 for k in kernel]
    volume = x[:, num_class:].unflatten(1, grid).permute(0, 4, 1, 2, 3)  # (B, C, T, H, W), channels last
    if causal:
        volume = F.pad(volume, (0, 0, 0, 0, kernel[0] - 1, 0))
        padding[0] = 0
    if _trains_in_low_precision(volume):
        volume = volume.contiguous()
    weight = weight.repeat(num_heads, 1, 1, 1, 1)
    bias = None if bias is None else bias.repeat(num_heads)
    pooled = F.conv3d(volume, weight, bias, stride, padding, groups=x.shape[-1]).permute(0, 2, 3, 4, 1).flatten(1, 3)
    return torch.cat([x[:, :num_class], pooled], dim=1) if num_class else pooled


def _trains_in_low_precision(volume: Tensor) -> bool:
    """Whether gradients are computed in less than float32 on a CPU.

    PyTorch's gradient of depthwise filters is wrong then, up to 1e14 times too large, for channels-last volumes of few channels
    (seen with 4 to 32, not with 96, torch 2.15); it is right for channels-first ones.
    """
    if volume.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return torch.is_autocast_enabled("cpu") or volume.dtype != torch.float32


class _Plan(NamedTuple):
    """What the kernel on CPUs needs to know besides the tokens."""

    weights: list[Tensor]
    norms: list[Tensor]
    kernels: list[int]
    strides: list[int]
    paddings: list[int]
    out_grids: list[int]


def _make_plan(grid: Size3, poolings: Sequence[Pooling]) -> _Plan | None:
    """None: the kernel does not do that."""
    out_grids = [p.output_grid(grid) for p in poolings]
    starts = [tuple((n - 1) // s + 1 for n, s in zip(grid, p.stride, strict=True)) for p in poolings]
    first = poolings[0]
    alike = all(p.weight.shape[0] == first.weight.shape[0] and p.eps == first.eps for p in poolings)
    if starts != out_grids or not alike or first.weight.shape[0] % cpu.lanes():
        return None
    return _Plan(
        [p.weight.detach().flatten(1).T.float().contiguous() for p in poolings],
        [t.detach().float().contiguous() for p in poolings for t in (p.norm_weight, p.norm_bias)],
        [n for p in poolings for n in p.kernel],
        [n for p in poolings for n in p.stride],
        [n for p in poolings for n in p.padding],
        [n for sizes in out_grids for n in sizes],
    )


def _fake(
    x: Tensor,
    grid: list[int],
    weights: list[Tensor],
    norms: list[Tensor],
    kernels: list[int],
    strides: list[int],
    paddings: list[int],
    out_grids: list[int],
    eps: float,
    num_class: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    sizes = [math.prod(out_grids[3 * i : 3 * i + 3]) for i in range(len(weights))]
    return [x.new_empty(x.shape[0], num_class + size, x.shape[2], dtype=dtype) for size in sizes]


_cpu_pool_norm = register(
    "cpu_pool_norm(Tensor x, int[] grid, Tensor[] weights, Tensor[] norms, int[] kernels, int[] strides, int[] paddings, "
    "int[] out_grids, float eps, int num_class, ScalarType dtype) -> Tensor[]",
    cpu.pool_norm,
    _fake,
)
