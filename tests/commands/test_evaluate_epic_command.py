from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from commands.conftest import Run
from memvit.metrics.epic_kitchens import anticipation, recognition
from memvit.metrics.epic_submission import write_submission
from metrics.conftest import SUBSET_FILES, make_scores, make_segments

NUM = {"num_verbs": 8, "num_nouns": 10}
IDS: dict[str, list[int] | list[str]] = {
    "tail_verbs": [5, 6, 7],
    "tail_nouns": [5, 6, 7, 8, 9],
    "unseen_participants": ["Q3"],
}
COLUMNS = {"tail_verbs": "verb", "tail_nouns": "noun", "unseen_participants": "participant_id"}
FILES = ("epic/segments.csv", "scores.zip")


@pytest.fixture
def segments(run: Run) -> pd.DataFrame:
    """Segments in epic/segments.csv of the folder that commands run in."""
    table = make_segments(1200, **NUM)
    Path("epic").mkdir()
    table.to_csv("epic/segments.csv", index=False)
    return table


@pytest.fixture
def scores(segments: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the segments, in scores.zip as well."""
    verbs, nouns = make_scores(segments, **NUM)
    write_submission("scores.zip", "action_recognition", segments["narration_id"], verbs, nouns)
    return verbs, nouns


def write_subsets(folder: str, names: dict[str, str]) -> None:
    Path(folder).mkdir(exist_ok=True)
    for option, name in names.items():
        pd.DataFrame({COLUMNS[option]: IDS[option]}).to_csv(Path(folder, name), index=False)


def rows_of(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if line.startswith("│")
    ]


def test_a_submission_is_measured_and_shown_by_subset(
    run: Run, segments: pd.DataFrame, scores: tuple[np.ndarray, np.ndarray]
) -> None:
    write_subsets("epic", SUBSET_FILES)
    code, out, err = run("evaluate", "epic", *FILES)
    assert code == 0
    assert err == f"found beside epic/segments.csv and used: {', '.join(SUBSET_FILES.values())}\n"
    values = recognition(*scores, segments, **IDS)  # type: ignore[arg-type]
    rows = rows_of(out)
    assert [row[:2] for row in rows] == [
        ["all", "top-1 accuracy"],
        ["all", "top-5 accuracy"],
        ["tail", "top-1 accuracy"],
        ["unseen", "top-1 accuracy"],
    ]
    assert rows[0][2:] == [f"{values[f'all_{task}_accuracy_at_1']:.2f} %" for task in ("verb", "noun", "action")]
    assert rows[2][4] == f"{values['tail_action_accuracy_at_1']:.2f} %"
    assert out.splitlines()[-1] == "action recognition, 1,200 segments"


def test_json_is_all_that_stdout_gets(run: Run, segments: pd.DataFrame, scores: tuple[np.ndarray, np.ndarray]) -> None:
    write_subsets("epic", SUBSET_FILES)
    write_submission("scores.zip", "action_anticipation", segments["narration_id"], *scores)
    code, out, err = run("evaluate", "epic", *FILES, "--json")
    assert (code, len(err.splitlines())) == (0, 1)
    assert json.loads(out) == {
        "challenge": "action_anticipation",
        "segments": 1200,
        "metrics": anticipation(*scores, segments, **IDS),  # type: ignore[arg-type]
    }


def test_files_of_subsets_can_be_given(run: Run, segments: pd.DataFrame, scores: tuple[np.ndarray, np.ndarray]) -> None:
    (Path("epic") / SUBSET_FILES["tail_verbs"]).write_text("verb\n0\n")  # lies there, but another is given
    write_subsets("mine", {option: f"{option}.csv" for option in IDS})
    options = [text for option in IDS for text in (f"--{option}", f"mine/{option}.csv")]
    code, out, err = run("evaluate", "epic", *FILES, *options, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["metrics"] == recognition(*scores, segments, **IDS)  # type: ignore[arg-type]


@pytest.mark.usefixtures("scores")
def test_rows_and_cells_that_need_files_are_left_out(run: Run) -> None:
    code, out, err = run("evaluate", "epic", *FILES)
    assert code == 0
    assert err == "some values are left out, for want of --tail_verbs, --tail_nouns, --unseen_participants\n"
    assert [row[:2] for row in rows_of(out)] == [["all", "top-1 accuracy"], ["all", "top-5 accuracy"]]
    write_subsets("epic", {"tail_nouns": SUBSET_FILES["tail_nouns"]})
    _, out, _ = run("evaluate", "epic", *FILES)
    tail = rows_of(out)[-1]
    assert (tail[0], tail[2], tail[4]) == ("tail", "", "")
    assert tail[3].endswith(" %")


@pytest.mark.usefixtures("scores")
def test_what_is_wrong_is_one_line(run: Run, segments: pd.DataFrame) -> None:
    segments[5:].to_csv("fewer.csv", index=False)
    Path("text.zip").write_text("hello")
    for files, says in (
        (("gone.csv", "scores.zip"), "error: gone.csv: no such file"),
        (("epic/segments.csv", "gone.zip"), "error: gone.zip: no such file"),
        (("epic/segments.csv", "text.zip"), "error: text.zip: is no zip file"),
        (
            ("fewer.csv", "scores.zip"),
            "error: the submission does not fit the annotations: 5 of 1,200 segments are not",
        ),
        ((*FILES, "--tail_verbs", "fewer.csv"), "error: fewer.csv:1: no column verb; there are narration_id"),
    ):
        code, out, err = run("evaluate", "epic", *files)
        assert (code, out) == (1, "")
        assert err.startswith(says)
        assert len(err.splitlines()) == 1


def test_help_explains_every_option_without_waiting_for_what_it_does_not_need() -> None:
    script = (
        "import sys, memvit.cli\n"
        "try: memvit.cli.main(['evaluate', 'epic', '--help'])\n"
        "finally: assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "ANNOTATIONS SUBMISSION" in ended.stdout
    for option in ("--tail_verbs", "--tail_nouns", "--unseen_participants", "--json"):
        assert option in ended.stdout
