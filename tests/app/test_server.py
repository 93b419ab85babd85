from __future__ import annotations

import base64
import csv
import dataclasses
import http.client
import http.server
import io
import json
import os
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from app.serving import Server, running
from memvit.app import Limits, Service
from memvit.app.board import FOLDER_PREFIX, Board
from memvit.online import OnlineRecognizer
from memvit.online.predict import predict_video
from memvit.online.results import read_predictions
from tiny_models import small_model
from video.encode import barcode, write_video


def clips_of(server: Server, id: str) -> list[Any]:
    return [data for kind, _, data in server.events(id) if kind == "clip"]


def test_a_video_is_recognised_as_memvit_predict_does(server: Server, videos: Path, tmp_path: Path) -> None:
    id = server.upload(videos / "ok.mp4")
    state = server.ended(id)
    assert (state["state"], state["num_clips"], state["name"], state["message"]) == ("complete", 6, "ok.mp4", None)
    predict_video(OnlineRecognizer(small_model()), videos / "ok.mp4", tmp_path / "out", topk=10)
    expected = list(read_predictions(tmp_path / "out"))
    clips = clips_of(server, id)
    assert [clip["clip"] for clip in clips] == [record.clip for record in expected]
    for clip, record in zip(clips, expected, strict=True):
        assert [(entry["label"], entry["score"]) for entry in clip["topk"][0]] == [
            (label, pytest.approx(score, rel=1e-4)) for label, score in record.topk[0]
        ]


def test_files_can_be_downloaded_and_name_the_video_as_its_visitor_does(server: Server, videos: Path) -> None:
    id = server.upload(videos / "ok.mp4", name="..%2F..%2Fetc%2Fk%C3%BCche.mp4")
    state = server.ended(id)
    assert state["name"] == "küche.mp4"
    assert state["files"] == ["predictions.jsonl", "predictions.csv", "timeline.png", "summary.json", "report.html"]
    for name in state["files"]:
        status, body, headers = server.ask(f"api/jobs/{id}/files/{name}")
        assert status == 200
        assert headers["content-disposition"].startswith("attachment")
        assert str(server.service.board.folder).encode() not in body
    rows = list(csv.DictReader(io.StringIO(server.ask(f"api/jobs/{id}/files/predictions.csv")[1].decode())))
    assert len(rows) == 6 * 5
    assert {row["video"] for row in rows} == {"küche.mp4"}
    assert server.refusal(f"api/jobs/{id}/files/..%2Fupload")[0] == 404
    assert server.refusal(f"api/jobs/{id}/files/clips")[0] == 404


def test_the_first_clip_is_the_same_without_memory_and_later_ones_are_not(server: Server, videos: Path) -> None:
    clips = clips_of(server, server.upload(videos / "ok.mp4", compare=True))
    assert clips[0]["without"]["topk"] == clips[0]["topk"]
    assert all(clip["without"]["topk"] != clip["topk"] for clip in clips[1:])


def test_who_comes_back_gets_what_was_missed(server: Server, videos: Path) -> None:
    id = server.upload(videos / "ok.mp4")
    server.ended(id)
    everything = server.events(id)
    assert [number for kind, number, _ in everything if kind == "clip"] == [1, 2, 3, 4, 5, 6]
    assert everything[-1][2]["state"] == "complete"
    assert server.events(id, last_id=4)[:2] == [event for event in everything if event[1] in (5, 6)]
    assert [kind for kind, _, _ in server.events(id, last_id=6)] == ["state"]
    status, body, _ = server.ask(f"api/jobs/{id}/events", Last_Event_ID="9" * 5000)  # none of ours
    assert (status, body.count(b"event: clip")) == (200, 6)


def test_the_uploaded_video_can_be_shown_in_parts(server: Server, videos: Path) -> None:
    id = server.upload(videos / "ok.mp4")
    status, body, headers = server.ask(f"api/jobs/{id}/video", Range="bytes=10-19")
    assert (status, body, headers["content-type"]) == (206, (videos / "ok.mp4").read_bytes()[10:20], "video/mp4")


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("text.mp4", 422, "Cannot read text.mp4 as a video"),
        ("empty.mp4", 422, "empty (0 bytes)"),
    ],
)
def test_what_is_no_video_is_refused_in_a_sentence_and_leaves_nothing(
    server: Server, videos: Path, name: str, status: int, says: str
) -> None:
    before = sorted(server.service.board.folder.iterdir())
    found, sentence = server.refusal(f"api/jobs?name={name}", (videos / name).read_bytes())
    assert found == status
    assert says in sentence
    assert str(server.service.board.folder) not in sentence
    assert sorted(server.service.board.folder.iterdir()) == before


