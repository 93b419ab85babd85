from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from memvit.datasets.ava import AvaDataset
from memvit.datasets.clips import ClipTiming
from memvit.datasets.loader import StreamLoader
from memvit.models.memory import Memory
from memvit.online import BoxFile, BoxRecognizer, DetectedPersons, KeyframePrediction
from memvit.online.boxes import LOOK_SIDE, Sighting
from memvit.online.persons import Moment, Person
from memvit.video import Frame, VideoError, open_video
from online.people import ColorDetector, corners_at, write_boxes, write_people
from tiny_models import small_model


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people") / "videos"
    folder.mkdir()
    return write_people(folder / "people.mp4")


def box_model(**overrides: object) -> torch.nn.Module:
    options = {
        "task": "boxes",
        "activation": "sigmoid",
        "box_depth": 1,
        "max_boxes": 4,
        "fps": 10.0,
        "sampling_rate": 2,
    }
    return small_model(**{**options, **overrides})


def given(video: Path, times_s: list[float]) -> list[KeyframePrediction]:
    boxes = BoxFile(write_boxes(video.parent / "boxes.csv", times_s))
    with open_video(video) as reader:
        return list(BoxRecognizer(box_model()).run(reader, boxes.persons(reader.info)))


def test_predictions_are_those_of_evaluation(video: Path) -> None:
    predictions = given(video, [0.0, 1.0, 2.0, 3.0, 4.0])
    model = box_model()
    timing = ClipTiming(4, 0.2, 0.8, 2)
    dataset = AvaDataset(write_labelled(video), video.parent, timing, classes=(tuple("abcde"),), multi_label=True)
    memory: Memory | None = None
    for prediction, batch in zip(
        predictions, StreamLoader(dataset, batch_size=1, crop_size=32, training=False, keep_aspect=True), strict=True
    ):
        clips = (batch.clips.float() / 255 - 0.45) / 0.225
        assert clips.shape[-2:] == (32, 43)  # the whole picture
        with torch.no_grad():
            logits, memory = model(clips, memory, boxes=batch.boxes)
        assert len(prediction.persons) == len(logits) == len(corners_at(prediction.time_s))
        np.testing.assert_allclose(prediction.logits, logits.numpy(), atol=1e-5)


def write_labelled(video: Path) -> Path:
    """The boxes with actions, which reading annotations insists on."""
    path = video.parent / "labelled.csv"
    path.write_text(write_boxes(video.parent / "boxes.csv", [0.0, 1.0, 2.0, 3.0, 4.0]).read_text().replace(",,", ",1,"))
    return path


def test_keyframes_without_people_pass_through_memory(video: Path) -> None:
    late = given(video, [3.0, 4.0])
    assert [len(prediction.persons) for prediction in late] == [0, 0, 0, 1, 1]
    assert late[0].logits.shape == (0, 5)
    assert late[0].topk() == []
    alone = BoxFile(write_boxes(video.parent / "boxes.csv", [3.0, 4.0]))
    with open_video(video, start_s=2.6) as reader:
        fresh = list(BoxRecognizer(box_model()).run(reader, alone.persons(reader.info)))
    assert [prediction.time_s for prediction in fresh] == [3.0, 4.0]
    assert np.abs(fresh[0].logits - late[3].logits).max() > 1e-4  # the past can be told


def test_scores_follow_the_head(video: Path) -> None:
    head = box_model().config.head
    logits = np.array([[0.0, 2.0, -1.0, 0.5, 0.0]], np.float32)
    sigmoid = KeyframePrediction(0, 0.0, (Person(1, (0, 0, 1, 1)),), logits, head)
    assert sigmoid.scores == pytest.approx(1 / (1 + np.exp(-logits)))
    assert sigmoid.topk(2) == [
        [("class 1", pytest.approx(0.8808, abs=1e-4)), ("class 3", pytest.approx(0.6225, abs=1e-4))]
    ]
    softmax = KeyframePrediction(0, 0.0, (), logits, box_model(activation="softmax").config.head)
    assert softmax.scores.sum() == pytest.approx(1.0)


