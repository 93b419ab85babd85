"""Linear layers, and the two of an MLP with their GELU.

Where no gradients are wanted, they run on x86 CPUs on AMX's tiles or AVX2 (`products`), otherwise on oneDNN, with weights
packed once: twice as fast in float32 as PyTorch's default on processors that MKL does not favour, and GELU costs
nothing extra. Elsewhere they are PyTorch's own; on GPUs, where no gradients are wanted, with weights converted once where
autocast would convert them at every step, and in bfloat16 with GELU in the launch of the first layer.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from memvit.kernels import cpu, products, triton_linear
from memvit.kernels.backend import compute_dtype, use_reference
from memvit.kernels.frozen import frozen
from memvit.kernels.ops import register

# Hidden activations of more bytes are worked through in parts: large blocks of memory come fresh from the system each time,
# and touching their pages for the first time costs more than the multiplication.
_MAX_HIDDEN_BYTES = 8 << 20


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster at inference on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        dtype = packed_dtype(x, self)
        if dtype is None:
            weights = _cast_weights(x, self)
            return super().forward(x) if weights is None else F.linear(x.to(weights[0].dtype), *weights)
        return _linear(x, self.weight, self.bias, dtype)


def mlp(x: Tensor, fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> Tensor:
    """fc2(act(fc1(x))): (..., dim) -> (..., out_dim)."""
    dtype = packed_dtype(x, fc1, fc2) if type(act) is nn.GELU and act.approximate == "none" else None
    if dtype is None:
        hidden = gelu_linear(x, fc1, act)
        return fc2(act(fc1(x)) if hidden is None else hidden)
    return _mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, dtype)


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, out_dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., out_dim)."""
        if not (self.training and self.drop.p):
            return mlp(x, self.fc1, self.act, self.fc2)
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


# Settled when this is imported, because torch.compile cannot trace the questions.
_IS_X86 = platform.machine() in ("x86_64", "AMD64")
_HAS_ONEDNN = _IS_X86 and torch.backends.mkldnn.is_available()
_HAS_PACKED = _HAS_ONEDNN and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
)
_HAS_BFLOAT16 = _HAS_PACKED and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _cast_weights(x: Tensor, layer: nn.Linear) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias in autocast's dtype on a GPU, converted once; None: leave it to PyTorch."""
    if not _is_on_gpu(x) or torch.is_grad_enabled() or torch.compiler.is_compiling() or use_reference():
        return None
    weight, bias, dtype = layer.weight, layer.bias, compute_dtype(x)
    if dtype == weight.dtype or type(weight) is not nn.Parameter or not torch.is_autocast_enabled(x.device.type):
        return None
    parameters = [weight] if bias is None else [weight, bias]
    return frozen(parameters, ("cast", dtype), lambda: (weight.to(dtype), None if bias is None else bias.to(dtype)))


def linear_each(xs: Sequence[Tensor], layers: Sequence[nn.Module]) -> list[Tensor]:
    """A layer for each of several tokens, all of one shape, beside other work: in bfloat16 on GPUs, where no gradients are wanted
    and tokens are few, one launch that leaves most of the GPU to that.
    """
    found = [bfloat16_weights(x, layer) for x, layer in zip(xs, layers, strict=True)]
    weights = [own for own in found if own is not None]
    xs = [x.to(torch.bfloat16) for x in xs] if len(weights) == len(xs) else xs
    if len(weights) < len(xs) or not triton_linear.can_multiply(xs, [weight for weight, _ in weights]):
        return [layer(x) for x, layer in zip(xs, layers, strict=True)]
    return triton_linear.triton_linear_each(xs, [weight for weight, _ in weights], [bias for _, bias in weights])


def gelu_linear(x: Tensor, layer: nn.Module, act: nn.Module) -> Tensor | None:
    """act(layer(x)) in bfloat16 on a GPU, where no gradients are wanted, in one launch; None: leave it to these.

    cuBLAS has GELU with a hyperbolic tangent alone, which differs by at most 5e-4.
    """
    if type(act) is not nn.GELU or act.approximate != "none":
        return None
    weights = bfloat16_weights(x, layer)
    if weights is None:
        return None
    weight, bias = weights
    rows = x.to(torch.bfloat16).reshape(-1, x.shape[-1])
    return torch._addmm_activation(bias, rows, weight.t(), use_gelu=True).unflatten(0, x.shape[:-1])


