"""A step recorded once as a CUDA graph and replayed: hundreds of launches for the price of one.

A graph reads and writes fixed places. So clips and memory are copied to where it reads, memory moves on there, inside the
graph, and what is handed out are copies: a memory stays what it was when the stream goes on. All tensors of a memory are
parts of a few large ones, which makes such a copy a few launches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from memvit.kernels.frozen import hold_frozen
from memvit.models.heads import Logits
from memvit.models.memory import Memory

Step = Callable[[Tensor, Memory], tuple[Logits, Memory]]
Record = Callable[[Callable[[], None]], Callable[[], None]]

NUM_WARM_UP_RUNS = 3  # libraries choose their algorithms, kernels are compiled


def record_cuda_graph(run: Callable[[], None]) -> Callable[[], None]:
    """Records what a function launches; it runs a few times before. Returns what launches all of it again."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(NUM_WARM_UP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU meanwhile: decoders copy frames to it.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


class RecordedStep:
    """A step for one batch size and one size of clips. The weights are those of the time of recording.

    Args:
        step: what is recorded.
        clips: of the sizes that it is for, (B, 3, T, H, W).
        memory: empty, of B streams.
        record: runs a function and returns what runs it again; as `record_cuda_graph`.
    """

    def __init__(self, step: Step, clips: Tensor, memory: Memory, record: Record = record_cuda_graph) -> None:
        self._step = step  # whose weights the graph reads
        self._clips = clips.clone()
        self._packed = PackedMemory(memory)
        self._heads: tuple[Tensor, ...] = ()
        self._is_tuple = False
        self._after = memory

        def run() -> None:
            logits, self._after = step(self._clips, self._packed.memory)
            self._is_tuple = isinstance(logits, tuple)
            self._heads = logits if isinstance(logits, tuple) else (logits,)
            self._packed.copy_from(self._after)

        with hold_frozen() as self._held:
            self._replay = record(run)
        self._stamps = _stamps(self._after)
        self._latest: Memory | None = None

    def takes(self, memory: Memory) -> bool:
        """Whether a memory has the tensors that this is recorded for, projected by the same weights."""
        stamps = _stamps(memory)
        return stamps.keys() == self._stamps.keys() and all(
            stamp is None or stamp == self._stamps[index] for index, stamp in stamps.items()
        )

    def __call__(self, clips: Tensor, memory: Memory) -> tuple[Logits, Memory]:
        """As the step, for a memory that this `takes`."""
        self._clips.copy_(clips)
        # Of the memory that came out last the graph has its own copy already. Tensors tell, as `Memory.cat` makes a new object.
        if self._latest is None or memory.valid is not self._latest.valid:
            self._packed.copy_from(memory)
        self._replay()
        heads = tuple(head.clone() for head in self._heads)
        self._latest = self._packed.copied(like=self._after)
        return heads if self._is_tuple else heads[0], self._latest


class PackedMemory:
    """A memory whose tensors are parts of one large tensor for each dtype.

    Args:
        memory: is copied.

    Attributes:
        memory: the memory.
    """

    def __init__(self, memory: Memory) -> None:
        tensors = memory.tensors()
        by_dtype = defaultdict(list)
        for i, tensor in enumerate(tensors):
            by_dtype[tensor.dtype].append(i)
        self._groups = list(by_dtype.values())
        self._shapes = [torch.empty_like(tensor, device="meta") for tensor in tensors]
        self._large = [torch.cat([tensors[i].flatten() for i in group]) for group in self._groups]
        self._parts = self._cut(self._large)
        self.memory = memory.with_tensors(self._parts)

    def _cut(self, large: Sequence[Tensor]) -> list[Tensor]:
        parts: dict[int, Tensor] = {}
        for group, tensor in zip(self._groups, large, strict=True):
            sizes = [self._shapes[i].numel() for i in group]
            for i, part in zip(group, tensor.split_with_sizes(sizes), strict=True):
                parts[i] = part.view(self._shapes[i].shape)
        return [parts[i] for i in range(len(parts))]

    def copy_from(self, memory: Memory) -> None:
        """Copies a memory's tensors here."""
        dense: list[tuple[Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor]] = []
        for own, tensor in zip(self._parts, memory.tensors(), strict=True):
            assert own.shape == tensor.shape, (own.shape, tensor.shape)
            if own.numel() and own.data_ptr() != tensor.data_ptr():
                is_dense = tensor.is_contiguous() and tensor.dtype == own.dtype
                (dense if is_dense else others).append((own, tensor))
        for group in _by_dtype(dense):  # together they are a launch or two
            torch._foreach_copy_([own for own, _ in group], [tensor for _, tensor in group])
        for own, tensor in others:
            own.copy_(tensor)

    def copied(self, like: Memory | None = None) -> Memory:
        """A memory with copies of what is here, and all else of another one, or of this one."""
        return (like or self.memory).with_tensors(self._cut([tensor.clone() for tensor in self._large]))


def _by_dtype(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    for dtype in {own.dtype for own, _ in pairs}:
        yield [pair for pair in pairs if pair[0].dtype == dtype]


def _stamps(memory: Memory) -> dict[int, Any]:
    """Of the layers that keep projected clips, the weights that projected them."""
    return {index: layer.projected.stamp for index, layer in memory.layers.items() if layer.projected is not None}
