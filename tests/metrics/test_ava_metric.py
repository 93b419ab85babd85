from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from memvit.datasets.ava_actions import action_names, evaluated_actions
from memvit.metrics.ava import AvaResult, Detections, GroundTruth, evaluate, evaluate_boxes, save_class_picture

GOLDEN = Path(__file__).parent / "ava_golden"
SIT, STAND, CRAWL = 11, 12, 2  # crawl is not evaluated

Corners = tuple[float, float, float, float]
LEFT: Corners = (0.0, 0.0, 0.4, 0.4)
RIGHT: Corners = (0.5, 0.0, 0.9, 0.4)


def truth(*rows: tuple[str, float, Corners, int]) -> GroundTruth:
    videos, seconds, corners, actions = zip(*rows, strict=True) if rows else ((), (), np.zeros((0, 4)), ())
    return GroundTruth(np.array(videos, object), np.array(seconds), np.array(corners), np.array(actions, int))


def found(*rows: tuple[str, float, Corners, float], action: int = SIT) -> Detections:
    videos, seconds, corners, scores = zip(*rows, strict=True)
    columns = np.array(scores)[:, None]
    return Detections(np.array(videos, object), np.array(seconds), np.array(corners), columns, np.array([action]))


def ap(ground_truth: GroundTruth, detections: Detections, **options: object) -> float:
    return evaluate_boxes(ground_truth, detections, **options).ap[SIT]  # type: ignore[arg-type]


def test_golden_data_agree_for_every_class() -> None:
    result = evaluate(GOLDEN / "gt.csv", GOLDEN / "detections.csv", GOLDEN / "excluded.csv")
    expected = json.loads((GOLDEN / "expected.json").read_text())
    assert result["mAP"] == pytest.approx(expected.pop("PascalBoxes_Precision/mAP@0.5IOU"), abs=1e-9)
    by_name = {name.split("AP@0.5IOU/", 1)[1]: value for name, value in expected.items()}
    assert set(by_name) == {action_names()[action] for action in evaluated_actions()}
    assert {action_names()[action]: value for action, value in result["AP"].items()} == pytest.approx(
        {name: value for name, value in by_name.items() if value is not None}, abs=1e-9
    )


def test_golden_data_tell_that_the_first_row_gets_a_box_whatever_its_score() -> None:
    by_score = evaluate(GOLDEN / "gt.csv", GOLDEN / "detections.csv", GOLDEN / "excluded.csv", match_order="scores")
    expected = json.loads((GOLDEN / "expected.json").read_text())
    assert by_score["mAP"] == pytest.approx(0.5182705026455027)
    assert by_score["mAP"] != pytest.approx(expected["PascalBoxes_Precision/mAP@0.5IOU"], abs=1e-2)


def test_a_box_that_is_found_counts_and_one_that_is_missed_costs_recall() -> None:
    boxes = truth(("v", 902, LEFT, SIT), ("v", 902, RIGHT, SIT))
    assert ap(boxes, found(("v", 902, LEFT, 0.3))) == 0.5
    assert ap(boxes, found(("v", 902, LEFT, 0.3), ("v", 902, RIGHT, 0.1))) == 1


def test_a_second_detection_of_a_box_is_false() -> None:
    boxes = truth(("v", 902, LEFT, SIT), ("v", 903, LEFT, SIT))
    detections = found(("v", 902, LEFT, 0.9), ("v", 902, LEFT, 0.8), ("v", 903, LEFT, 0.7))
    assert ap(boxes, detections) == pytest.approx((1 + 2 / 3) / 2)


def test_of_two_detections_the_first_row_or_the_higher_score_gets_the_box() -> None:
    boxes, detections = truth(("v", 902, LEFT, SIT)), found(("v", 902, LEFT, 0.8), ("v", 902, LEFT, 0.9))
    assert ap(boxes, detections, match_order="rows") == 0.5
    assert ap(boxes, detections, match_order="scores") == 1
    with pytest.raises(ValueError, match="match_order='boxes' is unknown"):
        ap(boxes, detections, match_order="boxes")


def test_a_detection_prefers_the_box_it_overlaps_most_even_if_that_is_taken() -> None:
    near = (0.1, 0.0, 0.5, 0.4)
    boxes = truth(("v", 902, LEFT, SIT), ("v", 902, near, SIT))
    nearly_left = (0.02, 0.0, 0.42, 0.4)  # IoU with the other is 2/3
    assert ap(boxes, found(("v", 902, LEFT, 0.9), ("v", 902, nearly_left, 0.8))) == 0.5
    assert ap(boxes, found(("v", 902, near, 0.9), ("v", 902, nearly_left, 0.8))) == 1


