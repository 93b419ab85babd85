"""The patch embedding: a 3-D convolution whose windows overlap, one token each.

The definition is PyTorch's convolution, of few channels, at which cuDNN is slow in low precision. On CUDA, where the clips
want no gradient, a kernel of ours writes every patch as a row, converted on the way, and one matrix product with the filters
gives tokens as the model wants them: channels last. The rows take far more memory than the clips, so training does not keep
them: it gathers them again for the gradient of the filters. On CPUs with AMX's tiles or AVX2, patches become left
operands of such a product where they lie (csrc/linear.inl, csrc/panels.inl).

`memvit::gather_patches` and `memvit::patch_filters_grad` are operators of PyTorch, opaque to torch.compile, which keeps one
graph around them. Triton is imported at the first launch: this module can be imported everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from memvit.kernels import cpu, products
from memvit.kernels.backend import compute_dtype, use_reference
from memvit.kernels.frozen import frozen
from memvit.kernels.ops import ON_GPUS, register
from memvit.kernels.triton_pooling import DTYPES, is_available

Size3 = tuple[int, int, int]

ROW_MULTIPLE = 8  # matrix products in low precision are fast on rows of whole 16 bytes


def patch_embed(clips: Tensor, conv: nn.Conv3d, front: Tensor | None = None) -> Tensor:
    """Tokens of patches, conv(clips).flatten(2).transpose(1, 2), behind others.

    Args:
        clips: (B, channels, frames, height, width).
        conv: the embedding.
        front: (1, n, C), what comes before every clip's tokens; None: nothing.

    Returns:
        (B, n + N, C).

    Where our kernel runs, float32 products are exact to float32 or not as `torch.backends.cuda.matmul` says, not as
    `torch.backends.cudnn` does.
    """
    if _can_run_on_cpu(clips, conv):
        num_front = 0 if front is None else front.shape[1]
        window = list(conv.kernel_size), list(conv.stride), list(conv.padding)
        tokens = _cpu_patches(clips, conv.weight, conv.bias, *window, num_front, compute_dtype(clips))
        if front is not None:
            tokens[:, :num_front] = front
        return tokens
    if front is not None and front.shape[1] == 1 and _can_gather_behind(clips, conv, front):
        window = list(conv.kernel_size), list(conv.stride), list(conv.padding)
        weight, bias, dtype = conv.weight, conv.bias, compute_dtype(clips)
        parameters = [weight, front] if bias is None else [weight, bias, front]
        filters = frozen(parameters, ("patches behind", dtype), lambda: _pack_behind(weight, bias, front, dtype))
        return F.linear(_gather(clips, *window, dtype, is_behind=True), filters)
    tokens = _embed(clips, conv)
    return tokens if front is None else torch.cat([front.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)


def _embed(clips: Tensor, conv: nn.Conv3d) -> Tensor:
    if not _can_gather(clips, conv):
        return conv(clips).flatten(2).transpose(1, 2)
    window = conv.kernel_size, conv.stride, conv.padding
    weight, bias, dtype = conv.weight, conv.bias, compute_dtype(clips)
    if torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        return _PatchEmbed.apply(clips, weight, bias, window, dtype)
    parameters = [weight] if bias is None else [weight, bias]
    filters, bias = frozen(parameters, ("patches", dtype), lambda: _pack(weight, bias, dtype))
    return F.linear(_gather(clips, *map(list, window), dtype), filters, bias)


def row_length(channels: int, kernel: Sequence[int]) -> int:
    """Numbers in the row of a patch: its pixels, and zeros up to a multiple of 8."""
    return -(-channels * math.prod(kernel) // ROW_MULTIPLE) * ROW_MULTIPLE


def patch_grid(clips: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Size3:
    """How many patches there are along time, height and width."""
    t, h, w = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(clips.shape[2:], kernel, stride, padding, strict=True))
    return t, h, w


def _can_gather(clips: Tensor, conv: nn.Conv3d) -> bool:
    """Whether our kernel takes these. What is wrong is left to the convolution, which says so."""
    if use_reference() or not _is_on_gpu(clips) or (torch.is_grad_enabled() and clips.requires_grad):
        return False
    return _is_plain(clips, conv)


def _can_gather_behind(clips: Tensor, conv: nn.Conv3d, front: Tensor) -> bool:
    """Whether our kernel takes these, no gradients are wanted, and rows have room for what comes before and the bias."""
    if not _can_gather(clips, conv) or type(front) is not nn.Parameter or front.device != clips.device:
        return False
    if torch.is_grad_enabled() and any(p.requires_grad for p in (front, *conv.parameters())):
        return False
    return row_length(conv.in_channels, conv.kernel_size) >= conv.in_channels * math.prod(conv.kernel_size) + 2


def _can_run_on_cpu(clips: Tensor, conv: nn.Conv3d) -> bool:
    """Whether our kernel for CPUs takes these."""
    if use_reference() or _is_on_gpu(clips) or clips.device.type != "cpu" or not cpu.has_products():
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (clips, *conv.parameters())):
        return False
    if not torch.compiler.is_compiling() and conv.weight.is_inference():
        return False  # whose changes cannot be seen
    return _is_plain(clips, conv) and clips.dtype in cpu.DTYPES and compute_dtype(clips) in cpu.DTYPES


def _is_plain(clips: Tensor, conv: nn.Conv3d) -> bool:
    """Whether it is a convolution that rows of patches can stand for, of clips that it takes."""
    # Whatever replaces the layer (adapters) or its weight (quantisation) computes in its own way.
    if type(conv) is not nn.Conv3d or type(conv.weight) is not nn.Parameter or conv.weight.device != clips.device:
        return False
    if conv.groups != 1 or conv.dilation != (1, 1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    if clips.dim() != 5 or clips.shape[1] != conv.in_channels:
        return False
    if min(patch_grid(clips, conv.kernel_size, conv.stride, conv.padding)) < 1:
        return False
    if clips.dtype != conv.weight.dtype and not torch.is_autocast_enabled(clips.device.type):
        return False
    return clips.dtype in DTYPES and conv.weight.dtype in DTYPES and compute_dtype(clips) in DTYPES


def _is_on_gpu(clips: Tensor) -> bool:
    return is_available() and clips.is_cuda


def _pack(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Filters (C, channels, kt, kh, kw) as rows (C, row length), and the bias, in the dtype to compute in."""
    filters = weight.flatten(1).to(dtype)
    padding = row_length(weight.shape[1], weight.shape[2:]) - filters.shape[1]
    return F.pad(filters, (0, padding)), None if bias is None else bias.to(dtype)


