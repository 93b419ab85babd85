"""Attention in one Triton kernel beside its definition: on the GPU where there is one, otherwise interpreted."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from compiling import compiling, ignores_defaults, unwritten
from torch import Tensor

from interpreted import DEVICE, needs_triton
from memvit.kernels import triton_attention
from memvit.kernels.attention import FoldedPositions, KeyMask, RelativePositions, attention
from memvit.kernels.backend import reference_kernels
from memvit.kernels.triton_attention import can_attend, dim_blocks, key_ones
from memvit.kernels.triton_folding import Folding, key_columns
from memvit.models.positions import KeyGrid, PositionTables, relative_positions


class Case(NamedTuple):
    """Queries of a clip that attend to its own keys and to those of past clips."""

    grid: tuple[int, int, int] = (2, 3, 5)
    key_grid: tuple[int, int, int] = (2, 2, 3)
    past: tuple[tuple[int, int, int], int] | None = ((1, 1, 2), 2)  # grid of the keys of each, and how many
    axes: str = "thw"
    has_mask: bool = True
    masks_clips: bool = False
    max_clips: int = triton_attention.MAX_CLIPS
    num_class: int = 1
    heads: int = 2
    head_dim: int = 32
    residual: bool = True
    num_streams: int = 2


def inputs(
    case: Case, device: str = DEVICE
) -> tuple[list[Tensor], list[Tensor | None], RelativePositions, KeyMask | None]:
    """Queries, keys and values; past keys and values; positions as on a GPU; which keys take part."""
    keys = [KeyGrid(case.key_grid)]
    num_past = 0
    if case.past:
        keys.insert(0, KeyGrid(case.past[0], case.past[1], 2))
        num_past = case.past[1] * (case.num_class + math.prod(case.past[0]))
    lengths = {"t": 41, "h": 27, "w": 41}
    tables = [
        PositionTables(*(torch.randn(lengths[a], case.head_dim) if a in case.axes else None for a in "hwt"))
        for _ in keys
    ]
    tables = [PositionTables(*(t if t is None else t.to(device) for t in part)) for part in tables]

    def tokens(num: int) -> Tensor:
        x = torch.randn(case.num_streams, num, case.heads * case.head_dim).to(device, torch.float16)
        return x.unflatten(-1, (case.heads, -1)).transpose(1, 2)

    num_present = case.num_class + math.prod(case.key_grid)
    own = [tokens(case.num_class + math.prod(case.grid)), tokens(num_present), tokens(num_present)]
    past = [tokens(num_past), tokens(num_past)] if case.past else [None, None]
    mask = None
    if case.has_mask:
        taken = torch.rand(case.num_streams, num_past + num_present, device=device) > 0.3
        taken[0, :num_past] = False  # a stream that remembers nothing
        taken[:, -1] = True
        mask = KeyMask(taken)
        if case.masks_clips:
            assert case.past
            seen = torch.tensor([[False] * (case.past[1] - 1) + [True], [True] * case.past[1]], device=device)
            mask = KeyMask.of_clips(seen, num_past // case.past[1], num_present)
    positions = relative_positions(case.grid, keys, tables, case.num_class, torch.float16)
    sizes = [0] * 6
    for table in positions.tables:
        assert table.sizes is not None
        sizes[2 * table.axis : 2 * table.axis + 2] = table.sizes
    folding = Folding(case.grid, case.num_class, 0, tuple(sizes), has_mask=True)  # type: ignore[arg-type]
    columns = key_columns(folding, [t.axis for t in positions.tables], [t.entry for t in positions.tables])
    flat = torch.cat([table.table.flatten(0, 1) for table in positions.tables]).to(torch.float16)
    ones = key_ones(columns, folding).to(torch.float16)
    folded = FoldedPositions(flat, torch.empty(0), tuple(sizes), ones)  # type: ignore[arg-type]
    return own, past, positions._replace(folded=folded), mask


# What the other process runs


@torch.no_grad()
def error(case: Case) -> float:
    """The largest relative error against the definition in float64."""
    torch.manual_seed(0)
    (q, k, v), (past_k, past_v), positions, mask = inputs(case)
    residual_from = case.num_class if case.residual else None
    before = [t.clone() for t in (q, k, v)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_attention, "can_attend", lambda *_: True)
        patch.setattr(triton_attention, "MAX_CLIPS", case.max_clips)
        out = attention(
            q,
            k,
            v,
            past_k=past_k,
            past_v=past_v,
            positions=positions,
            key_mask=mask,
            residual_from=residual_from,
        )
    assert all(map(torch.equal, (q, k, v), before))
    assert out.transpose(1, 2).is_contiguous()

    def exact(t: Tensor | None) -> Any:
        return None if t is None else t.double()

    tables = tuple(table._replace(table=table.table.double()) for table in positions.tables)
    with reference_kernels():
        expected = attention(
            exact(q), exact(k), exact(v), past_k=exact(past_k), past_v=exact(past_v),
            positions=positions._replace(tables=tables), key_mask=mask, residual_from=residual_from,
        )  # fmt: skip
    return float((out.double() - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def opcheck() -> dict[str, str]:
    (q, k, v), (past_k, past_v), positions, mask = inputs(Case(masks_clips=True))
    folded = positions.folded
    assert folded is not None
    assert folded.ones is not None
    assert mask is not None
    arguments = (q, k, v, past_k, past_v, folded.tables, mask.seen, folded.ones, [2, 3, 5], 1, [*folded.sizes], 1)
    return torch.library.opcheck(torch.ops.memvit.triton_attention.default, arguments)


CASES = {
    "past_and_present_keys": Case(),
    "present_keys_alone": Case(past=None),
    "clips_that_are_not_seen": Case(masks_clips=True),
    "one_clip": Case(masks_clips=True, past=((1, 1, 2), 1)),
    "more_clips_than_there_are_bits_for": Case(masks_clips=True, max_clips=1),
    "without_a_mask": Case(has_mask=False),
    "space_alone": Case(axes="hw"),
    "time_alone": Case(axes="t", residual=False),
    "no_class_token": Case(num_class=0),
    "rows_of_two_programs": Case(grid=(3, 2, 17), head_dim=24),
    "several_blocks_of_keys": Case(
        grid=(2, 1, 3), key_grid=(8, 3, 3), past=((2, 3, 3), 4), heads=1, head_dim=48, num_streams=1
    ),
    "as_in_memvit_16x4": Case(
        grid=(8, 1, 7), key_grid=(8, 3, 3), past=((2, 2, 2), 2), heads=1, head_dim=96, num_streams=1
    ),
}


@needs_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_is_as_defined(process: ProcessPoolExecutor, case: Case) -> None:
    assert process.submit(error, case).result() < 5e-3


@needs_triton
def test_the_operator_keeps_the_rules_of_pytorch(process: ProcessPoolExecutor) -> None:
    assert set(process.submit(opcheck).result().values()) == {"SUCCESS"}


@needs_triton
@ignores_defaults
@pytest.mark.parametrize(
    ("grid", "key_size", "heads", "num_clips"),
    [((8, 56, 56), 7, 1, 2), ((8, 14, 14), 7, 4, 2), ((8, 7, 7), 14, 8, 2), ((8, 7, 7), 7, 8, 0)],
)
def test_the_kernel_compiles_for_gpus_that_are_not_here_and_keeps_to_registers(
    grid: tuple[int, int, int], key_size: int, heads: int, num_clips: int
) -> None:
    from memvit.kernels import triton_attention_kernel

    past_size = (key_size + 1) // 2 if num_clips else 0
    sizes = [2 * num_clips, 8, past_size, key_size, past_size, key_size]
    num_past = num_clips * (1 + 2 * past_size**2)
    num_present = 1 + 8 * key_size**2

    def tokens(num: int) -> Tensor:
        return torch.empty(2, num, heads, 96, dtype=torch.bfloat16).transpose(1, 2)

    q = tokens(1 + math.prod(grid))
    k, v = tokens(num_present), tokens(num_present)
    past_k, past_v = (tokens(num_past), tokens(num_past)) if num_clips else (None, None)
    num_rows = sum(n * (sizes[2 * axis] + sizes[2 * axis + 1]) for axis, n in enumerate(grid))
    tables = torch.empty(num_rows, 96, dtype=torch.bfloat16)
    num_keys = num_past + num_present
    width = triton_attention.num_columns(Folding(grid, 1, 0, tuple(sizes), has_mask=True))  # type: ignore[arg-type]
    ones = torch.empty(2, num_keys, width, dtype=torch.bfloat16)
    seen = torch.empty(2, num_clips, dtype=torch.bool) if num_clips else None
    with compiling(triton_attention_kernel) as compiled:
        triton_attention._run(q, k, v, past_k, past_v, tables, seen, ones if num_clips else ones[0], grid, 1, sizes, 1)
    (kernel,) = compiled
    assert kernel.spilled_bytes == 0


def test_registers_that_nobody_wrote_to_are_seen() -> None:
    code = """
        /*0010*/                   S2UR UR4, SR_CTAID.Y ;                                   /* 0x00000000000479c3 */
        /*0020*/                   ULDC.64 UR8, c[0x0][0x240] ;                             /* 0x0000900000087ab9 */
        /*0030*/              @!P0 UIADD3 UR9, UP0, UR4, 0x40, URZ ;                        /* 0x00000040041e7890 */
        /*0040*/                   LEA R30, P1, R40, UR9, 0x6 ;                             /* 0x0000000a281e7211 */
        /*0050*/                   UIADD3.X UR31, UR10, -0x7fffffe0, URZ, UP0, !UPT ;       /* 0x800000200a1f7890 */
    """
    assert unwritten(code) == ["UIADD3.X UR31, UR10, -0x7fffffe0, URZ, UP0, !UPT "]
    assert not unwritten(
        code.replace("UR10,", "UR31,").replace("UR4, SR_CTAID", "UR31, SR_CTAID").replace("UR4,", "UR31,")
    )


def test_heads_are_cut_into_powers_of_two() -> None:
    assert dim_blocks(96) == (64, 32)
    assert dim_blocks(128) == (128,)
    assert dim_blocks(24) == (16, 16)
    assert sum(dim_blocks(72)) >= 72


@torch.no_grad()
def test_dropout_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    (q, k, v), (past_k, past_v), positions, mask = inputs(Case(), "cpu")
    monkeypatch.setattr(triton_attention, "can_attend", lambda *_: True)
    monkeypatch.setattr(triton_attention, "triton_attention", lambda *_: pytest.fail("it knows no dropout"))
    arguments = {
        "past_k": past_k,
        "past_v": past_v,
        "positions": positions,
        "key_mask": mask,
    }
    outs = [attention(q, k, v, dropout=0.5, **arguments) for _ in range(2)]
    assert not torch.equal(*outs)


@torch.no_grad()
def test_tensors_on_a_cpu_are_left_to_others() -> None:
    assert not can_attend(torch.randn(1, 1, 5, 8, dtype=torch.bfloat16), (0, 1, 0, 2, 0, 2), 1)


@torch.no_grad()
def test_long_memories_and_gradients_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_attention, "is_available", lambda: True)
    monkeypatch.setattr(triton_attention, "_room", lambda index: 1 << 20)
    q: Any = SimpleNamespace(
        is_cuda=True, dtype=torch.bfloat16, shape=(1, 4, 1569, 96), device=SimpleNamespace(index=0)
    )
    present = 8, 7, 7
    for num_clips, takes in ((0, True), (2, True), (16, True), (32, False)):
        past = (2 * num_clips, 4, 4) if num_clips else (0, 0, 0)
        sizes = [n for pair in zip(past, present, strict=True) for n in pair]
        assert can_attend(q, sizes, 1) is takes
    with torch.enable_grad():
        assert not can_attend(q, (0, 8, 0, 7, 0, 7), 1)
    monkeypatch.setattr(triton_attention, "_room", lambda index: 64 << 10)
    assert not can_attend(q, (0, 8, 0, 7, 0, 7), 1)
