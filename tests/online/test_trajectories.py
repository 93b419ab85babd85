from __future__ import annotations

import pytest

from memvit.online.trajectories import Trajectories


def box(x: float) -> tuple[float, float, float, float]:
    return x, 0.2, x + 0.1, 0.8


def lefts(trajectories: Trajectories, *times_s: float) -> list[dict[int, float]]:
    return [{track: pytest.approx(corners[0]) for track, corners in trajectories.at(t).items()} for t in times_s]


def test_boxes_go_straight_from_one_sight_to_the_next() -> None:
    seen = [(0.0, 1, box(0.0)), (0.0, 2, box(0.8)), (1.0, 1, box(0.4)), (2.0, 1, box(0.4)), (2.0, 2, box(0.6))]
    found = lefts(Trajectories(seen, 1.0, 10.0), 0.0, 0.25, 1.0, 1.75, 2.0)
    assert found == [{1: 0.0, 2: 0.8}, {1: 0.1, 2: 0.775}, {1: 0.4, 2: 0.7}, {1: 0.4, 2: 0.625}, {1: 0.4, 2: 0.6}]


def test_whoever_was_away_for_long_is_not_drawn_in_between() -> None:
    seen = [(0.0, 1, box(0.0)), (1.0, 1, box(0.1)), (4.0, 1, box(0.5))]
    assert lefts(Trajectories(seen, 1.0, 10.0), 1.4, 1.6, 3.4, 3.6, 4.4, 4.6) == [
        {1: 0.1},
        {},
        {},
        {1: 0.5},
        {1: 0.5},
        {},
    ]


def test_the_last_look_holds_until_the_end() -> None:
    assert lefts(Trajectories([(0.0, 1, box(0.0)), (9.0, 2, box(0.1))], 1.0, 9.0), 0.6, 9.0, 9.9) == [
        {},
        {2: 0.1},
        {2: 0.1},
    ]


def test_long_periods_between_looks_are_bridged() -> None:
    seen = [(0.0, 1, box(0.0)), (5.0, 1, box(0.5))]
    assert lefts(Trajectories(seen, 5.0, 5.0), 2.0) == [{1: 0.2}]


def test_nobody_and_little_kept() -> None:
    assert Trajectories([], 1.0, 0.0).at(3.0) == {}
    trajectories = Trajectories(((i / 2, i // 3, box(0.0)) for i in range(10_000)), 0.5, 5000.0)
    for i in range(5000):
        trajectories.at(float(i))
        assert len(trajectories._points) < 6
        assert sum(len(points) for points in trajectories._points.values()) < 20
