"""Attention over present and remembered keys, with relative positions that decompose along axes.

Definition (`attention_reference`): logits are built, terms are gathered and added, softmax, values. No fast form writes the
logits:

- with PyTorch alone, a term is a product of the query's values with the key's one-hot entry, so values and one-hot entries
  become extra dimensions of queries and keys, and a fused attention does the rest (the idea is known as FlashBias,
  arXiv 2505.12044);
- on GPUs two kernels of ours (`triton_folding`) write such queries and keys, and where no gradients are wanted, in low precision,
  one does all of it (`triton_attention`);
- on CPUs, where no gradients are wanted, a kernel of ours (csrc/attention.inl) adds the terms tile by tile, and reads past
  and present keys where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from memvit.kernels import cpu, tiles, triton_attention, triton_folding
from memvit.kernels.backend import use_reference
from memvit.kernels.ops import register

Size3 = tuple[int, int, int]

LOG2_E = 1.4426950408889634


class AttentionTerm(NamedTuple):
    """One additive term of the logits: `logits[b, n, i, j] += values[b, n, i, entry[j]]`.

    Attributes:
        values: (B or 1, heads or 1, num_queries, entries).
        entry: (num_keys,), which entry each key takes; -1: none, nothing is added.
    """

    values: Tensor
    entry: Tensor


class AxisTable(NamedTuple):
    """Relative positions along one axis: a query at r gets `q . table[r, entry[j]]` added to its logit of key j.

    Attributes:
        axis: of the queries' grid: 0 time, 1 height, 2 width.
        table: (size of the axis, entries, head_dim).
        entry: int32 (num_keys,), which entry each key takes, remembered keys first; -1: none, nothing is added.
        row: int32 (num_queries,), where each query is along the axis; -1 for class tokens.
        packed: `pack_table(table)`, for the kernels on CPUs; None: to be packed when they run.
        sizes: entries of past and of present keys, one after the other; each such key takes one of its part, or none along
            any axis. Left out: not known to be so.
    """

    axis: int
    table: Tensor
    entry: Tensor
    row: Tensor
    packed: PackedTable | None
    sizes: tuple[int, int] | None = None


class FoldedPositions(NamedTuple):
    """Relative positions as the kernels on GPUs take them, see `triton_folding`.

    Attributes:
        tables: (rows, head_dim), all axes' tables one after the other, in the dtype of the queries.
        columns: int32 (3, num_keys), of `triton_folding.key_columns`.
        sizes: entries of past and present keys along time, height and width.
        ones: of `triton_attention.key_ones`, in the dtype of the queries, where no gradients are wanted.
    """

    tables: Tensor
    columns: Tensor
    sizes: tuple[int, int, int, int, int, int]
    ones: Tensor | None = None


class RelativePositions(NamedTuple):
    """Relative positions of queries on a grid.

    Attributes:
        grid: (time, height, width) of the queries, after `num_class` class tokens, which get nothing.
        tables: one per axis that has positions.
        folded: for the kernels on GPUs; None: not made for them.
    """

    grid: Size3
    num_class: int
    tables: tuple[AxisTable, ...]
    folded: FoldedPositions | None = None

    def terms(self, q: Tensor) -> list[AttentionTerm]:
        """The terms for queries (B, heads, N, head_dim), unscaled."""
        points = q[:, :, self.num_class :].unflatten(2, self.grid)  # (B, heads, T, H, W, head_dim)
        terms = []
        for table in self.tables:
            along = f"{'thw'[table.axis]}kc"
            values = torch.einsum(f"bnthwc,{along}->bnthwk", points, table.table.to(q.dtype)).flatten(2, 4)
            terms.append(AttentionTerm(F.pad(values, (0, 0, self.num_class, 0)), table.entry))
        return terms


class KeyMask:
    """Which keys take part in the softmax.

    Args:
        taken: bool (B or 1, past and present keys); keys that are False take no part.
    """

    def __init__(self, taken: Tensor) -> None:
        self._taken: Tensor | None = taken
        self._clips: tuple[Tensor, int, int] | None = None

    @classmethod
    def of_clips(cls, seen: Tensor, num_past: int, num_present: int) -> KeyMask:
        """Past clips, of `num_past` keys each, take part where they are `seen`, bool (B, clips), and so do all `num_present` keys
        of the present.
        """
        mask = cls(seen)
        mask._taken, mask._clips = None, (seen, num_past, num_present)
        return mask

    @property
    def seen(self) -> Tensor | None:
        """Of a mask of clips which past ones take part, bool (B, clips)."""
        return None if self._clips is None else self._clips[0]

    @property
    def taken(self) -> Tensor:
        """Which keys take part, bool (B or 1, past and present keys), worked out once."""
        if self._taken is not None:
            return self._taken
        assert self._clips is not None
        seen, num_past, num_present = self._clips
        past = seen[:, :, None].expand(-1, -1, num_past).flatten(1)
        taken = torch.cat([past, past.new_ones(len(past), num_present)], dim=1)
        if not torch.compiler.is_compiling():  # a compiler sees for itself what is the same
            self._taken = taken
        return taken


class PackedTable(NamedTuple):
    """A table times log2(e) as the kernels on CPUs want it, for every kind of operands.

    Attributes:
        plain: float32 (rows, head_dim, entries).
        pairs: bfloat16 (rows, head_dim / 2, entries, 2).
        tiles: of `tiles.pack_table`, in three parts for float32 and in one for bfloat16.
    """

    plain: Tensor
    pairs: Tensor
    tiles: tuple[Tensor, Tensor]

    def for_operands(self, dtype: torch.dtype) -> Tensor:
        """What attention to tensors of this dtype reads here."""
        if cpu.has_tiles():
            return self.tiles[int(dtype == torch.bfloat16)]
        return self.pairs if dtype == torch.bfloat16 and cpu.has_bfloat16() else self.plain


def pack_table(table: Tensor) -> PackedTable | None:
    """(rows, entries, head_dim) for the kernels; None where they do not take such heads."""
    if table.shape[2] % 2:
        return None
    scaled = table.float() * LOG2_E
    plain = F.pad(scaled.transpose(1, 2), (0, -table.shape[1] % 16)).contiguous()
    pairs = plain.unflatten(1, (-1, 2)).transpose(2, 3).to(torch.bfloat16).contiguous()
    return PackedTable(plain, pairs, (tiles.pack_table(scaled, 3), tiles.pack_table(scaled, 1)))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
    positions: RelativePositions | None = None,
    terms: Sequence[AttentionTerm] = (),
    key_mask: KeyMask | None = None,
    dropout: float = 0.0,
    residual_from: int | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + positions + terms) v.

    Args:
        q: (B, heads, num_queries, head_dim), unscaled.
        k, v: (B, heads, num_keys, head_dim).
        past_k, past_v: keys and values that come before k and v.
        positions: relative positions, over past and present keys.
        terms: what else is added to the logits.
        key_mask: which keys take part in the softmax; None: all.
        dropout: rate on the softmax.
        residual_from: q is added to the result, but for this many first queries; None: it is not (paper of MViTv2, eq. 3).

    Returns:
        (B, heads, num_queries, head_dim).
    """
    if not use_reference() and not terms and not dropout and _cpu_kernel_takes(q, k, v, past_k, past_v, positions):
        tables = positions.tables if positions else ()
        return _cpu_attention(
            q,
            k,
            v,
            past_k,
            past_v,
            [_packed(table).for_operands(q.dtype) for table in tables],
            [table.row for table in tables],
            [table.entry for table in tables],
            _taken(key_mask),
            q.shape[-1] ** -0.5,
            -1 if residual_from is None else residual_from,
        )
    if not use_reference() and not terms and positions and positions.folded:
        folded, is_alike = positions.folded, q.dtype == k.dtype == v.dtype
        can_attend = is_alike and not dropout and triton_attention.can_attend(q, folded.sizes, positions.num_class)
        if can_attend and folded.ones is not None:
            seen, ones = _seen_and_ones(folded.ones, key_mask)
            return triton_attention.triton_attention(
                q,
                k,
                v,
                past_k,
                past_v,
                folded.tables,
                seen,
                ones,
                positions.grid,
                positions.num_class,
                folded.sizes,
                residual_from,
            )
        folding = triton_folding.Folding(
            positions.grid, positions.num_class, q.shape[-1], folded.sizes, key_mask is not None
        )
        if is_alike and triton_folding.can_fold(q, folding):
            out = _attention_on_gpu(q, k, v, past_k, past_v, folded, key_mask, dropout, folding)
            return out if residual_from is None else _add_queries(out, q, residual_from)
    if past_k is not None and past_v is not None:
        k, v = torch.cat([past_k.to(k.dtype), k], dim=2), torch.cat([past_v.to(v.dtype), v], dim=2)
    terms = [*(positions.terms(q) if positions else ()), *terms]
    compute = attention_reference if use_reference() else _folded_attention
    out = compute(q, k, v, terms=terms, key_mask=_taken(key_mask), dropout=dropout)
    if residual_from is None:
        return out
    return out + F.pad(q[:, :, residual_from:], (0, 0, residual_from, 0))


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    terms: Sequence[AttentionTerm] = (),
    key_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What `attention` computes, written out."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    for values, entry in terms:
        picked = values.to(q.dtype)[..., entry.clamp(min=0)]
        logits = logits + picked * (entry >= 0)
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, None, :], float("-inf"))
    return F.dropout(logits.softmax(dim=-1), dropout) @ v


