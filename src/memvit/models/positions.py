"""Decomposed relative positions: one table per axis, added to the attention logits (MViTv2, Li et al. 2022, eq. 4).

The term for query (t, h, w) and key (t', h', w') is q.Rh[h, h'] + q.Rw[w, w'] + q.Rt[t, t']. A key takes one entry of each
axis, so it is enough to know, per query, the products with all entries and, per key, which entry it takes (`AxisTable`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memvit.kernels.attention import AxisTable, RelativePositions, pack_tables
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
    length_h, length_w = (2 * max(q, k) - 1 for q, k in zip(q_size, k_size, strict=True))
    index_h = spatial_index(q_size[0], k_size[0], device)
    index_w = spatial_index(q_size[1], k_size[1], device)
    if q_size[1] > q_size[0]:
        return index_h, _like_short_axis(q_size[0], k_size[0], q_size[1], k_size[1], index_h), length_h, length_h
    if q_size[1] < q_size[0]:
        return _like_short_axis(q_size[1], k_size[1], q_size[0], k_size[0], index_w), index_w, length_w, length_w
    return index_h, index_w, length_h, length_w


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
        tables: for queries against these keys.
        num_clips: how many clips.
        stride_t: clip tokens that one key time stands for.
    """

    grid: Size3
    tables: PositionTables
    num_clips: int = 1
    stride_t: int = 1


def relative_positions(q_grid: Size3, keys: Sequence[KeyGrid], num_class: int) -> RelativePositions:
    """The positions of one clip's queries against keys that are given in parts (remembered ones, then the clip's own).

    Args:
        q_grid: (time, height, width) of the queries.
        keys: the parts, in the order of the keys; all have tables along the same axes.
        num_class: class tokens in front of queries and of every clip's keys; theirs get nothing.
    """
    packs = not torch.is_grad_enabled()  # then the kernel for CPUs may run
    tables = []
    for axis, name in enumerate("thw"):
        parts = [_axis_table(axis, q_grid, part) for part in keys if getattr(part.tables, name) is not None]
        if not parts:
            continue
        assert len(parts) == len(keys)
        table = torch.cat([table for table, _ in parts], dim=1)
        starts = [sum(t.shape[1] for t, _ in parts[:i]) for i in range(len(parts))]
        entry = torch.cat([_with_class(start + e, num_class) for start, (_, e) in zip(starts, parts, strict=True)])
        row = torch.arange(q_grid[axis], device=table.device, dtype=torch.int32)
        row = row.view([-1 if i == axis else 1 for i in range(3)]).expand(q_grid)
        packed = pack_tables(table) if packs and table.device.type == "cpu" else None
        tables.append(AxisTable(axis, table, entry, F.pad(row.flatten(), (num_class, 0), value=-1), packed))
    return RelativePositions(q_grid, num_class, tuple(tables))


def _axis_table(axis: int, q_grid: Size3, keys: KeyGrid) -> tuple[Tensor, Tensor]:
    """What queries along an axis multiply with, (places, entries, head_dim), and each key's entry, (clips, keys)."""
    (tq, hq, wq), (tk, hk, wk), num_clips = q_grid, keys.grid, keys.num_clips
    table = keys.tables[(2, 0, 1)[axis]]
    assert table is not None
    device = table.device
    if axis == 0:
        index = temporal_index(tq, num_clips * tk, keys.stride_t, table.shape[0], device)
        entry = torch.arange(num_clips * tk, device=device)[:, None, None]
    else:
        index_h, index_w, length_h, length_w = plane_indices((hq, wq), (hk, wk), device)
        index, length = (index_h, length_h) if axis == 1 else (index_w, length_w)
        table = resize_table(table, length)
        entry = (
            torch.arange(hk, device=device)[None, :, None] if axis == 1 else torch.arange(wk, device=device)[None, None]
        )
    return table[index], entry.expand(num_clips * tk, hk, wk).reshape(num_clips, tk * hk * wk)


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
