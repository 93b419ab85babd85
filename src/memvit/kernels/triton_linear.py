"""Linear layers of few rows on GPUs, several in one launch, in few small programs: beside other work.

For the 33 rows of a remembered clip, keys and values, that takes 9.6 us alone, and cuBLAS's two launches 13.4; a recorded step of
one stream takes 1.250 instead of 1.258 ms (H200).

Triton is imported at the first launch: this module can be imported everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memvit.kernels.triton_pooling import DTYPES, is_available

MAX_ROWS = 128
BLOCK_N = 32


def can_multiply(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether `triton_linear_each` takes these: on a GPU, of one dtype and shape, few rows."""
    x, weight = xs[0], weights[0]
    return (
        is_available()
        and not torch.compiler.is_compiling()
        and all(t.is_cuda and t.dtype == x.dtype for t in (*xs, *weights))
        and x.dtype in DTYPES
        and x.numel() <= MAX_ROWS * x.shape[-1]
        and all(own.shape == x.shape for own in xs)
        and all(own.shape == weight.shape for own in weights)
    )


def triton_linear_each(xs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """x w^T + b for each of several layers, without gradients; sums are float32.

    Args:
        xs: (..., K) each.
        weights, biases: (N, K) and (N,) each.

    Returns:
        (..., N) each.
    """
    import triton

    from memvit.kernels.triton_linear_kernel import linear_few_kernel

    (N, K), num_rows = weights[0].shape, xs[0].numel() // xs[0].shape[-1]
    outs = [x.new_empty(*x.shape[:-1], N) for x in xs]
    block_rows = 64 if num_rows > 32 else 32
    with torch.cuda.device_of(xs[0]):
        linear_few_kernel[(triton.cdiv(N, BLOCK_N), len(xs), triton.cdiv(num_rows, block_rows))](
            tuple(x.contiguous() for x in xs),
            tuple(weight.contiguous() for weight in weights),
            tuple(bias.contiguous() for bias in biases),
            tuple(outs),
            NUM_LAYERS=len(xs),
            NUM_ROWS=num_rows,
            K=K,
            N=N,
            BLOCK_ROWS=block_rows,
            BLOCK_N=BLOCK_N,
            BLOCK_K=64 if K % 64 == 0 else 32,
            num_warps=4,
            num_stages=3,
        )
    return outs
