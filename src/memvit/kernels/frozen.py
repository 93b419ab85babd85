"""What follows from parameters alone is worked out once, for as long as they do not change.

Packed weights, tables by position, filters in another layout: at inference they are the same at every step.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

T = TypeVar("T")

Stamp = tuple[tuple[int, int, int], ...]

ANY_WEIGHTS: Stamp = ()  # of what serves whatever the weights are

_MAX_KEPT = 8  # per tensor: clip sizes and dtypes in use at a time
_NUM_SAMPLES, _SAMPLE_BYTES = 3, 32  # of a parameter

# By the first parameter's id, which a weak reference guards; PyTorch's own weak dictionaries cost microseconds a look.
_kept: dict[int, tuple[weakref.ref[Tensor], dict[Hashable, tuple[Any, Any, Any]]]] = {}
_num_thaws: dict[int, int] = {}
_samples: dict[int, _Samples] = {}  # by the first parameter's id
_holder: ContextVar[list[Any] | None] = ContextVar("memvit_frozen_holder", default=None)


class _Samples(NamedTuple):
    """A few bytes of every parameter: where they lie, and what they were."""

    addresses: list[int]
    places: list[Any]
    content: bytes


def frozen(parameters: Sequence[Tensor], key: Hashable, make: Callable[[], T]) -> T:
    """`make()`, or what it returned before if none of the parameters was changed, moved or replaced since.

    Nothing is kept where gradients are wanted, and under `torch.compile`, whose graph holds the computation itself. A change
    is seen by PyTorch's version counter, announced by `thaw`, or found by `thaw_rewritten`.

    Args:
        parameters: what the result depends on; at least one.
        key: tells results of the same parameters apart.
        make: computes it.
    """
    stamp = None if torch.is_grad_enabled() else stamp_of(parameters)
    if stamp is None:
        return make()
    kept = _kept_with(parameters[0])
    if key in kept and kept[key][0] == stamp:
        value = kept[key][2]
    else:
        if len(kept) >= _MAX_KEPT:
            kept.clear()
        value = make()
        # The storages are kept with it: as long as they live, no other parameter can have the same address.
        kept[key] = (stamp, [p.untyped_storage() for p in parameters], value)
    held = _holder.get()
    if held is not None:
        held.append(value)
    return value


@contextmanager
def hold_frozen() -> Iterator[list[Any]]:
    """Collects what `frozen` returns inside: a recorded CUDA graph reads it for as long as the graph lives."""
    held: list[Any] = []
    token = _holder.set(held)
    try:
        yield held
    finally:
        _holder.reset(token)


def stamp_of(parameters: Sequence[Tensor]) -> Stamp | None:
    """Tells parameters from what they were or will be; None where that is not known (see `frozen`).

    That is so for what somebody has computed and put in a parameter's place (`torch.func.functional_call`, parametrisations):
    the next one may lie where this one lay.
    """
    if torch.compiler.is_compiling():
        return None
    for p in parameters:  # asked at every step, so in one plain loop; comparing types is faster than `isinstance`
        if (type(p) is not Parameter and not isinstance(p, Parameter)) or p.is_inference():
            return None
    addresses = _addresses(parameters)
    if addresses is None:
        return None
    return tuple([(a, p._version, _num_thaws.get(id(p), 0)) for a, p in zip(addresses, parameters, strict=True)])


def thaw(parameters: Iterable[Tensor]) -> None:
    """Says that parameters may have changed, or soon will, where no version counter tells.

    Fused optimisers do not advance it, nor does writing through `.data`. So a model calls this in every step that wants
    gradients, and when it is switched between training and evaluation; and every step of an optimiser of PyTorch's does.
    """
    for p in parameters:
        _num_thaws[id(p)] = _num_thaws.get(id(p), 0) + 1


def thaw_rewritten(parameters: Sequence[Tensor]) -> None:
    """Thaws all parameters if some of them, on a CPU, have been written to through `.data`, of which nothing tells.

    Teachers that follow by a moving average are often written like that. A few bytes of every parameter are compared with
    those of the last call, which takes some microseconds: who changes a whole tensor is found, who changes a few numbers
    may be missed.
    """
    addresses = _addresses(parameters)
    if not addresses:
        return
    number = id(parameters[0])
    known = _samples.get(number)
    if known is None or known.addresses != addresses:
        places = [place for p in parameters if p.is_cpu for place in _places_in(p)]
        if known is None:
            weakref.finalize(parameters[0], _samples.pop, number, None)
        _samples[number] = _Samples(addresses, places, b"".join(places))
        return
    content = b"".join(known.places)
    if content != known.content:
        _samples[number] = known._replace(content=content)
        thaw(parameters)


def _addresses(parameters: Sequence[Tensor]) -> list[int] | None:
    """Where parameters lie; None if what stands in their place, as `torch.func.vmap` does it, has no memory of its own."""
    try:
        return [p.data_ptr() for p in parameters]
    except RuntimeError:
        return None


def _places_in(parameter: Tensor) -> list[Any]:
    """Buffers over a few bytes of a tensor's memory: at its beginning, its end and between."""
    offset, address = parameter.storage_offset() * parameter.element_size(), parameter.data_ptr()
    size = int(min(parameter.numel() * parameter.element_size(), parameter.untyped_storage().nbytes() - offset))
    if not address or size <= 0:
        return []
    if size <= _NUM_SAMPLES * _SAMPLE_BYTES:
        return [_bytes(size).from_address(address)]
    starts = [i * (size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1) for i in range(_NUM_SAMPLES)]
    return [_bytes(_SAMPLE_BYTES).from_address(address + start) for start in starts]


def _bytes(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * size


@torch.compiler.disable
def _thaw_optimised(optimizer: Optimizer, _: Any, __: Any) -> None:
    thaw(p for group in optimizer.param_groups for p in group["params"])


register_optimizer_step_post_hook(_thaw_optimised)


def _kept_with(parameter: Tensor) -> dict[Hashable, tuple[Any, Any, Any]]:
    number = id(parameter)
    entry = _kept.get(number)
    if entry is None or entry[0]() is not parameter:
        entry = weakref.ref(parameter, lambda _: _kept.pop(number, None)), {}
        _kept[number] = entry
    return entry[1]
