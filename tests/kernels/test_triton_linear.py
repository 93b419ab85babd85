"""Triton's linear layers of few rows beside PyTorch's: on the GPU where there is one, otherwise in Triton's interpreter."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from compiling import compiling, ignores_defaults
from torch import Tensor, nn

from interpreted import DEVICE, needs_triton, relative_error
from memvit.kernels import triton_linear
from memvit.kernels.linear import Linear, linear_each


def make(rows: tuple[int, ...], K: int, N: int, num: int, device: str = DEVICE) -> list[list[Tensor]]:
    """Tokens, weights and biases of several layers."""
    torch.manual_seed(0)
    shapes = (*rows, K), (N, K), (N,)
    return [[torch.randn(shape, device=device).to(torch.float16) for _ in range(num)] for shape in shapes]


def errors(rows: tuple[int, ...], K: int, N: int, num: int) -> list[float]:
    """The largest relative error of each layer, against float64."""
    xs, weights, biases = make(rows, K, N, num)
    outs = triton_linear.triton_linear_each(xs, weights, biases)
    expected = [F.linear(*(t.double() for t in own)) for own in zip(xs, weights, biases, strict=True)]
    assert all(out.shape == (*rows, N) and out.dtype == torch.float16 for out in outs)
    return list(map(relative_error, outs, expected))


@needs_triton
@pytest.mark.parametrize(
    ("rows", "K", "N", "num"),
    [((1, 33), 96, 96, 2), ((1, 99), 64, 128, 2), ((2, 5), 40, 72, 3), ((7,), 24, 8, 1)],
    ids=["a_past_clip", "several_blocks_of_rows", "odd_sizes", "one_layer"],
)
def test_layers_are_as_defined(process: ProcessPoolExecutor, rows: tuple[int, ...], K: int, N: int, num: int) -> None:
    assert max(process.submit(errors, rows, K, N, num).result()) < 2e-3


@needs_triton
@ignores_defaults
@pytest.mark.parametrize(("num_rows", "K", "N"), [(33, 96, 96), (33, 384, 384), (99, 384, 768)])
def test_the_kernel_compiles_for_gpus_that_are_not_here_and_keeps_to_registers(num_rows: int, K: int, N: int) -> None:
    from memvit.kernels import triton_linear_kernel

    xs, weights, biases = ([t.bfloat16() for t in ts] for ts in make((1, num_rows), K, N, 2, "cpu"))
    with compiling(triton_linear_kernel) as compiled:
        triton_linear.triton_linear_each(xs, weights, biases)
    (kernel,) = compiled
    assert kernel.spilled_bytes == 0
    assert kernel.unwritten == []


@torch.no_grad()
def test_what_the_kernel_does_not_take_is_left_to_the_layers() -> None:
    layers = [Linear(8, 4), Linear(8, 4)]
    xs = [torch.randn(2, 3, 8) for _ in layers]
    for out, x, layer in zip(linear_each(xs, layers), xs, layers, strict=True):
        torch.testing.assert_close(out, nn.functional.linear(x, layer.weight, layer.bias))


def test_only_few_rows_of_one_kind_on_a_gpu_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_linear, "is_available", lambda: True)
    xs, weights, _ = make((2, 64), 8, 4, 2, "cpu")
    assert not triton_linear.can_multiply(xs, weights)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    assert triton_linear.can_multiply(xs, weights)
    assert not triton_linear.can_multiply([torch.cat([x, x]) for x in xs], weights)
    assert not triton_linear.can_multiply([xs[0], xs[1][:1]], weights)
    assert not triton_linear.can_multiply(xs, [weights[0], weights[1].float()])
