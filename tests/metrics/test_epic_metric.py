from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from memvit.metrics.epic_kitchens import TopActions, anticipation, recognition
from memvit.metrics.epic_scores import top_actions
from metrics.conftest import make_scores, make_segments

GOLDEN = Path(__file__).with_name("epic100_metrics.json")
NUM = {"num_verbs": 7, "num_nouns": 11}
SUBSETS: dict[str, Any] = {"tail_verbs": [4, 5, 6], "tail_nouns": [6, 7, 8, 9, 10], "unseen_participants": ["Q2", "Q3"]}

Scores = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def segments() -> pd.DataFrame:
    return make_segments(300, **NUM)


@pytest.fixture
def scores(segments: pd.DataFrame) -> Scores:
    return make_scores(segments, **NUM)


def rank(scores: np.ndarray) -> list[list[int]]:
    return [sorted(range(len(row)), key=lambda number, row=row: (-row[number], number)) for row in scores.tolist()]


def by_hand(segments: pd.DataFrame, scores: Scores) -> tuple[dict[str, float], dict[str, float]]:
    """Both tasks the long way: all products, sorted; segments and classes one by one."""
    verb, noun = (
        np.exp(s.astype(np.float64)) / np.exp(s.astype(np.float64)).sum(axis=1, keepdims=True) for s in scores
    )
    products = (verb[:, :, None] * noun[:, None, :]).reshape(len(segments), -1)
    truth = {"verb": segments["verb_class"].tolist(), "noun": segments["noun_class"].tolist()}
    truth["action"] = [v * noun.shape[1] + n for v, n in zip(truth["verb"], truth["noun"], strict=True)]
    orders = {"verb": rank(scores[0]), "noun": rank(scores[1]), "action": rank(products)}

    def hits(task: str, k: int, belongs: Callable[[int], bool]) -> dict[int, list[bool]]:
        found = defaultdict(list)
        for number, label in enumerate(truth[task]):
            if belongs(number):
                found[label].append(label in orders[task][number][:k])
        return found

    def accuracy(found: dict[int, list[bool]]) -> float:
        return 100 * float(np.mean([hit for of_class in found.values() for hit in of_class]))

    def recall(found: dict[int, list[bool]]) -> float:
        return 100 * float(np.mean([np.mean(of_class) for of_class in found.values()]))

    def is_tail(task: str, number: int) -> bool:
        has_verb = truth["verb"][number] in SUBSETS["tail_verbs"]
        has_noun = truth["noun"][number] in SUBSETS["tail_nouns"]
        return {"verb": has_verb, "noun": has_noun, "action": has_verb or has_noun}[task]

    def is_unseen(number: int) -> bool:
        return segments["participant_id"].iloc[number] in SUBSETS["unseen_participants"]

    recognised, anticipated = {}, {}
    for task in truth:
        for k in (1, 5):
            recognised[f"all_{task}_accuracy_at_{k}"] = accuracy(hits(task, k, lambda number: True))
        recognised[f"tail_{task}_accuracy_at_1"] = accuracy(
            hits(task, 1, lambda number, task=task: is_tail(task, number))
        )
        recognised[f"unseen_{task}_accuracy_at_1"] = accuracy(hits(task, 1, is_unseen))
        anticipated[f"overall_{task}_mt5r"] = recall(hits(task, 5, lambda number: True))
        anticipated[f"tail_{task}_mt5r"] = recall(hits(task, 5, lambda number, task=task: is_tail(task, number)))
        anticipated[f"unseen_{task}_mt5r"] = recall(hits(task, 5, is_unseen))
    return recognised, anticipated


