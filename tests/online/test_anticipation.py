"""Models that say what is coming: which answer counts, what moment it is about, and when it may be shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from memvit import MeMViT, OnlineRecognizer
from memvit.online.predict import predict_video
from memvit.online.prediction import newest_time
from memvit.online.results import read_predictions, read_summary
from memvit.video import open_video
from memvit.video.timeline import Timeline
from tiny_models import small_model
from video.encode import write_video

PERIOD_S = 4 / 30  # between two frames of a clip; a clip has 4 of them, two per token time
CLIP_S = 4 * PERIOD_S
NAMES = (("cut", "wash", "take"), ("tomato", "knife", "pan", "bell pepper"))


def anticipating(task: str = "frames", **options: Any) -> MeMViT:
    """A causal model that says which of 3 verbs and 4 nouns goes on a second later."""
    heads = {"num_classes": (3, 4), "class_names": NAMES, "head_names": ("verb", "noun")}
    return small_model(**{**heads, "causal": True, "head_task": task, "anticipation_s": 1.0, **options})


def write(path: Path, num_frames: int) -> Path:
    """Changing greys at 30 frames a second."""
    greys = np.random.default_rng(1).integers(20, 230, (num_frames, 1, 1, 1), np.uint8)
    return write_video(path, [np.broadcast_to(grey, (96, 160, 3)).copy() for grey in greys])


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds: five clips, and three frames of a sixth."""
    return write(tmp_path_factory.mktemp("video") / "v.mp4", 90)


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64))
    return exp / exp.sum(axis=-1, keepdims=True)


def test_the_newest_token_time_answers_not_the_mean_over_the_clip() -> None:
    model = anticipating()
    clip = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    prediction = OnlineRecognizer(model).push_clip(clip, start_s=10.0)
    with torch.inference_mode():
        logits, _ = model(clip[None])
    verbs, nouns = (head[0].softmax(dim=1).numpy() for head in logits)
    assert verbs.shape == (2, 3)
    for k, (said, scores) in enumerate(zip(prediction.topk(9), (verbs, nouns), strict=True)):
        assert [score for _, score in said] == pytest.approx(np.sort(scores[1])[::-1], rel=1e-5)
        assert said[0][0] == NAMES[k][scores[1].argmax()]
        assert said[0][1] != pytest.approx(scores.mean(axis=0).max(), rel=1e-3)
    ((action, score),) = prediction.actions(1)
    assert action == f"{NAMES[0][verbs[1].argmax()]} {NAMES[1][nouns[1].argmax()]}"
    assert score == pytest.approx(verbs[1].max() * nouns[1].max(), rel=1e-5)
    assert prediction.about_s == pytest.approx(10 + 3 * PERIOD_S + 1)


def test_a_clip_level_model_speaks_of_the_time_after_the_clips_end() -> None:
    clip = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    model = anticipating("clip", causal=False)
    prediction = OnlineRecognizer(model).push_clip(clip, start_s=10.0)
    assert prediction.about_s == pytest.approx(10 + CLIP_S + 1)
    assert [score for _, score in prediction.topk(9)[0]] == pytest.approx(
        np.sort(softmax(prediction.logits[0]))[::-1], rel=1e-5
    )


@pytest.mark.parametrize("task", ["clip", "frames"])
def test_a_model_that_recognises_speaks_of_no_moment(task: str, video: Path) -> None:
    recognizer = OnlineRecognizer(anticipating(task, anticipation_s=0.0))
    assert {prediction.about_s for prediction in recognizer.run(open_video(video))} == {None}