def test_of_a_damaged_video_the_readable_part_is_recognised(server: Server, videos: Path) -> None:
    state = server.ended(server.upload(videos / "cut.mkv"))
    assert state["state"] == "partial"
    assert state["num_clips"] > 3
    assert state["message"].startswith("cut.mkv")


def test_visitors_at_the_same_time_get_what_each_gets_alone(server: Server, videos: Path) -> None:
    alone = {name: clips_of(server, server.upload(videos / name)) for name in ("ok.mp4", "short.mp4")}
    with ThreadPoolExecutor(4) as pool:
        names = ["ok.mp4", "short.mp4"] * 4
        together = list(pool.map(lambda name: clips_of(server, server.upload(videos / name)), names))
    for name, clips in zip(names, together, strict=True):
        assert len(clips) == len(alone[name])
        for clip, expected in zip(clips, alone[name], strict=True):
            scores, wanted = ({entry["label"]: entry["score"] for entry in c["topk"][0]} for c in (clip, expected))
            assert scores == pytest.approx(wanted, rel=1e-3)


def test_removing_leaves_nothing(server: Server, videos: Path) -> None:
    id = server.upload(videos / "ok.mp4")
    assert server.ask(f"api/jobs/{id}", method="DELETE")[0] == 204
    assert server.refusal(f"api/jobs/{id}")[0] == 404
    wait_until(lambda: not (server.service.board.folder / id).exists())


def test_a_video_that_does_not_tell_its_length_has_one_in_the_end(server: Server, tmp_path: Path) -> None:
    path = write_video(tmp_path / "recorded.webm", 60, codec="libvpx", container_options={"live": "1"})
    id = server.upload(path)
    told = [data["total_s"] for kind, _, data in server.events(id) if kind == "state"]
    assert set(told[:-1]) <= {None}
    assert told[-1] == pytest.approx(2.0, abs=0.05)


