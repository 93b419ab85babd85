"""Gradients in bfloat16 are those of float32, as far as its digits go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memvit.kernels.pooling import pool_conv
from memvit.models.attention import make_pooling


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
