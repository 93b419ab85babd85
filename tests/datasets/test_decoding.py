from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from counted_videos import FPS, HEIGHT, TIMING, WIDTH, picture, write
from PIL import Image

from memvit.datasets.clips import ClipTiming, Video
from memvit.datasets.decoding import ClipDecoder
from memvit.datasets.views import View, centre_view
from memvit.video import ClipTransform, Frame, TimeSampler, VideoError, VideoReader
from memvit.video.reader import _Decoder
from memvit.video.sampling import ClipSampler
from memvit.video.writer import VideoWriter


@dataclass
class Stamp:
    time_s: float
    index: int


def sampled(times_s: list[float], sampler: ClipSampler[Stamp], slack_s: float = 0.0) -> dict[int, list[int]]:
    """Per clip, the number of the frame at each instant."""
    clips: dict[int, list[int]] = {}
    shown = [each for index, time_s in enumerate(times_s) for each in sampler.push(Stamp(time_s, index))]
    for clip, instant, frame in shown + sampler.finish(slack_s):
        assert instant == len(clips.setdefault(clip, []))
        clips[clip].append(frame.index)
    return clips


def whole(height: int, width: int, clip: int) -> View:
    return centre_view(height, width, HEIGHT, keep_aspect=True)


def shown(video: Video, starts_s: list[float], timing: ClipTiming = TIMING) -> list[list[int]]:
    """The numbers of the frames of every clip."""
    clips = ClipDecoder(video, starts_s, timing, whole)
    return [[round((float(frame[..., 0].mean()) - 20) / 4) for frame in clip] for clip in clips]


@pytest.mark.parametrize("fps", [Fraction(30), Fraction(30000, 1001), Fraction(25), Fraction(7)])
@pytest.mark.parametrize("period_s", [4 / 30, float(4 * Fraction(1001, 30000)), 0.1, 0.5])
def test_clips_of_a_grid_show_what_a_time_sampler_shows(fps: Fraction, period_s: float) -> None:
    times_s = [round(float(index / fps), 3) for index in range(int(40 * fps))]
    grid: TimeSampler[Stamp] = TimeSampler(period_s)
    pairs = [pair for index, time_s in enumerate(times_s) for pair in grid.push(Stamp(time_s, index))] + grid.finish()
    expected = [frame.index for _, frame in pairs]
    num_clips = len(expected) // 8
    clips = sampled(times_s, ClipSampler([clip * 8 * period_s for clip in range(num_clips)], 8, period_s))
    assert [index for clip in range(num_clips) for index in clips[clip]] == expected[: num_clips * 8]


def test_clips_overlap_leave_gaps_and_reach_over_both_ends() -> None:
    times_s = [index / 10 for index in range(20)]
    clips = sampled(times_s, ClipSampler([-0.4, 0.0, 0.2, 1.0, 1.6, 2.0, 2.5], 4, 0.2), slack_s=0.2)
    assert clips == {
        0: [0, 0, 0, 2],
        1: [0, 2, 4, 6],
        2: [2, 4, 6, 8],
        3: [10, 12, 14, 16],
        4: [16, 18, 19, 19],
        5: [19, 19, 19, 19],  # begins within the slack after the last frame at 1.9 s
    }


def test_clips_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="out of order"):
        ClipSampler([1.0, 0.5], 4, 0.2)
    with pytest.raises(ValueError, match="num_frames=0"):
        ClipSampler([0.0], 0, 0.2)
    with pytest.raises(ValueError, match="period_s=0"):
        ClipSampler([0.0], 4, 0.0)


