from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from memvit.metrics.epic_kitchens import anticipation, recognition
from memvit.metrics.epic_submission import CHALLENGES, Challenge, Submission, read_submission, write_submission
from metrics.conftest import make_scores, make_segments

NUM = {"num_verbs": 12, "num_nouns": 20}
SUBSETS: dict[str, Any] = {
    "tail_verbs": [8, 9, 10, 11],
    "tail_nouns": range(12, 20),
    "unseen_participants": ["Q2", "Q3"],
}
MEASURES: dict[Challenge, Callable[..., dict[str, float]]] = {
    "action_recognition": recognition,
    "action_anticipation": anticipation,
}


@pytest.fixture
def segments() -> pd.DataFrame:
    return make_segments(200, **NUM)


@pytest.fixture
def scores(segments: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return make_scores(segments, **NUM)


def read_json(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["test.json"]
        content: dict[str, Any] = json.loads(archive.read("test.json"))
        return content


def write_json(path: Path, content: Any, name: str = "test.json") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content if isinstance(content, str) else json.dumps(content))
    return path


def small(num: int = 3) -> dict[str, Any]:
    """A submission with two verbs and three nouns, and all six actions."""
    entry = {
        "verb": {"0": 1.5, "1": -2},
        "noun": {"0": 0.25, "1": 4, "2": 1e-3},
        "action": {f"{verb},{noun}": 0.1 * verb + 0.3 * noun for verb in range(2) for noun in range(3)},
    }
    levels = {"sls_pt": 2, "sls_tl": 3, "sls_td": 3}
    results = {f"Q_{number}": json.loads(json.dumps(entry)) for number in range(num)}
    return {"version": "0.2", "challenge": "action_recognition", **levels, "results": results}


@pytest.mark.parametrize("challenge", CHALLENGES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metrics_of_a_submission_equal_those_of_its_scores(
    segments: pd.DataFrame, scores: tuple[np.ndarray, np.ndarray], challenge: Challenge, dtype: type, tmp_path: Path
) -> None:
    verbs, nouns = (array.astype(dtype) for array in scores)
    write_submission(tmp_path / "scores.zip", challenge, segments["narration_id"], verbs, nouns)
    submission = read_submission(tmp_path / "scores.zip")
    assert submission.measure(segments, **SUBSETS) == MEASURES[challenge](verbs, nouns, segments, **SUBSETS)
    assert submission.challenge == challenge
    assert submission.narration_ids == tuple(segments["narration_id"])
    np.testing.assert_array_equal(submission.verb_scores.astype(dtype), verbs)
    np.testing.assert_array_equal(submission.noun_scores.astype(dtype), nouns)


def test_metrics_of_a_submission_for_the_validation_set_equal_those_of_its_scores(
    real_epic: dict[str, Path], tmp_path: Path
) -> None:
    table = pd.read_csv(real_epic["annotations"])
    verbs, nouns = (array.astype(np.float32) for array in make_scores(table, num_verbs=97, num_nouns=300, seed=1))
    shuffled = np.random.default_rng(0).permutation(len(table))
    ids = table["narration_id"].to_numpy()[shuffled]
    write_submission(tmp_path / "scores.zip", "action_recognition", ids, verbs[shuffled], nouns[shuffled])
    assert (tmp_path / "scores.zip").stat().st_size < 50e6
    submission = read_submission(tmp_path / "scores.zip")
    for challenge, measure in MEASURES.items():
        found = dataclasses.replace(submission, challenge=challenge).measure(**real_epic)  # type: ignore[arg-type]
        assert found == pytest.approx(measure(verbs, nouns, **real_epic), abs=1e-6)


def test_the_file_has_the_form_of_the_challenge(tmp_path: Path) -> None:
    verbs, nouns = make_scores(make_segments(2, num_verbs=97, num_nouns=300), num_verbs=97, num_nouns=300)
    write_submission(tmp_path / "a.zip", "action_anticipation", ["Q_1", 'Q_"2'], verbs, nouns, sls_td=4)
    content = read_json(tmp_path / "a.zip")
    results = content.pop("results")
    assert content == {"version": "0.2", "challenge": "action_anticipation", "sls_pt": 2, "sls_tl": 3, "sls_td": 4}
    assert list(results) == ["Q_1", 'Q_"2']
    for row, entry in enumerate(results.values()):
        assert list(entry) == ["verb", "noun", "action"]
        assert entry["verb"] == {str(number): score for number, score in enumerate(verbs[row].tolist())}
        assert entry["noun"] == {str(number): score for number, score in enumerate(nouns[row].tolist())}
        p, q = (np.exp(s[row]) / np.exp(s[row]).sum() for s in (verbs, nouns))
        products = np.outer(p, q).ravel()
        best = np.argsort(-products)[:100]
        assert entry["action"] == pytest.approx(
            {f"{number // 300},{number % 300}": products[number] for number in best}
        )
        assert list(entry["action"].values()) == sorted(entry["action"].values(), reverse=True)


def test_segments_may_come_in_any_order(
    segments: pd.DataFrame, scores: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    write_submission(tmp_path / "a.zip", "action_recognition", segments["narration_id"], *scores)
    expected = recognition(*scores, segments, **SUBSETS)
    shuffled = segments.sample(frac=1, random_state=0)
    submission = read_submission(tmp_path / "a.zip")
    assert submission.measure(shuffled, **SUBSETS) == pytest.approx(expected, abs=1e-9)
    assert submission.measure(shuffled.set_index("narration_id"), *SUBSETS.values()) == pytest.approx(
        expected, abs=1e-9
    )
    shuffled.to_csv(tmp_path / "segments.csv", index=False)
    assert submission.measure(tmp_path / "segments.csv", **SUBSETS) == pytest.approx(expected, abs=1e-9)


def test_equal_and_vanishing_scores_give_the_same_metrics_as_well(segments: pd.DataFrame, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for factor in (1, 1000):  # products of the second kind are 0 for nearly all actions
        verbs, nouns = (factor * rng.integers(-2, 3, (200, num)) for num in (12, 20))
        write_submission(tmp_path / "a.zip", "action_recognition", segments["narration_id"], verbs, nouns)
        expected = recognition(verbs, nouns, segments, **SUBSETS)
        assert read_submission(tmp_path / "a.zip").measure(segments, **SUBSETS) == expected


def test_submitted_actions_count_and_not_those_of_verbs_and_nouns(tmp_path: Path) -> None:
    content = small(1)
    table = pd.DataFrame({"narration_id": ["Q_0"], "verb_class": [0], "noun_class": [1]})
    values = read_submission(write_json(tmp_path / "a.zip", content)).measure(table)
    assert values["all_verb_accuracy_at_1"] == values["all_noun_accuracy_at_1"] == 100
    assert values["all_action_accuracy_at_1"] == 0
    del content["results"]["Q_0"]["action"]
    submission = read_submission(write_json(tmp_path / "b.zip", content))
    assert submission.actions is None
    assert submission.measure(table)["all_action_accuracy_at_1"] == 100


def test_classes_are_found_by_name_and_not_by_place(tmp_path: Path) -> None:
    content = small(2)
    content["results"]["Q_1"]["noun"] = {"2": 7, "0": 5, "1": 6}
    submission = read_submission(write_json(tmp_path / "a.zip", content, "scores/validation.json"))
    assert submission.noun_scores.tolist() == [[0.25, 4, 1e-3], [5, 6, 7]]
    assert submission.actions is not None
    assert submission.actions.verbs.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert submission.actions.nouns.tolist() == [[0, 1, 2, 0, 1, 2]] * 2
    assert (submission.sls_pt, submission.sls_tl, submission.sls_td) == (2, 3, 3)


def test_equal_scores_make_equal_files_and_float32_smaller_ones(
    segments: pd.DataFrame, scores: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    single = [array.astype(np.float32) for array in scores]
    for name, (verbs, nouns) in {"a": single, "b": map(torch.tensor, single), "c": scores}.items():
        write_submission(tmp_path / name, "action_recognition", segments["narration_id"], verbs, nouns)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < 0.75 * (tmp_path / "c").stat().st_size


def test_a_file_is_written_whole_or_not_at_all(
    segments: pd.DataFrame, scores: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zip"
    path.write_text("before")
    monkeypatch.setattr("memvit.metrics.epic_writing.top_actions", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_submission(path, "action_recognition", segments["narration_id"], *scores)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]
    assert path.read_text() == "before"


def test_what_cannot_be_submitted_is_not_written(tmp_path: Path) -> None:
    def write(
        challenge: Any = "action_recognition", ids: Any = ("a", "b"), verbs: Any = ((0, 0, 0), (0, 0, 0)), **levels: Any
    ) -> None:
        write_submission(tmp_path / "a.zip", challenge, ids, verbs, np.zeros((2, 4)), **levels)

    for says, options in (
        ("challenge 'detection' is none of action_recognition, action_anticipation", {"challenge": "detection"}),
        ("1 narration_ids, 2 rows of verb_scores, 2 of noun_scores: give", {"ids": ["a"]}),
        ("narration_ids has 'a' twice: give every segment once", {"ids": ["a", "a"]}),
        (r"verb_scores\[1, 2\] is nan", {"verbs": [[0, 0, 0], [0, 0, float("nan")]]}),
        ("sls_tl 6 is no supervision level: give a whole number from 0 to 5", {"sls_tl": 6}),
        ("sls_pt True is no supervision level", {"sls_pt": True}),
    ):
        with pytest.raises(ValueError, match=says):
            write(**options)
    assert not list(tmp_path.iterdir())


def test_missing_and_unknown_segments_are_named(
    segments: pd.DataFrame, scores: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    write_submission(tmp_path / "a.zip", "action_recognition", segments["narration_id"], *scores)
    submission = read_submission(tmp_path / "a.zip")
    other = segments.replace({"narration_id": {"Q1_01_5": "Q1_01_x"}})
    with pytest.raises(
        ValueError, match=r"1 of 200 annotated segments are missing, Q1_01_x; 1 of 200 .* not annotated, Q1_01_5"
    ):
        submission.measure(other)
    says = "196 of 200 segments are not annotated, such as Q0_01_4, Q1_01_5, Q2_01_6: is it for another split"
    with pytest.raises(ValueError, match=says):
        submission.measure(segments[:4])
    with pytest.raises(ValueError, match="annotations: no column narration_id"):
        submission.measure(segments.drop(columns="narration_id"))
    with pytest.raises(ValueError, match=r"annotations.iloc\[200\] \(Q0_01_0\): the segment occurs twice"):
        submission.measure(pd.concat([segments, segments[:1]]))


def test_files_that_are_no_submission_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with pytest.raises(FileNotFoundError, match=r"a.zip: no such file; give a zip file with test.json"):
        read_submission(path)
    path.write_text(json.dumps(small()))
    with pytest.raises(ValueError, match=r"a.zip: is no zip file, or a broken one"):
        read_submission(path)
    write_json(path, small())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a.zip: is no zip file, or a broken one"):
        read_submission(path)
    with pytest.raises(ValueError, match=r"a.zip: holds scores.pkl, not test.json"):
        read_submission(write_json(path, "", "scores.pkl"))
    for content in ("", "{", "[" * 100_000, '{"a": 1e}'):
        with pytest.raises(ValueError, match=r"a.zip: what it holds is no JSON"):
            read_submission(write_json(path, content))
    for odd in ([], {}, {"a": 1}, {"version": "0.2"}, 7):
        with pytest.raises(ValueError, match=r"a.zip: (holds no submission|has no .*challenge)"):
            read_submission(write_json(path, odd))


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("version '0.1' is not '0.2'", {"version": "0.1"}),
        (
            "challenge 'action_detection' is none of action_recognition, action_anticip",
            {"challenge": "action_detection"},
        ),
        ("sls_td -1 is no supervision level", {"sls_td": -1}),
        ("results holds no segments", {"results": {}}),
        ("results holds no segments", {"results": []}),
        ("segment 'Q_9' has no scores of verbs and nouns", {"results": {"Q_9": [1, 2]}}),
    ],
)
def test_what_stands_before_the_segments_is_checked(says: str, change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"a.zip: {says}"):
        read_submission(write_json(tmp_path / "a.zip", small() | change))


@pytest.mark.parametrize(
    ("says", "kind", "value"),
    [
        ("segment 'Q_1' has no scores of nouns", "noun", None),
        ("segment 'Q_1' has no score of verb 0, though 'Q_0' has one of verb 1: every", "verb", {"1": 0.5}),
        ("segment 'Q_0' has no score of verb 2, though 'Q_1' has one of verb 3", "verb", {"0": 1, "1": 1, "3": 1}),
        ("segment 'Q_1': 'take' is no verb: give the number", "verb", {"take": 1, "1": 0.5}),
        ("segment 'Q_1': '-1' is no verb", "verb", {"-1": 1, "1": 0.5}),
        ("segment 'Q_1' has verb 1 twice", "verb", {"1": 1, "01": 0.5}),
        ("segment 'Q_1': the scores of nouns are not all numbers", "noun", {"0": 1, "1": "2", "2": 3}),
        ("segment 'Q_1': the scores of nouns are not all numbers", "noun", [1, 2, 3]),
        ("segment 'Q_1': the score of noun 1 is nan, not finite", "noun", {"0": 1, "1": float("nan"), "2": 3}),
        ("segment 'Q_1': the score of verb 0 is inf, not finite", "verb", {"0": float("inf"), "1": 3}),
        ("segment 'Q_1' has no actions, though others do", "action", None),
        ("segment 'Q_1' has 5 actions: give the best 6", "action", {f"0,{number}": 1 for number in range(5)}),
        ("segment 'Q_1': action '0,3' is no verb and noun that", "action", {f"0,{number}": 1 for number in range(6)}),
        ("segment 'Q_1': action '0' is no verb and noun that", "action", {f"{number}": 1 for number in range(6)}),
    ],
)
def test_what_is_wrong_with_a_segment_is_named(says: str, kind: str, value: Any, tmp_path: Path) -> None:
    content = small()
    if value is None:
        del content["results"]["Q_1"][kind]
    else:
        content["results"]["Q_1"][kind] = value
    with pytest.raises(ValueError, match=f"a.zip: {says}"):
        read_submission(write_json(tmp_path / "a.zip", content))


def test_actions_need_finite_scores_and_names_of_their_own(tmp_path: Path) -> None:
    content = small()
    actions = content["results"]["Q_2"]["action"]
    actions["1,2"] = float("nan")
    with pytest.raises(ValueError, match="segment 'Q_2': action '1,2' has no finite score"):
        read_submission(write_json(tmp_path / "a.zip", content))
    del actions["1,2"]
    actions["0, 1"] = 0.5
    with pytest.raises(ValueError, match="segment 'Q_2' has an action twice"):
        read_submission(write_json(tmp_path / "a.zip", content))


def test_a_segment_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    text = json.dumps(small()).replace('"Q_2"', '"Q_1"')
    with pytest.raises(ValueError, match=r"a.zip: 'Q_1' occurs twice: give every segment once"):
        read_submission(write_json(tmp_path / "a.zip", text))


def test_a_submission_may_be_made_without_a_file(segments: pd.DataFrame, scores: tuple[np.ndarray, np.ndarray]) -> None:
    submission = Submission("action_anticipation", tuple(segments["narration_id"]), *scores, None, 2, 3, 3)
    assert submission.measure(segments, **SUBSETS) == anticipation(*scores, segments, **SUBSETS)
