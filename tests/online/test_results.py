from __future__ import annotations

import csv
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
    assert {(row["video"], row["clip"], row["start_s"], row["untrained"]) for row in rows} == {
        ("a, b.mp4", "3", "0.333333", "false")
    }


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
