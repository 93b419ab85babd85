"""Decomposed relative positions: one table per axis, added to the attention logits (MViTv2, Li et al. 2022, eq. 4).

The term for query (t, h, w) and key (t', h', w') is q.Rh[h, h'] + q.Rw[w, w'] + q.Rt[t, t']. A key takes one entry of each
axis, so it is enough to know, per query, the products with all entries and, per key, which entry it takes (`AxisTable`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._guards import detect_fake_mode

from memvit.kernels import triton_folding
from memvit.kernels.attention import AxisTable, FoldedPositions, RelativePositions, pack_table
from memvit.kernels.ops import register
from memvit.kernels.triton_attention import key_ones, num_columns
from memvit.kernels.triton_folding import Folding, key_columns
from memvit.models.config import Size3


def spatial_index(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Which row of a table belongs to each query and key along one axis, (num_queries, num_keys).

    The coarser side is scaled up to the finer one. float32, in this order, truncated: grids that do not divide one
    another depend on it.
    """
    q_ratio, k_ratio = max(num_keys / num_queries, 1.0), max(num_queries / num_keys, 1.0)
    q = torch.arange(num_queries, device=device, dtype=torch.float32)[:, None] * q_ratio
    k = torch.arange(num_keys, device=device, dtype=torch.float32)[None, :] * k_ratio
    return (q - k + (num_keys - 1) * k_ratio).long()


def plane_indices(
    q_size: tuple[int, int], k_size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor, int, int]:
    """Table rows for both spatial axes and the table length that each expects.

    On a grid that is not square, the long axis is measured with the short one's ratios and offset and clamped to the
    rows that the short axis reaches, as the authors' model was trained.

    Args:
        q_size, k_size: (height, width) of the query and key grids.

    Returns:
        (q_h, k_h) and (q_w, k_w) indices, and the table lengths for h and w.
    """
    length_h, length_w = plane_lengths(q_size, k_size)
    index_h = spatial_index(q_size[0], k_size[0], device)
    index_w = spatial_index(q_size[1], k_size[1], device)
    if q_size[1] > q_size[0]:
        return index_h, _like_short_axis(q_size[0], k_size[0], q_size[1], k_size[1], index_h), length_h, length_w
    if q_size[1] < q_size[0]:
        return _like_short_axis(q_size[1], k_size[1], q_size[0], k_size[0], index_w), index_w, length_h, length_w
    return index_h, index_w, length_h, length_w


def plane_lengths(q_size: tuple[int, int], k_size: tuple[int, int]) -> tuple[int, int]:
    """Rows that the tables of height and width need; that of a long axis as many as that of the short one."""
    length_h, length_w = (2 * max(q, k) - 1 for q, k in zip(q_size, k_size, strict=True))
    if q_size[1] > q_size[0]:
        return length_h, length_h
    return (length_w, length_w) if q_size[1] < q_size[0] else (length_h, length_w)


def _like_short_axis(short_q: int, short_k: int, long_q: int, long_k: int, short_index: Tensor) -> Tensor:
    q_ratio, k_ratio = max(short_k / short_q, 1.0), max(short_q / short_k, 1.0)
    q = torch.arange(long_q, device=short_index.device, dtype=torch.float32)[:, None] * q_ratio
    k = torch.arange(long_k, device=short_index.device, dtype=torch.float32)[None, :] * k_ratio
    index = (q - k + (short_k - 1) * k_ratio).long()
    return torch.minimum(torch.maximum(index, short_index.min()), short_index.max())


def temporal_index(num_queries: int, num_keys: int, key_stride: int, table_length: int, device: torch.device) -> Tensor:
    """Table rows along time, (num_queries, num_keys).

    Args:
        num_keys: key times, of all remembered clips laid end to end where the keys are memory.
        key_stride: clip tokens that one key time stands for (the temporal stride of compression).
        table_length: rows there are; what lies beyond takes the last one.
    """
    q = torch.arange(num_queries, device=device)[:, None]
    k = torch.arange(num_keys, device=device)[None, :]
    return (q - k * key_stride + (num_keys - 1) * key_stride).clamp(0, table_length - 1)


