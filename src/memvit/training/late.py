"""Numbers of a step, read when a GPU has computed them anyway.

To read a number at once, the CPU would wait until the GPU has worked off everything that was asked of it, and then the GPU
would wait for the CPU. One step later the number is there, and the GPU is busy with the next step.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class LateValues(Generic[T]):
    """Copies small tensors to the CPU and gives them out one call later, in order.

    So it is on every device, that a training tells the same on all of them.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[T, Tensor, torch.cuda.Event | None]] = deque()

    def put(self, label: T, values: Tensor) -> list[tuple[T, Tensor]]:
        """Begins to copy a tensor.

        Args:
            label: comes out with it.
            values: of any device; it may be changed afterwards.

        Returns:
            What was put in before, on the CPU; nothing at the first call.
        """
        arrived = self.flush()
        # On CUDA the copy is page-locked, and so need not be waited for.
        copied = values.detach().to("cpu", non_blocking=values.is_cuda, copy=True)
        event = None
        if values.is_cuda:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(values.device))
        self._waiting.append((label, copied, event))
        return arrived

    def flush(self) -> list[tuple[T, Tensor]]:
        """All that was put in and has not come out, waited for where it has to be."""
        arrived = []
        while self._waiting:
            label, values, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            arrived.append((label, values))
        return arrived
