"""A model's part of a training step recorded as two CUDA graphs, forward and backward: two launches in place of thousands.

For clips of one size and a fixed number of streams. What graphs read and write lies in fixed places, so that clips and memory
are copied in, logits, memory and gradients are copied out. Loss, optimiser and everything else stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from memvit.models.heads import Logits
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.online.recorded_step import NUM_WARM_UP_RUNS, PackedMemory

Run = Callable[[], None]
RecordPair = Callable[[Run, Run], tuple[Run, Run]]


def record_cuda_graphs(forward: Run, backward: Run) -> tuple[Run, Run]:
    """Records what two functions launch, of which the second goes on from the first. Returns what launches it again."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(NUM_WARM_UP_RUNS):
            forward()
            backward()
    torch.cuda.current_stream().wait_stream(side)
    graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graphs[0], capture_error_mode="thread_local"):
        forward()
    with torch.cuda.graph(graphs[1], pool=graphs[0].pool(), capture_error_mode="thread_local"):
        backward()
    return graphs[0].replay, graphs[1].replay


class RecordedNetwork:
    """A model that is called as ever, and whose forward and backward passes are recorded the first time and replayed after that.

    Recorded anew if clips change their size or number, the number format, or parameters are replaced, frozen or thawed. Every
    forward pass may be followed by one backward pass, before the next forward pass.

    Args:
        model: in training, without activation checkpointing, which draws random numbers in its own way.
        record: as `record_cuda_graphs`.

    Raises:
        ValueError: when it is called: with activation checkpointing, or where the GPU does not record it.
    """

    def __init__(self, model: MeMViT, record: RecordPair = record_cuda_graphs) -> None:
        if model.activation_checkpointing != "none":
            raise ValueError("a recorded training keeps all activations: leave out activation_checkpointing, or record")
        self.model = model
        self._record = record
        self._recorded: _Recorded | None = None
        self._key: tuple[Any, ...] | None = None

    def __call__(self, clips: Tensor, memory: Memory, boxes: None = None) -> tuple[Logits, Memory]:
        """As the model, without boxes. On a CPU it is the model."""
        assert boxes is None, "boxes differ in number"
        if self._record is record_cuda_graphs and not clips.is_cuda:
            return self.model(clips, memory)
        parameters = list(self.model.parameters())
        dtype = torch.get_autocast_dtype(clips.device.type) if torch.is_autocast_enabled(clips.device.type) else None
        places = [(p.data_ptr(), p.requires_grad) for p in parameters]
        key = (clips.shape, clips.dtype, dtype, [t.shape for t in memory.tensors()], places)
        if self._recorded is None or key != self._key:
            self._recorded = None  # its memory is free for the next one
            try:
                self._recorded = _Recorded(self.model, clips, memory, dtype, self._record)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ValueError(
                    f"this training cannot be recorded as CUDA graphs here, so leave out model.record: {error}"
                ) from error
            self._key = key
        return self._recorded(clips, memory)


class _Recorded:
    def __init__(
        self, model: MeMViT, clips: Tensor, memory: Memory, dtype: torch.dtype | None, record: RecordPair
    ) -> None:
        self._model = model
        self._dtype = dtype
        self._clips = clips.detach().clone()
        self._memory = PackedMemory(memory.detach())
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._leaves: list[Tensor] = []
        device = clips.device
        states = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._run_forward()  # once for the shapes of what comes out
        self._head_grads = [torch.zeros_like(head) for head in self._heads]
        self._run_backward()
        self._replay_forward, self._replay_backward = record(self._run_forward, self._run_backward)
        torch.set_rng_state(states[0])  # recording drew from them
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1], device)

    def _run_forward(self) -> None:
        device = self._clips.device.type
        # Gradients of the parameters themselves are added up on the stream that first used them, for as long as anybody has
        # something computed from them (a loss, DDP), which is not the stream that is recorded. Nobody knows these. They are
        # parameters too, because kernels leave it to a layer what its owner has put in a parameter's place.
        leaves: dict[str, Tensor] = {
            name: nn.Parameter(p.detach(), p.requires_grad) for name, p in self._model.named_parameters()
        }
        self._leaves = [leaf for leaf in leaves.values() if leaf.requires_grad]
        # What autocast has converted before must not be read: nobody converts it again when the graph runs.
        with (
            torch.enable_grad(),
            torch.autocast(device, self._dtype, enabled=self._dtype is not None, cache_enabled=False),
        ):
            logits, after = torch.func.functional_call(self._model, leaves, (self._clips, self._memory.memory))
        self._is_tuple = isinstance(logits, tuple)
        self._heads: tuple[Tensor, ...] = logits if isinstance(logits, tuple) else (logits,)
        if not hasattr(self, "_after"):
            self._after = PackedMemory(after)
        self._after.copy_from(after)

    def _run_backward(self) -> None:
        grads = torch.autograd.grad(self._heads, self._leaves, self._head_grads, allow_unused=True)
        if not hasattr(self, "_flat_grads"):
            self._is_used = [grad is not None for grad in grads]
            used = [p for p, is_used in zip(self._trained, self._is_used, strict=True) if is_used]
            self._flat_grads = torch.cat([torch.zeros_like(p).flatten() for p in used])
            self._grads = self._unflatten(self._flat_grads)
        for own, grad in zip(self._grads, grads, strict=True):
            if own is not None and grad is not None:
                own.copy_(grad)

    def _unflatten(self, flat: Tensor) -> list[Tensor | None]:
        used = [p for p, is_used in zip(self._trained, self._is_used, strict=True) if is_used]
        parts = iter(torch._utils._unflatten_dense_tensors(flat, used))
        return [next(parts) if is_used else None for is_used in self._is_used]

    def __call__(self, clips: Tensor, memory: Memory) -> tuple[Logits, Memory]:
        self._clips.copy_(clips)
        self._memory.copy_from(memory)
        heads = _Replay.apply(self, *self._trained)
        return heads if self._is_tuple else heads[0], self._after.copied()

    def forward(self) -> tuple[Tensor, ...]:
        self._replay_forward()
        return tuple(head.detach().clone() for head in self._heads)

    def backward(self, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        for own, grad in zip(self._head_grads, grads, strict=True):
            if grad is None:
                own.zero_()
            else:
                own.copy_(grad)
        self._replay_backward()
        return self._unflatten(self._flat_grads.clone())


class _Replay(torch.autograd.Function):
    """Parameters go in, so that their gradients are asked for; logits come out."""

    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        ctx.set_materialize_grads(False)
        return recorded.forward()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.recorded.backward(grads)
