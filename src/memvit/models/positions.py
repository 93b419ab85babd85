"""Decomposed relative positions: one table per axis, added to the attention logits (MViTv2, Li et al. 2022, eq. 4).

The term for query (t, h, w) and key (t', h', w') is q.Rh[h, h'] + q.Rw[w, w'] + q.Rt[t, t']. A key takes one entry of each
axis, so it is enough to know, per query, the products with all entries (`AttentionTerm.values`) and, per key, which entry
it takes (`AttentionTerm.entry`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memvit.kernels.attention import AttentionTerm
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


def position_terms(
    q: Tensor,
    q_grid: Size3,
    k_grid: Size3,
    tables: PositionTables,
    *,
    num_clips: int = 1,
    key_stride_t: int = 1,
    has_class_token: bool,
) -> list[AttentionTerm]:
    """The position terms between one clip's queries and the keys of one clip, or of `num_clips` remembered ones.

    Args:
        q: unscaled queries, (B, heads, N, head_dim), class token first where there is one.
        q_grid, k_grid: (time, height, width) of the queries and of one clip's keys.
        num_clips: clips whose keys follow one another, oldest first, each with its class token in front.
        key_stride_t: clip tokens that one key time stands for.
    """
    tq, hq, wq = q_grid
    tk, hk, wk = k_grid
    num_class = int(has_class_token)
    points = q[:, :, num_class:].unflatten(2, q_grid)  # (B, heads, T, H, W, head_dim)

    def term(equation: str, table: Tensor, index: Tensor, entry: Tensor) -> AttentionTerm:
        """From table rows per query and key coordinate, and the key coordinate of each key, (clips * T, H, W)."""
        values = torch.einsum(equation, points, table.to(q.dtype)[index]).flatten(2, 4)
        entry = entry.expand(num_clips * tk, hk, wk).reshape(num_clips, tk * hk * wk)
        # The class tokens' rows and columns get nothing.
        return AttentionTerm(F.pad(values, (0, 0, num_class, 0)), F.pad(entry, (num_class, 0), value=-1).flatten())

    terms = []
    if tables.h is not None and tables.w is not None:
        index_h, index_w, length_h, length_w = plane_indices((hq, wq), (hk, wk), q.device)
        h, w = torch.arange(hk, device=q.device), torch.arange(wk, device=q.device)
        terms.append(term("bnthwc,hkc->bnthwk", resize_table(tables.h, length_h), index_h, h[None, :, None]))
        terms.append(term("bnthwc,wkc->bnthwk", resize_table(tables.w, length_w), index_w, w[None, None, :]))
    if tables.t is not None:
        index_t = temporal_index(tq, num_clips * tk, key_stride_t, tables.t.shape[0], q.device)
        t = torch.arange(num_clips * tk, device=q.device)
        terms.append(term("bnthwc,tkc->bnthwk", tables.t, index_t, t[:, None, None]))
    return terms


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
