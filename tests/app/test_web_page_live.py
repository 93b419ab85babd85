"""The page while something is live, and while connections break: in a real browser, with a real server and a small model."""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from app.pages import (  # noqa: F401
    NUM_CLIPS,
    Cable,
    Gate,
    gate,
    gate_and_server,
    give,
    hide,
    page_server,
    visit,
    wait_for_end,
    wait_for_text,
)
from app.serving import Server
from browser import chromium, chromium_with_camera  # noqa: F401
from memvit.app.camera import write_picture
from memvit.app.server import GONE
from report.pages import wait_until


def test_after_a_lost_connection_nothing_is_missing_or_doubled(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(6)
    cable = Cable(page_server.url)
    with contextlib.closing(cable), visit(chromium, cable.url, ["net::ERR_"]) as page:
        give(page, videos / "ok.mp4")
        wait_for_text(page, "#state", "0.8 s of 3 s")
        id = urlsplit(page.url).fragment.removeprefix("job=")
        for num_before, num_clips, shown in ((6, 12, "0.8 s of 3 s"), (12, NUM_CLIPS, "1.6 s of 3 s")):
            cable.cut()
            wait_for_text(page, "#connection", "The connection to the server is lost; trying again.")
            gate.let_pass(num_clips - num_before)
            page_server.until(id, lambda state, wanted=num_clips: state["num_clips"] >= wanted)
            assert shown in page.locator("#state").inner_text()
            cable.mend()
            if num_clips == NUM_CLIPS:
                page.evaluate("dispatchEvent(new Event('online'))")  # then it does not wait, and everything comes again
            else:
                wait_for_text(page, "#state", "1.6 s of 3 s")
                assert page.locator("#connection").is_hidden()
        assert f"in {NUM_CLIPS} clips" in wait_for_end(page)
        assert page.locator("#connection").is_hidden()


def test_a_connection_that_breaks_after_the_upload_loses_nothing(
    chromium: Any,
    page_server: Server,
    videos: Path,
) -> None:
    with visit(chromium, page_server.url, ["net::ERR_"]) as page:
        page.route("**/api/jobs/*", lambda route: route.abort())
        give(page, videos / "short.mp4")
        wait_for_text(page, "#alert", "The server cannot be reached. Is the connection lost? Trying again…")
        assert "#job=" in page.url
        assert page.locator("#video").is_visible()
        page.unroute("**/api/jobs/*")
        assert wait_for_end(page).startswith("Recognised short.mp4")
        assert page.locator("#alert").is_hidden()


def test_a_server_that_was_started_anew_says_so_itself(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(6)
    cable = Cable(page_server.url)
    with contextlib.closing(cable), visit(chromium, cable.url, ["net::ERR_", "status of 404"]) as page:
        give(page, videos / "ok.mp4")
        wait_for_text(page, "#state", "0.8 s of 3 s")
        cable.cut()
        said = wait_for_text(page, "#connection", "is lost")
        assert said == "The connection to the server is lost; trying again."  # and nothing that it cannot know
        page_server.ask(f"api/jobs/{urlsplit(page.url).fragment.removeprefix('job=')}", method="DELETE")
        gate.open()
        cable.mend()
        wait_for_text(page, "#told", GONE)
        page.go_back()
        assert urlsplit(page.url).fragment == ""


def test_tabs_that_nobody_sees_leave_the_connections_to_the_others(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(6)
    id = page_server.upload(videos / "ok.mp4")
    job = page_server.service.board.get(id)
    assert job is not None
    with visit(chromium, f"{page_server.url}/#job={id}") as first:
        wait_for_text(first, "#state", "0.8 s of 3 s")
        for _ in range(6):  # with the first, one more than a browser has connections
            other = first.context.new_page()
            other.goto(f"{page_server.url}/#job={id}")
            wait_for_text(other, "#state", "0.8 s of 3 s")
            hide(other, True)
        hide(first, True)
        first.click("#stop")
        assert job.stopping.wait(10)
        gate.open()
        page_server.ended(id)
        assert job.watchers == 0
        assert first.locator("#results").is_hidden()
        hide(first, False)
        assert wait_for_end(first).startswith("Stopped: the first 0.8 s of ok.mp4")
        hide(first, True)
        hide(first, False)
        assert first.locator("#connection").is_hidden()


def test_a_server_that_does_not_answer_is_told(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(6)
    with visit(chromium, page_server.url) as page:
        give(page, videos / "ok.mp4")
        wait_for_text(page, "#state", "0.8 s of 3 s")
        page.evaluate("(limit => { AbortSignal.timeout = () => limit(200); })(AbortSignal.timeout.bind(AbortSignal))")
        page.route("**/stop", lambda route: None)
        page.click("#stop")
        wait_for_text(page, "#alert", "The server has not answered for 30 s.")
        assert page.locator("#stop").is_enabled()
        gate.open()
        wait_for_end(page)


def test_who_has_to_wait_is_told_the_place_in_line(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(0)
    ids = [page_server.upload(videos / "short.mp4") for _ in range(page_server.service.limits.running + 2)]
    with visit(chromium, f"{page_server.url}/#job={ids[-1]}") as page:
        wait_for_text(page, "#state", "Waiting to begin: number 2 in line")
        page_server.ask(f"api/jobs/{ids[-2]}", method="DELETE")
        wait_for_text(page, "#state", "Waiting to begin: you are next")
        for id in ids[:-2]:
            page_server.ask(f"api/jobs/{id}", method="DELETE")
        gate.open()
        wait_for_end(page)


def test_a_camera_is_recognised_until_it_is_stopped(
    chromium: Any,
    chromium_with_camera: Any,
    server: Server,
) -> None:
    with visit(chromium_with_camera, server.url) as page:
        page.click("#camera")
        wait_until(page, "preview.videoWidth > 0")
        wait_until(page, "parseFloat(document.getElementById('state').textContent.split(': ')[1]) > 0.5")
        assert page.locator("#state").inner_text().startswith("Recognising your camera: ")
        assert page.locator("#now .name").count() == 5
        page.click("#stop")
        assert wait_for_end(page).startswith("Recognised your camera: ")
        assert page.evaluate("preview.srcObject") is None  # the camera is given back
        assert page.locator("#note").is_hidden()  # no picture was left out
        assert page.get_by_text("Report").count() == 0


def test_why_there_is_no_camera_is_said(
    chromium: Any,
    chromium_with_camera: Any,
    page_server: Server,
) -> None:
    with visit(chromium, page_server.url) as page:
        page.click("#camera")
        wait_for_text(page, "#alert", "camera")
        assert page.locator("#choose").is_visible()
    with visit(chromium_with_camera, page_server.url.replace("127.0.0.1", "memvit.test")) as page:
        page.click("#camera")
        assert "https address" in wait_for_text(page, "#alert", "Browsers lend a camera")


def test_of_an_address_the_newest_picture_is_shown(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    id = page_server.upload(videos / "ok.mp4")
    page_server.ended(id)
    gate.let_pass(3)
    with visit(chromium, page_server.url, ["status of 422"]) as page:
        page.fill("#source", "/etc/passwd")
        page.get_by_text("Watch", exact=True).click()
        wait_for_text(page, "#alert", "Give an address")
        page.fill("#source", f"{page_server.url}/api/jobs/{id}/video")
        asked: list[Any] = []
        page.route("**/api/jobs/source", lambda route: asked.append(route))
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        wait_until(page, "document.querySelector('#sourceForm button').disabled")
        assert len(asked) == 1
        asked[0].continue_()
        wait_until(page, "picture.naturalWidth === 32 && !picture.hidden")
        assert page.locator("#state").inner_text().startswith(f"Recognising {page_server.url}/")
        gate.open()
        page.click("#stop")
        wait_for_end(page)
        assert page.locator("#picture").is_visible()
        assert page.locator("#sourceForm button").is_enabled()


def test_of_what_is_live_no_picture_is_promised_after_its_end(chromium: Any, page_server: Server) -> None:
    job = page_server.service.board.new("rtsp://camera", "source", False)
    job.state = "running"
    with visit(chromium, f"{page_server.url}/#job={job.id}", ["status of 404"]) as page:
        wait_for_text(page, "#unplayable", "The newest picture appears here.")
        with page.expect_response("**/picture?*"):
            job.add_clip(clip_at(0))  # and there is no picture of it
        wait_for_text(page, "#state", "rtsp://camera: 1 s")
        assert page.locator("#picture").is_hidden()
        job.end("failed", "The stream was lost.")
        wait_for_text(page, "#unplayable", "Live pictures are not kept.")
        page.reload()
        wait_for_text(page, "#unplayable", "Live pictures are not kept.")


def test_a_picture_that_does_not_come_leaves_the_one_before(chromium: Any, page_server: Server) -> None:
    job = page_server.service.board.new("rtsp://camera", "source", False)
    job.state = "running"
    job.picture = write_picture(np.zeros((32, 48, 3), np.uint8))
    with visit(chromium, f"{page_server.url}/#job={job.id}", ["status of 404"]) as page:
        job.add_clip(clip_at(0))
        wait_until(page, "picture.naturalWidth === 48 && !picture.hidden")
        job.picture = None
        with page.expect_response("**/picture?*"):
            job.add_clip(clip_at(1))
        job.end("complete")
        wait_for_text(page, "#state", "2 s in 2 clips")
        assert page.evaluate("picture.naturalWidth === 48 && !picture.hidden")


def clip_at(second: int) -> dict[str, Any]:
    """A clip of a second, as the server describes it."""
    times = {"clip": second, "start_s": float(second), "end_s": second + 1.0, "about_s": None}
    return {**times, "topk": [[{"label": "pour water", "score": 0.5}]], "actions": [], "without": None}


def test_trouble_of_a_stream_is_said_while_it_lasts(chromium: Any, page_server: Server) -> None:
    job = page_server.service.board.new("rtsp://camera", "source", False)
    job.state = "running"
    trouble = "The stream was lost (no answer); trying again."
    with visit(chromium, f"{page_server.url}/#job={job.id}") as page:
        assert page.locator("#note").is_hidden()
        job.trouble = trouble
        assert wait_for_text(page, "#note", "lost") == trouble
        job.trouble = ""
        page.locator("#note").wait_for(state="hidden")


def test_a_camera_goes_on_after_a_lost_connection(
    chromium: Any,
    chromium_with_camera: Any,
    page_server: Server,
) -> None:
    seconds = "parseFloat(document.getElementById('state').textContent.split(': ')[1])"
    cable = Cable(page_server.url)
    with contextlib.closing(cable), visit(chromium_with_camera, cable.url, ["net::ERR_"]) as page:
        page.click("#camera")
        wait_until(page, f"{seconds} > 0.2")
        cable.cut()
        wait_for_text(page, "#connection", "is lost; trying again. The newest pictures wait here.")
        wait_for_text(page, "#note", "left out")  # 32 wait, about a second of them
        before_s = page.evaluate(seconds)
        cable.mend()
        wait_until(page, f"{seconds} > {before_s} + 0.5")
        page.locator("#connection").wait_for(state="hidden")
        page.click("#stop")
        wait_for_end(page)
        id = urlsplit(page.url).fragment.removeprefix("job=")
        ends_s = [data["end_s"] for kind, _, data in page_server.events(id) if kind == "clip"]
        assert ends_s == sorted(ends_s)