@pytest.mark.parametrize(("num_frames", "num_seen", "newest"), [(84, 1, 0), (86, 2, 0), (90, 3, 1), (96, 4, 1)])
@pytest.mark.parametrize("causal", [True, False])
def test_in_a_clip_that_was_filled_up_the_last_real_frame_answers(
    num_frames: int, num_seen: int, newest: int, causal: bool, tmp_path: Path
) -> None:
    recognizer = OnlineRecognizer(anticipating(causal=causal))
    *whole, last = recognizer.run(open_video(write(tmp_path / "v.mp4", num_frames)))
    assert len(whole) == 5
    assert last.end_s - last.start_s == pytest.approx(num_seen * PERIOD_S)
    assert last.newest == newest
    assert [score for _, score in last.topk(9)[0]] == pytest.approx(
        np.sort(softmax(last.logits[0][newest]))[::-1], rel=1e-5
    )
    last_frame = 2 * newest + 1  # of the token time
    assert last.about_s == pytest.approx(5 * CLIP_S + last_frame * PERIOD_S + 1)
    assert [p.about_s for p in whole] == pytest.approx([i * CLIP_S + 3 * PERIOD_S + 1 for i in range(5)])
    assert {p.newest for p in whole} == {1}


def test_a_clip_level_model_knows_where_the_stream_ended(tmp_path: Path) -> None:
    recognizer = OnlineRecognizer(anticipating("clip"))
    *_, last = recognizer.run(open_video(write(tmp_path / "v.mp4", 84)))
    assert last.about_s == pytest.approx(last.end_s + 1)
    assert last.about_s == pytest.approx(21 * PERIOD_S + 1)


def test_what_fills_up_the_last_clip_changes_no_answer() -> None:
    model = anticipating()
    frames = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    filled = torch.cat([frames[:, :2], frames[:, 1:2].expand(-1, 2, -1, -1)], dim=1)
    real, other = (OnlineRecognizer(model).push_clip(clip) for clip in (frames, filled))
    assert real.logits[0][0] == pytest.approx(other.logits[0][0], abs=1e-5)
    assert real.logits[0][1] != pytest.approx(other.logits[0][1], abs=1e-3)


def test_overlapping_clips_speak_of_moments_a_stride_apart(video: Path) -> None:
    recognizer = OnlineRecognizer(anticipating(), stride=2)
    about_s = [prediction.about_s for prediction in recognizer.run(open_video(video))]
    assert np.diff(about_s[:-1]) == pytest.approx([2 * PERIOD_S] * (len(about_s) - 2))


@pytest.mark.parametrize(
    ("num_seen", "num_frames", "num_times", "newest"),
    [
        (1, 16, 8, 0),
        (2, 16, 8, 0),
        (3, 16, 8, 1),
        (16, 16, 8, 7),
        (1, 4, 4, 0),
        (3, 4, 4, 2),
        (7, 32, 2, 0),
        (17, 32, 2, 1),
    ],
)
def test_a_token_time_shows_its_share_of_the_frames(
    num_seen: int, num_frames: int, num_times: int, newest: int
) -> None:
    assert newest_time(num_seen, num_frames, num_times) == newest


def test_what_is_coming_is_written_with_its_time(video: Path, tmp_path: Path) -> None:
    model = anticipating()
    result = predict_video(OnlineRecognizer(model), video, tmp_path / "v", topk=2)
    expected = list(OnlineRecognizer(model).run(open_video(video)))
    lines = [json.loads(line) for line in (tmp_path / "v" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(expected) == 6
    for i, (line, prediction) in enumerate(zip(lines, expected, strict=True)):
        verbs, nouns = (softmax(logits[1]) for logits in prediction.logits)
        assert line["topk"][0][0]["label"] == NAMES[0][verbs.argmax()]
        assert line["actions"][0]["score"] == pytest.approx(verbs.max() * nouns.max(), rel=1e-4)
        assert line["about_s"] == pytest.approx(i * CLIP_S + 3 * PERIOD_S + 1, abs=1e-6)
    assert result.anticipation_s == read_summary(tmp_path / "v").anticipation_s == 1.0
    with open(tmp_path / "v" / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["clip"] == "1"]
    assert {row["about_s"] for row in rows} == {"1.933333"}
    assert len(rows) == 6


def test_the_timeline_shows_it_around_the_moment_that_it_is_about(video: Path, tmp_path: Path) -> None:
    kept: list[Timeline] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Timeline, "save", lambda timeline, _: kept.append(timeline))
        predict_video(OnlineRecognizer(anticipating()), video, tmp_path / "v", topk=99)
    (timeline,) = kept
    records = list(read_predictions(tmp_path / "v"))
    label = records[0].topk[0][0][0]
    scores = timeline.heads[1].mean_scores(label)
    times_s = (np.arange(len(scores)) + 0.5) * timeline.bins.bin_s
    assert np.isnan(scores[times_s < 1.4 - CLIP_S / 2 - 0.04]).all()
    for record in records:
        assert record.about_s is not None
        at = int(np.abs(times_s - record.about_s).argmin())
        assert scores[at] == pytest.approx(dict(record.topk[0])[label], rel=1e-3)
    assert timeline.bins.start_s == 0
    assert timeline.bins.end_s == pytest.approx(records[-1].about_s + 3 * PERIOD_S / 2)
    assert timeline.remark == "drawn at the time that it is about, 1 s after what was seen"


def test_a_range_begins_the_timeline_where_it_begins(video: Path, tmp_path: Path) -> None:
    kept: list[Timeline] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Timeline, "save", lambda timeline, _: kept.append(timeline))
        with open_video(video, start_s=1.0, end_s=1.1) as opened:
            predict_video(OnlineRecognizer(anticipating(anticipation_s=0.01)), opened, tmp_path / "v")
    (record,) = read_predictions(tmp_path / "v")
    assert record.about_s == pytest.approx(1 + PERIOD_S + 0.01)
    assert kept[0].bins.start_s == 1.0


