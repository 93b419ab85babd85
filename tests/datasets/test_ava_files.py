"""Label maps, lists of frames, detected boxes, excluded keyframes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from counted_videos import frames_of, picture, visits, write
from PIL import Image

from memvit.datasets.ava import AvaDataset
from memvit.datasets.ava_boxes import read_excluded
from memvit.datasets.clips import IGNORED, ClipTiming
from memvit.datasets.frame_lists import FrameLists
from memvit.datasets.label_maps import read_label_map
from memvit.datasets.loader import StreamLoader

TIMING = ClipTiming(num_frames=4, period_s=0.2, stride_s=0.8, num_times=2)
BOX = "0,0,.5,.5"
HEADER = "original_vido_id video_id frame_id path labels\n"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 to k.mp4 of 4 s."""
    folder = tmp_path_factory.mktemp("videos")
    for index, name in enumerate("abcdefghijk"):
        write(folder / f"{name}.mp4", index, 40, (16, 24))
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x and y, folders with 40 images each; frame 7 of y is not there."""
    folder = tmp_path_factory.mktemp("frames")
    for index, name in enumerate("xy"):
        (folder / name).mkdir()
        for frame in range(40):
            if (name, frame) != ("y", 7):
                Image.fromarray(picture(index, frame, 16, 24)).save(folder / name / f"{name}_{frame + 1:06d}.png")
    return folder


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "boxes.csv"


def labels_at(dataset: AvaDataset, video: int, start_s: float) -> list[list[float]]:
    return dataset.annotate(dataset.videos[video], start_s).labels[0].tolist()


def boxes_at(dataset: AvaDataset, video: int, start_s: float) -> list[list[float]]:
    boxes = dataset.annotate(dataset.videos[video], start_s).boxes
    assert boxes is not None
    return np.round(boxes.astype(float), 3).tolist()


def test_a_label_map_in_text_form_is_read_like_a_table(tmp_path: Path) -> None:
    path = tmp_path / "actions.pbtxt"
    path.write_text(
        'item {\n  name: "sit"\n  id: 11\n}\nitem {\n  name: "say \\"hi\\""\n  id: 3\n}\nlabel { name: "run" label_id: 12 }\n'
    )
    assert read_label_map(path) == {"3": 'say "hi"', "11": "sit", "12": "run"}
    path.write_text('item {\n  name: "sit"\n}\n')
    with pytest.raises(ValueError, match=r"actions\.pbtxt:1: an item without name or id"):
        read_label_map(path)
    path.write_text("sit\n")
    with pytest.raises(ValueError, match=r"actions\.pbtxt: no items"):
        read_label_map(path)


def test_the_actions_of_ava_are_known() -> None:
    names = read_label_map("ava")
    assert (len(names), names["1"], names["80"]) == (80, "bend/bow (at the waist)", "watch (a person)")


def test_a_few_bad_rows_are_left_out_and_counted(csv: Path, videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = [f"a,{second / 10:g},{BOX},{action},1" for second in range(30) for action in (1, 2, 80)]
    bad = [f"a,1,{BOX},80,3_", "a,1,0,0,1.5,1,1,1", "a,1,.5,0,.2,1,1,1", f"a,99,{BOX},1,1", f"a,1,{BOX},81,1", "a,1,1"]
    csv.write_text("\n".join([*good, *bad]) + "\n")
    with caplog.at_level(logging.WARNING):
        dataset = AvaDataset(csv, videos, TIMING, classes="ava", seconds=(0, 3))
    assert len(dataset.clip_starts(dataset.videos[0])) == 30
    for text in (
        f"1 of 96 rows are left out (not a number): {csv}:91: person_id '3_' is not a whole number",
        f"(box outside): {csv}:92: box 0,0,1.5,1 is not within 0 and 1",
        f"(reversed): {csv}:93: box 0.5,0,0.2,1 is empty or reversed",
        f"(outside the valid seconds): {csv}:94: second 99 is not within 0 and 3",
        f"(unknown label): {csv}:95: action_id 81 is no class",
        f"(broken row): {csv}:96: 3 cells, not 8",
    ):
        assert text in caplog.text
    assert len(caplog.records) == 6


def test_a_file_with_many_bad_rows_is_refused(csv: Path, videos: Path) -> None:
    csv.write_text("".join(f"a,{second},0,0,200,100,1,1\na,{second},{BOX},1,1\n" for second in range(4)))
    with pytest.raises(ValueError, match=r"boxes\.csv:1: box 0,0,200,100 is not within 0 and 1.*and 3 more errors"):
        AvaDataset(csv, videos, TIMING)


def test_a_missing_video_of_many_is_left_out(csv: Path, videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv.write_text("".join(f"{name},1,{BOX},1,1\n" for name in "abcdefghijz"))
    with caplog.at_level(logging.WARNING):
        dataset = AvaDataset(csv, videos, TIMING)
    assert [video.name for video in dataset.videos] == list("abcdefghij")
    assert f"1 of 11 videos are missing and left out: {csv}:11: there is no video 'z'" in caplog.text


def test_detected_boxes_are_added_or_shown_alone(csv: Path, videos: Path, tmp_path: Path) -> None:
    csv.write_text(f"a,1,{BOX},1,1\na,2,{BOX},2,1\n")
    found = tmp_path / "found.csv"
    found.write_text("a,1,0,0,.5,.6,1,0.95\na,1,0,0,.5,.6,2,0.95\na,1,0,0,.5,.7,,0.99\na,1,0,0,.5,.8,1,0.89\n")
    start_s = 1 - 0.4
    both = AvaDataset(csv, videos, TIMING, detections=[found])
    assert boxes_at(both, 0, start_s) == [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.6], [0, 0, 0.5, 0.7]]
    assert labels_at(both, 0, start_s) == [[1, 0], [1, 1], [IGNORED] * 2]
    alone = AvaDataset(csv, videos, TIMING, detections=[found], annotated=False, min_score=0.97)
    assert boxes_at(alone, 0, start_s) == [[0, 0, 0.5, 0.7]]
    # A keyframe without any box is still seen.
    assert alone.clip_starts(alone.videos[0]).tolist() == [1 - 0.4, 2 - 0.4]
    assert boxes_at(alone, 0, 2 - 0.4) == []
    assert alone.truth.action_ids.tolist() == [1, 2]
    assert alone.truth.seconds.tolist() == [1, 2]


def test_keyframes_without_boxes_and_with_very_many_are_named(
    csv: Path, videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    csv.write_text(f"a,901,{BOX},1,1\na,902,{BOX},1,1\n")
    found = tmp_path / "found.csv"
    found.write_text("".join(f"a,902,0,0,.5,{0.1 + i / 1000:.3f},,0.95\n" for i in range(101)))
    with caplog.at_level(logging.WARNING):
        AvaDataset(csv, videos, TIMING, first_second=900, detections=[found], annotated=False)
    assert f"{found}: 1 of 2 keyframes have no box: a at 901" in caplog.text
    assert f"{found}: 1 of 2 keyframes have more than 100 boxes: a at 902" in caplog.text


def test_scores_must_be_scores(csv: Path, videos: Path, tmp_path: Path) -> None:
    csv.write_text(f"a,1,{BOX},1,1\n")
    found = tmp_path / "found.csv"
    for cell, says in (("1.5", "score 1.5 is not within 0 and 1"), ("high", "score 'high' is not a number")):
        found.write_text(f"a,1,{BOX},1,{cell}\n")
        with pytest.raises(ValueError, match=f"found.csv:1: {says}"):
            AvaDataset(csv, videos, TIMING, detections=[found])
    with pytest.raises(ValueError, match="there are none: give detections as well"):
        AvaDataset(csv, videos, TIMING, annotated=False)


def test_excluded_keyframes_are_seen_without_labels(csv: Path, videos: Path, tmp_path: Path) -> None:
    csv.write_text(f"a,1,{BOX},1,1\na,2,{BOX},1,1\n")
    excluded = tmp_path / "excluded.csv"
    excluded.write_text("a.mp4,0001\nz,7\n")
    dataset = AvaDataset(csv, videos, TIMING, excluded=excluded)
    assert labels_at(dataset, 0, 1 - 0.4) == [[IGNORED]]
    assert labels_at(dataset, 0, 2 - 0.4) == [[1]]
    assert ("a", 1.0) in dataset.excluded
    excluded.write_text("")
    assert read_excluded(excluded) == set()
    excluded.write_text("a,1\na\n")
    with pytest.raises(ValueError, match=r"excluded\.csv:2: 'a' is no keyframe"):
        read_excluded(excluded)
    with pytest.raises(FileNotFoundError, match="excluded keyframes"):
        read_excluded(tmp_path / "none.csv")


def list_of(frames: Path, video: str, numbers: list[int]) -> str:
    return "".join(f'{video} 0 {number} {video}/{video}_{number + 1:06d}.png ""\n' for number in numbers)


def test_frames_come_from_lists(csv: Path, frames: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Frame 10 (s - 900) at 10 frames a second; where a frame is missing, the one before it is shown."""
    frame_list = tmp_path / "train.csv"
    frame_list.write_text(
        HEADER + list_of(frames, "x", list(range(40))) + list_of(frames, "y", [n for n in range(40) if n != 14])
    )
    csv.write_text(f"x,902,{BOX},1,1\ny,901,{BOX},1,1\n")
    with caplog.at_level(logging.WARNING):
        dataset = AvaDataset(csv, frames, TIMING, first_second=900, frame_lists=[frame_list], image_fps=10.0)
    assert "1 of 40 frames of video y are not listed (the first of the longest gap is 14)" in caplog.text
    assert [(video.duration_s, video.height, video.width) for video in dataset.videos] == [(4.0, 16, 24)] * 2
    caplog.clear()
    batches = list(StreamLoader(dataset, batch_size=1, crop_size=16, training=False))
    # 20 - 4, 20 - 2, 20, 20 + 2; then 10 - 4, ..., 10 + 2 of y.
    assert {batch.videos[0]: frames_of(batch.clips[0]) for batch in batches} == {
        "x": [16, 18, 20, 22],
        "y": [6, 8, 10, 12],
    }
    csv.write_text(f"y,901.2,{BOX},1,1\n")
    dataset = AvaDataset(csv, frames, TIMING, first_second=900, frame_lists=[frame_list], image_fps=10.0)
    (batch,) = StreamLoader(dataset, batch_size=1, crop_size=16, training=False)
    assert frames_of(batch.clips[0]) == [8, 10, 12, 13]


