"""Learned pooling of tokens: a depthwise 3-D convolution on their grid and a LayerNorm, per head (MViT, Fan et al. 2021).

Tokens are channels-last already, so no axis moves. The definition is PyTorch's channels-last convolution; on CPUs, where no
gradients are wanted, and on CUDA, kernels of ours pool queries, keys and values from one read and norm them on the way out.
"""

from __future__ import annotations

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


class Front(NamedTuple):
    """Tokens of another clip, with a pooling of their own, that go in front of pooled ones: what attention looks back at.

    Attributes:
        x: (B, num_class + T H W, C).
        grid: its (T, H, W).
        pooling: what pools it.
    """

    x: Tensor
    grid: Size3
    pooling: Pooling


def pool_norm(
    x: Tensor, grid: Size3, poolings: Sequence[Pooling], *, num_class: int, fronts: Sequence[Front | None] = ()
) -> list[Tensor]:
    """Pools tokens in one or several ways; class tokens pass the convolution by, not the LayerNorm.

    Args:
        x: (B, num_class + T H W, C), class tokens first, then time, height, width.
        grid: (T, H, W).
        fronts: for each pooling, what goes in front of its result; left out: nothing.

    Returns:
        (B, num_class + T' H' W', C) for each pooling, n more tokens first where there is a front, which pools to n; by our
        kernels, under autocast, in autocast's dtype.
    """
    dtype = compute_dtype(x)
    if not poolings:
        return []
    fronts = fronts or [None] * len(poolings)
    if not use_reference():
        if triton_pooling.can_pool(x, [*poolings, *[front.pooling for front in fronts if front is not None]]):
            return triton_pooling.triton_pool_norm(x, grid, poolings, num_class=num_class, fronts=fronts, dtype=dtype)
        pooled_on_cpu = _pool_norm_on_cpu(x, grid, poolings, num_class, fronts, dtype)
        if pooled_on_cpu is not None:
            return pooled_on_cpu
    outs = []
    for pooling, front in zip(poolings, fronts, strict=True):
        pooled = pool_norm_reference(x, grid, pooling, num_class)
        if front is not None:
            first = pool_norm_reference(front.x, front.grid, front.pooling, num_class)
            pooled = torch.cat([first.to(pooled.dtype), pooled], dim=1)
        outs.append(pooled)
    return outs


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


class _Job(NamedTuple):
    """One pooling of the kernel on CPUs: tokens of one grid, and which result they go to, one behind the other."""

    source: int
    target: int
    grid: Size3
    pooling: Pooling


class _Plan(NamedTuple):
    """What the kernel needs to know besides the tokens; `cpu.pool_norm` says how it is laid out."""

    grids: list[int]
    weights: list[Tensor]
    norms: list[Tensor]
    sizes: list[int]
    eps: list[float]


def _pool_norm_on_cpu(
    x: Tensor,
    grid: Size3,
    poolings: Sequence[Pooling],
    num_class: int,
    fronts: Sequence[Front | None],
    dtype: torch.dtype,
) -> list[Tensor] | None:
    """What `pool_norm` gives, by the C++ kernel; None where it does not do that."""
    if dtype not in (torch.float32, torch.bfloat16) or not cpu.is_available():
        return None
    volumes, jobs = [x], []
    for target, (pooling, front) in enumerate(zip(poolings, fronts, strict=True)):
        if front is not None:
            jobs.append(_Job(len(volumes), target, front.grid, front.pooling))
            volumes.append(front.x if front.x.dtype == x.dtype else front.x.to(x.dtype))
        jobs.append(_Job(0, target, grid, pooling))
    parameters = [t for job in jobs for t in (job.pooling.weight, job.pooling.norm_weight, job.pooling.norm_bias)]
    if not cpu.can_run(*volumes, *parameters):
        return None
    key = ("pool_norm", tuple((job.source, job.target, job.grid) for job in jobs), cpu.lanes())
    plan = frozen(parameters, key, lambda: _make_plan(grid, fronts, jobs))
    return None if plan is None else _cpu_pool_norm(volumes, *plan, num_class, dtype)


def _make_plan(grid: Size3, fronts: Sequence[Front | None], jobs: Sequence[_Job]) -> _Plan | None:
    """None: the kernel does not do that."""
    weights, norms, sizes, eps = [], [], [], []
    for source, target, own_grid, pooling in jobs:
        out_grid = pooling.output_grid(own_grid)
        starts = tuple((n - 1) // s + 1 for n, s in zip(own_grid, pooling.stride, strict=True))
        if starts != out_grid or pooling.weight.shape[0] % cpu.lanes():
            return None
        weights.append(pooling.weight.detach().flatten(1).T.float().contiguous())
        norms += [t.detach().float().contiguous() for t in (pooling.norm_weight, pooling.norm_bias)]
        sizes += [source, target, *pooling.kernel, *pooling.stride, *pooling.padding, *out_grid]
        eps.append(pooling.eps)
    grids = [n for size in (grid, *(front.grid for front in fronts if front is not None)) for n in size]
    return _Plan(grids, weights, norms, sizes, eps)


def _fake(
    xs: list[Tensor],
    grids: list[int],
    weights: list[Tensor],
    norms: list[Tensor],
    sizes: list[int],
    eps: list[float],
    num_class: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    B, _, C = xs[0].shape
    return [xs[0].new_empty(B, n, C, dtype=dtype) for n in cpu.pooled_tokens(sizes, num_class)]


_cpu_pool_norm = register(
    "cpu_pool_norm(Tensor[] xs, int[] grids, Tensor[] weights, Tensor[] norms, int[] sizes, float[] eps, int num_class, "
    "ScalarType dtype) -> Tensor[]",
    cpu.pool_norm,
    _fake,
)
