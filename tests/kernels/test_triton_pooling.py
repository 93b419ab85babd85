"""Triton's pooling beside an independent definition: on the GPU where there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from compiling import compiling, ignores_defaults
from torch import Tensor

from interpreted import DEVICE, compile_one_graph, exactly, needs_triton, relative_error
from memvit.benchmarks import kernels
from memvit.kernels.pooling import Pooling
from memvit.kernels.triton_pooling import can_pool, triton_pool_norm, triton_pool_norm_each
from memvit.kernels.triton_pooling_geometry import Job, pooling_geometry


class Case(NamedTuple):
    """Poolings of random tokens and filters."""

    grid: tuple[int, int, int]
    strides: tuple[tuple[int, int, int], ...]
    kernel: tuple[int, int, int] = (3, 3, 3)
    channels: int = 8
    num_heads: int = 1
    num_streams: int = 1
    num_class: int = 1
    causal: bool = False
    dtype: torch.dtype = torch.float32

    def tokens(self) -> Tensor:
        t, h, w = self.grid
        x = torch.randn(self.num_streams, self.num_class + t * h * w, self.num_heads * self.channels)
        return x.to(DEVICE, self.dtype).requires_grad_()

    def poolings(self) -> list[Pooling]:
        c = self.channels

        def parameter(*size: int, mean: float = 0.0) -> Tensor:
            return (mean + 0.3 * torch.randn(size)).to(DEVICE).requires_grad_()

        return [
            Pooling(parameter(c, 1, *self.kernel), stride, parameter(c, mean=1), parameter(c), 1e-6, self.causal)
            for stride in self.strides
        ]


def parameters(poolings: list[Pooling]) -> list[Tensor]:
    return [t for p in poolings for t in (p.weight, p.norm_weight, p.norm_bias)]


def definition(x: Tensor, grid: tuple[int, int, int], pooling: Pooling, num_class: int) -> Tensor:
    """Head by head as volumes, channels first, padded by hand."""
    B, _, C = x.shape
    c, _, kt, kh, kw = pooling.weight.shape
    volume = x[:, num_class:].reshape(B, *grid, C // c, c).permute(0, 4, 5, 1, 2, 3).flatten(0, 1)
    along_time = (kt - 1, 0) if pooling.causal else (kt // 2, kt // 2)
    volume = F.pad(volume, (kw // 2, kw // 2, kh // 2, kh // 2, *along_time))
    pooled = F.conv3d(volume, pooling.weight, stride=pooling.stride, groups=c)
    pooled = pooled.unflatten(0, (B, -1)).flatten(3).permute(0, 3, 1, 2)  # (B, N', heads, c)
    pooled = torch.cat([x[:, :num_class].unflatten(2, (-1, c)), pooled], dim=1)
    return F.layer_norm(pooled, (c,), pooling.norm_weight, pooling.norm_bias, pooling.eps).flatten(2)


def exact_poolings(poolings: list[Pooling]) -> list[Pooling]:
    return [
        p._replace(weight=exactly(p.weight), norm_weight=exactly(p.norm_weight), norm_bias=exactly(p.norm_bias))
        for p in poolings
    ]


# What the other process runs


@contextmanager
def few(num: int) -> Iterator[None]:
    """Up to so many tokens are made by a program each."""
    from memvit.kernels import triton_pooling_few, triton_pooling_forward

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_pooling_few, "MAX_FEW", num)
        triton_pooling_forward.plan.cache_clear()
        try:
            yield
        finally:
            triton_pooling_forward.plan.cache_clear()


@torch.no_grad()
def error_of_few(case: Case) -> float:
    """The largest relative error of outputs, against float64, where all tokens are few."""
    torch.manual_seed(0)
    x, poolings = case.tokens(), case.poolings()
    with few(1 << 30):
        outs = triton_pool_norm(x, case.grid, poolings, num_class=case.num_class)
    expected = [definition(exactly(x), case.grid, pooling, case.num_class) for pooling in exact_poolings(poolings)]
    return max(map(relative_error, outs, expected))


def errors(case: Case) -> tuple[float, float]:
    """The largest relative error of outputs and of gradients, against float64."""
    torch.manual_seed(0)
    x, poolings = case.tokens(), case.poolings()
    with few(0):
        outs = triton_pool_norm(x, case.grid, poolings, num_class=case.num_class)
    assert all(out.dtype == case.dtype for out in outs)
    grads = [torch.randn_like(out) for out in outs]
    actual = torch.autograd.grad(outs, [x, *parameters(poolings)], grads)
    assert [t.dtype for t in actual] == [case.dtype] + [torch.float32] * (len(actual) - 1)
    x, poolings = exactly(x), exact_poolings(poolings)
    expected_outs = [definition(x, case.grid, pooling, case.num_class) for pooling in poolings]
    expected = torch.autograd.grad(expected_outs, [x, *parameters(poolings)], [grad.double() for grad in grads])
    return max(map(relative_error, outs, expected_outs)), max(map(relative_error, actual, expected))


def errors_with_times(case: Case, times: int) -> tuple[float, float]:
    """Where each program of the kernel has so many output times."""
    from memvit.kernels import triton_pooling_forward

    usual = triton_pooling_forward.Sliding.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_pooling_forward.Sliding, "of", lambda *sizes: usual(*sizes)._replace(times=times))
        return errors(case)


def errors_of_a_part_of_wider_tokens() -> tuple[float, float]:
    case = Case((2, 3, 3), ((1, 1, 1),))
    wide, poolings = torch.randn(2, 19, 24, device=DEVICE, requires_grad=True), case.poolings()
    part = wide.chunk(3, dim=-1)[1]
    (out,) = triton_pool_norm(part, case.grid, poolings, num_class=1)
    exact = exactly(wide)
    expected = definition(exact.chunk(3, dim=-1)[1], case.grid, exact_poolings(poolings)[0], 1)
    (actual_grad,) = torch.autograd.grad(out.square().sum(), wide)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), exact)
    return relative_error(out, expected), relative_error(actual_grad, expected_grad)


def gradients_for_remembered_tokens() -> tuple[bool, list[float]]:
    """Tokens want no gradient, and of two outputs one is used."""
    case = Case((2, 3, 3), ((1, 1, 1), (1, 1, 1)))
    x, poolings = case.tokens().detach(), case.poolings()
    out = triton_pool_norm(x, case.grid, poolings, num_class=1)[1]
    actual = torch.autograd.grad(out.square().sum(), parameters(poolings), materialize_grads=True)
    used = exact_poolings(poolings)[1:]
    expected = torch.autograd.grad(definition(x.double(), case.grid, used[0], 1).square().sum(), parameters(used))
    return not any(grad.any() for grad in actual[:3]), list(map(relative_error, actual[3:], expected))


def errors_with_compressions(wants_gradients: bool) -> tuple[float, float]:
    """Of keys and values behind what they are compressed to, two poolings of one geometry among them, and of gradients."""
    torch.manual_seed(0)
    # What is compressed is of the grid that others make of the tokens, with the same kernel and stride: it has to wait.
    case = Case((2, 4, 3), ((1, 1, 1), (1, 1, 1), (1, 2, 2)), num_heads=2)
    compressing = Case((2, 4, 3), ((1, 1, 1),), channels=16), Case((2, 2, 2), ((2, 1, 1),), channels=16)
    x, poolings = case.tokens(), case.poolings()
    compressions = [None, *[past.poolings()[0] for past in compressing]]
    inputs = [x, *parameters(poolings), *parameters([c for c in compressions if c])]
    with torch.set_grad_enabled(wants_gradients):
        outs = triton_pool_norm(x, case.grid, poolings, num_class=1, compressions=compressions)
    exact_x, exact = exactly(x), exact_poolings(poolings)
    exact_compressions = [c and exact_poolings([c])[0] for c in compressions]
    expected = []
    for pooling, compression in zip(exact, exact_compressions, strict=True):
        pooled = definition(exact_x, case.grid, pooling, 1)
        if compression:
            pooled = torch.cat([definition(pooled, pooling.output_grid(case.grid), compression, 1), pooled], dim=1)
        expected.append(pooled)
    error = max(map(relative_error, outs, expected))
    if not wants_gradients:
        return error, 0.0
    exact_inputs = [exact_x, *parameters(exact), *parameters([c for c in exact_compressions if c])]
    grads = [torch.randn_like(out) for out in outs]
    actual_grads = torch.autograd.grad(outs, inputs, grads)
    expected_grads = torch.autograd.grad(expected, exact_inputs, [grad.double() for grad in grads])
    return error, max(map(relative_error, actual_grads, expected_grads))


def errors_of_each() -> list[float]:
    """Keys and values, parts of wider tokens, each pooled in its own way: one launch."""
    from memvit.kernels import triton_pooling_forward

    torch.manual_seed(0)
    case = Case((2, 3, 3), ((2, 1, 1), (2, 1, 1)), dtype=torch.bfloat16)
    poolings = case.poolings()
    xs = torch.randn(2, 19, 24, device=DEVICE).bfloat16().chunk(3, dim=-1)[1:]
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        launched = []
        launch = triton_pooling_forward.Launch.__call__
        patch.setattr(triton_pooling_forward.Launch, "__call__", lambda *args: (launched.append(1), launch(*args)))
        outs = triton_pool_norm_each(xs, case.grid, poolings, num_class=1, dtype=torch.bfloat16)
    assert len(launched) == 1
    expected = [definition(x.double(), case.grid, own, 1) for x, own in zip(xs, exact_poolings(poolings), strict=True)]
    return list(map(relative_error, outs, expected))


def follows_its_parameters() -> tuple[float, float]:
    """Errors at inference, before and after a filter changed; the result is of another dtype than the tokens."""
    case = Case((1, 2, 3), ((1, 1, 1),), kernel=(1, 3, 3))
    x, poolings = case.tokens(), case.poolings()
    errors = []
    with torch.no_grad():
        for _ in range(2):
            (out,) = triton_pool_norm(x, case.grid, poolings, num_class=1, dtype=torch.float16)
            assert out.dtype == torch.float16
            errors.append(relative_error(out, definition(exactly(x), case.grid, exact_poolings(poolings)[0], 1)))
            poolings[0].weight.mul_(-1).add_(0.1)
    return errors[0], errors[1]


def compiled() -> tuple[int, float, float]:
    """Number of graphs of a function around the poolings, and the errors of its output and its gradient."""
    case = Case((2, 3, 3), ((1, 1, 1), (1, 2, 2)))
    x, poolings = case.tokens(), case.poolings()

    def function(x: Tensor) -> Tensor:
        q, k = triton_pool_norm(x * 2, case.grid, poolings, num_class=1)
        return q @ k.transpose(1, 2)

    run, graphs = compile_one_graph(function)
    actual, expected = run(x), function(x)
    wanted = [x, *parameters(poolings)]
    actual_grads, expected_grads = (torch.autograd.grad(out.square().sum(), wanted) for out in (actual, expected))
    return len(graphs), relative_error(actual, expected), max(map(relative_error, actual_grads, expected_grads))


def opcheck() -> dict[str, str]:
    case = Case((1, 2, 2), ((1, 1, 1), (1, 2, 2)), kernel=(1, 3, 3), channels=4)
    x, poolings = case.tokens(), case.poolings()
    weights, norm_weights, norm_biases = ([p[i] for p in poolings] for i in (0, 2, 3))
    numbers = ([1, 2, 2], [1, 1, 1, 1, 2, 2], [False, False], [1e-6, 1e-6], 1)
    return torch.library.opcheck(torch.ops.memvit.pool_norm.default, (x, weights, norm_weights, norm_biases, *numbers))


CASES = {
    "queries_and_keys": Case((2, 3, 3), ((1, 1, 1), (1, 2, 2)), num_heads=2),
    "three_from_one_read": Case((2, 3, 3), ((1, 1, 1),) * 3),
    "more_than_share_a_program": Case((1, 2, 2), ((1, 1, 1),) * 4, kernel=(1, 3, 3)),
    "stride_wider_than_the_kernel": Case((2, 5, 9), ((1, 8, 8), (1, 4, 4))),
    "several_tiles_and_streams": Case((2, 9, 10), ((1, 1, 1),), kernel=(1, 3, 1), channels=64, num_streams=2),
    "no_class_token": Case((3, 4, 3), ((2, 2, 1),), num_class=0, num_heads=2),
    "causal": Case((4, 3, 2), ((1, 1, 1), (2, 1, 1)), kernel=(3, 1, 3), causal=True),
    "channels_no_power_of_two": Case((2, 3, 2), ((1, 1, 1),), kernel=(1, 3, 3), channels=12, num_heads=2),
    "compression": Case((5, 4, 3), ((4, 2, 2),), kernel=(7, 3, 3), channels=24),
    "kernel_wider_than_the_grid": Case((2, 1, 2), ((1, 1, 1), (2, 2, 2)), kernel=(5, 3, 1)),
    "kernel_of_one": Case((2, 2, 2), ((1, 1, 1),), kernel=(1, 1, 1)),
    "even_kernel": Case((2, 3, 3), ((1, 1, 1),), kernel=(2, 2, 2)),
}


@needs_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_poolings_and_their_gradients_are_as_defined(process: ProcessPoolExecutor, case: Case) -> None:
    error, grad_error = process.submit(errors, case).result()
    assert error < 1e-5
    assert grad_error < 1e-5


@needs_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_few_tokens_are_as_defined(process: ProcessPoolExecutor, case: Case) -> None:
    assert process.submit(error_of_few, case).result() < 1e-5


@needs_triton
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("queries_and_keys", 2),
        ("stride_wider_than_the_kernel", 1),
        ("several_tiles_and_streams", 2),
        ("no_class_token", 2),
        ("causal", 3),
        ("channels_no_power_of_two", 1),
        ("compression", 2),
        ("even_kernel", 2),
    ],
)
def test_sliding_along_time_changes_nothing(process: ProcessPoolExecutor, name: str, times: int) -> None:
    assert max(process.submit(errors_with_times, CASES[name], times).result()) < 1e-5


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_in_low_precision_are_float32(process: ProcessPoolExecutor, dtype: torch.dtype) -> None:
    error, grad_error = process.submit(errors, Case((2, 3, 4), ((1, 1, 1), (1, 2, 2)), dtype=dtype)).result()
    unit = torch.finfo(dtype).eps  # one rounding on the way out (the interpreter cuts bfloat16 off: twice the error)
    assert error < unit
    assert grad_error < 2 * unit


@needs_triton
def test_a_part_of_wider_tokens_is_pooled_where_it_lies(process: ProcessPoolExecutor) -> None:
    assert max(process.submit(errors_of_a_part_of_wider_tokens).result()) < 1e-5


@needs_triton
def test_filters_learn_from_tokens_that_want_no_gradient(process: ProcessPoolExecutor) -> None:
    unused, grad_errors = process.submit(gradients_for_remembered_tokens).result()
    assert unused
    assert max(grad_errors) < 1e-5


@needs_triton
@pytest.mark.parametrize("wants_gradients", [False, True])
def test_what_results_are_compressed_to_comes_first(process: ProcessPoolExecutor, wants_gradients: bool) -> None:
    error, grad_error = process.submit(errors_with_compressions, wants_gradients).result()
    assert error < 1e-5
    assert grad_error < 1e-5


@needs_triton
def test_keys_and_values_are_pooled_by_one_launch(process: ProcessPoolExecutor) -> None:
    assert max(process.submit(errors_of_each).result()) < torch.finfo(torch.bfloat16).eps


@needs_triton
def test_what_is_kept_at_inference_follows_the_parameters(process: ProcessPoolExecutor) -> None:
    assert max(process.submit(follows_its_parameters).result()) < torch.finfo(torch.float16).eps


@needs_triton
def test_compile_keeps_one_graph_forward_and_backward(process: ProcessPoolExecutor) -> None:
    num_graphs, error, grad_error = process.submit(compiled).result()
    assert num_graphs == 1
    assert error < 1e-5
    assert grad_error < 1e-5


@needs_triton
def test_the_operator_is_registered_soundly(process: ProcessPoolExecutor) -> None:
    assert set(process.submit(opcheck).result().values()) == {"SUCCESS"}


@needs_triton
@ignores_defaults
@pytest.mark.parametrize(
    "case",
    [
        Case((8, 56, 56), ((1, 1, 1),), channels=96),
        Case((8, 7, 7), ((4, 2, 2),), kernel=(7, 3, 3), channels=768, dtype=torch.bfloat16),
    ],
    ids=["queries", "compression"],
)
def test_kernels_compile_for_gpus_that_are_not_here_and_keep_to_registers(case: Case) -> None:
    from memvit.kernels import triton_pooling_backward, triton_pooling_few, triton_pooling_forward

    weight = torch.empty(case.channels, 1, *case.kernel)
    geometry = pooling_geometry(weight, case.grid, case.strides[0], causal=False, num_class=1)
    x = case.tokens().detach().cpu()
    filters, norm = triton_pooling_backward.pack_filters([weight]), [torch.empty(case.channels)]
    with compiling(triton_pooling_forward, triton_pooling_few, triton_pooling_backward) as compiled:
        num_rows, launches = triton_pooling_forward.plan((Job(0, 0, geometry, 1e-6),))
        packed = [launch.pack([weight, *norm, *norm]) for launch in launches]
        outs = triton_pooling_forward.run([x], num_rows, launches, packed, x.dtype)
        conv_grads, _ = triton_pooling_backward.norm_backward(outs, x, filters, norm, geometry, 1e-6)
        triton_pooling_backward.token_grad(conv_grads, filters, x, geometry, adds=False)
        triton_pooling_backward.filter_grad(conv_grads, x, geometry)
    assert len(compiled) == 4
    assert all("fma.rn.f32" in kernel.ptx for kernel in compiled)
    assert [kernel.name for kernel in compiled if kernel.spilled_bytes] == []


def test_without_triton_nothing_breaks_at_import() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from memvit.kernels import pooling, triton_pooling\n"
        "assert not triton_pooling.is_available()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@needs_triton
@pytest.mark.parametrize(
    ("wanted", "said"), [("off", "False PyTorch (Triton is turned off)"), ("of", "choose on or off")]
)
def test_the_environment_turns_them_off(wanted: str, said: str) -> None:
    program = "from memvit.kernels import triton_pooling as t; print(t.is_available(), t.status())"
    environment = {**os.environ, "MEMVIT_GPU_KERNELS": wanted}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert said in (done.stdout or done.stderr)


def test_tokens_on_a_cpu_are_left_to_others() -> None:
    case = Case((1, 2, 2), ((1, 1, 1),))
    assert not can_pool(case.tokens().cpu(), case.poolings())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run")
def test_the_benchmark_measures_nothing_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kernels.main([])
    assert "no GPU" in capsys.readouterr().err
