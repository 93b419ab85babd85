from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from commands.conftest import Run

GOLDEN = Path(__file__).parents[1] / "metrics" / "ava_golden"
FILES = [str(GOLDEN / "gt.csv"), str(GOLDEN / "detections.csv")]
EXCLUDED = ["--excluded", str(GOLDEN / "excluded.csv")]


def test_ava_is_measured_and_shown_class_by_class(run: Run) -> None:
    code, out, err = run("evaluate", "ava", *FILES, *EXCLUDED)
    assert (code, err) == (0, "")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert len(rows) == 12
    assert rows[0] == ["36", "lift/pick up", "5", "79.11 %"]
    assert rows[-1] == ["7", "jump/leap", "6", "16.67 %"]
    assert out.splitlines()[-1] == "mAP: 49.07 %, the mean of 12 classes with ground truth"


def test_results_go_to_a_folder_as_table_and_picture(run: Run) -> None:
    code, out, _ = run("evaluate", "ava", *FILES, *EXCLUDED, "--out", "deep/results")
    assert code == 0
    assert out.splitlines()[-1] == "written to deep/results: ap.csv, ap.png"
    with Path("deep/results/ap.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"action_id": "7", "name": "jump/leap", "boxes": "6", "ap": "0.16666666666666666"}
    assert Path("deep/results/ap.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_all_that_is_printed(run: Run) -> None:
    code, out, _ = run("evaluate", "ava", *FILES, *EXCLUDED, "--json", "--out", "results")
    assert code == 0
    result = json.loads(out)
    assert result["mAP"] == pytest.approx(0.49066137566137563, abs=1e-9)
    assert result["classes"][1] == {"id": 7, "name": "jump/leap", "AP": pytest.approx(1 / 6), "boxes": 6}
    assert Path("results/ap.csv").exists()
    _, out, _ = run("evaluate", "ava", *FILES, *EXCLUDED, "--json", "--match_order", "scores")
    assert json.loads(out)["mAP"] == pytest.approx(0.5182705026455027)


def test_classes_of_ones_own_have_a_label_map(run: Run) -> None:
    Path("boxes.csv").write_text("v,1,0,0,1,1,101,0.5\nv,1,0,0,1,1,102,0.5\n")
    Path("found.csv").write_text("v,1,0,0,1,1,101,0.5\n")
    Path("classes.csv").write_text("label_id,label_name\n101,wave [x]\n102,nod\n")
    code, out, _ = run("evaluate", "ava", "found.csv", "found.csv", "--label_map", "classes.csv", "--json")
    assert code == 1  # the last column of ground truth is no score
    Path("boxes.csv").write_text("v,1,0,0,1,1,101,0\nv,1,0,0,1,1,102,1\n")
    code, out, _ = run("evaluate", "ava", "boxes.csv", "found.csv", "--label_map", "classes.csv")
    assert code == 0
    assert "wave [x]" in out
    assert "mAP: 50.00 %" in out


def test_without_ground_truth_there_is_no_mean(run: Run) -> None:
    Path("boxes.csv").write_text("v,1,0,0,1,1,2,0\n")
    Path("found.csv").write_text("v,1,0,0,1,1,2,0.5\n")
    assert run("evaluate", "ava", "boxes.csv", "found.csv", "--out", "results") == (
        0,
        "mAP is not defined: no class that counts has ground truth\nwritten to results: ap.csv, ap.png\n",
        "",
    )
    _, out, _ = run("evaluate", "ava", "boxes.csv", "found.csv", "--json")
    assert json.loads(out) == {"mAP": None, "classes": []}


def test_bad_rows_are_one_line_each_and_bad_files_an_error(run: Run) -> None:
    Path("boxes.csv").write_text("v,1,0,0,1,1,11,0\n")
    Path("found.csv").write_text("v,1,0,0,1,1,11,0.5\n" * 20 + "v,1,0,0,1,1,11,x\n")
    code, _, err = run("evaluate", "ava", "boxes.csv", "found.csv")
    assert code == 0
    assert err.splitlines() == [
        "warning: found.csv:21: score 'x' is not a number; 1 of 21 rows have such a fault and are left out"
    ]
    for files, says in (
        (("boxes.csv", "gone.csv"), "error: gone.csv: no such file"),
        (("boxes.csv", "found.csv", "--label_map", "gone.csv"), "error: gone.csv: no such file"),
    ):
        code, _, err = run("evaluate", "ava", *files)
        assert code == 1
        assert err.startswith(says)


def test_help_explains_every_option_without_waiting_for_what_it_does_not_need() -> None:
    script = (
        "import sys, memvit.cli\n"
        "try: memvit.cli.main(['evaluate', 'ava', '--help'])\n"
        "finally: assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "GROUNDTRUTH DETECTIONS" in ended.stdout
    for option in ("--excluded", "--label_map", "--match_order", "--out", "--json"):
        assert option in ended.stdout
