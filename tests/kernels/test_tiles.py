"""Attention on AMX's tiles: float32 stays float32, whatever the tiles multiply."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memvit.kernels import attention, reference_kernels
from memvit.kernels.attention import AxisTable, KeyMask, RelativePositions, pack_table
from memvit.kernels.linear import Linear

Size2 = tuple[int, int]
Size3 = tuple[int, int, int]

pytestmark = pytest.mark.usefixtures("tiles")


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def exact_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())


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
