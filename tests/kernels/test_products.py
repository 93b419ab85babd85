"""Linear layers, MLPs and patches on CPUs, whatever multiplies: float32 stays float32, bfloat16 is as exact as it can be."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memvit.kernels import linear, reference_kernels
from memvit.kernels.linear import MLP, Linear, mlp
from memvit.kernels.patches import patch_embed
from memvit.kernels.residual_mlp import residual_mlp

Size2 = tuple[int, int]
Size3 = tuple[int, int, int]


@pytest.fixture(autouse=True)
def no_grad(products_level: str) -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def allowed(plain: float, level: str, depth: int, on_tiles: float) -> float:
    """The error that a result may have where PyTorch's has `plain`: sums of `depth` terms in order round off ever more."""
    return max(1.5 * plain, on_tiles if level == "amx" else on_tiles + 3e-8 * depth**0.5)


def exact_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())


@pytest.mark.parametrize("num_rows", [1, 31, 33, 1000])
@pytest.mark.parametrize(("num_in", "num_out"), [(96, 288), (7, 5), (33, 16), (441, 97)])
def test_linear_layers_are_exact_to_float32(num_rows: int, num_in: int, num_out: int, products_level: str) -> None:
    layer, x = Linear(num_in, num_out), torch.randn(num_rows, num_in)
    exact = exact_linear(x, layer)
    found = layer(x)
    assert found.dtype == torch.float32
    plain = F.linear(x, layer.weight, layer.bias)
    assert error(found, exact) <= allowed(error(plain, exact), products_level, num_in, 1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert error(low, exact) < 5e-3
    low = layer.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert error(low, exact_linear(x.to(torch.bfloat16), layer)) < 5e-3


def test_numbers_of_every_size_keep_their_bits() -> None:
    """On tiles too: a sum of three bfloat16 numbers has as many bits as float32, for large and for small numbers."""
    x = torch.randn(64, 64) * 10.0 ** torch.randint(-20, 20, (64, 1))
    layer = Linear(64, 64, bias=False)
    nn.init.eye_(layer.weight)
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)
    layer.weight.copy_(torch.randn(64, 64).T)
    torch.testing.assert_close(layer(torch.eye(64)), layer.weight.T, rtol=1.2e-7, atol=0)  # rounded once more, perhaps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_formats_are_taken_under_autocast(dtype: torch.dtype) -> None:
    fc1, fc2, x = Linear(40, 80), Linear(80, 8), torch.randn(30, 40)
    with torch.autocast("cpu", torch.bfloat16):
        for layer in (fc1, lambda t: mlp(t, fc1, nn.GELU(), fc2)):
            torch.testing.assert_close(layer(x.to(dtype)), layer(x.to(dtype).to(torch.bfloat16)), rtol=0, atol=0)


@pytest.mark.parametrize("products_level", ["off"], indirect=True)
def test_bfloat16_where_onednn_has_no_products_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_HAS_BFLOAT16", False)
    fc1, fc2, x = Linear(96, 700), Linear(700, 33), torch.randn(5000, 96)
    exact = exact_linear(F.gelu(exact_linear(x, fc1)), fc2)
    with torch.autocast("cpu", torch.bfloat16):
        found = [fc2(F.gelu(fc1(x))), mlp(x, fc1, nn.GELU(), fc2), mlp(x[:100], fc1, nn.GELU(), fc2)]
    for result in found:
        assert result.dtype == torch.bfloat16
        assert error(result, exact[: len(result)]) < 1e-2


def test_rows_may_lie_apart() -> None:
    layer = Linear(40, 24)
    wide = torch.randn(3, 50, 80)
    for x in (wide[:, :, :40], wide[:, 3:9, 40:], wide[0].T[:40].T, wide.transpose(0, 2)[:40].transpose(0, 2)):
        assert not x.is_contiguous() or x.stride(-1) != 1
        torch.testing.assert_close(layer(x), exact_linear(x, layer).float(), rtol=1e-5, atol=1e-5)
    assert layer(torch.randn(0, 40)).shape == (0, 24)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("num_threads", [1, 2, 20])
