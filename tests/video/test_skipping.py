"""Pictures that nobody looks at may be skipped; what is looked at is what it would be without."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode import barcode, damage, read_barcode, write_video

from memvit.online import OnlineRecognizer
from memvit.video import Frame, TimeSampler, VideoReader
from memvit.video.sampling import ClipSampler
from tiny_models import small_model

B_FRAMES = {"b_frames": 3, "options": {"preset": "veryfast"}}
OPEN_GOP = {"preset": "veryfast", "x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}

# Whether pictures are skipped, and how to write such a video.
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "b-frames.mp4": (True, B_FRAMES),
    "pyramid.mkv": (True, {"options": {"preset": "veryfast", "x264-params": "bframes=7:b-pyramid=normal"}}),
    "open-gop.ts": (True, {"options": OPEN_GOP}),
    "h264.flv": (True, B_FRAMES),
    "hevc.mp4": (
        True,
        {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "bframes=4:log-level=none"}},
    ),
    "b-frames.avi": (False, B_FRAMES),  # a picture has the time at which the next one is read
    "no-timestamps.h264": (False, {"format": "h264", **B_FRAMES}),
    "mpeg4.avi": (False, {"codec": "mpeg4", "b_frames": 2}),
}


class Counted:
    """Frames, counted as they come."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self.frames = frames
        self.num = 0

    def __iter__(self) -> Any:
        for frame in self.frames:
            self.num += 1
            yield frame


def noisy(num_frames: int) -> list[np.ndarray]:
    """Pictures that do not compress well, so that damage to a part of the file hits that part of the video."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48, 72, 3), dtype=np.uint8) for _ in range(num_frames)]


def sampled(path: Path, period_s: float, start_s: float, end_s: float | None, *, skips: bool) -> tuple[list[Any], int]:
    """Instants with their frames' times, numbers and pixels, and how many frames were decoded for them."""
    sampler: TimeSampler[Frame] = TimeSampler(period_s, start_s)
    with VideoReader(path, start_s, end_s) as reader:
        frames = Counted(reader.read(sampler.shows if skips else None))
        shown = [pair for frame in frames for pair in sampler.push(frame)] + sampler.finish()
        assert reader.warning is None
    seen = [(index, frame.time_s, frame.rgb()) for index, frame in shown]
    return [(index, time_s, read_barcode(rgb), rgb.tobytes()) for index, time_s, rgb in seen], frames.num


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampled_video_shows_what_it_shows_whole(tmp_path: Path, kind: str) -> None:
    skips, options = KINDS[kind]
    path = write_video(tmp_path / kind, 150, **options)
    for period_s, start_s, end_s in [(4 / 30, 0.0, None), (0.5, 1.27, None), (0.09, 0.61, 3.3), (7.0, 0.4, 4.9)]:
        whole, num_whole = sampled(path, period_s, start_s, end_s, skips=False)
        found, num_decoded = sampled(path, period_s, start_s, end_s, skips=True)
        assert found == whole
        assert num_decoded < num_whole if skips else num_decoded == num_whole


def test_times_that_vary_are_looked_ahead_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times_s = np.cumsum(rng.choice([0.01, 0.03, 0.2, 0.9], 120)).round(3).tolist()
    path = write_video(tmp_path / "vary.mkv", 120, times_s=times_s, **B_FRAMES)
    for period_s in (0.1, 0.4):
        whole, num_whole = sampled(path, period_s, 0.0, None, skips=False)
        found, num_decoded = sampled(path, period_s, 0.0, None, skips=True)
        assert found == whole
        assert num_decoded < num_whole


def test_where_the_clock_starts_anew_nothing_is_skipped_any_more(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{i}.ts", [barcode(100 * i + n) for n in range(60)], **B_FRAMES) for i in range(2)]
    glued = tmp_path / "glued.ts"
    glued.write_bytes(b"".join(part.read_bytes() for part in parts))
    whole, _ = sampled(glued, 0.13, 0.0, None, skips=False)
    found, num_decoded = sampled(glued, 0.13, 0.0, None, skips=True)
    assert found == whole
    assert {number // 100 for _, _, number, _ in found} == {0, 1}
    assert 60 < num_decoded < 120


def test_clips_show_what_they_show_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clips.mp4", 150, **B_FRAMES)
    shifts_s = np.random.default_rng(0).uniform(-0.04, 0.04, (3, 4))
    found = []
    for skips in (False, True):
        sampler: ClipSampler[Frame] = ClipSampler([0.3, 1.1, 3.9], 4, 0.2, shifts_s)
        with VideoReader(path) as reader:
            frames = Counted(reader.read(sampler.shows if skips else None))
            shown = [item for frame in frames for item in sampler.push(frame)] + sampler.finish(1.0)
        found.append([(clip, index, read_barcode(frame.rgb())) for clip, index, frame in shown])
    assert found[0] == found[1]
    assert len(found[0]) == 12
    assert frames.num < 120


def test_damage_costs_no_more_than_it_does(tmp_path: Path) -> None:
    path = damage(write_video(tmp_path / "damaged.mp4", noisy(150), **B_FRAMES), 0.4, 0.5)
    sampler: TimeSampler[Frame] = TimeSampler(0.2)
    with VideoReader(path) as reader:
        times_s = [frame.time_s for frame in reader.read(sampler.shows)]
    assert all(before < after for before, after in pairwise(times_s))
    assert times_s[-1] > 4


def test_an_overlay_after_recognition_sees_all_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", 90, **B_FRAMES)
    recognizer = OnlineRecognizer(small_model(), fps=30, sampling_rate=6)
    with VideoReader(path) as reader:
        predictions = list(recognizer.run(reader))
        assert len(list(reader)) == 90
    afresh = OnlineRecognizer(recognizer.model, fps=30, sampling_rate=6)
    with VideoReader(path) as reader:
        expected = list(afresh.run(iter(reader)))  # no reader, for all that it knows
    assert [p.end_s for p in predictions] == [p.end_s for p in expected]
    for one, other in zip(predictions, expected, strict=True):
        np.testing.assert_array_equal(one.logits[0], other.logits[0])
