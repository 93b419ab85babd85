from __future__ import annotations

import itertools
import os
import stat
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from encode import barcode, cut, damage, indices, read_barcode, write_audio, write_image, write_video

from memvit.video import Frame, TimeSampler, VideoError, VideoReader, open_video, probe, without_password

OPEN_GOP = {"preset": "veryfast", "x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0"}
FAST_VP9 = {"deadline": "realtime", "cpu-used": "8"}

KINDS = {
    "h264.mp4": {},
    "b-frames.mp4": {"b_frames": 3, "options": {"preset": "veryfast"}},
    "open-gop.mkv": {"options": OPEN_GOP},
    "open-gop.ts": {"options": OPEN_GOP},
    "intra-refresh.mkv": {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
    "h264-b-frames.avi": {"b_frames": 2, "options": {"preset": "veryfast"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4-b-frames.avi": {"codec": "mpeg4", "b_frames": 2},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2},
    "vp9.webm": {"codec": "libvpx-vp9", "options": FAST_VP9},
    "with-sound.mp4": {"audio_s": 2.5},
    "with-sound.ts": {"audio_s": 2.5},
    "no-timestamps.h264": {"format": "h264"},
    "h264.flv": {"b_frames": 2, "options": {"preset": "veryfast"}},
}


def noisy(num_frames: int) -> list[np.ndarray]:
    """Barcodes that do not compress well, so that damage to a part of the file hits that part of the video."""
    rng = np.random.default_rng(0)
    clean = (barcode(index, 96, 144).astype(int) for index in range(num_frames))
    return [np.clip(frame + rng.integers(-30, 30, frame.shape), 0, 255).astype(np.uint8) for frame in clean]


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_comes_out_once_and_seeking_changes_nothing(tmp_path: Path, kind: str) -> None:
    path = write_video(tmp_path / kind, 60, **KINDS[kind])
    with VideoReader(path) as reader:
        whole = [(frame.time_s, read_barcode(frame.rgb())) for frame in reader]
    assert [index for _, index in whole] == list(range(60))
    assert [time_s for time_s, _ in whole] == pytest.approx([index / 30 for index in range(60)], abs=1e-3)
    assert reader.warning is None
    for start_s in (0.01, 0.4, 0.41, 1.2, 1.55, 1.95):
        with VideoReader(path, start_s) as reader:
            seen = [(frame.time_s, read_barcode(frame.rgb())) for frame in reader]
        assert seen == [frame for frame in whole if frame[0] >= start_s]


def test_range_is_half_open(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 30, fps=10)
    assert indices(VideoReader(path, 1.0, 2.0)) == list(range(10, 20))
    assert indices(VideoReader(path, 0.0, 0.05)) == [0]


def test_a_reader_can_be_read_twice(tmp_path: Path) -> None:
    with VideoReader(write_video(tmp_path / "a.mp4", 10), 0.1) as reader:
        assert indices(reader) == indices(reader) == list(range(3, 10))


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times_s = [0.0, 0.04, 0.05, 0.5, 0.533, 2.0, 2.001]
    path = write_video(tmp_path / "vfr.mkv", 7, times_s=times_s)
    assert [frame.time_s for frame in VideoReader(path)] == pytest.approx(times_s, abs=1e-9)
    assert indices(VideoReader(path, 0.5)) == [3, 4, 5, 6]


def glue(folder: Path, first_s: float, then_s: float, fps: int = 30) -> Path:
    """Two recordings, of 60 and 30 numbered frames, one behind the other; each has the clock it was made by."""
    parts = []
    pictures = [barcode(index) for index in range(90)]
    for begin_s, numbers in ((first_s, range(60)), (then_s, range(60, 90))):
        times_s = [begin_s + i / fps for i in range(len(numbers))]
        coding = {"b_frames": 2, "options": {"preset": "veryfast"}}
        path = write_video(folder / "part.ts", [pictures[i] for i in numbers], times_s=times_s, **coding)
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


# Earlier by over a minute is what FFmpeg takes for a clock of 33 bits that has run over; the last one starts amid the first.
@pytest.mark.parametrize("then_s", [40_000.0, 120.0, 20.0, 90.0, 100.5])
def test_where_the_clock_of_recordings_glued_together_jumps_it_goes_on(
    tmp_path: Path, then_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    path = glue(tmp_path, 100.0, then_s)
    with VideoReader(path) as reader:
        whole = [(frame.time_s, read_barcode(frame.rgb())) for frame in reader]
    assert [time_s for time_s, _ in whole] == pytest.approx([index / 30 for index in range(len(whole))], abs=3e-3)
    assert [index for _, index in whole] == list(range(90))
    assert "jumps from 2.0 to" in caplog.text
    assert caplog.text.count("jumps") == 1
    for start_s in (0.5, 1.9, 2.0, 2.5):
        with VideoReader(path, start_s) as reader:
            seen = [(frame.time_s, read_barcode(frame.rgb())) for frame in reader]
        assert seen == [frame for frame in whole if frame[0] >= start_s]
    sampled = []
    for shows in (None, TimeSampler[Frame](0.1).shows):
        sampler = TimeSampler[Frame](0.1)
        sampled.append(
            [read_barcode(f.rgb()) for frame in VideoReader(path).read(shows) for _, f in sampler.push(frame)]
        )
    assert sampled[0] == sampled[1]


def test_a_jump_of_the_clock_lengthens_no_video(tmp_path: Path) -> None:
    path = glue(tmp_path, 100.0, 40_000.0)
    assert probe(path).duration_s is None
    with VideoReader(path) as reader:
        assert len(list(reader)) == 90
        assert "promises" not in (reader.warning or "")


def test_a_clock_that_runs_over_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    over_s = 2**33 / 90_000
    path = write_video(tmp_path / "a.ts", 90, times_s=[over_s - 2 + i / 30 for i in range(90)])
    for start_s in (0.0, 2.0):
        frames = [(frame.time_s, read_barcode(frame.rgb())) for frame in VideoReader(path, start_s)]
        assert [index for _, index in frames] == list(range(round(start_s * 30), 90))
        assert [time_s for time_s, _ in frames] == pytest.approx([i / 30 for _, i in frames], abs=2e-3)
    assert not caplog.text


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_hours_without_a_picture_are_kept_where_times_are_edited(tmp_path: Path, name: str) -> None:
    times_s = [0, 0.1, 0.2, 7200, 7200.1, 7200.2]
    with VideoReader(write_video(tmp_path / name, 6, times_s=times_s)) as reader:
        assert [frame.time_s for frame in reader] == pytest.approx(times_s, abs=2e-3)
        assert reader.warning is None


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
@pytest.mark.parametrize("period_s", [10, 60])
def test_slow_videos_are_whole(tmp_path: Path, name: str, period_s: int) -> None:
    coding = {"b_frames": 2, "options": {"preset": "veryfast"}}
    path = write_video(tmp_path / name, 4, fps=Fraction(1, period_s), **coding)
    with VideoReader(path) as reader:
        assert [frame.time_s for frame in reader] == pytest.approx([0, period_s, 2 * period_s, 3 * period_s])
        assert reader.warning is None
    if name != "a.ts":
        assert reader.info.duration_s == pytest.approx(4 * period_s)


@pytest.mark.parametrize("kind", ["late.mkv", "late.ts"])
def test_first_frame_is_at_zero_wherever_the_timestamps_start(tmp_path: Path, kind: str) -> None:
    times_s = [7.5 + index * 0.1 for index in range(30)]
    path = write_video(tmp_path / kind, 30, times_s=times_s)
    frames = [(frame.time_s, read_barcode(frame.rgb())) for frame in VideoReader(path, 1.0)]
    assert frames[0] == (pytest.approx(1.0), 10)
    assert len(frames) == 20


def quarters(pixels: np.ndarray) -> np.ndarray:
    """The colours in the middle of the four quarters."""
    height, width = pixels.shape[:2]
    return pixels[height // 4 :: height // 2, width // 4 :: width // 2].astype(int)


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotated_and_mirrored_video_comes_out_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    stored = np.full((40, 64, 3), 100, np.uint8)
    stored[:20, :32] = (250, 10, 10)
    stored[:20, 32:] = (10, 250, 10)
    stored[20:, :32] = (10, 10, 250)
    upright = np.rot90(stored, degrees // 90)
    upright = upright[:, ::-1] if mirrored else upright
    path = write_video(tmp_path / "turned.mp4", [stored] * 3, rotation=(degrees, mirrored, False))
    with VideoReader(path) as reader:
        frame = next(iter(reader))
        info = reader.info
    assert (frame.height, frame.width) == (info.height, info.width) == upright.shape[:2]
    for shown in (frame.rgb(), frame.rgb(upright.shape[0] // 2, upright.shape[1] // 2)):
        assert np.abs(quarters(shown) - quarters(upright)).max() <= 5
    if not mirrored:
        assert info.rotation == -degrees % 360


def test_rotation_of_a_phone_video(tmp_path: Path) -> None:
    assert probe(write_video(tmp_path / "phone.mp4", 2, rotation=(-90, False, False))).rotation == 90


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("a.webm", "libvpx-vp9", "yuv420p"), ("a.mp4", "libx264", "yuv444p")]
)
def test_odd_sizes(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    options = FAST_VP9 if codec == "libvpx-vp9" else None
    path = write_video(tmp_path / name, 5, size=(33, 57), codec=codec, pix_fmt=pix_fmt, options=options)
    frames = list(VideoReader(path))
    assert {frame.rgb().shape for frame in frames} == {(33, 57, 3)}
    assert indices(frames) == list(range(5))
    assert frames[0].rgb(17, 31).shape == (17, 31, 3)


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 3, size=(48, 72), sample_aspect=Fraction(4, 3))
    with VideoReader(path) as reader:
        assert (reader.info.height, reader.info.width) == (48, 96)
        assert [frame.rgb().shape for frame in reader] == [(48, 96, 3)] * 3


def test_probe(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "a.mp4", 30, fps=Fraction(30000, 1001)))
    assert (info.path, info.width, info.height, info.codec) == (str(tmp_path / "a.mp4"), 72, 48, "h264")
    assert info.average_fps == pytest.approx(30000 / 1001)
    assert info.duration_s == pytest.approx(30 * 1001 / 30000, abs=1e-3)


def test_one_frame_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", 1)
    assert indices(VideoReader(path)) == [0]
    with pytest.raises(VideoError, match="beyond the end"):
        list(VideoReader(path, 0.5))


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    assert indices(open_video(write_image(tmp_path / "a.png", barcode(5)))) == [5]


def test_colours_survive(tmp_path: Path) -> None:
    colours = [np.full((32, 32, 3), colour, np.uint8) for colour in ((200, 30, 40), (30, 180, 60), (20, 40, 220))]
    shown = [frame.rgb() for frame in VideoReader(write_video(tmp_path / "a.mp4", colours))]
    assert np.abs(np.stack(shown).astype(int) - np.stack(colours)).max() <= 6


def test_a_frame_of_an_array() -> None:
    frame = Frame(1.5, barcode(77, 45, 90))
    assert (frame.height, frame.width) == (45, 90)
    assert read_barcode(frame.rgb(90, 180)) == 77
    with pytest.raises(ValueError, match="uint8 RGB"):
        Frame(0.0, np.zeros((4, 4))).rgb()
    with pytest.raises(ValueError, match="at least 1 pixel"):
        frame.rgb(0, 10)


@pytest.mark.parametrize("kind", ["a.mkv", "faststart.mp4", "a.avi"])
def test_truncated_video_gives_its_readable_part_and_says_so(tmp_path: Path, kind: str) -> None:
    fast = {"container_options": {"movflags": "faststart"}} if kind.endswith("mp4") else {}
    codec = {"codec": "mpeg4"} if kind.endswith("avi") else {}
    path = cut(write_video(tmp_path / kind, noisy(90), **fast, **codec), 0.5)
    with VideoReader(path) as reader:
        seen = indices(reader)
    assert seen == list(range(len(seen)))
    assert 40 <= len(seen) <= 50
    assert reader.warning is not None
    assert str(path) in reader.warning
    assert "\n" not in reader.warning
    if not kind.endswith("avi"):  # of which FFmpeg corrects the duration on opening
        assert "although the container promises 3.0 s" in reader.warning


@pytest.mark.parametrize("kind", ["a.mkv", "a.mp4", "a.ts", "a.avi"])
def test_damage_in_the_middle_costs_only_the_middle(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    codec = {"codec": "mpeg4"} if kind.endswith("avi") else {}
    path = damage(write_video(tmp_path / kind, noisy(90), **codec), 0.5, 0.55)
    with VideoReader(path) as reader:
        frames = [(frame.time_s, read_barcode(frame.rgb())) for frame in reader]
    seen = [index for _, index in frames]
    assert set(range(35)) | set(range(65, 90)) <= set(seen)
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(frames))
    assert reader.warning is not None
    assert f"{path} is damaged at 1." in reader.warning
    assert reader.warning in caplog.text
    assert next(iter(VideoReader(path, 2.5))).time_s >= 2.4


def test_shortened_range_of_a_whole_video_is_no_damage(tmp_path: Path) -> None:
    with VideoReader(write_video(tmp_path / "a.mkv", 90), 0.0, 0.5) as reader:
        list(reader)
    assert reader.warning is None


def test_sound_that_outlasts_the_pictures_is_no_damage(tmp_path: Path) -> None:
    with VideoReader(write_video(tmp_path / "a.mp4", 30, audio_s=4.0)) as reader:
        assert len(list(reader)) == 30
    assert reader.warning is None


def unreadable(tmp_path: Path, what: str) -> Path:
    path = tmp_path / f"{what}.mp4"
    match what:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "text":
            path.write_text("this is not a video\n" * 100)
        case "script":
            path = tmp_path / "notes.txt"
            path.write_text("this is not a video\n" * 100)
        case "noise":
            path.write_bytes(np.random.default_rng(0).bytes(20_000))
        case "sound":
            write_audio(path)
        case "header only":
            cut(write_video(path, noisy(10)), 0.5)
        case "unknown codec":
            data = write_video(path, 5).read_bytes()
            path.write_bytes(data.replace(b"avc1", b"zzzz"))
        case "no picture":
            data = write_video(path, noisy(3), container_options={"movflags": "faststart"}).read_bytes()
            path.write_bytes(data[: data.index(b"mdat") + 4] + bytes(len(data) - data.index(b"mdat") - 4))
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "there is no video .*: check the path"),
        ("folder", "is a folder, not a video file"),
        ("empty", r"is empty \(0 bytes\): copy or download it again"),
        ("text", "it is damaged, cut off or no video"),
        ("script", "no video|text file"),
        ("noise", "it is damaged, cut off or no video"),
        ("header only", "it is damaged, cut off or no video"),
        ("sound", "has no video stream"),
        ("unknown codec", "codec that this FFmpeg does not know: re-encode it"),
        ("no picture", "no frame of .* could be decoded"),
    ],
)
def test_what_is_no_video_is_told_in_one_line(tmp_path: Path, what: str, message: str) -> None:
    path = unreadable(tmp_path, what)
    with pytest.raises(VideoError, match=message) as caught:
        VideoReader(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 2)
    path.chmod(stat.S_IWUSR)
    with pytest.raises(VideoError, match="no permission to read"):
        VideoReader(path)


def test_ranges_without_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 10, fps=10)
    with pytest.raises(VideoError, match=r"start_s=5 is beyond the end of .* \(its last frame is at 0.90 s\)"):
        list(VideoReader(path, 5.0))
    with pytest.raises(VideoError, match=r"no frame from 0\.21 s until 0.22 s"):
        list(VideoReader(path, 0.21, 0.22))
    with pytest.raises(VideoError, match="does not come after"):
        VideoReader(path, 2.0, 1.0)
    for start_s in (-1.0, float("nan")):
        with pytest.raises(VideoError, match="not a time in a video"):
            VideoReader(path, start_s)


def test_names_that_ffmpeg_would_misread(tmp_path: Path) -> None:
    for name in ("http:video.mp4", "frame_%03d.mp4", "ünï code ✓.mp4", "-i.mp4"):
        plain = write_video(tmp_path / "plain.mp4", 3)
        assert indices(open_video(plain.rename(tmp_path / name))) == [0, 1, 2]


def test_closing_while_reading_ends_the_iteration(tmp_path: Path) -> None:
    reader = VideoReader(write_video(tmp_path / "a.mp4", 30))
    frames = iter(reader)
    next(frames)
    reader.close()
    assert list(frames) == []
    with pytest.raises(VideoError, match="was closed"):
        iter(reader)


def test_passwords_are_not_shown() -> None:
    assert without_password("rtsp://me:a/b@c@cam:554/1?x=1&Token=2") == "rtsp://me:***@cam:554/1?x=1&Token=***"
    assert without_password("http://host:8080/@user/live") == "http://host:8080/@user/live"
    assert without_password("rtsp://[::1]:554/a@b") == "rtsp://[::1]:554/a@b"
    assert without_password("dir/a:b@c.mp4") == "dir/a:b@c.mp4"
