"""Attention with additive terms that decompose: a query's values along an axis, of which each key takes one.

Definition (`attention_reference`): logits are built, terms are gathered and added, softmax, values. The fast form never
writes the logits: a term is a product of the query's values with the key's one-hot entry, so values and one-hot entries
become extra dimensions of queries and keys, and a fused attention does the rest (the idea is known as FlashBias,
arXiv 2505.12044).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memvit.kernels.backend import use_reference


class AttentionTerm(NamedTuple):
    """One additive term of the logits: `logits[b, n, i, j] += values[b, n, i, entry[j]]`.

    Attributes:
        values: (B or 1, heads or 1, num_queries, entries).
        entry: (num_keys,), which entry each key takes; -1: none, nothing is added.
    """

    values: Tensor
    entry: Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    terms: Sequence[AttentionTerm] = (),
    key_mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + terms) v.

    Args:
        q: (B, heads, num_queries, head_dim), unscaled.
        k, v: (B, heads, num_keys, head_dim).
        terms: what is added to the logits.
        key_mask: bool (B or 1, num_keys); keys that are False take no part in the softmax.
        dropout: rate on the softmax.

    Returns:
        (B, heads, num_queries, head_dim).
    """
    if use_reference():
        return attention_reference(q, k, v, terms=terms, key_mask=key_mask, dropout=dropout)
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


def masked_logit(dtype: torch.dtype) -> float:
    """A finite logit so low that its softmax is exactly zero, in reach of `dtype`. Infinity would make 0 x inf = NaN."""
    return -3e4 if dtype == torch.float16 else -1e9


def _one_hot(term: AttentionTerm, dtype: torch.dtype) -> Tensor:
    entries = torch.arange(term.values.shape[-1], device=term.entry.device)
    return (term.entry[:, None] == entries).to(dtype)