def test_a_listed_frame_that_is_not_there_is_named(
    csv: Path, frames: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame_list = tmp_path / "train.csv"
    frame_list.write_text(HEADER + list_of(frames, "y", list(range(40))))
    csv.write_text(f"y,0.8,{BOX},1,1\ny,3.8,{BOX},1,1\n")
    dataset = AvaDataset(csv, frames, TIMING, frame_lists=[frame_list], image_fps=10.0)
    with caplog.at_level(logging.WARNING):
        batches = list(StreamLoader(dataset, batch_size=1, crop_size=16, training=False))
    assert frames_of(batches[0].clips[0]) == [4, 6, 8, 10]
    assert "1 image of" in caplog.text
    assert "y_000008.png" in caplog.text
    assert [failure for batch in batches for failure in batch.failures]


def test_without_a_list_names_tell_which_frames_are_missing(csv: Path, frames: Path) -> None:
    csv.write_text(f"y,1,{BOX},1,1\ny,2,{BOX},1,1\n")
    dataset = AvaDataset(csv, frames, TIMING, image_fps=10.0)
    batches = list(StreamLoader(dataset, batch_size=1, crop_size=16, training=False))
    assert [frames_of(batch.clips[0]) for batch in batches] == [[6, 8, 10, 12], [16, 18, 20, 22]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no frames: add"),
        (HEADER, "no frames: add"),
        (HEADER + "x 0 first x/1.png \n", ":2: 'x first x/1.png' is no frame"),
        (HEADER + 'x 0 0 x/1.png ""\nx 0 1  ""\n', ":3: 'x 1 ' is no frame"),
        (HEADER + 'x 0 0 p/1.png ""\ny 0 0 p/2.png ""\n', "videos 'x' and 'y' share the folder"),
        ("one two\nx 0\n", "no list of frames"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, text: str, says: str) -> None:
    frame_list = tmp_path / "list.csv"
    frame_list.write_text(text)
    with pytest.raises(ValueError) as raised:
        FrameLists(tmp_path, [frame_list])
    assert says in str(raised.value)
    with pytest.raises(FileNotFoundError, match="give the list of frames"):
        FrameLists(tmp_path, [tmp_path / "none.csv"])


def test_videos_of_every_shape_are_evaluated_whole(csv: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for index, (name, size) in enumerate({"a": (16, 24), "b": (24, 16), "c": (16, 24), "d": (32, 48)}.items()):
        write(folder / f"{name}.mp4", index, 40, size)
    csv.write_text("".join(f"{name},{second},.5,0,1,1,1,1\n" for name in "abcd" for second in (1, 2, 3)))
    dataset = AvaDataset(csv, folder, TIMING)
    for batch_size in (1, 2, 3):
        batches = list(
            StreamLoader(dataset, batch_size=batch_size, crop_size=16, training=False, keep_aspect=True, num_workers=0)
        )
        assert sorted(visits(batches)) == [(name, second - 0.4) for name in "abcd" for second in (1, 2, 3)]
        for batch in batches:
            size = batch.clips.shape[-2:]
            assert batch.boxes is not None
            assert batch.frame_boxes is not None
            for name, boxes, frame_boxes, present in zip(
                batch.videos, batch.boxes, batch.frame_boxes, batch.present.tolist(), strict=True
            ):
                if present:
                    assert tuple(size) == ((24, 16) if name == "b" else (16, 24))
                    assert boxes.tolist() == [[size[1] / 2, 0, size[1], size[0]]]
                    assert frame_boxes.tolist() == [[0.5, 0, 1, 1]]
