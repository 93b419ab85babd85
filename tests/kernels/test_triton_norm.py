"""Triton's LayerNorm beside its definition: on the GPU where there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from compiling import compiling, ignores_defaults
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from interpreted import DEVICE, exactly, needs_triton, relative_error
from memvit.kernels.norm import add_layer_norm, layer_norm
from memvit.kernels.triton_norm import can_norm, triton_add_layer_norm, triton_layer_norm
from memvit.models.checkpointing import Recompute, run_block

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


class Case(NamedTuple):
    """Random tokens, something that is added to them (None: nothing), and a LayerNorm.

    Attributes:
        autocast: its dtype; None: it is off.
        num_programs: that share the sums of the parameters' gradients.
        make: tokens of that shape, in float32, which lie in memory as its name says.
    """

    x_dtype: torch.dtype = F32
    added_dtype: torch.dtype | None = F32
    autocast: torch.dtype | None = None
    parameter_dtype: torch.dtype = F32
    shape: tuple[int, ...] = (3, 7, 24)
    eps: float = 1e-6
    num_programs: int = 100
    make: Callable[[tuple[int, ...]], Tensor] = partial(torch.randn, device=DEVICE)


def make_norm(channels: int, dtype: torch.dtype = F32, eps: float = 1e-6) -> nn.LayerNorm:
    norm = nn.LayerNorm(channels, eps)
    nn.init.normal_(norm.weight, 1, 0.3), nn.init.normal_(norm.bias)
    return norm.to(DEVICE, dtype)


def part_of_wider_rows(shape: tuple[int, ...]) -> Tensor:
    *batch, channels = shape
    return torch.randn(*batch, 3 * channels, device=DEVICE)[..., channels : 2 * channels]


def without_the_first_token(shape: tuple[int, ...]) -> Tensor:
    B, N, C = shape
    return torch.randn(B, N + 1, C, device=DEVICE)[:, 1:]


def channels_first(shape: tuple[int, ...]) -> Tensor:
    B, N, C = shape
    return torch.randn(B, C, N, device=DEVICE).transpose(1, 2)


# What the other process runs


def errors(case: Case) -> dict[str, tuple[torch.dtype, float]]:
    """Dtype and largest relative error, against float64, of everything that is computed.

    What is normed is the rounded sum, so that is what the definition starts from.
    """
    torch.manual_seed(0)
    norm = make_norm(case.shape[-1], case.parameter_dtype, case.eps)
    x = case.make(case.shape).to(case.x_dtype).requires_grad_()
    inputs = {"x": x, "weight": norm.weight, "bias": norm.bias}
    autocast = torch.autocast(DEVICE, case.autocast or BF16, enabled=case.autocast is not None)
    if case.added_dtype is None:
        with autocast:
            outs = {"out": triton_layer_norm(x, norm)}
        total = exactly(x)
    else:
        inputs["added"] = added = case.make(case.shape).to(case.added_dtype).requires_grad_()
        with autocast:
            outs = dict(zip(("total", "out"), triton_add_layer_norm(x, added, norm), strict=True))
        total = exactly(outs["total"])
    with patch("memvit.kernels.triton_norm_kernels.NUM_SUM_PROGRAMS", case.num_programs):
        out_grads = [torch.randn_like(out) for out in outs.values()]
        grads = torch.autograd.grad(list(outs.values()), list(inputs.values()), out_grads)

    weight, bias = exactly(norm.weight), exactly(norm.bias)
    expected_outs = {"out": F.layer_norm(total, case.shape[-1:], weight, bias, case.eps)}
    if "total" in outs:
        expected_outs = {"total": total} | expected_outs
    sources = {"x": total, "weight": weight, "bias": bias, "added": total}
    expected_grads = torch.autograd.grad(
        list(expected_outs.values()), [sources[name] for name in inputs], [grad.double() for grad in out_grads]
    )
    if "added" in inputs:
        expected_outs["total"] = x.double() + inputs["added"].double()
    names = [*outs, *(f"grad of {name}" for name in inputs)]
    pairs = zip((*outs.values(), *grads), (*expected_outs.values(), *expected_grads), strict=True)
    return {
        name: (actual.dtype, relative_error(actual, expected))
        for name, (actual, expected) in zip(names, pairs, strict=True)
    }


def without_gradients() -> tuple[bool, float]:
    """Whether any are wanted from the results, and how these differ from those with gradients."""
    norm, x, added = make_norm(24), torch.randn(5, 24, device=DEVICE), torch.randn(5, 24, device=DEVICE)
    wanted = triton_layer_norm(x, norm), *triton_add_layer_norm(x, added, norm)
    with torch.no_grad():
        found = triton_layer_norm(x, norm), *triton_add_layer_norm(x, added, norm)
    difference = max((a - b).abs().max().item() for a, b in zip(found, wanted, strict=True))
    return any(t.requires_grad for t in found), difference


def gradients_of_a_part(used: str, wanted: tuple[str, ...]) -> float:
    """Error of the gradients where only one result is used, and only some inputs want gradients."""
    norm = make_norm(24).requires_grad_(False)
    inputs = {
        "x": torch.randn(5, 24, device=DEVICE),
        "added": torch.randn(5, 24, device=DEVICE).bfloat16(),
        "weight": norm.weight,
        "bias": norm.bias,
    }
    leaves = [inputs[name].requires_grad_() for name in wanted]
    total, out = triton_add_layer_norm(inputs["x"], inputs["added"], norm)
    grads = torch.autograd.grad({"total": total, "out": out}[used].pow(3).sum(), leaves)
    assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in leaves]
    exact = {name: exactly(t) for name, t in inputs.items()}
    total = exact["x"] + exact["added"]
    out = F.layer_norm(total, (24,), exact["weight"], exact["bias"], 1e-6)
    expected = torch.autograd.grad({"total": total, "out": out}[used].pow(3).sum(), [exact[name] for name in wanted])
    return max(map(relative_error, grads, expected))


def without_rows() -> tuple[torch.Size, Tensor]:
    """The shape of the norm of no rows, and the gradients of its parameters."""
    norm = make_norm(24)
    out = triton_layer_norm(torch.empty(0, 24, device=DEVICE), norm)
    return out.shape, torch.stack(torch.autograd.grad(out.sum(), [norm.weight, norm.bias])).cpu()


def error_under_checkpointing(recompute: Recompute) -> float:
    """Of a block's gradients, against those where everything is kept."""
    torch.manual_seed(0)
    norms = [make_norm(16), make_norm(16)]
    layers = [nn.Linear(16, 16, device=DEVICE) for _ in range(2)]
    x = torch.randn(2, 5, 16, device=DEVICE, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        total, normed = triton_add_layer_norm(x, layers[0](triton_layer_norm(x, norms[0])), norms[1])
        return total + layers[1](normed)

    leaves = [x, *(p for module in (*norms, *layers) for p in module.parameters())]
    expected = torch.autograd.grad(block(x).pow(2).sum(), leaves)
    actual = torch.autograd.grad(run_block(block, recompute, 0.0, x).pow(2).sum(), leaves)
    return max(map(relative_error, actual, expected))


CASES = {
    "alone": Case(added_dtype=None),
    "alone_in_bfloat16": Case(BF16, None),
    "alone_under_autocast": Case(F32, None, autocast=BF16),
    "alone_under_another_autocast": Case(BF16, None, autocast=F16),
    "sum": Case(),
    "sum_in_bfloat16": Case(BF16, BF16),
    "sum_in_float16": Case(F16, F16),
    "residual_stream_under_autocast": Case(F32, BF16, autocast=BF16),
    "float32_added_to_bfloat16": Case(BF16, F32),
    "two_low_precisions": Case(F16, BF16),
    "parameters_in_bfloat16": Case(F32, BF16, autocast=BF16, parameter_dtype=BF16),
    "several_steps_of_a_program": Case(shape=(301, 24), num_programs=2),
    "wide_rows": Case(F32, BF16, shape=(3, 1, 4096)),
    "one_row": Case(shape=(24,)),
    "no_eps": Case(shape=(7, 24), eps=0.0),
    "part_of_wider_rows": Case(added_dtype=None, make=part_of_wider_rows),
    "sum_of_parts_of_wider_rows": Case(make=part_of_wider_rows),
    "without_the_first_token": Case(make=without_the_first_token),
    "channels_first": Case(added_dtype=None, make=channels_first),
    "channels_first_of_one_stream": Case(shape=(1, 7, 24), make=channels_first),
}


@needs_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_norms_sums_and_gradients_are_as_defined(process: ProcessPoolExecutor, case: Case) -> None:
    found = process.submit(errors, case).result()
    total_dtype = torch.promote_types(case.x_dtype, case.added_dtype or case.x_dtype)
    dtypes: dict[str, Any] = {"out": case.autocast or total_dtype, "total": total_dtype, "grad of x": case.x_dtype}
    dtypes |= {
        "grad of added": case.added_dtype,
        "grad of weight": case.parameter_dtype,
        "grad of bias": case.parameter_dtype,
    }
    for name, (dtype, error) in found.items():
        assert dtype == dtypes[name], name
        # One rounding on the way out (the interpreter cuts bfloat16 off: twice the error).
        assert error < (2e-6 if dtype == F32 else torch.finfo(dtype).eps), name


@needs_triton
def test_results_without_gradients_are_the_same(process: ProcessPoolExecutor) -> None:
    wants_gradients, difference = process.submit(without_gradients).result()
    assert not wants_gradients
    assert difference == 0


@needs_triton
@pytest.mark.parametrize(
    ("used", "wanted"),
    [
        ("total", ("x", "added")),
        ("total", ("added",)),
        ("out", ("x", "added")),
        ("out", ("x",)),
        ("out", ("added", "bias")),
        ("out", ("weight",)),
    ],
)
def test_gradients_of_what_is_used_reach_what_wants_them(
    process: ProcessPoolExecutor, used: str, wanted: tuple[str, ...]
) -> None:
    assert process.submit(gradients_of_a_part, used, wanted).result() < torch.finfo(BF16).eps


@needs_triton
def test_no_rows_give_no_rows_and_parameters_no_gradient(process: ProcessPoolExecutor) -> None:
    shape, grads = process.submit(without_rows).result()
    assert shape == (0, 24)
    assert grads.shape == (2, 24)
    assert not grads.any()


@needs_triton
@pytest.mark.parametrize("recompute", ["blocks", "selective"])
def test_gradients_are_the_same_under_checkpointing(process: ProcessPoolExecutor, recompute: Recompute) -> None:
    assert process.submit(error_under_checkpointing, recompute).result() == 0


@needs_triton
@ignores_defaults
@pytest.mark.parametrize(
    ("channels", "x_dtype", "added_dtype"), [(96, F32, None), (384, BF16, BF16), (768, F32, BF16), (4096, F32, BF16)]
)
def test_kernels_compile_for_gpus_that_are_not_here_and_keep_to_registers(
    channels: int, x_dtype: torch.dtype, added_dtype: torch.dtype | None
) -> None:
    from memvit.kernels import triton_norm_kernels

    x, out, weight = (
        torch.empty(9, channels, dtype=x_dtype),
        torch.empty(9, channels, dtype=BF16),
        torch.empty(channels),
    )
    added = None if added_dtype is None else torch.empty(9, channels, dtype=added_dtype)
    total, later = (None, None) if added is None else (x, weight)
    with compiling(triton_norm_kernels) as compiled:
        triton_norm_kernels.forward(x, added, total, later, weight, weight, 1e-6, out)
        triton_norm_kernels.backward(x, weight, 1e-6, out, total, x, added, needs_parameter_grads=True)
    assert [kernel.spilled_bytes for kernel in compiled] == [0, 0]


def test_what_is_on_a_cpu_is_left_to_others() -> None:
    x, norm = torch.randn(3, 24), nn.LayerNorm(24)
    assert not can_norm(x, None, norm)
    torch.testing.assert_close(layer_norm(x, norm), norm(x))
    total, out = add_layer_norm(x, x, norm)
    torch.testing.assert_close((total, out), (2 * x, norm(2 * x)))


@needs_triton
def test_the_kernels_take_what_they_can() -> None:
    with FakeTensorMode(), torch.device("cuda"):  # tensors on a GPU that need none
        x, norm = torch.empty(2, 3, 24), nn.LayerNorm(24)
        assert can_norm(x, None, norm)
        assert can_norm(x, x.bfloat16(), norm)
        assert can_norm(x.half(), None, nn.LayerNorm(24, dtype=BF16))
        refused = {
            "a class of its own": (x, None, type("Norm", (nn.LayerNorm,), {})(24)),
            "no weight": (x, None, nn.LayerNorm(24, elementwise_affine=False)),
            "no bias": (x, None, nn.LayerNorm(24, bias=False)),
            "two dimensions": (x, None, nn.LayerNorm((3, 24))),
            "too wide": (torch.empty(3, 5000), None, nn.LayerNorm(5000)),
            "float64": (x.double(), None, norm),
            "float64 parameters": (x, None, nn.LayerNorm(24, dtype=torch.float64)),
            "float64 added": (x, x.double(), norm),
            "another shape": (x, x[:1], norm),
            "another device": (x, None, nn.LayerNorm(24, device="cpu")),
            "added on another device": (x, x.cpu(), norm),
        }
        assert [name for name, inputs in refused.items() if can_norm(*inputs)] == []


def test_without_triton_nothing_breaks_at_import() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from memvit.kernels import norm, triton_norm\n"
        "assert not triton_norm.is_available()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(DEVICE == "cpu", reason="there is no GPU")
def test_on_a_gpu_the_kernels_run_and_compiled_code_does_without() -> None:
    norm, x = make_norm(96), torch.randn(5, 7, 96, device=DEVICE, requires_grad=True)
    with torch.autocast("cuda", BF16):
        total, out = add_layer_norm(x, x, norm)
        alone = layer_norm(x, norm)
        compiled = torch.compile(layer_norm, backend="eager", fullgraph=True)(x, norm)
    assert (total.dtype, out.dtype, alone.dtype, compiled.dtype) == (F32, BF16, BF16, F32)
    torch.testing.assert_close(total, 2 * x, rtol=0, atol=0)
    torch.testing.assert_close(alone, compiled, rtol=2e-2, atol=2e-2, check_dtype=False)
