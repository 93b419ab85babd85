"""Pooling of tokens on GPUs, written in Triton: what `memvit.kernels.pooling` computes, in one launch per kernel and stride.

Under torch.compile all that `memvit.kernels.pooling` asks for at once is one operator, opaque to the compiler, which keeps
one graph around it: `memvit::triton_pool_norm`, or, where gradients are wanted, `memvit::pool_norm` and
`memvit::pool_norm_backward`. (A `torch.library.triton_op` would be traced into, has nothing there to fuse with, and cannot
hold the kernels of Triton's interpreter.) Triton is imported at the first launch: this module can be imported everywhere.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from memvit.kernels.frozen import frozen
from memvit.kernels.ops import ON_GPUS, register
from memvit.kernels.triton_pooling_geometry import MAX_SHARED, Geometry, Job, Size3, pooling_geometry

if TYPE_CHECKING:
    from memvit.kernels.pooling import Compressions, Pooling
    from memvit.kernels.triton_pooling_forward import Launch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_CHANNELS = 1024  # of a head: one program holds them all

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_WANTED = os.environ.get("MEMVIT_GPU_KERNELS", "on")
if _WANTED not in ("on", "off"):
    raise ValueError(f"MEMVIT_GPU_KERNELS={_WANTED!r}: choose on or off")


def is_available() -> bool:
    """Whether Triton is installed and wanted. It comes with PyTorch for GPUs on Linux, not on macOS and Windows."""
    return _HAS_TRITON and _WANTED == "on"


def status() -> str:
    """What computes on GPUs, or why it is not Triton."""
    if not _HAS_TRITON:
        return "PyTorch (no Triton)"
    return "Triton" if is_available() else "PyTorch (Triton is turned off)"


def can_pool(x: Tensor, poolings: Sequence[Pooling]) -> bool:
    """Whether `triton_pool_norm` takes these: tokens on a GPU, of a dtype and width that it knows."""
    if not (x.is_cuda and is_available() and x.dtype in DTYPES):
        return False
    return max([pooling.weight.shape[0] for pooling in poolings]) <= MAX_CHANNELS


def triton_pool_norm(
    x: Tensor,
    grid: Size3,
    poolings: Sequence[Pooling],
    *,
    num_class: int,
    compressions: Compressions = (),
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Depthwise convolution, then LayerNorm over each head's channels, of the same tokens for each pooling.

    Sums and statistics are float32. Tokens and parameters get gradients, once (no second derivatives), and these repeat
    bit for bit from run to run.

    Args:
        x: (B, N, C), float32, bfloat16 or float16, N = num_class + T x H x W.
        grid: (T, H, W).
        poolings: their parameters may be of another floating dtype than x.
        num_class: 1: the first token is a class token, normed but not convolved; 0: there is none.
        compressions: for each pooling, what pools its result once more, to what goes in front of that; left out: nothing.
        dtype: of the results; left out: x's.

    Returns:
        (B, N', C) for each pooling.
    """
    assert x.shape[1] == num_class + grid[0] * grid[1] * grid[2], (x.shape, grid, num_class)
    compressions = compressions or [None] * len(poolings)
    dtype = dtype or x.dtype
    if not torch.is_grad_enabled():
        return _pool_norm_at_inference(x, grid, poolings, num_class, compressions, dtype)
    outs = _pool_norm_in_training(x.to(dtype), grid, poolings, num_class)
    for i, compression in enumerate(compressions):
        if compression is not None:
            own_grid = poolings[i].output_grid(grid)
            (first,) = _pool_norm_in_training(outs[i], own_grid, [compression], num_class)
            outs[i] = torch.cat([first, outs[i]], dim=1)
    return outs


def _pool_norm_in_training(x: Tensor, grid: Size3, poolings: Sequence[Pooling], num_class: int) -> list[Tensor]:
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


