"""Where slots of past clips lie that a recorded step returns: with space behind them.

The next step, if nobody has gone on from them before, writes one slot behind them and returns a window that is one further.
Nothing that is in a window is written to again: a result stays what it is. Whoever goes on from the same as somebody else, or
meets the end, gets a new room, to which what stays is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import Structure, c_int64
from typing import Any

import torch

from memvit.kernels import cpu
from memvit.kernels.recording import Append

ALIGNMENT = 64  # a line of cache
MIN_SPARE = 4  # slots that a room has space for besides those of its first window


class _Window(Structure):
    _fields_ = [
        (name, c_int64)
        for name in ("slots", "result", "offset", "slot_bytes", "num_slots", "batch", "slots_stride", "result_stride")
    ]


class Room:
    """Slots, of which the first windows are taken.

    Attributes:
        block: bytes.
    """

    def __init__(self, num_bytes: int, num_positions: int) -> None:
        self.block = torch.empty(num_bytes, dtype=torch.uint8)
        self._num_positions = num_positions
        self._latest = 0
        self._lock = threading.Lock()  # two threads may go on from one result

    def take(self, position: int) -> bool:
        """Takes the windows at a position, if nobody has, and there are some."""
        with self._lock:
            if position != self._latest + 1 or position >= self._num_positions:
                return False
            self._latest = position
            return True


class Windows:
    """All windows of a program: where they lie in a room, and in which bases.

    Args:
        appends: what was recorded.
        where: base and offset of every place.
    """

    def __init__(self, appends: Sequence[Append], where: Sequence[tuple[int, int]]) -> None:
        self._structures = (_Window * len(appends))()
        self.by_base: dict[int, tuple[int, int]] = {}  # offset, and bytes of a slot
        spare = [_num_spare(append) for append in appends]
        self._num_positions = 1 + min(spare, default=0)
        self._num_bytes = 0
        for own, append in zip(self._structures, appends, strict=True):
            own.slots, own.result = where[append.slots][0], where[append.result][0]
            own.offset, own.slot_bytes = self._num_bytes, append.slot_bytes
            own.num_slots, own.batch = append.num_slots, append.batch
            own.slots_stride = own.result_stride = append.stride_bytes
            self.by_base[own.result] = own.offset, own.slot_bytes
            num_slots = append.num_slots + self._num_positions - 1
            last_stream = (append.batch - 1) * append.stride_bytes
            self._num_bytes += aligned(last_stream + num_slots * append.slot_bytes)

    def open(self, bases: Any, given: tuple[Room | None, int] | None) -> tuple[Room | None, int]:
        """The room that this run's windows lie in, and their position there.

        Args:
            bases: get the windows' addresses, and have those of what was given.
            given: room and position of the windows that were given; None: they are none.
        """
        if not self.by_base:
            return None, 0
        room, position = (None, 0) if given is None else (given[0], given[1] + 1)
        is_new = room is None or not room.take(position)
        if room is None or is_new:
            room, position = Room(self._num_bytes, self._num_positions), 0
        cpu.open_windows(self._structures, bases, room.block, position, is_new)
        return room, position


def _num_spare(append: Append) -> int:
    """How many slots there is space for behind the first ones."""
    if append.batch > 1:
        return append.stride_bytes // append.slot_bytes - append.num_slots
    return max(append.num_slots // 2, MIN_SPARE)


def aligned(num_bytes: int) -> int:
    """Bytes up to where something else may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
