from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from memvit.datasets.clips import ClipTiming, Video
from memvit.datasets.decoding import ClipDecoder
from memvit.datasets.views import centre_view
from memvit.online.keyframes import KeyframeClip, KeyframeSampler, Look
from memvit.online.persons import Moment
from memvit.video import Frame, open_video
from video.encode import read_barcode, write_video


def frames(times_s: Iterable[float]) -> Iterator[Frame]:
    """Frames whose one pixel is their number, up to 255."""
    for index, time_s in enumerate(times_s):
        yield Frame(time_s, np.full((1, 1, 3), index % 256, np.uint8))


def sample(
    moments: Iterable[Moment], times_s: Iterable[float], num: int, period_s: float
) -> list[tuple[str, float, object]]:
    sampler = KeyframeSampler(iter(moments), num, period_s, lambda frame: frame.rgb())
    shown: list[tuple[str, float, object]] = []
    for item in itertools.chain(*(list(sampler.push(frame)) for frame in frames(times_s)), sampler.finish()):
        if isinstance(item, Look):
            shown.append(("look", item.moment.time_s, int(item.frame.rgb()[0, 0, 0])))
        else:
            shown.append(("clip", item.moment.time_s, [int(pixels[0, 0, 0]) for pixels in item.frames]))
    return shown


def test_a_clip_surrounds_its_keyframe_and_repeats_the_ends_of_the_video() -> None:
    moments = (Moment(float(k)) for k in itertools.count())
    shown = sample(moments, [i / 4 for i in range(10)], num=4, period_s=0.5)
    assert shown == [
        ("look", 0.0, 0),
        ("clip", 0.0, [0, 0, 0, 2]),
        ("look", 1.0, 4),
        ("clip", 1.0, [0, 2, 4, 6]),
        ("look", 2.0, 8),
        ("clip", 2.0, [4, 6, 8, 9]),
    ]


def test_moments_that_are_no_keyframes_are_looked_at_only() -> None:
    moments = (Moment(k / 2, is_keyframe=k % 2 == 0) for k in itertools.count())
    shown = sample(moments, [i / 4 for i in range(7)], num=2, period_s=0.25)
    assert [(kind, time_s) for kind, time_s, _ in shown] == [
        *(("look", 0.0), ("clip", 0.0), ("look", 0.5), ("look", 1.0), ("clip", 1.0), ("look", 1.5))
    ]


def test_moments_a_little_after_the_end_count_if_they_were_given() -> None:
    def last(moments: list[Moment]) -> list[float]:
        return [time_s for kind, time_s, _ in sample(moments, [0.0, 1.0, 2.0], 2, 4.0) if kind == "clip"]

    assert last([Moment(2.0), Moment(2.4), Moment(3.0)]) == [2.0]
    given = [Moment(time_s, is_given=True) for time_s in (2.0, 2.4, 3.0)]
    assert last(given) == [2.0, 2.4]


def test_a_video_of_one_frame_and_none_at_all() -> None:
    moments = [Moment(0.0), Moment(1.0)]
    assert sample(moments, [0.0], 2, 1.0) == [("look", 0.0, 0), ("clip", 0.0, [0, 0])]
    assert sample(moments, [], 2, 1.0) == []


@pytest.mark.parametrize(
    ("num_frames", "period_s", "every_s"), [(4, 0.1, 1.0), (8, 4 / 30, 1.0), (5, 0.5, 0.7), (1, 0.2, 0.1)]
)
def test_clips_are_those_of_training_and_evaluation(
    tmp_path: Path, num_frames: int, period_s: float, every_s: float
) -> None:
    video = write_video(tmp_path / "v.mp4", 120)
    times_s = [k * every_s for k in range(1 + int(119 / 30 / every_s))]
    timing = ClipTiming(num_frames, period_s, num_frames * period_s, 1)
    starts_s = [time_s - timing.duration_s / 2 for time_s in times_s]
    view = centre_view(48, 72, 48, keep_aspect=True)
    decoder = ClipDecoder(Video("v", str(video), 4.0, 48, 72), starts_s, timing, lambda *_: view)
    expected = [[read_barcode(pixels) for pixels in clip] for clip in decoder]

    sampler = KeyframeSampler(
        (Moment(k * every_s) for k in itertools.count()), num_frames, period_s, lambda frame: view.frame(frame)
    )
    found = []
    with open_video(video) as reader:
        for item in itertools.chain(*(list(sampler.push(frame)) for frame in reader), sampler.finish()):
            if isinstance(item, KeyframeClip):
                found.append([read_barcode(pixels) for pixels in item.frames])
    assert found == expected
    assert len(found) == len(times_s)


def test_little_is_kept_however_long_the_video() -> None:
    sampler = KeyframeSampler((Moment(k * 0.5) for k in itertools.count()), 16, 0.25, lambda frame: frame.rgb())
    largest = 0
    for frame in frames(i / 10 for i in range(3000)):
        list(sampler.push(frame))
        largest = max(largest, len(sampler._open))
    assert largest <= 9
