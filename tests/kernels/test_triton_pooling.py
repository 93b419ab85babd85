"""Triton's pooling beside an independent definition: on the GPU where there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memvit.benchmarks import kernels
from memvit.kernels.pooling import Front, Pooling
from memvit.kernels.triton_pooling import Job, can_pool, is_available, pooling_geometry, triton_pool_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(not is_available(), reason="Triton is not installed: there are no kernels")


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


def exactly(t: Tensor) -> Tensor:
    return t.detach().double().requires_grad_()


def exact_poolings(poolings: list[Pooling]) -> list[Pooling]:
    return [
        p._replace(weight=exactly(p.weight), norm_weight=exactly(p.norm_weight), norm_bias=exactly(p.norm_bias))
        for p in poolings
    ]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


# What the other process runs


def errors(case: Case) -> tuple[float, float]:
    """The largest relative error of outputs and of gradients, against float64."""
    torch.manual_seed(0)
    x, poolings = case.tokens(), case.poolings()
    outs = triton_pool_norm(x, case.grid, poolings, num_class=case.num_class)
    assert all(out.dtype == case.dtype for out in outs)
    grads = [torch.randn_like(out) for out in outs]
    actual = torch.autograd.grad(outs, [x, *parameters(poolings)], grads)
    assert [t.dtype for t in actual] == [case.dtype] + [torch.float32] * (len(actual) - 1)
    x, poolings = exactly(x), exact_poolings(poolings)
    expected_outs = [definition(x, case.grid, pooling, case.num_class) for pooling in poolings]
    expected = torch.autograd.grad(expected_outs, [x, *parameters(poolings)], [grad.double() for grad in grads])
    return max(map(relative_error, outs, expected_outs)), max(map(relative_error, actual, expected))


def errors_of_sliding(case: Case, times: int) -> tuple[float, float]:
    """With the kernel that slides along time, so many output times a program."""
    from memvit.kernels import triton_pooling_forward

    usual = triton_pooling_forward.Sliding.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_pooling_forward, "SLIDES", True)
        patch.setattr(triton_pooling_forward.Sliding, "of", lambda *sizes: usual(*sizes)._replace(times=times))
        triton_pooling_forward.plan.cache_clear()
        found = errors(case)
    triton_pooling_forward.plan.cache_clear()
    return found


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


def errors_with_fronts(wants_gradients: bool) -> tuple[float, float]:
    """Of keys and values behind tokens of another clip, two poolings of one geometry among them, and of gradients."""
    torch.manual_seed(0)
    case, past = (
        Case((2, 4, 3), ((1, 1, 1), (1, 2, 2), (1, 2, 2)), num_heads=2),
        Case((2, 2, 2), ((2, 1, 1),) * 2, channels=16),
    )
    x, poolings = case.tokens(), case.poolings()
    fronts = [None, *(Front(past.tokens(), past.grid, pooling) for pooling in past.poolings())]
    inputs = [x, *parameters(poolings), *(t for f in fronts if f for t in (f.x, *parameters([f.pooling])))]
    with torch.set_grad_enabled(wants_gradients):
        outs = triton_pool_norm(x, case.grid, poolings, num_class=1, fronts=fronts)
    exact_fronts = [None if f is None else Front(exactly(f.x), f.grid, exact_poolings([f.pooling])[0]) for f in fronts]
    x, poolings = exactly(x), exact_poolings(poolings)
    expected = [
        torch.cat([definition(f.x, f.grid, f.pooling, 1), definition(x, case.grid, pooling, 1)], 1)
        if f
        else definition(x, case.grid, pooling, 1)
        for pooling, f in zip(poolings, exact_fronts, strict=True)
    ]
    error = max(map(relative_error, outs, expected))
    if not wants_gradients:
        return error, 0.0
    exact_inputs = [x, *parameters(poolings), *(t for f in exact_fronts if f for t in (f.x, *parameters([f.pooling])))]
    grads = [torch.randn_like(out) for out in outs]
    actual_grads = torch.autograd.grad(outs, inputs, grads)
    expected_grads = torch.autograd.grad(expected, exact_inputs, [grad.double() for grad in grads])
    return error, max(map(relative_error, actual_grads, expected_grads))


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
    graphs = []

    def function(x: Tensor) -> Tensor:
        q, k = triton_pool_norm(x * 2, case.grid, poolings, num_class=1)
        return q @ k.transpose(1, 2)

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    actual, expected = torch.compile(function, backend=backend, fullgraph=True)(x), function(x)
    wanted = [x, *parameters(poolings)]
    actual_grads, expected_grads = (torch.autograd.grad(out.square().sum(), wanted) for out in (actual, expected))
    return len(graphs), relative_error(actual, expected), max(map(relative_error, actual_grads, expected_grads))


def opcheck() -> dict[str, str]:
    case = Case((1, 2, 2), ((1, 1, 1), (1, 2, 2)), kernel=(1, 3, 3), channels=4)
    x, poolings = case.tokens(), case.poolings()
    weights, norm_weights, norm_biases = ([p[i] for p in poolings] for i in (0, 2, 3))
    numbers = ([1, 2, 2], [1, 1, 1, 1, 2, 2], [False, False], [1e-6, 1e-6], 1)
    return torch.library.opcheck(torch.ops.memvit.pool_norm.default, (x, weights, norm_weights, norm_biases, *numbers))


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """Where kernels run. Triton is interpreted in a whole process or not at all; in that of the other tests it is not."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
        executor.submit(int).result()
    with executor:
        yield executor


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
def test_sliding_along_time_gives_the_same(process: ProcessPoolExecutor, name: str, times: int) -> None:
    assert max(process.submit(errors_of_sliding, CASES[name], times).result()) < 1e-5


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
def test_fronts_come_first(process: ProcessPoolExecutor, wants_gradients: bool) -> None:
    error, grad_error = process.submit(errors_with_fronts, wants_gradients).result()
    assert error < 1e-5
    assert grad_error < 1e-5


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
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    "case",
    [
        Case((8, 56, 56), ((1, 1, 1),), channels=96),
        Case((8, 7, 7), ((4, 2, 2),), kernel=(7, 3, 3), channels=768, dtype=torch.bfloat16),
    ],
    ids=["queries", "compression"],
)
def test_kernels_compile_for_gpus_that_are_not_here(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter does without the compiler, and so without its checks of types and shapes."""
    from memvit.kernels import triton_pooling_backward, triton_pooling_forward

    compiled: list[str] = []
    for module in (triton_pooling_forward, triton_pooling_backward):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, CompilesOnly(getattr(module, name), compiled))
    weight = torch.empty(case.channels, 1, *case.kernel)
    geometry = pooling_geometry(weight, case.grid, case.strides[0], causal=False, num_class=1)
    x = case.tokens().detach().cpu()
    filters, norm = triton_pooling_forward.pack_filters([weight]), [weight[:, 0, 0, 0, 0]]
    num_rows, launches = triton_pooling_forward.plan((Job(0, 0, geometry, 1e-6),))
    packed = [launch.pack([weight, *norm, *norm]) for launch in launches]
    outs = triton_pooling_forward.run([x], num_rows, launches, packed, x.dtype)
    conv_grads, _ = triton_pooling_backward.norm_backward(outs, x, filters, norm, geometry, 1e-6)
    triton_pooling_backward.token_grad(conv_grads, filters, x, geometry, adds=False)
    triton_pooling_backward.filter_grad(conv_grads, x, geometry)
    assert len(compiled) == 4
    assert all("fma.rn.f32" in ptx for ptx in compiled)


class CompilesOnly:
    """In a kernel's place: compiles it for the arguments of a launch, and launches nothing."""

    def __init__(self, kernel: Any, compiled: list[str]) -> None:
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return self.launch

    def launch(self, *arguments: Any, num_warps: int, **constants: Any) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}

        def type_of(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(type_of, value))
            return pointers[value.dtype] if isinstance(value, Tensor) else {int: "i32", float: "fp32"}[type(value)]

        names = self.kernel.arg_names
        signature = dict(zip(names, map(type_of, arguments), strict=False)) | dict.fromkeys(constants, "constexpr")
        source = ASTSource(self.kernel, signature, {(names.index(name),): constants[name] for name in constants})
        kernel = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": num_warps})
        self.compiled.append(kernel.asm["ptx"])


def test_without_triton_nothing_breaks_at_import() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from memvit.kernels import pooling, triton_pooling\n"
        "assert not triton_pooling.is_available()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tokens_on_a_cpu_are_left_to_others() -> None:
    case = Case((1, 2, 2), ((1, 1, 1),))
    assert not can_pool(case.tokens().cpu(), case.poolings())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would run")
def test_the_benchmark_measures_nothing_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kernels.main([])
    assert "no GPU" in capsys.readouterr().err
