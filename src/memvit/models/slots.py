"""Slots of past clips as values: appending gives new ones and leaves the old ones as they were.

Long memories would copy all their slots at every step to drop one. So at inference slots are a window of a longer tensor with
room behind them: a new clip is written behind the window, and the next value is the window one further. What lies in a
window is never written to again. Where somebody has gone on from a value already, whoever goes on from it as well gets a
copy, as does whoever meets the end of the room.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from memvit.kernels.recording import active_recorder

MIN_SLOTS = 4  # fewer are copied as fast


@dataclass
class _Room:
    """Slots one behind the other, of which the first `end` are taken."""

    buffer: Tensor  # (B, slots and more, ...)
    end: int


# Of slots that are windows: where, and their first slot there.
_windows = WeakTensorKeyDictionary()
_lock = threading.Lock()  # two threads may go on from one value


def append_slot(slots: Tensor, new: Tensor) -> Tensor:
    """Drops the oldest slot and puts `new`, (B, 1, ...), behind the newest; no slots stay no slots."""
    if slots.shape[1] == 0:
        return slots
    if slots.shape[1] == 1:
        new = new.detach().to(slots.dtype)
        # Part of something larger, perhaps: what a compiled step returns to itself must be laid out as before.
        return new.contiguous() if torch.compiler.is_compiling() else new
    return torch.cat([slots[:, 1:], new.detach().to(slots.dtype)], dim=1)


def append_in_room(slots: Tensor, new: Tensor) -> Tensor:
    """`append_slot` that copies no slots but `new`, if there is room, and copies `new` even to a single slot.

    A view would keep alive all that it is a part of. Where gradients are wanted, and on GPUs, whose recorded steps keep their
    slots in one place, all slots are copied. Steps recorded on CPUs have such rooms of their own (`memvit.kernels.rooms`).
    """
    num = slots.shape[1]
    if num == 0:
        return slots
    recorder = None if torch.compiler.is_compiling() else active_recorder()
    if recorder is not None:
        appended = recorder.append(slots, new)
        if appended is not None:
            return appended
    in_room = num >= MIN_SLOTS and slots.device.type == "cpu" and not torch.is_grad_enabled()
    if recorder is not None or not in_room or torch.compiler.is_compiling():
        return torch.cat([slots[:, 1:], new.detach().to(slots.dtype)], dim=1)
    room, first = _windows.get(slots, (None, 0))
    # Tensors of inference mode are written to in it alone.
    if (
        room is None
        or (room.buffer.is_inference() and not torch.is_inference_mode_enabled())
        or not _take(room, first + num)
    ):
        buffer = slots.new_empty(slots.shape[0], num + max(num // 2, MIN_SLOTS), *slots.shape[2:])
        buffer[:, : num - 1] = slots[:, 1:]
        room, first = _Room(buffer, num), -1
    room.buffer[:, first + num] = new[:, 0]
    window = room.buffer[:, first + 1 : first + 1 + num]
    _windows[window] = room, first + 1
    return window


def append_together(slots: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """`append_in_room` for several slots and what is new in each; on a GPU, of one stream, by one launch."""
    on_gpu = slots[0].is_cuda and slots[0].shape[0] == 1 and not torch.is_grad_enabled()
    if not on_gpu or torch.compiler.is_compiling():
        return [append_in_room(*pair) for pair in zip(slots, new, strict=True)]
    return append_flat(slots, new)


def append_flat(slots: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """`append_slot` for several slots of one stream, of one dtype, as one copy of many parts."""
    after = [torch.empty_like(own, memory_format=torch.contiguous_format) for own in slots]
    places: list[Tensor] = []
    parts: list[Tensor] = []
    for own, newest, whole in zip(slots, new, after, strict=True):
        if own.numel():
            size = newest.numel()
            places += [whole.flatten()[-size:], whole.flatten()[:-size]]
            parts += [newest.detach().to(own.dtype).flatten(), own.flatten()[size:]]
    places, parts = [place for place in places if place.numel()], [part for part in parts if part.numel()]
    if places:
        torch._foreach_copy_(places, parts)
    return after


def _take(room: _Room, end: int) -> bool:
    """Takes the slot that lies at `end`, if nobody has, and there is one."""
    with _lock:
        if room.end != end or end == room.buffer.shape[1]:
            return False
        room.end += 1
        return True
