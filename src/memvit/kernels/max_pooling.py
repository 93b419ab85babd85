"""Max-pooling of tokens, for shortcuts past pooled queries (MViT, Fan et al. 2021, section 3.2).

Tokens are channels-last, which PyTorch's 3-D max-pooling is not made for. Where no gradients are wanted, kernels of ours read
the tokens where they lie and write them behind their class token, on CPUs and on CUDA. With gradients on CUDA, windows of one
time go to the 2-D max-pooling, which has kernels for channels-last.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from memvit.kernels import cpu
from memvit.kernels.backend import use_reference
from memvit.kernels.ops import ON_GPUS, register
from memvit.kernels.triton_pooling import DTYPES, is_available

Size3 = tuple[int, int, int]


def max_pool(x: Tensor, grid: Size3, kernel: Size3, stride: Size3, *, num_class: int) -> Tensor:
    """The largest value of each channel in windows with padding kernel // 2; class tokens pass it by.

    Args:
        x: (B, num_class + T H W, C), class tokens first, then time, height, width.
        grid: (T, H, W).

    Returns:
        (B, num_class + T' H' W', C) of x's dtype; on CPUs under autocast float32, as PyTorch's max-pooling.
    """
    padding = [k // 2 for k in kernel]
    out_grid = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(grid, padding, kernel, stride, strict=True)]
    if not use_reference():
        if _is_on_gpu(x):
            if not (torch.is_grad_enabled() and x.requires_grad):
                return _gpu_max_pool(x, list(grid), list(kernel), list(stride), padding, out_grid, num_class)
            if kernel[0] == stride[0] == 1:
                return _max_pool_2d(x, grid, kernel, stride, num_class)
        elif cpu.can_run(x) and x.shape[-1] % cpu.lanes() == 0:
            dtype = torch.float32 if torch.is_autocast_enabled("cpu") else x.dtype
            return _cpu_max_pool(x, list(grid), list(kernel), list(stride), padding, out_grid, num_class, dtype)
    volume = x[:, num_class:].unflatten(1, grid).permute(0, 4, 1, 2, 3)
    pooled = F.max_pool3d(volume, kernel, stride, padding).permute(0, 2, 3, 4, 1).flatten(1, 3)
    return torch.cat([x[:, :num_class], pooled], dim=1)


def _is_on_gpu(x: Tensor) -> bool:
    """Where Triton runs, with a dtype that our kernel takes."""
    return is_available() and x.is_cuda and x.dtype in DTYPES


def _max_pool_2d(x: Tensor, grid: Size3, kernel: Size3, stride: Size3, num_class: int) -> Tensor:
    """Each time by itself."""
    B, _, C = x.shape
    t, h, w = grid
    frames = x[:, num_class:].reshape(B * t, h, w, C).permute(0, 3, 1, 2)  # channels last
    pooled = F.max_pool2d(frames, kernel[1:], stride[1:], (kernel[1] // 2, kernel[2] // 2))
    pooled = pooled.permute(0, 2, 3, 1).reshape(B, -1, C)
    return torch.cat([x[:, :num_class], pooled], dim=1) if num_class else pooled


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


def _run_on_gpu(
    x: Tensor,
    grid: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    out_grid: list[int],
    num_class: int,
) -> Tensor:
    from memvit.kernels.triton_max_pooling import max_pool as triton_max_pool

    with torch.cuda.device_of(x):
        return triton_max_pool(x, grid, kernel, stride, padding, out_grid, num_class)


def _fake_on_gpu(
    x: Tensor,
    grid: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    out_grid: list[int],
    num_class: int,
) -> Tensor:
    return _fake(x, grid, kernel, stride, padding, out_grid, num_class, x.dtype)


_gpu_max_pool = register(
    "gpu_max_pool(Tensor x, int[] grid, int[] kernel, int[] stride, int[] padding, int[] out_grid, int num_class) -> Tensor",
    _run_on_gpu,
    _fake_on_gpu,
    ON_GPUS,
)
