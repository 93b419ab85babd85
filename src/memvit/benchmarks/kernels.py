"""The pooling kernels on a GPU, beside PyTorch's channels-last convolution and LayerNorm, as they are and compiled.

    python -m memvit.benchmarks.kernels --batch-size 8

The sizes are those of memvit_16x4 at 224 x 224. What a table says holds for the GPU named under it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memvit.benchmarks.machine import describe_machine
from memvit.kernels.pooling import Pooling, Size3, pool_norm_reference
from memvit.kernels.triton_pooling import is_available, triton_pool_norm

Contender = Callable[[Tensor, Sequence[Pooling]], list[Tensor]]


@dataclass(frozen=True)
class Workload:
    """Poolings of the same tokens, and their sizes.

    Attributes:
        grid: of the tokens; a class token is in front of them.
        channels: of one head.
        strides: of each pooling.
    """

    name: str
    grid: Size3
    num_heads: int
    channels: int
    strides: tuple[Size3, ...]
    kernel: Size3 = (3, 3, 3)

    def make(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, list[Pooling]]:
        """Random tokens (B, N, C) and poolings, all with gradients."""

        def random(*size: int) -> Tensor:
            return torch.randn(size, device=device, dtype=dtype).requires_grad_()

        t, h, w = self.grid
        c = self.channels
        poolings = [Pooling(random(c, 1, *self.kernel), stride, random(c), random(c), 1e-6) for stride in self.strides]
        return random(batch_size, 1 + t * h * w, c * self.num_heads), poolings


WORKLOADS = (
    Workload("stage 1, q", (8, 56, 56), 1, 96, ((1, 1, 1),)),
    Workload("stage 1, k and v", (8, 56, 56), 1, 96, ((1, 8, 8),) * 2),
    Workload("stage 1, q, k and v", (8, 56, 56), 1, 96, ((1, 1, 1), (1, 8, 8), (1, 8, 8))),
    Workload("stage 2 begins", (8, 56, 56), 2, 48, ((1, 2, 2), (1, 4, 4), (1, 4, 4))),
    Workload("stage 2", (8, 28, 28), 2, 96, ((1, 1, 1), (1, 4, 4), (1, 4, 4))),
    Workload("stage 3 begins", (8, 28, 28), 4, 48, ((1, 2, 2),) * 3),
    Workload("stage 3", (8, 14, 14), 4, 96, ((1, 1, 1), (1, 2, 2), (1, 2, 2))),
    Workload("stage 4 begins", (8, 14, 14), 8, 48, ((1, 2, 2), (1, 1, 1), (1, 1, 1))),
    Workload("stage 4", (8, 7, 7), 8, 96, ((1, 1, 1),) * 3),
    Workload("compression, stage 3", (8, 7, 7), 1, 384, ((4, 2, 2),), kernel=(7, 3, 3)),
    Workload("compression, stage 4 begins", (8, 14, 14), 1, 384, ((4, 2, 2),), kernel=(7, 3, 3)),
)


def contenders(workload: Workload) -> dict[str, Contender]:
    """By name, ours first."""

    def ours(x: Tensor, poolings: Sequence[Pooling]) -> list[Tensor]:
        return triton_pool_norm(x, workload.grid, poolings, num_class=1)

    def plain(x: Tensor, poolings: Sequence[Pooling]) -> list[Tensor]:
        return [pool_norm_reference(x, workload.grid, pooling, 1) for pooling in poolings]

    return {"Triton": ours, "conv3d": plain, "conv3d, compiled": torch.compile(plain, fullgraph=True, dynamic=False)}


def forward_backward(contender: Contender, x: Tensor, poolings: Sequence[Pooling]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of tokens and parameters for an output gradient of ones."""
    inputs = [x, *(t for p in poolings for t in (p.weight, p.norm_weight, p.norm_bias))]
    outs = contender(x, poolings)
    grads = torch.autograd.grad(outs, inputs, [torch.ones_like(out) for out in outs])
    return [out.detach() for out in outs], list(grads)


def largest_error(contender: Contender, workload: Workload, x: Tensor, poolings: Sequence[Pooling]) -> float:
    """Of outputs and gradients, relative to the largest value of each, against float64 on one stream."""

    def exactly(t: Tensor) -> Tensor:
        return t.detach().double().requires_grad_()

    x = x[:1].detach().requires_grad_()
    exact = [
        p._replace(weight=exactly(p.weight), norm_weight=exactly(p.norm_weight), norm_bias=exactly(p.norm_bias))
        for p in poolings
    ]
    found = forward_backward(contender, x, poolings)
    wanted = forward_backward(contenders(workload)["conv3d"], exactly(x), exact)
    pairs = [(a, b) for few, many in zip(found, wanted, strict=True) for a, b in zip(few, many, strict=True)]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def measure(workload: Workload, batch_size: int, dtype: torch.dtype, device: torch.device) -> Table:
    """Milliseconds on the device: median, a fifth and four fifths, with an emptied cache."""
    from triton.testing import do_bench

    x, poolings = workload.make(batch_size, dtype, device)
    title = f"{workload.name}: {' x '.join(map(str, workload.grid))}, {workload.num_heads} heads, {dtype}"
    table = Table("", "forward ms", "forward + backward ms", "times Triton's", "largest error", title=title)
    base_ms = 0.0
    for name, contender in contenders(workload).items():

        def forward(contender: Contender = contender) -> None:
            with torch.no_grad():
                contender(x, poolings)

        def training(contender: Contender = contender) -> None:
            forward_backward(contender, x, poolings)

        times = [do_bench(step, quantiles=[0.5, 0.2, 0.8]) for step in (forward, training)]
        base_ms = base_ms or times[1][0]
        cells = [f"{median:.3f} ({low:.3f} to {high:.3f})" for median, low, high in times]
        error = largest_error(contender, workload, x, poolings)
        table.add_row(name, *cells, f"{times[1][0] / base_ms:.2f}", f"{error:.1e}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each workload and number format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8, metavar="STREAMS")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no GPU: these kernels run on CUDA GPUs alone, and Triton's interpreter says nothing about speed")
    if not is_available():
        parser.error("Triton is not installed: pip install triton")
    device = torch.device("cuda")
    console = Console()
    for dtype in options.dtypes:
        for workload in WORKLOADS:
            console.print(measure(workload, options.batch_size, getattr(torch, dtype), device))
    machine = describe_machine(device)
    console.print(f"{machine['gpu']}, torch {machine['torch']}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}")


if __name__ == "__main__":
    main()
