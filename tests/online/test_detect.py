from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from memvit.online import BoxFile, BoxRecognizer, DetectedPersons
from memvit.online.detect import detect_video, draw_overlay
from memvit.online.detections import DetectionRecord, read_detections, read_seen_boxes
from memvit.online.persons import Person, PersonSource
from memvit.online.results import read_summary
from memvit.online.runs import Progress
from memvit.video import LiveSource, VideoError, VideoInfo, VideoReader, open_video
from memvit.video.box_overlay import PersonBox
from online.people import ColorDetector, corners_at, write_boxes, write_people
from tiny_models import small_model
from video.encode import damage, write_video

YELLOW, LIGHT_BLUE = (255, 196, 0), (64, 156, 255)  # of the first and the second person
FILES = ("detections.jsonl", "detections.csv", "boxes.csv", "overlay.mp4", "summary.json")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people") / "people.mp4")


@pytest.fixture
def recognizer() -> BoxRecognizer:
    return BoxRecognizer(small_model(task="boxes", activation="sigmoid", box_depth=1, fps=10.0, sampling_rate=2))


def detected(video: VideoReader) -> PersonSource:
    return DetectedPersons(ColorDetector())


def read_csv(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_everything_is_written(video: Path, recognizer: BoxRecognizer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = detect_video(recognizer, video, detected, tmp_path / "p", topk=2, min_score=0.0, on_progress=seen.append)
    assert result == read_summary(tmp_path / "p")
    assert (result.status, result.message, result.files) == ("complete", None, FILES)
    assert (result.num_clips, result.num_persons, result.num_boxes, result.num_frames) == (5, 2, 8, 50)
    assert (result.start_s, result.end_s) == (0.0, 4.0)
    assert [(progress.stage, progress.done_s) for progress in seen[:5]] == [("recognising", float(i)) for i in range(5)]
    assert {progress.stage for progress in seen[5:]} == {"drawing"}

    with open_video(video) as reader:
        expected = list(recognizer.run(reader, detected(reader)))
    records = list(read_detections(tmp_path / "p"))
    for record, prediction in zip(records, expected, strict=True):
        assert (record.video, record.keyframe, record.time_s) == (str(video), prediction.keyframe, prediction.time_s)
        assert [person.track for person in record.persons] == [person.track for person in prediction.persons]
        assert [person.score for person in record.persons] == pytest.approx([0.9] * len(prediction.persons))
        for actions, best in zip(record.actions, prediction.topk(2), strict=True):
            assert actions == tuple((label, pytest.approx(score, rel=1e-5)) for label, score in best)

    rows = read_csv(tmp_path / "p" / "detections.csv")
    assert [row[:2] for row in rows[::5]] == [["p", f"000{t}"] for t, n in enumerate([2, 2, 2, 1, 1]) for _ in range(n)]
    assert [int(row[6]) for row in rows] == [1, 2, 3, 4, 5] * 8
    scores = np.concatenate([prediction.scores.reshape(-1) for prediction in expected])
    np.testing.assert_allclose([float(row[7]) for row in rows], scores, rtol=1e-5)
    times = [time_s for time_s, _, _ in read_seen_boxes(tmp_path / "p")]
    assert times == [t for i in range(10) for t in [i / 2] * (2 if i < 6 else 1)]


def test_what_was_seen_can_be_given_again(video: Path, recognizer: BoxRecognizer, tmp_path: Path) -> None:
    detect_video(recognizer, video, detected, tmp_path / "p", overlay=False, first_second=900.0)
    seen = BoxFile(tmp_path / "p" / "boxes.csv", first_second=900.0)
    info = VideoInfo("p.mp4", 128, 96, 10.0, 5.0, "h264")
    again = detect_video(
        recognizer, video, lambda _: seen.persons(info), tmp_path / "again", overlay=False, first_second=900.0
    )
    assert again.num_persons == 2
    first, second = ([row[1:] for row in read_csv(tmp_path / f / "detections.csv")] for f in ("p", "again"))
    assert [row[:6] for row in first] == [row[:6] for row in second]
    assert {row[0] for row in first} == {"0900", "0901", "0902", "0903", "0904"}
    np.testing.assert_allclose([float(row[6]) for row in first], [float(row[6]) for row in second], atol=1e-3)


def test_boxes_given_now_and_then_are_followed_in_between(
    video: Path, recognizer: BoxRecognizer, tmp_path: Path
) -> None:
    boxes = BoxFile(write_boxes(tmp_path / "boxes.csv", [0.0, 2.5]))
    result = detect_video(recognizer, video, lambda video: boxes.persons(video.info), tmp_path / "p", csv_name="people")
    records = list(read_detections(tmp_path / "p"))
    assert [(record.time_s, len(record.persons)) for record in records] == [
        (0.0, 2),
        (1.0, 2),
        (2.5, 2),
        (3.5, 0),
        (4.5, 0),
    ]
    assert [person.interpolated for record in records for person in record.persons] == [False] * 2 + [True] * 2 + [
        False
    ] * 2
    assert records[1].persons[0].corners == pytest.approx(corners_at(1.0)[0], abs=1e-4)
    rows = read_csv(tmp_path / "p" / "detections.csv")
    assert [row[:2] for row in rows[::5]] == [["people", "0000"]] * 2 + [["people", "0002.5"]] * 2  # what was asked
    assert result.num_boxes == 6


def test_scores_too_low_to_matter_are_left_out(video: Path, recognizer: BoxRecognizer, tmp_path: Path) -> None:
    detect_video(recognizer, video, detected, tmp_path / "p", overlay=False, min_score=0.5)
    scores = [float(row[7]) for row in read_csv(tmp_path / "p" / "detections.csv")]
    assert scores
    assert min(scores) >= 0.5
    for options, says in (
        ({"min_score": 1.5}, "min_score=1.5"),
        ({"threshold": -1}, "threshold=-1"),
        ({"topk": 0}, "topk=0"),
    ):
        with pytest.raises(ValueError, match=says):
            detect_video(recognizer, video, detected, tmp_path / "p", **options)


def test_boxes_in_the_overlay_follow_people_and_keep_their_colours(
    video: Path, recognizer: BoxRecognizer, tmp_path: Path
) -> None:
    detect_video(recognizer, video, detected, tmp_path / "p", threshold=1.0)  # boxes and numbers only
    with av.open(str(tmp_path / "p" / "overlay.mp4")) as overlay:
        stream = overlay.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (512, 384, 50)  # enlarged to be read
        for i, frame in enumerate(overlay.decode(video=0)):
            rgb = frame.to_ndarray(format="rgb24").astype(int)
            for (x1, y1, _, y2), color in zip(corners_at(i / 10), (LIGHT_BLUE, YELLOW), strict=False):
                if (
                    i in range(22, 30) or i > 45
                ):  # one is before the other, then the blue one is gone; nobody looks again
                    continue
                left, middle = round(x1 * 512), round((0.6 * y1 + 0.4 * y2) * 384)
                edge = rgb[middle - 5 : middle + 5, max(left - 5, 0) : left + 6]
                assert (np.abs(edge - color).max(axis=2) < 90).sum() >= 10, f"no line at {i / 10} s"


def test_a_frame_shows_what_was_recognised_at_the_nearest_keyframe(
    video: Path, recognizer: BoxRecognizer, tmp_path: Path
) -> None:
    detect_video(recognizer, video, detected, tmp_path / "p", overlay=False)
    drawn: list[tuple[float, dict[int, float]]] = []

    class Spy:
        def __init__(self, *_: object, **__: object) -> None: ...

        def draw(self, rgb: np.ndarray, persons: list[PersonBox], footer: str | None, *, time_s: float) -> np.ndarray:
            drawn.append((time_s, {person.track: person.entries[0][1] for person in persons}))
            return rgb

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("memvit.online.detect.BoxOverlayRenderer", Spy)
        with open_video(video) as reader:
            draw_overlay(reader, tmp_path / "p", period_s=0.5, end_s=4.5, threshold=0.0)
    said = {
        (record.time_s, person.track): actions[0][1]
        for record in read_detections(tmp_path / "p")
        for person, actions in zip(record.persons, record.actions, strict=True)
    }
    leaving = next(track for time_s, track in said if (3.0, track) not in said)
    staying = 3 - leaving
    for time_s, shown in drawn:
        nearest = min(int(time_s + 0.5), 4)
        if abs(time_s % 1 - 0.5) > 0.01:
            assert shown[staying] == said[float(nearest), staying]
        assert (leaving in shown) == (time_s <= 2.76)
        if leaving in shown:
            assert shown[leaving] == pytest.approx(said[float(min(nearest, 2)), leaving]) or time_s % 1 == 0.5


def test_nobody_at_all_is_complete_and_says_so(recognizer: BoxRecognizer, tmp_path: Path) -> None:
    video = write_video(tmp_path / "empty.mp4", [np.full((48, 64, 3), 90, np.uint8)] * 30)
    result = detect_video(recognizer, video, detected, tmp_path / "p")
    assert (result.status, result.num_persons, result.num_boxes, result.top) == ("complete", 0, 0, ())
    assert result.message == "nobody was found"
    assert [record.persons for record in read_detections(tmp_path / "p")] == [()]
    assert read_csv(tmp_path / "p" / "detections.csv") == []
    assert (tmp_path / "p" / "overlay.mp4").exists()


def test_random_weights_are_told_everywhere(video: Path, recognizer: BoxRecognizer, tmp_path: Path) -> None:
    result = detect_video(recognizer, video, detected, tmp_path / "p", untrained=True)
    assert result.untrained
    assert all(record.untrained for record in read_detections(tmp_path / "p"))
    with av.open(str(tmp_path / "p" / "overlay.mp4")) as overlay:
        for frame in overlay.decode(video=0):
            red, _, blue = frame.to_ndarray(format="rgb24")[-14:-8, 2].mean(axis=0)
            assert red > blue + 80  # the yellow banner


def test_a_damaged_video_keeps_what_was_recognised(recognizer: BoxRecognizer, tmp_path: Path) -> None:
    pictures = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8) for i in range(60)]
    video = damage(write_video(tmp_path / "broken.mp4", pictures, fps=10), 0.4, 0.6)
    result = detect_video(recognizer, video, detected, tmp_path / "p")
    assert result.status == "partial"
    assert result.message is not None
    assert "broken.mp4 is damaged" in result.message
    assert result.num_clips >= 2
    assert result.files == FILES


