from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from memvit.online.results import (
    ClipRecord,
    ResultWriter,
    VideoResult,
    read_predictions,
    read_summary,
)

RECORD = ClipRecord("a, b.mp4", 3, 1 / 3, 2 / 3, ((("cut", 0.75), ("wäsh", 0.125)), (("pan", 1 / 3),)))


def test_a_line_tells_all_and_reads_back() -> None:
    line = RECORD.to_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "video": "a, b.mp4",
        "clip": 3,
        "start_s": 0.333333,
        "end_s": 0.666667,
        "topk": [
            [{"label": "cut", "score": 0.75}, {"label": "wäsh", "score": 0.125}],
            [{"label": "pan", "score": 0.333333}],
        ],
    }
    read = ClipRecord.from_json(line)
    assert read.topk[0] == RECORD.topk[0]
    assert not read.untrained
    untrained = ClipRecord.from_json(ClipRecord("x", 0, 0.0, 1.0, ((("a", 1.0),),), untrained=True).to_json())
    assert untrained.untrained


def test_actions_and_the_time_it_is_about_are_further_fields() -> None:
    actions = (("cut pan", 0.25), ("wäsh pan", 1 / 24))
    record = ClipRecord("v.mp4", 0, 0.0, 2.0, RECORD.topk, actions=actions, about_s=3.0)
    data = json.loads(record.to_json())
    assert data["topk"] == json.loads(RECORD.to_json())["topk"]
    assert data["actions"] == [{"label": "cut pan", "score": 0.25}, {"label": "wäsh pan", "score": 0.0416667}]
    assert data["about_s"] == 3.0
    assert list(data) == ["video", "clip", "start_s", "end_s", "about_s", "topk", "actions"]
    read = ClipRecord.from_json(record.to_json())
    assert read.about_s == 3.0
    assert [label for label, _ in read.actions] == ["cut pan", "wäsh pan"]
    assert ClipRecord.from_json(read.to_json()) == read


def test_lines_from_before_there_were_actions_read_as_ever(tmp_path: Path) -> None:
    old = '{"video": "v.mp4", "clip": 0, "start_s": 0.0, "end_s": 2.0, "topk": [[{"label": "cut", "score": 0.75}]]}'
    (tmp_path / "predictions.jsonl").write_text(old + "\n")
    (record,) = read_predictions(tmp_path)
    assert record == ClipRecord("v.mp4", 0, 0.0, 2.0, ((("cut", 0.75),),))
    assert (record.actions, record.about_s) == ((), None)
    assert record.to_json() == old


def test_lines_can_be_read_while_they_are_written(tmp_path: Path) -> None:
    with ResultWriter(tmp_path / "v", ("verb", "noun")) as writer:
        assert list(read_predictions(tmp_path / "v")) == []
        for clip in range(3):
            writer.write(ClipRecord("v.mp4", clip, clip, clip + 1.0, RECORD.topk))
            assert [record.clip for record in read_predictions(tmp_path / "v")] == list(range(clip + 1))
        with pytest.raises(FileNotFoundError, match="has not ended"):
            read_summary(tmp_path / "v")


def test_the_table_has_a_row_per_class(tmp_path: Path) -> None:
    with ResultWriter(tmp_path, ("verb", "noun")) as writer:
        writer.write(RECORD)
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["head"], row["rank"], row["label"], row["score"]) for row in rows] == [
        ("verb", "1", "cut", "0.75"),
        ("verb", "2", "wäsh", "0.125"),
        ("noun", "1", "pan", "0.333333"),
    ]
    assert {(row["video"], row["clip"], row["start_s"], row["untrained"], row["about_s"]) for row in rows} == {
        ("a, b.mp4", "3", "0.333333", "false", "")
    }


def test_the_table_has_a_row_per_action_with_the_time_it_is_about(tmp_path: Path) -> None:
    record = dataclasses.replace(RECORD, actions=(("cut pan", 0.25), ("wäsh pan", 0.04)), about_s=5 / 3)
    with ResultWriter(tmp_path, ("verb", "noun")) as writer:
        writer.write(record)
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["head"], row["rank"], row["label"]) for row in rows[3:]] == [
        ("action", "1", "cut pan"),
        ("action", "2", "wäsh pan"),
    ]
    assert {row["about_s"] for row in rows} == {"1.666667"}


def test_a_line_cut_short_by_a_crash_is_left_out_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(RECORD.to_json() + "\n" + RECORD.to_json()[:20])
    assert len(list(read_predictions(path))) == 1
    path.write_text(RECORD.to_json() + "\n" + RECORD.to_json()[:20] + "\n")
    with pytest.raises(ValueError, match=r"predictions.jsonl, line 2: no line of predictions"):
        list(read_predictions(path))
    with pytest.raises(FileNotFoundError, match=r"no .*none.jsonl"):
        list(read_predictions(tmp_path / "none.jsonl"))


def test_a_new_run_clears_away_the_last_one(tmp_path: Path) -> None:
    for name in ("summary.json", "timeline.png", "overlay.mp4", "mine.txt"):
        (tmp_path / name).write_text("old")
    with ResultWriter(tmp_path, ("",)):
        assert {path.name for path in tmp_path.iterdir()} == {"predictions.jsonl", "predictions.csv", "mine.txt"}


def test_a_summary_reads_back(tmp_path: Path) -> None:
    result = VideoResult(
        "v.mp4", str(tmp_path), "partial", 3, 90, 1.0, 4.0, 1.5, ("cut",), message="broken", files=("a",)
    )
    result = dataclasses.replace(result, top_action="cut pan", head_names=("verb", "noun"), anticipation_s=1.0)
    result.save()
    assert read_summary(tmp_path) == result
    assert (result.duration_s, result.speed) == (3.0, 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="is no summary"):
        read_summary(tmp_path)


def test_what_cannot_be_written_says_where_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"cannot write .*file.*Not a directory.*choose another output folder"):
        ResultWriter(tmp_path / "file" / "v", ("",))
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "predictions.csv").symlink_to("/dev/full")
    with pytest.raises(ValueError, match="No space left on device"):
        ResultWriter(tmp_path / "v", ("",))
