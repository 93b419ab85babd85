"""Linear layers, patches and attention on AMX's tiles: float32 stays float32, whatever the tiles multiply."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memvit.kernels import attention, cpu, reference_kernels
from memvit.kernels.attention import AxisTable, KeyMask, RelativePositions, pack_table
from memvit.kernels.linear import MLP, Linear, mlp
from memvit.kernels.patches import patch_embed
from memvit.kernels.residual_mlp import residual_mlp

Size2 = tuple[int, int]
Size3 = tuple[int, int, int]

pytestmark = pytest.mark.skipif(not cpu.has_tiles(), reason="this processor, or this system, has no AMX tiles")


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def exact_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())


@pytest.mark.parametrize("num_rows", [1, 31, 33, 1000])
@pytest.mark.parametrize(("num_in", "num_out"), [(96, 288), (7, 5), (33, 16), (441, 97)])
def test_linear_layers_are_exact_to_float32(num_rows: int, num_in: int, num_out: int) -> None:
    layer, x = Linear(num_in, num_out), torch.randn(num_rows, num_in)
    exact = exact_linear(x, layer)
    found = layer(x)
    assert found.dtype == torch.float32
    assert error(found, exact) <= max(1.5 * error(F.linear(x, layer.weight, layer.bias), exact), 1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert error(low, exact) < 5e-3


def test_numbers_of_every_size_keep_their_bits() -> None:
    """A sum of three bfloat16 numbers has as many bits as float32, for large and for small numbers."""
    x = torch.randn(64, 64) * 10.0 ** torch.randint(-20, 20, (64, 1))
    layer = Linear(64, 64, bias=False)
    nn.init.eye_(layer.weight)
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)
    layer.weight.copy_(torch.randn(64, 64).T)
    torch.testing.assert_close(layer(torch.eye(64)), layer.weight.T, rtol=1.2e-7, atol=0)  # rounded once more, perhaps


def test_less_precision_is_given_where_it_is_asked_for() -> None:
    layer, x = Linear(384, 64), torch.randn(200, 384)
    exact = exact_linear(x, layer)
    errors = []
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            errors.append(error(layer(x), exact))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert errors[0] < 3e-7 < errors[1] < 2e-5 < errors[2] < 5e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_formats_are_taken_under_autocast(dtype: torch.dtype) -> None:
    fc1, fc2, x = Linear(40, 80), Linear(80, 8), torch.randn(30, 40)
    with torch.autocast("cpu", torch.bfloat16):
        for layer in (fc1, lambda t: mlp(t, fc1, nn.GELU(), fc2)):
            torch.testing.assert_close(layer(x.to(dtype)), layer(x.to(dtype).to(torch.bfloat16)), rtol=0, atol=0)


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
def test_an_mlp_is_exact_to_float32(num_rows: int, dims: tuple[int, int, int], num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    fc1, fc2, act = Linear(*dims[:2]), Linear(*dims[1:]), nn.GELU()
    x = torch.randn(num_rows, dims[0]) * 2
    exact = exact_linear(F.gelu(exact_linear(x, fc1)), fc2)
    plain = F.linear(F.gelu(F.linear(x, fc1.weight, fc1.bias)), fc2.weight, fc2.bias)
    assert error(mlp(x, fc1, act, fc2), exact) <= max(1.5 * error(plain, exact), 2e-7)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(mlp(x, fc1, act, fc2), exact) < 1e-2


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("num_threads", [1, 20])
@pytest.mark.parametrize(("shape", "dim"), [((2, 785), 96), ((3, 7), 48), ((1, 1), 16)])
def test_the_residual_mlp_is_the_sum_and_the_mlp_of_its_norm(shape: Size2, dim: int, num_threads: int) -> None:
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
    assert error(found, exact) <= max(1.5 * error(plain, exact), 2e-7)
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
        assert error(tokens, exact) < (3e-7 if dtype == torch.float32 else 5e-3)


def grid_entries(grid: Size3, first: Size3, has_class: bool) -> Tensor:
    """(3, keys): the entry along each axis of the keys of one clip, counted from `first`; class tokens have none."""
    points = torch.tensor(list(product(*map(range, grid))), dtype=torch.int32) + torch.tensor(first, dtype=torch.int32)
    return F.pad(points.T, (int(has_class), 0), value=-1)


def attend_with(entries: Tensor, head_dim: int, dtype: torch.dtype, mask: KeyMask | None = None) -> tuple[float, float]:
    """The errors of attention on tiles and of PyTorch's, whose keys take these entries; queries are 2 x 5 x 6."""
    grid, num_keys = (2, 5, 6), entries.shape[1]
    tables = []
    for axis in range(3):
        row = torch.arange(grid[axis], dtype=torch.int32).view([-1 if i == axis else 1 for i in range(3)]).expand(grid)
        table = torch.randn(grid[axis], int(entries[axis].max()) + 1, head_dim) * 0.3
        row = F.pad(row.flatten(), (1, 0), value=-1)
        tables.append(AxisTable(axis, table, entries[axis].contiguous(), row, pack_table(table)))
    q, k, v = (torch.randn(2, 2, n, head_dim).to(dtype) for n in (61, num_keys, num_keys))

    def run(*qkv: Tensor) -> Tensor:
        cast = [table._replace(table=table.table.to(qkv[0].dtype)) for table in tables]
        return attention(*qkv, positions=RelativePositions(grid, 1, tuple(cast)), key_mask=mask, residual_from=1)

    found = run(q, k, v)
    with reference_kernels():
        exact = run(q.double(), k.double(), v.double())
        plain = run(q, k, v)
    assert found.dtype == dtype
    return error(found, exact), error(plain, exact)


