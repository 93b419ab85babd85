from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest

from memvit.datasets.ava_actions import evaluated_actions
from memvit.metrics import ava_files
from memvit.metrics.ava import Detections, GroundTruth, evaluate, evaluate_boxes, write_detections
from metrics.test_ava_metric import CRAWL, LEFT, SIT, STAND, found, random_boxes, truth

GOOD = "v,0902,0,0,0.4,0.4,11,{}\n"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_truth(ground_truth: GroundTruth, path: str = "gt.csv") -> None:
    rows = zip(*vars(ground_truth).values(), strict=True)
    lines = [f"{video},{second:04d},{','.join(map(str, box))},{action},0\n" for video, second, box, action in rows]
    Path(path).write_text("".join(lines))


@pytest.mark.parametrize("match_order", ["rows", "scores"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_that_was_written_gives_the_same_as_the_arrays(dtype: type, match_order: str) -> None:
    rng = np.random.default_rng(0)
    boxes, detections = random_boxes(rng, num=400)
    low = rng.uniform(0, 0.3, (800, 2))
    corners = np.hstack([low, low + rng.uniform(0.3, 0.6, (800, 2))]).astype(dtype)
    scores = (10.0 ** -rng.uniform(0, 6, detections.scores.shape)).astype(dtype)
    detections = Detections(detections.videos, detections.seconds, corners, scores, detections.action_ids)
    write_truth(boxes)
    assert write_detections("det.csv", detections, action_ids=evaluated_actions()) == 800 * 6
    assert not list(Path().glob("*.part"))
    expected = evaluate_boxes(boxes, detections, match_order=match_order)  # type: ignore[arg-type]
    assert evaluate("gt.csv", "det.csv", match_order=match_order) == expected.to_dict()  # type: ignore[arg-type]
    assert 0 < expected.mean_ap < 1


def test_rows_are_written_as_ava_has_them() -> None:
    corners = np.array([LEFT, (0.1, 0.25, 1, 1 / 3 + 1e-9)], np.float32)
    scores = np.array([[0.1, 1], [1e-7, 0.25]], np.float32)
    place = (np.array(["v", 'a, "b"'], object), np.array([2.0, 1798.5]))
    detections = Detections(*place, corners, scores, np.array([SIT, CRAWL]))
    assert write_detections("det.csv", detections) == 4
    assert Path("det.csv").read_text().splitlines() == [
        "v,0002,0.000000,0.000000,0.400000,0.400000,11,0.100000001",
        "v,0002,0.000000,0.000000,0.400000,0.400000,2,1",
        '"a, ""b""",1798.5,0.100000,0.250000,1.000000,0.333333,11,1.00000001e-07',
        '"a, ""b""",1798.5,0.100000,0.250000,1.000000,0.333333,2,0.25',
    ]
    Path("gt.csv").write_text('"a, ""b""",1798.5,0.1,0.25,1,0.333333,11,0\n')
    assert evaluate("gt.csv", "det.csv")["AP"] == {SIT: 0.5}


def test_what_cannot_be_written_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("det.csv").write_text("before")
    with pytest.raises(ValueError, match="a score is no finite number"):
        write_detections("det.csv", found(("v", 1, LEFT, math.nan)))
    monkeypatch.setattr("memvit.metrics.ava_writing.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_detections("det.csv", found(("v", 1, LEFT, 0.5)))
    assert [path.read_text() for path in Path().iterdir()] == ["before"]


def test_rows_of_any_length_of_block_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, detections = random_boxes(np.random.default_rng(1), num=50)
    write_truth(boxes)
    write_detections("det.csv", detections)
    expected = evaluate("gt.csv", "det.csv")
    for size in (100, 1000, 54321):
        monkeypatch.setattr(ava_files, "BLOCK_BYTES", size)
        assert evaluate("gt.csv", "det.csv") == expected


def test_rows_in_any_order_of_actions_are_the_same() -> None:
    boxes, detections = random_boxes(np.random.default_rng(1))
    write_truth(boxes)
    write_detections("det.csv", detections)
    expected = evaluate("gt.csv", "det.csv")
    lines = Path("det.csv").read_text().splitlines(keepends=True)
    Path("det.csv").write_text("".join(sorted(lines, key=lambda line: int(line.split(",")[6]))))
    assert evaluate("gt.csv", "det.csv") == expected


@pytest.mark.parametrize("ending", ["\r\n", "\n\n", " \n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n"])
def test_line_ends_blank_lines_spaces_and_a_byte_order_mark_do_not_matter(start: str, ending: str) -> None:
    Path("gt.csv").write_text(start + "v,0902,0,0,0.4,0.4,11,0" + ending, newline="", encoding="utf-8")
    Path("det.csv").write_text(start + "v, 902.0, 0, 0,0.4,.4,11.0,9e-1" + ending, newline="", encoding="utf-8")
    assert evaluate("gt.csv", "det.csv")["mAP"] == 1


@pytest.mark.parametrize("end", ["", ",", ",7", ",-1"])
def test_persons_may_be_missing_from_ground_truth(end: str) -> None:
    Path("gt.csv").write_text(f"v,0902,0,0,0.4,0.4,11{end}\nv,0902,0,0,0.4,0.4,12{end}")
    Path("det.csv").write_text(GOOD.format(0.9))
    assert evaluate("gt.csv", "det.csv")["AP"] == {SIT: 1, STAND: 0}


def test_persons_without_an_action_and_actions_that_are_not_evaluated_do_not_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("gt.csv").write_text(GOOD.format(0) + "v,0902,0,0,1,1,-1,1\nv,0902,0,0,1,1,,1\nv,0902,0,0,1,1,2,1\n")
    Path("det.csv").write_text("v,0902,0,0,0.4,0.4,2,0.99\n" + GOOD.format(0.9))
    assert evaluate("gt.csv", "det.csv") == {"mAP": 1, "AP": {SIT: 1}}
    assert not caplog.records


BAD_DETECTIONS = {
    "v,0902,0,0,0.4,0.4,11,3_": "score '3_' is not a number",
    "v,0902,0,0,0.4,0.4,11,": "score '' is not a number",
    "v,0902,0,0,0.4,0.4,11,nan": "score",
    "v,0902,0,0,0.4,0.4,11,inf": "score",
    "v,0902,0,0,0.4,0.4,11": "7 cells, not 8",
    "v,0902,0,0,0.4,0.4,11,0.5,0.5": "9 cells, not 8",
    "v;0902;0;0;0.4;0.4;11;0.5": "separate them by commas",
    "v,0902,0,0,0.4,0.4,,0.5": "action_id '' is not a number",
    "v,0902,0,0,0.4,0.4,81,0.5": "action_id 81 is no class",
    "v,0902,0,0,0.4,0.4,0,0.5": "action_id 0 is no class",
    "v,0902,0,0,0.4,0.4,-1,0.5": "action_id -1 is no class",
    "v,0902,0,0,0.4,0.4,11.5,0.5": "action_id 11.5 is no class",
    "v,0902,0,0,0.4,0.4,1e300,0.5": "action_id 1e+300 is no class",
    "v,soon,0,0,0.4,0.4,11,0.5": "second 'soon' is not a number",
    "v,-902,0,0,0.4,0.4,11,0.5": "second -902 is no time",
    "v,0902,0,0,1.1,0.4,11,0.5": "box 0,0,1.1,0.4 is not within 0 and 1",
    "v,0902,-0.1,0,0.4,0.4,11,0.5": "box -0.1,0,0.4,0.4 is not within 0 and 1",
    "v,0902,0.4,0,0.2,0.4,11,0.5": "box 0.4,0,0.2,0.4 is empty or reversed",
    "v,0902,0,0,0,0.4,11,0.5": "box 0,0,0,0.4 is empty or reversed",
    ",0902,0,0,0.4,0.4,11,0.5": "the row names no video",
    'v,0902,0,0,0.4,0.4,11,"0.5': "score '\"0.5' is not a number",
    "v,0902,0,0,0.4,0.4,11,\x00": "score",
}


@pytest.mark.parametrize("row", BAD_DETECTIONS)
def test_bad_rows_of_detections_are_left_out_with_file_line_and_count(
    row: str, caplog: pytest.LogCaptureFixture
) -> None:
    Path("gt.csv").write_text(GOOD.format(0))
    good = [GOOD.format(0.9 - i / 100) for i in range(38)]
    Path("det.csv").write_text("".join([*good[:20], f"{row}\n", *good[20:], row]))
    assert evaluate("gt.csv", "det.csv")["mAP"] == 1
    (message,) = caplog.messages
    assert caplog.records[0].name == "memvit.metrics.ava"
    assert message.startswith("det.csv:21: ")
    assert BAD_DETECTIONS[row] in message
    assert message.endswith("; 2 of 40 rows have such a fault and are left out")


def test_bad_rows_of_ground_truth_are_left_out_with_file_line_and_count(caplog: pytest.LogCaptureFixture) -> None:
    bad = [
        "v,0902,0,0,0.4,0.4,80,3_",
        "v,0902,0,0,0.4,0.4,80,0_1",
        "v,0902,0,0,0.4,0.4,80,1,2",
        "v,0902,0,0,40,40,80,3",
    ]
    Path("gt.csv").write_text("".join([GOOD.format(0)] * 50) + "\n".join(bad))
    Path("det.csv").write_text("v,0902,0,0,0.4,0.4,80,0.9\n")
    assert evaluate("gt.csv", "det.csv")["AP"] == {SIT: 0}
    assert caplog.messages == [
        "gt.csv:51: person_id '3_' is no whole number; 2 of 54 rows have such a fault and are left out",
        "gt.csv:53: 9 cells, not 8 (video,second,x1,y1,x2,y2,action_id,person_id); 1 of 54 rows have such a fault and are "
        "left out",
        "gt.csv:54: box 0,0,40,40 is not within 0 and 1: give fractions of the frame's width and height, not pixels; 1 of "
        "54 rows have such a fault and are left out",
    ]


def test_bad_rows_among_very_many_are_found_at_their_lines(caplog: pytest.LogCaptureFixture) -> None:
    boxes, detections = random_boxes(np.random.default_rng(2), num=2000)
    write_truth(boxes)
    write_detections("det.csv", detections)
    expected = evaluate("gt.csv", "det.csv")
    lines = Path("det.csv").read_text().splitlines(keepends=True)
    for at in (20000, 12345, 777):
        lines.insert(at, "v,1,2\n")
    Path("det.csv").write_text("".join(lines))
    assert evaluate("gt.csv", "det.csv") == expected
    assert caplog.messages == [
        "det.csv:778: 3 cells, not 8 (video,second,x1,y1,x2,y2,action_id,score); 3 of 28003 rows have such a fault and are "
        "left out"
    ]


@pytest.mark.parametrize(("num_good", "refused"), [(18, False), (17, True)])
def test_more_than_a_tenth_of_bad_rows_is_too_much(num_good: int, refused: bool) -> None:
    Path("gt.csv").write_text(GOOD.format(0))
    bad = "v,0902,0,0,0.4,0.4,11,x\nv,0902,0,0,4,4,11,0.5\n"
    Path("det.csv").write_text(GOOD.format(0.5) * num_good + bad)
    if not refused:
        assert evaluate("gt.csv", "det.csv")["mAP"] > 0
        return
    message = r"det.csv:18: score 'x' is not a number; 2 of 19 rows of det.csv cannot be used, .*: correct them"
    with pytest.raises(ValueError, match=message):
        evaluate("gt.csv", "det.csv")


@pytest.mark.parametrize(
    "header", ["video,second,x1,y1,x2,y2,action_id,score", "video_id,middle_frame_timestamp", "\nvideo,t,a,b,c,d,e"]
)
def test_a_line_with_column_names_is_refused(header: str) -> None:
    line = 1 + header.count("\n")
    Path("good.csv").write_text(GOOD.format(0))
    Path("named.csv").write_text(header + "\n" + GOOD.format(0) * 50)
    for files in (("good.csv", "named.csv"), ("named.csv", "good.csv")):
        with pytest.raises(
            ValueError, match=rf"^named.csv:{line}: '{header.strip()}' is a line with column names.* remove it"
        ):
            evaluate(*files)


def test_files_that_are_missing_or_empty() -> None:
    Path("gt.csv").write_text(GOOD.format(0))
    Path("empty.csv").write_text("")
    Path("blank.csv").write_text("\n\n")
    for none in ("empty.csv", "blank.csv"):
        assert evaluate("gt.csv", none) == {"mAP": 0, "AP": {SIT: 0}}
        with pytest.raises(ValueError, match=f"{none}: empty; it should hold annotated boxes, video,second"):
            evaluate(none, "gt.csv")
    for files in (("gone.csv", "gt.csv"), ("gt.csv", "gone.csv"), ("gt.csv", "gt.csv", "gone.csv")):
        with pytest.raises(FileNotFoundError, match=r"gone.csv: no such file; give"):
            evaluate(*files)
    with pytest.raises(ValueError, match="cannot be read"):
        evaluate("gt.csv", ".")


def test_keyframes_are_excluded_by_file() -> None:
    write_truth(truth(("v", 902, LEFT, SIT), ("v", 903, LEFT, SIT)))
    write_detections("det.csv", found(("v", 902, (0.5, 0.5, 1, 1), 0.9), ("v", 903, LEFT, 0.8)))
    Path("excluded.csv").write_text("v,902.0\n")
    assert evaluate("gt.csv", "det.csv")["mAP"] == 0.25
    assert evaluate("gt.csv", "det.csv", "excluded.csv")["mAP"] == 1


def test_with_every_labelled_keyframe_excluded_there_is_no_result() -> None:
    Path("gt.csv").write_text(GOOD.format(0))
    Path("excluded.csv").write_text("v,902\n")
    result = evaluate("gt.csv", "gt.csv", "excluded.csv")
    assert math.isnan(result["mAP"])
    assert result["AP"] == {}


def test_other_label_maps(caplog: pytest.LogCaptureFixture) -> None:
    Path("gt.csv").write_text(GOOD.format(0) + "v,0902,0,0,0.4,0.4,300,0\n")
    with caplog.at_level(logging.WARNING):
        result = evaluate("gt.csv", "gt.csv", classes={11: "sits", 300: "flies"})
    assert result["AP"] == {11: 1, 300: 1}
    assert not caplog.records
    with pytest.raises(ValueError, match=r"gt.csv:2: action_id 300 is no class: correct it, or give the label map"):
        evaluate("gt.csv", "gt.csv")