def _pool_norm_at_inference(
    x: Tensor,
    grid: Size3,
    poolings: Sequence[Pooling],
    num_class: int,
    compressions: Compressions,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Compressions too are made where they belong, and parameters are packed once."""
    layout, parts = [], []
    for target, (pooling, compression) in enumerate(zip(poolings, compressions, strict=True)):
        if compression is not None:
            parts.append(compression)
            layout += [-1, target, *pooling.output_grid(grid), *compression.stride, int(compression.causal)]
        parts.append(pooling)
        layout += [0, target, *grid, *pooling.stride, int(pooling.causal)]
    parameters = [t for part in parts for t in (part.weight, part.norm_weight, part.norm_bias)]
    eps = [part.eps for part in parts]
    return _run_frozen([x], parameters, layout, eps, num_class, dtype)


def triton_pool_norm_each(
    xs: Sequence[Tensor], grid: Size3, poolings: Sequence[Pooling], *, num_class: int, dtype: torch.dtype
) -> list[Tensor]:
    """As `triton_pool_norm`, of other tokens for each pooling, all of one shape and dtype, at inference."""
    layout = [n for i, own in enumerate(poolings) for n in (i, i, *grid, *own.stride, int(own.causal))]
    parameters = [t for own in poolings for t in (own.weight, own.norm_weight, own.norm_bias)]
    eps = [own.eps for own in poolings]
    return _run_frozen(xs, parameters, layout, eps, num_class, dtype)


def _run_frozen(
    xs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    layout: Sequence[int],
    eps: Sequence[float],
    num_class: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    if torch.compiler.is_compiling():
        return _triton_pool_norm(xs, parameters, layout, eps, num_class, dtype)
    key = "triton_pool_norm", tuple(layout), tuple(eps), num_class, len(xs)
    plan = frozen(parameters, key, lambda: _make_plan(parameters, layout, eps, num_class))
    return plan.run(xs, dtype)


class _Plan(NamedTuple):
    """What there is to launch besides the tokens: `triton_pooling_forward.plan`, and the parameters of each launch."""

    num_rows: list[int]
    launches: list[Launch]
    packed: list[Tensor]

    def run(self, xs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        from memvit.kernels.triton_pooling_forward import run

        return run(xs, self.num_rows, self.launches, self.packed, dtype)


def _make_plan(parameters: Sequence[Tensor], layout: Sequence[int], eps: Sequence[float], num_class: int) -> _Plan:
    from memvit.kernels.triton_pooling_forward import plan

    num_rows, launches = plan(tuple(_jobs(parameters, layout, eps, num_class)))
    return _Plan(num_rows, launches, [launch.pack(parameters) for launch in launches])


def _jobs(parameters: Sequence[Tensor], layout: Sequence[int], eps: Sequence[float], num_class: int) -> list[Job]:
    """Of `memvit::triton_pool_norm`'s arguments."""
    jobs = []
    for i, own_eps in enumerate(eps):
        source, target, *grid_stride, causal = layout[9 * i : 9 * i + 9]
        geometry = pooling_geometry(parameters[3 * i], grid_stride[:3], grid_stride[3:], bool(causal), num_class)
        jobs.append(Job(source, target, geometry, own_eps))
    return jobs


def _run(
    xs: list[Tensor], parameters: list[Tensor], layout: list[int], eps: list[float], num_class: int, dtype: torch.dtype
) -> list[Tensor]:
    return _make_plan(parameters, layout, eps, num_class).run(xs, dtype)


def _fake(
    xs: list[Tensor], parameters: list[Tensor], layout: list[int], eps: list[float], num_class: int, dtype: torch.dtype
) -> list[Tensor]:
    B, _, C = xs[0].shape
    num_rows: list[int] = []
    for job in _jobs(parameters, layout, eps, num_class):
        if job.target == len(num_rows):
            num_rows.append(0)
        num_rows[job.target] += job.geometry.num_out
    return [xs[0].new_empty(B, n, C, dtype=dtype) for n in num_rows]


# Parameters: filters, weight and bias of the norm of each pooling. Layout: source and target as of `Job`, grid, stride, whether
# causal.
_triton_pool_norm = register(
    "triton_pool_norm(Tensor[] xs, Tensor[] parameters, int[] layout, float[] eps, int num_class, ScalarType dtype) "
    "-> Tensor[]",
    _run,
    _fake,
    ON_GPUS,
)


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
    layout = [
        number for i in range(len(weights)) for number in (0, i, *grid, *strides[3 * i : 3 * i + 3], int(causal[i]))
    ]
    parameters = [t for parts in zip(weights, norm_weights, norm_biases, strict=True) for t in parts]
    return _make_plan(parameters, layout, eps, num_class).run([x], x.dtype)


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
    from memvit.kernels.triton_pooling_backward import filter_grad, norm_backward, pack_filters, token_grad

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
