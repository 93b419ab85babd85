"""Attention with relative positions on GPUs where no gradients are wanted, in one Triton kernel.

What `triton_folding` and PyTorch's fused attention do in three or four launches, from queries to their sum with the result:
nothing is joined or padded on the way. Products of few dimensions suit the GPU less than those of cuDNN do, but launches
count where a step has little work. A mask of keys is one more of the further dimensions, which costs nothing: read key by key
beside the products it made the kernel wait in every block (10 of 35 us in the first stage, on an H200).

Triton is imported at the first launch: this module can be imported everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from memvit.kernels.ops import ON_GPUS, register
from memvit.kernels.triton_folding import Folding
from memvit.kernels.triton_pooling import is_available

DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 128
# Of positions. With more, as of memories of 32 clips, the kernel runs out of registers, and cuDNN's attention serves better.
MAX_COLUMNS = 64
MAX_CLIPS = 31  # that are masked by a bit of a number each
SHORT = 512  # keys: up to so many go through the kernel in shorter blocks
SHORT_ROOM, LONG_ROOM = 72 << 10, 112 << 10  # bytes of shared memory for shorter and longer blocks

Size3 = tuple[int, int, int]


def _power_of_two(num: int) -> int:
    """The least one of at least 16 that holds so many."""
    return max(16, 1 << (num - 1).bit_length()) if num else 16


def num_columns(folding: Folding) -> int:
    """The columns of `key_ones`."""
    assert folding.has_mask
    return _power_of_two(folding.used - folding.head_dim)


def key_ones(columns: Tensor, folding: Folding) -> Tensor:
    """True for each key where it takes a term: bool (2, keys, `num_columns`), as it takes part, and as it does not.

    Args:
        columns: (3, keys), of `triton_folding.key_columns`.
        folding: with a mask.
    """
    places = torch.arange(num_columns(folding), device=columns.device)
    takes_part = (columns[:, :, None] == places).any(dim=0)
    return torch.stack([takes_part, takes_part | (places == folding.used - folding.head_dim - 1)])


def masked_ones(ones: Tensor, taken: Tensor) -> Tensor:
    """Those of `key_ones` that a mask chooses, (B or 1, keys, columns).

    Args:
        ones: of `key_ones`, in any dtype.
        taken: bool (B or 1, keys); keys that are False take no part.
    """
    return torch.where(taken[:, :, None], ones[0], ones[1])


def can_attend(q: Tensor, sizes: Sequence[int], num_class: int) -> bool:
    """Whether `triton_attention` takes these: on a GPU, in low precision, without gradients, of sizes that it knows."""
    return (
        is_available()
        and q.is_cuda
        and q.dtype in DTYPES
        and not torch.is_grad_enabled()
        and q.shape[-1] <= MAX_HEAD_DIM
        and num_class <= 1
        and _room(q.device.index) >= SHORT_ROOM
        and Folding((1, 1, 1), num_class, 0, tuple(sizes), has_mask=True).used <= MAX_COLUMNS  # type: ignore[arg-type]
    )


@torch.compiler.assume_constant_result
def _room(device_index: int) -> int:
    """Bytes of shared memory that a program can have on a GPU; 0 before Ampere, which has no bfloat16."""
    properties = torch.cuda.get_device_properties(device_index)
    return properties.shared_memory_per_block_optin if properties.major >= 8 else 0


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_k: Tensor | None,
    past_v: Tensor | None,
    tables: Tensor,
    seen: Tensor | None,
    ones: Tensor,
    grid: Size3,
    num_class: int,
    sizes: Sequence[int],
    residual_from: int | None,
) -> Tensor:
    """What `attention` computes of positions on a grid.

    Args:
        q: (B, heads, num_class + T x H x W, head_dim), unscaled.
        k, v, past_k, past_v: (B, heads, keys, head_dim).
        tables: (rows, head_dim), as for `triton_folding.fold_queries`.
        seen: bool (B, clips), which past clips take part, of as many keys each; None: `ones` tells.
        ones: with `seen`, of `key_ones`; otherwise (keys, columns), the first of these, where all keys take part, or
            (B or 1, keys, columns) of `masked_ones`.
        sizes: (past, present) entries of each axis, flat.
        residual_from: q is added to the result, but for this many first queries; None: it is not.

    Returns:
        (B, heads, N, head_dim), laid out as (B, N, heads, head_dim).
    """
    added = -1 if residual_from is None else residual_from
    return _attention(q, k, v, past_k, past_v, tables, seen, ones, [*grid], num_class, [*sizes], added)


class Tile(NamedTuple):
    """How the kernel cuts its work: queries side by side, times, and keys at once, and how it is compiled."""

    width: int
    times: int
    keys: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, grid: Size3, num_keys: int, room: int) -> Tile:
        """For queries on a grid, keys, and bytes of shared memory."""
        width = min(8, 1 << (grid[2] - 1).bit_length())
        times = max(min(64 // width, 1 << (grid[0] - 1).bit_length()), 16 // width)
        return cls(width, times, 32 if num_keys <= SHORT or room < LONG_ROOM else 64, 4, 3)


def dim_blocks(head_dim: int) -> tuple[int, ...]:
    """Powers of two, of at least 16, that hold the dimensions of a head."""
    blocks = [1 << i for i in reversed(range(4, 8)) if head_dim >> i & 1]
    return (*blocks, 16) if head_dim % 16 else tuple(blocks)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past_k: Tensor | None,
    past_v: Tensor | None,
    tables: Tensor,
    seen: Tensor | None,
    ones: Tensor,
    grid: Sequence[int],
    num_class: int,
    sizes: Sequence[int],
    residual_from: int,
) -> Tensor:
    from memvit.kernels.triton_attention_kernel import attention_kernel

    B, heads, _, head_dim = q.shape
    out = _fake(q)
    q, k, v, tables = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v, tables))
    num_past = 0 if past_k is None else past_k.shape[2]
    if past_k is None or past_v is None:
        past_k, past_v = k, v  # not read
    past_k, past_v = (t if t.stride(-1) == 1 else t.contiguous() for t in (past_k.to(q.dtype), past_v.to(q.dtype)))
    ones = ones.contiguous()
    ones_stride = ones.stride(0) if seen is None and ones.dim() == 3 and len(ones) == B else 0
    num_clips = 0 if seen is None else seen.shape[1]
    mask = ones if seen is None else seen.contiguous().view(torch.uint8)
    t, h, w = grid
    tile = Tile.of((t, h, w), num_past + k.shape[2], _room(q.device.index) if q.is_cuda else LONG_ROOM)
    folding = Folding((t, h, w), num_class, 0, tuple(sizes), has_mask=True)  # type: ignore[arg-type]
    num_entries = [sizes[2 * axis] + sizes[2 * axis + 1] for axis in range(3)]
    blocks = dim_blocks(head_dim)
    constants: dict[str, Any] = {
        **dict(zip(("T", "H", "W"), grid, strict=True)),
        **dict(zip(("NUM_T", "NUM_H", "NUM_W"), num_entries, strict=True)),
        **dict(zip(("PAST_T", "PAST_H", "PAST_W"), sizes[::2], strict=True)),
        **dict(zip(("START_T", "START_H", "START_W"), folding.starts, strict=True)),
        **{f"BLOCK_{name}": _power_of_two(num) for name, num in zip("THE", num_entries, strict=True)},
    }
    num_tiles = -(-t // tile.times) * h * -(-w // tile.width) + num_class
    with torch.cuda.device_of(q):
        attention_kernel[(num_tiles, heads, B)](
            q,
            k,
            v,
            past_k,
            past_v,
            tables,
            ones,
            mask,
            out,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *past_k.stride()[:3],
            *past_v.stride()[:3],
            ones_stride,
            head_dim**-0.5,
            BASE=folding.base,
            NUM_CLASS=num_class,
            D=head_dim,
            NUM_PAST=num_past,
            NUM_PRESENT=k.shape[2],
            MASK_COLUMN=folding.used - 1,
            NUM_CLIPS=num_clips,
            BLOCK_CLIPS=_power_of_two(num_clips),
            RESIDUAL_FROM=residual_from,
            STARTS=tuple(sum(blocks[:i]) for i in range(len(blocks))),
            BLOCKS=blocks,
            NUM_BLOCKS=len(blocks),
            ENTRIES=ones.shape[-1],
            BLOCK_W=tile.width,
            TIMES=tile.times,
            BLOCK_N=tile.keys,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **constants,
        )
    return out


def _fake(q: Tensor, *_: object) -> Tensor:
    B, heads, num_queries, head_dim = q.shape
    return q.new_empty(B, num_queries, heads, head_dim).transpose(1, 2)


_attention = register(
    "triton_attention(Tensor q, Tensor k, Tensor v, Tensor? past_k, Tensor? past_v, Tensor tables, "
    "Tensor? seen, Tensor ones, int[] grid, int num_class, int[] sizes, int residual_from) -> Tensor",
    _run,
    _fake,
    ON_GPUS,
)


@register_flop_formula(torch.ops.memvit.triton_attention)
def _flops(
    q: Sequence[int], k: Sequence[int], v: object, past_k: Sequence[int] | None, *_: object, **__: object
) -> int:
    B, heads, num_queries, head_dim = q
    return 4 * B * heads * num_queries * head_dim * (k[2] + (past_k[2] if past_k else 0))
