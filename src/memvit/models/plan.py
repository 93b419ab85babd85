"""The shape of every block, worked out from a config before any module is built."""

from __future__ import annotations

from dataclasses import dataclass

from memvit.models.config import MViTConfig, Size3


@dataclass(frozen=True)
class BlockPlan:
    """Widths, heads, strides and table sizes of one block.

    Attributes:
        dim: width of the block's input.
        attention_dim: width that its attention outputs.
        out_dim: width that its MLP outputs.
        q_stride, kv_stride: None where that tensor is not pooled.
        num_times: token times of the block's input, for a clip of the config's duration.
        q_size, kv_size: tokens along one side of the training crop, for the tables of relative positions.
    """

    index: int
    dim: int
    attention_dim: int
    out_dim: int
    num_heads: int
    q_kernel: Size3 | None
    q_stride: Size3 | None
    kv_kernel: Size3 | None
    kv_stride: Size3 | None
    num_times: int
    q_size: int
    kv_size: int
    drop_path: float
    has_memory: bool


def plan_blocks(config: MViTConfig) -> list[BlockPlan]:
    """The plans of all blocks, first to last (spec of MViT: Fan et al. 2021, Li et al. 2022)."""
    dim_mul, head_mul = dict(config.dim_mul), dict(config.head_mul)
    q_strides = {entry[0]: entry[1:] for entry in config.q_strides}
    kv_strides = {entry[0]: entry[1:] for entry in config.kv_strides}
    adaptive = config.kv_stride_adaptive

    dim, num_heads = config.embed_dim, config.num_heads
    size = config.crop_size // config.patch_stride[1]
    num_times = config.num_times
    plans = []
    for i in range(config.depth):
        num_heads = max(1, round(num_heads * head_mul.get(i, 1)))
        attention_dim = _widen(dim, dim_mul.get(i, 1), num_heads) if config.widen_in_attention else dim
        out_dim = attention_dim
        if not config.widen_in_attention and i + 1 in dim_mul:
            out_dim = _widen(dim, dim_mul[i + 1], max(1, round(num_heads * head_mul.get(i + 1, 1))))

        q_stride = q_strides.get(i)
        if adaptive is not None:
            if q_stride is not None:
                adaptive = _divide(adaptive, q_stride)
            kv_stride: Size3 | None = adaptive
        else:
            kv_stride = kv_strides.get(i)
        q_kernel, q_stride = _pooling(config.pool_kernel, q_stride)
        kv_kernel, kv_stride = _pooling(config.pool_kernel, kv_stride)
        q_size = size // (q_stride[1] if q_stride else 1)
        plans.append(
            BlockPlan(
                index=i,
                dim=dim,
                attention_dim=attention_dim,
                out_dim=out_dim,
                num_heads=num_heads,
                q_kernel=q_kernel,
                q_stride=q_stride,
                kv_kernel=kv_kernel,
                kv_stride=kv_stride,
                num_times=num_times,
                q_size=q_size,
                kv_size=size // (kv_stride[1] if kv_stride else 1),
                drop_path=config.drop_path * i / max(config.depth - 1, 1),
                has_memory=i in config.memory_layers,
            )
        )
        if config.relative_positions_spatial and not q_size:
            raise ValueError(
                f"crop_size={config.crop_size} is too small: block {i} has no tokens left to give positions to"
            )
        dim, size = out_dim, q_size
        if q_kernel and q_stride:
            num_times = conv_output_size((num_times, 1, 1), q_kernel, q_stride)[0]
    _check_heads(plans, config)
    return plans


def conv_output_size(grid: Size3, kernel: Size3, stride: Size3) -> Size3:
    """The token grid after a pooling with padding kernel // 2."""
    t, h, w = ((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(grid, kernel, stride, strict=True))
    return t, h, w


def _widen(dim: int, factor: float, divisor: int) -> int:
    """The width after multiplication, rounded to a multiple of the head count."""
    return max(divisor, int(dim * factor + divisor / 2) // divisor * divisor)


def _divide(stride: Size3, by: Size3) -> Size3:
    t, h, w = (max(s // d, 1) for s, d in zip(stride, by, strict=True))
    return t, h, w


def _pooling(kernel: Size3 | None, stride: Size3 | None) -> tuple[Size3 | None, Size3 | None]:
    """Kernel and stride of one pooling; None, None where it would do nothing."""
    if stride is None:
        return None, None
    if kernel is None:
        t, h, w = (s + 1 if s > 1 else 1 for s in stride)
        kernel = (t, h, w)
    if kernel == (1, 1, 1) and stride == (1, 1, 1):
        return None, None
    return kernel, stride


def _check_heads(plans: list[BlockPlan], config: MViTConfig) -> None:
    for plan in plans:
        shared = config.pool_mode == "conv" and config.pool_first and (plan.q_stride or plan.kv_stride)
        if plan.attention_dim % plan.num_heads or (shared and plan.dim % plan.num_heads):
            raise ValueError(
                f"block {plan.index}: {plan.num_heads} heads do not divide its widths {plan.dim} and {plan.attention_dim}; "
                "change embed_dim, num_heads, dim_mul or head_mul"
            )
