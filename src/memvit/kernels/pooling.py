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


Compressions = Sequence[Pooling | None]


def pool_norm(
    x: Tensor, grid: Size3, poolings: Sequence[Pooling], *, num_class: int, compressions: Compressions = ()
) -> list[Tensor]:
    """Pools tokens in one or several ways; class tokens pass the convolution by, not the LayerNorm.

    Args:
        x: (B, num_class + T H W, C), class tokens first, then time, height, width.
        grid: (T, H, W).
        compressions: for each pooling, what pools its result once more, while that is in the cache; left out: nothing.

    Returns:
        (B, num_class + T' H' W', C) for each pooling; where there is a compression, what it gives comes first, and then that. By
        our kernels, under autocast, in autocast's dtype.
    """
    dtype = compute_dtype(x)
    if not poolings:
        return []
    compressions = compressions or [None] * len(poolings)
    if not use_reference():
        if triton_pooling.can_pool(x, [*poolings, *[pooling for pooling in compressions if pooling is not None]]):
            return triton_pooling.triton_pool_norm(
                x, grid, poolings, num_class=num_class, compressions=compressions, dtype=dtype
            )
        pooled_on_cpu = _pool_norm_on_cpu(x, grid, poolings, num_class, compressions, dtype)
        if pooled_on_cpu is not None:
            return pooled_on_cpu
    outs = []
    for pooling, compression in zip(poolings, compressions, strict=True):
        pooled = pool_norm_reference(x, grid, pooling, num_class)
        if compression is not None:
            first = pool_norm_reference(pooled, pooling.output_grid(grid), compression, num_class)
            pooled = torch.cat([first, pooled], dim=1)
        outs.append(pooled)
    return outs


def pool_norm_each(xs: Sequence[Tensor], grid: Size3, poolings: Sequence[Pooling], *, num_class: int) -> list[Tensor]:
    """`pool_norm` of other tokens for each pooling, all of one shape: on GPUs, where no gradients are wanted, in one launch."""
    x, dtype = xs[0], compute_dtype(xs[0])
    if not use_reference() and not torch.is_grad_enabled() and triton_pooling.can_pool(x, poolings):
        return triton_pooling.triton_pool_norm_each(xs, grid, poolings, num_class=num_class, dtype=dtype)
    return [pool_norm(x, grid, [own], num_class=num_class)[0] for x, own in zip(xs, poolings, strict=True)]


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
    """What the kernel needs to know besides the tokens; `cpu.pool_norm` says how it is laid out."""

    weights: list[Tensor]
    norms: list[Tensor]
    sizes: list[int]
    eps: list[float]


def _pool_norm_on_cpu(
    x: Tensor,
    grid: Size3,
    poolings: Sequence[Pooling],
    num_class: int,
    compressions: Compressions,
    dtype: torch.dtype,
) -> list[Tensor] | None:
    """What `pool_norm` gives, by the C++ kernel; None where it does not do that."""
    if dtype not in (torch.float32, torch.bfloat16) or not cpu.is_available():
        return None
    compressed = tuple([i for i, compression in enumerate(compressions) if compression is not None])
    all_poolings = [*poolings, *[compression for compression in compressions if compression is not None]]
    parameters = [t for pooling in all_poolings for t in (pooling.weight, pooling.norm_weight, pooling.norm_bias)]
    if not cpu.can_run(x, *parameters):
        return None
    key = "pool_norm", grid, len(poolings), compressed, cpu.lanes()
    plan = frozen(parameters, key, lambda: _make_plan(grid, all_poolings, len(poolings), compressed))
    return None if plan is None else _cpu_pool_norm(x, grid, *plan, num_class, dtype)


def _make_plan(grid: Size3, poolings: Sequence[Pooling], num_first: int, compressed: Sequence[int]) -> _Plan | None:
    """None: the kernel does not do that.

    Args:
        poolings: of the tokens, `num_first`, and of results of these.
        compressed: which results the others pool.
    """
    weights, norms, sizes, eps = [], [], [], []
    out_grids = [pooling.output_grid(grid) for pooling in poolings[:num_first]]
    if len({out_grids[target] for target in compressed}) > 1:
        return None
    for i, pooling in enumerate(poolings):
        source = max(1 + i - num_first, 0)
        target = compressed[source - 1] if source else i
        own_grid = out_grids[target] if source else grid
        out_grid = pooling.output_grid(own_grid)
        starts = tuple((n - 1) // s + 1 for n, s in zip(own_grid, pooling.stride, strict=True))
        if starts != out_grid or pooling.weight.shape[0] % cpu.lanes():
            return None
        weights.append(pooling.weight.detach().flatten(1).T.float().contiguous())
        norms += [t.detach().float().contiguous() for t in (pooling.norm_weight, pooling.norm_bias)]
        sizes += [source, target, *pooling.kernel, *pooling.stride, *pooling.padding, *out_grid]
        eps.append(pooling.eps)
    return _Plan(weights, norms, sizes, eps)


def _fake(
    x: Tensor,
    grid: list[int],
    weights: list[Tensor],
    norms: list[Tensor],
    sizes: list[int],
    eps: list[float],
    num_class: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    B, _, C = x.shape
    return [x.new_empty(B, n, C, dtype=dtype) for n in cpu.pooled_tokens(sizes, num_class)]


_cpu_pool_norm = register(
    "cpu_pool_norm(Tensor x, int[] grid, Tensor[] weights, Tensor[] norms, int[] sizes, float[] eps, int num_class, "
    "ScalarType dtype) -> Tensor[]",
    cpu.pool_norm,
    _fake,
)