def _folded_attention(
    q: Tensor, k: Tensor, v: Tensor, *, terms: Sequence[AttentionTerm], key_mask: Tensor | None, dropout: float
) -> Tensor:
    """Terms and mask as extra dimensions of queries and keys."""
    scale = q.shape[-1] ** -0.5
    if not terms and key_mask is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)

    B, heads, num_queries, _ = q.shape
    extra_q = [term.values.to(q.dtype).expand(B, heads, -1, -1) for term in terms]
    extra_k = [_one_hot(term, k.dtype).expand(B, heads, -1, -1) for term in terms]
    if key_mask is not None:
        extra_q.append(q.new_ones(1).expand(B, heads, num_queries, 1))
        extra_k.append((~key_mask).to(k.dtype).mul(masked_logit(k.dtype))[:, None, :, None].expand(B, heads, -1, -1))
    q = torch.cat([q * scale, *extra_q], dim=-1)
    k = torch.cat([k, *extra_k], dim=-1)
    # Fused attention wants q, k and v equally wide, on GPUs by a multiple of 8; otherwise the logits are written after all.
    head_dim, width = v.shape[-1], -(-q.shape[-1] // 8) * 8
    q, k, v = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=1.0)[..., :head_dim]


def _taken(key_mask: KeyMask | None) -> Tensor | None:
    return None if key_mask is None else key_mask.taken


