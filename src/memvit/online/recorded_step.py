"""A step recorded once as a CUDA graph and replayed: hundreds of launches for the price of one.

A graph reads and writes fixed places. So clips and memory are copied to where it reads, memory moves on there, inside the
graph, and what is handed out are copies: a memory stays what it was when the stream goes on. All tensors of a memory are
parts of one piece of memory, which makes such a copy one launch.
"""

from __future__ import annotations

import itertools
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memvit.kernels.branches import URGENT, branching, handing_over
from memvit.kernels.frozen import ANY_WEIGHTS, hold_frozen
from memvit.models.heads import Logits
from memvit.models.memory import Memory

Step = Callable[[Tensor, Memory], tuple[Logits, Memory]]
Record = Callable[[Callable[[], None]], Callable[[], None]]

NUM_WARM_UP_RUNS = 3  # libraries choose their algorithms, kernels are compiled


def record_cuda_graph(run: Callable[[], None]) -> Callable[[], None]:
    """Records what a function launches; it runs a few times before. Returns what launches all of it again."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with branching():
        with torch.cuda.stream(side):
            for _ in range(NUM_WARM_UP_RUNS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: decoders copy frames to it.
        stream = torch.cuda.Stream(priority=URGENT)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
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
            taken: list[Memory] = []

            def take(memory: Memory) -> None:
                self._packed.copy_from(memory)
                taken.append(memory)

            with handing_over(take):
                logits, self._after = step(self._clips, self._packed.memory)
            self._is_tuple = isinstance(logits, tuple)
            self._heads = logits if isinstance(logits, tuple) else (logits,)
            if not any(memory is self._after for memory in taken):
                self._packed.copy_from(self._after)

        with hold_frozen() as self._held:
            self._replay = record(run)
        self._stamps = memory_stamps(self._after)
        self._forms = [(tensor.shape, tensor.dtype) for tensor in memory.tensors()]
        self._latest: list[Tensor] = []  # of the memory that came out last

    def takes(self, memory: Memory) -> bool:
        """Whether a memory has the tensors that this is recorded for, projected by the same weights."""
        return self._is_latest(memory) or fits(memory, self._forms, self._stamps)

    def _is_latest(self, memory: Memory) -> bool:
        """Whether it is the memory that came out last. Tensors tell, as `Memory.cat` makes a new object."""
        own = memory.tensors()
        return len(own) == len(self._latest) and all(map(operator.is_, own, self._latest))

    def __call__(self, clips: Tensor, memory: Memory) -> tuple[Logits, Memory]:
        """As the step, for a memory that this `takes`."""
        self._clips.copy_(clips)
        if not self._is_latest(memory):  # of which the graph has its own copy already
            self._packed.copy_from(memory)
        self._replay()
        heads = tuple(head.clone() for head in self._heads)
        after = self._packed.copied(like=self._after)
        self._latest = after.tensors()
        return heads if self._is_tuple else heads[0], after


class PackedMemory:
    """A memory whose tensors are parts of one piece of memory, so that it is copied in one launch.

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
        self._groups = dict(by_dtype)
        self._shapes = [tensor.shape for tensor in tensors]
        self._bytes = {
            dtype: sum(tensors[i].numel() for i in group) * dtype.itemsize for dtype, group in self._groups.items()
        }
        self._packed = torch.zeros(
            sum(_aligned(n) for n in self._bytes.values()), dtype=torch.uint8, device=memory.device
        )
        self._parts = self._cut(self._packed)
        self.memory = memory.with_tensors(self._parts)
        self.copy_from(memory)

    def _by_dtype(self, packed: Tensor) -> dict[torch.dtype, Tensor]:
        """The numbers of each dtype, one behind the other."""
        starts = itertools.accumulate((_aligned(n) for n in self._bytes.values()), initial=0)
        return {
            dtype: packed[start : start + n].view(dtype)
            for start, (dtype, n) in zip(starts, self._bytes.items(), strict=False)
        }

    def _cut(self, packed: Tensor) -> list[Tensor]:
        parts: dict[int, Tensor] = {}
        for dtype, numbers in self._by_dtype(packed).items():
            sizes = [self._shapes[i].numel() for i in self._groups[dtype]]
            for i, part in zip(self._groups[dtype], numbers.split_with_sizes(sizes), strict=True):
                parts[i] = part.view(self._shapes[i])
        return [parts[i] for i in range(len(parts))]

    def copy_from(self, memory: Memory) -> None:
        """Copies a memory's tensors here."""
        tensors = memory.tensors()
        assert [tensor.shape for tensor in tensors] == self._shapes
        own_place = self._packed.untyped_storage().data_ptr()
        for dtype, numbers in self._by_dtype(self._packed).items():
            group = [(self._parts[i], tensors[i]) for i in self._groups[dtype]]
            group = [(own, tensor) for own, tensor in group if own.numel()]
            if all(t.dtype == dtype and t.untyped_storage().data_ptr() != own_place for _, t in group):
                if group:
                    torch.cat([tensor.flatten() for _, tensor in group], out=numbers)
            else:
                for own, tensor in group:
                    own.copy_(tensor)

    def copied(self, like: Memory | None = None) -> Memory:
        """A memory with copies of what is here, and all else of another one, or of this one."""
        return (like or self.memory).with_tensors(self._cut(self._packed.clone()))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // 16) * 16


def memory_stamps(memory: Memory) -> dict[int, Any]:
    """Of the layers that keep projected clips, the weights that projected them."""
    return {index: layer.projected.stamp for index, layer in memory.layers.items() if layer.projected is not None}


def fits(memory: Memory, forms: Sequence[tuple[torch.Size, torch.dtype]], stamps: Mapping[int, Any]) -> bool:
    """Whether a memory has tensors of these shapes and dtypes, and what is projected is by weights of these stamps."""
    own = memory_stamps(memory)
    return (
        own.keys() == stamps.keys()
        and all(stamp == ANY_WEIGHTS or stamp == stamps[index] for index, stamp in own.items())
        and [(tensor.shape, tensor.dtype) for tensor in memory.tensors()] == list(forms)
    )
