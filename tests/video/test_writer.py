import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from memvit.online.runs import redraw
from memvit.video import VideoReader, writer
from memvit.video.writer import VideoWriter


def _frames(path: Path) -> tuple[list[float], list[np.ndarray], float]:
    with av.open(os.fspath(path)) as container:
        assert container.duration is not None
        duration_s = container.duration / av.time_base
        frames = list(container.decode(video=0))
    return [frame.time for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames], duration_s


def _flat(color: tuple[int, int, int], width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def _write_ticks(path: Path, ticks: Sequence[int]) -> Path:
    """A video with frames at those times, in 1/90000 s."""
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for tick in ticks:
            frame = av.VideoFrame.from_ndarray(_flat((9, 9, 9)), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_is_written_is_read_back(tmp_path: Path, codec: str, suffix: str) -> None:
    path = tmp_path / f"video{suffix}"
    colors = [(200, 40, 30), (20, 180, 60), (30, 60, 220)] * 5
    with VideoWriter(path, 64, 48, 25, codec) as video:
        for color in colors:
            video.write(_flat(color))
    times_s, frames, duration_s = _frames(path)
    assert times_s == pytest.approx([i / 25 for i in range(15)], abs=1e-3)
    assert duration_s == pytest.approx(15 / 25, abs=2e-3)
    assert frames[0].shape == (48, 64, 3)
    for frame, color in zip(frames, colors, strict=True):
        assert frame.reshape(-1, 3).mean(axis=0) == pytest.approx(color, abs=12)
    assert os.listdir(tmp_path) == [path.name]


def test_the_codec_is_the_one_asked_for(tmp_path: Path) -> None:
    for codec in ("h264", "mpeg4"):
        with VideoWriter(tmp_path / "video.mp4", 64, 48, 25, codec) as video:
            video.write(_flat((0, 0, 0)))
        with av.open(os.fspath(tmp_path / "video.mp4")) as container:
            assert container.streams.video[0].codec_context.name == codec


def test_ntsc_rates_do_not_drift(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 16, 16, 24000 / 1001) as video:
        for _ in range(480):
            video.write(np.zeros((16, 16, 3), np.uint8))
    times_s, _, _ = _frames(tmp_path / "video.mp4")
    assert times_s[-1] == pytest.approx(479 * 1001 / 24000, abs=1e-6)


def test_variable_times_are_kept_relative_to_the_first(tmp_path: Path) -> None:
    times_s = [-0.5, -0.4, 0.25, 2.0, 2.017, 9.5]
    with VideoWriter(tmp_path / "video.mp4", 64, 48, 30) as video:
        for time_s in times_s:
            video.write(_flat((90, 90, 90)), time_s)
    read_s, _, duration_s = _frames(tmp_path / "video.mp4")
    assert read_s == pytest.approx([time_s + 0.5 for time_s in times_s], abs=1e-4)
    assert duration_s == pytest.approx(10.0 + 1 / 30, abs=2e-3)


def test_a_frame_without_a_time_follows_the_one_before(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 64, 48, 10) as video:
        for time_s in (7.0, None, 8.0, None):
            video.write(_flat((90, 90, 90)), time_s)
    assert _frames(tmp_path / "video.mp4")[0] == pytest.approx([0, 0.1, 1.0, 1.1], abs=1e-4)


@pytest.mark.parametrize(("width", "height"), [(63, 47), (1, 1), (64, 47)])
def test_odd_sizes_grow_by_one(tmp_path: Path, width: int, height: int) -> None:
    with VideoWriter(tmp_path / "video.mp4", width, height, 30) as video:
        video.write(_flat((200, 40, 30), width, height))
    _, frames, _ = _frames(tmp_path / "video.mp4")
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    assert frames[0][-1, -1].tolist() == pytest.approx([200, 40, 30], abs=6)  # the edge is repeated, not black


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    def fail_midway() -> None:
        with VideoWriter(tmp_path / "video.mp4", 64, 48, 30) as video:
            for _ in range(60):
                video.write(_flat((1, 2, 3)))
            raise RuntimeError("the caller's")

    with pytest.raises(RuntimeError, match="the caller's"):
        fail_midway()
    assert os.listdir(tmp_path) == []


def test_an_older_file_survives_an_error(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"older")

    def fail_midway() -> None:
        with VideoWriter(path, 64, 48, 30) as video:
            video.write(_flat((1, 2, 3)))
            video.write(np.zeros((48, 64, 3), np.float32))

    with pytest.raises(ValueError, match="frame 1 is float32"):
        fail_midway()
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["video.mp4"]


def test_nothing_has_the_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with VideoWriter(path, 64, 48, 30) as video:
        video.write(_flat((1, 2, 3)))
        assert not path.exists()
    assert path.exists()


def test_times_must_increase(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 64, 48, 30) as video:
        video.write(_flat((1, 2, 3)), 1.0)
        with pytest.raises(ValueError, match="not later than the frame before"):
            video.write(_flat((1, 2, 3)), 1.0)
        with pytest.raises(ValueError, match="finite"):
            video.write(_flat((1, 2, 3)), float("nan"))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_frame_at_the_very_moment_of_the_one_before_is_left_out_of_an_overlay(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"video.{suffix}"
    with VideoWriter(path, 64, 48, 60) as video:
        assert not video.coincides(1.0)
        video.write(_flat((1, 2, 3)), 1.0)
        assert video.coincides(1.0 + 1e-6)
        assert not video.coincides(1.0 + 1 / 60_000)
        assert not video.coincides(0.5)
    fine = _write_ticks(tmp_path / "fine.mp4", [3000 * group + tick for group in range(10) for tick in range(4)])
    with VideoReader(fine) as reader:
        redraw(reader, path, lambda rgb, _: rgb)
        times_s = [frame.time_s for frame in reader]
    assert len(times_s) == 40
    with VideoReader(path) as reader:
        drawn_s = [frame.time_s for frame in reader]
    assert drawn_s[0] == 0
    assert 10 <= len(drawn_s) < 40
    assert all(min(abs(drawn - time_s) for drawn in drawn_s) < 2e-3 for time_s in times_s)


def test_no_frame_no_video(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frame"), VideoWriter(tmp_path / "video.mp4", 64, 48, 30):
        pass
    assert os.listdir(tmp_path) == []


def test_a_closed_video_takes_no_frames(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 64, 48, 30) as video:
        video.write(_flat((1, 2, 3)))
    with pytest.raises(ValueError, match="closed"):
        video.write(_flat((1, 2, 3)))


@pytest.mark.parametrize(
    ("name", "size", "fps", "codec", "message"),
    [
        ("missing/video.mp4", (64, 48), 30, "h264", "does not exist"),
        ("video.txt", (64, 48), 30, "h264", r"suffix '.txt'; use .mp4"),
        ("video", (64, 48), 30, "h264", "suffix ''"),
        ("folder.mp4", (64, 48), 30, "h264", "is a folder"),
        ("a" * 300 + ".mp4", (64, 48), 30, "h264", "File name too long"),
        ("video.mp4", (0, 48), 30, "h264", "0x48"),
        ("video.mp4", (64, 48), 0, "h264", "fps=0"),
        ("video.mp4", (64, 48), float("nan"), "h264", "fps=nan"),
        ("video.mp4", (64, 48), 30, "vp9", "unknown codec 'vp9'; use one of h264, mpeg4"),
        ("video.mp4", (40_000, 40_000), 30, "h264", "cannot encode 40000x40000"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(
    tmp_path: Path, name: str, size: tuple[int, int], fps: float, codec: str, message: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        VideoWriter(tmp_path / name, *size, fps, codec)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["folder.mp4"]


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # for root every folder is writable
    with pytest.raises(ValueError, match="not writable; choose another folder"):
        VideoWriter(tmp_path / "video.mp4", 64, 48, 30)


def test_without_an_h264_encoder_mpeg4_steps_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(writer._ENCODERS, "h264", ("not-in-this-ffmpeg", "mpeg4"))
    with VideoWriter(tmp_path / "video.mp4", 64, 48, 25) as video:
        video.write(_flat((200, 40, 30)))
    with av.open(os.fspath(tmp_path / "video.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    monkeypatch.setitem(writer._ENCODERS, "h264", ("not-in-this-ffmpeg",))
    with pytest.raises(ValueError, match="this FFmpeg cannot encode h264"):
        VideoWriter(tmp_path / "other.mp4", 64, 48, 25)
    assert os.listdir(tmp_path) == ["video.mp4"]
