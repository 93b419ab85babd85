"""Logits and gradients in bfloat16 are those of float32, as far as its digits go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memvit.kernels.pooling import pool_conv
from memvit.models.attention import make_pooling
from memvit.models.zoo import create_model


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