@pytest.mark.parametrize(("num_rows", "dims"), [(1, (8, 24, 8)), (1569, (96, 384, 192)), (70, (50, 1100, 33))])
def test_an_mlp_is_exact_to_float32(
    num_rows: int, dims: tuple[int, int, int], num_threads: int, products_level: str
) -> None:
    torch.set_num_threads(num_threads)
    fc1, fc2, act = Linear(*dims[:2]), Linear(*dims[1:]), nn.GELU()
    x = torch.randn(num_rows, dims[0]) * 2
    exact = exact_linear(F.gelu(exact_linear(x, fc1)), fc2)
    plain = F.linear(F.gelu(F.linear(x, fc1.weight, fc1.bias)), fc2.weight, fc2.bias)
    assert error(mlp(x, fc1, act, fc2), exact) <= allowed(error(plain, exact), products_level, dims[1], 2e-7)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(mlp(x, fc1, act, fc2), exact) < 1e-2


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("num_threads", [1, 20])
@pytest.mark.parametrize(("shape", "dim"), [((2, 785), 96), ((3, 7), 48), ((1, 1), 16)])
def test_the_residual_mlp_is_the_sum_and_the_mlp_of_its_norm(
    shape: Size2, dim: int, num_threads: int, products_level: str
) -> None:
    torch.set_num_threads(num_threads)
    norm, block_mlp = nn.LayerNorm(dim, 1e-6), MLP(dim, 4 * dim, dim, dropout=0.1).eval()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, added = torch.randn(*shape, dim) * 3 + 2, torch.randn(*shape, dim)
    with reference_kernels():
        total = x.double() + added.double()
        exact = total + deepcopy(block_mlp).double()(deepcopy(norm).double()(total))
        plain = x + added + block_mlp(norm(x + added))
    found = residual_mlp(x, added, norm, block_mlp)
    assert found.dtype == torch.float32
    assert error(found, exact) <= allowed(error(plain, exact), products_level, 4 * dim, 2e-7)
    for stream in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            low = residual_mlp(x.to(stream), added.bfloat16(), norm, block_mlp)
        assert low.dtype == stream
        assert error(low, exact) < 1e-2
    torch.testing.assert_close(residual_mlp(x, added, norm, block_mlp), found, rtol=0, atol=0)  # nothing was changed


def test_a_changed_mlp_is_called() -> None:
    class Doubled(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    norm, changed = nn.LayerNorm(32, 1e-6), Doubled(32, 64, 32, dropout=0.0).eval()
    x, added = torch.randn(300, 32), torch.randn(300, 32)
    torch.testing.assert_close(
        residual_mlp(x, added, norm, changed), x + added + changed(norm(x + added)), rtol=1e-5, atol=1e-5
    )


def test_gelu_near_and_far() -> None:
    fc, act = Linear(32, 32, bias=False), nn.GELU()
    nn.init.eye_(fc.weight)
    x = torch.cat([torch.linspace(-9, 9, 32 * 400), torch.tensor([1e4, -1e4, 1e30, -1e30, 0.0] + [0.0] * 27)]).view(
        -1, 32
    )
    found = mlp(x, fc, act, fc)
    torch.testing.assert_close(found, F.gelu(x.double()).float(), rtol=2e-7, atol=1e-6)


def test_what_is_not_finite_stays_in_its_row() -> None:
    fc1, fc2, act = Linear(32, 64), Linear(64, 32), nn.GELU()
    x = torch.randn(40, 32)
    x[3, 4], x[35, 0] = float("nan"), float("inf")
    is_finite = torch.ones(40, dtype=torch.bool)
    is_finite[[3, 35]] = False
    for found in (fc1(x), mlp(x, fc1, act, fc2)):
        assert torch.isfinite(found[is_finite]).all()
        assert not torch.isfinite(found[~is_finite]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_clips", "channels", "size", "kernel", "stride", "padding", "num_front"),
    [
        (2, 3, (8, 36, 44), (3, 7, 7), (2, 4, 4), (1, 3, 3), 1),
        (3, 2, (2, 5, 6), (2, 3, 3), (1, 2, 2), (1, 1, 1), 2),
        (
            1,
            1,
            (3, 40, 40),
            (1, 5, 20),
            (1, 3, 7),
            (0, 2, 9),
            0,
        ),  # windows wider than a vector, and than what is beside them
        (5, 3, (2, 8, 8), (2, 4, 4), (2, 4, 4), (0, 0, 0), 1),  # fewer patches to a clip than are multiplied at a time
    ],
)
def test_patches_are_those_of_the_convolution(
    num_clips: int,
    channels: int,
    size: Size3,
    kernel: Size3,
    stride: Size3,
    padding: Size3,
    num_front: int,
    dtype: torch.dtype,
    products_level: str,
) -> None:
    conv = nn.Conv3d(channels, 40, kernel, stride, padding, bias=channels > 1)
    clips = torch.randn(num_clips, *size, channels).permute(0, 4, 1, 2, 3)
    front = torch.randn(1, num_front, 40) if num_front else None
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = [patch_embed(c, conv, front) for c in (clips, clips.contiguous(), clips.to(dtype).contiguous())]
    with reference_kernels():
        exact = patch_embed(clips.double(), conv.double(), None if front is None else front.double())
    for tokens in found:
        assert tokens.dtype == dtype
        assert tokens.shape == exact.shape
        in_float32 = 6e-7 if products_level == "off" else 3e-7
        assert error(tokens, exact) < (in_float32 if dtype == torch.float32 else 5e-3)
