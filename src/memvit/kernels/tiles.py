"""What the kernels on the tiles of Intel's AMX multiply: tiles multiply bfloat16 numbers and add them up in float32.

In float32, every factor is taken for the sum of three bfloat16 numbers that it is, exactly, and the six largest of the nine
products are added up: what is left out is less than float32 rounds off. (cuBLAS computes float32 on tensor cores in this
way, "BF16x9".) If PyTorch is told that less will do (`torch.set_float32_matmul_precision`), a factor is two numbers, of 16
bits, or one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of csrc/blocks.inl: a panel is two tiles of 16 columns, a block of the depth is 16 pairs of numbers.
_TILE = 16
_BLOCK = 32


def _as_tiles(columns: Tensor, parts: int) -> Tensor:
    """Columns of right operands as tiles.

    Args:
        columns: (columns, depth), floating point; columns a multiple of 16.
        parts: bfloat16 numbers that stand for each entry.

    Returns:
        bfloat16 (columns / 16, blocks of the depth, parts, 16 pairs, 16 columns, 2), zero beyond the depth.
    """
    rest = F.pad(columns.float(), (0, -columns.shape[1] % _BLOCK))
    numbers = []
    for _ in range(parts):
        numbers.append(rest.bfloat16())
        rest = rest - numbers[-1].float()
    # Where there are several parts, k and k + 16 are a pair, in place of k and k + 1: that is how left operands are split.
    blocks = torch.stack(numbers).unflatten(2, (-1, _BLOCK)).unflatten(1, (-1, _TILE))  # parts, tiles, 16, blocks, 32
    if parts == 1:
        return blocks.unflatten(4, (16, 2)).permute(1, 3, 0, 4, 2, 5).contiguous()
    return blocks.unflatten(4, (2, 16)).permute(1, 3, 0, 5, 2, 4).contiguous()


def pack_weight(weight: Tensor, parts: int) -> Tensor:
    """A linear layer's weight as the kernels read it.

    Args:
        weight: (out_features, in_features), floating point.
        parts: bfloat16 numbers for each of its entries.

    Returns:
        bfloat16 (panels of 32 columns, blocks of 32 of the depth, parts, 2 tiles, 16 pairs of the depth, 16 columns, 2).
    """
    tiles = _as_tiles(F.pad(weight, (0, 0, 0, -weight.shape[0] % _BLOCK)), parts)
    return tiles.unflatten(0, (-1, 2)).permute(0, 2, 3, 1, 4, 5, 6).contiguous()


def pack_table(table: Tensor, parts: int) -> Tensor:
    """A table of positions, (rows, entries, head_dim), as bfloat16 (rows, entries / 16, blocks, parts, 16, 16, 2)."""
    rows, entries, head_dim = table.shape
    padded = F.pad(table, (0, 0, 0, -entries % _TILE))
    return _as_tiles(padded.reshape(-1, head_dim), parts).unflatten(0, (rows, -1))
