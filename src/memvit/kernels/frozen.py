"""What follows from parameters alone is worked out once, for as long as they do not change.

Packed weights, tables by position, filters in another layout: at inference they are the same at every step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

Stamp = tuple[tuple[int, int, int], ...]

_MAX_KEPT = 8  # per tensor: clip sizes and dtypes in use at a time

# By the first parameter's id, which a weak reference guards; PyTorch's own weak dictionaries cost microseconds a look.
_kept: dict[int, tuple[weakref.ref[Tensor], dict[Hashable, tuple[Any, Any, Any]]]] = {}
_num_thaws: dict[int, int] = {}
_holder: ContextVar[list[Any] | None] = ContextVar("memvit_frozen_holder", default=None)


def frozen(parameters: Sequence[Tensor], key: Hashable, make: Callable[[], T]) -> T:
    """`make()`, or what it returned before if none of the parameters was changed, moved or replaced since.

    Nothing is kept where gradients are wanted, and under `torch.compile`, whose graph holds the computation itself. A change
    is seen by PyTorch's version counter, or announced by `thaw`.

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
    """Tells parameters from what they were or will be; None where that is not known (see `frozen`)."""
    if torch.compiler.is_compiling() or any(p.is_inference() for p in parameters):
        return None
    return tuple([(p.data_ptr(), p._version, _num_thaws.get(id(p), 0)) for p in parameters])


def thaw(parameters: Iterable[Tensor]) -> None:
    """Says that parameters may have changed, or soon will, where no version counter tells.

    Fused optimisers do not advance it, nor does writing through `.data`. So a model calls this in every step that wants
    gradients, and when it is switched between training and evaluation.
    """
    for p in parameters:
        _num_thaws[id(p)] = _num_thaws.get(id(p), 0) + 1


def _kept_with(parameter: Tensor) -> dict[Hashable, tuple[Any, Any, Any]]:
    number = id(parameter)
    entry = _kept.get(number)
    if entry is None or entry[0]() is not parameter:
        entry = weakref.ref(parameter, lambda _: _kept.pop(number, None)), {}
        _kept[number] = entry
    return entry[1]