def bfloat16_weights(x: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Weight and bias for products with x in bfloat16 on a GPU, where no gradients are wanted; None: leave it to the layer."""
    if not _is_on_gpu(x) or torch.is_grad_enabled() or torch.compiler.is_compiling() or use_reference():
        return None
    if type(layer) is not Linear or type(layer.weight) is not nn.Parameter or compute_dtype(x) != torch.bfloat16:
        return None
    weight, bias = _cast_weights(x, layer) or (layer.weight, layer.bias)
    return (weight, bias) if bias is not None and weight.dtype == bias.dtype == torch.bfloat16 else None


def _is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def is_available() -> bool:
    """Whether PyTorch has oneDNN's packed linear layers here."""
    return _HAS_PACKED


def lacks_bfloat16() -> bool:
    """Whether PyTorch has no fast products of bfloat16 for this processor, as far as can be told (of x86 alone)."""
    return _HAS_PACKED and not _HAS_BFLOAT16


def packed_dtype(x: Tensor, *layers: nn.Module) -> torch.dtype | None:
    """The dtype to compute in with packed weights; None: leave it to PyTorch."""
    if x.device.type != "cpu" or use_reference() or not (_HAS_PACKED or cpu.has_products()) or x.dim() < 2:
        return None
    dtype = compute_dtype(x)
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    width = x.shape[-1]
    for layer in layers:
        # Whatever replaces the layer (adapters) or its weight (quantisation) computes in its own way.
        if type(layer) is not Linear or type(layer.weight) is not nn.Parameter:
            return None
        if layer.weight.shape[-1] != width:
            return None  # which says so
        width = layer.weight.shape[0]
        if not torch.compiler.is_compiling() and layer.weight.is_inference():
            return None  # whose changes cannot be seen
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in layer.parameters())):
            return None
        if layer.weight.dtype not in (torch.float32, torch.bfloat16) or layer.weight.device.type != "cpu":
            return None
    return dtype


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """For oneDNN: in float32, where it has no products of bfloat16 for this processor (PyTorch's take seven times as long)."""
    dtype = dtype if _HAS_BFLOAT16 else torch.float32

    def pack() -> tuple[Tensor, Tensor | None]:
        cast = weight.detach().to(dtype).contiguous()
        packed = torch.ops.mkldnn._reorder_linear_weight(cast, x.numel() // x.shape[-1])
        return packed, None if bias is None else bias.detach().to(dtype).contiguous()

    return frozen([weight] if bias is None else [weight, bias], ("linear", dtype), pack)


@torch.no_grad()
def _run_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    if cpu.has_products():
        return products.linear(x, products.packed_layer(weight, bias, dtype), dtype)
    packed, bias = _packed(x, weight, bias, dtype)
    rows = x.to(dtype).to(packed.dtype).contiguous()
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "").to(dtype)


@torch.no_grad()
def _run_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if cpu.has_products():
        layers = products.packed_layer(weight1, bias1, dtype), products.packed_layer(weight2, bias2, dtype)
        return products.mlp(x, *layers, dtype)
    packed1, bias1 = _packed(x, weight1, bias1, dtype)
    packed2, bias2 = _packed(x, weight2, bias2, dtype)

    def run(part: Tensor) -> Tensor:
        hidden = torch.ops.mkldnn._linear_pointwise(part, packed1, bias1, "gelu", [], "none")
        return torch.ops.mkldnn._linear_pointwise(hidden, packed2, bias2, "none", [], "")

    rows = x.to(dtype).to(packed1.dtype).reshape(-1, x.shape[-1])
    rows_at_once = max(_MAX_HIDDEN_BYTES // (weight1.shape[0] * packed1.dtype.itemsize), 1)
    if len(rows) <= 2 * rows_at_once:
        return run(rows).to(dtype).unflatten(0, x.shape[:-1])
    out = rows.new_empty(len(rows), weight2.shape[0], dtype=dtype)
    for start in range(0, len(rows), rows_at_once):
        out[start : start + rows_at_once] = run(rows[start : start + rows_at_once])
    return out.unflatten(0, x.shape[:-1])


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype)


def _fake_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight2.shape[0], dtype=dtype)


_linear = register(
    "linear(Tensor x, Tensor weight, Tensor? bias, ScalarType dtype) -> Tensor", _run_linear, _fake_linear
)
_mlp = register(
    "mlp(Tensor x, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, ScalarType dtype) -> Tensor",
    _run_mlp,
    _fake_mlp,
)


@register_flop_formula(torch.ops.memvit.linear)
def _linear_flops(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]


@register_flop_formula(torch.ops.memvit.mlp)
def _mlp_flops(
    x: Sequence[int], weight1: Sequence[int], bias1: object, weight2: Sequence[int], *_: object, **__: object
) -> int:
    return 2 * math.prod(x[:-1]) * (math.prod(weight1) + math.prod(weight2))