def test_values_of_the_validation_set_are_those_of_the_official_evaluators(real_epic: dict[str, Path]) -> None:
    golden = json.loads(GOLDEN.read_text())
    table = pd.read_csv(real_epic["annotations"])
    scores = make_scores(table, num_verbs=97, num_nouns=300, seed=golden["seed"])
    began_s = time.perf_counter()
    recognised, anticipated = recognition(*scores, **real_epic), anticipation(*scores, **real_epic)
    assert time.perf_counter() - began_s < 20  # 0.5 s alone; all products would take minutes
    assert list(recognised) == list(golden["recognition"])
    assert list(anticipated) == list(golden["anticipation"])
    assert recognised == pytest.approx(golden["recognition"], abs=1e-6)
    assert anticipated == pytest.approx(golden["anticipation"], abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_values_are_those_found_by_hand(segments: pd.DataFrame, scores: Scores, dtype: type) -> None:
    verbs, nouns = scores[0].astype(dtype), scores[1].astype(dtype)
    recognised, anticipated = by_hand(segments, (verbs, nouns))
    assert recognition(verbs, nouns, segments, **SUBSETS) == pytest.approx(recognised, abs=1e-9)
    assert anticipation(verbs, nouns, segments, **SUBSETS) == pytest.approx(anticipated, abs=1e-9)
    assert len(recognised) == 12
    assert len(anticipated) == 9
    assert len({*recognised.values(), *anticipated.values()}) == 21  # so that none can stand for another


def test_a_tail_action_is_one_with_a_tail_verb_or_noun() -> None:
    segments = pd.DataFrame({"verb_class": [0, 1, 0, 1], "noun_class": [0, 0, 1, 1]})
    hit, miss = [1.0, 0.0], [0.0, 1.0]
    verbs = np.array([hit, hit[::-1], hit, miss[::-1]])
    nouns = np.array([hit, miss, hit[::-1], hit[::-1]])
    values = recognition(verbs, nouns, segments, tail_verbs=[1], tail_nouns=[1])
    assert values["all_action_accuracy_at_1"] == 50
    assert values["tail_verb_accuracy_at_1"] == 50  # of rows 1 and 3
    assert values["tail_noun_accuracy_at_1"] == 100  # of rows 2 and 3
    assert values["tail_action_accuracy_at_1"] == pytest.approx(100 / 3)  # of rows 1, 2 and 3


def test_anticipation_counts_classes_and_not_segments() -> None:
    segments = pd.DataFrame({"verb_class": [0, 0, 0, 7], "noun_class": [0, 0, 0, 0]})
    verbs = np.tile(-np.arange(8.0), (4, 1))  # verb 0 is always first, and verb 7 always last
    values = anticipation(verbs, np.zeros((4, 1)), segments)
    assert values == {"overall_verb_mt5r": 50, "overall_noun_mt5r": 100, "overall_action_mt5r": 50}
    assert recognition(verbs, np.zeros((4, 1)), segments)["all_verb_accuracy_at_5"] == 75


def test_the_best_actions_are_those_of_all_products() -> None:
    verbs, nouns = np.random.default_rng(0).standard_normal((2, 50, 40))
    for num_nouns in (40, 3, 1):
        few = nouns[:, :num_nouns]
        p, q = (np.exp(s) / np.exp(s).sum(axis=1, keepdims=True) for s in (verbs, few))
        products = (p[:, :, None] * q[:, None, :]).reshape(50, -1)
        for k in (1, 5, 100, 10_000):
            best, expected = top_actions(verbs, few, k), np.argsort(-products, axis=1)[:, :k]
            assert (best.verbs * num_nouns + best.nouns).tolist() == expected.tolist()
            np.testing.assert_allclose(best.scores, np.take_along_axis(products, expected, 1), rtol=1e-12)


def test_of_equal_scores_the_first_class_is_better() -> None:
    segments = pd.DataFrame({"verb_class": [0, 1, 4, 5], "noun_class": [0, 0, 0, 0]})
    values = recognition(np.zeros((4, 6)), np.zeros((4, 2)), segments)
    assert values["all_verb_accuracy_at_1"] == 25
    assert values["all_verb_accuracy_at_5"] == 75
    best = top_actions(np.zeros((1, 2)), np.zeros((1, 2)), 4)
    assert list(zip(best.verbs[0].tolist(), best.nouns[0].tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_of_equal_actions_that_with_the_better_verb_is_better() -> None:
    best = top_actions(np.array([[2.0, 3.0]]), np.array([[1.0, 0.0]]), 4)
    assert list(zip(best.verbs[0].tolist(), best.nouns[0].tolist(), strict=True)) == [(1, 0), (1, 1), (0, 0), (0, 1)]
    assert best.scores[0, 1] == best.scores[0, 2]


def test_actions_so_unlikely_that_products_vanish_still_have_an_order() -> None:
    segments = pd.DataFrame({"verb_class": [2], "noun_class": [0]})
    verbs, nouns = np.array([[0.0, -3000.0, -2000.0]]), np.array([[-4000.0, -4000.0]])
    best = top_actions(verbs, nouns, 6)
    assert best.verbs[0].tolist() == [0, 0, 2, 2, 1, 1]
    assert best.scores[0].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0, 0])
    assert recognition(verbs, nouns, segments)["all_action_accuracy_at_5"] == 100


def test_given_actions_are_ranked_by_their_own_scores() -> None:
    segments = pd.DataFrame({"verb_class": [0, 1], "noun_class": [0, 0]})
    actions = TopActions(np.array([[0, 1], [0, 1]]), np.zeros((2, 2), int), np.array([[-2.0, -1.0], [5.0, 5.0]]))
    verbs, nouns = np.array([[9.0, 0.0], [0.0, 9.0]]), np.zeros((2, 1))
    assert recognition(verbs, nouns, segments)["all_action_accuracy_at_1"] == 100
    values = recognition(verbs, nouns, segments, actions=actions)
    assert values["all_verb_accuracy_at_1"] == 100
    assert (
        values["all_action_accuracy_at_1"] == 0
    )  # the first is not the best, and the second not the first of equal ones
    assert values["all_action_accuracy_at_5"] == 100
    with pytest.raises(ValueError, match="actions has 1 rows for 2 annotated segments"):
        recognition(verbs, nouns, segments, actions=actions[:1])
    with pytest.raises(ValueError, match="actions holds 1 actions of each segment: give 5 or more"):
        recognition(verbs, nouns, segments, actions=actions.best(1))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_are_as_good_as_arrays(segments: pd.DataFrame, scores: Scores, kind: torch.dtype) -> None:
    tensors = [torch.tensor(array, dtype=kind, requires_grad=True) for array in scores]
    arrays = [tensor.detach().double().numpy() for tensor in tensors]
    assert recognition(*tensors, segments, **SUBSETS) == recognition(*arrays, segments, **SUBSETS)  # type: ignore[arg-type]
    assert anticipation(scores[0].tolist(), scores[1].tolist(), segments) == anticipation(*scores, segments)


def test_annotations_and_subsets_can_be_files(segments: pd.DataFrame, scores: Scores, tmp_path: Path) -> None:
    segments.to_csv(tmp_path / "segments.csv", index=False)
    files = {}
    for option, column in (("tail_verbs", "verb"), ("tail_nouns", "noun"), ("unseen_participants", "participant_id")):
        files[option] = tmp_path / f"{option}.csv"
        pd.DataFrame({column: SUBSETS[option]}).to_csv(files[option], index=False)
    expected = recognition(*scores, segments, **SUBSETS)
    assert recognition(*scores, str(tmp_path / "segments.csv"), **files) == expected
    tables = {option: pd.read_csv(path) for option, path in files.items()}
    assert recognition(*scores, segments, **tables) == expected
    assert recognition(*scores, segments.set_index("narration_id"), *SUBSETS.values()) == expected
    assert recognition(*scores, segments.set_index(np.arange(300) % 2), **SUBSETS) == expected


def test_values_of_unknown_and_of_empty_subsets_are_left_out(segments: pd.DataFrame, scores: Scores) -> None:
    everything = recognition(*scores, segments, **SUBSETS)
    nothing = recognition(*scores, segments)
    assert list(nothing) == [f"all_{task}_accuracy_at_{k}" for task in ("verb", "noun", "action") for k in (1, 5)]
    assert nothing.items() <= everything.items()
    some = recognition(*scores, segments, tail_nouns=SUBSETS["tail_nouns"])
    assert set(some) - set(nothing) == {"tail_noun_accuracy_at_1"}
    empty = anticipation(*scores, segments, tail_verbs=[90], tail_nouns=[], unseen_participants=["Q9"])
    assert list(empty) == ["overall_verb_mt5r", "overall_noun_mt5r", "overall_action_mt5r"]


def test_scores_that_do_not_fit_are_an_error(segments: pd.DataFrame, scores: Scores) -> None:
    verbs, nouns = scores
    with pytest.raises(
        ValueError, match="noun_scores has 299 rows for 300 annotated segments: give one row per segment"
    ):
        recognition(verbs, nouns[1:], segments)
    with pytest.raises(ValueError, match=r"verb_scores has the shape \(300,\): give \(segments, classes\)"):
        recognition(verbs[:, 0], nouns, segments)
    for value in (np.nan, np.inf):
        broken = nouns.copy()
        broken[17, 3] = value
        with pytest.raises(ValueError, match=rf"noun_scores\[17, 3\] is {value}: did the model's training diverge"):
            anticipation(verbs, broken, segments)


def test_a_class_without_scores_is_named_with_its_row(segments: pd.DataFrame, scores: Scores, tmp_path: Path) -> None:
    segments.loc[123, "noun_class"] = 11
    with pytest.raises(
        ValueError, match=r"annotations.iloc\[123\] \(Q3_01_123\): noun_class 11 is none of the 11 classes"
    ):
        recognition(*scores, segments)
    segments.to_csv(tmp_path / "segments.csv", index=False)
    with pytest.raises(ValueError, match=r"segments.csv:125 \(Q3_01_123\): noun_class 11 is none of the 11 classes"):
        anticipation(*scores, tmp_path / "segments.csv")
    with pytest.raises(ValueError, match=r"annotations.iloc\[0\]: verb_class -1 is none of the 7"):
        recognition(scores[0][:1], scores[1][:1], pd.DataFrame({"verb_class": [-1], "noun_class": [0]}))


def test_other_annotation_files_are_told_what_they_lack(segments: pd.DataFrame, scores: Scores, tmp_path: Path) -> None:
    renamed = segments.rename(columns={"verb_class": "verb", "noun_class": "noun"})
    says = "no column verb_class, noun_class; there are .*, verb, noun: is it an annotation file of another version"
    with pytest.raises(ValueError, match=says):
        recognition(*scores, renamed)
    without = segments.drop(columns="participant_id")
    assert recognition(*scores, without)["all_verb_accuracy_at_1"] > 0
    with pytest.raises(ValueError, match="no column participant_id: is it"):
        recognition(*scores, without, unseen_participants=["Q2"])
    with pytest.raises(ValueError, match="annotations: no segments"):
        recognition(*scores, segments[:0])
    segments["verb_class"] = segments["verb_class"].astype(object)
    segments.loc[5, "verb_class"] = "take"
    segments.to_csv(tmp_path / "segments.csv", index=False)
    with pytest.raises(ValueError, match=r"segments.csv:7 \(Q1_01_5\): verb_class 'take' is no whole number"):
        recognition(*scores, tmp_path / "segments.csv")


def test_files_that_cannot_be_read_are_an_error(segments: pd.DataFrame, scores: Scores, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone.csv: no such file"):
        recognition(*scores, tmp_path / "gone.csv")
    segments.to_pickle(tmp_path / "segments.pkl")
    with pytest.raises(ValueError, match=r"segments.pkl: is no CSV file .*; give one, or a table that pandas read"):
        recognition(*scores, tmp_path / "segments.pkl")
    (tmp_path / "nouns.csv").write_text("noun\n3\nx\n")
    with pytest.raises(ValueError, match=r"nouns.csv:1: no column verb; there are noun: is it the right file"):
        recognition(*scores, segments, tail_verbs=tmp_path / "nouns.csv")
    with pytest.raises(ValueError, match=r"nouns.csv:3: noun 'x' is no whole number"):
        recognition(*scores, segments, tail_nouns=tmp_path / "nouns.csv")
    with pytest.raises(ValueError, match=r"tail classes\[1\]: verb 0.5 is no whole number"):
        recognition(*scores, segments, tail_verbs=[1, 0.5])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError, match="Q2: no such file"):
        recognition(*scores, segments, unseen_participants="Q2")
