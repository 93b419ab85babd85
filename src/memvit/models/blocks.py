"""The parts of MeMViT: patches, blocks of the trunk, blocks among boxes (Wu et al., CVPR 2022; MViTv2, Li et al. 2022).

Parameters carry the names of the authors' checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from memvit.kernels.branches import Begin
from memvit.kernels.linear import MLP, Linear
from memvit.kernels.max_pooling import max_pool
from memvit.kernels.norm import add_layer_norm, layer_norm
from memvit.kernels.patches import patch_embed
from memvit.kernels.residual_mlp import residual_mlp
from memvit.models.attention import LAYER_NORM_EPS, PoolingAttention
from memvit.models.checkpointing import recomputed
from memvit.models.config import MViTConfig, Size3
from memvit.models.heads import BoxAttention
from memvit.models.layer_memory import LayerMemory, SlotMasks
from memvit.models.plan import BlockPlan


class PatchEmbed(nn.Module):
    """Cuts a clip into overlapping patches, one token each."""

    def __init__(self, config: MViTConfig) -> None:
        super().__init__()
        self.padding = config.patch_padding
        self.proj = nn.Conv3d(
            config.in_channels, config.embed_dim, config.patch_kernel, config.patch_stride, config.patch_padding
        )

    def forward(self, clips: Tensor, front: Tensor | None = None) -> Tensor:
        """(B, channels, frames, height, width) -> (B, n + N, embed_dim): `front`, (1, n, embed_dim), and tokens, time first."""
        return patch_embed(clips, self.proj, front)

    def grid(self, size: Size3) -> Size3:
        """The token grid of a clip of (frames, height, width)."""
        conv = self.proj
        t, h, w = (
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(size, self.padding, conv.kernel_size, conv.stride, strict=True)
        )
        return t, h, w


class Block(nn.Module):
    """One multiscale transformer block."""

    def __init__(self, plan: BlockPlan, config: MViTConfig) -> None:
        super().__init__()
        self.plan = plan
        self.has_class_token = config.class_token
        self.widen_in_attention = config.widen_in_attention
        self.norm1 = nn.LayerNorm(plan.dim, LAYER_NORM_EPS)
        self.attn = PoolingAttention(plan, config)
        self.norm2 = nn.LayerNorm(plan.attention_dim, LAYER_NORM_EPS)
        self.mlp = MLP(plan.attention_dim, int(plan.attention_dim * config.mlp_ratio), plan.out_dim, config.dropout)
        self.drop_path = StochasticDepth(plan.drop_path, "row")
        if plan.dim != plan.out_dim:
            self.proj = Linear(plan.dim, plan.out_dim)

    def forward(
        self,
        x: Tensor,
        grid: Size3,
        memory: LayerMemory | None,
        slots: SlotMasks,
        *,
        begin: Begin | None = None,
        recompute_mlp: bool = False,
        only_class: bool = False,
    ) -> tuple[Tensor, Size3, LayerMemory | None]:
        """(B, N, dim) tokens -> (B, N', out_dim), their grid, and the layer's memory after this clip.

        Args:
            begin: of `beside`, for what may be done beside the rest.
            recompute_mlp: compute what is inside the MLP again in the backward pass.
            only_class: of the tokens, only the class token is wanted: N' is 1. What is remembered is the same.
        """
        n = layer_norm(x, self.norm1)
        attended, out_grid, remembered = self.attn(n, grid, memory, slots, begin=begin, only_class=only_class)
        if only_class:
            x, n = x[:, :1], n[:, :1]
        shortcut = self.proj(n) if self.plan.dim != self.plan.attention_dim else x
        if not only_class:
            shortcut = self._pool_shortcut(shortcut, grid)
        if self.plan.attention_dim == self.plan.out_dim and not self.training and not torch.is_grad_enabled():
            return residual_mlp(shortcut, attended, self.norm2, self.mlp), out_grid, remembered
        x, n = add_layer_norm(shortcut, self.drop_path(attended), self.norm2)
        shortcut = self.proj(n) if self.plan.attention_dim != self.plan.out_dim else x
        out = recomputed(self.mlp, n) if recompute_mlp else self.mlp(n)
        if torch.is_grad_enabled():
            return shortcut + self.drop_path(out), out_grid, remembered
        return shortcut.add_(self.drop_path(out)), out_grid, remembered  # made above: nobody else has it

    def _pool_shortcut(self, x: Tensor, grid: Size3) -> Tensor:
        stride = self.plan.q_stride
        if stride is None or stride == (1, 1, 1):
            return x
        t, h, w = (s + 1 if s > 1 else s for s in stride)
        return max_pool(x, grid, (t, h, w), stride, num_class=int(self.has_class_token))


class BoxBlock(nn.Module):
    """A transformer block among the boxes of a clip and of past clips."""

    def __init__(self, dim: int, num_heads: int, config: MViTConfig) -> None:
        super().__init__()
        head = config.head
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.attn = BoxAttention(
            dim, num_heads, config.memory, head, config.qkv_bias, add_query=config.residual_pooling != "none"
        )
        self.norm2 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio), dim, head.box_dropout)
        self.drop_path = StochasticDepth(head.box_drop_path, "row")

    def forward(
        self,
        x: Tensor,
        present: Tensor,
        memory: LayerMemory | None,
        slots: SlotMasks | None,
        past_present: Tensor | None,
    ) -> tuple[Tensor, LayerMemory | None]:
        """(B, L, dim) box tokens -> the same, and the layer's memory after this clip; see `BoxAttention`."""
        attended, remembered = self.attn(self.norm1(x), present, memory, slots, past_present)
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x))), remembered
