from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from counted_videos import write

from memvit.datasets.ava_boxes import read_boxes
from memvit.datasets.check import Report, check_annotations
from memvit.datasets.clips import ClipTiming
from memvit.datasets.kinetics import find_labelled_videos
from memvit.datasets.segments import SegmentsDataset, read_segments

HEADER = "video,start_s,end_s,label\n"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a, b and c of 9 s, unused/d of 1 s, and the broken e."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "unused").mkdir()
    for name, num_frames in (("a", 72), ("b", 72), ("c", 72), ("unused/d", 8)):
        write(folder / f"{name}.mp4", 0, num_frames, (16, 16), fps=8)
    (folder / "e.mp4").write_bytes(b"no video at all")
    return folder


def check(folder: Path, videos: Path, *texts: str, clip_s: float | None = None, multi_label: bool = False) -> Report:
    paths = [folder / f"{name}.csv" for name, _ in zip(("train", "val", "test"), texts, strict=False)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return check_annotations(paths, partial(read_segments, videos=videos, multi_label=multi_label), clip_s=clip_s)


def found(report: Report, level: str) -> list[str]:
    """The findings of a level."""
    return [str(finding) for finding in report.findings if finding.level == level]


def test_a_good_data_set_is_described_and_has_no_errors(tmp_path: Path, videos: Path) -> None:
    train_rows, val_rows = "a,0,3,x\na,3,6,y\nb.mp4,0,9,x\n", "c,0,3,x\nc,4,5,y\n"
    report = check(tmp_path, videos, HEADER + train_rows, HEADER + val_rows, clip_s=2)
    assert report.ok
    train, val = report.splits
    assert (train.split, train.num_videos, train.num_entries, train.num_clips) == ("train", 2, 3, 10)
    assert train.hours == pytest.approx(18 / 3600)
    assert train.labelled_share == pytest.approx(15 / 18)
    assert train.classes == {"label": {"x": 2, "y": 1}}
    assert (val.split, val.num_videos, val.labelled_share) == ("val", 1, pytest.approx(4 / 9))
    assert found(report, "error") == []
    assert found(report, "warning") == [
        f"{tmp_path}/train.csv: classes of label that occur once only (1 of 2): 'y'",
    ]
    assert found(report, "note") == [f"videos in {videos} that no file names (2): e.mp4; unused/d.mp4"]


def test_everything_wrong_is_found_at_once_errors_first(tmp_path: Path, videos: Path) -> None:
    train_rows = "a,0,3,x\na,2,5,y\na,7,6,x\nb,-1,2,x\nb,0,1,x\nb,0,1,x\nnone,0,1,z\ne,0,1,y\n"
    train_rows += "b,8,20,y\nb,30,40,y\nb,u,2,x\nb,1,2\n"
    val_rows = "c,0,1,new\nc,1,2,new\na,5,6,x\nnone,1,2,x\n"
    report = check(tmp_path, videos, HEADER + train_rows, HEADER + val_rows)
    assert not report.ok
    errors = [(Path(f.file or "").name, f.line, f.kind) for f in report.findings if f.level == "error"]
    assert errors == [
        ("train.csv", 3, "overlap"),
        ("train.csv", 4, "reversed"),
        ("train.csv", 5, "before the video"),
        ("train.csv", 7, "duplicate"),
        ("train.csv", 8, "missing video"),
        ("train.csv", 9, "unreadable video"),
        ("train.csv", 11, "outside the video"),
        ("train.csv", 12, "not a number"),
        ("train.csv", 13, "broken row"),
        ("val.csv", 2, "unknown label"),
        ("val.csv", 5, "missing video"),
    ]
    warnings = [(Path(f.file or "").name, f.line, f.kind) for f in report.findings if f.level == "warning"]
    assert warnings == [
        ("train.csv", None, "rare class"),
        ("train.csv", 10, "outside the video"),
        ("val.csv", None, "missing class"),
        ("val.csv", 4, "shared video"),
    ]
    levels = [finding.level for finding in report.findings]
    assert levels == ["error"] * 11 + ["warning"] * 4 + ["note"]
    assert report.count("warning") == 4


def test_what_it_passes_can_be_trained_on_and_what_it_refuses_cannot(tmp_path: Path, videos: Path) -> None:
    timing = ClipTiming(4, 0.5, 2.0, 2)
    for rows, ok in (("a,0,3,x\n", True), ("a,8,9.6,x\n", True), ("a,10,11,x\n", False), ("e,0,1,x\n", False)):
        assert check(tmp_path, videos, HEADER + rows).ok == ok
        if ok:
            SegmentsDataset(tmp_path / "train.csv", videos, timing)
        else:
            with pytest.raises(ValueError):
                SegmentsDataset(tmp_path / "train.csv", videos, timing)


def test_a_file_that_cannot_be_used_does_not_hide_what_is_wrong_with_others(tmp_path: Path, videos: Path) -> None:
    report = check(tmp_path, videos, "video;start_s\n", f"{HEADER}a,3,2,x\n")
    assert [(finding.kind, finding.line) for finding in report.findings if finding.level == "error"] == [
        ("unusable file", None),
        ("reversed", 2),
    ]
    assert "train.csv:1: columns are separated by semicolons" in str(report.findings[0])
    assert [split.split for split in report.splits] == ["val"]


def test_other_columns_of_labels_than_in_training_are_an_error(tmp_path: Path, videos: Path) -> None:
    report = check(tmp_path, videos, f"{HEADER}a,0,1,x\na,1,2,x\n", "video,start_s,end_s,verb\nb,0,1,x\n")
    assert f"columns of labels verb, but label in {tmp_path}/train.csv: make them alike" in found(report, "error")[0]
    assert f"{tmp_path}/train.csv: label has one class only, 'x'" in found(report, "warning")


def test_overlaps_are_fine_with_several_labels_at_a_time(tmp_path: Path, videos: Path) -> None:
    report = check(tmp_path, videos, f"{HEADER}a,0,6,x|y\na,3,9,x\nb,0,9,y\n", multi_label=True)
    assert report.ok
    assert report.splits[0].labelled_share == 1.0
    assert report.splits[0].classes == {"label": {"x": 2, "y": 2}}


def test_boxes_are_checked_as_well(tmp_path: Path, videos: Path) -> None:
    path, names = tmp_path / "train.csv", tmp_path / "classes.csv"
    path.write_text("a,1,0,0,1,1,1,1\na,1,0,0,1,1,2,1\na,2,0,0,1,1,1,1\na,99,0,0,1,1,1,1\na,3,0,0,1,1,4,1\n")
    names.write_text("label_id,label_name\n1,sit\n2,stand\n3,lie\n")
    report = check_annotations([path], partial(read_boxes, videos=videos, classes=names))
    assert [(f.line, f.kind) for f in report.findings if f.level == "error"] == [
        (4, "outside the video"),
        (5, "unknown label"),
    ]
    (split,) = report.splits
    assert (split.num_entries, split.num_clips, split.labelled_share) == (4, 3, None)
    assert split.classes == {"action": {"sit": 3, "stand": 1, "lie": 0}}
    assert f"{path}: classes of action that never occur (1 of 3): 'lie'" in found(report, "warning")


def test_the_report_is_plain_data_and_progress_is_told(tmp_path: Path, videos: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(f"{HEADER}a,0,1,x\nb,0,1,x\n")
    told: list[tuple[int, int]] = []
    report = check_annotations(
        [path], partial(read_segments, videos=videos), on_progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 2), (2, 2)]
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ok"] is True
    assert data["splits"][0]["num_videos"] == 2
    assert data["findings"][0]["level"] == "warning"


def test_what_cannot_be_checked_is_refused(tmp_path: Path, videos: Path) -> None:
    read = partial(read_segments, videos=videos)
    with pytest.raises(ValueError, match="4 files of annotations: give 1 to 3: train, val, test, in this order"):
        check_annotations(["a", "b", "c", "d"], read)
    with pytest.raises(ValueError, match="clip_s=0 is no length of a clip"):
        check_annotations(["a"], read, clip_s=0)


def test_lists_of_videos_with_one_label_each_are_checked(tmp_path: Path, videos: Path) -> None:
    train, val = tmp_path / "train.csv", tmp_path / "val.csv"
    train.write_text("a.mp4 0\nb.mp4,2\nnone.mp4 2\ne.mp4 0\nb 2\nc.mp4\nd.mp4 two\n")
    val.write_text("c.mp4 0\na.mp4 3\n")
    report = check_annotations([train, val], partial(find_labelled_videos, videos=videos))
    assert [(s.num_videos, s.num_entries, s.num_clips, s.labelled_share) for s in report.splits] == [
        (2, 4, 2, 1),
        (2, 2, 2, 1),
    ]
    assert report.splits[0].classes == {"label": {"0": 2, "2": 2, "1": 0}}
    errors = found(report, "error")
    assert [error.split(": ")[0].rsplit(":")[-1] for error in errors] == ["3", "4", "5", "6", "7", "2"]
    for error, says in zip(
        errors,
        (
            "no video 'none.mp4'",
            "e.mp4",
            "same video as in line 2",
            "has no label",
            "'two' is not a whole number",
            "'3' is not in",
        ),
        strict=True,
    ):
        assert says in error
    assert f"{val}:2: videos of val that are in train as well (1): a.mp4" in found(report, "warning")


def test_folders_of_classes_are_checked(tmp_path: Path) -> None:
    for name in ("train/dance/1.mp4", "train/run/2.mp4", "val/dance/3.mp4", "val/jump/4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, 0, 8, (16, 16), fps=8)
    (tmp_path / "val/dance/5.mp4").write_bytes(b"no video at all")
    (tmp_path / "empty").mkdir()
    read = partial(find_labelled_videos, videos=tmp_path)
    report = check_annotations([tmp_path / "train", tmp_path / "val"], read)
    places = [error.split(": ")[0] for error in found(report, "error")]
    assert places == [f"{tmp_path}/val"] * 2  # folders have no lines
    assert "5.mp4" in found(report, "error")[0]
    assert "label 'jump' is not in" in found(report, "error")[1]

    (tmp_path / "classes.txt").write_text("dance\nrun\njump\n")
    report = check_annotations([tmp_path / "train"], partial(read, classes=tmp_path / "classes.txt"))
    assert report.ok
    assert report.splits[0].classes == {"label": {"dance": 1, "run": 1, "jump": 0}}
    assert any("never occur (1 of 3): 'jump'" in warning for warning in found(report, "warning"))
    (tmp_path / "classes.txt").write_text("dance\n")
    report = check_annotations([tmp_path / "train"], partial(read, classes=tmp_path / "classes.txt"))
    assert "'run' is no class" in found(report, "error")[0]
    (error,) = found(check_annotations([tmp_path / "empty"], read), "error")
    assert "no videos; give a list" in error
