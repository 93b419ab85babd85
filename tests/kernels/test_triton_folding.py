"""Attention with positions folded by Triton beside its definition: on the GPU where there is one, otherwise interpreted."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from compiling import compiling, ignores_defaults
from torch import Tensor

from interpreted import DEVICE, needs_triton
from memvit.kernels import triton_folding
from memvit.kernels.attention import FoldedPositions, KeyMask, RelativePositions, attention
from memvit.kernels.backend import reference_kernels
from memvit.kernels.triton_folding import Folding, can_fold
from memvit.models.positions import KeyGrid, PositionTables, relative_positions


class Case(NamedTuple):
    """Queries of a clip that attend to its own keys and to those of two past clips."""

    axes: str = "thw"
    has_past: bool = True
    has_mask: bool = True
    num_class: int = 1
    narrow_values: bool = True
    grid: tuple[int, int, int] = (2, 3, 5)
    head_dim: int = 16
    # Interpreted, products of bfloat16 are wrong (Triton 3.6 to 3.8 multiply the bits as if they were integers).
    dtype: torch.dtype = torch.float32


# What the other process runs


def errors(case: Case, wants_gradients: bool = True) -> tuple[float, float]:
    """The largest relative error of the result and of all gradients, against the definition on the same numbers."""
    torch.manual_seed(0)
    B, heads, num_class = 2, 2, case.num_class
    keys = [KeyGrid((2, 2, 3))]
    if case.has_past:
        keys.insert(0, KeyGrid((1, 1, 2), 2, 2))

    def random(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size).to(DEVICE, dtype).requires_grad_()

    sizes = dict(zip("thw", (5, 7, 41), strict=True))
    tables = [
        PositionTables(*(random(sizes[a], case.head_dim) if a in case.axes else None for a in "hwt")) for _ in keys
    ]
    num_past = 2 * (num_class + 2) if case.has_past else 0
    nums = [num_class + math.prod(case.grid), *[num_class + 12] * 2, *[num_past] * 2]
    tensors = [random(B, num, heads * case.head_dim, dtype=case.dtype) for num in nums if num]
    q, k, v, *past = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in tensors)
    past_k, past_v = past or (None, None)
    mask = None
    if case.has_mask:
        taken = torch.rand(B, num_past + k.shape[2], device=DEVICE) > 0.3
        taken[:, -1] = True
        mask = KeyMask(taken)

    def run(is_fast: bool) -> list[Tensor]:
        with torch.set_grad_enabled(wants_gradients), nullcontext() if is_fast else reference_kernels():
            positions = relative_positions(case.grid, keys, tables, num_class, case.dtype)
            if is_fast and positions.folded is None:
                positions = folded(positions, case)
            # What is read once must not be written to: in inference the queries are added in place.
            out = attention(
                q, k, v, past_k=past_k, past_v=past_v, positions=positions, key_mask=mask, residual_from=num_class
            )
            if not wants_gradients:
                return [out]
        leaves = [*tensors, *(t for part in tables for t in part if t is not None)]
        weights = torch.linspace(-1, 1, out.numel(), device=DEVICE).view(out.shape)
        return [out.detach(), *torch.autograd.grad((out.float() * weights).sum(), leaves)]

    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules["memvit.kernels.attention"]
        patch.setattr(module, "_takes_narrow_values", lambda _: case.narrow_values)
        patch.setattr(triton_folding, "can_fold", lambda q, folding: True)
        found, expected = run(True), run(False)
    largest = [
        float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in zip(found, expected, strict=True)
    ]
    return largest[0], max(largest[1:], default=0.0)


def folded(positions: RelativePositions, case: Case) -> RelativePositions:
    """As positions on a GPU are made."""
    sizes = [0] * 6
    for table in positions.tables:
        assert table.sizes is not None
        sizes[2 * table.axis : 2 * table.axis + 2] = table.sizes
    folding = Folding(case.grid, case.num_class, 0, tuple(sizes), has_mask=False)  # type: ignore[arg-type]
    axes, entries = [t.axis for t in positions.tables], [t.entry for t in positions.tables]
    columns = triton_folding.key_columns(folding, axes, entries)
    flat = torch.cat([table.table.flatten(0, 1) for table in positions.tables])
    return positions._replace(folded=FoldedPositions(flat.to(case.dtype), columns, folding.sizes))


def opcheck() -> list[dict[str, str]]:
    folding = Folding((1, 2, 2), 1, 8, (0, 2, 0, 1, 0, 2), has_mask=True)
    q = torch.randn(1, 5, 2, 8, device=DEVICE).transpose(1, 2).requires_grad_()
    tables = torch.randn(1 * 2 + 2 * 1 + 2 * 2, 8, device=DEVICE).requires_grad_()
    k, v = (torch.randn(1, 3, 2, 8, device=DEVICE).transpose(1, 2).requires_grad_() for _ in range(2))
    columns = torch.tensor([[-1, 0, 1], [-1, -1, -1], [-1, -1, 2]], dtype=torch.int32, device=DEVICE)
    mask = torch.tensor([[True, False, True]], device=DEVICE)
    numbers = [[1, 2, 2], 1, 8, [0, 2, 0, 1, 0, 2], True]
    return [
        torch.library.opcheck(torch.ops.memvit.fold_queries.default, (q, tables, *numbers)),
        torch.library.opcheck(
            torch.ops.memvit.fold_keys.default, (k, v, k[:, :, :0], v[:, :, :0], columns, mask, 16, 11, folding.width)
        ),
    ]


CASES = {
    "past_and_present_keys": Case(),
    "present_keys_alone": Case(has_past=False),
    "space_alone": Case(axes="hw"),
    "time_alone": Case(axes="t"),
    "width_alone": Case(axes="w", has_past=False),
    "no_class_token": Case(num_class=0),
    "no_mask": Case(has_mask=False),
    "values_as_wide_as_keys": Case(narrow_values=False),
    "rows_of_two_programs": Case(grid=(1, 2, 20)),
    "channels_no_power_of_two": Case(head_dim=24),
}


@needs_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_and_its_gradients_are_as_defined(process: ProcessPoolExecutor, case: Case) -> None:
    error, grad_error = process.submit(errors, case).result()
    assert error < 1e-5
    assert grad_error < 1e-5


@needs_triton
def test_attention_in_low_precision_is_as_defined(process: ProcessPoolExecutor) -> None:
    error, grad_error = process.submit(errors, Case(dtype=torch.float16)).result()
    assert error < 1e-2
    assert grad_error < 1e-2


@needs_triton
def test_attention_without_gradients_is_as_defined(process: ProcessPoolExecutor) -> None:
    error, _ = process.submit(errors, Case(), wants_gradients=False).result()
    assert error < 1e-5


@needs_triton
def test_the_operators_keep_the_rules_of_pytorch(process: ProcessPoolExecutor) -> None:
    for results in process.submit(opcheck).result():
        assert set(results.values()) == {"SUCCESS"}


@needs_triton
@ignores_defaults
@pytest.mark.parametrize(("grid", "heads"), [((8, 56, 56), 1), ((8, 7, 7), 8)])
def test_kernels_compile_for_gpus_that_are_not_here_and_keep_to_registers(
    grid: tuple[int, int, int], heads: int
) -> None:
    from memvit.kernels import triton_folding_backward, triton_folding_forward

    folding = Folding(grid, 1, 96, (4, 8, 4, 7, 4, 7), has_mask=True)
    num_past, num_keys = 2 * (1 + 4 * 4 * 4), 1 + 8 * 7 * 7  # of two past clips, and of this one

    def tokens(num: int, width: int) -> Tensor:
        return torch.empty(2, num, heads, width, dtype=torch.bfloat16).transpose(1, 2)

    q, folded_q = (tokens(1 + math.prod(grid), width) for width in (96, folding.width))
    k, v, past_k, past_v = (tokens(num, 96) for num in (num_keys, num_keys, num_past, num_past))
    num_keys += num_past
    columns, mask = torch.empty(3, num_keys, dtype=torch.int32), torch.ones(2, num_keys, dtype=torch.bool)
    tables = torch.empty(sum(n * folding.num_entries(axis) for axis, n in enumerate(grid)), 96, dtype=torch.bfloat16)
    with compiling(triton_folding_forward, triton_folding_backward) as compiled:
        triton_folding_forward.launch_fold_queries(q, tables, folded_q, folding)
        triton_folding_backward.launch_query_grad(folded_q, tables, q, folding)
        triton_folding_backward.launch_table_grad(folded_q, q, tables, folding)
        folded_k, narrow_v = tokens(num_keys, folding.width), tokens(num_keys, 96)
        triton_folding_forward.launch_fold_keys(
            k, v, past_k, past_v, columns, mask, folded_k, narrow_v, folding.used - 96 - 1
        )
    assert len(compiled) == 6  # three for the tables, by axis
    assert [kernel.name for kernel in compiled if kernel.spilled_bytes] == []


def test_positions_of_memvit_16x4_fit_into_the_width_that_fused_attention_is_fastest_at() -> None:
    folding = Folding((8, 56, 56), 1, 96, (4, 8, 4, 7, 4, 7), has_mask=True)
    assert folding.used == 96 + 12 + 9 + 9 + 1
    assert folding.width == 128


def test_tensors_on_a_cpu_are_left_to_others() -> None:
    assert not can_fold(torch.randn(1, 1, 5, 8), Folding((1, 2, 2), 1, 8, (0, 1, 0, 2, 0, 2), has_mask=False))
