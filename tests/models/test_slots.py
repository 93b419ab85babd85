"""Slots are values, though they share what lies in them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from memvit.models.slots import append_flat, append_in_room, append_together


def clip(number: int, num_streams: int = 2) -> Tensor:
    return torch.full((num_streams, 1, 3, 2), float(number))


def numbers(slots: Tensor) -> list[float]:
    assert (slots == slots[:1, :, :1, :1]).all()
    return slots[0, :, 0, 0].tolist()


@pytest.fixture(params=[torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def slots(request: pytest.FixtureRequest) -> Tensor:
    with request.param():
        return torch.zeros(2, 6, 3, 2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_value_stays_what_it_was(slots: Tensor, mode: Callable[[], torch.no_grad]) -> None:
    values = [slots]
    for number in range(1, 30):
        with mode():
            values.append(append_in_room(values[-1], clip(number)))
    for step, value in enumerate(values):
        assert numbers(value) == [float(max(step - 5 + i, 0)) for i in range(6)]
        assert not value.requires_grad


@torch.inference_mode()
@pytest.mark.parametrize("num", [1, 2, 6])
def test_several_slots_of_one_stream_are_appended_by_one_copy(num: int) -> None:
    values = [[torch.zeros(1, num, 3, 2), torch.zeros(1, num, 5, 4), torch.zeros(1, 0, 3, 2)]]
    for number in range(1, 10):
        new = [clip(number, 1).double(), torch.full((1, 1, 5, 8), float(-number))[..., ::2], clip(number, 1)]
        values.append(append_flat(values[-1], new))
    for step, (first, second, nothing) in enumerate(values):
        expected = [float(max(step - num + 1 + i, 0)) for i in range(num)]
        assert numbers(first) == expected
        assert numbers(-second) == expected
        assert nothing.shape == (1, 0, 3, 2)


@torch.inference_mode()
def test_several_slots_are_appended_each_in_its_room_elsewhere() -> None:
    slots = [torch.zeros(2, 6, 3, 2), torch.zeros(2, 1, 3, 2)]
    for number in (1, 2):
        slots = append_together(slots, [clip(number), clip(-number)])
    assert [numbers(own) for own in slots] == [[0, 0, 0, 0, 1, 2], [-2]]


@torch.no_grad()
def test_most_steps_copy_one_slot() -> None:
    slots, places = torch.zeros(2, 32, 3, 2), set()
    for number in range(160):
        slots = append_in_room(slots, clip(number))
        places.add(slots.untyped_storage().data_ptr())
        assert slots.untyped_storage().nbytes() <= 1.5 * slots.nbytes
    assert len(places) <= 160 / 16 + 1


@torch.no_grad()
def test_two_go_on_from_one_value() -> None:
    start = torch.zeros(2, 6, 3, 2)
    for number in (1, 2):
        start = append_in_room(start, clip(number))
    one, other = append_in_room(start, clip(10)), append_in_room(start, clip(20))
    for number in (11, 12):
        one, other = append_in_room(one, clip(number)), append_in_room(other, clip(2 * number))
    assert numbers(start) == [0, 0, 0, 0, 1, 2]
    assert numbers(one) == [0, 1, 2, 10, 11, 12]
    assert numbers(other) == [0, 1, 2, 20, 22, 24]


@torch.no_grad()
def test_of_many_threads_that_go_on_from_one_value_each_has_its_own() -> None:
    start = append_in_room(torch.zeros(1, 8, 3, 2), clip(0, 1))

    def go_on(thread: int) -> Tensor:
        slots = start
        for number in range(20):
            slots = append_in_room(slots, clip(100 * thread + number, 1))
        return slots

    with ThreadPoolExecutor(8) as executor:
        for thread, found in enumerate(executor.map(go_on, range(1, 9)), start=1):
            assert numbers(found) == [100.0 * thread + number for number in range(12, 20)]


def test_what_inference_mode_made_is_not_written_to_outside_of_it() -> None:
    with torch.inference_mode():
        slots = append_in_room(torch.zeros(2, 6, 3, 2), clip(1))
    with torch.no_grad():
        slots = append_in_room(slots, clip(2))
    with torch.inference_mode():
        slots = append_in_room(slots, clip(3))
    assert numbers(slots) == [0, 0, 0, 1, 2, 3]


@torch.no_grad()
def test_new_clips_are_converted_and_may_be_parts_of_something() -> None:
    wide = torch.arange(24, dtype=torch.float64).view(2, 4, 3)
    slots = append_in_room(torch.zeros(2, 5, 2, 3), wide[:, None, 1:3])
    assert slots.dtype == torch.float32
    assert torch.equal(slots[:, -1], wide[:, 1:3].float())
    wide.zero_()
    assert slots[0, -1, 0, 0] == 3