def test_of_boxes_that_are_overlapped_equally_the_first_is_meant() -> None:
    boxes = truth(("v", 902, LEFT, SIT), ("v", 902, LEFT, SIT))
    assert ap(boxes, found(("v", 902, LEFT, 0.9), ("v", 902, LEFT, 0.8))) == 0.5


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("box", "half", "less"),
    [
        (LEFT, (0.0, 0.0, 0.4, 0.2), (0.0, 0.0, 0.4, 0.199999)),
        ((0.1, 0.1, 0.3, 0.7), (0.1, 0.1, 0.3, 0.4), (0.1, 0.1, 0.3, 0.399999)),
        ((0.137, 0.211, 0.337, 0.611), (0.237, 0.211, 0.337, 0.611), (0.237001, 0.211, 0.337, 0.611)),
    ],
)
def test_an_iou_of_exactly_a_half_counts_and_the_next_smaller_does_not(
    box: Corners, half: Corners, less: Corners, dtype: type
) -> None:
    boxes = truth(("v", 902, box, SIT))
    for corners, expected in ((half, 1), (less, 0)):
        detections = found(("v", 902, corners, 0.9))
        single = Detections(**{**vars(detections), "corners": detections.corners.astype(dtype)})
        assert ap(boxes, single) == expected


def test_precision_is_raised_to_the_highest_at_more_recall() -> None:
    boxes = truth(*(("v", second, LEFT, SIT) for second in range(4)))
    rows = [("v", 0, LEFT, 0.9), ("v", 0, RIGHT, 0.8), ("v", 1, LEFT, 0.7), ("v", 2, LEFT, 0.6)]
    assert ap(boxes, found(*rows)) == pytest.approx((1 + 3 / 4 + 3 / 4) / 4)


def test_of_equal_scores_the_last_row_comes_first() -> None:
    boxes = truth(("v", 902, LEFT, SIT))
    assert ap(boxes, found(("v", 902, LEFT, 0.5), ("v", 902, RIGHT, 0.5))) == 0.5
    assert ap(boxes, found(("v", 902, RIGHT, 0.5), ("v", 902, LEFT, 0.5))) == 1


def test_boxes_match_within_their_keyframe_and_action_only() -> None:
    boxes = truth(("v", 902, LEFT, SIT), ("w", 903, RIGHT, STAND))
    for row in (("w", 902, LEFT, 0.9), ("v", 903, LEFT, 0.9), ("w", 903, RIGHT, 0.9)):
        assert ap(boxes, found(row)) == 0


def test_detections_where_nothing_is_annotated_are_false() -> None:
    boxes = truth(("v", 902, LEFT, SIT))
    assert ap(boxes, found(("elsewhere", 5, LEFT, 0.9), ("v", 902, LEFT, 0.8))) == 0.5


def test_a_box_with_several_actions_counts_for_each() -> None:
    boxes = truth(("v", 902, LEFT, SIT), ("v", 902, LEFT, STAND), ("v", 903, LEFT, STAND))
    place = (np.array(["v", "v"], object), np.array([902, 903]), np.array([LEFT, LEFT]))
    scores = np.array([[0.9, 0.1], [0.95, 0.9]])
    result = evaluate_boxes(boxes, Detections(*place, scores, np.array([SIT, STAND])))
    assert result == AvaResult(0.75, {SIT: 0.5, STAND: 1.0}, {SIT: 1, STAND: 2})
    assert result.to_dict() == {"mAP": 0.75, "AP": {SIT: 0.5, STAND: 1.0}}


def test_excluded_keyframes_count_for_nothing() -> None:
    boxes = truth(("v", 902, LEFT, SIT), ("v", 903, LEFT, SIT), ("v", 904, LEFT, STAND))
    detections = found(("v", 902, RIGHT, 0.9), ("v", 903, LEFT, 0.8))
    for second in (902, 902.0, "0902"):
        assert evaluate_boxes(boxes, detections, excluded=[("v", second), ("v", 904), ("v", 1)]).ap == {SIT: 1.0}