def _seen_and_ones(ones: Tensor, key_mask: KeyMask | None) -> tuple[Tensor | None, Tensor]:
    """What `triton_attention` takes of a mask, from those of `triton_attention.key_ones`."""
    if key_mask is None:
        return None, ones[0]
    if key_mask.seen is not None and key_mask.seen.shape[1] <= triton_attention.MAX_CLIPS:
        return key_mask.seen, ones
    return None, triton_attention.masked_ones(ones, key_mask.taken)


def _attention_on_gpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_k: Tensor | None,
    past_v: Tensor | None,
    folded: FoldedPositions,
    key_mask: KeyMask | None,
    dropout: float,
    folding: triton_folding.Folding,
) -> Tensor:
    # Hopper's fused attention takes values that are narrower than keys; those of other GPUs write the logits then.
    v_width = folding.head_dim if _takes_narrow_values(q) else folding.width
    folded_q = triton_folding.fold_queries(q, folded.tables, folding)
    folded_k, joined_v = triton_folding.fold_keys(
        k, v, past_k, past_v, folded.columns, _taken(key_mask), folding.width, folding.used - 1, v_width
    )
    out = F.scaled_dot_product_attention(folded_q, folded_k, joined_v, dropout_p=dropout, scale=1.0)
    return out if v_width == folding.head_dim else out[..., : folding.head_dim]


@torch.compiler.assume_constant_result
def _takes_narrow_values_on(device_index: int) -> bool:
    return torch.cuda.get_device_capability(device_index) >= (9, 0)


def _takes_narrow_values(q: Tensor) -> bool:
    if not q.is_cuda or q.dtype == torch.float32 or q.shape[-1] % 8:
        return False
    return _takes_narrow_values_on(q.device.index)


def _add_queries(out: Tensor, q: Tensor, first: int) -> Tensor:
    """out + q, but for the first queries."""
    if not torch.is_grad_enabled():
        out[:, :, first:] += q[:, :, first:]
        return out
    taken = F.pad(q.new_ones(1).expand(q.shape[2] - first, 1), (0, 0, first, 0))
    return torch.addcmul(out, q, taken)


def masked_logit(dtype: torch.dtype) -> float:
    """A finite logit so low that its softmax is exactly zero, in reach of `dtype`. Infinity would make 0 x inf = NaN."""
    return -3e4 if dtype == torch.float16 else -1e9


def _one_hot(term: AttentionTerm, dtype: torch.dtype) -> Tensor:
    entries = torch.arange(term.values.shape[-1], device=term.entry.device)
    return (term.entry[:, None] == entries).to(dtype)


def _cpu_kernel_takes(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor | None, past_v: Tensor | None, positions: RelativePositions | None
) -> bool:
    if not cpu.can_run(q, k, v, past_k, past_v) or q.shape[-1] % cpu.lanes():
        return False
    if torch.is_grad_enabled() and positions and any(table.table.requires_grad for table in positions.tables):
        return False
    return all(t is None or t.dtype == q.dtype for t in (k, v, past_k, past_v))


def _packed(table: AxisTable) -> PackedTable:
    packed = table.packed or pack_table(table.table)
    assert packed is not None, "asked of `_cpu_kernel_takes`"
    return packed


def _fake(q: Tensor, *_: object) -> Tensor:
    B, heads, num_queries, head_dim = q.shape
    return q.new_empty(B, num_queries, heads, head_dim).transpose(1, 2)


_cpu_attention = register(
    "cpu_attention(Tensor q, Tensor k, Tensor v, Tensor? past_k, Tensor? past_v, Tensor[] tables, Tensor[] rows, "
    "Tensor[] entries, Tensor? key_mask, float scale, int residual_from) -> Tensor",
    cpu.attention,
    _fake,
)


@register_flop_formula(torch.ops.memvit.cpu_attention)
def _attention_flops(
    q: Sequence[int], k: Sequence[int], v: object, past_k: Sequence[int] | None, *_: object, **__: object
) -> int:
    B, heads, num_queries, head_dim = q
    return 4 * B * heads * num_queries * head_dim * (k[2] + (past_k[2] if past_k else 0))