def _pack_behind(weight: Tensor, bias: Tensor | None, front: Tensor, dtype: torch.dtype) -> Tensor:
    """Filters as of `_pack`; behind the pixels of a patch the bias, and what comes before the tokens."""
    filters, low_bias = _pack(weight, bias, dtype)
    num_pixels = weight[0].numel()
    if low_bias is not None:
        filters[:, num_pixels] = low_bias
    filters[:, num_pixels + 1] = front[0, 0].to(dtype)
    return filters


class _PatchEmbed(torch.autograd.Function):
    """Keeps the clips alone."""

    @staticmethod
    def forward(
        ctx: Any,
        clips: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        window: tuple[Sequence[int], Sequence[int], Sequence[int]],
        dtype: torch.dtype,
    ) -> Tensor:
        filters, low_bias = _pack(weight, bias, dtype)
        ctx.save_for_backward(clips)
        ctx.window = window
        ctx.filters = weight.shape, weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(_gather(clips, *map(list, window), dtype), filters, low_bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight_grad = bias_grad = None
        if ctx.needs_input_grad[1]:
            (clips,) = ctx.saved_tensors
            shape, dtype = ctx.filters
            rows_grad = _filters_grad(grad, clips, *map(list, ctx.window))
            weight_grad = rows_grad[:, : math.prod(shape[1:])].reshape(shape).to(dtype)
        if ctx.needs_input_grad[2]:
            bias_grad = grad.sum((0, 1), dtype=torch.float32).to(ctx.bias_dtype)
        return None, weight_grad, bias_grad, None, None


@torch.no_grad()
def _run_on_cpu(
    clips: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    num_front: int,
    dtype: torch.dtype,
) -> Tensor:
    layer = products.packed_layer(weight, bias, dtype)
    return products.patches(
        clips, layer, kernel, stride, padding, patch_grid(clips, kernel, stride, padding), num_front, dtype
    )


def _fake_on_cpu(
    clips: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    num_front: int,
    dtype: torch.dtype,
) -> Tensor:
    num_patches = math.prod(patch_grid(clips, kernel, stride, padding))
    return clips.new_empty(clips.shape[0], num_front + num_patches, weight.shape[0], dtype=dtype)


def _run_gather(
    clips: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dtype: torch.dtype,
    is_behind: bool = False,
) -> Tensor:
    from memvit.kernels.triton_patches import gather

    with torch.cuda.device_of(clips):
        return gather(clips, kernel, stride, padding, dtype, is_behind=is_behind)


def _fake_gather(
    clips: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dtype: torch.dtype,
    is_behind: bool = False,
) -> Tensor:
    num_patches = int(is_behind) + math.prod(patch_grid(clips, kernel, stride, padding))
    return clips.new_empty(clips.shape[0], num_patches, row_length(clips.shape[1], kernel), dtype=dtype)


def _run_filters_grad(grad: Tensor, clips: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Gathers inside: torch.compile of torch 2.11 would take an operator beside it for that of the forward pass, whose rows
    it would keep.
    """
    rows = _run_gather(clips, kernel, stride, padding, grad.dtype)
    return grad.flatten(0, 1).t() @ rows.flatten(0, 1)


def _fake_filters_grad(grad: Tensor, clips: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    return grad.new_empty(grad.shape[2], row_length(clips.shape[1], kernel))


# (B, channels, frames, height, width) -> (B, N, row length), or behind another row (B, 1 + N, row length)
_gather = register(
    "gather_patches(Tensor clips, int[] kernel, int[] stride, int[] padding, ScalarType dtype, bool is_behind=False) -> Tensor",
    _run_gather,
    _fake_gather,
    ON_GPUS,
)
# The gradient of tokens (B, N, C) -> that of filters (C, row length)
_filters_grad = register(
    "patch_filters_grad(Tensor grad, Tensor clips, int[] kernel, int[] stride, int[] padding) -> Tensor",
    _run_filters_grad,
    _fake_filters_grad,
    ON_GPUS,
)
# (B, channels, frames, height, width) -> (B, num_front + N, C), the first of them left as they are
_cpu_patches = register(
    "cpu_patches(Tensor clips, Tensor weight, Tensor? bias, int[] kernel, int[] stride, int[] padding, int num_front, "
    "ScalarType dtype) -> Tensor",
    _run_on_cpu,
    _fake_on_cpu,
)


@register_flop_formula(torch.ops.memvit.cpu_patches)
def _cpu_flops(clips: Sequence[int], weight: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    return 2 * out_shape[0] * out_shape[1] * math.prod(weight)
