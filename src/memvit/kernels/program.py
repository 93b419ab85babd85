"""Runs what `recording` noted: kernels without Python in between, on tensors that lie elsewhere each time.

What a step makes for itself lies in one block, whose parts are used again as soon as what was there is no longer needed.
What it returns lies in a block of its own, made anew each time, or, slots of past clips, in a room (`rooms`): a result stays
what it is when the step runs again.
"""

from __future__ import annotations

import ctypes
import threading
from collections import defaultdict
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from memvit.kernels import cpu
from memvit.kernels.recording import KernelCall, OperatorCall, Part, Place, Recorder
from memvit.kernels.rooms import ALIGNMENT, Room, Windows, aligned

# In the order of memvit_cpu.h.
_KERNELS = ("copy", "attention", "pool_norm", "max_pool", "layer_norm", "linear", "mlp", "patches")
_WORKSPACE, _RESULTS = 0, 1  # bases that every program has


class _Step(Structure):
    _fields_ = [("kernel", c_int64), ("call", c_void_p)]


class _Pointer(Structure):
    _fields_ = [("field", c_void_p), ("base", c_int64), ("offset", c_int64)]


class _Program(Structure):
    _fields_ = [
        ("steps", POINTER(_Step)),
        ("num_steps", c_int64),
        ("pointers", POINTER(_Pointer)),
        ("num_pointers", c_int64),
    ]


class Workspace:
    """Memory that several programs use, one at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._block = torch.empty(0, dtype=torch.uint8)

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()  # a copy has memory of its own

    def take(self, num_bytes: int) -> Tensor:
        """A block of at least so many bytes; for who holds the lock."""
        if self._block.numel() < num_bytes:
            self._block = torch.empty(0, dtype=torch.uint8)  # gives back the smaller one before
            room = torch.empty(num_bytes + ALIGNMENT, dtype=torch.uint8)
            self._block = room[-room.data_ptr() % ALIGNMENT :][:num_bytes]
        return self._block


class _Operator(NamedTuple):
    """An operator's call, and which bases its results become."""

    call: OperatorCall
    arguments: list[Any]
    bases: list[int | None]


class Program:
    """A recorded step.

    Args:
        recorder: what was noted.
        outputs: what the step computed.
        workspace: memory to compute in.
    """

    def __init__(self, recorder: Recorder, outputs: Sequence[Tensor], workspace: Workspace) -> None:
        self._workspace = workspace
        self._kept = recorder.kept
        self._num_inputs = sum(place.kind == "input" for place in recorder.places)
        found = [recorder.find(tensor) for tensor in outputs]
        self._num_bytes, self._num_result_bytes, where = _lay_out(recorder.places, {p.place for p in found if p})
        self._num_bases = 2 + sum(place.kind != "made" for place in recorder.places)
        self._windows = Windows(recorder.appends, where)

        def based(part: Part) -> Part:
            base, offset = where[part.place]
            return part._replace(place=base, offset=offset + part.offset)

        self._outputs = [tensor if part is None else based(part) for tensor, part in zip(outputs, found, strict=True)]
        # What an operator returned goes when nobody needs it any more: bases by the last step that does.
        returned = {p.place for p in found if p is not None}
        last_uses = defaultdict(list)
        for i, place in enumerate(recorder.places):
            if place.kind == "result" and i not in returned:
                last_uses[place.last].append(where[i][0])

        self._pieces: list[tuple[_Segment | _Operator, list[int]]] = []
        calls: list[KernelCall] = []
        unneeded: list[int] = []
        for i, step in enumerate([*recorder.steps, None]):
            if isinstance(step, KernelCall):
                calls.append(step)
                unneeded += last_uses[i]
                continue
            if calls:
                self._pieces.append((_Segment(calls, where), unneeded))
                calls, unneeded = [], []
            if step is not None:
                arguments = [based(a) if isinstance(a, Part) else a for a in step.arguments]
                bases = [None if place is None else where[place][0] for place in step.results]
                self._pieces.append((_Operator(step, arguments, bases), last_uses[i]))

    def __call__(self, inputs: Sequence[Tensor], earlier: Results | None = None, first: int = 0) -> Results:
        """Computes the outputs of other inputs, laid out like those that the step was recorded with.

        Args:
            inputs: all of them, or the first ones.
            earlier: has the others: its tensors from `first` on.
        """
        with self._workspace.lock:
            workspace = self._workspace.take(self._num_bytes)
            block = torch.empty(self._num_result_bytes, dtype=torch.uint8)
            run = _Run([workspace, block, *inputs, *[None] * (self._num_bases - 2 - len(inputs))], self._num_inputs)
            if earlier is not None:
                run.take(earlier, first, len(inputs))
            run.room, run.position = self._windows.open(
                run.bases, None if earlier is None else (earlier.room, earlier.position)
            )
            run.windows = self._windows.by_base
            for piece, unneeded in self._pieces:
                if isinstance(piece, _Segment):
                    piece.run(run.bases)
                else:
                    run.call(piece)
                for base in unneeded:
                    run.tensors[base] = None
            made = {}
            for i, output in enumerate(self._outputs):
                if isinstance(output, Tensor):
                    made[i] = output
                elif output.place != _RESULTS and output.place not in self._windows.by_base:
                    made[i] = run.tensor(output)
            return Results(block, self._outputs, made, self._windows, run.room, run.position)


