from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from counted_videos import frames_of, visits, write

from memvit.datasets.augmentation import Augmentation
from memvit.datasets.clips import ClipTiming, GroupedDataset, Video
from memvit.datasets.kinetics import KineticsDataset, read_labelled_videos
from memvit.datasets.loader import StreamLoader

TIMING = ClipTiming(num_frames=4, period_s=0.2, stride_s=0.8, num_times=2)  # 0.8 s
NUM_FRAMES = {"a b.mp4": 48, "c.mp4": 28, "d,e.mp4": 6, "sub/f.mp4": 8}  # at 10 a second


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 4.8, 2.8, 0.6 and 0.8 s, and one that is broken."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    for number, (name, length) in enumerate(NUM_FRAMES.items()):
        write(folder / name, number, length)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits as folders of classes."""
    root = tmp_path_factory.mktemp("tree")
    for name in (
        "train/tap dancing/2.mp4",
        "train/abseiling/1.mp4",
        "train/tap dancing/1.mkv",
        "val/tap dancing/3.mp4",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, 0, 10, (16, 16))
    (root / "train/tap dancing/notes.txt").write_text("no video")
    (root / "train/tap dancing/.hidden.mp4").write_text("no video")
    (root / "train/.cache").mkdir()
    (root / "train/zorbing").mkdir()  # all its videos are gone
    return root


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    return tmp_path / "list.csv"


LINES = {"space": "{path} {label}", "comma": "{path},{label}", "tab": "{path}\t{label}", "both": "{path}, {label}"}


@pytest.mark.parametrize("line", [*LINES.values(), '"{path}" {label}'], ids=[*LINES, "quoted"])
def test_the_last_field_of_a_line_is_the_label(listed: Path, videos: Path, line: str) -> None:
    rows = [line.format(path=path, label=label) for path, label in zip(NUM_FRAMES, (2, 0, 10, 2), strict=True)]
    listed.write_text("\n".join(["", *rows, ""]), encoding="utf-8-sig")
    dataset = KineticsDataset(listed, videos, TIMING)
    assert [(video.name, video.duration_s) for video in dataset.videos] == [
        (name, length / 10) for name, length in NUM_FRAMES.items()
    ]
    assert [(video.height, video.width) for video in dataset.videos] == [(48, 64)] * 4
    assert dataset.labels.tolist() == [2, 0, 10, 2]
    assert dataset.classes == (tuple(str(number) for number in range(11)),)
    assert (dataset.task, dataset.multi_label, dataset.num_groups) == ("clip", False, 4)


def test_absolute_paths_need_no_folder(listed: Path, videos: Path) -> None:
    listed.write_text(f"{videos / 'c.mp4'} 1\n{videos / 'sub/f.mp4'} 0\n")
    dataset = KineticsDataset(listed, "no/such/folder", TIMING)
    assert [video.path for video in dataset.videos] == [str(videos / "c.mp4"), str(videos / "sub/f.mp4")]
    listed.write_text("c.mp4 1\n")
    with pytest.raises(FileNotFoundError, match="no/such/folder: no such folder"):
        KineticsDataset(listed, "no/such/folder", TIMING)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "abseiling\ntap dancing\nzorbing\n"),
        ("names.csv", "id,name\n2,zorbing\n0,abseiling\n1,tap dancing\n"),
        ("names.json", '{"zorbing": 2, "abseiling": 0, "\\"tap dancing\\"": 1}'),
        ("names.json", '["abseiling", "tap dancing", "zorbing"]'),
    ],
)
def test_names_of_classes_come_from_a_file(listed: Path, videos: Path, tmp_path: Path, name: str, content: str) -> None:
    names = tmp_path / name
    names.write_text(content)
    listed.write_text("c.mp4 1\n")
    dataset = KineticsDataset(listed, videos, TIMING, classes=names)
    assert dataset.classes == (("abseiling", "tap dancing", "zorbing"),)
    listed.write_text("c.mp4 1\nsub/f.mp4 3\n")
    with pytest.raises(ValueError, match=rf"list\.csv:2: 3 is no class: .*{name} names 3, numbered from 0 to 2"):
        KineticsDataset(listed, videos, TIMING, classes=names)
    names.write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="names two classes 'a'" if name.endswith("txt") else name):
        KineticsDataset(listed, videos, TIMING, classes=names)


def test_validation_has_the_classes_of_training(listed: Path, videos: Path) -> None:
    listed.write_text("c.mp4 1\n")
    classes = (("0", "1", "2", "3"),)
    assert KineticsDataset(listed, videos, TIMING, classes=classes).classes == classes
    listed.write_text("c.mp4 4\n")
    with pytest.raises(ValueError, match=r"list\.csv:1: 4 is no class: training has 4, numbered from 0 to 3"):
        KineticsDataset(listed, videos, TIMING, classes=classes)
    with pytest.raises(ValueError, match="training has 2 heads"):
        KineticsDataset(listed, videos, TIMING, classes=(("a",), ("b",)))


def test_folders_are_classes_in_the_order_of_their_names(tree: Path) -> None:
    train = KineticsDataset(tree / "train", "", TIMING)
    assert train.classes == (("abseiling", "tap dancing", "zorbing"),)
    assert [video.name for video in train.videos] == ["abseiling/1.mp4", "tap dancing/1.mkv", "tap dancing/2.mp4"]
    assert train.labels.tolist() == [0, 1, 1]
    val = KineticsDataset(tree / "val", "", TIMING, classes=train.classes)
    assert (val.classes, val.labels.tolist()) == (train.classes, [1])


def test_a_folder_that_is_no_class_is_named(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"2 videos .*'tap dancing' is no class: training has 2, 'abseiling'; 'zorbing'"
    ):
        KineticsDataset(tree / "train", "", TIMING, classes=(("abseiling", "zorbing"),))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no videos; give a list"):
        KineticsDataset(tmp_path / "empty", "", TIMING)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("c.mp4 0\nc.mp4\n", r"list\.csv:2: 'c\.mp4' has no label: write path and label"),
        ("path label\nc.mp4 0\n", r"list\.csv:1: label 'label' is not a whole number from 0; .* no line with column"),
        ("c.mp4 0\n\nsub/f.mp4 -1\n", r"list\.csv:3: label '-1' is not a whole number from 0$"),
        ("c.mp4 1.5\n", r"list\.csv:1: label '1\.5' is not"),
        ("c.mp4 1000000000\n", r"list\.csv:1: label 1000000000 is no class"),
        ("c.mp4 0\nc.mp4 1\n", r"list\.csv:2: 'c\.mp4' is the same video as in line 1: remove one"),
        ("c.mp4 0\nc 0\n", r"list\.csv:2: 'c' is the same video as in line 1"),
        (
            "c.mp4 0\nc\nsub/f.mp4 x\n",
            r"list\.csv: 2 videos cannot be used: .*list\.csv:2: .*; .*list\.csv:3: label 'x'",
        ),
        ("\n", r"list\.csv: no videos; give a list"),
        (b"\xff\xfe", r"list\.csv: not a list in UTF-8"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(listed: Path, videos: Path, content: str | bytes, says: str) -> None:
    listed.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=says):
        KineticsDataset(listed, videos, TIMING, skip_unreadable=True)


def test_a_list_that_is_not_there_is_named(listed: Path, videos: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"list\.csv: no such file; give a list"):
        KineticsDataset(listed, videos, TIMING)


LOST = "c.mp4 0\ngone.mp4 0\nsub/f.mp4 1\nbroken.mp4 1\n"


def test_missing_and_unreadable_videos_are_errors_unless_they_may_be_left_out(listed: Path, videos: Path) -> None:
    listed.write_text(LOST)
    with pytest.raises(
        ValueError, match=r"1 of 4 videos are not in .* \(line 2: 'gone\.mp4'\): replace them, or leave"
    ):
        KineticsDataset(listed, videos, TIMING)
    listed.write_text("c.mp4 0\nbroken.mp4 1\n")
    with pytest.raises(
        ValueError, match=r"1 of 2 videos cannot be read \(line 2: 'broken\.mp4': cannot read .*: replace"
    ):
        KineticsDataset(listed, videos, TIMING)


def test_what_is_left_out_is_counted_and_logged(listed: Path, videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed.write_text(LOST)
    with caplog.at_level(logging.WARNING):
        dataset = KineticsDataset(listed, videos, TIMING, skip_unreadable=True, max_missing_share=0.5)
    assert [video.name for video in dataset.videos] == ["c.mp4", "sub/f.mp4"]
    assert (dataset.num_groups, dataset.labels.tolist(), len(dataset.classes[0])) == (2, [0, 1], 2)
    first, second = caplog.messages
    assert "1 of 4 videos are not in" in first
    assert "1 of 4 videos cannot be read" in second
    assert first.endswith("They are left out")


def test_too_many_lost_videos_are_an_error(listed: Path, videos: Path) -> None:
    listed.write_text(LOST)
    with pytest.raises(ValueError, match=r"more than max_missing_share=0\.4 allows; is .* the right folder\?"):
        KineticsDataset(listed, videos, TIMING, skip_unreadable=True, max_missing_share=0.4)
    listed.write_text("gone.mp4 0\n")
    with pytest.raises(ValueError, match="1 of 1 videos are not in"):
        KineticsDataset(listed, videos, TIMING, skip_unreadable=True, max_missing_share=1)


def write_list(listed: Path) -> None:
    listed.write_text("".join(f"{name} {number % 3}\n" for number, name in enumerate(NUM_FRAMES)))


def test_a_video_is_one_clip_from_its_middle_with_room_to_both_ends(listed: Path, videos: Path) -> None:
    write_list(listed)
    dataset = KineticsDataset(listed, videos, TIMING)
    starts_s = [dataset.clip_starts(video).tolist() for video in dataset.videos]
    assert [len(of_video) for of_video in starts_s] == [1] * 4
    assert [of_video[0] for of_video in starts_s] == pytest.approx([2.0, 1.0, 0.0, 0.0])
    found = [dataset.annotate(video, of_video[0]) for video, of_video in zip(dataset.videos, starts_s, strict=True)]
    assert [annotation.room_s for annotation in found] == [pytest.approx((s, s)) for s in (2, 1, 0, 0)]
    (label,) = found[2].labels
    assert (label, label.dtype, label.shape) == (2, np.int64, ())


def test_several_clips_are_spread_from_the_first_possible_to_the_last(listed: Path, videos: Path) -> None:
    write_list(listed)
    dataset = KineticsDataset(listed, videos, TIMING, num_clips=5)
    starts_s = [dataset.clip_starts(video).tolist() for video in dataset.videos]
    assert starts_s[0] == pytest.approx([0, 1, 2, 3, 4])
    assert starts_s[1] == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert starts_s[2:] == [[0], [0]]
    with pytest.raises(ValueError, match="num_clips=0"):
        KineticsDataset(listed, videos, TIMING, num_clips=0)


def test_clips_show_what_is_there_when_they_start(listed: Path, videos: Path) -> None:
    write_list(listed)
    dataset = KineticsDataset(listed, videos, TIMING, num_clips=2)
    shown = {
        (video, round(start_s, 6)): frames_of(clip)
        for batch in StreamLoader(dataset, batch_size=1, crop_size=16, training=False)
        for video, start_s, clip in zip(batch.videos, batch.start_s, batch.clips, strict=True)
    }
    assert shown == {
        ("a b.mp4", 0.0): [0, 2, 4, 6],
        ("a b.mp4", 4.0): [40, 42, 44, 46],
        ("c.mp4", 0.0): [0, 2, 4, 6],
        ("c.mp4", 2.0): [20, 22, 24, 26],
        ("d,e.mp4", 0.0): [0, 2, 4, 5],  # it lasts 0.6 s: its last frame is repeated
        ("sub/f.mp4", 0.0): [0, 2, 4, 6],
    }


def test_an_epoch_takes_one_clip_of_every_video_from_anywhere(listed: Path, videos: Path) -> None:
    write_list(listed)
    dataset = KineticsDataset(listed, videos, TIMING)
    loader = StreamLoader(
        dataset, batch_size=2, crop_size=16, training=True, augmentation=Augmentation(clip_jitter=1.0)
    )
    firsts = {name: set() for name in NUM_FRAMES}
    for _ in range(30):
        batches = list(loader)
        assert sorted(name for name, _ in visits(batches)) == sorted(NUM_FRAMES)
        for batch in batches:
            for name, clip in zip(batch.videos, batch.clips, strict=True):
                firsts[name].add(frames_of(clip)[0])
    assert firsts["d,e.mp4"] == firsts["sub/f.mp4"] == {0}
    assert min(firsts["a b.mp4"]) < 8
    assert max(firsts["a b.mp4"]) > 32
    assert len(firsts["a b.mp4"]) > 15
    assert firsts["c.mp4"] <= set(range(21))


def test_the_mean_score_of_a_videos_clips_is_measured(listed: Path, videos: Path) -> None:
    write_list(listed)  # labels 0, 1, 2, 0
    dataset = KineticsDataset(listed, videos, TIMING, classes=(tuple("abcdef"),), num_clips=5)
    assert isinstance(dataset, GroupedDataset)
    assert [dataset.group(video.name, 0.5) for video in dataset.videos] == [0, 1, 2, 3]
    scores = np.array(
        [[6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]], np.float32
    )  # fmt: skip
    measured = dataset.measure([scores / 21], np.array([True, True, True, True]))
    # Right: the first; among five: all but the last, whose class is the least likely of six.
    assert measured == pytest.approx({"top1": 25.0, "top5": 75.0, "mean_class_accuracy": 50 / 3}, abs=1e-4)
    measured = dataset.measure([scores / 21], np.array([True, False, True, False]))
    assert measured == pytest.approx({"top1": 50.0, "top5": 100.0, "mean_class_accuracy": 50.0})
    assert np.isnan(list(dataset.measure([scores], np.zeros(4, bool)).values())).all()


def test_it_goes_to_worker_processes(listed: Path, videos: Path) -> None:
    write_list(listed)
    dataset = pickle.loads(pickle.dumps(KineticsDataset(listed, videos, TIMING, on_progress=lambda done, total: None)))
    assert dataset.group("c.mp4", 0.0) == 1
    assert isinstance(dataset.videos[1], Video)


def test_a_list_is_read_without_opening_videos(listed: Path, videos: Path) -> None:
    listed.write_text(LOST)
    file = read_labelled_videos(listed, videos)
    assert file.class_of == {"c.mp4": 0, "gone.mp4": 0, "sub/f.mp4": 1, "broken.mp4": 1}
    assert list(file.paths) == ["c.mp4", "sub/f.mp4", "broken.mp4"]