def test_an_interruption_and_an_error_leave_everything_in_order(
    video: Path, recognizer: BoxRecognizer, tmp_path: Path
) -> None:
    for error, status, message in (
        (KeyboardInterrupt(), "interrupted", None),
        (RuntimeError("no\nluck"), "failed", "no luck"),
    ):

        def stop(progress: Progress, error: BaseException = error) -> None:
            if progress.done_s >= 1.0:
                raise error

        with pytest.raises(type(error)):
            detect_video(recognizer, video, detected, tmp_path / status, on_progress=stop)
        result = read_summary(tmp_path / status)
        assert (result.status, result.message, result.num_clips) == (status, message, 2)
        assert len(list(read_detections(tmp_path / status))) == 2
        assert "overlay.mp4" not in result.files


def test_nothing_recognised_leaves_nothing_behind(video: Path, recognizer: BoxRecognizer, tmp_path: Path) -> None:
    with open_video(video, start_s=50.0) as opened, pytest.raises(VideoError, match="beyond the end"):
        detect_video(recognizer, opened, detected, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_range_keeps_the_times_of_the_video(video: Path, recognizer: BoxRecognizer, tmp_path: Path) -> None:
    with open_video(video, start_s=1.5, end_s=4.0) as opened:
        result = detect_video(recognizer, opened, detected, tmp_path / "p")
    assert [record.time_s for record in read_detections(tmp_path / "p")] == [1.5, 2.5, 3.5]
    assert (result.num_frames, result.start_s, result.end_s) == (25, 1.5, 3.5)


def test_live_sources_are_refused(recognizer: BoxRecognizer, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"rtsp://camera is live, and people are found in files only: record it"):
        detect_video(recognizer, LiveSource("rtsp://camera"), detected, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_line_tells_all_and_reads_back(tmp_path: Path) -> None:
    persons = (Person(3, (0.1, 0.2, 0.3, 0.4), 0.75), Person(12, (0.5, 0.5, 1.0, 1.0), None, interpolated=True))
    record = DetectionRecord("a.mp4", 2, 2.0, persons, ((("sit", 0.5),), ()), untrained=True)
    assert DetectionRecord.from_json(record.to_json()) == record
    (tmp_path / "detections.jsonl").write_text(record.to_json() + "\n" + record.to_json()[:20])
    assert list(read_detections(tmp_path)) == [record]  # the last line is being written
    (tmp_path / "detections.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"line 1: no line of detections .* run memvit detect again"):
        list(read_detections(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no .*none\.jsonl"):
        list(read_detections(tmp_path / "none.jsonl"))
