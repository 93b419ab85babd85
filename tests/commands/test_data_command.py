from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands.conftest import Run
from memvit.cli import main

HEADER = "video,start_s,end_s,label\n"


@pytest.mark.parametrize("command", ["check", "make"])
def test_help_of_both_levels_and_every_option_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "--help"])
    assert stopped.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "check Find everything that is wrong" in out
    assert "make Make videos with annotations" in out
    with pytest.raises(SystemExit) as stopped:
        main(["data", command, "--help"])
    assert stopped.value.code == 0
    for paragraph in capsys.readouterr().out.split("\n  -")[1:]:
        text = " ".join(paragraph.split("(type")[0].split())
        assert len(text.split()) > 3, text


@pytest.mark.parametrize("arguments", [[], ["chekc"], ["check"], ["check", "a.csv"], ["make", "poker", "out"]])
def test_what_cannot_be_understood_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", *arguments])
    assert stopped.value.code == 2
    assert "usage: memvit" in capsys.readouterr().err


def test_a_good_data_set_is_shown_in_figures(run: Run) -> None:
    Path("train.csv").write_text(f"{HEADER}ok,0,1,walk\nok,1,2,sit\nok,2,2.5,walk\nok,2.5,3,sit\n")
    code, out, err = run("data", "check", "train.csv", "--videos", "data", "--clip_s", "0.5")
    assert code == 0, out
    assert err == ""
    row = next(line for line in out.splitlines() if "train.csv" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "train",
        "train.csv",
        "1",
        "0.00",
        "4",
        "2",
        "100%",
        "6",
    ]
    assert "train: 2 classes of label: walk (2), sit (2)" in out
    assert "note: videos in data that no file names" in out
    assert out.splitlines()[-1] == "0 errors, 0 warnings"


def test_every_error_is_a_line_with_its_place_and_exit_code_1(run: Run) -> None:
    Path("train.csv").write_text(f"{HEADER}ok,0,1,walk\nok,2,1,walk\n")
    Path("val.csv").write_text(f"{HEADER}ok,0,1,sit\n[bold]gone[/bold],0,1,walk\n")
    code, out, _ = run("data", "check", "train.csv", "val.csv", "--videos", "data")
    assert code == 1
    lines = out.splitlines()
    assert "error: train.csv:3: end_s 1 does not come after start_s 2: exchange or correct them" in lines
    assert "error: val.csv:2: label 'sit' is not in train.csv: correct it, or add it there" in lines
    assert any(line.startswith("error: val.csv:3: there is no video '[bold]gone[/bold]' in data;") for line in lines)
    assert lines[-1].startswith("3 errors, ")


def test_many_errors_of_a_kind_are_cut_short_but_all_in_the_json(run: Run) -> None:
    Path("train.csv").write_text(HEADER + "".join(f"gone{i},0,1,walk\n" for i in range(30)))
    code, out, _ = run("data", "check", "train.csv", "--videos", "data")
    assert code == 1
    assert out.count("there is no video") == 20
    assert "error: missing video: 10 more; --json lists all" in out
    code, out, _ = run("data", "check", "train.csv", "--videos", "data", "--json")
    assert code == 1
    report = json.loads(out)
    assert report["ok"] is False
    assert [finding["line"] for finding in report["findings"] if finding["level"] == "error"] == list(range(2, 32))


def test_the_classes_that_occur_most_and_least_are_named(run: Run) -> None:
    rows = [f"ok,{i / 100},{(i + 1) / 100},c{min(i, 14)}\n" for i in range(20)]
    Path("train.csv").write_text(HEADER + "".join(rows))
    _, out, _ = run("data", "check", "train.csv", "--videos", "data")
    assert "15 classes of label: c14 (6), c0 (1), c1 (1), c2 (1), c3 (1), ..., c9 (1)" in out


def test_boxes_are_checked_with_their_label_map(run: Run) -> None:
    Path("boxes.csv").write_text("ok,901,0,0,1,1,1,1\nok,902,0,0,1,1,2,1\n")
    Path("classes.csv").write_text("label_id,label_name\n1,sit\n2,stand\n")
    options = ["--videos", "data", "--task", "boxes", "--label_map", "classes.csv"]
    code, out, _ = run("data", "check", "boxes.csv", *options, "--first_second", "900")
    assert code == 0, out
    assert "sit (1), stand (1)" in out
    code, out, _ = run("data", "check", "boxes.csv", *options)
    assert code == 1
    assert "error: boxes.csv:1: 901 s lies outside video 'ok'" in out


def test_kinetics_is_checked_with_its_classes(run: Run) -> None:
    Path("train.csv").write_text("ok.mp4 1\n")
    Path("classes.txt").write_text("walk\nsit\n")
    options = ["--videos", "data", "--task", "kinetics"]
    code, out, _ = run("data", "check", "train.csv", *options, "--classes", "classes.txt")
    assert code == 0, out
    assert "2 classes of label: sit (1), walk (0)" in out
    Path("train.csv").write_text("ok.mp4 2\ngone.mp4 1\n")
    code, out, _ = run("data", "check", "train.csv", *options, "--classes", "classes.txt")
    assert code == 1
    assert "error: train.csv:1: 2 is no class: classes.txt names 2, numbered from 0 to 1" in out
    assert "error: train.csv:2: there is no video 'gone.mp4' in data" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.csv", "--videos", "data"], "error: none.csv: no such file"),
        (["train.csv", "--videos", "nowhere"], "error: nowhere: no such folder"),
        (["train.csv", "--videos", "data", "--label_map", "x"], "error: --label_map and --first_second are for boxes"),
        (["train.csv", "--videos", "data", "--task", "boxes", "--label_map", "x.csv"], "error: x.csv: no such file"),
        (["train.csv", "--videos", "data", "--classes", "x"], "error: --classes is for kinetics"),
        (["train.csv", "--videos", "data", "--task", "kinetics", "--clip_s", "1"], "error: --clip_s says nothing"),
        (["train.csv"] * 4 + ["--videos", "data"], "error: 4 files of annotations: give 1 to 3"),
        (["train.csv", "--videos", "data", "--clip_s", "-1"], "error: clip_s=-1.0 is no length"),
    ],
)
def test_what_cannot_be_checked_is_one_line(run: Run, arguments: list[str], says: str) -> None:
    Path("train.csv").write_text(f"{HEADER}ok,0,1,walk\n")
    code, out, err = run("data", "check", *arguments)
    assert code == 1
    assert says in out + err


def test_what_make_makes_passes_check(run: Run) -> None:
    code, out, err = run("data", "make", "recall", "made", "--videos", "1", "--seed", "3")
    assert (code, err) == (0, "")
    assert "made videos and annotations in made" in out
    files = [f"made/{split}.csv" for split in ("train", "val", "test")]
    _, out, _ = run("data", "check", *files, "--videos", "made/videos")
    assert "missing video" not in out
    assert "test.csv" in out
