"""The least time that a machine would need: operations and bytes of a step against the rates of the machine.

Counted on PyTorch's meta device, which knows shapes and no values. What counts are matrix products and convolutions, each of
which does its operations and reads and writes its tensors once; everything between them is taken to be fused into them and
to cost nothing. A real step is slower; how far is what a roofline is for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from memvit.kernels import reference_kernels

# AdamW reads a parameter, its gradient and two averages, and writes all but the gradient, in float32.
OPTIMIZER_BYTES = 7 * 4


@dataclass(frozen=True)
class Work:
    """What one step has to do.

    Attributes:
        products: operations (twice the multiply-accumulates) and numbers moved, of each matrix product and convolution.
        fixed_bytes: moved besides, in float32 whatever the step's number format.
    """

    products: tuple[tuple[int, int], ...]
    fixed_bytes: int = 0

    @property
    def flops(self) -> int:
        """Floating point operations."""
        return sum(flops for flops, _ in self.products)

    def num_bytes(self, itemsize: int) -> int:
        """Bytes moved, where a number takes `itemsize` bytes."""
        return itemsize * sum(moved for _, moved in self.products) + self.fixed_bytes

    def roofline_s(self, flops_per_s: float, bytes_per_s: float, itemsize: int) -> float:
        """Seconds if every product took as long as its operations or its bytes, whichever is longer."""
        products_s = sum(max(flops / flops_per_s, itemsize * moved / bytes_per_s) for flops, moved in self.products)
        return products_s + self.fixed_bytes / bytes_per_s


def count_work(step: Callable[[], object], model: nn.Module | None = None) -> Work:
    """Counts one call of a step on the meta device.

    Args:
        step: runs a model under the plain definitions of its kernels, not in inference mode, whose operators are not taken
            apart.
        model: also count the step of an AdamW optimizer of its parameters.
    """
    counter = _Counter()
    with reference_kernels(), counter:
        step()
    num_parameters = sum(p.numel() for p in model.parameters()) if model is not None else 0
    return Work(tuple(counter.products), OPTIMIZER_BYTES * num_parameters)


class _Counter(TorchDispatchMode):
    """Notes operations and sizes of everything that PyTorch has a formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            if packet is torch.ops.aten.convolution_backward:
                flops = _convolution_backward_flops(*args)
            else:
                flops = flop_registry[packet](*args, **kwargs, out_val=out)
            sizes = sorted(leaf.numel() for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
            if packet in (torch.ops.aten.bmm, torch.ops.aten.baddbmm):
                sizes.pop()  # batched products are those of attention; a fused kernel never writes the logits
            self.products.append((int(flops), sum(sizes)))
        return out


def _convolution_backward_flops(grad_out: Tensor, _: Tensor, weight: Tensor, *options: Any) -> int:
    """As many as the forward pass for each gradient but that of the bias; PyTorch's formula forgets the groups."""
    for_input, for_weight, _ = options[-1]
    return 2 * grad_out.numel() * weight[0].numel() * (for_input + for_weight)
