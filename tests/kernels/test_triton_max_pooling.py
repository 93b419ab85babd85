"""Max-pooling on GPUs beside PyTorch's: on the GPU where there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from compiling import compiling, ignores_defaults
from torch import Tensor

from interpreted import DEVICE, compile_one_graph, needs_triton
from memvit.kernels import max_pooling
from memvit.kernels.max_pooling import max_pool

Size3 = tuple[int, int, int]


class Case(NamedTuple):
    """Random tokens."""

    grid: Size3
    kernel: Size3
    stride: Size3
    channels: int = 16
    num_streams: int = 2
    num_class: int = 1
    dtype: torch.dtype = torch.float32

    def tokens(self) -> Tensor:
        t, h, w = self.grid
        x = torch.randn(self.num_streams, self.num_class + t * h * w, self.channels)
        return x.to(DEVICE, self.dtype)

    def pool(self, x: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:  # tokens pass for tokens on a GPU, wherever they are
            patch.setattr(max_pooling, "_is_on_gpu", lambda x: True)
            return max_pool(x, self.grid, self.kernel, self.stride, num_class=self.num_class)

    def definition(self, x: Tensor) -> Tensor:
        """In volumes, channels first."""
        volume = x[:, self.num_class :].transpose(1, 2).unflatten(2, self.grid)
        padding = [k // 2 for k in self.kernel]
        pooled = F.max_pool3d(volume.contiguous(), self.kernel, self.stride, padding)
        return torch.cat([x[:, : self.num_class], pooled.flatten(2).transpose(1, 2)], dim=1)


SMALL = Case((2, 5, 6), (1, 3, 3), (1, 2, 2))


@contextmanager
def launches() -> Iterator[list[Any]]:
    """What our kernel is launched for."""
    from memvit.kernels import triton_max_pooling

    run, calls = triton_max_pooling.max_pool, []

    def counted(*args: Any) -> Tensor:
        calls.append(args)
        return run(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_max_pooling, "max_pool", counted)
        yield calls


# What the other process runs


def is_exact(case: Case) -> bool:
    """Whether the kernel gives PyTorch's numbers; one is NaN."""
    torch.manual_seed(0)
    x = case.tokens()
    x[-1, case.num_class + 1, 0] = float("nan")
    x[0, :, 1] = float("-inf")
    with launches() as calls:
        out = case.pool(x)
    expected = case.definition(x)
    assert len(calls) == 1
    assert out.isnan().any()
    assert (out.dtype, out.shape) == (expected.dtype, expected.shape)
    return torch.equal(out.nan_to_num(7), expected.nan_to_num(7))


def is_exact_for_a_part_of_wider_tokens() -> bool:
    x = torch.randn(2, 61, 48, device=DEVICE)[:, :, 16:32]
    across = torch.randn(2, 16, 61, device=DEVICE).transpose(1, 2)
    return all(torch.equal(SMALL.pool(x), SMALL.definition(x)) for x in (x, across))


def gradient_is_exact(case: Case) -> tuple[bool, bool]:
    """Whether tokens and their gradients are PyTorch's. Of whole numbers, so that no order of a sum matters."""
    x = case.tokens().requires_grad_()
    with launches() as calls:
        out = case.pool(x)
    assert not calls
    expected = case.definition(x)
    grad = torch.randint(-4, 5, out.shape).to(out)
    (actual_grad,), (expected_grad,) = (torch.autograd.grad(y, x, grad) for y in (out, expected))
    return torch.equal(out, expected), torch.equal(actual_grad, expected_grad)


def compiled(wants_grad: bool) -> tuple[int, int, bool]:
    """Number of graphs, of our operator's calls in them, and whether the tokens are the same."""
    x = SMALL.tokens().requires_grad_(wants_grad)

    def function(x: Tensor) -> Tensor:
        return max_pool(x * 2, SMALL.grid, SMALL.kernel, SMALL.stride, num_class=SMALL.num_class) + 1

    run, graphs = compile_one_graph(function)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(max_pooling, "_is_on_gpu", lambda x: True)
        out = run(x)
    num_calls = sum(node.target is max_pooling._gpu_max_pool for graph in graphs for node in graph.graph.nodes)
    return len(graphs), num_calls, torch.equal(out, SMALL.definition(x * 2) + 1)


def opcheck() -> set[str]:
    sizes = ([2, 5, 6], [1, 3, 3], [1, 2, 2], [0, 1, 1], [2, 3, 3], 1)
    results = torch.library.opcheck(torch.ops.memvit.gpu_max_pool.default, (SMALL.tokens(), *sizes))
    return set(results.values())


CASES = {
    "memvit": SMALL,
    "no_class_token": SMALL._replace(num_class=0),
    "strided_in_time": Case((4, 3, 5), (3, 3, 1), (2, 2, 1)),
    "stride_of_four": Case((1, 9, 10), (1, 5, 5), (1, 4, 4), channels=24),
    "several_tiles": Case((2, 20, 19), (1, 3, 3), (1, 2, 2), channels=128, num_streams=1),
    "several_parts_of_channels": Case((1, 3, 4), (1, 3, 3), (1, 2, 2), channels=320),
    "few_channels": Case((2, 3, 4), (1, 3, 3), (1, 2, 2), channels=6),
    "grid_smaller_than_the_kernel": Case((1, 1, 2), (3, 3, 5), (2, 2, 2)),
}


@needs_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_gives_pytorchs_numbers(process: ProcessPoolExecutor, case: Case, dtype: torch.dtype) -> None:
    assert process.submit(is_exact, case._replace(dtype=dtype)).result()


@needs_triton
def test_tokens_are_read_where_they_lie(process: ProcessPoolExecutor) -> None:
    assert process.submit(is_exact_for_a_part_of_wider_tokens).result()


@needs_triton
@pytest.mark.parametrize("name", ["memvit", "no_class_token", "strided_in_time", "stride_of_four"])
def test_with_gradients_it_is_pytorchs(process: ProcessPoolExecutor, name: str) -> None:
    assert process.submit(gradient_is_exact, CASES[name]).result() == (True, True)


@needs_triton
@pytest.mark.parametrize("wants_grad", [False, True])
def test_compile_keeps_one_graph(process: ProcessPoolExecutor, wants_grad: bool) -> None:
    assert process.submit(compiled, wants_grad).result() == (1, 0 if wants_grad else 1, True)


@needs_triton
def test_the_operator_is_registered_soundly(process: ProcessPoolExecutor) -> None:
    assert process.submit(opcheck).result() == {"SUCCESS"}


@needs_triton
@ignores_defaults
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_compiles_for_gpus_that_are_not_here_and_keeps_to_registers(dtype: torch.dtype) -> None:
    from memvit.kernels import triton_max_pooling

    x = torch.empty(1, 1 + 8 * 56 * 56, 96, dtype=dtype)
    with compiling(triton_max_pooling) as compiled:
        triton_max_pooling.max_pool(x, (8, 56, 56), (1, 3, 3), (1, 2, 2), (0, 1, 1), (8, 28, 28), 1)
    (kernel,) = compiled
    assert "ld.global.v4.b32" in kernel.ptx  # 16 bytes a thread
    assert "st.global.v4.b32" in kernel.ptx
    assert kernel.spilled_bytes == 0


def test_tokens_on_a_cpu_are_left_to_others() -> None:
    x = SMALL.tokens().cpu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(max_pooling, "_gpu_max_pool", None)
        assert torch.equal(
            max_pool(x, SMALL.grid, SMALL.kernel, SMALL.stride, num_class=SMALL.num_class), SMALL.definition(x)
        )
