"""Linear layers, MLPs and patch embeddings on the kernels for CPUs, with weights packed once.

On AMX's tiles factors are sums of bfloat16 numbers (`tiles`). On AVX2, which has no products of these, they are floats, also
where bfloat16 is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memvit.kernels import cpu, tiles
from memvit.kernels.frozen import frozen

_PANEL = 24  # columns of csrc/panels.inl
_ROWS_FOR_A_THREAD = 96  # fewer, and the two layers of an MLP are faster one after the other


class _LinearCall(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "in_features", "out_features")),
        ("x", c_void_p),
        ("x_stride", c_int64),
        *((name, c_void_p) for name in ("weight", "bias", "out")),
        *((name, c_int64) for name in ("out_stride", "group_rows", "front_rows")),
        *((name, c_int32) for name in ("dtype", "out_dtype", "parts", "num_threads", "has_gelu", "reserved")),
    ]


class _PatchCall(Structure):
    _fields_ = [
        ("linear", _LinearCall),
        ("clips", c_void_p),
        ("strides", c_int64 * 4),
        *((name, c_int64) for name in ("batch", "channels")),
        *((name, c_int64 * 3) for name in ("size", "kernel", "stride", "padding", "grid")),
    ]


class _MLPCall(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "in_features", "hidden_features", "out_features")),
        ("x", c_void_p),
        ("x_stride", c_int64),
        *((name, c_void_p) for name in ("weight1", "bias1", "weight2", "bias2", "out")),
        ("out_stride", c_int64),
        *((name, c_int32) for name in ("dtype", "out_dtype", "parts", "num_threads")),
        ("added", c_void_p),
        ("added_stride", c_int64),
        *((name, c_void_p) for name in ("norm_weight", "norm_bias")),
        ("eps", c_float),
        ("added_dtype", c_int32),
    ]


class PackedLinear(NamedTuple):
    """A linear layer's parameters as `linear` and `mlp` take them.

    Attributes:
        weight: of `tiles.pack_weight` or `pack_weight`.
        bias: float32 (out_features,), or none.
        out_features: of the layer.
        parts: bfloat16 numbers for each of its weights; 0: it is a float.
    """

    weight: Tensor
    bias: Tensor | None
    out_features: int
    parts: int


def pack_weight(weight: Tensor) -> Tensor:
    """A linear layer's weight, (out_features, in_features), as float32 (panels of 24 columns, in_features, 24)."""
    padded = F.pad(weight.float(), (0, 0, 0, -weight.shape[0] % _PANEL))
    return padded.unflatten(0, (-1, _PANEL)).transpose(1, 2).contiguous()


