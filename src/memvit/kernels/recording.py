"""A step on CPUs recorded once, and run again without Python between its kernels.

Between two kernels Python finds modules, checks shapes and makes tensors, all of it out of the cache by then: a tenth of a
step. What it comes to is the same each time: kernels, called with addresses. So while a step is recorded, `Recorder` notes
our kernels' calls, copies and whatever other operators of PyTorch there are, and in which tensor every address lies.
`program.Program` runs them again, wherever these tensors lie by then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import Array, Structure, c_void_p
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from memvit.kernels import cpu
from memvit.kernels.frozen import hold_frozen
from memvit.kernels.ops import implementations

aten = torch.ops.aten

MAX_FILLED = 1 << 12  # numbers that the kernel for copies sets one by one
MAX_COPIED_BYTES = 1 << 20  # larger copies are left to PyTorch, which has several threads make them

_ALLOCATING = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
_FILLING = {aten.new_ones, aten.new_zeros, aten.ones, aten.zeros, aten.ones_like, aten.zeros_like}
_COPYING = {aten._to_copy, aten.to, aten.clone, aten.contiguous}


class CannotRecordError(RuntimeError):
    """The step does something that cannot be run again from a record."""


@dataclass
class Place:
    """Memory that a step uses.

    Attributes:
        start, num_bytes: where it was while the step was recorded. Later another one may have been there.
        kind: "input": what the step was given; "made": room that it asked for; "result": where an operator put its result;
            "window": of `Append`.
        first, last: steps between which it is needed.
        storage: tells whether it is still there.
    """

    start: int
    num_bytes: int
    kind: Literal["input", "made", "result", "window"]
    first: int
    last: int
    storage: StorageWeakRef


class Part(NamedTuple):
    """A tensor in a place, `offset` bytes from its start."""

    place: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Pointer(NamedTuple):
    """A field of a kernel's call, at this address, that says where in a place something is."""

    field: int
    place: int
    offset: int


class KernelCall(NamedTuple):
    """One of our kernels, its call, and the fields of it that are to be set."""

    name: str
    call: Structure
    pointers: list[Pointer]


class Append(NamedTuple):
    """Slots that the step returns: those that it was given, but for the oldest, and behind them a new one that it writes.

    Attributes:
        slots, result: places of both.
        slot_bytes, num_slots, batch: of a slot of one stream, slots, streams.
        stride_bytes: from one stream to the next.
    """

    slots: int
    result: int
    slot_bytes: int
    num_slots: int
    batch: int
    stride_bytes: int


class OperatorCall(NamedTuple):
    """An operator, or another function of tensors.

    Attributes:
        function: what is called.
        arguments, spec: its arguments and keyword arguments, flat: tensors as `Part`, if they change from time to time.
        results: of its results, flat: which place each of them makes; None: none.
    """

    function: Callable[..., Any]
    arguments: list[Any]
    spec: TreeSpec
    results: list[int | None]


