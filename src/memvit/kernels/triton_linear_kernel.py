# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment, misc"
"""The kernel of `triton_linear`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def linear_few_kernel(
    x_ptrs,  # of each layer, (rows, K)
    weight_ptrs,  # (N, K)
    bias_ptrs,  # (N,)
    out_ptrs,  # (rows, N)
    NUM_LAYERS: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Some rows and columns of what comes out of one layer."""
    x_ptr, weight_ptr, bias_ptr, out_ptr = x_ptrs[0], weight_ptrs[0], bias_ptrs[0], out_ptrs[0]
    for layer in tl.static_range(1, NUM_LAYERS):
        if tl.program_id(1) == layer:
            x_ptr, weight_ptr, bias_ptr, out_ptr = x_ptrs[layer], weight_ptrs[layer], bias_ptrs[layer], out_ptrs[layer]
    row = tl.program_id(2) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_block = tl.arange(0, BLOCK_K)
    out = tl.zeros((BLOCK_ROWS, BLOCK_N), tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + in_block
        x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=(row < NUM_ROWS)[:, None] & (k < K)[None, :], other=0.0)
        weight = tl.load(weight_ptr + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
        out = tl.dot(x, tl.trans(weight), out)
    out += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    there = (row < NUM_ROWS)[:, None] & (n < N)[None, :]
    tl.store(out_ptr + row[:, None] * N + n[None, :], out.to(out_ptr.dtype.element_ty), mask=there)