def test_people_are_found_tracked_and_recognised(video: Path) -> None:
    seen: list[Sighting] = []
    persons = DetectedPersons(ColorDetector(), detect_fps=2.0)
    with open_video(video) as reader:
        predictions = list(BoxRecognizer(box_model()).run(reader, persons, on_sighting=seen.append))
    assert [prediction.time_s for prediction in predictions] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [prediction.keyframe for prediction in predictions] == [0, 1, 2, 3, 4]
    assert [sighting.moment.time_s for sighting in seen] == [i / 2 for i in range(10)]
    for sighting in seen:
        expected = corners_at(sighting.moment.time_s)
        assert len(sighting.persons) == len(expected)
        found = sorted(sighting.persons, key=lambda person: person.corners[1])
        for person, corners in zip(found, expected, strict=True):
            assert person.corners == pytest.approx(corners, abs=0.02)
            assert person.score == pytest.approx(0.9)
    assert len({min(sighting.persons, key=lambda person: person.corners[1]).track for sighting in seen}) == 1
    assert persons.num_persons == 2


def test_detectors_see_the_frame_on_display_and_no_more_than_they_can_use() -> None:
    shapes: list[tuple[int, ...]] = []

    class Nobody:
        def detect(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            shapes.append((*frame.shape, int(frame[0, 0, 0])))
            return np.zeros((0, 4)), np.zeros(0)

    def frames() -> Iterator[Frame]:
        for i in range(4):
            yield Frame(0.4 * i, np.full((1200, 1000, 3), i, np.uint8))

    model = box_model(crop_size=16)
    predictions = list(BoxRecognizer(model).run(frames(), DetectedPersons(Nobody(), detect_fps=1.0)))
    assert [prediction.persons for prediction in predictions] == [(), ()]
    assert shapes == [(960, LOOK_SIDE, 3, 0), (960, LOOK_SIDE, 3, 2)]


def test_memory_and_space_do_not_grow_with_the_video() -> None:
    model = box_model(crop_size=16)
    sizes: list[int] = []

    def frames() -> Iterator[Frame]:
        for i in range(400):
            yield Frame(i / 10, np.zeros((16, 16, 3), np.uint8))

    forward = model.forward

    def measured(*args: object, **kwargs: object) -> object:
        logits, memory = forward(*args, **kwargs)
        sizes.append(sum(tensor.numel() for tensor in _tensors(memory.state_dict())))
        return logits, memory

    model.forward = measured  # type: ignore[method-assign]
    assert len(list(BoxRecognizer(model).run(frames(), DetectedPersons(ColorDetector())))) == 40
    assert len(set(sizes)) == 1


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def test_other_models_and_impossible_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="classifies clips, not boxes: use memvit predict"):
        BoxRecognizer(small_model())
    with pytest.raises(ValueError, match="has 2 heads"):
        BoxRecognizer(box_model(num_classes=(2, 3)))
    with pytest.raises(ValueError, match="sampling_rate=0"):
        BoxRecognizer(box_model(), sampling_rate=0)
    for options, says in (
        ({"every_s": 0}, "keyframe every 0 s"),
        ({"detect_fps": -1}, "detect_fps=-1"),
        ({"min_score": 2}, "score of 2"),
    ):
        with pytest.raises(ValueError, match=says):
            DetectedPersons(ColorDetector(), **options)


def test_thin_pictures_are_refused() -> None:
    frames = [Frame(0.0, np.zeros((8, 100, 3), np.uint8))]
    with pytest.raises(VideoError, match="too thin"):
        list(BoxRecognizer(box_model()).run(frames, DetectedPersons(ColorDetector())))


def test_detection_rates_hit_every_keyframe() -> None:
    def moments(**options: float) -> list[tuple[float, bool]]:
        ahead = DetectedPersons(ColorDetector(), **options).moments(10.0)
        first: list[Moment] = [next(ahead) for _ in range(4)]
        return [(pytest.approx(moment.time_s), moment.is_keyframe) for moment in first]

    assert moments(detect_fps=2) == [(10.0, True), (10.5, False), (11.0, True), (11.5, False)]
    assert moments(detect_fps=0.1) == [(10.0, True), (11.0, True), (12.0, True), (13.0, True)]
    assert moments(every_s=0.5, detect_fps=6) == [(10.0, True), (10 + 1 / 6, False), (10 + 1 / 3, False), (10.5, True)]
