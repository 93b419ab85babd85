from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest

from memvit.video import TimeSampler


@dataclass
class Stamp:
    time_s: float
    index: int = 0


def sample(times_s: list[float], sampler: TimeSampler, end_s: float | None = None) -> list[tuple[int, int]]:
    """What each instant shows, as (instant, number of the frame)."""
    shown = [pair for index, time_s in enumerate(times_s) for pair in sampler.push(Stamp(time_s, index))]
    return [(instant, frame.index) for instant, frame in shown + sampler.finish(end_s)]


def test_an_instant_shows_the_frame_on_display() -> None:
    assert sample([0.0, 0.4, 0.9, 1.1, 2.5], TimeSampler(0.5)) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4)]


def test_slow_video_repeats_and_fast_video_skips() -> None:
    assert sample([0.0, 1.0, 2.0], TimeSampler(0.5)) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)]
    assert sample([index / 100 for index in range(101)], TimeSampler(0.25)) == [
        (0, 0), (1, 25), (2, 50), (3, 75), (4, 100),
    ]  # fmt: skip


def test_instants_before_the_first_frame_show_it() -> None:
    assert sample([1.2, 1.6], TimeSampler(0.5)) == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_grid_starts_where_it_is_told() -> None:
    assert sample([0.0, 0.5, 1.0, 1.5], TimeSampler(0.5, start_s=0.75)) == [(0, 1), (1, 2)]


def test_end_extends_the_last_frame() -> None:
    assert sample([0.0, 0.5], TimeSampler(0.5), end_s=2.0) == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert sample([0.0, 0.5], TimeSampler(0.5), end_s=0.1) == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("fps", "first_s", "hours"),
    [
        (Fraction(30000, 1001), 0.0, 2),
        (Fraction(30000, 1001), 0.0333, 2),
        (Fraction(30), 1 / 3, 0.1),
        (Fraction(24000, 1001), 1 / 3, 0.1),
        (Fraction(60), 0.0333, 0.1),
    ],
)
def test_times_rounded_to_milliseconds_hit_the_grid_for_hours(fps: Fraction, first_s: float, hours: float) -> None:
    stride = 4
    sampler: TimeSampler[Stamp] = TimeSampler(float(stride / fps))
    num_frames = int(hours * 3600 * fps)
    origin = round(first_s * 1000)
    for index in range(num_frames):
        time_s = (round((first_s + float(index / fps)) * 1000) - origin) / 1000
        for instant, frame in sampler.push(Stamp(time_s, index)):
            assert frame.index == instant * stride
    assert sampler.next_index == (num_frames - 2) // stride + 1


def test_it_keeps_one_frame_and_two_numbers() -> None:
    times_s = [0.0, 0.3, 0.9, 1.4, 2.2, 2.3]
    whole = sample(times_s, TimeSampler(0.25))
    first: TimeSampler[Stamp] = TimeSampler(0.25)
    shown = [pair for index, time_s in enumerate(times_s[:3]) for pair in first.push(Stamp(time_s, index))]
    second: TimeSampler[Stamp] = TimeSampler(0.25)
    second.load_state_dict(first.state_dict())
    second.pending = first.pending
    shown += [pair for index, time_s in enumerate(times_s[3:], 3) for pair in second.push(Stamp(time_s, index))]
    assert [(instant, frame.index) for instant, frame in shown + second.finish()] == whole
    assert first.state_dict() == {"start_s": 0.0, "next_index": 4}


def test_a_gap_restarts_the_grid() -> None:
    sampler: TimeSampler[Stamp] = TimeSampler(0.5, max_gap_s=2.0)
    assert sampler.push(Stamp(0.0, 0)) == []
    assert not sampler.restarted
    assert [(instant, frame.index) for instant, frame in sampler.push(Stamp(1.0, 1))] == [(0, 0), (1, 0)]
    assert [(instant, frame.index) for instant, frame in sampler.push(Stamp(60.2, 2))] == [(2, 1)]
    assert sampler.restarted
    assert sampler.start_s == 60.2
    assert [(instant, frame.index) for instant, frame in sampler.push(Stamp(60.9, 3))] == [(0, 2), (1, 2)]
    assert not sampler.restarted
    assert sampler.time_of(1) == pytest.approx(60.7)


def test_without_a_limit_gaps_are_filled() -> None:
    assert len(sample([0.0, 60.0], TimeSampler(0.5))) == 121


def test_frames_out_of_order_are_refused() -> None:
    sampler: TimeSampler[Stamp] = TimeSampler(0.5)
    sampler.push(Stamp(1.0, 0))
    with pytest.raises(ValueError, match="does not come after"):
        sampler.push(Stamp(1.0, 1))
    assert [frame.index for _, frame in sampler.finish()] == [0]


def test_nothing_in_nothing_out() -> None:
    assert TimeSampler(0.5).finish(10.0) == []


@pytest.mark.parametrize("period_s", [0.0, -1.0, float("nan"), float("inf")])
def test_periods_are_positive(period_s: float) -> None:
    with pytest.raises(ValueError, match="is no time between frames"):
        TimeSampler(period_s)
