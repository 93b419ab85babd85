"""Pooling attention over the present clip and the remembered ones (MViT, Fan et al. 2021; MeMViT, section 4).

Parameters carry the names of the authors' checkpoints, so that theirs load without a table of translations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memvit.kernels.attention import AttentionTerm, KeyMask, RelativePositions, attention, masked_logit
from memvit.kernels.backend import compute_dtype, use_reference
from memvit.kernels.branches import Begin, has_branches, run_branches
from memvit.kernels.frozen import ANY_WEIGHTS, Stamp, frozen, stamp_of
from memvit.kernels.linear import Linear, linear_each
from memvit.kernels.norm import layer_norm
from memvit.kernels.pooling import Pooling, pool_norm, pool_norm_each
from memvit.models.config import MViTConfig, Size3
from memvit.models.layer_memory import Compress, LayerMemory, SlotMasks
from memvit.models.plan import BlockPlan, conv_output_size
from memvit.models.positions import KeyGrid, PositionTables, relative_positions, resize_table

LAYER_NORM_EPS = 1e-6


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
            self.q = Linear(dim_in, dim_out, bias=config.qkv_bias)
            self.k = Linear(dim_in, dim_out, bias=config.qkv_bias)
            self.v = Linear(dim_in, dim_out, bias=config.qkv_bias)
        else:
            self.qkv = Linear(dim_in, 3 * dim_out, bias=config.qkv_bias)
        self.proj = Linear(dim_out, dim_out)
        self.proj_drop = nn.Dropout(config.dropout)

        pool_heads = 1 if config.pool_mode == "conv_unshared" else plan.num_heads
        pool_dim = (dim_in if config.pool_first else dim_out) // pool_heads
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
        self.table_names = tuple(lengths)
        for name, length in lengths.items():
            table = torch.empty(length, plan.attention_dim // plan.num_heads)
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(table, std=0.02)))

    def forward(
        self,
        x: Tensor,
        grid: Size3,
        memory: LayerMemory | None = None,
        slots: SlotMasks | None = None,
        *,
        begin: Begin | None = None,
        only_class: bool = False,
    ) -> tuple[Tensor, Size3, LayerMemory | None]:
        """Attends.

        Args:
            x: (B, N, dim), normed.
            grid: (time, height, width) of the tokens.
            memory: what this layer remembers; None where it has no memory.
            slots: which slots of it count; needed with memory.
            begin: of `beside`: does beside the rest what this clip's attention does not need.
            only_class: only the class token attends.

        Returns:
            (B, N', attention_dim), the grid of the pooled queries, and what the layer remembers after this clip.
        """
        q_grid, k_grid = self.output_grid(grid), self.key_grid(grid)
        past_k = past_v = remembered = None
        if memory is not None and self.keeps_projections():
            q, k, v, past_k, past_v, remembered = self._attend_to_memory(x, grid, memory, begin, only_class)
        elif memory is None and self.config.pool_first:
            _, (q, k, v) = self._pool_and_project(x, grid, only_class=only_class)
        else:
            if self.config.pool_first:
                q, k, v = self._pool_together("qkv", x, grid)
            else:
                qkv = (self.q(x), self.k(x), self.v(x)) if self.config.separate_qkv else self.qkv(x).chunk(3, dim=-1)
                q, k, v = (self._pool(name, t, grid) for name, t in zip("qkv", qkv, strict=True))
            if memory is not None:
                assert slots is not None
                attended = memory.attend(self.config.memory, slots.valid, *self._compressions(k_grid))
                remembered = memory.append(k, v, attended)
                k = torch.cat([attended.k.flatten(1, 2).to(k.dtype), k], dim=1)  # (B, past keys + present keys, C)
                v = torch.cat([attended.v.flatten(1, 2).to(v.dtype), v], dim=1)
            q = q[:, :1] if only_class else q
            if self.config.pool_first:
                q, k, v = self.q(q), self.k(k), self.v(v)

        # The class token has no place and no time: nothing is added to its logits.
        positions = None if only_class else self._positions(grid, has_memory=memory is not None, dtype=q.dtype)
        is_causal = self.config.causal and not only_class
        q = self._heads(q)
        residual = self.config.residual_pooling
        out = attention(
            q,
            self._heads(k),
            self._heads(v),
            past_k=None if past_k is None else self._heads(past_k),
            past_v=None if past_v is None else self._heads(past_v),
            positions=positions,
            terms=[self._causal_term(q, grid, memory is not None)] if is_causal else (),
            key_mask=self.key_mask(grid, slots if memory is not None else None, k.device),
            dropout=self.attention_dropout if self.training else 0.0,
            residual_from=int(self.config.class_token) if residual == "add" else None,
        )
        if residual == "conv" and not only_class:
            out = out + self._pooled_query(q, q_grid)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2))), q_grid, remembered

    def _heads(self, t: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, head_dim)."""
        return t.unflatten(-1, (self.plan.num_heads, -1)).transpose(1, 2)

    def keeps_projections(self) -> bool:
        """Whether what is remembered is kept compressed and projected: the weights stay as they are."""
        return not torch.is_grad_enabled() and self.config.memory.boundary == "mask" and not use_reference()

    def _attend_to_memory(
        self, x: Tensor, grid: Size3, memory: LayerMemory, begin: Begin | None, only_class: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, LayerMemory]:
        """Queries, keys and values, projected, and what the layer remembers after this clip.

        Every clip is compressed and projected once in its life, in its own step: its keys and values are in the cache then,
        weights are read once for both, and later steps find what they look back at as attention takes it.

        Returns:
            Queries; keys and values of this clip, and of the past ones, oldest first; the memory.
        """
        gap, key_grid = self.config.memory.gap, self.key_grid(grid)
        memory = self._all_projected(memory, key_grid)
        older = memory.projected
        assert older is not None
        if begin is None or not self.compresses:
            kept, (q, k, v) = self._pool_and_project(x, grid, only_class=only_class, compresses=self.compresses)
            num_present = int(self.config.class_token) + math.prod(key_grid)
            num_first = kept[0].shape[1] - num_present  # none where nothing is compressed, and what is kept is the clip
            first = slice(num_first or None)
            remembered = memory.append_projected(
                (kept[0][:, num_first:], kept[1][:, num_first:]),
                (kept[0][:, first], kept[1][:, first]),
                (k[:, first], v[:, first]),
            )
            k, v = k[:, num_first:], v[:, num_first:]
        else:
            kept, (q, k, v) = self._pool_and_project(x, grid, only_class=only_class)
            remembered = begin(lambda: self._remember(kept, key_grid, memory))
        past_k, past_v = (t[:, ::gap].flatten(1, 2).to(k.dtype) for t in (older.k, older.v))
        return q, k, v, past_k, past_v, remembered

    def _remember(self, present: tuple[Tensor, Tensor], key_grid: Size3, memory: LayerMemory) -> LayerMemory:
        """What the layer remembers after this clip, whose keys and values are given, neither compressed nor projected."""
        poolings, num_class = [self._compressing(name) for name in "kv"], int(self.config.class_token)
        k, v = pool_norm_each(present, key_grid, poolings, num_class=num_class)
        projected_k, projected_v = linear_each((k, v), (self.k, self.v))
        return memory.append_projected(present, (k, v), (projected_k, projected_v))

    def _all_projected(self, memory: LayerMemory, key_grid: Size3) -> LayerMemory:
        """The memory with all clips compressed and projected by the present weights."""
        modules: list[Any] = [self.k, self.v]
        if self.compresses:
            modules += [self.compress_k, self.norm_compress_k, self.compress_v, self.norm_compress_v]
        project = lambda x: self.k(_beside(x, _weight(self.k))), lambda x: self.v(_beside(x, _weight(self.v)))
        return memory.all_projected(
            self.config.memory, self._compressions(key_grid), project, _stamp_of_modules(modules)
        )

    def _pool_and_project(
        self, x: Tensor, grid: Size3, *, only_class: bool = False, compresses: bool = False
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Keys and values as they are remembered, and queries, those of the class token alone if wanted, keys and values
        projected; where it `compresses`, what keys and values are compressed to comes in front of them.
        """
        if only_class:
            k, v = self._pool_together("kv", x, grid, compresses)
            return (k, v), (self.q(self._class_query(x)), self.k(k), self.v(v))
        if not has_branches(x):
            q, k, v = self._pool_together("qkv", x, grid, compresses)
            return (k, v), (self.q(q), self.k(k), self.v(v))

        def queries() -> list[Tensor]:
            return [self.q(*self._pool_together("q", x, grid))]

        def keys_values() -> list[Tensor]:
            k, v = self._pool_together("kv", x, grid, compresses)
            return [k, v, *run_branches(x, [lambda: self.k(k), lambda: self.v(v)])]

        (k, v, projected_k, projected_v), (q,) = run_branches(x, [keys_values, queries])
        return (k, v), (q, projected_k, projected_v)

    def _class_query(self, x: Tensor) -> Tensor:
        """What pooling makes of the class token for a query: it is normed, but not pooled."""
        norm: Any = self.norm_q
        if norm is None:
            return x[:, :1]
        return layer_norm(x[:, :1].unflatten(-1, (-1, norm.weight.shape[0])), norm).flatten(-2)

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
        """Pools (B, N, C) and norms it, as `pool_NAME` and `norm_NAME` say."""
        pool = getattr(self, f"pool_{name}")
        if pool is None:
            return x
        num_class = int(self.config.class_token)
        if isinstance(pool, nn.Conv3d):
            return pool_norm(x, grid, [self._pooling(name)], num_class=num_class)[0]
        pooled = pool(x[:, num_class:].unflatten(1, grid).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).flatten(1, 3)
        return torch.cat([x[:, :num_class], pooled], dim=1) if num_class else pooled

    def _pool_together(self, names: str, x: Tensor, grid: Size3, compresses: bool = False) -> list[Tensor]:
        """What is asked for of queries, keys and values of the same tokens; where it `compresses`, keys and values behind what
        they are compressed to.
        """
        learned = [name for name in names if isinstance(getattr(self, f"pool_{name}"), nn.Conv3d)]
        poolings = [self._pooling(name) for name in learned]
        num_class, key_grid = int(self.config.class_token), self.key_grid(grid)
        compressions = [self._compressing(name) if compresses and name != "q" else None for name in learned]
        found = dict(
            zip(learned, pool_norm(x, grid, poolings, num_class=num_class, compressions=compressions), strict=True)
        )
        for name in names:
            if name not in found:
                pooled = found[name] = self._pool(name, x, grid)
                if compresses and name != "q":
                    found[name] = torch.cat([self._compression(name, key_grid)(pooled).to(pooled.dtype), pooled], dim=1)
        return [found[name] for name in names]

    def _pooling(self, name: str) -> Pooling:
        conv, norm = getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}")
        return Pooling(conv.weight, conv.stride, norm.weight, norm.bias, norm.eps, self.config.causal)

    def _compressions(self, key_grid: Size3) -> tuple[Compress, Compress]:
        """What compresses remembered keys and values of one clip, (n, N, dim) -> (n, N', dim)."""
        return self._compression("k", key_grid), self._compression("v", key_grid)

    def _compression(self, name: str, key_grid: Size3) -> Compress:
        if not self.compresses:
            return lambda x: x
        pooling = self._compressing(name)
        num_class = int(self.config.class_token)
        return lambda x: pool_norm(_beside(x, pooling.weight), key_grid, [pooling], num_class=num_class)[0]

    def _compressing(self, name: str) -> Pooling:
        conv, norm = getattr(self, f"compress_{name}"), getattr(self, f"norm_compress_{name}")
        return Pooling(conv.weight, conv.stride, norm.weight, norm.bias, norm.eps)

    def _positions(self, grid: Size3, has_memory: bool, dtype: torch.dtype) -> RelativePositions | None:
        """Relative positions of this clip's queries, which are of this dtype, against all keys, memory's first."""
        tables = [getattr(self, name) for name in self.table_names]
        if not tables:
            return None
        key = grid, has_memory, dtype
        return frozen(tables, key, lambda: self._make_positions(grid, has_memory, dtype))

    def _make_positions(self, grid: Size3, has_memory: bool, dtype: torch.dtype) -> RelativePositions:
        memory = self.config.memory
        # A clip of another duration than the config's stretches the tables of time.
        num_times = round(self.config.num_times * grid[0] / self.plan.num_times)

        def tables(prefix: str, num_time_rows: int) -> PositionTables:
            h, w, t = (getattr(self, f"{prefix}_{axis}", None) for axis in "hwt")
            if t is not None and num_times != self.config.num_times:
                t = resize_table(t, num_time_rows)
            return PositionTables(h, w, t)

        keys, found = [KeyGrid(self.key_grid(grid))], [tables("rel_pos", 2 * num_times - 1)]
        if has_memory:
            stride_t = memory.stride[0] if self.compresses else 1
            keys.insert(0, KeyGrid(self.memory_grid(grid), memory.length, stride_t))
            found.insert(0, tables("rel_pos_mem", (memory.length + 1) * num_times - 1))
        return relative_positions(self.output_grid(grid), keys, found, int(self.config.class_token), dtype)

    def _causal_term(self, q: Tensor, grid: Size3, has_memory: bool) -> AttentionTerm:
        """Rules out the clip's own keys of later times; the class token, which has no time, sees all of them."""
        q_grid, k_grid, memory_grid = self.output_grid(grid), self.key_grid(grid), self.memory_grid(grid)
        k_stride = self.plan.kv_stride[0] if self.plan.kv_stride else 1
        num_class = int(self.config.class_token)
        num_past = self.config.memory.length * (num_class + math.prod(memory_grid)) if has_memory else 0
        q_time = torch.arange(q_grid[0], device=q.device)[:, None]
        k_time = torch.arange(k_grid[0], device=q.device)[None, :] * k_stride
        later = (k_time > q_time).to(q.dtype) * masked_logit(q.dtype)
        values = F.pad(later.repeat_interleave(q_grid[1] * q_grid[2], dim=0), (0, 0, num_class, 0))
        entry = torch.arange(k_grid[0], device=q.device).repeat_interleave(k_grid[1] * k_grid[2])
        return AttentionTerm(values[None, None], F.pad(entry, (num_past + num_class, 0), value=-1))

    def key_mask(self, grid: Size3, slots: SlotMasks | None, device: torch.device) -> KeyMask | None:
        """Which keys take part in the softmax; None: all of them."""
        num_class = int(self.config.class_token)
        hides_class_token = self.config.causal and num_class > 0
        if slots is None and not hides_class_token:
            return None
        num_present = num_class + math.prod(self.key_grid(grid))
        if slots is None:
            mask = KeyMask(torch.ones(1, num_present, dtype=torch.bool, device=device))
        else:
            num_past = num_class + math.prod(self.memory_grid(grid))
            mask = slots.keys(num_past, num_present)
        if hides_class_token:
            taken = mask.taken.clone()
            taken[:, -num_present] = False
            mask = KeyMask(taken)
        return mask

    def _pooled_query(self, q: Tensor, q_grid: Size3) -> Tensor:
        """Residual pooling after a convolution: what joins the result, for every token but the class token."""
        num_class = int(self.config.class_token)
        volume = q[:, :, num_class:].flatten(0, 1).unflatten(1, q_grid).permute(0, 4, 1, 2, 3)
        residual = self.conv_q_func(volume).permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(0, q.shape[:2])
        return F.pad(residual, (0, 0, num_class, 0))


def _weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer, or what comes closest in what somebody has put in its place."""
    weight = getattr(layer, "weight", None)
    return weight if isinstance(weight, Tensor) else next(layer.parameters())


def _stamp_of_modules(modules: Sequence[nn.Module]) -> Stamp | None:
    """Tells what these do from what they did or will do; None where that is not known. A compiler's graph is for any weights."""
    if torch.compiler.is_compiling():
        return ANY_WEIGHTS
    if not all(type(module) in (Linear, nn.Linear, nn.Conv3d, nn.LayerNorm) for module in modules):
        return None  # adapters, parametrisations: more than their parameters may count
    return stamp_of([p for module in modules for p in module.parameters()])


def _beside(remembered: Tensor, weight: Tensor) -> Tensor:
    """What is remembered, in a dtype that it can be computed with: a memory may have been made in another one, or cast to it."""
    is_usable = remembered.dtype in (weight.dtype, compute_dtype(weight))
    return remembered if is_usable else remembered.to(weight.dtype)