def test_seconds_are_the_same_however_they_are_written() -> None:
    boxes = truth(("v", 902, LEFT, SIT), ("v", 903.25, LEFT, SIT))
    for seconds in (["0902", "0903.25"], ["902.0", "903.250"], np.array([902, 903.25], np.float32)):
        detections = found(("v", 0, LEFT, 0.9), ("v", 0, LEFT, 0.8))
        assert ap(boxes, Detections(**{**vars(detections), "seconds": np.array(seconds)})) == 1


def test_classes_without_ground_truth_or_evaluation_are_left_out() -> None:
    boxes = truth(("v", 902, LEFT, STAND), ("v", 902, LEFT, CRAWL), ("v", 902, RIGHT, -1))
    assert evaluate_boxes(boxes, found(("v", 902, LEFT, 0.9))).to_dict() == {"mAP": 0.0, "AP": {STAND: 0.0}}
    for none in (truth(("v", 902, LEFT, CRAWL)), truth()):
        result = evaluate_boxes(none, found(("v", 902, LEFT, 0.9)))
        assert math.isnan(result.mean_ap)
        assert result.ap == {}


def test_with_other_classes_all_of_them_count() -> None:
    boxes, detections = truth(("v", 902, LEFT, 100), ("v", 902, LEFT, 7)), found(("v", 902, LEFT, 0.9), action=100)
    result = evaluate_boxes(boxes, detections, classes={100: "wave", 7: "nod"})
    assert result.to_dict() == {"mAP": 0.5, "AP": {7: 0.0, 100: 1.0}}
    with pytest.raises(ValueError, match=r"action_ids: 100 is no class"):
        evaluate_boxes(boxes, detections)


def test_some_of_avas_classes_leave_the_others_allowed() -> None:
    boxes = truth(("v", 902, LEFT, SIT), ("v", 902, LEFT, CRAWL), ("v", 902, LEFT, STAND))
    names = {SIT: action_names()[SIT], CRAWL: action_names()[CRAWL]}
    assert evaluate_boxes(boxes, found(("v", 902, LEFT, 0.9)), classes=names).ap == {CRAWL: 0.0, SIT: 1.0}


def test_unusable_boxes_are_left_out_and_logged_with_their_index(caplog: pytest.LogCaptureFixture) -> None:
    rows = [("v", second, LEFT, 0.9) for second in range(40)]
    rows[3] = ("v", 3, (0.4, 0.0, 0.2, 0.4), 0.9)
    rows[5] = ("v", 5, LEFT, math.nan)
    rows[6] = ("v", 6, LEFT, math.inf)
    boxes = truth(*(("v", second, LEFT, SIT) for second in range(40)))
    with caplog.at_level(logging.WARNING, "memvit.metrics.ava"):
        assert ap(boxes, found(*rows)) == 37 / 40
    reversed_box, score = caplog.messages
    assert reversed_box.startswith("detections[3]: box 0.4,0,0.2,0.4 is empty or reversed")
    assert score.startswith("detections[5]: a score is no finite number")
    assert score.endswith("2 of 40 rows have such a fault and are left out")
    with pytest.raises(ValueError, match=r"detections\[0\]: box 4,4,40,40 is not within 0 and 1: give fractions"):
        ap(boxes, found(("v", 902, (4, 4, 40, 40), 0.9)))


def test_corners_outside_by_no_more_than_rounding_are_inside() -> None:
    assert ap(truth(("v", 902, (0, 0, 1, 1), SIT)), found(("v", 902, (-1e-7, 0, 1 + 1e-7, 1), 0.9))) == 1


def test_it_is_said_if_nothing_can_match(caplog: pytest.LogCaptureFixture) -> None:
    assert ap(truth(("v", 902, LEFT, SIT)), found(("v.mp4", 902.5, LEFT, 0.9))) == 0
    assert "Detections: v.mp4 at 902.5; ground truth: v at 902" in caplog.text


@pytest.mark.parametrize("change", [{"corners": np.zeros((2, 4))}, {"scores": np.zeros((1, 2))}])
def test_arrays_whose_shapes_do_not_fit_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=f"Detections.{next(iter(change))} has the shape"):
        Detections(**{**vars(found(("v", 902, LEFT, 0.9))), **change})


def test_an_action_with_two_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="names an action twice"):
        Detections(**{**vars(found(("v", 1, LEFT, 0.9))), "scores": np.zeros((1, 2)), "action_ids": np.array([1, 1])})