def past_and_present(num_past: int, past: Size3, present: Size3) -> Tensor:
    """Entries as the model has them: past clips have times of their own and share places, apart from the present one's."""
    clips = [grid_entries(past, (i * past[0], 0, 0), True) for i in range(num_past)]
    own = grid_entries(present, (num_past * past[0], past[1], past[2]), True)
    return torch.cat([*clips, own], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "entries",
    [
        past_and_present(0, (1, 1, 1), (8, 7, 7)),
        past_and_present(2, (2, 4, 4), (8, 7, 7)),  # 34 entries, which take one block after giving up some
        past_and_present(4, (2, 4, 4), (8, 7, 7)),  # which do not
        past_and_present(32, (2, 4, 4), (8, 7, 7)),  # more times than a vector has lanes, and several chunks of keys
        past_and_present(1, (1, 2, 2), (1, 1, 70)),  # a panel of keys takes more than a block of entries
        past_and_present(1, (2, 2, 2), (3, 3, 3))[:, torch.randperm(36, generator=torch.Generator().manual_seed(0))],
        torch.randint(-1, 16, (3, 90), generator=torch.Generator().manual_seed(0), dtype=torch.int32),
    ],
)
@pytest.mark.parametrize("head_dim", [96, 48])
def test_attention_is_exact_to_float32(entries: Tensor, head_dim: int, dtype: torch.dtype) -> None:
    mask = torch.rand(2, entries.shape[1]) < 0.8
    mask[:, -1] = True
    for key_mask in (None, KeyMask(mask), KeyMask(mask[:1])):
        found, plain = attend_with(entries, head_dim, dtype, key_mask)
        assert found <= (max(1.5 * plain, 5e-7) if dtype == torch.float32 else 1.5 * plain)


def test_attention_in_less_precision() -> None:
    try:
        torch.set_float32_matmul_precision("high")
        found, _ = attend_with(past_and_present(2, (2, 4, 4), (8, 7, 7)), 96, torch.float32)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert 1e-6 < found < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [-400.0, -88.0, -27.0, 20.0, 44.0, 88.0, 400.0])
@pytest.mark.parametrize("num_keys", [50, 1300])
def test_a_softmax_does_not_depend_on_what_its_logits_have_in_common(
    num_keys: int, offset: float, dtype: torch.dtype
) -> None:
    """Some queries' logits are this much larger, in one block of queries of several: 2^x of them would not do as it is."""
    q, k, v = (torch.randn(1, 2, n, 64).to(dtype) for n in (600, num_keys, num_keys))
    k[..., 0] = 1
    q[:, :, :, 0] = 0
    q[:, 1, 35:40, 0] = 8 * offset  # over the square root of 64
    found = attention(q, k, v)
    with reference_kernels():
        exact = attention(q.double(), k.double(), v.double())
    assert error(found, exact) < (1e-6 * max(abs(offset) / 8, 1) if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_with_its_query(wrong: float) -> None:
    q, k, v = (torch.randn(1, 1, n, 32) for n in (600, 700, 700))
    exact = attention(q, k, v)
    q[0, 0, 17, 3] = wrong
    found = attention(q, k, v)
    others = torch.arange(600) != 17
    assert torch.isnan(found[0, 0, 17]).all()
    assert error(found[0, 0, others], exact[0, 0, others]) < 1e-6
