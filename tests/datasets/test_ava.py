from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from counted_videos import write

from memvit.datasets.ava import AvaDataset
from memvit.datasets.clips import IGNORED, ClipTiming
from memvit.datasets.label_maps import read_label_map
from memvit.datasets.loader import StreamLoader

TIMING = ClipTiming(num_frames=4, period_s=0.5, stride_s=2.0, num_times=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 and b.mp4 of 4 s, and the broken c.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a.mp4", "b.mp4"):
        write(folder / name, 0, 32, (16, 16), fps=8)
    (folder / "c.mp4").write_bytes(b"no video at all")
    return folder


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "boxes.csv"


def test_every_second_with_boxes_is_the_centre_of_a_clip(csv: Path, videos: Path) -> None:
    csv.write_text("a,0003,0,0,.5,.5,1,1\na,0000,0,0,.5,.5,1,1\nb,1.5,0,0,.5,.5,1,1\na,0003,.5,.5,1,1,1,2\n")
    dataset = AvaDataset(csv, videos, TIMING)
    assert (dataset.task, dataset.multi_label, dataset.classes) == ("boxes", True, (("1",),))
    assert [(video.name, video.duration_s) for video in dataset.videos] == [("a", 4.0), ("b", 4.0)]
    assert [dataset.clip_starts(video).tolist() for video in dataset.videos] == [[-1.0, 2.0], [0.5]]
    boxes = dataset.annotate(dataset.videos[0], 2.0).boxes
    assert boxes is not None
    np.testing.assert_array_equal(boxes, np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32))
    assert boxes.dtype == np.float32


def test_seconds_count_from_that_at_which_the_file_begins(csv: Path, videos: Path) -> None:
    csv.write_text("a,0902,0,0,.5,.5,1,1\n")
    dataset = AvaDataset(csv, videos, TIMING, first_second=900)
    assert dataset.clip_starts(dataset.videos[0]).tolist() == [1.0]


def test_rows_with_the_same_box_are_one_box_with_several_actions(csv: Path, videos: Path) -> None:
    csv.write_text(
        "a,1,0,0,.5,.5,1,1\na,1,.5,.5,1,1,,2\na,1,0,0,.5,.5,10,1\na,1,0,0,.5,1,2,3\na,1,0,0,.5,1,-1,3\na,2,0,0,1,1,2,1\n"
    )
    dataset = pickle.loads(pickle.dumps(AvaDataset(csv, videos, TIMING)))
    assert dataset.classes == (("1", "2", "10"),)
    (labels,) = dataset.annotate(dataset.videos[0], 0.0).labels
    np.testing.assert_array_equal(labels, [[1, 0, 1], [IGNORED] * 3, [0, 1, 0]])
    assert labels.dtype == np.float32


def test_one_action_a_box(csv: Path, videos: Path) -> None:
    csv.write_text("a,1,0,0,.5,.5,5,1\na,1,.5,.5,1,1,-1,2\na,1,.5,0,1,1,7,2\n")
    dataset = AvaDataset(csv, videos, TIMING, multi_label=False)
    (labels,) = dataset.annotate(dataset.videos[0], 0.0).labels
    assert (labels.tolist(), labels.dtype) == ([0, IGNORED, 1], np.int64)
    csv.write_text("a,1,0,0,.5,.5,5,1\na,1,0,0,.5,.5,7,1\n")
    with pytest.raises(ValueError, match=r"boxes\.csv:2: the box has another action in line 1: remove one, or allow"):
        AvaDataset(csv, videos, TIMING, multi_label=False)


def test_names_and_order_of_classes_come_from_the_label_map(csv: Path, videos: Path, tmp_path: Path) -> None:
    csv.write_text("a,1,0,0,.5,.5,3,1\n")
    names = tmp_path / "classes.csv"
    for text in ("label_id,label_name\n3,sit\n1,stand\n", "id,name,evaluated\n1,stand,1\n3,sit,0\n"):
        names.write_text(text)
        dataset = AvaDataset(csv, videos, TIMING, classes=names)
        assert dataset.classes == (("stand", "sit"),)
        np.testing.assert_array_equal(dataset.annotate(dataset.videos[0], 0.0).labels[0], [[0, 1]])


def test_classes_of_training_are_taken_as_they_are(csv: Path, videos: Path) -> None:
    csv.write_text("a,1,0,0,.5,.5,2,1\n")
    named = AvaDataset(csv, videos, TIMING, classes=[["stand", "sit"]])
    np.testing.assert_array_equal(named.annotate(named.videos[0], 0.0).labels[0], [[0, 1]])
    found = AvaDataset(csv, videos, TIMING, classes=[["2", "5"]])
    np.testing.assert_array_equal(found.annotate(found.videos[0], 0.0).labels[0], [[1, 0]])
    with pytest.raises(ValueError, match="boxes have one head of classes, but training has 2"):
        AvaDataset(csv, videos, TIMING, classes=[["x"], ["y"]])


