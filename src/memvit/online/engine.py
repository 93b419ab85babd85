"""One step of a model for a batch of streams: clips and memories in, logits and memories out, compiled if wanted.

Steps are recorded: on a GPU as CUDA graphs, on CPUs as the calls of their kernels. A recorded or compiled step serves one
batch size and one size of clips. Streams come and go, so where that takes long or memory of its own, batches are filled up
with empty streams to 1, 2, 4, ... clips: few steps serve every number of streams, and all of them are made ahead. Memory has
the same tensors from the first clip on, empty or full, so that one step serves the whole of a stream.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import operator
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memvit.kernels import cpu
from memvit.kernels.frozen import Stamp, stamp_of, thaw_rewritten
from memvit.kernels.program import Workspace
from memvit.models.config import Size3
from memvit.models.heads import Logits
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.online.recorded_on_cpu import RecordedOnCpu, Settings, kernel_settings
from memvit.online.recorded_step import RecordedStep, Step

NUM_WARM_UP_STEPS = 2
MAX_RECORDED_STEPS = 8  # of numbers of streams and sizes of clips
NO_COMPILER_ERRORS = frozenset({"InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton"})

Recorded = RecordedStep | RecordedOnCpu
Recording = Callable[[Step, Tensor, Memory], Recorded]

_numbers = itertools.count()

logger = logging.getLogger(__name__)


class StepEngine:
    """Runs a model's steps.

    Args:
        model: in eval mode.
        dtype: run under autocast in this dtype; None: as the model is.
        max_batch_size: clips per step.
        compile: with `torch.compile`.
        backend: of `torch.compile`.

    Attributes:
        record: makes a recorded step of a step, clips and an empty memory; None: steps are not recorded.
        fills_batches: whether batches are filled up to `batch_sizes`.
    """

    def __init__(
        self,
        model: MeMViT,
        dtype: torch.dtype | None = None,
        *,
        max_batch_size: int = 8,
        compile: bool = False,
        backend: str | Callable[..., object] = "inductor",
    ) -> None:
        self.model = model
        self.dtype = dtype
        self.max_batch_size = max_batch_size
        self.compile = compile
        self.backend = backend
        self.warm_sizes: Sequence[int] = (1,)  # batches that `warm_up` tries where nothing is compiled
        self.record: Recording | None = self._usual_recording()
        self.fills_batches = compile or self.device.type == "cuda"
        self._compiled_steps: dict[tuple[int, Size3], Step] = {}
        self._recorded_steps: dict[tuple[int, Size3], Recorded] = {}
        self._stamp: tuple[Stamp, Settings] | None = None  # of what steps were recorded with
        # Of the step before: the tensors of each stream's memory, and all of them together.
        self._joined: tuple[list[list[Tensor]], Memory] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy, in this process or another one, compiles and records anew.
        return {**self.__dict__, "_compiled_steps": {}, "_recorded_steps": {}, "_stamp": None, "_joined": None}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.norm.weight.device

    def _usual_recording(self) -> Recording | None:
        if self.device.type == "cuda":
            return RecordedStep
        if self.device.type == "cpu" and cpu.is_available() and not self.compile:
            return functools.partial(RecordedOnCpu, workspace=Workspace())
        return None

    @property
    def batch_sizes(self) -> list[int]:
        """What batches are filled up to, ascending."""
        powers = itertools.takewhile(lambda size: size < self.max_batch_size, (2**i for i in itertools.count()))
        return [*powers, self.max_batch_size]

    @torch.inference_mode()
    def warm_up(self, clip_size: Size3) -> None:
        """Makes the steps for clips of (frames, height, width) fast: compiles and records those of all batch sizes.

        Raises:
            ValueError: there is no compiler on this machine.
        """
        for batch_size in self.batch_sizes if self.fills_batches else self.warm_sizes:
            memory = self.model.new_memory(batch_size, *clip_size)
            clips = memory.valid.new_zeros(batch_size, self.model.config.in_channels, *clip_size, dtype=torch.float32)
            try:
                if self.compile and self.backend == "inductor" and self.device.type == "cpu":
                    _find_compiler()
                for _ in range(NUM_WARM_UP_STEPS):
                    _, memory = self._run(clips.to(self._clip_dtype), memory)
            except Exception as error:
                if _lacks_compiler(error):
                    raise ValueError(
                        "compile needs a C++ compiler on this machine, and on a GPU Triton as well: install g++ (or name yours "
                        "in the environment variable CXX) and a PyTorch that comes with Triton, or leave out compile"
                    ) from error
                raise

    @torch.inference_mode()
    def step(self, clips: Sequence[Tensor], memories: Sequence[Memory]) -> tuple[list[np.ndarray], list[Memory]]:
        """Recognises one clip of each stream.

        Args:
            clips: (3, T, H, W) each, of one size, at most `max_batch_size`.
            memories: one stream's each, of `model.new_memory` or an earlier step.

        Returns:
            Logits per head, (streams, ...), and the memories after this clip.
        """
        clip_size: Size3 = tuple(clips[0].shape[1:])  # type: ignore[assignment]
        num_clips = batch_size = len(clips)
        if self.fills_batches:
            made = self._compiled_steps if self.compile else self._recorded_steps
            if (batch_size, clip_size) not in made:
                batch_size = next(size for size in self.batch_sizes if size >= num_clips)
            if self.compile and (batch_size, clip_size) not in made:
                self.warm_up(clip_size)
        num_missing = batch_size - num_clips
        batch = self._stack([*clips, *[torch.zeros_like(clips[0])] * num_missing])
        joined = self._join([*memories, self.model.new_memory(num_missing, *clip_size)] if num_missing else memories)
        logits, memory = self._run(self.to_device(batch), joined)
        heads = logits if isinstance(logits, tuple) else (logits,)
        parts = [memory] if batch_size == 1 else [memory[b] for b in range(num_clips)]
        self._joined = None if num_missing or len(parts) == 1 else ([part.tensors() for part in parts], memory)
        return [head[:num_clips].float().cpu().numpy() for head in heads], parts

    def _join(self, memories: Sequence[Memory]) -> Memory:
        """`Memory.cat`, or what it would give where these are the memories of the step before, in their order."""
        if len(memories) == 1:
            return memories[0]
        if self._joined is not None and len(memories) == len(self._joined[0]):
            parts, together = self._joined
            pairs = zip((memory.tensors() for memory in memories), parts, strict=True)
            if all(len(own) == len(part) and all(map(operator.is_, own, part)) for own, part in pairs):
                return together
        return Memory.cat(memories)

    @property
    def _clip_dtype(self) -> torch.dtype:
        """Of clips on their way to the model. On a GPU in that of autocast, which would convert them: half the bytes to copy."""
        return self.dtype if self.dtype is not None and self.device.type == "cuda" else self.model.norm.weight.dtype

    def _stack(self, clips: Sequence[Tensor]) -> Tensor:
        """Clips as one batch; for a GPU in pinned memory, from where copies to it keep nobody waiting."""
        if len(clips) == 1 and self.device.type == "cpu" and not self.compile:
            return clips[0][None]
        if self.device.type != "cuda" or clips[0].device.type != "cpu":
            return torch.stack(list(clips))
        batch = torch.empty(len(clips), *clips[0].shape, dtype=self._clip_dtype, pin_memory=True)
        for own, clip in zip(batch, clips, strict=True):
            own.copy_(clip)
        return batch

    def to_device(self, clips: Tensor) -> Tensor:
        """Clips as the model takes them. Copies to a GPU start from pinned memory, so that nobody waits for them."""
        if self.device.type == "cuda" and clips.device.type == "cpu" and not clips.is_pinned():
            clips = clips.pin_memory()
        return clips.to(self.device, non_blocking=True).to(self._clip_dtype)

    def _run(self, clips: Tensor, memory: Memory) -> tuple[Logits, Memory]:
        dtype = self.dtype or self.model.norm.weight.dtype
        if memory.dtype != dtype:
            memory = memory.to(dtype)  # what is computed in low precision is kept in it, from the first clip on
        if self.record is None:
            return self._step(clips, memory)
        key = _key(clips)
        recorded = self._recorded_steps.pop(key, None)
        if recorded is not None:
            self._recorded_steps[key] = recorded  # the latest comes last
        is_checked_later = clips.is_cuda  # while the GPU works
        if recorded is not None and (is_checked_later or self._stamp_now() == self._stamp) and recorded.takes(memory):
            result = recorded(clips, memory)
            if not is_checked_later or self._stamp_now() == self._stamp:
                return result
        stamp = self._stamp_now()
        if stamp != self._stamp:
            self._recorded_steps.clear()
            self._stamp = stamp
        if stamp is not None and key not in self._recorded_steps:
            if len(self._recorded_steps) == MAX_RECORDED_STEPS:
                del self._recorded_steps[next(iter(self._recorded_steps))]  # each has memory of its own on a GPU
            empty = self.model.new_memory(clips.shape[0], *key[1])
            empty = empty if self.dtype is None else empty.to(self.dtype)
            try:
                self._recorded_steps[key] = self.record(self._step, clips, empty)
            except RuntimeError as error:
                if self.compile and _lacks_compiler(error):
                    raise
                result = self._step(clips, memory)  # which raises what has nothing to do with recording
                if self._stamp_now() != stamp:  # somebody has changed the model meanwhile: it is tried again
                    return result
                logger.warning("steps of this model cannot be recorded, and run slower: %s", error)
                self.record, self.fills_batches = None, self.compile
                return result
            if self._recorded_steps[key].takes(memory):
                return self._recorded_steps[key](clips, memory)
        return self._step(clips, memory)  # a memory that was saved, or that other weights have projected

    def _stamp_now(self) -> tuple[Stamp, Settings] | None:
        """Tells what recorded steps depend on from what it was; None: not known, or somebody wants to be called in every step."""
        # At every step, so not by `modules()` and `parameters()`, with which all of this took twice as long.
        parameters: list[Tensor] = []
        modules: list[nn.Module] = [self.model]
        while modules:
            module = modules.pop()
            if module._forward_hooks or module._forward_pre_hooks:
                return None
            parameters += [p for p in module._parameters.values() if p is not None]
            modules += [part for part in module._modules.values() if part is not None]
        thaw_rewritten(parameters)
        weights = stamp_of(parameters)
        return None if weights is None else (weights, kernel_settings())

    def _step(self, clips: Tensor, memory: Memory) -> tuple[Logits, Memory]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            if not self.compile:
                return self.model(clips, memory)
            key = _key(clips)
            if key not in self._compiled_steps:
                self._compiled_steps[key] = self._compiled(key)
            return self._compiled_steps[key](clips, _laid_out_alike(memory))

    def _compiled(self, key: tuple[int, Size3]) -> Step:
        model = self.model

        def step(clips: Tensor, memory: Memory) -> tuple[Logits, Memory]:
            return model(clips, memory)

        # The compiler keeps its graphs with a function's code, and there only a few: every step gets code of its own, so that
        # neither sizes nor models of one process use up each other's room.
        code = step.__code__.replace(co_name=f"step_{next(_numbers)}")
        own = types.FunctionType(code, step.__globals__, code.co_name, None, step.__closure__)
        compiled: Step = torch.compile(own, fullgraph=True, dynamic=False, backend=self.backend)
        return compiled


def evaluating(model: MeMViT) -> MeMViT:
    """The model in eval mode. One that is so already is left alone: others may be running it."""
    return model.eval() if any(module.training for module in model.modules()) else model


def _key(clips: Tensor) -> tuple[int, Size3]:
    return clips.shape[0], (clips.shape[2], clips.shape[3], clips.shape[4])


def _laid_out_alike(memory: Memory) -> Memory:
    """The memory in tensors that the compiler cannot tell from those of another step: of inference, and packed.

    A saved state has others, and slices keep strides of what they were cut from, even where these mean nothing.
    """

    def lay_out(tensor: Tensor) -> Tensor:
        return (tensor if tensor.is_inference() else tensor.clone()).flatten().view(tensor.shape)

    return dataclasses.replace(
        memory,
        layers={index: layer.map(lay_out) for index, layer in memory.layers.items()},
        box_layers=tuple(layer.map(lay_out) for layer in memory.box_layers),
        valid=lay_out(memory.valid),
        filled=lay_out(memory.filled),
        box_counts=lay_out(memory.box_counts),
    )


def _find_compiler() -> None:
    """Raises at once what compiling would raise late, after much that nobody wants to read."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes most of a second

    get_cpp_compiler()


def _lacks_compiler(error: BaseException | None) -> bool:
    """Whether an error comes from there being no compiler."""
    while error is not None:
        if type(error).__name__ in NO_COMPILER_ERRORS:
            return True
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return False