def resize_table(table: Tensor, length: int) -> Tensor:
    """A (rows, head_dim) table resized to `length` rows by linear interpolation."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T


class PositionTables(NamedTuple):
    """The tables of one layer, (rows, head_dim) each; None where positions along that axis are off."""

    h: Tensor | None
    w: Tensor | None
    t: Tensor | None


class KeyGrid(NamedTuple):
    """Keys of clips that follow one another, oldest first, each with its class token in front.

    Attributes:
        grid: (time, height, width) of one clip's keys.
        num_clips: how many clips.
        stride_t: clip tokens that one key time stands for.
    """

    grid: Size3
    num_clips: int = 1
    stride_t: int = 1


class _Geometry(NamedTuple):
    """All that tells which numbers of the tables go where, and nothing of their values.

    Attributes:
        q_grid, keys, num_class: as for `relative_positions`.
        axes: those that have positions.
        lengths: rows of each table, by axis, then by part.
        device: of the tables.
    """

    q_grid: Size3
    keys: tuple[KeyGrid, ...]
    axes: tuple[int, ...]
    lengths: tuple[int, ...]
    num_class: int
    device: torch.device


def relative_positions(
    q_grid: Size3, keys: Sequence[KeyGrid], tables: Sequence[PositionTables], num_class: int, dtype: torch.dtype
) -> RelativePositions:
    """The positions of one clip's queries against keys that are given in parts (remembered ones, then the clip's own).

    Args:
        q_grid: (time, height, width) of the queries.
        keys: the parts, in the order of the keys: one, or past and present ones.
        tables: of each part, for queries against its keys; all along the same axes.
        num_class: class tokens in front of queries and of every clip's keys; theirs get nothing.
        dtype: of the queries.
    """
    axes = [axis for axis, name in enumerate("thw") if getattr(tables[0], name) is not None]
    found = [[part[(2, 0, 1)[axis]] for part in tables] for axis in axes]
    device = next(t for t in found[0] if t is not None).device
    resized, lengths = [], []
    for axis, parts in zip(axes, found, strict=True):
        for part, table in zip(keys, parts, strict=True):
            assert table is not None
            length = table.shape[0] if axis == 0 else plane_lengths(q_grid[1:], part.grid[1:])[axis - 1]
            resized.append(resize_table(table, length))
            lengths.append(length)
    sizes = _sizes(keys, axes)
    geometry = _Geometry(q_grid, tuple(keys), tuple(axes), tuple(lengths), num_class, device)
    joined = torch.cat(resized)
    if device.type == "cuda" and torch.is_grad_enabled():
        # A matrix product, because the gradient of an index takes a dozen launches.
        with torch.autocast("cuda", enabled=False):
            flat = _layout("selection", geometry).to(joined.dtype) @ joined
    else:
        flat = joined[_layout("index", geometry)]
    packs = not torch.is_grad_enabled() and device.type == "cpu"  # then the kernel for CPUs may run
    by_axis, start = [], 0
    for axis in axes:
        own = sizes[2 * axis], sizes[2 * axis + 1]
        stop = start + q_grid[axis] * sum(own)
        table = flat[start:stop].unflatten(0, (q_grid[axis], sum(own)))
        entry, row = (_layout(f"{name} {axis}", geometry) for name in ("entry", "row"))
        by_axis.append(AxisTable(axis, table, entry, row, pack_table(table) if packs else None, own))
        start = stop
    folded = None
    if triton_folding.folds_on(device):
        ones = None if torch.is_grad_enabled() else _layout("ones", geometry).to(dtype)
        folded = FoldedPositions(flat.to(dtype), _layout("columns", geometry), sizes, ones)
    return RelativePositions(q_grid, num_class, tuple(by_axis), folded)


def _sizes(keys: Sequence[KeyGrid], axes: Sequence[int]) -> tuple[int, int, int, int, int, int]:
    """Entries of past and of present keys along time, height and width; 0 where there are no positions."""
    of_past, of_present = [(0, 0, 0)] * (2 - len(keys)) + [
        (part.num_clips * part.grid[0], *part.grid[1:]) for part in keys
    ]
    t, h, w = ((of_past[axis], of_present[axis]) if axis in axes else (0, 0) for axis in range(3))
    return *t, *h, *w


def _layout(name: str, geometry: _Geometry) -> Tensor:
    """One tensor of `_make_layout`, which has nothing to do with parameters and is worked out once.

    Where PyTorch traces, an operator gives it: traced itself it would be worked out at every step.
    """
    if torch.compiler.is_compiling() or detect_fake_mode() is not None:
        q_grid, keys, *rest = geometry
        numbers = [n for part in keys for n in (*part.grid, part.num_clips, part.stride_t)]
        return _position_layout(name, q_grid, numbers, *rest)
    return _kept_layout(name, geometry)


def _kept_layout(name: str, geometry: _Geometry) -> Tensor:
    found = _make_layout(geometry)
    if name == "selection" and name not in found:
        with torch.inference_mode(mode=False):
            rows = torch.arange(sum(geometry.lengths), device=geometry.device)
            found[name] = (found["index"][:, None] == rows).float()
    return found[name]


@functools.lru_cache(maxsize=256)
def _make_layout(geometry: _Geometry) -> dict[str, Tensor]:
    """Where every number of the tables by place comes from, and which of them each key takes.

    Returns:
        index: (rows,), for each place of the queries along time and each entry, then along height, then width, the row among
            all rows of all tables, one table after the other; "selection" is the same as a matrix of zeros and ones, made when
            it is first wanted. columns: of `triton_folding.key_columns`. ones: of `triton_attention.key_ones`. For every axis,
            "entry AXIS" and "row AXIS" of
            `AxisTable`.
    """
    q_grid, keys, axes, lengths, num_class, device = geometry
    found, indices, first = {}, [], 0
    with torch.inference_mode(mode=False):  # what is kept here serves training as well
        for number, axis in enumerate(axes):
            parts, entries, start = [], [], 0
            for i, part in enumerate(keys):
                length = lengths[number * len(keys) + i]
                index, entry = _axis_index(axis, q_grid, part, length, device)
                parts.append(index + first)
                entries.append(_with_class(start + entry, num_class))
                first, start = first + length, start + index.shape[1]
            indices.append(torch.cat(parts, dim=1).flatten())
            row = torch.arange(q_grid[axis], device=device, dtype=torch.int32)
            row = row.view([-1 if i == axis else 1 for i in range(3)]).expand(q_grid)
            found[f"row {axis}"] = F.pad(row.flatten(), (num_class, 0), value=-1)
            found[f"entry {axis}"] = torch.cat(entries)
        folding = Folding(q_grid, num_class, 0, _sizes(keys, axes), has_mask=True)
        found["columns"] = key_columns(folding, axes, [found[f"entry {axis}"] for axis in axes])
        found["ones"] = key_ones(found["columns"], folding)
        found["index"] = torch.cat(indices)
    return found


def _run_layout(name: str, q_grid: Sequence[int], keys: Sequence[int], *rest: Any) -> Tensor:
    return _kept_layout(
        name, _geometry(q_grid, keys, *rest)
    ).clone()  # what an operator returns is not its own any more


def _fake_layout(name: str, *arguments: Any) -> Tensor:
    q_grid, keys, axes, lengths, num_class, device = _geometry(*arguments)
    sizes = _sizes(keys, axes)
    num_keys = sum(part.num_clips * (num_class + math.prod(part.grid)) for part in keys)
    num_rows = sum(q_grid[axis] * (sizes[2 * axis] + sizes[2 * axis + 1]) for axis in axes)
    if name == "selection":
        return torch.empty(num_rows, sum(lengths), device=device)
    if name == "index":
        return torch.empty(num_rows, dtype=torch.long, device=device)
    if name == "ones":
        folding = Folding(q_grid, num_class, 0, sizes, has_mask=True)
        return torch.empty(2, num_keys, num_columns(folding), dtype=torch.bool, device=device)
    size = {"columns": (3, num_keys), "entry": (num_keys,), "row": (num_class + math.prod(q_grid),)}[name.split()[0]]
    return torch.empty(size, dtype=torch.int32, device=device)


def _geometry(
    q_grid: Sequence[int],
    keys: Sequence[int],
    axes: Sequence[int],
    lengths: Sequence[int],
    num_class: int,
    device: torch.device,
) -> _Geometry:
    """From an operator's arguments: of each part of the keys five numbers."""
    parts = (keys[i : i + 5] for i in range(0, len(keys), 5))
    grids = tuple(KeyGrid(_size3(part[:3]), *part[3:]) for part in parts)
    return _Geometry(_size3(q_grid), grids, tuple(axes), tuple(lengths), num_class, device)