class Results:
    """What a program computed. Most of its tensors are made when they are asked for: who runs on asks for few.

    Attributes:
        room, position: where its windows lie; None: there are none.
    """

    def __init__(
        self,
        block: Tensor,
        outputs: Sequence[Tensor | Part],
        made: dict[int, Tensor],
        windows: Windows,
        room: Room | None,
        position: int,
    ) -> None:
        self._block, self._outputs, self._made = block, outputs, made
        self._others = dict(made)  # that lie neither in the block nor in the room
        self.room, self.position = room, position
        self._all_windows, self._windows = windows, windows.by_base
        self._start = block.data_ptr()
        self._room_start = 0 if room is None else room.block.data_ptr()
        self._numbers: dict[tuple[bool, torch.dtype], Tensor] = {}

    def __len__(self) -> int:
        return len(self._outputs)

    def tensor(self, i: int) -> Tensor:
        """One of the outputs."""
        if i not in self._made:
            part = self._part(i)
            is_window = part.place in self._windows
            block = self.room.block if is_window and self.room is not None else self._block
            numbers = self._numbers.get((is_window, part.dtype))
            if numbers is None:
                numbers = self._numbers[is_window, part.dtype] = _numbers(block, part.dtype)
            start = self._offset(part) // part.dtype.itemsize
            self._made[i] = numbers.as_strided(part.size, part.stride, start)
        return self._made[i]

    def holds(self, i: int, tensor: Tensor) -> bool:
        """Whether a tensor is one of the outputs, or an equal view of it."""
        output = self._others.get(i, self._outputs[i])
        if isinstance(output, Tensor):
            return output is tensor
        alike = (output.size, output.stride, output.dtype) == (tuple(tensor.shape), tensor.stride(), tensor.dtype)
        return alike and tensor.data_ptr() == self.address(i)

    def without_tensors(self) -> Results:
        """The same, without the tensors that were made when they were asked for."""
        return Results(self._block, self._outputs, dict(self._others), self._all_windows, self.room, self.position)

    def address(self, i: int) -> int:
        """Where it begins."""
        if i in self._made:
            return self._made[i].data_ptr()
        part = self._part(i)
        return (self._room_start if part.place in self._windows else self._start) + self._offset(part)

    def _offset(self, part: Part) -> int:
        window = self._windows.get(part.place)
        return part.offset if window is None else window[0] + self.position * window[1] + part.offset

    def _part(self, i: int) -> Part:
        part = self._outputs[i]
        assert isinstance(part, Part)
        return part


