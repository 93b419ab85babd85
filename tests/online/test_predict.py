from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from memvit import OnlineRecognizer
from memvit.online.predict import draw_overlay, predict_video
from memvit.online.results import read_predictions, read_summary
from memvit.online.runs import Progress
from memvit.video import VideoError, open_video
from memvit.video.live import LiveSource
from tiny_models import small_model
from video.encode import write_image, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds, odd in size: 61 x 97 pixels."""
    grey = np.random.default_rng(0).integers(60, 200, (90, 1, 1, 1), np.uint8)
    frames = [np.broadcast_to(shade, (61, 97, 3)).copy() for shade in grey]
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", frames, pix_fmt="yuv444p")


@pytest.fixture
def recognizer() -> OnlineRecognizer:
    return OnlineRecognizer(small_model())


def test_what_is_written_is_what_the_recognizer_says(video: Path, recognizer: OnlineRecognizer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = predict_video(recognizer, video, tmp_path / "v", topk=3, on_progress=seen.append)
    expected = list(OnlineRecognizer(small_model()).run(open_video(video)))
    records = list(read_predictions(tmp_path / "v"))
    assert len(records) == len(expected) == len(seen) == result.num_clips == 6
    for record, prediction in zip(records, expected, strict=True):
        ((label, score), *rest) = record.topk[0]
        assert (label, score) == (prediction.topk(1)[0][0][0], pytest.approx(prediction.topk(1)[0][0][1], rel=1e-5))
        assert len(rest) == 2
        assert (record.start_s, record.end_s) == pytest.approx((prediction.start_s, prediction.end_s), abs=1e-6)
    assert result == read_summary(tmp_path / "v")
    assert (result.status, result.num_frames, result.start_s) == ("complete", 90, 0.0)
    assert result.files == ("predictions.jsonl", "predictions.csv", "timeline.png", "summary.json")
    assert [progress.done_s for progress in seen] == pytest.approx([record.end_s for record in records], abs=1e-6)
    assert seen[-1].total_s == pytest.approx(3.0)
    assert recognizer.streams == []


def test_a_range_keeps_the_times_of_the_video(video: Path, recognizer: OnlineRecognizer, tmp_path: Path) -> None:
    with open_video(video, start_s=1.0, end_s=2.0) as opened:
        result = predict_video(recognizer, opened, tmp_path / "v", overlay=True)
    records = list(read_predictions(tmp_path / "v"))
    assert [record.start_s for record in records] == pytest.approx([1.0, 1.533333], abs=1e-6)
    assert (result.num_frames, result.start_s) == (30, 1.0)
    with av.open(str(tmp_path / "v" / "overlay.mp4")) as overlay:
        assert overlay.streams.video[0].frames == 30


def test_frames_of_the_overlay_show_their_clip(video: Path, recognizer: OnlineRecognizer, tmp_path: Path) -> None:
    predict_video(recognizer, video, tmp_path / "v")
    drawn: list[tuple[float, str | None]] = []

    class Spy:
        def __init__(self, *_: object, **__: object) -> None: ...

        def draw(
            self, rgb: np.ndarray, entries: list[tuple[str, float]], *_: object, time_s: float, heading: str = ""
        ) -> object:
            assert not heading
            drawn.append((time_s, f"{entries[0][1]:.4f}" if entries else None))
            return rgb

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("memvit.online.predict.OverlayRenderer", Spy)
        with open_video(video) as opened:
            draw_overlay(opened, tmp_path / "v")
    tops = [f"{record.topk[0][0][1]:.4f}" for record in read_predictions(tmp_path / "v")]
    assert len(set(tops)) > 1
    assert [top for _, top in drawn] == [tops[int(time_s / (16 / 30) + 1e-6)] for time_s, _ in drawn]
    with av.open(str(tmp_path / "v" / "overlay.mp4")) as overlay:
        stream = overlay.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (98, 62, 90)  # even sizes are the codec's wish


def test_untrained_weights_are_on_every_frame_of_the_overlay(
    video: Path, recognizer: OnlineRecognizer, tmp_path: Path
) -> None:
    predict_video(recognizer, video, tmp_path / "v", untrained=True, overlay=True)
    assert all(record.untrained for record in read_predictions(tmp_path / "v"))
    with av.open(str(tmp_path / "v" / "overlay.mp4")) as overlay:
        for frame in overlay.decode(video=0):
            red, _, blue = frame.to_ndarray(format="rgb24")[-8:-4, 2].mean(axis=0)
            assert red > blue + 80  # the yellow banner


def test_an_interruption_leaves_everything_in_order(video: Path, recognizer: OnlineRecognizer, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done_s > 1.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_video(recognizer, video, tmp_path / "v", overlay=True, on_progress=interrupt)
    result = read_summary(tmp_path / "v")
    assert (result.status, result.num_clips, result.message) == ("interrupted", 3, None)
    assert len(list(read_predictions(tmp_path / "v"))) == 3
    assert result.files == ("predictions.jsonl", "predictions.csv", "timeline.png", "summary.json")
    assert recognizer.streams == []
    assert predict_video(recognizer, video, tmp_path / "again").num_clips == 6


def test_an_error_on_the_way_keeps_what_was_recognised(
    video: Path, recognizer: OnlineRecognizer, tmp_path: Path
) -> None:
    def fail(progress: Progress) -> None:
        if progress.done_s > 1.0:
            raise RuntimeError("no\nluck")

    with pytest.raises(RuntimeError):
        predict_video(recognizer, video, tmp_path / "v", on_progress=fail)
    result = read_summary(tmp_path / "v")
    assert (result.status, result.num_clips, result.message) == ("failed", 2, "no luck")


def test_nothing_recognised_leaves_nothing_behind(video: Path, recognizer: OnlineRecognizer, tmp_path: Path) -> None:
    with open_video(video, start_s=50.0) as opened, pytest.raises(VideoError, match="beyond the end"):
        predict_video(recognizer, opened, tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_read_make_a_result_partial(recognizer: OnlineRecognizer, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(6):
        write_image(tmp_path / "images" / f"{i}.png", np.full((32, 40, 3), 40 * i, np.uint8))
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    result = predict_video(recognizer, tmp_path / "images", tmp_path / "v")
    assert result.status == "partial"
    assert result.message is not None
    assert "3.png" in result.message
    assert result.num_frames == 5


def test_live_sources_have_no_overlay_and_topk_no_zero(recognizer: OnlineRecognizer, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="cannot be read a second time"):
        predict_video(recognizer, LiveSource("rtsp://camera"), tmp_path, overlay=True)
    with pytest.raises(ValueError, match="topk=0"):
        predict_video(recognizer, LiveSource("rtsp://camera"), tmp_path, topk=0)
