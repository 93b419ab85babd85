"""The files of EPIC-KITCHENS-100: read as they are published, and what is wrong with them found."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import epic_tree
from epic_tree import segment, write_files, write_images
from memvit.cli import main
from memvit.datasets.clips import ClipTiming
from memvit.datasets.epic_annotations import read_classes, read_video_info, seconds
from memvit.datasets.epic_kitchens import EpicKitchensDataset, open_epic

TIMING = ClipTiming(num_frames=4, period_s=0.25, stride_s=1.0, num_times=2)
FPS = 4.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of eight seconds."""
    root = tmp_path_factory.mktemp("epic")
    for video in ("P01_101", "P02_01"):
        write_images(root, video, [epic_tree.picture(number) for number in range(32)])
    return root


INFOS = {"P01_101": (8.0, FPS), "P02_01": (8.0, FPS)}


def many(number: int = 40) -> list[dict[str, Any]]:
    """Good segments, so that a few bad ones are few."""
    return [segment("P01_101", i, 0.1 * i, 0.1 * i + 1, i % 3, i % 2) for i in range(number)]


def open_(csv: Path, videos: Path, **options: Any) -> EpicKitchensDataset:
    return EpicKitchensDataset(csv, videos, TIMING, **options)


def test_times_are_read_to_the_hundredth() -> None:
    given = pd.Series(["00:00:01.89", "01:02:03.5", "00:00:07", "1:75:00", "12.5", "", "00:00:-1"])
    assert seconds(given).round(6).tolist()[:3] == [1.89, 3723.5, 7.0]
    assert seconds(given).isna().tolist() == [False] * 3 + [True] * 4


def test_segments_videos_and_classes_are_read(videos: Path, tmp_path: Path) -> None:
    csv = write_files(tmp_path, [segment("P02_01", 0, 1.5, 2.25, 1, 0), segment("P01_101", 7, 3, 5, 2, 1)], INFOS)
    dataset = open_(csv, videos)
    assert dataset.classes == (epic_tree.VERBS, epic_tree.NOUNS)
    assert dataset.head_names == ("verb", "noun")
    assert [(video.name, video.duration_s) for video in dataset.videos] == [("P02_01", 8.0), ("P01_101", 8.0)]
    assert dataset.rows[["narration_id", "start_s", "stop_s", "verb_class", "noun_class"]].values.tolist() == [
        ["P02_01_0", 1.5, 2.25, 1, 0],
        ["P01_101_7", 3.0, 5.0, 2, 1],
    ]