def _size3(size: Sequence[int]) -> Size3:
    t, h, w = size
    return t, h, w


_position_layout = register(
    "position_layout(str name, int[] q_grid, int[] keys, int[] axes, int[] lengths, int num_class, Device device) -> Tensor",
    _run_layout,
    _fake_layout,
    ("CompositeExplicitAutograd",),
)


def _axis_index(axis: int, q_grid: Size3, keys: KeyGrid, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which row of the part's table each place and entry takes, (places, entries), and each key's entry, (clips, keys)."""
    (tq, hq, wq), (tk, hk, wk), num_clips = q_grid, keys.grid, keys.num_clips
    if axis == 0:
        index = temporal_index(tq, num_clips * tk, keys.stride_t, length, device)
        entry = torch.arange(num_clips * tk, device=device)[:, None, None]
    elif axis == 1:
        index = plane_indices((hq, wq), (hk, wk), device)[0]
        entry = torch.arange(hk, device=device)[None, :, None]
    else:
        index = plane_indices((hq, wq), (hk, wk), device)[1]
        entry = torch.arange(wk, device=device)[None, None]
    return index, entry.expand(num_clips * tk, hk, wk).reshape(num_clips, tk * hk * wk)


def _with_class(entry: Tensor, num_class: int) -> Tensor:
    return F.pad(entry, (num_class, 0), value=-1).flatten().to(torch.int32)


class AbsolutePositions(nn.Module):
    """Learned positions added to the tokens, resized to the clip's grid. Names as in the authors' checkpoints."""

    def __init__(self, kind: str, grid: Size3, dim: int, has_class_token: bool) -> None:
        super().__init__()
        self.grid = grid
        self.has_class_token = has_class_token
        t, h, w = grid
        if kind == "joint":
            self.pos_embed = nn.Parameter(torch.zeros(1, t * h * w + int(has_class_token), dim))
        else:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, h * w, dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, t, dim))
            if has_class_token:
                self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, dim))
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)
        self.joint = kind == "joint"

    def forward(self, grid: Size3) -> Tensor:
        """The table for a token grid, (1, N, dim), class token first."""
        if self.joint:
            num_class = int(self.has_class_token)
            class_position, table = self.pos_embed[:, :num_class], self.pos_embed[:, num_class:]
            return torch.cat([class_position, self._resize(table, self.grid, grid)], dim=1)
        space = self._resize(self.pos_embed_spatial, (1, *self.grid[1:]), (1, *grid[1:]))
        time = self._resize(self.pos_embed_temporal, (self.grid[0], 1, 1), (grid[0], 1, 1))
        table = (time[:, :, None] + space[:, None]).flatten(1, 2)
        return torch.cat([self.pos_embed_class, table], dim=1) if self.has_class_token else table

    @staticmethod
    def _resize(table: Tensor, own: Size3, wanted: Size3) -> Tensor:
        if own == wanted:
            return table
        volume = table.unflatten(1, own).permute(0, 4, 1, 2, 3)
        return F.interpolate(volume, size=wanted, mode="trilinear").flatten(2).transpose(1, 2)
