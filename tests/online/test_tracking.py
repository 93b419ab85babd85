from __future__ import annotations

import numpy as np
import pytest

from memvit.online.tracking import Tracker, iou


def person(x: float, y: float = 100.0, height: float = 170.0) -> tuple[float, float, float, float]:
    """A box like a person's: 60 wide, 170 high, a unit a centimetre."""
    return x, y, x + 0.35 * height, y + height


def follow(tracker: Tracker, moments: list[tuple[float, list[tuple[float, float, float, float]]]]) -> list[list[int]]:
    return [tracker.update(time_s, np.array(boxes).reshape(-1, 4)) for time_s, boxes in moments]


def test_somebody_who_walks_keeps_a_number_though_boxes_do_not_touch() -> None:
    moments = [(0.5 * i, [person(70.0 * i)]) for i in range(8)]  # 1.4 m/s: boxes of 60 cm are 10 cm apart
    assert iou(np.array(person(0)), np.array([person(70)]))[0] == 0
    assert follow(Tracker(), moments) == [[1]] * 8


def test_two_who_cross_keep_their_numbers_in_whatever_order_they_come() -> None:
    moments = []
    for i in range(9):
        pair = [person(40.0 * i), person(320.0 - 40.0 * i, y=110.0)]
        moments.append((0.5 * i, pair if i % 2 else pair[::-1]))
    numbers = follow(Tracker(), moments)
    first, second = numbers[0]
    assert numbers == [[second, first] if i % 2 else [first, second] for i in range(9)]


@pytest.mark.parametrize(("absence_s", "number"), [(1.0, 1), (2.0, 1), (2.5, 2)])
def test_a_short_absence_is_survived(absence_s: float, number: int) -> None:
    moments = [(0.0, [person(0)]), (0.5, [person(5)]), (0.5 + absence_s, [person(10)])]
    assert follow(Tracker(max_absence_s=2.0), moments)[-1] == [number]


def test_a_box_elsewhere_or_of_another_size_is_somebody_else() -> None:
    assert follow(Tracker(), [(0.0, [person(0)]), (0.5, [person(600)])]) == [[1], [2]]
    assert follow(Tracker(), [(0.0, [person(0)]), (0.5, [person(0, height=30)])]) == [[1], [2]]


def test_the_nearest_pair_is_joined_first_and_nobody_twice() -> None:
    tracker = Tracker()
    tracker.update(0.0, np.array([person(0), person(80)]))
    assert tracker.update(0.5, np.array([person(75), person(150)])) == [2, 3]
    assert tracker.num_tracks == 3


def test_numbers_are_not_used_again_and_nobody_is_fine() -> None:
    tracker = Tracker(max_absence_s=1.0)
    assert follow(tracker, [(0.0, [person(0)]), (1.0, []), (5.0, [person(0)]), (5.5, [person(0)])]) == [
        [1],
        [],
        [2],
        [2],
    ]
    assert len(tracker._tracks) == 1


def test_the_same_boxes_get_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    moments = [(0.5 * i, [person(float(x)) for x in rng.uniform(0, 2000, 12)]) for i in range(20)]
    assert follow(Tracker(), moments) == follow(Tracker(), moments)
