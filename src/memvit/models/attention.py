"""Pooling attention over the present clip and the remembered ones (MViT, Fan et al. 2021; MeMViT, section 4).

Parameters carry the names of the authors' checkpoints, so that theirs load without a table of translations.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memvit.kernels.attention import AttentionTerm, attention, masked_logit
from memvit.models.config import MViTConfig, Size3
from memvit.models.memory import Compress, LayerMemory, SlotMasks
from memvit.models.plan import BlockPlan, conv_output_size
from memvit.models.positions import PositionTables, position_terms, resize_table

LAYER_NORM_EPS = 1e-6


def pool_tokens(
    x: Tensor,
    grid: Size3,
    pool: nn.Module,
    norm: nn.Module | None,
    *,
    num_heads: int,
    has_class_token: bool,
    causal: bool = False,
) -> Tensor:
    """Pools tokens on their grid and normalises them; the class token passes the pooling by.

    The filters are shared by heads: seen as one depthwise convolution over all channels, every head has a copy. Tokens
    are already channels-last, so no axis moves.

    Args:
        x: (B, N, C), class token first.
        pool: a depthwise Conv3d over C / num_heads channels, or a parameter-free pooling.
        norm: over C / num_heads channels; None: none.
        causal: shift the kernel so that a time sees itself and earlier times alone.

    Returns:
        (B, N', C).
    """
    num_class = int(has_class_token)
    volume = x[:, num_class:].unflatten(1, grid).permute(0, 4, 1, 2, 3)  # (B, C, T, H, W), channels last
    if isinstance(pool, nn.Conv3d):
        weight = pool.weight.repeat(num_heads, 1, 1, 1, 1)
        bias = None if pool.bias is None else pool.bias.repeat(num_heads)
        padding = pool.padding
        if causal:
            volume = F.pad(volume, (0, 0, 0, 0, pool.kernel_size[0] - 1, 0))
            padding = (0, *pool.padding[1:])
        if _trains_in_low_precision(volume):
            volume = volume.contiguous()
        volume = F.conv3d(volume, weight, bias, pool.stride, padding, groups=x.shape[-1])
    else:
        volume = pool(volume)
    pooled = volume.permute(0, 2, 3, 4, 1).flatten(1, 3)
    pooled = torch.cat([x[:, :num_class], pooled], dim=1) if num_class else pooled
    if norm is None:
        return pooled
    return norm(pooled.unflatten(-1, (num_heads, -1))).flatten(-2)


def _trains_in_low_precision(volume: Tensor) -> bool:
    """Whether gradients are computed in less than float32 on a CPU.

    PyTorch's gradient of depthwise filters is wrong then, up to 1e14 times too large, for channels-last volumes of few channels
    (seen with 4 to 32, not with 96, torch 2.15); it is right for channels-first ones.
    """
    if volume.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    return torch.is_autocast_enabled("cpu") or volume.dtype != torch.float32


def make_pooling(mode: str, channels: int, kernel: Size3, stride: Size3, bias: bool = False) -> nn.Module:
    """The pooling of `MViTConfig.pool_mode` with padding kernel // 2."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    if mode == "avg":
        # Padded by hand: torch refuses grids smaller than the kernel even where padding makes up for it.
        t, h, w = padding
        return nn.Sequential(nn.ConstantPad3d((w, w, h, h, t, t), 0.0), nn.AvgPool3d(kernel, stride))
    if mode == "max":
        return nn.MaxPool3d(kernel, stride, padding)
    return nn.Conv3d(channels, channels, kernel, stride, padding, groups=channels, bias=bias)


class PoolingAttention(nn.Module):
    """Attention of one trunk block, over its clip and, where the block has memory, over past clips.

    Args:
        plan: the block's widths, heads and strides.
        config: the model.
    """

    def __init__(self, plan: BlockPlan, config: MViTConfig) -> None:
        super().__init__()
        self.plan = plan
        self.config = config
        self.attention_dropout = config.attention_dropout
        dim_in, dim_out = plan.dim, plan.attention_dim
        if config.pool_first or config.separate_qkv:
            self.q = nn.Linear(dim_in, dim_out, bias=config.qkv_bias)
            self.k = nn.Linear(dim_in, dim_out, bias=config.qkv_bias)
            self.v = nn.Linear(dim_in, dim_out, bias=config.qkv_bias)
        else:
            self.qkv = nn.Linear(dim_in, 3 * dim_out, bias=config.qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        self.proj_drop = nn.Dropout(config.dropout)

        self.pool_heads = 1 if config.pool_mode == "conv_unshared" else plan.num_heads
        pool_dim = (dim_in if config.pool_first else dim_out) // self.pool_heads
        for name in "qkv":
            kernel, stride = (plan.q_kernel, plan.q_stride) if name == "q" else (plan.kv_kernel, plan.kv_stride)
            pool = norm = None
            if kernel is not None and stride is not None:
                pool = make_pooling(config.pool_mode, pool_dim, kernel, stride)
                norm = nn.LayerNorm(pool_dim, LAYER_NORM_EPS) if isinstance(pool, nn.Conv3d) else None
            self.add_module(f"pool_{name}", pool)
            self.add_module(f"norm_{name}", norm)
        if config.residual_pooling == "conv":
            head_dim = dim_out // plan.num_heads
            self.conv_q_func = make_pooling("conv", head_dim, plan.kv_kernel or (1, 1, 1), (1, 1, 1), bias=True)

        self.compresses = plan.has_memory and config.memory.compresses
        if self.compresses:
            for name in "kv":
                conv = make_pooling("conv", dim_in, config.memory.kernel, config.memory.stride)
                self.add_module(f"compress_{name}", conv)
                self.add_module(f"norm_compress_{name}", nn.LayerNorm(dim_in, LAYER_NORM_EPS))
        self._make_position_tables()

    def _make_position_tables(self) -> None:
        plan, config, memory = self.plan, self.config, self.config.memory
        lengths: dict[str, int] = {}
        if config.relative_positions_spatial:
            lengths |= dict.fromkeys(("rel_pos_h", "rel_pos_w"), 2 * max(plan.q_size, plan.kv_size) - 1)
            if plan.has_memory:
                _, stride_h, stride_w = memory.stride if memory.compresses else (1, 1, 1)
                lengths["rel_pos_mem_h"] = 2 * max(plan.q_size, plan.kv_size // stride_h) - 1
                lengths["rel_pos_mem_w"] = 2 * max(plan.q_size, plan.kv_size // stride_w) - 1
        if config.relative_positions_temporal:
            lengths["rel_pos_t"] = 2 * config.num_times - 1
            if plan.has_memory:
                lengths["rel_pos_mem_t"] = (memory.length + 1) * config.num_times - 1
        for name, length in lengths.items():
            table = torch.empty(length, plan.attention_dim // plan.num_heads)
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(table, std=0.02)))

    def forward(
        self, x: Tensor, grid: Size3, memory: LayerMemory | None = None, slots: SlotMasks | None = None
    ) -> tuple[Tensor, Size3, LayerMemory | None]:
        """Attends.

        Args:
            x: (B, N, dim), normed.
            grid: (time, height, width) of the tokens.
            memory: what this layer remembers; None where it has no memory.
            slots: which slots of it count; needed with memory.

        Returns:
            (B, N', attention_dim), the grid of the pooled queries, and what the layer remembers after this clip.
        """
        q_grid, k_grid = self.output_grid(grid), self.key_grid(grid)
        if self.config.pool_first:
            q, k, v = (self._pool(name, x, grid) for name in "qkv")
        else:
            projected = (self.q(x), self.k(x), self.v(x)) if self.config.separate_qkv else self.qkv(x).chunk(3, dim=-1)
            q, k, v = (self._pool(name, t, grid) for name, t in zip("qkv", projected, strict=True))

        remembered = None
        if memory is not None:
            assert slots is not None
            compressions = [self._compression(name, k_grid) for name in "kv"] if self.compresses else []
            past = memory.attend(self.config.memory, slots.valid, *compressions)
            remembered = memory.append(k, v, past)
            k = torch.cat([past.k.flatten(1, 2).to(k.dtype), k], dim=1)  # (B, past keys + present keys, C)
            v = torch.cat([past.v.flatten(1, 2).to(v.dtype), v], dim=1)
        if self.config.pool_first:
            q, k, v = self.q(q), self.k(k), self.v(v)
        q, k, v = (t.unflatten(-1, (self.plan.num_heads, -1)).transpose(1, 2) for t in (q, k, v))

        out = attention(
            q,
            k,
            v,
            terms=self._terms(q, grid, has_memory=memory is not None),
            key_mask=self._key_mask(grid, slots if memory is not None else None, k.device),
            dropout=self.attention_dropout if self.training else 0.0,
        )
        out = self._add_query(out, q, q_grid).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(out)), q_grid, remembered

    def output_grid(self, grid: Size3) -> Size3:
        """The grid of the pooled queries, that is, of the block's output."""
        return self._pooled_grid(grid, self.plan.q_kernel, self.plan.q_stride)

    def key_grid(self, grid: Size3) -> Size3:
        """The grid of the pooled keys and values."""
        return self._pooled_grid(grid, self.plan.kv_kernel, self.plan.kv_stride)

    def memory_grid(self, grid: Size3) -> Size3:
        """The grid of one remembered clip's keys as they are attended."""
        memory, key_grid = self.config.memory, self.key_grid(grid)
        return conv_output_size(key_grid, memory.kernel, memory.stride) if self.compresses else key_grid

    def _pooled_grid(self, grid: Size3, kernel: Size3 | None, stride: Size3 | None) -> Size3:
        if kernel is None or stride is None:
            return grid
        t, h, w = conv_output_size(grid, kernel, stride)
        return ((grid[0] - 1) // stride[0] + 1 if self.config.causal else t), h, w

    def _pool(self, name: str, x: Tensor, grid: Size3) -> Tensor:
        pool, norm = getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}")
        return x if pool is None else self._pool_tokens(x, grid, pool, norm, self.pool_heads, self.config.causal)

    def _pool_tokens(
        self, x: Tensor, grid: Size3, pool: nn.Module, norm: nn.Module | None, num_heads: int, causal: bool
    ) -> Tensor:
        has_class_token = self.config.class_token
        return pool_tokens(x, grid, pool, norm, num_heads=num_heads, has_class_token=has_class_token, causal=causal)

    def _compression(self, name: str, key_grid: Size3) -> Compress:
        conv, norm = getattr(self, f"compress_{name}"), getattr(self, f"norm_compress_{name}")
        return lambda x: self._pool_tokens(x, key_grid, conv, norm, num_heads=1, causal=False)

    def _terms(self, q: Tensor, grid: Size3, has_memory: bool) -> list[AttentionTerm]:
        """What is added to the logits of all keys, memory's first: positions, and later times under `causal`."""
        q_grid, k_grid, memory_grid = self.output_grid(grid), self.key_grid(grid), self.memory_grid(grid)
        length = self.config.memory.length if has_memory else 0
        num_class = int(self.config.class_token)
        num_present = num_class + math.prod(k_grid)
        num_past = length * (num_class + math.prod(memory_grid))
        # A clip of another duration than the config's stretches the tables of time.
        num_times = round(self.config.num_times * grid[0] / self.plan.num_times)

        def tables(prefix: str, num_time_rows: int) -> PositionTables:
            h, w, t = (getattr(self, f"{prefix}_{axis}", None) for axis in "hwt")
            if t is not None and num_times != self.config.num_times:
                t = resize_table(t, num_time_rows)
            return PositionTables(h, w, t)

        present = position_terms(
            q, q_grid, k_grid, tables("rel_pos", 2 * num_times - 1), has_class_token=bool(num_class)
        )
        if self.config.causal:
            present.append(self._causal_term(q, q_grid, k_grid))
        terms = [AttentionTerm(values, F.pad(entry, (num_past, 0), value=-1)) for values, entry in present]
        if has_memory:
            past = position_terms(
                q,
                q_grid,
                memory_grid,
                tables("rel_pos_mem", (length + 1) * num_times - 1),
                num_clips=length,
                key_stride_t=self.config.memory.stride[0] if self.compresses else 1,
                has_class_token=bool(num_class),
            )
            terms += [AttentionTerm(values, F.pad(entry, (0, num_present), value=-1)) for values, entry in past]
        return terms

    def _causal_term(self, q: Tensor, q_grid: Size3, k_grid: Size3) -> AttentionTerm:
        """Rules out the keys of later times; the class token, which has no time, sees all of them."""
        k_stride = self.plan.kv_stride[0] if self.plan.kv_stride else 1
        num_class = int(self.config.class_token)
        q_time = torch.arange(q_grid[0], device=q.device)[:, None]
        k_time = torch.arange(k_grid[0], device=q.device)[None, :] * k_stride
        later = (k_time > q_time).to(q.dtype) * masked_logit(q.dtype)
        values = F.pad(later.repeat_interleave(q_grid[1] * q_grid[2], dim=0), (0, 0, num_class, 0))
        entry = torch.arange(k_grid[0], device=q.device).repeat_interleave(k_grid[1] * k_grid[2])
        return AttentionTerm(values[None, None], F.pad(entry, (num_class, 0), value=-1))

    def _key_mask(self, grid: Size3, slots: SlotMasks | None, device: torch.device) -> Tensor | None:
        """Which keys take part in the softmax, bool (B or 1, num_keys); None: all of them."""
        num_class = int(self.config.class_token)
        hides_class_token = self.config.causal and num_class > 0
        if slots is None and not hides_class_token:
            return None
        present = torch.ones(1, num_class + math.prod(self.key_grid(grid)), dtype=torch.bool, device=device)
        if hides_class_token:
            present[:, 0] = False
        if slots is None:
            return present
        seen = slots.seen.repeat_interleave(num_class + math.prod(self.memory_grid(grid)), dim=1)
        return torch.cat([seen, present.expand(seen.shape[0], -1)], dim=1)

    def _add_query(self, out: Tensor, q: Tensor, q_grid: Size3) -> Tensor:
        """Residual pooling: the query joins the result, for every token but the class token."""
        if self.config.residual_pooling == "none":
            return out
        num_class = int(self.config.class_token)
        residual = q[:, :, num_class:]
        if self.config.residual_pooling == "conv":
            volume = residual.flatten(0, 1).unflatten(1, q_grid).permute(0, 4, 1, 2, 3)
            residual = self.conv_q_func(volume).permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(0, q.shape[:2])
        return out + F.pad(residual, (0, 0, num_class, 0))
