"""What is read off the tokens: classes of a clip, of every token time, or of every box (paper section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from memvit.kernels.attention import KeyMask, attention
from memvit.kernels.linear import Linear
from memvit.models.config import HeadConfig, MemoryConfig, Size3
from memvit.models.layer_memory import LayerMemory, SlotMasks

Logits = Tensor | tuple[Tensor, ...]


class ClassHead(nn.Module):
    """Dropout and one Linear per head, on vectors of any leading shape. Logits come out raw."""

    def __init__(self, dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        linears = [Linear(dim, num) for num in config.num_classes]
        self.projection = linears[0] if len(linears) == 1 else nn.ModuleList(linears)

    def forward(self, x: Tensor) -> Logits:
        """(..., dim) -> (..., classes), a tuple of them where there are several heads."""
        x = self.dropout(x)
        if isinstance(self.projection, nn.Linear):
            return self.projection(x)
        return tuple(linear(x) for linear in self.projection)


def pool_clip(tokens: Tensor, has_class_token: bool) -> Tensor:
    """One vector per clip, (B, N, dim) -> (B, dim): the class token, or the mean of all tokens."""
    return tokens[:, 0] if has_class_token else tokens.mean(dim=1)


def pool_frames(tokens: Tensor, grid: Size3, has_class_token: bool) -> Tensor:
    """One vector per token time, (B, N, dim) -> (B, T, dim): the mean over space."""
    return tokens[:, int(has_class_token) :].unflatten(1, (grid[0], -1)).mean(dim=2)


def pool_boxes(
    tokens: Tensor, grid: Size3, has_class_token: bool, boxes: Sequence[Tensor], config: HeadConfig
) -> Tensor:
    """One vector per box, (B, N, dim) -> (sum n_i, dim): mean over time, RoIAlign 7x7, maximum.

    Args:
        boxes: per clip, (n_i, 4) x1, y1, x2, y2 in pixels of the clip.
    """
    volume = tokens[:, int(has_class_token) :].unflatten(1, grid).mean(dim=1).permute(0, 3, 1, 2).contiguous()
    rois = [b.to(volume) for b in boxes]
    scale = 1.0 / config.spatial_scale_factor
    aligned = roi_align(volume, rois, output_size=7, spatial_scale=scale, sampling_ratio=0, aligned=config.box_aligned)
    return aligned.amax(dim=(2, 3))


def pad_boxes(vectors: Tensor, counts: Sequence[int], num_tokens: int) -> Tensor:
    """Box vectors per clip, padded with zero vectors: (sum n_i, dim) -> (B, num_tokens, dim)."""
    return torch.stack([F.pad(v, (0, 0, 0, num_tokens - v.shape[0])) for v in vectors.split(list(counts))])


class BoxAttention(nn.Module):
    """Plain attention among the boxes of a clip and those of past clips, which are remembered uncompressed."""

    def __init__(
        self, dim: int, num_heads: int, memory: MemoryConfig, head: HeadConfig, qkv_bias: bool, add_query: bool
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.memory_config = memory
        self.attention_dropout = head.box_attention_dropout
        self.add_query = add_query
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(dim, dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(head.box_dropout)
        self.qkv_drop = nn.Dropout(head.box_qkv_dropout)

    def forward(
        self,
        x: Tensor,
        present: Tensor,
        memory: LayerMemory | None,
        slots: SlotMasks | None,
        past_present: Tensor | None,
    ) -> tuple[Tensor, LayerMemory | None]:
        """Attends.

        Args:
            x: (B, L, dim), normed.
            present: bool (B, L), tokens that exist; zero vectors up to `max_boxes` do.
            memory: this layer's, each slot with L tokens; None without memory.
            slots: which slots count.
            past_present: bool (B, M, L), tokens of the attended clips that exist.

        Returns:
            (B, L, dim) and the layer's memory after this clip.
        """
        k = v = x
        key_mask = present
        remembered = None
        if memory is not None:
            assert slots is not None
            assert past_present is not None
            past = memory.attend(self.memory_config, slots.valid)
            remembered = memory.append(x, x, past)
            k = torch.cat([past.k.flatten(1, 2).to(x.dtype), x], dim=1)
            v = torch.cat([past.v.flatten(1, 2).to(x.dtype), x], dim=1)
            key_mask = torch.cat([(past_present & slots.seen[:, :, None]).flatten(1), present], dim=1)
        projected = self.qkv_drop(self.q(x)), self.qkv_drop(self.k(k)), self.qkv_drop(self.v(v))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in projected)
        dropout = self.attention_dropout if self.training else 0.0
        out = attention(q, k, v, key_mask=KeyMask(key_mask), dropout=dropout)
        out = out + q if self.add_query else out
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2))), remembered
