"""A step on CPUs recorded once and run again without Python between its kernels (`memvit.kernels.recording`)."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from memvit.kernels import cpu
from memvit.kernels.backend import use_reference
from memvit.kernels.program import Program, Results, Workspace
from memvit.kernels.recording import CannotRecordError, recording
from memvit.models.heads import Logits
from memvit.models.memory import Memory
from memvit.online.recorded_step import Step, fits, memory_stamps

MAX_ERROR = 1e-2  # of the largest number, between a record and the step; nothing, most of the time


class RecordedOnCpu:
    """A step for one batch size and one size of clips. Weights and `kernel_settings` are those of the time of recording.

    Args:
        step: what is recorded.
        clips: of the sizes that it is for, (B, 3, T, H, W).
        memory: empty, of B streams.
        workspace: to compute in; several steps may share one.

    Attributes:
        num_heads: logits that come before the memory among the program's results.

    Raises:
        CannotRecordError: the step does what cannot be recorded.
    """

    def __init__(self, step: Step, clips: Tensor, memory: Memory, workspace: Workspace) -> None:
        # In this step everything is worked out that follows from weights alone, and its memory has the layout that memories
        # of steps have: an empty one has another.
        expected = step(clips, memory)
        other_clips = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0)).to(clips.dtype)
        inputs = [_copied(tensor) for tensor in (other_clips, *expected[1].tensors())]
        self._layouts = [(tensor.shape, tensor.stride()) for tensor in inputs]
        self._forms = [(tensor.shape, tensor.dtype) for tensor in inputs[1:]]
        with recording(inputs) as recorder:
            logits, self._after = step(inputs[0], expected[1].with_tensors(inputs[1:]))
        self._is_tuple = isinstance(logits, tuple)
        heads = logits if isinstance(logits, tuple) else (logits,)
        self.num_heads = len(heads)
        self._program = Program(recorder, [*heads, *self._after.tensors()], workspace)
        self._stamps = memory_stamps(self._after)
        self._settings = kernel_settings()
        self.dtype = self._after.dtype
        # Whether what a step returns is laid out as the next one takes it.
        after = zip(self._after.tensors(), self._layouts[1:], strict=True)
        self._is_steady = all(_has_layout(tensor, *layout) for tensor, layout in after)
        # What a step computes behind PyTorch's back (compiled parts, NumPy) would be the same for all clips.
        for found, right in zip(_tensors(self(clips, memory)), _tensors(expected), strict=True):
            if not _is_close(found, right):
                raise CannotRecordError("part of it runs where PyTorch does not see it")

    def takes(self, memory: Memory) -> bool:
        """Whether settings are as they were, and a memory has the tensors that this is for, projected by the same weights."""
        if self._settings != kernel_settings():
            return False
        if _results_by(self, memory) is not None:
            return True
        return fits(memory, self._forms, self._stamps)

    def __call__(self, clips: Tensor, memory: Memory) -> tuple[Logits, Memory]:
        """As the step, for a memory that this `takes`."""
        clips = _laid_out(clips, *self._layouts[0])
        earlier = _results_by(self, memory) if self._is_steady else None
        with torch.autocast("cpu", enabled=False):
            if earlier is not None:
                results = self._program([clips], earlier, self.num_heads)
            else:
                tensors = zip(memory.tensors(), self._layouts[1:], strict=True)
                results = self._program([clips, *[_laid_out(tensor, *layout) for tensor, layout in tensors]])
        # Copies: who keeps logits does not want to keep all that lies beside them.
        heads = tuple(results.tensor(i).clone() for i in range(self.num_heads))
        return heads if self._is_tuple else heads[0], _Remembered(self, results)

    def memory_of(self, results: Results) -> Memory:
        """The memory after a step."""
        return self._after.with_tensors([results.tensor(i) for i in range(self.num_heads, len(results))])


class _Remembered(Memory):
    """A memory whose tensors are made when somebody looks at them; the next step does not. Then it is like any other."""

    def __init__(self, step: RecordedOnCpu, results: Results) -> None:
        self.__dict__.update(_step=step, _results=results)

    def __getattr__(self, name: str) -> Any:
        if name not in _ATTRIBUTES:
            raise AttributeError(f"Memory has no attribute {name!r}")
        _make(self)
        return self.__dict__[name]

    def __reduce_ex__(self, protocol: Any) -> Any:
        _make(self)
        return self.__reduce_ex__(protocol)

    @property
    def dtype(self) -> torch.dtype:
        """As of any memory."""
        step = self.__dict__.get("_step")
        return Memory.dtype.fget(self) if step is None else step.dtype  # type: ignore[attr-defined]


def _make(memory: _Remembered) -> None:
    """Makes the tensors. (No method: another thread may make this an ordinary memory, which has none of these, at any moment.)"""
    with _making:
        step, results = memory.__dict__.get("_step"), memory.__dict__.get("_results")
        if step is None or results is None:
            return
        made = step.memory_of(results)
        if made.valid.numel():  # otherwise it is a constant of the record, which it would keep alive
            _looked_at[made.valid] = step, results.without_tensors()  # which would keep this key alive
        memory.__dict__.update(made.__dict__)
        memory.__class__ = Memory  # type: ignore[assignment]
        memory.__dict__.pop("_step", None), memory.__dict__.pop("_results", None)


_making = threading.Lock()


_ATTRIBUTES = frozenset(field.name for field in dataclasses.fields(Memory))


# Of memories that somebody has looked at: the step, and what it computed.
_looked_at = WeakTensorKeyDictionary()


def _results_by(step: RecordedOnCpu, memory: Memory) -> Results | None:
    """What a step computed, if the memory is the one after that."""
    if isinstance(memory, _Remembered):
        return memory.__dict__.get("_results") if memory.__dict__.get("_step") is step else None
    by, results = _looked_at.get(memory.valid, (None, None))
    if by is not step or results is None:
        return None
    # One that was put together from several may have some of its tensors.
    return results if all(results.holds(*found) for found in enumerate(memory.tensors(), step.num_heads)) else None


Settings = tuple[object, ...]


def kernel_settings() -> Settings:
    """What kernels ask for when they are called, and a record keeps: who has changed one records anew."""
    return torch.get_num_threads(), cpu.best_level(), cpu.num_parts(torch.float32), use_reference()


def _tensors(result: tuple[Logits, Memory]) -> list[Tensor]:
    logits, memory = result
    return [*(logits if isinstance(logits, tuple) else (logits,)), *memory.tensors()]


def _is_close(found: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    if not found.is_floating_point():
        return torch.equal(found, right)
    found, right = found.float(), right.float()
    scale = float(right.nan_to_num().abs().amax()) if right.numel() else 0.0
    return torch.allclose(found, right, rtol=0, atol=MAX_ERROR * scale, equal_nan=True)


def _copied(tensor: Tensor) -> Tensor:
    """In memory of its own, laid out as before."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def _laid_out(tensor: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """A tensor with these strides, those that matter."""
    if tensor.stride() == stride and tensor.shape == shape:
        return tensor
    assert tensor.shape == shape, f"a tensor of shape {tuple(tensor.shape)} in place of one of {tuple(shape)}"
    if _has_layout(tensor, shape, stride):
        return tensor
    return torch.empty_strided(shape, stride, dtype=tensor.dtype).copy_(tensor)


def _has_layout(tensor: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> bool:
    return tensor.shape == shape and all(
        n < 2 or a == b for n, a, b in zip(shape, tensor.stride(), stride, strict=True)
    )