def test_an_upload_of_next_to_nothing_makes_room_for_others(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memvit.app.uploads.PATIENCE_S", 1.0)
    with socket.create_connection(urlsplit(server.url).netloc.split(":")) as connection:
        connection.sendall(b"POST /api/jobs?name=x.mp4 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(10):  # it never stands still
            connection.sendall(b"0")
            time.sleep(0.2)
        connection.settimeout(10)
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    assert "receiving" not in server.service.board.counts()


def test_an_upload_that_breaks_off_leaves_nothing(server: Server) -> None:
    before = sorted(server.service.board.folder.iterdir())
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.putrequest("POST", "/api/jobs?name=x.mp4")
    connection.putheader("Content-Length", "1000000")
    connection.endheaders()
    connection.send(b"0" * 1000)
    wait_until(lambda: len(list(server.service.board.folder.iterdir())) > len(before))
    connection.close()
    wait_until(lambda: sorted(server.service.board.folder.iterdir()) == before)


def test_whoever_runs_it_sees_how_it_is(server: Server, videos: Path) -> None:
    server.ended(server.upload(videos / "short.mp4"))
    assert server.json("healthz") == {"status": "ok"}
    lines = server.ask("metrics")[1].decode().splitlines()
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}
    assert values["memvit_clips_total"] >= 2
    assert values['memvit_ended_total{state="complete"}'] >= 1
    assert values["memvit_step_seconds_count"] > 0
    assert values["process_resident_memory_bytes"] > 1e7


def test_pages_of_other_sites_cannot_send_anything(server: Server, videos: Path) -> None:
    data = (videos / "short.mp4").read_bytes()
    assert server.refusal("api/jobs", data, Sec_Fetch_Site="cross-site")[0] == 403
    for origin in ("http://evil.example", "http://[::1", "null"):
        assert server.refusal("api/jobs", data, Origin=origin)[0] == 403
    assert server.json("api/jobs", data, Origin=server.url)["id"]


def test_the_page_runs_no_foreign_script(server: Server) -> None:
    _, _, headers = server.ask("")
    assert "script-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_addresses_are_opened_only_where_that_is_allowed(server: Server) -> None:
    asked = json.dumps({"source": "rtsp://127.0.0.1:1/x"}).encode()
    assert server.refusal("api/jobs/source", asked, Content_Type="application/json")[0] == 403


def picture_of(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(barcode(index)).save(buffer, "JPEG")
    return buffer.getvalue()


def frames_of(first: int, count: int, fps: float = 7.5) -> bytes:
    pictures = [(i / fps, picture_of(i)) for i in range(first, first + count)]
    return b"".join(struct.pack("<dI", time_s, len(jpeg)) + jpeg for time_s, jpeg in pictures)


def test_a_camera_is_recognised_while_it_sends(server: Server) -> None:
    id = server.json("api/jobs/camera", b"{}", Content_Type="application/json")["id"]
    server.until(id, lambda state: state["state"] == "running")
    assert server.json(f"api/jobs/{id}/frames", frames_of(0, 9)) == {"received": 9, "skipped": 0}
    server.until(id, lambda state: state["num_clips"] == 2)
    status, body, headers = server.ask(f"api/jobs/{id}/picture")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(body)).size == (32, 32)
    # A request whose answer was lost is sent again.
    assert server.json(f"api/jobs/{id}/frames", frames_of(5, 8)) == {"received": 4, "skipped": 4}
    server.json(f"api/jobs/{id}/stop", b"")
    state = server.ended(id)
    assert state["state"] == "complete"
    assert [clip["clip"] for clip in clips_of(server, id)] == [0, 1, 2, 3]
    assert server.refusal(f"api/jobs/{id}/frames", frames_of(20, 1))[0] == 409


def sent(jpeg: bytes) -> bytes:
    return struct.pack("<dI", 0.0, len(jpeg)) + jpeg


def declared(jpeg: bytes, side: int) -> bytes:
    """The same data, said to be a picture of that size."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]


@pytest.mark.parametrize(
    "body",
    [
        *(b"x", sent(b"abcde")[:-2], sent(b"abcde"), sent(picture_of(0)[:300])),
        *(sent(declared(picture_of(0), side)) for side in (2000, 10000, 65000)),
        sent(picture_of(0)) * 65,
    ],
)
def test_pictures_that_are_none_are_refused(server: Server, body: bytes) -> None:
    id = server.json("api/jobs/camera", b"{}", Content_Type="application/json")["id"]
    assert server.refusal(f"api/jobs/{id}/frames", body)[0] == 400
    server.ask(f"api/jobs/{id}", method="DELETE")


def wait_until(condition: Any, timeout_s: float = 10.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


class SlowModel(torch.nn.Module):
    """Stands where a model's last layer does, and takes its time."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.may_go = threading.Event()

    def forward(self, *inputs: Any) -> Any:
        self.may_go.wait(30)
        return self.layer(*inputs)


def test_videos_beyond_the_limits_wait_or_are_sent_away(videos: Path, tmp_path: Path) -> None:
    model = small_model()
    service = Service(model, "slow", limits=Limits(running=1, waiting=2), folder=str(tmp_path))
    slow = model.head = SlowModel(model.head)
    with running(service) as server:
        ids = [server.upload(videos / "ok.mp4") for _ in range(3)]
        states = [server.json(f"api/jobs/{id}") for id in ids]
        assert [state["state"] for state in states] == ["running", "waiting", "waiting"]
        assert [state["position"] for state in states] == [0, 1, 2]
        status, sentence = server.refusal("api/jobs", (videos / "ok.mp4").read_bytes())
        assert status == 503
        assert "busy" in sentence
        server.json(f"api/jobs/{ids[1]}/stop", b"")
        assert server.json(f"api/jobs/{ids[1]}")["state"] == "stopped"
        server.json(f"api/jobs/{ids[0]}/stop", b"")
        slow.may_go.set()
        stopped = server.ended(ids[0])
        assert stopped["state"] == "stopped"
        assert stopped["num_clips"] < 6
        assert server.ended(ids[2])["state"] == "complete"
    assert list(tmp_path.iterdir()) == []


def test_limits_of_size_and_duration_are_told(videos: Path, tmp_path: Path) -> None:
    limits = Limits(upload_bytes=50_000, duration_s=2.0, pixels=100_000)
    (tmp_path / "temporary").mkdir()
    write_video(tmp_path / "large.mp4", [np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)] * 20)
    write_video(tmp_path / "wide.mp4", [np.zeros((256, 512, 3), np.uint8)] * 10)
    with running(Service(small_model(), "m", limits=limits, folder=str(tmp_path / "temporary"))) as server:
        status, sentence = server.refusal("api/jobs?name=large.mp4", (tmp_path / "large.mp4").read_bytes())
        assert (status, sentence) == (413, "This file is too large: the server takes up to 50 kB.")
        status, sentence = server.refusal("api/jobs?name=ok.mp4", (videos / "ok.mp4").read_bytes())
        assert status == 422
        assert "ok.mp4 lasts 0.1 minutes" in sentence
        status, sentence = server.refusal("api/jobs?name=wide.mp4", (tmp_path / "wide.mp4").read_bytes())
        assert status == 422
        assert "wide.mp4 has pictures of 512x256: at most 100,000 pixels" in sentence
        assert server.ended(server.upload(videos / "short.mp4"))["state"] == "complete"


