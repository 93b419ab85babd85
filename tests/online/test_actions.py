"""Several heads: the actions that their classes make, and how they are written and shown."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from memvit import OnlineRecognizer
from memvit.models.config import HeadConfig
from memvit.online import ClipPrediction
from memvit.online.predict import predict_video
from memvit.online.prediction import best_combinations
from memvit.online.results import read_predictions, read_summary
from memvit.video import open_video
from memvit.video.timeline import Timeline
from tiny_models import small_model
from video.encode import write_video

NAMES = (("cut", "wash", "take"), ("tomato", "knife", "pan", "bell pepper"))
TWO_HEADS = {"num_classes": (3, 4), "class_names": NAMES, "head_names": ("verb", "noun")}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of changing greys."""
    greys = np.random.default_rng(1).integers(20, 230, (60, 1, 1, 1), np.uint8)
    pictures = [np.broadcast_to(grey, (96, 160, 3)).copy() for grey in greys]
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", pictures)


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64))
    return exp / exp.sum(axis=-1, keepdims=True)


def ranked(verbs: np.ndarray, nouns: np.ndarray) -> list[tuple[str, float]]:
    """All actions by the product of two heads' probabilities, written out."""
    pairs = itertools.product(enumerate(verbs), enumerate(nouns))
    actions = [(f"{NAMES[0][v]} {NAMES[1][n]}", float(p * q)) for (v, p), (n, q) in pairs]
    return sorted(actions, key=lambda action: -action[1])


def approx(actions: list[tuple[str, float]]) -> list[tuple[str, object]]:
    return [(label, pytest.approx(score, rel=1e-4)) for label, score in actions]


@pytest.mark.parametrize("sizes", [(97, 300), (3, 4), (1, 9), (5, 6, 7), (2, 2, 2, 2)])
@pytest.mark.parametrize("k", [1, 2, 5, 17, 60])
def test_the_best_combinations_are_those_of_the_whole_table(sizes: tuple[int, ...], k: int) -> None:
    rng = np.random.default_rng(k)
    scores = [rng.dirichlet(np.full(size, 0.3)).astype(np.float32) for size in sizes]
    table = scores[0].astype(np.float64)
    for head in scores[1:]:
        table = table[..., None] * head
    best = best_combinations(scores, k)
    assert len(best) == min(k, table.size)
    assert [score for _, score in best] == pytest.approx(np.sort(table, axis=None)[::-1][:k], rel=1e-12)
    assert all(score == pytest.approx(table[classes]) for classes, score in best)
    assert len({classes for classes, _ in best}) == len(best)


def test_equal_combinations_come_in_the_order_of_the_classes() -> None:
    best = best_combinations([np.full(3, 1 / 3), np.full(2, 1 / 2)], 9)
    assert [classes for classes, _ in best] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_an_action_is_a_class_of_each_head_and_its_score_the_product() -> None:
    recognizer = OnlineRecognizer(small_model(**TWO_HEADS))
    prediction = recognizer.push_clip(torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0)))
    expected = ranked(*map(softmax, prediction.logits))
    assert prediction.actions(5) == approx(expected[:5])
    assert prediction.actions(99) == approx(expected)
    ((verb, verb_score), *_), ((noun, noun_score), *_) = prediction.topk(1)
    assert prediction.actions(1) == approx([(f"{verb} {noun}", verb_score * noun_score)])


def test_a_frame_level_models_actions_multiply_the_means_that_its_heads_show() -> None:
    recognizer = OnlineRecognizer(small_model(**TWO_HEADS, head_task="frames"))
    prediction = recognizer.push_clip(torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0)))
    means = [softmax(logits).mean(axis=0) for logits in prediction.logits]
    assert prediction.logits[0].shape == (2, 3)
    assert prediction.actions(3) == approx(ranked(*means)[:3])
    assert [score for _, score in prediction.topk(9)[1]] == pytest.approx(np.sort(means[1])[::-1], rel=1e-5)


@pytest.mark.parametrize("head", [HeadConfig((5,)), HeadConfig((2, 3), activation="sigmoid")])
def test_one_head_or_independent_classes_make_no_actions(head: HeadConfig) -> None:
    logits = tuple(np.zeros(num, np.float32) for num in head.num_classes)
    assert ClipPrediction(0, 0, 0.0, 1.0, logits, head).actions() == []


def test_classes_without_names_are_joined_by_number() -> None:
    logits = (np.array([0.0, 9.0]), np.array([9.0, 0.0, 0.0]))
    ((label, _),) = ClipPrediction(0, 0, 0.0, 1.0, logits, HeadConfig((2, 3))).actions(1)
    assert label == "class 1 class 0"


