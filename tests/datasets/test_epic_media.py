"""The videos of EPIC-KITCHENS-100: wherever they lie, a clip shows them by time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epic_tree import number_of, picture, segment, write_files, write_images
from memvit.datasets.clips import ClipTiming
from memvit.datasets.epic_annotations import EpicVideo
from memvit.datasets.epic_kitchens import EpicKitchensDataset
from memvit.datasets.epic_media import image_rate
from memvit.datasets.loader import StreamLoader
from memvit.video.writer import VideoWriter

SECONDS = 6
TIMING = ClipTiming(num_frames=4, period_s=0.25, stride_s=1.0, num_times=2)
# A segment of a clip's length has one clip, from its start to its end.
START_S = 4.0


def frames(rate: float, seconds: float = SECONDS) -> list[np.ndarray]:
    return [picture(number) for number in range(round(seconds * rate))]


def dataset_of(root: Path, video: str, fps: float, **options: Any) -> EpicKitchensDataset:
    csv = write_files(root / "annotations", [segment(video, 0, START_S, START_S + 1, 0, 0)], {video: (SECONDS, fps)})
    return EpicKitchensDataset(csv, root, TIMING, **options)


def shown(dataset: EpicKitchensDataset) -> list[int]:
    """Which frames the segment's clip shows."""
    for batch in StreamLoader(dataset, batch_size=1, crop_size=32, training=False):
        if dataset.group(batch.videos[0], batch.start_s[0]) == 0:
            assert batch.present.all()
            return [number_of(frame.permute(1, 2, 0).numpy()) for frame in batch.clips[0].transpose(0, 1)]
    raise AssertionError("the segment has no clip")


def at(rate: float) -> list[int]:
    """The frames on display at the clip's instants, at a rate."""
    return [int((START_S + 0.25 * k) * rate + 1e-6) for k in range(4)]


RATES = [
    # video, its own rate, the rate of its images: published frames of 2018 are at 60, later ones at 50 per second
    ("P01_01", 59.9400599400599, 60.0),
    ("P09_07", 29.97002997002997, 60.0),
    ("P17_01", 47.952047952047955, 60.0),
    ("P18_09", 90.0, 60.0),
    ("P01_101", 50.0, 50.0),
    ("P06_107", 90.0, 50.0),
    ("P09_07", 29.97002997002997, 29.97002997002997),
    ("P18_09", 90.0, 90.0),
]  # fmt: skip


@pytest.mark.parametrize("tar", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize(("video", "fps", "rate"), RATES, ids=[f"{v}-{r:.0f}" for v, _, r in RATES])
def test_images_show_the_time_that_a_segment_names(
    video: str, fps: float, rate: float, tar: bool, tmp_path: Path
) -> None:
    write_images(tmp_path, video, frames(rate), tar=tar)
    assert shown(dataset_of(tmp_path, video, fps)) == at(rate)


@pytest.mark.parametrize(
    ("video", "duration_s", "fps", "num_images", "rate"),
    [
        ("P09_08", 126.459667, 29.97002997002997, 7599, 60.0),  # as many as were published of these
        ("P17_02", 545.77, 47.952047952047955, 32754, 60.0),
        ("P01_04", 105.238, 59.9400599400599, 6320, 60.0),
        ("P01_04", 105.238, 59.9400599400599, 6308, 59.9400599400599),  # as many as the film has
    ],
)
def test_the_number_of_images_tells_their_rate(
    video: str, duration_s: float, fps: float, num_images: int, rate: float
) -> None:
    assert image_rate(video, num_images, EpicVideo(duration_s, fps)) == rate


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(90)], ids=["29.97", "90"])
@pytest.mark.parametrize("place", ["P01/videos/P01_01.MP4", "P01/P01_01.mp4", "P01_01.mkv"])
def test_films_show_it_as_well(fps: Fraction, place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path.with_suffix(path.suffix.lower()), 48, 32, fps) as video:
        for frame in frames(float(fps)):
            video.write(frame)
    path.with_suffix(path.suffix.lower()).rename(path)
    found = shown(dataset_of(tmp_path, "P01_01", float(fps)))
    assert np.abs(np.array(found) - at(float(fps))).max() <= 1  # colours are encoded with losses


def test_images_are_preferred_to_films(tmp_path: Path) -> None:
    write_images(tmp_path, "P01_01", frames(60))
    (tmp_path / "P01" / "videos").mkdir()
    (tmp_path / "P01" / "videos" / "P01_01.MP4").write_bytes(b"")
    assert dataset_of(tmp_path, "P01_01", 60.0).videos[0].path == str(tmp_path / "P01" / "rgb_frames" / "P01_01")


def test_two_films_of_one_name_are_refused(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        (tmp_path / f"P01_01{suffix}").write_bytes(b"")
    with pytest.raises(ValueError, match=r"could be any of P01_01.mkv, P01_01.mp4 in .*: keep one of them"):
        dataset_of(tmp_path, "P01_01", 60.0)


def lacking(missing: Sequence[int], rate: float = 60.0) -> list[np.ndarray | None]:
    return [None if number in missing else frame for number, frame in enumerate(frames(rate))]


@pytest.mark.parametrize("missing", [range(12), range(250, 262), range(340, 360)], ids=["first", "middle", "last"])
def test_missing_images_shift_nothing_and_are_counted(
    missing: range, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, "P01_01", lacking(missing))
    dataset = dataset_of(tmp_path, "P01_01", 60.0)
    before = [number if number not in missing else missing.start - 1 for number in at(60)]
    assert shown(dataset) == before
    # A few images at the end may be a matter of how lengths are rounded.
    assert f"P01_01 lacks {len(missing) - (3 if missing.stop == 360 else 0)} of 360 images" in caplog.text


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (frames(60, 3), "has 180 images, the last is number 180; at 60 images per second the 6.0 s of video P01_01 are 360"),
        (lacking(range(100, 140)), "has 320 images, the last is number 360"),
        (frames(60, 8), "has 480 images"),
    ],
    ids=["half", "a gap", "too many"],
)  # fmt: skip
def test_images_at_an_unknown_rate_or_far_too_few_are_refused(
    pictures: list[np.ndarray | None], message: str, tmp_path: Path
) -> None:
    write_images(tmp_path, "P01_01", pictures)
    with pytest.raises(ValueError, match=message) as caught:
        dataset_of(tmp_path, "P01_01", 59.94)
    assert "get the rest, or give image_fps" in str(caught.value)


def test_the_rate_of_images_can_be_given(tmp_path: Path) -> None:
    write_images(tmp_path, "P01_01", frames(20))
    assert shown(dataset_of(tmp_path, "P01_01", 60.0, image_fps=20.0)) == at(20)


def test_an_unreadable_video_is_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, "P01_01", frames(60))
    (tmp_path / "P01" / "rgb_frames" / "P01_02.tar").write_bytes(b"no tar file" * 100)
    rows = [segment("P01_01", 0, 1, 2, 0, 0), segment("P01_02", 0, 1, 2, 0, 0)]
    csv = write_files(tmp_path / "annotations", rows, {"P01_01": (SECONDS, 60.0), "P01_02": (SECONDS, 60.0)})
    with pytest.raises(ValueError, match=r"1 of 2 videos cannot be read: .*P01_02.tar"):
        EpicKitchensDataset(csv, tmp_path, TIMING)
    dataset = EpicKitchensDataset(csv, tmp_path, TIMING, skip_unreadable=True)
    assert dataset.num_groups == 1
    assert [dataclasses.astuple(video)[0] for video in dataset.videos] == ["P01_01"]
    assert "They are left out" in caplog.text