class _Run:
    """One run of a program: its tensors by base, where they are known, and their addresses."""

    def __init__(self, tensors: list[Tensor | None], num_inputs: int) -> None:
        self.tensors = tensors
        self.bases = (c_void_p * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])
        self._num_inputs = num_inputs
        self._earlier: tuple[Results, int] | None = None
        self.room: Room | None = None
        self.position = 0
        self.windows: dict[int, tuple[int, int]] = {}

    def take(self, earlier: Results, first: int, num_known: int) -> None:
        """Takes the inputs from the results of an earlier run, but for those that are known."""
        shift = first - num_known
        self._earlier = earlier, shift
        for i in range(num_known, self._num_inputs):
            self.bases[2 + i] = earlier.address(i + shift)

    def call(self, operator: _Operator) -> None:
        """Calls an operator."""
        arguments = [self.tensor(a) if isinstance(a, Part) else a for a in operator.arguments]
        args, kwargs = tree_unflatten(arguments, operator.call.spec)
        result = operator.call.function(*args, **kwargs)
        for tensor, base in zip(tree_leaves(result), operator.bases, strict=True):
            if base is not None:
                self.tensors[base] = tensor
                self.bases[base] = tensor.untyped_storage().data_ptr()

    def tensor(self, part: Part) -> Tensor:
        """A part of what there is."""
        base = self._base(part.place)
        size = part.dtype.itemsize
        if part.place in (_WORKSPACE, _RESULTS) or part.place in self.windows:  # blocks of bytes
            base = _numbers(base, part.dtype)
        elif part.offset == 0 and base.shape == part.size and base.stride() == part.stride:
            return base
        is_result = part.place >= 2 + self._num_inputs  # whose parts count from their storage's start
        start = 0 if is_result else base.storage_offset()
        return base.as_strided(part.size, part.stride, start + part.offset // size)

    def _base(self, place: int) -> Tensor:
        base = self.tensors[place]
        if base is None and place in self.windows:
            assert self.room is not None
            offset, slot_bytes = self.windows[place]
            base = self.tensors[place] = self.room.block[offset + self.position * slot_bytes :]
        if base is None:
            assert self._earlier is not None
            earlier, shift = self._earlier
            base = self.tensors[place] = earlier.tensor(place - 2 + shift)
        return base


class _Segment:
    """Kernels one after the other."""

    def __init__(self, calls: Sequence[KernelCall], where: Sequence[tuple[int, int]]) -> None:
        self._calls = list(calls)
        self._steps = (_Step * len(calls))()
        for step, call in zip(self._steps, calls, strict=True):
            step.kernel, step.call = _KERNELS.index(call.name), ctypes.addressof(call.call)
        pointers = [pointer for call in calls for pointer in call.pointers]
        self._pointers = (_Pointer * len(pointers))()
        for own, pointer in zip(self._pointers, pointers, strict=True):
            base, offset = where[pointer.place]
            own.field, own.base, own.offset = pointer.field, base, offset + pointer.offset
        self._program = _Program(self._steps, len(calls), self._pointers, len(pointers))

    def run(self, bases: Any) -> None:
        cpu.run_program(self._program, bases)


def _lay_out(places: Sequence[Place], returned: set[int]) -> tuple[int, int, list[tuple[int, int]]]:
    """Bytes of the workspace, of the results, and the base and offset of every place."""
    where = [(-1, -1)] * len(places)
    num_result_bytes, num_bases = 0, 2
    temporary = []
    for i, place in enumerate(places):
        if place.kind != "made":
            where[i] = num_bases, 0
            num_bases += 1
        elif i in returned:
            where[i] = _RESULTS, num_result_bytes
            num_result_bytes += aligned(place.num_bytes)
        else:
            temporary.append(i)
    # The largest first, each as far in front as what is needed at the same time lets it.
    laid: list[tuple[int, int, Place]] = []
    for i in sorted(temporary, key=lambda i: -places[i].num_bytes):
        place, start = places[i], 0
        for other_start, other_end, other in laid:  # by their start
            if other.last < place.first or place.last < other.first:
                continue
            if other_start - start >= place.num_bytes:
                break
            start = max(start, other_end)
        where[i] = _WORKSPACE, start
        laid.append((start, start + aligned(place.num_bytes), place))
        laid.sort(key=lambda entry: entry[0])
    return max((end for _, end, _ in laid), default=0), num_result_bytes, where


def _numbers(block: Tensor, dtype: torch.dtype) -> Tensor:
    """A block of bytes as numbers."""
    return block[: block.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
