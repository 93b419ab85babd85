"""Max-pooling of tokens, for shortcuts past pooled queries (MViT, Fan et al. 2021, section 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from memvit.kernels import cpu
from memvit.kernels.backend import use_reference
from memvit.kernels.ops import register

Size3 = tuple[int, int, int]


def max_pool(x: Tensor, grid: Size3, kernel: Size3, stride: Size3, *, num_class: int) -> Tensor:
    """The largest value of each channel in windows with padding kernel // 2; class tokens pass it by.

    Args:
        x: (B, num_class + T H W, C), class tokens first, then time, height, width.
        grid: (T, H, W).

    Returns:
        (B, num_class + T' H' W', C); in float32 under autocast, as PyTorch's max-pooling on CPUs.
    """
    padding = [k // 2 for k in kernel]
    out_grid = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(grid, padding, kernel, stride, strict=True)]
    if not use_reference() and cpu.can_run(x) and x.shape[-1] % cpu.lanes() == 0:
        dtype = torch.float32 if torch.is_autocast_enabled("cpu") else x.dtype
        return _cpu_max_pool(x, list(grid), list(kernel), list(stride), padding, out_grid, num_class, dtype)
    volume = x[:, num_class:].unflatten(1, grid).permute(0, 4, 1, 2, 3)
    pooled = F.max_pool3d(volume, kernel, stride, padding).permute(0, 2, 3, 4, 1).flatten(1, 3)
    return torch.cat([x[:, :num_class], pooled], dim=1)


def _fake(
    x: Tensor,
    grid: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    out_grid: list[int],
    num_class: int,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty(x.shape[0], num_class + math.prod(out_grid), x.shape[2], dtype=dtype)


_cpu_max_pool = register(
    "cpu_max_pool(Tensor x, int[] grid, int[] kernel, int[] stride, int[] padding, int[] out_grid, int num_class, "
    "ScalarType dtype) -> Tensor",
    cpu.max_pool,
    _fake,
)