def test_results_are_removed_after_their_time_and_when_there_are_too_many(videos: Path, tmp_path: Path) -> None:
    with running(Service(small_model(), "m", limits=Limits(kept=1), folder=str(tmp_path))) as server:
        first = server.upload(videos / "short.mp4")
        server.ended(first)
        second = server.upload(videos / "short.mp4")
        server.ended(second)
        wait_until(lambda: server.ask(f"api/jobs/{first}")[0] == 404)
        assert server.ask(f"api/jobs/{second}")[0] == 200
        server.service.board.limits = dataclasses.replace(server.service.limits, keep_s=0.1)
        wait_until(lambda: server.ask(f"api/jobs/{second}")[0] == 404)


def test_a_camera_that_falls_silent_ends(tmp_path: Path) -> None:
    with running(Service(small_model(), "m", limits=Limits(silent_s=2.0), folder=str(tmp_path))) as server:
        id = server.json("api/jobs/camera", b"{}", Content_Type="application/json")["id"]
        server.until(id, lambda state: state["state"] == "running")
        server.json(f"api/jobs/{id}/frames", frames_of(0, 5))
        assert server.ended(id)["state"] == "complete"
        assert server.json(f"api/jobs/{id}")["num_clips"] == 2


def test_an_address_is_opened_and_a_wrong_one_explained(videos: Path, tmp_path: Path) -> None:
    with running(Service(small_model(), "m", sources=True, folder=str(tmp_path))) as server:

        def start(source: str) -> tuple[int, bytes, dict[str, str]]:
            return server.ask(
                "api/jobs/source", json.dumps({"source": source}).encode(), Content_Type="application/json"
            )

        assert start("/etc/passwd")[0] == 422
        assert start("file:///etc/passwd")[0] == 422
        assert start("concat:a|b")[0] == 422
        assert start(server.url.replace("http", "HTTP") + "/nothing")[0] == 201
        wrong = server.url.replace("//", "//user:secret@") + "/nothing"
        state = server.ended(json.loads(start(wrong)[1])["id"])
        assert state["state"] == "failed"
        assert f"{server.url}/nothing" in state["message"].replace("user:***@", "")
        assert "secret" not in json.dumps(state)
        id = json.loads(start(f"{server.url}/api/jobs/{server.upload(videos / 'ok.mp4')}/video")[1])["id"]
        server.until(id, lambda state: state["num_clips"] > 0)
        state = server.json(f"api/jobs/{id}")
        assert (state["has_video"], state["name"].startswith(server.url)) == (False, True)
        assert server.ask(f"api/jobs/{id}/picture")[2]["content-type"] == "image/jpeg"
        assert server.ended(id)["state"] == "complete"  # by itself: it is a recording
        assert "report.html" not in server.json(f"api/jobs/{id}")["files"]


