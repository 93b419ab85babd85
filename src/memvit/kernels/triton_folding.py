"""Relative positions as extra dimensions of queries and keys, on GPUs, written in Triton: one launch for each of both.

A term of relative positions is a product of the query with one row of a table, and a key takes one such row of each axis. So the
products become extra dimensions of the query, a key has ones where it takes them, and PyTorch's fused attention does the
rest without ever writing the logits (the idea is known as FlashBias, arXiv 2505.12044).

Of the entries of an axis, a part of the keys (past, present) takes exactly one per key. So one entry of every part can be
subtracted from all its others and added to another axis instead: it needs no dimension then. With three axes and memory this
saves four dimensions of 35, which brings memvit_16x4's 96 + 35 under the 128 that fused attention is fastest at.

Triton is imported at the first launch: this module can be imported everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memvit.kernels.ops import ON_GPUS, register
from memvit.kernels.triton_pooling import DTYPES, is_available

Size3 = tuple[int, int, int]

MAX_HEAD_DIM = 256
MAX_ENTRIES = 128  # of an axis: one program holds them for a row of queries
MAX_ROW = 128  # queries side by side


class Folding(NamedTuple):
    """Where positions go among the dimensions of queries and keys.

    Attributes:
        grid: (time, height, width) of the queries.
        num_class: queries in front of the grid; 0 or 1.
        head_dim: of queries and keys.
        sizes: (past, present) entries of the tables along time, height and width, flat; 0 where there are none.
        has_mask: whether there is a dimension that masks keys.
    """

    grid: Size3
    num_class: int
    head_dim: int
    sizes: tuple[int, int, int, int, int, int]
    has_mask: bool

    @property
    def base(self) -> int:
        """The axis that keeps all its entries: the first one that has any."""
        return next((axis for axis in range(3) if self.num_entries(axis)), 0)

    def num_entries(self, axis: int) -> int:
        """Entries along an axis, of past and present keys."""
        return self.sizes[2 * axis] + self.sizes[2 * axis + 1]

    def num_columns(self, axis: int) -> int:
        """Dimensions that an axis needs."""
        dropped = 0 if axis == self.base else sum(size > 0 for size in self.sizes[2 * axis : 2 * axis + 2])
        return self.num_entries(axis) - dropped

    @property
    def starts(self) -> Size3:
        """The first dimension of each axis."""
        first = self.head_dim
        second = first + self.num_columns(0)
        return first, second, second + self.num_columns(1)

    @property
    def used(self) -> int:
        """Dimensions that are used: head_dim, those of positions, and that of the mask, which comes last."""
        return self.starts[2] + self.num_columns(2) + self.has_mask

    @property
    def width(self) -> int:
        """Dimensions of folded queries and keys, a multiple of 8 as fused attention wants it."""
        return -(-self.used // 8) * 8

    @property
    def constants(self) -> dict[str, int]:
        """What the kernels for queries are compiled for."""
        t, h, w = self.grid
        sizes = {f"{name}{axis}": self.sizes[2 * i + p] for i, axis in enumerate("THW") for p, name in enumerate("PE")}
        starts = {f"START_{axis}": start for axis, start in zip("THW", self.starts, strict=True)}
        return (
            {"T": t, "H": h, "W": w, "NUM_CLASS": self.num_class, "D": self.head_dim, "BASE": self.base}
            | sizes
            | starts
        )


def folds_on(device: torch.device) -> bool:
    """Whether positions are folded on this device, so that tables are to be made for it."""
    return is_available() and device.type == "cuda"


def can_fold(q: Tensor, folding: Folding) -> bool:
    """Whether `fold_queries` and `fold_keys` take these: on a GPU, of a dtype and of sizes that they know."""
    return (
        is_available()
        and q.is_cuda
        and q.dtype in DTYPES
        and folding.head_dim <= MAX_HEAD_DIM
        and folding.num_class <= 1
        and folding.grid[2] <= MAX_ROW
        and all(folding.num_entries(axis) <= MAX_ENTRIES for axis in range(3))
    )


def key_columns(folding: Folding, axes: Sequence[int], entries: Sequence[Tensor]) -> Tensor:
    """Which dimensions of a folded key are one.

    Args:
        axes: those that have positions.
        entries: for each of them (num_keys,), which entry each key takes, past ones counted first; -1: none.

    Returns:
        int32 (3, num_keys), counted from the first dimension after head_dim; -1: none.
    """
    num_keys = entries[0].shape[0] if entries else 0
    columns = torch.full((3, num_keys), -1, dtype=torch.int32, device=entries[0].device if entries else None)
    for axis, entry in zip(axes, entries, strict=True):
        past = folding.sizes[2 * axis]
        column = entry + folding.starts[axis] - folding.head_dim
        if axis != folding.base:
            is_first = (entry == 0) | (entry == past)
            column = column - (entry >= 0).int() - ((entry >= past).int() if past else 0)
            column = torch.where(is_first, -1, column)
        columns[axis] = torch.where(entry >= 0, column, -1)
    return columns


def fold_queries(q: Tensor, tables: Tensor, folding: Folding) -> Tensor:
    """Scaled queries, their products with the tables, a one for the mask, and zeros.

    Queries and tables get gradients (no second derivatives), which repeat bit for bit from run to run.

    Args:
        q: (B, heads, N, head_dim), N = num_class + T x H x W, unscaled.
        tables: (rows, head_dim), q's dtype: along time, for each time of the queries all entries, past ones first; then
            height, then width.

    Returns:
        (B, heads, N, width), laid out as (B, N, heads, width).
    """
    return _fold_queries(q, tables, *_flat(folding))


def fold_keys(
    k: Tensor,
    v: Tensor,
    past_k: Tensor | None,
    past_v: Tensor | None,
    columns: Tensor,
    key_mask: Tensor | None,
    width: int,
    mask_column: int,
    v_width: int,
) -> tuple[Tensor, Tensor]:
    """Past and present keys with ones where they take positions, and values.

    Args:
        k, v, past_k, past_v: (B, heads, keys, head_dim).
        columns: of `key_columns`.
        key_mask: bool (B or 1, past and present keys); the dimension `mask_column` of keys that are False is very negative.
        width, v_width: of the results; beyond head_dim values are 0.

    Returns:
        (B, heads, past and present keys, width) and (..., v_width), laid out as (B, keys, heads, ...).
    """
    return _fold_keys(k, v, past_k, past_v, columns, key_mask, width, mask_column, v_width)


def _flat(folding: Folding) -> tuple[list[int], int, int, list[int], bool]:
    return [*folding.grid], folding.num_class, folding.head_dim, [*folding.sizes], folding.has_mask


def _folding(grid: Sequence[int], num_class: int, head_dim: int, sizes: Sequence[int], has_mask: bool) -> Folding:
    t, h, w = grid
    return Folding((t, h, w), num_class, head_dim, tuple(sizes), has_mask)  # type: ignore[arg-type]


def _laid_out(q: Tensor, num_tokens: int, width: int) -> Tensor:
    B, heads = q.shape[:2]
    return q.new_empty(B, num_tokens, heads, width).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _run_fold_queries(q: Tensor, tables: Tensor, *numbers: Any) -> Tensor:
    from memvit.kernels.triton_folding_forward import launch_fold_queries

    folding = _folding(*numbers)
    out = _laid_out(q, q.shape[2], folding.width)
    with torch.cuda.device_of(q):
        launch_fold_queries(_rows(q), tables.contiguous(), out, folding)
    return out


def _run_fold_queries_backward(grad: Tensor, q: Tensor, tables: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    from memvit.kernels.triton_folding_backward import launch_query_grad, launch_table_grad

    folding = _folding(*numbers)
    q_grad = _laid_out(q, q.shape[2], folding.head_dim)
    with torch.cuda.device_of(q):
        grad, tables = _rows(grad), tables.contiguous()
        launch_query_grad(grad, tables, q_grad, folding)
        table_grad = launch_table_grad(grad, _rows(q), tables, folding)
    return q_grad, table_grad


def _run_fold_keys(
    k: Tensor,
    v: Tensor,
    past_k: Tensor | None,
    past_v: Tensor | None,
    columns: Tensor,
    key_mask: Tensor | None,
    width: int,
    mask_column: int,
    v_width: int,
) -> tuple[Tensor, Tensor]:
    from memvit.kernels.triton_folding_forward import launch_fold_keys

    out_k, out_v = _fake_fold_keys(k, v, past_k, past_v, columns, key_mask, width, mask_column, v_width)
    k, v = _rows(k), _rows(v)
    past = (k, v) if past_k is None or past_v is None else (_rows(past_k).to(k.dtype), _rows(past_v).to(k.dtype))
    with torch.cuda.device_of(k):
        launch_fold_keys(k, v, *past, columns, key_mask, out_k, out_v, mask_column)
    return out_k, out_v


def _fake_fold_queries(q: Tensor, tables: Tensor, *numbers: Any) -> Tensor:
    return _laid_out(q, q.shape[2], _folding(*numbers).width)


def _fake_fold_queries_backward(grad: Tensor, q: Tensor, tables: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    return _laid_out(q, q.shape[2], q.shape[3]), torch.empty_like(tables, dtype=torch.float32)


def _fake_fold_keys(
    k: Tensor,
    v: Tensor,
    past_k: Tensor | None,
    past_v: Tensor | None,
    columns: Tensor,
    key_mask: Tensor | None,
    width: int,
    mask_column: int,
    v_width: int,
) -> tuple[Tensor, Tensor]:
    num_keys = k.shape[2] + (0 if past_k is None else past_k.shape[2])
    return _laid_out(k, num_keys, width), _laid_out(k, num_keys, v_width)


_NUMBERS = "int[] grid, int num_class, int head_dim, int[] sizes, bool has_mask"  # of a `Folding`
_fold_queries = register(
    f"fold_queries(Tensor q, Tensor tables, {_NUMBERS}) -> Tensor", _run_fold_queries, _fake_fold_queries, ON_GPUS
)
_fold_queries_backward = register(
    f"fold_queries_backward(Tensor grad, Tensor q, Tensor tables, {_NUMBERS}) -> (Tensor, Tensor)",
    _run_fold_queries_backward,
    _fake_fold_queries_backward,
    ON_GPUS,
)
_fold_keys = register(
    "fold_keys(Tensor k, Tensor v, Tensor? past_k, Tensor? past_v, Tensor columns, Tensor? key_mask, int width, "
    "int mask_column, int v_width) -> (Tensor, Tensor)",
    _run_fold_keys,
    _fake_fold_keys,
    ON_GPUS,
)


def _keep_for_queries(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, tables, *ctx.numbers = inputs
    ctx.save_for_backward(q, tables)


def _queries_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    q, tables = ctx.saved_tensors
    q_grad, table_grad = _fold_queries_backward(grad, q, tables, *ctx.numbers)
    return q_grad, table_grad.to(tables.dtype), *(None,) * len(ctx.numbers)


def _keep_for_keys(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    k, _, past_k, past_v, *_ = inputs
    ctx.num_past, ctx.head_dim = 0 if past_k is None else past_k.shape[2], k.shape[3]
    ctx.past_dtypes = None if past_k is None or past_v is None else (past_k.dtype, past_v.dtype)


def _keys_backward(ctx: Any, k_grad: Tensor, v_grad: Tensor) -> tuple[Any, ...]:
    grads = [grad[..., : ctx.head_dim] for grad in (k_grad, v_grad)]
    past: list[Tensor | None] = [None, None]
    if ctx.past_dtypes is not None:
        past = [grad[:, :, : ctx.num_past].to(dtype) for grad, dtype in zip(grads, ctx.past_dtypes, strict=True)]
    present = [grad[:, :, ctx.num_past :] for grad in grads]
    return *present, *past, *(None,) * 5


torch.library.register_autograd("memvit::fold_queries", _queries_backward, setup_context=_keep_for_queries)
torch.library.register_autograd("memvit::fold_keys", _keys_backward, setup_context=_keep_for_keys)