FAULTS = [
    ({"start_timestamp": "00:00:05.00", "stop_timestamp": "00:00:05.00"}, "reversed", "ends at 00:00:05.00, not after"),
    ({"start_timestamp": "00:00:09.00", "stop_timestamp": "00:00:10.00"}, "outside the video", "after the end of video"),
    ({"verb_class": 3}, "unknown class", "verb_class '3' is no class: give a whole number from 0 to 2"),
    ({"noun_class": "pan"}, "unknown class", "noun_class 'pan' is no class: give a whole number from 0 to 1"),
    ({"start_timestamp": "soon"}, "no time", "start_timestamp 'soon' is no time"),
    ({"narration_id": "P01_101_3"}, "duplicate", "narration_id 'P01_101_3' is there before"),
    ({"video_id": "P09_01", "participant_id": "P09"}, "no video info", "no line for video 'P09_01' of P09"),
    ({"participant_id": "P02"}, "other participant", "video 'P01_101' is not one of participant 'P02'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "message"), FAULTS, ids=[kind for _, kind, _ in FAULTS])
def test_a_row_that_cannot_be_used_is_named_and_left_out(
    changes: dict[str, Any], kind: str, message: str, videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = many()
    rows.insert(5, {**segment("P01_101", 99, 2, 3, 0, 0), **changes})
    csv = write_files(tmp_path, rows, INFOS)
    dataset = open_(csv, videos)
    assert dataset.num_groups == 40
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert f"1 of 41 rows are left out ({kind}): {csv}:7: " in warning
    assert message in warning


def test_a_tenth_of_bad_rows_is_refused(videos: Path, tmp_path: Path) -> None:
    rows = many(16) + [{**segment("P01_101", 90 + i, 5, 4, 0, 0)} for i in range(2)]
    csv = write_files(tmp_path, rows, INFOS)
    with pytest.raises(ValueError, match=r"csv:18: the segment ends at 00:00:04.00.*and 1 more"):
        open_(csv, videos)


def test_a_missing_video_is_named_and_left_out(videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    infos = {**INFOS, **{f"P03_{i:02d}": (8.0, FPS) for i in range(1, 13)}}
    rows = many()
    for i in range(1, 12):
        write_images(tmp_path / "v", f"P03_{i:02d}", [epic_tree.picture(0)] * 32)
        rows.append(segment(f"P03_{i:02d}", 0, 1, 2, 0, 0))
    (tmp_path / "v" / "P01").symlink_to(videos / "P01")
    rows.append(segment("P03_12", 0, 1, 2, 0, 0))
    csv = write_files(tmp_path, rows, infos)
    dataset = open_(csv, tmp_path / "v")
    assert len(dataset.videos) == 12
    assert "1 of 13 videos are missing and left out" in caplog.text
    with pytest.raises(ValueError, match=r"13 of 13 videos are not in .*P01/videos/P01_11.MP4 there"):
        open_(csv, tmp_path)


def test_an_annotation_file_of_another_version_is_refused(videos: Path, tmp_path: Path) -> None:
    csv = write_files(tmp_path, many(), INFOS)
    csv.write_text(csv.read_text().replace("narration_id", "uid", 1))
    with pytest.raises(ValueError, match=r"no column narration_id; there are uid, .* another version"):
        open_(csv, videos)


def test_a_pickle_is_not_opened(videos: Path, tmp_path: Path) -> None:
    write_files(tmp_path, many(), INFOS)
    (tmp_path / "EPIC_100_validation.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match="a pickle may run any code"):
        open_(tmp_path / "EPIC_100_validation.pkl", videos)


def test_the_files_beside_the_segments_are_asked_for(videos: Path, tmp_path: Path) -> None:
    csv = write_files(tmp_path, many(), INFOS)
    (tmp_path / "EPIC_100_video_info.csv").rename(tmp_path / "info.csv")
    with pytest.raises(FileNotFoundError, match=r"EPIC_100_video_info.csv: not beside .*say where it is"):
        open_(csv, videos)
    assert open_(csv, videos, video_info=tmp_path / "info.csv").num_groups == 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video_id,duration\nP01_101,8\n", "no column fps"),
        ("video_id,duration,fps\nP01_101,8,fast\n", r"csv:2: duration and fps of video 'P01_101' must be numbers"),
        ("video_id,duration,fps\nP01_101,8,4\nP01_101,8,4\n", "csv:3: video 'P01_101' is there before"),
    ],
)
def test_a_wrong_list_of_videos_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "info.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_video_info(path)


def test_classes_count_from_0_in_order(tmp_path: Path) -> None:
    path = tmp_path / "verbs.csv"
    path.write_text("id,key\n0,take\n2,cut\n")
    with pytest.raises(ValueError, match="count from 0"):
        read_classes(path)
    path.write_text("id,key\n0,take\n1,take\n")
    with pytest.raises(ValueError, match="the same name"):
        read_classes(path)


def test_other_classes_than_in_training_are_refused(videos: Path, tmp_path: Path) -> None:
    csv = write_files(tmp_path, many(), INFOS)
    with pytest.raises(ValueError, match="are not those of training, which has 2, 2"):
        open_(csv, videos, classes=(("take", "cut"), epic_tree.NOUNS))


def test_segments_without_classes_are_good_for_a_test_alone(videos: Path, tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if "verb" not in k and "noun" not in k} for row in many()]
    csv = write_files(tmp_path, rows, INFOS, name="EPIC_100_test_timestamps.csv")
    with pytest.raises(ValueError, match="no column verb_class, noun_class"):
        open_(csv, videos)
    dataset = open_(csv, videos, labelled=False)
    assert dataset.num_groups == 40
    assert not dataset.labelled


def test_everything_wrong_is_listed_by_the_command(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*many(16), segment("P01_101", 90, 5, 4, 0, 0), {**segment("P01_101", 91, 5, 6, 0, 0), "noun_class": 9}]
    csv = write_files(tmp_path, rows, INFOS)
    assert main(["data", "check", str(csv), "--videos", str(videos), "--task", "epic"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"error: {csv}:18: the segment ends at 00:00:04.00" in printed
    assert f"error: {csv}:19: noun_class '9' is no class" in printed
    assert "2 errors, 0 warnings" in printed


def test_the_real_validation_set_is_read_without_a_fault(tmp_path: Path) -> None:
    file = open_epic(epic_tree.real_annotations() / "EPIC_100_validation.csv", tmp_path)
    assert (file.num_rows, len(file.lines)) == (9668, 138)
    assert [len(names) for names in file.names] == [97, 300]
    assert {finding.kind for finding in file.findings} == {"missing video"}