@pytest.mark.parametrize("match_order", ["rows", "scores"])
@pytest.mark.parametrize("seed", range(6))
def test_random_boxes_give_what_a_plain_definition_gives(seed: int, match_order: str) -> None:
    rng = np.random.default_rng(seed)
    boxes, detections = random_boxes(rng, ties=seed % 2 == 1)
    excluded = {("v0", 3), ("v1", 5)}
    result = evaluate_boxes(boxes, detections, excluded=excluded, match_order=match_order)  # type: ignore[arg-type]
    expected = plain_evaluation(boxes, detections, excluded, match_order)
    assert len(expected) > 4
    assert result.ap == pytest.approx(expected, abs=1e-12)
    assert 0.02 < result.mean_ap < 0.98
    assert result.mean_ap == pytest.approx(np.mean(list(expected.values())))


def random_boxes(rng: np.random.Generator, ties: bool = False, num: int = 150) -> tuple[GroundTruth, Detections]:
    """Crowded keyframes, so that boxes overlap several others."""
    ids = np.array([1, 3, 4, CRAWL, SIT, STAND, 80])

    def boxes(number: int) -> list[np.ndarray]:
        low = rng.uniform(0, 0.3, (number, 2))
        corners = np.hstack([low, low + rng.uniform(0.3, 0.6, (number, 2))]).round(3)
        return [rng.choice(np.array(["v0", "v1"], object), number), rng.integers(0, 12, number), corners]

    ground_truth = GroundTruth(*boxes(num), rng.choice(ids, num))
    scores = rng.random((2 * num, len(ids))).astype(np.float32)
    return ground_truth, Detections(*boxes(2 * num), scores.round(1) if ties else scores, ids)


def plain_evaluation(
    ground_truth: GroundTruth, detections: Detections, excluded: Iterable[tuple[str, int]], match_order: str
) -> dict[int, float]:
    """The definition, one box after the other."""
    found_at: dict[int, float] = {}
    skip = set(excluded)
    for action in sorted(evaluated_actions()):
        wanted = [
            ((video, second), corners)
            for video, second, corners, number in zip(*vars(ground_truth).values(), strict=True)
            if number == action and (video, second) not in skip
        ]
        if not wanted:
            continue
        column = detections.action_ids.tolist().index(action)
        given = [
            (score, (video, second), corners)
            for video, second, corners, score in zip(
                *(detections.videos, detections.seconds, detections.corners, detections.scores[:, column]), strict=True
            )
            if (video, second) not in skip
        ]
        turns: Sequence[int] = range(len(given))
        if match_order == "scores":
            turns = sorted(turns, key=lambda i: (-given[i][0], i))
        taken, true = set(), set()
        for i in turns:
            _, place, corners = given[i]
            overlaps = [plain_iou(corners, other) if place == where else 0 for where, other in wanted]
            best = max(range(len(wanted)), key=lambda k: (overlaps[k], -k))
            if overlaps[best] >= 0.5 and best not in taken:
                taken.add(best)
                true.add(i)
        curve, hits = [], 0
        for rank, i in enumerate(sorted(range(len(given)), key=lambda i: (-given[i][0], -i)), start=1):
            hits += i in true
            curve.append((hits / len(wanted), hits / rank))
        recalls = sorted({recall for recall, _ in curve})
        steps = zip(recalls, [0.0, *recalls], strict=False)
        found_at[action] = sum(
            (recall - before) * max(precision for other, precision in curve if other >= recall)
            for recall, before in steps
        )
    return found_at


def plain_iou(one: np.ndarray, other: np.ndarray) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def test_the_picture_has_room_for_sixty_classes_for_one_and_for_none(tmp_path: Path) -> None:
    from PIL import Image

    heights = []
    for number in (0, 1, 60):
        actions = sorted(evaluated_actions())[:number]
        values = dict(zip(actions, np.linspace(0, 1, 60).tolist(), strict=False))
        result = AvaResult(0.5 if actions else math.nan, values, dict.fromkeys(actions, 1000))
        save_class_picture(result, tmp_path / "ap.png", names={1: "a $ in a name"} if number == 1 else None)
        with Image.open(tmp_path / "ap.png") as picture:
            heights.append(picture.height)
    assert heights[0] == heights[1]
    assert heights[2] / 60 > 22  # pixels per bar