class Recorder(TorchDispatchMode):
    """Notes what is computed while it is active, in inference on CPUs; see `recording`.

    Args:
        inputs: what will be other tensors the next time, of the same layout; each with memory of its own.

    Attributes:
        places: in the order of their making, `inputs` first.
        steps: in their order.
        appends: what `append` was asked for.
        kept: tensors that will be the same the next time.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.places = [
            Place(t.data_ptr(), _extent(t), "input", 0, 0, StorageWeakRef(t.untyped_storage())) for t in inputs
        ]
        self.steps: list[KernelCall | OperatorCall] = []
        self.kept: list[Tensor] = []
        self._unplaced: list[tuple[str, int]] = []  # kernels, and addresses that they are to get each time
        self.appends: list[Append] = []

    def finish(self, held: Sequence[Any]) -> None:
        """Checks that all is there the next time.

        Args:
            held: what of `frozen` the step uses, which will be there the next time.

        Raises:
            CannotRecordError: a kernel reads what nobody keeps.
        """
        self.kept += [leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor)]
        storages = [t.untyped_storage() for t in self.kept if t.layout == torch.strided]
        ranges = [range(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages]
        for kernel, address in self._unplaced:
            if not any(address in kept for kept in ranges):
                raise CannotRecordError(f"the kernel {kernel} reads a tensor that was made outside")

    def find(self, tensor: Tensor) -> Part | None:
        """Where it lies; None: it is the same each time."""
        if tensor.layout != torch.strided or not tensor.numel():
            return None
        found = self._place_at(tensor.data_ptr())
        return None if found is None else Part(*found, tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def append(self, slots: Tensor, new: Tensor) -> Tensor | None:
        """Slots without the oldest and with a new one behind the others, most of which need not be copied when the step is run
        again; None: they are none that the step was given, or have no room behind them.

        Args:
            slots: (B, slots, ...), of several streams with room for at least one slot more before the next stream's.
            new: (B, 1, ...).
        """
        part = self.find(slots)
        if part is None or part.offset or self.places[part.place].kind != "input":
            return None
        num_streams, num_slots = slots.shape[:2]
        slot = slots[0, 0]
        is_dense = slot.is_contiguous() and (num_slots == 1 or slots.stride(1) == slot.numel())
        if not is_dense or (num_streams > 1 and slots.stride(0) < (num_slots + 1) * slot.numel()):
            return None
        with _disable_current_modes():
            result = torch.empty_strided(slots.shape, slots.stride(), dtype=slots.dtype)
            result[:, :-1] = slots[:, 1:]
        place = self._add(result, "window")
        assert place is not None
        size = slots.element_size()
        self.appends.append(
            Append(part.place, place, slot.numel() * size, num_slots, num_streams, slots.stride(0) * size)
        )
        result[:, -1:].copy_(new)
        return result

    def note_kernel(self, name: str, call: Structure) -> None:
        """Notes that a kernel is called."""
        pointers = []
        for field, address in _addresses(call):
            found = self._place_at(address)
            if found is None:
                self._unplaced.append((name, address))
            else:
                pointers.append(Pointer(field, *found))
        self._append(KernelCall(name, call, pointers))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inside = implementations.get(func)
        if inside is not None:
            self._keep(args, kwargs)
            with self:
                return inside(*args, **kwargs)
        result = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in _ALLOCATING:
            self._add(result, "made")
        elif not self._note_copies(func, args, kwargs, result):
            self._note_operator(func, args, kwargs, result)
        return result

    def _note_copies(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> bool:
        """Notes what an operator does as copies, if it can be that: for these there is a kernel."""
        packet = func.overloadpacket
        if packet is aten.copy_:
            return self._note_copy(args[1].expand_as(args[0]), args[0])
        if func is aten.add_.Tensor and not kwargs and isinstance(args[1], Tensor) and args[0].dtype in cpu.DTYPES:
            return self._note_copy(args[1].expand_as(args[0]), args[0], adds=True)
        if packet is aten.cat:
            return self._note_joining(args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0), result)
        if packet in _FILLING and 0 < result.numel() <= MAX_FILLED:
            source, target = result.flatten()[:1].clone().expand_as(result), result
        elif packet in _COPYING and _is_new(result, args):
            source, target = args[0], result
        elif packet is aten.flatten and _is_new(result, args) and result.is_contiguous():
            source, target = args[0], result.view(args[0].shape)
        else:
            return False
        if not _can_copy(source, target):
            return False
        self._add(result, "made")
        return self._note_copy(source, target)

    def _note_joining(self, tensors: Sequence[Tensor], dim: int, result: Tensor) -> bool:
        pairs, start = [], 0
        for tensor in tensors:
            if tensor.numel():
                pairs.append((tensor, result.narrow(dim, start, tensor.shape[dim])))
                start += tensor.shape[dim]
        if not all(_can_copy(source, target) for source, target in pairs):
            return False
        self._add(result, "made")
        for source, target in pairs:
            self._note_copy(source, target)
        return True

    def _note_copy(self, source: Tensor, target: Tensor, *, adds: bool = False) -> bool:
        """Notes a copy, or a sum in its place, as a kernel's work, if it can be that."""
        if not _can_copy(source, target):
            return False
        call = cpu.copy_call(source, target, adds=adds)
        assert call is not None
        self._keep((source, target), {})
        self.note_kernel("copy", call)
        return True

    def _note_operator(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        leaves = tree_leaves(result)
        if any(not isinstance(leaf, Tensor | None) for leaf in leaves):
            raise CannotRecordError(f"what the step does depends on the values of tensors ({func})")
        given = tree_leaves((args, kwargs))
        if func._schema.is_mutable or any(_is_new(leaf, given) for leaf in leaves):
            self._append(self._operator_call(func, args, kwargs, result))

    def _operator_call(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], result: Any
    ) -> OperatorCall:
        arguments, spec = tree_flatten((tuple(args), kwargs))
        self._keep(args, kwargs)
        parts = [(self.find(a) or a) if isinstance(a, Tensor) else a for a in arguments]
        results = [self._add(t, "result") if _is_new(t, arguments) else None for t in tree_leaves(result)]
        return OperatorCall(function, parts, spec, results)

    def _append(self, step: KernelCall | OperatorCall) -> None:
        if isinstance(step, KernelCall):
            places = [pointer.place for pointer in step.pointers]
        else:
            places = [part.place for part in step.arguments if isinstance(part, Part)]
            places += [place for place in step.results if place is not None]
        for place in places:
            self.places[place].last = len(self.steps)
        self.steps.append(step)

    def _keep(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                if leaf.device.type != "cpu":
                    raise CannotRecordError(f"a tensor is on {leaf.device}")
                if self.find(leaf) is None:
                    self.kept.append(leaf)

    def _add(self, tensor: Tensor, kind: Literal["made", "result", "window"]) -> int | None:
        if not tensor.numel():
            return None
        storage, now = tensor.untyped_storage(), len(self.steps)
        place = Place(storage.data_ptr(), storage.nbytes(), kind, now, now, StorageWeakRef(storage))
        self.places.append(place)
        return len(self.places) - 1

    def _place_at(self, address: int) -> tuple[int, int] | None:
        """The place that is there, and how far from its start."""
        for i in range(len(self.places) - 1, -1, -1):
            offset = address - self.places[i].start
            if 0 <= offset < self.places[i].num_bytes and not self.places[i].storage.expired():
                return i, offset
        return None


_recorder: ContextVar[Recorder | None] = ContextVar("memvit_recorder", default=None)


def active_recorder() -> Recorder | None:
    """What notes what is computed here and now."""
    return _recorder.get()


@contextmanager
def recording(inputs: Sequence[Tensor]) -> Iterator[Recorder]:
    """Records what is computed inside, which is computed as well.

    Args:
        inputs: see `Recorder`.

    Raises:
        CannotRecordError: it could not be run again from what was noted.
    """
    recorder = Recorder(inputs)
    with hold_frozen() as held, _recorder_set(recorder), recorder:
        yield recorder
    recorder.finish(held)


@contextmanager
def _recorder_set(recorder: Recorder | None) -> Iterator[None]:
    token = _recorder.set(recorder)
    noting = cpu.noting.set(None if recorder is None else recorder.note_kernel)
    try:
        yield
    finally:
        cpu.noting.reset(noting)
        _recorder.reset(token)


def _extent(tensor: Tensor) -> int:
    """Bytes from its first element to behind its last."""
    if not tensor.numel():
        return 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _is_new(result: Any, given: Sequence[Any]) -> bool:
    """Whether what an operator returns is a tensor in memory of its own, not in that of a tensor that it was given."""
    if not isinstance(result, Tensor) or not result.numel():
        return False
    address = result.untyped_storage().data_ptr()
    return all(
        not isinstance(t, Tensor) or t.layout != torch.strided or t.untyped_storage().data_ptr() != address
        for t in given
    )


def _can_copy(source: Tensor, target: Tensor) -> bool:
    """Whether a copy is one that our kernel makes."""
    alike = source.dtype == target.dtype or (source.dtype in cpu.DTYPES and target.dtype in cpu.DTYPES)
    is_small = target.numel() * target.element_size() <= MAX_COPIED_BYTES
    return alike and is_small and cpu.copy_call(source, target) is not None


def _addresses(structure: Structure) -> Iterator[tuple[int, int]]:
    """Of a kernel's call: where its fields for addresses are, and what they say."""
    start = ctypes.addressof(structure)
    for name, kind, *_ in cast("list[tuple[str, Any]]", structure._fields_):
        value = getattr(structure, name)
        if kind is c_void_p:
            if value:
                yield start + getattr(type(structure), name).offset, value
        elif isinstance(value, Structure):
            yield from _addresses(value)
        elif isinstance(value, Array):
            for item in value:
                if isinstance(item, Structure):
                    yield from _addresses(item)
        elif issubclass(kind, ctypes._Pointer):
            for i in range(getattr(structure, f"num_{name}")):
                yield from _addresses(value[i])