def packed_layer(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> PackedLinear:
    """A layer's parameters for products computed in `dtype`, packed once for as long as they do not change.

    Args:
        weight: (out_features, ...), what follows being flattened.
    """
    parts = cpu.num_parts(dtype) if cpu.has_tiles() else 0

    def pack() -> PackedLinear:
        matrix = weight.detach().flatten(1)
        return PackedLinear(
            tiles.pack_weight(matrix, parts) if parts else pack_weight(matrix),
            None if bias is None else bias.detach().float().contiguous(),
            weight.shape[0],
            parts,
        )

    return frozen([weight] if bias is None else [weight, bias], ("products", parts), pack)


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., C) -> (rows, C) float32 or bfloat16, without a copy where the rows lie evenly."""
    rows = x if x.dim() == 2 else x.flatten(0, -2)
    if rows.dtype not in (torch.float32, dtype):
        rows = rows.to(dtype)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def linear(x: Tensor, layer: PackedLinear, dtype: torch.dtype, *, gelu: bool = False) -> Tensor:
    """(..., in_features), floating point -> (..., out_features) of `dtype`, through GELU if wanted; see `cpu.has_products`."""
    rows, width = _rows(x, dtype), layer.out_features
    out = x.new_empty(*x.shape[:-1], width, dtype=dtype)
    call = _linear_call(layer, out, rows.dtype)
    call.rows, call.in_features = rows.shape
    call.x, call.x_stride, call.group_rows, call.has_gelu = rows.data_ptr(), rows.stride(0), max(len(rows), 1), gelu
    cpu.run("linear", call)
    return out


def patches(
    clips: Tensor,
    layer: PackedLinear,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    grid: Sequence[int],
    num_front: int,
    dtype: torch.dtype,
) -> Tensor:
    """A layer on the windows of a convolution; see `cpu.has_products`.

    Args:
        clips: (B, channels, frames, height, width), float32 or bfloat16.
        layer: on windows (channels, time, height, width), flattened.
        grid: of the windows.
        num_front: rows in front of each clip's, which are left alone.

    Returns:
        (B, num_front + windows, out_features).
    """
    clips = clips if clips.stride(-1) == 1 else clips.contiguous()
    B, channels, *size = clips.shape
    out = clips.new_empty(B, num_front + math.prod(grid), layer.out_features, dtype=dtype)
    call = _PatchCall(_linear_call(layer, out, clips.dtype), clips.data_ptr())
    call.linear.front_rows = num_front
    call.strides[:], call.batch, call.channels = clips.stride()[:4], B, channels
    call.size[:], call.grid[:] = size, grid
    call.kernel[:], call.stride[:], call.padding[:] = kernel, stride, padding
    cpu.run("patches", call)
    return out


def _linear_call(layer: PackedLinear, out: Tensor, dtype: torch.dtype) -> _LinearCall:
    call = _LinearCall(out_features=layer.out_features, weight=layer.weight.data_ptr(), bias=_address(layer.bias))
    call.out, call.out_stride = out.data_ptr(), layer.out_features
    call.dtype, call.out_dtype = cpu.DTYPES[dtype], cpu.DTYPES[out.dtype]
    call.parts, call.num_threads = layer.parts, torch.get_num_threads()
    return call


def mlp(x: Tensor, layer1: PackedLinear, layer2: PackedLinear, dtype: torch.dtype) -> Tensor:
    """layer2(gelu(layer1(x))): (..., in_features) -> (..., out_features) of `dtype`; see `cpu.has_products`."""
    rows = _rows(x, dtype)
    if _is_short(rows):
        return linear(linear(x, layer1, dtype, gelu=True), layer2, dtype)
    out = x.new_empty(*x.shape[:-1], layer2.out_features, dtype=dtype)
    cpu.run("mlp", _mlp_call(rows, layer1, layer2, out))
    return out


def residual_mlp(
    x: Tensor,
    added: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    layer1: PackedLinear,
    layer2: PackedLinear,
    dtype: torch.dtype,
) -> Tensor:
    """t + layer2(gelu(layer1(norm(t)))) of t = x + added: (..., dim), in the dtype of x; see `cpu.has_products`.

    Args:
        x, added: both float32, or `added` bfloat16.
        norm_weight, norm_bias, eps: of the LayerNorm, float32; dim is a multiple of `cpu.lanes()`.
        dtype: to compute in: float32, if both are, or bfloat16.
    """
    rows, added_rows = _rows(x, x.dtype), _rows(added, added.dtype)
    if _is_short(rows) or added.dtype != dtype:
        total, normed = cpu.layer_norm(x, added, norm_weight, norm_bias, eps, dtype)
        return total.add_(mlp(normed, layer1, layer2, dtype))
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    call = _mlp_call(rows, layer1, layer2, out)
    call.added, call.added_stride = added_rows.data_ptr(), added_rows.stride(0)
    call.norm_weight, call.norm_bias, call.eps = norm_weight.data_ptr(), norm_bias.data_ptr(), eps
    call.added_dtype = cpu.DTYPES[added.dtype]
    cpu.run("mlp", call)
    return out


def _is_short(rows: Tensor) -> bool:
    """Whether an MLP's two layers, one after the other, share out by columns, so that threads read every weight once."""
    return len(rows) < _ROWS_FOR_A_THREAD * torch.get_num_threads()


def _mlp_call(rows: Tensor, layer1: PackedLinear, layer2: PackedLinear, out: Tensor) -> _MLPCall:
    call = _MLPCall(*rows.shape, layer1.out_features, layer2.out_features, rows.data_ptr(), rows.stride(0))
    call.weight1, call.bias1 = layer1.weight.data_ptr(), _address(layer1.bias)
    call.weight2, call.bias2 = layer2.weight.data_ptr(), _address(layer2.bias)
    call.out, call.out_stride = out.data_ptr(), layer2.out_features
    call.dtype, call.out_dtype = cpu.DTYPES[rows.dtype], cpu.DTYPES[out.dtype]
    call.parts, call.num_threads = layer1.parts, torch.get_num_threads()
    return call