def test_actions_are_written_beside_the_classes_of_the_heads(video: Path, tmp_path: Path) -> None:
    model = small_model(**TWO_HEADS)
    result = predict_video(OnlineRecognizer(model), video, tmp_path / "v", topk=2, overlay=True)
    expected = list(OnlineRecognizer(model).run(open_video(video)))
    lines = [json.loads(line) for line in (tmp_path / "v" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(expected) == result.num_clips == 4
    seconds: dict[str, float] = {}
    for line, prediction in zip(lines, expected, strict=True):
        actions = ranked(*map(softmax, prediction.logits))
        assert [(entry["label"], entry["score"]) for entry in line["actions"]] == approx(actions[:2])
        assert [[entry["label"] for entry in head] for head in line["topk"]] == [
            [label for label, _ in head] for head in prediction.topk(2)
        ]
        assert "about_s" not in line
        seconds[actions[0][0]] = seconds.get(actions[0][0], 0.0) + prediction.end_s - prediction.start_s
    assert result.top_action == max(seconds, key=seconds.__getitem__)
    assert (len(result.top), result.head_names, result.anticipation_s) == (2, ("verb", "noun"), 0.0)
    assert result == read_summary(tmp_path / "v")
    for record, line in zip(read_predictions(tmp_path / "v"), lines, strict=True):
        assert [label for label, _ in record.actions] == [entry["label"] for entry in line["actions"]]


def test_the_table_names_heads_as_the_model_does_and_the_action(video: Path, tmp_path: Path) -> None:
    predict_video(OnlineRecognizer(small_model(**TWO_HEADS)), video, tmp_path / "v", topk=2)
    with open(tmp_path / "v" / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["clip"] == "0"]
    assert [(row["head"], row["rank"]) for row in rows] == [
        (head, rank) for head in ("verb", "noun", "action") for rank in ("1", "2")
    ]
    assert {row["about_s"] for row in rows} == {""}


def test_given_names_of_heads_win_and_nameless_ones_are_numbered(video: Path, tmp_path: Path) -> None:
    def heads(**options: object) -> list[str]:
        predict_video(recognizer, video, tmp_path / "v", topk=1, **options)  # type: ignore[arg-type]
        with open(tmp_path / "v" / "predictions.csv", newline="") as file:
            return [row["head"] for row in csv.DictReader(file)][:3]

    recognizer = OnlineRecognizer(small_model(**TWO_HEADS))
    assert heads(head_names=("doing", "with")) == ["doing", "with", "action"]
    recognizer = OnlineRecognizer(small_model(num_classes=(3, 4)))
    assert heads() == ["head 1", "head 2", "action"]
    with pytest.raises(ValueError, match="the model has 2 heads"):
        heads(head_names=["verb"])
    with pytest.raises(ValueError, match="'action' is what the heads say together"):
        heads(head_names=["verb", "action"])


def test_the_timeline_keeps_action_and_heads_apart(video: Path, tmp_path: Path) -> None:
    kept: list[Timeline] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Timeline, "save", lambda timeline, _: kept.append(timeline))
        predict_video(OnlineRecognizer(small_model(**TWO_HEADS)), video, tmp_path / "v")
    (timeline,) = kept
    assert [head.name for head in timeline.heads] == ["action", "verb", "noun"]
    assert timeline.first_leads
    first = next(read_predictions(tmp_path / "v"))
    for head, classes in zip(timeline.heads, (first.actions, *first.topk), strict=True):
        assert head.mean_scores(classes[0][0])[0] == pytest.approx(classes[0][1], rel=1e-5)


def test_heads_of_independent_classes_are_shown_side_by_side(video: Path, tmp_path: Path) -> None:
    model = small_model(**TWO_HEADS, activation="sigmoid")
    result = predict_video(OnlineRecognizer(model), video, tmp_path / "v", overlay=True)
    assert (result.top_action, result.head_names, len(result.top)) == (None, ("verb", "noun"), 2)
    assert all(record.actions == () for record in read_predictions(tmp_path / "v"))
    with open(tmp_path / "v" / "predictions.csv", newline="") as file:
        assert {row["head"] for row in csv.DictReader(file)} == {"verb", "noun"}


def test_the_overlay_shows_the_action_of_the_clip_and_its_heads(video: Path, tmp_path: Path) -> None:
    shown: list[tuple[float, object, object]] = []

    class Spy:
        def __init__(self, *_: object, **__: object) -> None: ...

        def draw(self, rgb: np.ndarray, entries: object, *_: object, time_s: float, **more: object) -> np.ndarray:
            shown.append((time_s, entries, more["groups"]))
            assert more["heading"] == ""
            return rgb

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("memvit.online.predict.OverlayRenderer", Spy)
        predict_video(OnlineRecognizer(small_model(**TWO_HEADS)), video, tmp_path / "v", overlay=True)
    records = list(read_predictions(tmp_path / "v"))
    assert len(shown) == 60
    for time_s, entries, groups in shown:
        record = records[int(time_s / (16 / 30) + 1e-6)]
        assert entries == record.actions
        assert groups == list(zip(("verb", "noun"), record.topk, strict=True))


def test_the_panel_is_on_the_frames_of_the_overlay(video: Path, tmp_path: Path) -> None:
    predict_video(OnlineRecognizer(small_model(**TWO_HEADS)), video, tmp_path / "v", overlay=True)
    with av.open(str(tmp_path / "v" / "overlay.mp4")) as overlay, open_video(video) as source:
        for drawn, frame in zip(overlay.decode(video=0), source, strict=True):
            difference = np.abs(drawn.to_ndarray(format="rgb24").astype(int) - frame.rgb().astype(int))
            assert difference[40:70, 10:150].mean() > 8  # the panel, below the clock in a frame this narrow
            assert difference[:15, 10:100].mean() < 4  # nothing beside the clock