class Spy:
    """Takes note of what is to be drawn on every frame."""

    drawn: list[tuple[float, Any, str]]

    def __init__(self, *_: object, **__: object) -> None:
        Spy.drawn = []

    def draw(
        self, rgb: np.ndarray, entries: Any, *_: object, time_s: float, heading: str = "", **__: object
    ) -> np.ndarray:
        Spy.drawn.append((time_s, entries, heading))
        return rgb


@pytest.mark.parametrize("task", ["frames", "clip"])
def test_the_overlay_shows_nothing_before_it_was_said(
    task: str, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memvit.online.predict.OverlayRenderer", Spy)
    predict_video(OnlineRecognizer(anticipating(task)), video, tmp_path / "v", overlay=True)
    records = list(read_predictions(tmp_path / "v"))
    assert len(Spy.drawn) == 90
    for time_s, entries, heading in Spy.drawn:
        ended = [record for record in records if record.end_s <= time_s + 1e-6]
        assert entries == (ended[-1].actions if ended else ())
        assert heading.startswith("expected") == bool(ended)
    assert {time_s for time_s, entries, _ in Spy.drawn if not entries} == {i / 30 for i in range(16)}


def test_the_overlay_counts_down_to_the_moment(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memvit.online.predict.OverlayRenderer", Spy)
    model = anticipating("clip", anticipation_s=0.2)
    predict_video(OnlineRecognizer(model), video, tmp_path / "v", overlay=True)
    headings = [heading for time_s, _, heading in Spy.drawn if 16 / 30 - 1e-6 <= time_s < 32 / 30 - 1e-6]
    assert headings[0] == "expected in 0.2 s"  # a clip has just ended
    assert headings[6] == "expected now"
    assert headings[15] == "expected 0.3 s ago"
    assert Spy.drawn[32][2] == "expected in 0.2 s"


def test_one_head_anticipates_as_well(video: Path, tmp_path: Path) -> None:
    model = small_model(causal=True, head_task="frames", anticipation_s=0.5)
    result = predict_video(OnlineRecognizer(model), video, tmp_path / "v", overlay=True)
    assert (result.top_action, result.head_names, len(result.top)) == (None, (), 1)
    assert [record.about_s for record in read_predictions(tmp_path / "v")][:2] == pytest.approx([0.9, 0.9 + CLIP_S])
    with av.open(str(tmp_path / "v" / "overlay.mp4")) as overlay, open_video(video) as source:
        changed = [
            np.abs(drawn.to_ndarray(format="rgb24").astype(int) - frame.rgb().astype(int))[10:60, 10:90].mean() > 8
            for drawn, frame in zip(overlay.decode(video=0), source, strict=True)
        ]
    assert changed == [False] * 16 + [True] * 74