BOX = "0,0,.5,.5"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "boxes.csv: empty"),
        ("video,second,x1,y1,x2,y2,action_id,person_id\n", "boxes.csv:1: files in AVA's form have no line with column names"),
        (f"a,1,{BOX},1\n", "boxes.csv:1: 7 cells, not 8 (video,second,x1,y1,x2,y2,action_id,person_id)"),
        ("a;1;0;0;1;1;1;1\n", "boxes.csv:1: 1 cells, not 8 (video,second,x1,y1,x2,y2,action_id,person_id); separate"),
        (f",1,{BOX},1,1\n", "boxes.csv:1: the row names no video"),
        (f"a,1,{BOX},1,1\na,x,{BOX},1,1\n", "boxes.csv:2: second 'x' is not a number"),
        ("a,1,0,,.5,.5,1,1\n", "boxes.csv:1: y1 '' is not a number"),
        ("a,1,0,0,320,240,1,1\n", "boxes.csv:1: box 0,0,320,240 is not within 0 and 1: give fractions"),
        ("a,1,.5,0,.2,1,1,1\n", "boxes.csv:1: box 0.5,0,0.2,1 is empty or reversed"),
        (f"a,-1,{BOX},1,1\n", "boxes.csv:1: second -1 comes before first_second=0"),
        (f"a,1,{BOX},0,1\n", "boxes.csv:1: action_id '0' is no id: give a whole number from 1, or -1 for none"),
        (f"a,1,{BOX},sit,1\n", "boxes.csv:1: action_id 'sit' is no id"),
        (f"a,1,{BOX},1,1\na.mp4,1,{BOX},1,1\n", "boxes.csv:2: the same as line 1"),
        (f"a,1,{BOX},-1,1\n", "boxes.csv: no box has an action"),
        (f"z,1,{BOX},1,1\n", "boxes.csv:1: there is no video 'z' in "),
        (f"z,1,{BOX},1,1\ny,1,{BOX},1,1\n", "boxes.csv:1: 2 of 2 videos are not in "),
        (f"c,1,{BOX},1,1\n", "boxes.csv: 1 of 1 videos cannot be read: "),
        (f"a,902,{BOX},1,1\n", "boxes.csv:1: 902 s lies outside video 'a', which lasts 4.00 s; is first_second right"),
    ],
)  # fmt: skip
def test_bad_boxes_are_refused_with_file_and_line(csv: Path, videos: Path, text: str, says: str) -> None:
    csv.write_text(text)
    with pytest.raises(ValueError) as raised:
        AvaDataset(csv, videos, TIMING)
    assert says in str(raised.value)


def test_an_action_that_is_no_class_is_refused(csv: Path, videos: Path) -> None:
    csv.write_text(f"a,1,{BOX},3,1\n")
    with pytest.raises(ValueError, match=r"boxes\.csv:1: action_id 3 is no class: correct it, or add it"):
        AvaDataset(csv, videos, TIMING, classes=[["stand", "sit"]])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("number,what\n1,x\n", ":1: a label map has the columns label_id,label_name; there are number, what"),
        ("label_id,label_name\n", ": no classes, only column names"),
        ("label_id,label_name\nx,1\n", ":2: 'x' is no id"),
        ("label_id,label_name\n1,x\n2,x\n", ":3: id 2 or name 'x' is there before, or empty"),
        ("label_id,label_name\n1,x\n1,y\n", ":3: id 1 or name 'y' is there before, or empty"),
        ("label_id,label_name\n1,carry, hold\n", ":2: 3 cells for 2 columns; put quotation marks"),
    ],
)
def test_bad_label_maps_are_refused_with_file_and_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as raised:
        read_label_map(path)
    assert f"classes.csv{says}" in str(raised.value)
    with pytest.raises(FileNotFoundError):
        read_label_map(tmp_path / "none.csv")


def test_the_loader_feeds_boxes_in_pixels(csv: Path, videos: Path) -> None:
    csv.write_text("a,0,.25,0,.5,.5,1,1\na,3,0,0,1,1,2,1\nb,2,0,.5,1,1,2,1\n")
    dataset = AvaDataset(csv, videos, TIMING)
    batches = list(StreamLoader(dataset, batch_size=1, crop_size=16, training=False, num_workers=0))
    assert [(batch.videos[0], batch.start_s[0]) for batch in batches] == [("a", -1.0), ("a", 2.0), ("b", 1.0)]
    assert batches[0].boxes is not None
    assert batches[0].boxes[0].tolist() == [[4, 0, 8, 8]]
    assert batches[0].labels[0].tolist() == [[1, 0]]