def test_a_stream_that_is_lost_says_so_until_it_is_back(videos: Path, tmp_path: Path) -> None:
    """The first connection ends early, the second is refused, the third is as the first."""
    data = write_video(tmp_path / "a.ts", 60, codec="mpeg2video").read_bytes()
    goes_on = threading.Event()

    class Camera(http.server.BaseHTTPRequestHandler):
        num_requests = 0

        def do_GET(self) -> None:
            Camera.num_requests += 1
            if Camera.num_requests > 1 and not goes_on.is_set():
                self.send_error(503)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)
            if goes_on.is_set():
                time.sleep(1)  # so that it is seen to be there

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as camera:
        threading.Thread(target=camera.serve_forever, args=(0.01,), daemon=True).start()
        (tmp_path / "temporary").mkdir()
        with running(Service(small_model(), "m", sources=True, folder=str(tmp_path / "temporary"))) as server:
            asked = json.dumps({"source": f"http://127.0.0.1:{camera.server_port}/live"}).encode()
            id = server.json("api/jobs/source", asked, Content_Type="application/json")["id"]
            trouble = server.until(id, lambda state: state["trouble"])["trouble"]
            assert re.fullmatch(r"(Lost|No frames from) http://127\.0\.0\.1:\d+/live \(.*\).* Trying again\.", trouble)
            goes_on.set()
            server.until(id, lambda state: not state["trouble"])
            server.json(f"api/jobs/{id}/stop", b"")
            assert server.ended(id)["trouble"] == ""
        camera.shutdown()


def test_a_password_is_asked_for_and_names_are_checked(tmp_path: Path) -> None:
    service = Service(small_model(), "m", folder=str(tmp_path))
    with running(service, password="sesame", allowed_hosts=["127.0.0.1"]) as server:
        assert server.ask("healthz")[0] == 200
        status, _, headers = server.ask("api/about")
        assert (status, headers["www-authenticate"].split()[0]) == (401, "Basic")
        assert server.ask("metrics")[0] == 401
        for given, expected in (("x:wrong", 401), ("x:sesame", 200)):
            assert (
                server.ask("api/about", Authorization=f"Basic {base64.b64encode(given.encode()).decode()}")[0]
                == expected
            )
        assert server.refusal("api/about", Host="evil.example")[0] == 400


def test_an_unforeseen_error_is_in_the_log_and_others_notice_nothing(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    with running(Service(model, "m", folder=str(tmp_path))) as server:
        head, model.head = model.head, torch.nn.Linear(1, 1)
        state = server.ended(server.upload(videos / "ok.mp4"))
        assert state["state"] == "failed"
        assert state["message"] == "Something went wrong on the server; its log has the details."
        assert "mat1 and mat2" in caplog.text or "shapes" in caplog.text
        model.head = head
        assert server.ended(server.upload(videos / "ok.mp4"))["state"] == "complete"


def test_a_service_that_cannot_be_leaves_no_thread_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    for options in ({"stride": 0}, {"head_names": ("a",)}):
        with pytest.raises(ValueError, match=r"stride=0|heads"):
            Service(small_model(num_classes=(2, 3)), "m", folder=str(tmp_path), **options)
    assert set(threading.enumerate()) <= before
    assert list(tmp_path.iterdir()) == []


def test_whatever_goes_wrong_on_opening_frees_the_place_of_the_next(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(Service(small_model(), "m", limits=Limits(running=1), folder=str(tmp_path))) as server:
        with monkeypatch.context() as broken:
            broken.setattr(Service, "_open", lambda *_: 1 / 0)
            state = server.ended(server.upload(videos / "ok.mp4"))
        assert (state["state"], state["message"]) == (
            "failed",
            "Something went wrong on the server; its log has the details.",
        )
        assert server.ended(server.upload(videos / "ok.mp4"))["state"] == "complete"


def test_files_of_a_server_that_was_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)
    (tmp_path / f"{FOLDER_PREFIX}{process}-abc" / "job").mkdir(parents=True)
    own = tmp_path / f"{FOLDER_PREFIX}{os.getpid()}-abc"
    own.mkdir()
    board = Board(Limits(), lambda job: job.end("complete"), str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([own, board.folder])
    board.close()
