"""Linear layers on the tiles of Intel's AMX, which multiply bfloat16 numbers and add them up in float32.

In float32, every factor is taken for the sum of three bfloat16 numbers that it is, exactly, and the six largest of the nine
products are added up: what is left out is less than float32 rounds off. (cuBLAS computes float32 on tensor cores in this
way, "BF16x9".) If PyTorch is told that less will do (`torch.set_float32_matmul_precision`), a factor is two numbers, of 16
bits, or one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memvit.kernels import cpu
from memvit.kernels.frozen import frozen

_BLOCK = 32  # columns of a panel, and depth of a block: BLOCK in csrc/linear.inl
_PARTS = {"tf32": 2, "bf16": 1}  # everything else asks for float32


def num_parts(dtype: torch.dtype) -> int:
    """Bfloat16 numbers that stand for a factor, in products computed in this dtype."""
    return _PARTS.get(torch.backends.mkldnn.matmul.fp32_precision, 3) if dtype == torch.float32 else 1


def pack_weight(weight: Tensor, parts: int) -> Tensor:
    """A linear layer's weight as the kernels read it.

    Args:
        weight: (out_features, in_features), floating point.
        parts: bfloat16 numbers for each of its entries.

    Returns:
        bfloat16 (panels of 32 columns, blocks of 32 of the depth, parts, 2, 16 pairs of the depth, 16 columns, 2).
    """
    rest = F.pad(weight.float(), (0, -weight.shape[1] % _BLOCK, 0, -weight.shape[0] % _BLOCK))
    numbers = []
    for _ in range(parts):
        numbers.append(rest.bfloat16())
        rest = rest - numbers[-1].float()
    columns, depth = rest.shape
    # Where there are several parts, k and k + 16 are a pair, in place of k and k + 1.
    pairs = (16, 2) if parts == 1 else (2, 16)
    blocks = torch.stack(numbers).view(parts, columns // _BLOCK, 2, 16, depth // _BLOCK, *pairs)
    return blocks.permute(1, 4, 0, 2, *((5, 3, 6) if parts == 1 else (6, 3, 5))).contiguous()


def packed_layer(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> cpu.PackedLinear:
    """A layer's parameters for products computed in `dtype`, packed once for as long as they do not change."""
    parts = num_parts(dtype)

    def pack() -> cpu.PackedLinear:
        return cpu.PackedLinear(
            pack_weight(weight.detach(), parts), None if bias is None else bias.detach().float(), weight.shape[0], parts
        )

    return frozen([weight] if bias is None else [weight, bias], ("tiles", parts), pack)
