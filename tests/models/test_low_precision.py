"""Logits and gradients in bfloat16 are those of float32, as far as its digits go."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from test_memory import clips_at
from torch import nn

from memvit.kernels import reference_kernels
from memvit.kernels.pooling import pool_conv
from memvit.models.attention import make_pooling
from memvit.models.zoo import create_model
from tiny_models import small_model


def test_bfloat16_gives_the_logits_of_float32() -> None:
    model = create_model("memvit_16x4").eval()
    exact = low = None
    for step in range(3):
        clips = torch.randn(1, 3, 16, 224, 224, generator=torch.Generator().manual_seed(step))
        with torch.inference_mode():
            wanted, exact = model(clips, exact)
            with torch.autocast("cpu", torch.bfloat16):
                found, low = model(clips, low)
        assert low is not None
        assert low.dtype == torch.bfloat16
        assert isinstance(found, torch.Tensor)
        assert isinstance(wanted, torch.Tensor)
        assert float((found.float() - wanted).norm() / wanted.norm()) < 2e-2


@pytest.mark.parametrize("channels", [4, 8, 16, 32])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 4, 4), (2, 2, 2)])
def test_pooling_filters_get_the_gradient_of_float32(channels: int, stride: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    pool = make_pooling("conv", channels, (3, 3, 3), stride)
    assert isinstance(pool, nn.Conv3d)
    tokens = torch.randn(2, 1 + 2 * 8 * 8, channels)
    gradients = []
    for is_low in (False, True):
        pool.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
            pooled = pool_conv(tokens, (2, 8, 8), pool.weight, None, stride, 1)
        pooled.float().square().sum().backward()
        assert pool.weight.grad is not None
        gradients.append(pool.weight.grad.clone())
    exact, found = gradients
    assert float((found - exact).abs().max() / exact.abs().max()) < 0.02


@pytest.mark.parametrize("options", [{}, {"memory_gap": 2}, {"memory_compression": "joint"}])
@pytest.mark.parametrize("reference", [False, True], ids=["kernels", "plain"])
def test_a_memory_of_low_precision_teaches_a_float32_model(options: dict[str, object], reference: bool) -> None:
    model, exact, low = small_model(**options), None, None
    with reference_kernels() if reference else nullcontext():
        for step in range(4):
            with torch.no_grad():
                _, exact = model(clips_at(step, 2), exact)
                with torch.autocast("cpu", torch.bfloat16):
                    _, low = model(clips_at(step, 2), low)
        assert exact is not None
        assert low is not None
        wanted, _ = model(clips_at(4, 2), exact)
        weight = model.blocks[0].attn.compress_k.weight
        for memory in (low, exact.to(torch.bfloat16), exact.to(torch.float16)):
            found, after = model(clips_at(4, 2), memory)
            assert found.dtype == torch.float32
            assert after.dtype == memory.dtype
            assert float((found - wanted).detach().norm() / wanted.detach().norm()) < 2e-2
            model.zero_grad()
            found.logsumexp(1).sum().backward()
            assert weight.grad is not None
            assert weight.grad.isfinite().all()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("reference", [False, True], ids=["kernels", "plain"])
def test_a_float64_model_takes_a_memory_of_float32(mode: type, reference: bool) -> None:
    model = small_model()
    with mode():
        _, memory = model(clips_at(0, 2))
        wanted, _ = model(clips_at(1, 2), memory)
        double = small_model().double()
        with reference_kernels() if reference else nullcontext():
            found, after = double(clips_at(1, 2).double(), memory)
            double(clips_at(1, 2).double(), after)
    assert found.dtype == torch.float64
    assert {t.dtype for t in after.tensors() if t.is_floating_point()} == {torch.float32}
    torch.testing.assert_close(found, wanted.double(), rtol=0, atol=1e-4)
