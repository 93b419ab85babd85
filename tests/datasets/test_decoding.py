from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from counted_videos import FPS, HEIGHT, TIMING, WIDTH, picture, write
from PIL import Image

from memvit.datasets.augmentation import GREY
from memvit.datasets.clips import ClipTiming, Video
from memvit.datasets.decoding import ClipDecoder
from memvit.datasets.views import View, centre_view
from memvit.video import ClipTransform, Frame, TimeSampler, VideoError, VideoReader
from memvit.video.images import ImageFolderReader, NumberedImages
from memvit.video.reader import _Decoder
from memvit.video.sampling import ClipSampler
from memvit.video.tar_images import TarImages
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
    with patch.object(VideoReader, "read", autospec=True, side_effect=VideoReader.read) as read:
        assert shown(video, [80.0]) == [[0, 2, 4, 6]]  # 800 modulo 50
    assert read.call_args.args[0].start_s == 79.0


def test_a_folder_of_images_is_a_video(tmp_path: Path) -> None:
    for index in range(20):
        Image.fromarray(picture(0, index)).save(tmp_path / f"{index}.png")
    video = Video("folder", str(tmp_path), 2.0)
    assert shown(video, [0.0, 0.8]) == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert shown(video, [1.1]) == [[11, 13, 15, 17]]
    with pytest.raises(VideoError, match="duration"):
        shown(Video("folder", str(tmp_path), 0.0), [0.0])


def folder_of(path: Path, numbers: Sequence[int], broken: Sequence[int] = ()) -> Video:
    """Images of some frames at 10 a second; of the broken ones every other is missing, though it is listed."""
    path.mkdir()
    for number in numbers:
        if number not in broken:
            Image.fromarray(picture(0, number)).save(path / f"{number:06d}.png")
        elif number % 2:
            (path / f"{number:06d}.png").write_text("not an image")
    names = np.array([f"{number:06d}.png".encode() for number in numbers], np.bytes_)
    return Video(path.name, str(path), 0.0, images=NumberedImages(str(path), names, np.array(numbers), FPS))


def every_image_read(decoder: ClipDecoder) -> list[np.ndarray]:
    """The clips of a decoder that reads every image from the first on."""
    images = decoder.video.images
    assert images is not None
    with patch.object(ClipDecoder, "_open_images", lambda *_: ImageFolderReader(images.folder, FPS, images=images)):
        return list(decoder)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
@pytest.mark.parametrize("period_s", [0.2, 0.13, 0.05])
@pytest.mark.parametrize(
    ("numbers", "broken"),
    [
        (range(60), ()),
        (range(60), (0, 1, 2, 17, 30, 31, 59)),
        (range(60), range(30, 60)),
        ([0, 1, 2, 9, 10, 11, 30, 31, 32, 59], ()),
        ([3, 4, 5, 20, 21, 40], (3, 21, 40)),
        ([7], ()),
    ],
)
def test_clips_show_the_same_whether_all_images_are_read_or_only_those_shown(
    tmp_path: Path, numbers: Sequence[int], broken: Sequence[int], period_s: float, jitter: float
) -> None:
    video = folder_of(tmp_path / "images", list(numbers), broken)
    timing = ClipTiming(4, period_s, 4 * period_s, 1)
    rng = np.random.default_rng(0)
    grid = [-0.1, 0.0, 0.1, 0.1, 0.8, 1.6, 2.4, 3.0, 3.1, 5.0, 5.9, 6.0, 6.5, 9.0]
    for starts_s in (grid, grid[4:7], [2.0], np.sort(rng.uniform(-0.1, 7.0, 12)).tolist()):
        shifts_s = rng.uniform(-1, 1, (len(starts_s), 4)) * jitter * period_s if jitter else None
        decoder, full = (ClipDecoder(video, starts_s, timing, whole, shifts_s) for _ in range(2))
        clips, expected = list(decoder), every_image_read(full)
        assert len(clips) == len(expected)
        assert all(map(np.array_equal, clips, expected))
        if len(clips) < len(starts_s):
            assert decoder.last_s == full.last_s