def test_a_video_gives_the_frames_of_its_clips(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", 0, 20)
    assert shown(video, [0.0, 0.8]) == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert shown(video, [-0.4, 0.1, 1.7]) == [[0, 0, 0, 2], [1, 3, 5, 7], [17, 19, 19, 19]]
    assert shown(video, [1.2, 1.4]) == [[12, 14, 16, 18], [14, 16, 18, 19]]


def test_a_video_that_ends_early_gives_fewer_clips(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", 0, 10)  # last frame at 0.9 s, clips of 0.8 s
    assert shown(video, [0.0, 0.8, 1.6, 2.4]) == [[0, 2, 4, 6], [8, 9, 9, 9], [9, 9, 9, 9]]
    assert shown(video, [2.4]) == []


@pytest.mark.parametrize("stride_s", [0.8, 0.4, 0.2, 1.3])
def test_every_frame_is_decoded_once_and_only_what_is_shown_is_converted(tmp_path: Path, stride_s: float) -> None:
    video = write(tmp_path / "a.mp4", 0, 40)
    starts_s = np.arange(0, 3.2, stride_s).tolist()
    decoded: list[int] = []
    converted: list[float] = []
    decode, rgb = _Decoder._decode, Frame.rgb

    def counting_decode(self: _Decoder, packet: object) -> list:
        pictures = decode(self, packet)
        decoded.append(len(pictures))
        return pictures

    def counting_rgb(self: Frame, *size: int) -> np.ndarray:
        converted.append(self.time_s)
        return rgb(self, *size)

    with patch.object(_Decoder, "_decode", counting_decode), patch.object(Frame, "rgb", counting_rgb):
        clips = list(ClipDecoder(video, starts_s, TIMING, whole))
    assert len(clips) == len(starts_s)
    assert sum(decoded) <= 40
    assert len(converted) == len({round((start_s + k * 0.2) * FPS) for start_s in starts_s for k in range(4)})
    assert len(set(converted)) == len(converted)


def test_wherever_decoding_begins_clips_show_the_same_frames(tmp_path: Path) -> None:
    # Frames far apart: the one on display when a clip begins is much earlier.
    times_s = [0.0, 0.1, 0.2, 9.0, 9.1, 30.0, 30.1, 30.2, 30.3, 31.0]
    with VideoWriter(tmp_path / "slow.mkv", WIDTH, HEIGHT, FPS) as writer:
        for index, time_s in enumerate(times_s):
            writer.write(picture(0, index), time_s)
    video = Video("slow", str(tmp_path / "slow.mkv"), 31.1)
    starts_s = [0.0, 5.0, 8.8, 20.0, 29.9, 30.2, 31.0]
    clips = shown(video, starts_s)
    assert clips[3] == [4, 4, 4, 4]
    for index, start_s in enumerate(starts_s):
        assert shown(video, [start_s]) == [clips[index]]
        assert shown(video, starts_s[index:]) == clips[index:]


def test_a_clip_far_into_a_video_is_sought(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", 0, 900)
    with patch.object(VideoReader, "__iter__", autospec=True, side_effect=VideoReader.__iter__) as iterate:
        assert shown(video, [80.0]) == [[0, 2, 4, 6]]  # 800 modulo 50
    assert iterate.call_args.args[0].start_s == 79.0


def test_a_folder_of_images_is_a_video(tmp_path: Path) -> None:
    for index in range(20):
        Image.fromarray(picture(0, index)).save(tmp_path / f"{index}.png")
    video = Video("folder", str(tmp_path), 2.0)
    assert shown(video, [0.0, 0.8]) == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert shown(video, [1.1]) == [[11, 13, 15, 17]]
    with pytest.raises(VideoError, match="duration"):
        shown(Video("folder", str(tmp_path), 0.0), [0.0])


def test_pixels_are_those_of_the_clip_transform(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", 0, 8, size=(50, 74))
    with VideoReader(video.path) as reader:
        frames = [frame for index, frame in enumerate(reader) if index % 2 == 0]
    for keep_aspect in (False, True):
        transform = ClipTransform(33, (0, 0, 0), (1, 1, 1), keep_aspect=keep_aspect)
        expected = np.stack([transform.frame(frame) for frame in frames])
        view = centre_view(50, 74, 33, keep_aspect=keep_aspect)
        decoder = ClipDecoder(video, [0.0], TIMING, lambda height, width, clip, view=view: view)
        assert np.array_equal(next(iter(decoder)), expected)


def test_a_decoder_of_one_thread_gives_the_same_frames(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", 0, 30)
    with VideoReader(video.path, 0.5) as all_cores, VideoReader(video.path, 0.5, threads=1) as one:
        for frame, same in zip(all_cores, one, strict=True):
            assert frame.time_s == same.time_s
            assert np.array_equal(frame.rgb(), same.rgb())
    with pytest.raises(VideoError, match="threads=0 cannot decode"):
        VideoReader(video.path, threads=0)


def test_what_is_damaged_is_known_at_the_end(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mkv", 0, 60)
    path = Path(video.path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    decoder = ClipDecoder(video, [0.0, 0.8, 1.6, 2.4, 3.2, 4.0, 4.8], TIMING, whole)
    assert 2 <= len(list(decoder)) < 7
    assert decoder.warning is not None
    assert "a.mkv" in decoder.warning
