from __future__ import annotations

import http.server
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from encode import barcode, read_barcode, write_video

from memvit.video import LiveSource, VideoError, VideoReader, is_live, open_video
from memvit.video.live import _Clock

Reply = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server:
    """Answers the n-th request with the n-th reply, and the last reply ever after."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[float] = []
        self.stopped = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(time.monotonic())
                reply = outer.replies[min(len(outer.requests), len(outer.replies)) - 1]
                try:
                    reply(self)
                except (BrokenPipeError, ConnectionResetError):
                    return

            def log_message(self, *_: object) -> None:
                return

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=lambda: self.http.serve_forever(0.01), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/live"

    def close(self) -> None:
        self.stopped.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def video(self, path: Path, share: float = 1.0, stall: bool = False, declared: bool = False) -> Reply:
        """Send the first part of a video, whose size is declared or not, then hang up or fall silent."""

        def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
            data = path.read_bytes()
            handler.send_response(200)
            handler.send_header("Content-Type", "video/mp2t")
            handler.send_header("Connection", "close")
            if declared:
                handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: int(share * len(data))])
            handler.wfile.flush()
            if stall:
                self.stopped.wait(20)

        return reply

    def status(self, code: int) -> Reply:
        return lambda handler: handler.send_error(code)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("live") / "small.ts", 60, codec="mpeg2video")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("live") / "large.ts", 30, codec="mpeg2video", size=(96, 144))


def test_a_dropped_connection_is_made_again_with_another_size(server: Server, small: Path, large: Path) -> None:
    server.replies = [server.video(small, 0.5), server.status(503), server.video(large), server.status(503)]
    told = []
    frames = []
    source = LiveSource(server.url, max_attempts=2, backoff_s=0.1, drop="none", on_event=told.append)
    with source, pytest.raises(VideoError, match=r"gave up on http.*/live after 2 attempts \(Server returned 5XX"):  # noqa: PT012
        for frame in source:
            frames.append((frame.time_s, frame.rgb().shape[:2], read_barcode(frame.rgb())))
    sizes = [size for size, _ in itertools.groupby(size for _, size, _ in frames)]
    assert sizes == [(48, 72), (96, 144)]
    assert [index for _, size, index in frames if size == (96, 144)] == list(range(30))
    assert 20 <= sum(size == (48, 72) for _, size, _ in frames) <= 40
    assert frames[0][0] == 0.0
    assert all(before[0] < after[0] for before, after in itertools.pairwise(frames))
    assert source.reconnects == 1
    assert source.dropped_frames == 0
    assert source.info is not None
    assert (source.info.width, source.info.height) == (144, 96)
    kinds = [event.kind for event in source.events]
    assert kinds == ["connected", "lost", "retry", "reconnected", "lost", "retry", "retry", "gave_up"]
    assert told == list(source.events)


def test_pauses_double(server: Server, small: Path) -> None:
    server.replies = [server.video(small), server.status(503)]
    source = LiveSource(server.url, max_attempts=3, backoff_s=0.1)
    with source, pytest.raises(VideoError, match="after 3 attempts"):
        list(source)
    _, first, second, third = server.requests
    assert second - first >= 0.1
    assert third - second >= 0.2


def test_a_slow_consumer_sees_the_newest_frames_and_is_told(server: Server, small: Path) -> None:
    server.replies = [server.video(small)]
    with LiveSource(server.url, max_attempts=0, drop="oldest", queue_size=4) as source:
        frames = iter(source)
        seen = [read_barcode(next(frames).rgb())]
        deadline = time.monotonic() + 5
        while source.dropped_frames < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        seen += [read_barcode(frame.rgb()) for frame in frames]
    assert seen[-4:] == [56, 57, 58, 59]
    assert len(seen) + source.dropped_frames == 60
    assert "dropped" in [event.kind for event in source.events]


def test_drop_none_keeps_every_frame(server: Server, small: Path) -> None:
    server.replies = [server.video(small)]
    seen = []
    with LiveSource(server.url, max_attempts=0, drop="none", queue_size=2) as source:
        for frame in source:
            time.sleep(0.005)
            seen.append(read_barcode(frame.rgb()))
    assert seen == list(range(60))
    assert source.dropped_frames == 0


def test_a_recording_is_read_once_and_whole(server: Server, small: Path) -> None:
    server.replies = [server.video(small, declared=True)]
    seen, times_s = [], []
    with LiveSource(server.url, drop="oldest", queue_size=2) as source:
        for frame in source:
            time.sleep(0.005)
            seen.append(read_barcode(frame.rgb()))
            times_s.append(frame.time_s)
    assert seen == list(range(60))
    assert times_s == pytest.approx([i / 30 for i in range(60)], abs=1e-3)
    assert (source.is_recording, source.dropped_frames, source.reconnects) == (True, 0, 0)
    assert [event.kind for event in source.events] == ["connected", "ended"]


def test_a_finished_playlist_is_a_recording(server: Server, small: Path) -> None:
    def playlist(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith(".ts"):
            server.video(small)(handler)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "application/vnd.apple.mpegurl")
        handler.end_headers()
        handler.wfile.write(b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nsmall.ts\n#EXT-X-ENDLIST\n")

    server.replies = [playlist]
    with LiveSource(server.url + ".m3u8", queue_size=2) as source:
        assert [read_barcode(frame.rgb()) for frame in source] == list(range(60))
    assert [event.kind for event in source.events] == ["connected", "ended"]


def test_a_recording_that_breaks_off_is_an_error_and_not_begun_again(server: Server, small: Path) -> None:
    server.replies = [server.video(small, 0.5, declared=True)]
    seen = []
    with LiveSource(server.url) as source, pytest.raises(VideoError, match=r"gave up .* broke off at \d\.\d s"):  # noqa: PT012
        for frame in source:
            seen.append(read_barcode(frame.rgb()))
    assert seen == list(range(len(seen)))
    assert 20 <= len(seen) < 60


def test_silence_is_a_broken_connection(server: Server, small: Path) -> None:
    server.replies = [server.video(small, stall=True), server.video(small, stall=True)]
    with LiveSource(server.url, drop="none", timeout_s=0.4, backoff_s=0.05) as source:
        times_s = []
        for frame in source:
            times_s.append(frame.time_s)
            if source.reconnects:
                break
    lost = next(event for event in source.events if event.kind == "lost")
    assert "no data for too long" in lost.message
    assert all(before < after for before, after in itertools.pairwise(times_s))


def test_close_does_not_wait_for_a_silent_source(server: Server, small: Path) -> None:
    server.replies = [server.video(small, stall=True)]
    source = LiveSource(server.url, timeout_s=1.5)
    next(iter(source))
    began = time.monotonic()
    source.close()
    source.close()
    assert time.monotonic() - began < 2
    assert list(source) == []


def test_close_ends_the_wait_between_attempts(server: Server) -> None:
    server.replies = [server.status(503)]
    source = LiveSource(server.url, backoff_s=30.0)
    ended = threading.Thread(target=lambda: list(source), daemon=True)
    ended.start()
    while not server.requests:
        time.sleep(0.01)
    time.sleep(0.1)
    began = time.monotonic()
    source.close()
    ended.join(2)
    assert not ended.is_alive()
    assert time.monotonic() - began < 2


def test_what_cannot_ever_work_is_not_tried_again(server: Server) -> None:
    server.replies = [server.status(404)]
    with LiveSource(server.url) as source, pytest.raises(VideoError, match=r"after 1 attempt \(.*404 Not Found"):
        list(source)
    assert len(server.requests) == 1
    with LiveSource("nonsense://camera") as source, pytest.raises(VideoError, match="Protocol not found"):
        list(source)
    with LiveSource("/dev/video99") as source, pytest.raises(VideoError, match="gave up on /dev/video99"):
        list(source)


def test_passwords_stay_secret(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    caplog.set_level("DEBUG")
    source = LiveSource(f"rtsp://admin:hunter2@127.0.0.1:{port}/1", max_attempts=2, backoff_s=0.01)
    with source, pytest.raises(VideoError) as caught:
        list(source)
    assert f"gave up on rtsp://admin:***@127.0.0.1:{port}/1 after 2 attempts" in str(caught.value)
    assert "hunter2" not in str(caught.value) + caplog.text + str(list(source.events))


def test_a_file_on_a_web_server_is_a_file(server: Server, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [barcode(index) for index in range(20)])
    server.replies = [server.video(path)]
    with open_video(f"{server.url}/a.mkv?token=secret") as reader:
        assert isinstance(reader, VideoReader)
        assert [read_barcode(frame.rgb()) for frame in reader] == list(range(20))
        assert "secret" not in reader.info.path


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("rtsp://camera/1", True),
        ("udp://239.0.0.1:1234", True),
        ("http://host/stream", True),
        ("https://host/live/index.m3u8", True),
        ("http://host/feed.ts?x=.mp4", True),
        ("https://host/film.mp4?token=1", False),
        ("HTTP://host/film.MKV", False),
        ("file:///data/film.mp4", False),
        ("/dev/video0", True),
        ("/dev/video0.mp4", False),
        ("film.mp4", False),
        ("C:/film.mp4", False),
        ("folder/images", False),
    ],
)
def test_is_live(source: str, live: bool) -> None:
    assert is_live(source) is live


def test_time_goes_on_by_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("memvit.video.live.time.monotonic", lambda: now)
    clock = _Clock()
    clock.connect(25.0)
    assert clock.time_of(5000.0) == 0.0
    now = 100.04
    assert clock.time_of(5000.04) == pytest.approx(0.04)
    now = 103.0
    clock.connect(25.0)
    assert clock.time_of(7.0) == pytest.approx(3.0)
    assert clock.time_of(7.02) == pytest.approx(3.02)
    assert clock.time_of(None) == pytest.approx(3.06)
    now = 103.2
    assert clock.time_of(7.02) == pytest.approx(3.2)  # the camera's clock was set back
    assert clock.time_of(3600.0) == pytest.approx(3.24)  # and forward
    assert clock.time_of(3600.04) == pytest.approx(3.28)


@pytest.mark.parametrize(
    "wrong", [{"drop": "newest"}, {"max_attempts": -1}, {"timeout_s": 0}, {"backoff_s": -1.0}, {"queue_size": 0}]
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        LiveSource("rtsp://camera", **wrong)