def test_only_images_that_are_shown_are_decoded(tmp_path: Path) -> None:
    video = folder_of(tmp_path / "images", range(40))
    decoded: list[int] = []
    read = NumberedImages.read

    def counting(self: NumberedImages, index: int) -> bytes:
        decoded.append(index)
        return read(self, index)

    with patch.object(NumberedImages, "read", counting):
        assert shown(video, [0.8, 1.0, 2.4]) == [[8, 10, 12, 14], [10, 12, 14, 16], [24, 26, 28, 30]]
    # The first for its size, and the one after the last.
    assert decoded == [0, 8, 10, 12, 14, 16, 24, 26, 28, 30, 31]


def test_images_in_a_tar_file_are_a_video(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder_of(tmp_path / "a", range(1, 41)).path, "a")
    images = TarImages.from_numbers(tmp_path / "a.tar", fps=10.0)
    video = Video("a", str(tmp_path / "a.tar"), 0.0, images=images)
    assert shown(video, [0.0, 2.4]) == [[1, 3, 5, 7], [25, 27, 29, 31]]


def test_images_may_know_their_rate(tmp_path: Path) -> None:
    video = folder_of(tmp_path / "images", range(40))
    assert video.images is not None
    images = NumberedImages.counted(video.path)
    # 40 images that are said to last 2 s are 20 a second, unless they know better.
    assert shown(Video("a", video.path, 2.0, images=images), [0.0]) == [[0, 4, 8, 12]]
    assert shown(Video("a", video.path, 2.0, images=video.images), [0.0]) == [[0, 2, 4, 6]]


@pytest.mark.parametrize("kind", ["file", "images"])
def test_a_clip_that_lies_before_the_video_shows_nothing(tmp_path: Path, kind: str) -> None:
    video = write(tmp_path / "a.mp4", 0, 20) if kind == "file" else folder_of(tmp_path / "a", range(20))
    starts_s = [-3.0, -0.7, -0.6 - 1e-9, -0.6, 0.0]  # the last instant of the second is -0.1 s, of the fourth 0
    clips = list(ClipDecoder(video, starts_s, TIMING, whole))
    assert [clip.shape for clip in clips] == [(4, HEIGHT, WIDTH, 3)] * 5
    assert [bool((clip == GREY).all()) for clip in clips] == [True, True, False, False, False]
    assert shown(video, starts_s)[2:] == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 2, 4, 6]]
    alone = list(ClipDecoder(video, [-3.0, -2.0], TIMING, whole))
    assert len(alone) == 2
    assert all((clip == GREY).all() for clip in alone)


def test_shifts_decide_whether_a_clip_lies_before_the_video(tmp_path: Path) -> None:
    video = folder_of(tmp_path / "a", range(20))
    shifts_s = np.array([[0.0, 0, 0, 0.1], [0, 0, 0, -0.1], [0, 0, 0, 0]])
    clips = list(ClipDecoder(video, [-0.65, -0.55, -0.5], TIMING, whole, shifts_s))
    assert [bool((clip == GREY).all()) for clip in clips] == [False, True, False]


@pytest.mark.parametrize("kind", ["file", "images"])
def test_clips_come_in_the_order_asked_for_and_show_what_each_alone_does(tmp_path: Path, kind: str) -> None:
    video = write(tmp_path / "a.mp4", 0, 50) if kind == "file" else folder_of(tmp_path / "a", range(50))
    rng = np.random.default_rng(0)
    starts_s = rng.permutation([-2.0, -0.7, -0.3, 0.0, 0.1, 1.3, 1.3, 1.4, 2.2, 3.0, 4.7, 5.2]).tolist()
    shifts_s = rng.uniform(-0.1, 0.1, (len(starts_s), 4))
    for shifts in (None, shifts_s):
        clips = list(ClipDecoder(video, starts_s, TIMING, whole, shifts))
        assert len(clips) == len(starts_s)
        for index, clip in enumerate(clips):
            own = None if shifts is None else shifts[index : index + 1]
            (alone,) = ClipDecoder(video, starts_s[index : index + 1], TIMING, whole, own)
            assert np.array_equal(clip, alone)


def test_clips_out_of_order_end_with_the_last_that_the_video_reaches(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", 0, 10)  # last frame at 0.9 s, clips of 0.8 s
    starts_s = [0.8, 5.0, 1.6, 0.0, 4.0, 3.0]
    expected = [[8, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9], [0, 2, 4, 6]]
    for first in range(6):  # wherever reading goes on, the same clips are there
        assert shown(video, starts_s[first:]) == expected[first:]


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
