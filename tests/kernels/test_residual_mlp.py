"""The second half of a block as GPUs compute it in bfloat16, beside its definition: Triton is interpreted where there is none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from interpreted import DEVICE, needs_triton
from memvit.kernels import linear, triton_norm
from memvit.kernels.linear import MLP, gelu_linear
from memvit.kernels.residual_mlp import residual_mlp

DIM = 24


def parts(dtype: torch.dtype) -> tuple[Tensor, Tensor, nn.LayerNorm, MLP]:
    """Tokens, what is added to them, a LayerNorm and an MLP, whose parameters are of this dtype."""
    torch.manual_seed(0)
    norm, mlp = nn.LayerNorm(DIM, 1e-6), MLP(DIM, 40, DIM, dropout=0.5).eval()
    nn.init.normal_(norm.weight, 1, 0.3), nn.init.normal_(norm.bias)
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.normal_(layer.weight, std=0.3), nn.init.normal_(layer.bias)
    x, added = (torch.randn(2, 9, DIM, device=DEVICE).bfloat16() for _ in range(2))
    return x, added, norm.to(DEVICE, dtype), mlp.to(DEVICE, dtype)


def expected(x: Tensor, added: Tensor, norm: nn.LayerNorm, mlp: MLP) -> Tensor:
    """By the definition, in float64, of the sum as it is rounded."""
    total = (x + added).double()
    norm, mlp = norm.double(), mlp.double()
    return total + mlp.fc2(nn.functional.gelu(mlp.fc1(norm(total))))


# What the other process runs


@torch.no_grad()
def error(parameter_dtype: torch.dtype) -> float:
    """The largest relative error, and that what went in was left as it was."""
    x, added, norm, mlp = parts(parameter_dtype)
    before = x.clone(), added.clone()
    is_cast = parameter_dtype == torch.float32
    with (
        patch.object(linear, "_is_on_gpu", lambda x: True),
        patch.object(triton_norm, "can_norm", lambda *_: True),
        torch.autocast(DEVICE, torch.bfloat16, enabled=is_cast),
        patch.object(nn.Linear, "forward", lambda *_: pytest.fail("a layer ran by itself")),
    ):
        found = residual_mlp(x, added, norm, mlp)
    assert found.dtype == torch.bfloat16
    assert torch.equal(x, before[0])
    assert torch.equal(added, before[1])
    wanted = expected(x, added, norm, mlp)
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["autocast", "bfloat16 weights"])
def test_it_is_the_sum_and_the_mlp_of_its_norm(process: ProcessPoolExecutor, dtype: torch.dtype) -> None:
    assert process.submit(error, dtype).result() < 1e-2


def another_activation(mlp: MLP) -> None:
    mlp.act = nn.GELU("tanh")


def a_layer_of_ones_own(mlp: MLP) -> None:
    mlp.fc1 = nn.Linear(DIM, 40).bfloat16().to(DEVICE)


def float32_weights(mlp: MLP) -> None:
    mlp.float()


@pytest.mark.parametrize("change", [another_activation, a_layer_of_ones_own, float32_weights])
@torch.no_grad()
def test_what_is_something_else_is_left_to_the_layers(
    change: Callable[[MLP], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_is_on_gpu", lambda x: True)
    x, _, _, mlp = parts(torch.bfloat16)
    assert gelu_linear(x, mlp.fc1, mlp.act) is not None
    change(mlp)
    assert gelu_linear(x, mlp.fc1, mlp.act) is None


def test_gradients_are_left_to_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_is_on_gpu", lambda x: True)
    x, _, _, mlp = parts(torch.bfloat16)
    assert gelu_linear(x, mlp.fc1, mlp.act) is None
