"""The page of `memvit serve` in a real browser, with a real server and a small model."""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from app.pages import (  # noqa: F401
    CLASSES,
    CLIP_S,
    NUM_CLIPS,
    REACH_S,
    Gate,
    click_timeline,
    colors_at,
    gate,
    gate_and_server,
    give,
    page_server,
    place,
    visit,
    wait_for_end,
    wait_for_text,
)
from app.serving import Server, running
from browser import chromium  # noqa: F401
from memvit.app import Limits, Service
from memvit.app.server import GONE
from report.pages import time_of, wait_until
from tiny_models import small_model
from video.encode import write_video


def test_clips_appear_while_the_video_is_recognised(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(9)
    with visit(chromium, page_server.url) as page:
        assert page.locator("#invitation").inner_text() == "Drop a video here"
        assert "5 classes" in page.locator("#factsText").inner_text()
        assert "Its memory reaches 1.2 s back" in page.locator("#factsText").inner_text()
        give(page, videos / "ok.mp4")
        assert wait_for_text(page, "#state", "1.2 s of 3 s").startswith("Recognising ok.mp4")
        assert page.locator("#video").is_visible()
        assert page.locator("#now .name").count() == 5
        assert page.locator("#when").inner_text() == "0:01.2 of 0:03.0"  # the newest moment
        wait_until(page, "Math.abs(video.currentTime - 1.2) < 0.02")  # and its picture
        wait_until(page, "document.querySelectorAll('#rows .row').length === 5")
        assert colors_at(page, 0.1, 34)[3] > 0
        assert page.evaluate("getComputedStyle(document.getElementById('results')).display") == "none"
        gate.open()
        assert wait_for_end(page).startswith(f"Recognised ok.mp4: 3 s in {NUM_CLIPS} clips, ")
        assert page.evaluate("document.title") == "ok.mp4 – memvit"


def test_the_newest_moment_is_followed_until_the_visitor_goes_elsewhere(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(12)
    with visit(chromium, page_server.url) as page:
        give(page, videos / "ok.mp4")
        wait_for_text(page, "#when", "0:01.6")
        click_timeline(page, 0.25)
        wait_until(page, "Math.abs(video.currentTime - 0.75) < 0.02")
        gate.let_pass(4)
        wait_for_text(page, "#state", "2.1 s of 3 s")
        assert page.locator("#when").inner_text() == "0:00.8 of 0:03.0"
        page.click("#newest")
        assert page.locator("#when").inner_text() == "0:02.1 of 0:03.0"
        assert page.locator("#newest").is_hidden()
        gate.open()
        wait_for_end(page)


@pytest.fixture(scope="module")
def recognised(page_server_id: tuple[Server, str]) -> str:
    server, id = page_server_id
    return f"{server.url}/#job={id}"


@pytest.fixture(scope="module")
def page_server_id(gate_and_server: tuple[Gate, Server], videos: Path) -> tuple[Server, str]:
    """The id of a video that has been recognised, with and without memory."""
    server = gate_and_server[1]
    id = server.upload(videos / "ok.mp4", compare=True)
    assert server.ended(id)["num_clips"] == NUM_CLIPS
    return server, id


def when_ready(page: Any) -> None:
    wait_for_text(page, "#state", f"in {NUM_CLIPS} clips")
    wait_until(page, "video.readyState >= 2")
    wait_until(page, "document.querySelectorAll('#rows .row').length > 5")


def test_a_click_on_the_timeline_goes_there_and_keys_do_too(chromium: Any, recognised: str) -> None:
    with visit(chromium, recognised) as page:
        when_ready(page)
        assert page.locator("#when").inner_text() == "0:00.0 of 0:03.0"
        click_timeline(page, 0.5)
        assert time_of(page) == pytest.approx(1.5, abs=0.02)
        assert page.locator("#when").inner_text() == "0:01.5 of 0:03.0"
        assert place(page, "#cursor")[0] == pytest.approx(0.5, abs=0.005)
        for key, at_s in (
            ("Shift+ArrowLeft", 0.5),
            ("Shift+ArrowRight", 1.5),
            ("ArrowLeft", 0),
            ("End", 3),
            ("Home", 0),
        ):
            page.keyboard.press(key)
            assert time_of(page) == pytest.approx(at_s, abs=0.05)
        plot = page.locator("#plot").bounding_box()
        page.mouse.move(plot["x"] + plot["width"] / 2, plot["y"] + 20 + 56 + 12)  # over the first class
        best = page.locator("#rows .row:not(.band):not(.difference) .name").first.inner_text()
        assert wait_for_text(page, "#hint", best).startswith("0:01.5")


def test_the_cursor_follows_the_video(chromium: Any, recognised: str) -> None:
    with visit(chromium, recognised) as page:
        when_ready(page)
        before = place(page, "#cursor")[0]
        page.keyboard.press("Space")
        wait_until(page, "video.currentTime > 0.5")
        page.keyboard.press("Space")
        assert page.evaluate("video.paused")
        assert place(page, "#cursor")[0] - before == pytest.approx(time_of(page) / 3, abs=0.02)


def test_the_timeline_shows_how_far_memory_reaches_back(chromium: Any, recognised: str) -> None:
    with visit(chromium, recognised) as page:
        when_ready(page)
        click_timeline(page, 0.7)
        begin, end = place(page, "#memory")
        assert 3 * end == pytest.approx(2.1, abs=0.02)
        assert 3 * (end - begin) == pytest.approx(REACH_S, abs=0.02)
        assert page.locator("#reach").inner_text() == "memory reaches 1.2 s back"
        click_timeline(page, 0.2)  # there is nothing to remember before the beginning
        assert place(page, "#memory")[0] == pytest.approx(0, abs=0.005)
        assert 3 * place(page, "#memory")[1] == pytest.approx(0.6, abs=0.02)


def test_with_and_without_memory_stand_side_by_side(
    chromium: Any,
    page_server_id: tuple[Server, str],
    recognised: str,
) -> None:
    server, id = page_server_id
    clips = [data for kind, _, data in server.events(id) if kind == "clip"]
    best = [(clip["topk"][0][0], clip["without"]["topk"][0][0]) for clip in clips]
    differs = [one["label"] != other["label"] for one, other in best]
    assert 2 < sum(differs) < NUM_CLIPS - 2  # so that there is something to see
    with visit(chromium, recognised) as page:
        when_ready(page)
        agreed_s = sum(clip["end_s"] - clip["start_s"] for clip, other in zip(clips, differs, strict=True) if not other)
        share = 100 * agreed_s / 3
        assert page.locator("#agreement").inner_text() == f"Both agree {share:.0f} % of the time"
        clip = differs.index(True)
        click_timeline(page, (clip + 0.5) * CLIP_S / 3)
        names = [side.locator(".best .name").inner_text() for side in page.locator("#now .two > div").all()]
        assert names == [part["label"] for part in best[clip]]
        assert page.locator("#now .differs").is_visible()
        for clip in (differs.index(True), differs.index(False)):
            at = (clip + 0.5) * CLIP_S / 3
            with_memory, without = (colors_at(page, at, y) for y in (20 + 9, 20 + 18 + 9))
            assert (with_memory != without) == differs[clip]
            assert (colors_at(page, at, 20 + 36 + 6)[3] > 0) == differs[clip]
        page.locator("#compared").uncheck()
        assert page.locator("#now .two").count() == 0
        assert page.locator("#agreement").is_hidden()
        assert "without memory" not in page.locator("#rows").inner_text()
        page.locator("#compared").check()
        assert page.locator("#now .two").count() == 1


def test_results_can_be_downloaded(chromium: Any, recognised: str, tmp_path: Path) -> None:
    with visit(chromium, recognised) as page:
        when_ready(page)
        with page.expect_download() as download:
            page.get_by_text("Table (CSV)").click()
        assert download.value.suggested_filename == "ok.predictions.csv"
        download.value.save_as(tmp_path / "table.csv")
        rows = list(csv.DictReader((tmp_path / "table.csv").open()))
        assert len(rows) == NUM_CLIPS * len(CLASSES)
        assert {row["label"] for row in rows} == set(CLASSES)
        button = page.get_by_text("Report, a page to keep")
        while_waiting = []

        def hold(route: Any) -> None:  # however fast the report is made, the page is seen waiting for it
            while_waiting.append((page.locator("#making").is_visible(), button.is_disabled()))
            route.continue_()

        page.route("**/files/report.html", hold)
        with page.expect_download() as download:
            button.click()
        assert while_waiting == [(True, True)]
        download.value.save_as(tmp_path / "report.html")
        assert "<title>ok.mp4" in (tmp_path / "report.html").read_text()
        page.locator("#making").wait_for(state="hidden")
        assert button.is_enabled()


def test_names_are_shown_as_they_are(
    chromium: Any,
    page_server: Server,
    videos: Path,
    tmp_path: Path,
) -> None:
    name = "<img src=x onerror=alert(1)>.mp4"
    (tmp_path / name).write_bytes((videos / "short.mp4").read_bytes())
    with visit(chromium, page_server.url) as page:
        give(page, tmp_path / name)
        wait_for_end(page)
        assert page.locator("#title").inner_text() == name
        assert name in page.locator("#state").inner_text()
        assert "stir <b>soup</b>" in page.locator("#rows").inner_text()
        assert page.locator("#state *, #title *, #rows b, #now b").count() == 0


def test_what_is_no_video_is_explained_and_the_next_one_works(
    chromium: Any,
    page_server: Server,
    videos: Path,
) -> None:
    with visit(chromium, page_server.url, ["status of 422"]) as page:
        give(page, videos / "text.mp4")
        assert "text.mp4" in wait_for_text(page, "#alert", "video")
        assert page.locator("#alert").get_attribute("role") == "alert"
        give(page, videos / "empty.mp4")
        wait_for_text(page, "#alert", "empty.mp4 is empty, or a folder.")
        give(page, videos / "short.mp4")
        wait_for_end(page)
        assert page.locator("#alert").is_hidden()


def test_what_is_wrong_with_a_video_or_the_server_is_said(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    with visit(chromium, page_server.url) as page:
        give(page, videos / "cut.mkv")
        assert wait_for_end(page).startswith("Recognised what could be read of cut.mkv: ")
        assert page.locator("#note").inner_text().startswith("cut.mkv")
        gate.layer, layer = torch.nn.Linear(1, 1), gate.layer  # as it goes with a graphics card that is out of memory
        try:
            page.click("#another")
            give(page, videos / "short.mp4")
            wait_for_text(page, "#alert", "Something went wrong on the server")
            assert page.locator("#state").inner_text() == "Could not recognise short.mp4"
        finally:
            gate.layer = layer
        page.click("#another")
        give(page, videos / "short.mp4")
        assert wait_for_end(page).startswith("Recognised short.mp4")
        assert page.locator("#alert").is_hidden()


def test_a_video_can_be_dropped_anywhere(chromium: Any, page_server: Server, videos: Path) -> None:
    with visit(chromium, page_server.url) as page:
        transfer = page.evaluate_handle(
            """(bytes) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(bytes)], "dropped.mp4", { type: "video/mp4" }));
              return transfer;
            }""",
            list((videos / "short.mp4").read_bytes()),
        )
        page.dispatch_event("#facts", "dragenter", {"dataTransfer": transfer})
        assert page.locator("#veil").is_visible()
        page.dispatch_event("#facts", "drop", {"dataTransfer": transfer})
        assert page.locator("#veil").is_hidden()
        assert wait_for_end(page).startswith("Recognised dropped.mp4")


def test_what_browsers_cannot_play_is_recognised_all_the_same(
    chromium: Any,
    page_server: Server,
    tmp_path: Path,
) -> None:
    video = write_video(tmp_path / "old.avi", 30, codec="mpeg4")
    with visit(chromium, page_server.url) as page:
        give(page, video)
        wait_for_end(page)
        assert page.locator("#video").is_hidden()
        wait_for_text(page, "#unplayable", "This browser cannot play this kind of video")
        click_timeline(page, 0.5)
        assert page.locator("#when").inner_text() == "0:00.5 of 0:01.0"
        assert page.locator("#now .name").count() == 5


def test_visitors_see_their_own_videos_only(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(4)
    with visit(chromium, page_server.url) as one, visit(chromium, page_server.url) as other:
        give(one, videos / "ok.mp4")
        give(other, videos / "short.mp4")
        wait_for_text(one, "#state", "Recognising ok.mp4")
        wait_for_text(other, "#state", "Recognising short.mp4")
        gate.open()
        assert wait_for_end(one).startswith(f"Recognised ok.mp4: 3 s in {NUM_CLIPS} clips")
        assert wait_for_end(other).startswith("Recognised short.mp4: 1 s in 8 clips")
        assert [page.locator("#title").inner_text() for page in (one, other)] == ["ok.mp4", "short.mp4"]


def test_a_reload_comes_back_with_the_video(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(6)
    with visit(chromium, page_server.url) as page:
        give(page, videos / "ok.mp4")
        wait_for_text(page, "#state", "0.8 s of 3 s")
        page.reload()
        wait_for_text(page, "#state", "0.8 s of 3 s")
        wait_until(page, "video.readyState >= 2 && video.currentSrc.includes('/api/jobs/')")
        gate.open()
        assert f"in {NUM_CLIPS} clips" in wait_for_end(page)
        page.click("#another")
        assert page.locator("#invitation").is_visible()
        page.go_back()
        assert f"in {NUM_CLIPS} clips" in wait_for_text(page, "#state", f"in {NUM_CLIPS} clips")


def test_stopping_keeps_what_was_recognised_and_removing_leaves_nothing(
    chromium: Any,
    page_server: Server,
    gate: Gate,
    videos: Path,
) -> None:
    gate.let_pass(5)
    with visit(chromium, page_server.url, ["status of 404"]) as page:
        give(page, videos / "ok.mp4")
        wait_for_text(page, "#state", "0.7 s of 3 s")
        id = urlsplit(page.url).fragment.removeprefix("job=")
        page.click("#stop")
        job = page_server.service.board.get(id)
        assert job is not None
        assert job.stopping.wait(10)  # it has arrived
        gate.open()
        assert "the first 0.7 s of ok.mp4 are recognised" in wait_for_end(page)
        assert page.locator("#expiry").inner_text() == "Otherwise the server removes them in 30 min."
        page.click("#remove")
        wait_for_text(page, "#told", "removed from the server")
        assert page.locator("#invitation").is_visible()
        assert page_server.ask(f"api/jobs/{id}")[0] == 404
        page.goto(f"{page_server.url}/#job={id}")
        wait_for_text(page, "#told", GONE)
        for _ in range(3):  # the old address, the removal, and before the video: none of them holds a visitor back
            assert "job=" not in page.url
            page.go_back()
        assert page.url == "about:blank"


def test_sending_is_shown_and_can_be_cancelled(chromium: Any, page_server: Server, videos: Path) -> None:
    with visit(chromium, page_server.url) as page:
        page.route("**/api/jobs?*", lambda route: None)  # a connection on which nothing comes back
        give(page, videos / "ok.mp4")
        wait_for_text(page, "#state", "Sending ok.mp4: ")
        assert page.locator("#video").is_visible()  # the visitor's own file
        assert page.locator("#stop").is_hidden()
        page.click("#cancel")
        assert page.locator("#invitation").is_visible()
        assert page.locator("#alert").is_hidden()


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without memory; takes small files and keeps them for a short time."""
    model = small_model(memory_length=0)
    limits = Limits(upload_bytes=100_000)
    with running(Service(model, "plain", limits=limits, folder=str(tmp_path_factory.mktemp("temporary")))) as server:
        yield server


def test_a_model_without_memory_says_so(chromium: Any, other_server: Server, videos: Path) -> None:
    with visit(chromium, other_server.url) as page:
        assert page.locator("#compare").is_disabled()
        assert "nothing to compare" in page.locator("#compareNote").inner_text()
        assert page.locator("#source").is_hidden()
        page.set_input_files("#file", videos / "short.mp4")
        wait_for_end(page)
        assert page.locator("#reach").inner_text() == "this model has no memory"
        assert page.locator("#memory").is_hidden()


def test_what_is_too_large_is_not_even_sent(chromium: Any, other_server: Server, tmp_path: Path) -> None:
    (tmp_path / "large.mp4").write_bytes(bytes(150_000))
    with visit(chromium, other_server.url) as page:
        posted: list[str] = []
        page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
        page.set_input_files("#file", tmp_path / "large.mp4")
        wait_for_text(page, "#alert", "large.mp4 has 150 kB; this server takes at most 100 kB.")
        assert page.locator("#choose").is_visible()
        assert posted == []


def test_the_page_says_when_the_time_of_results_is_over(
    chromium: Any,
    other_server: Server,
    videos: Path,
) -> None:
    board = other_server.service.board
    board.limits = dataclasses.replace(board.limits, keep_s=0.4)
    other_server.service.limits = board.limits
    with visit(chromium, other_server.url, ["status of 404"]) as page:
        page.set_input_files("#file", videos / "short.mp4")
        wait_for_text(page, "#told", "These results were removed.")


def test_an_anticipating_model_with_several_heads_says_what_is_expected(
    chromium: Any,
    videos: Path,
    tmp_path: Path,
) -> None:
    names = (("cut", "pour", "take"), ("cup", "onion", "pan"))
    model = small_model(num_classes=(3, 3), names=("verb", "noun"), class_names=names, anticipation_s=1.0)
    service = Service(model, "ahead", untrained=True, folder=str(tmp_path))
    with running(service) as server, visit(chromium, server.url) as page:
        assert "weights are random" in page.locator("#notice").inner_text()
        assert "3 verbs and 3 nouns" in page.locator("#factsText").inner_text()
        give(page, videos / "ok.mp4")
        wait_for_end(page)
        assert page.locator("#ahead").inner_text().startswith("Expected in 1.0 s")
        assert page.locator("#now h3").all_inner_texts() == ["Action", "Verb", "Noun"]
        verb, _, noun = page.locator("#now .best .name").first.inner_text().partition(" ")
        assert verb in names[0]
        assert noun in names[1]
        page.get_by_role("button", name="Noun").click()
        wait_until(page, "document.querySelectorAll('#rows .row').length === 3")
        assert set(page.locator("#rows .name").all_inner_texts()) == set(names[1])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen_light_and_dark(chromium: Any, recognised: str, scheme: str) -> None:
    options = {"viewport": {"width": 360, "height": 800}, "color_scheme": scheme}
    width = "document.documentElement.scrollWidth"
    background = "getComputedStyle(document.body).backgroundColor"
    with visit(chromium, recognised, **options) as page:
        when_ready(page)
        assert page.evaluate(width) == 360
        before = page.evaluate(background)
        assert (before == "rgb(18, 22, 28)") == (scheme == "dark")
        page.click("#theme")
        assert page.evaluate(background) != before
        page.click("#another")
        assert page.locator("#invitation").is_visible()
        assert page.evaluate(width) == 360
        page.reload()
        wait_for_text(page, "#invitation", "Drop")
        assert page.evaluate(background) != before  # the visitor's choice is remembered


@pytest.mark.parametrize("width", [360, 1280])
def test_long_names_leave_the_header_readable(chromium: Any, page_server: Server, width: int) -> None:
    def with_long_name(route: Any) -> None:
        about = route.fetch()
        route.fulfill(response=about, json={**about.json(), "model": "x" * 60})

    job = page_server.service.board.new("a_long_name_of_a_file_" * 5, "source", False)
    job.end("stopped")
    with visit(chromium, page_server.url, viewport={"width": width, "height": 800}) as page:
        page.route("**/api/about", with_long_name)
        page.goto(f"{page_server.url}/#job={job.id}")
        page.reload()
        wait_for_text(page, "#title", job.name)
        model, title = page.locator("#model"), page.locator("#title").bounding_box()
        assert model.get_attribute("title") == "x" * 60
        assert model.bounding_box()["height"] < 30  # one line
        assert min(model.bounding_box()["width"], title["width"]) > 100
        assert title["height"] < 160
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_video_that_does_not_say_how_long_it_is_grows(chromium: Any, page_server: Server, tmp_path: Path) -> None:
    topk = [[{"label": CLASSES[0], "score": 0.5}]]
    job = page_server.service.board.new("endless.h264", "file", False)
    write_video(job.upload, 90, format="h264")  # which browsers cannot play either
    job.state = "running"

    def add(clip: int) -> None:
        times = {"clip": clip, "start_s": 10.0 * clip, "end_s": 10.0 * clip + 10, "about_s": None}
        job.done_s = times["end_s"]
        job.add_clip({**times, "topk": topk, "actions": [], "without": None})

    with visit(chromium, f"{page_server.url}/#job={job.id}") as page:
        add(0)
        assert wait_for_text(page, "#state", "10 s") == "Recognising endless.h264: 10 s"
        assert wait_for_text(page, "#when", "0:10.0") == "0:10.0"  # a clip is shown a moment after the state
        assert page.locator("#progress").get_attribute("value") is None
        wait_until(page, "document.querySelectorAll('#rows .row').length === 1")
        assert place(page, "#cursor")[0] == pytest.approx(0.5, abs=0.01)
        for clip in range(1, 15):
            add(clip)
        assert wait_for_text(page, "#state", "2 min 30 s") == "Recognising endless.h264: 2 min 30 s"
        wait_until(page, "Number(plot.getAttribute('aria-valuemax')) === 150")
        assert place(page, "#cursor")[0] == pytest.approx(1, abs=0.01)
        job.total_s = 150.0
        job.end("complete")
        wait_for_end(page)
        assert wait_for_text(page, "#when", "2:30.0 of") == "2:30.0 of 2:30.0"


def test_thousands_of_clips_leave_it_fluid(chromium: Any, page_server: Server) -> None:
    job = page_server.service.board.new("long", "source", True)
    for clip in range(10_000):
        topk = [{"label": CLASSES[(clip + rank) % 5], "score": 0.5 / (1 + rank)} for rank in range(5)]
        clips = {"clip": clip, "start_s": 0.5 * clip, "end_s": 0.5 * clip + 0.5, "about_s": None}
        with_memory = {"topk": [topk], "actions": []}
        job.add_clip({**clips, **with_memory, "without": with_memory})
    job.done_s = job.total_s = 5000.0
    job.end("complete")
    began_s = time.monotonic()
    with visit(chromium, f"{page_server.url}/#job={job.id}") as page:
        assert "in 10,000 clips" in wait_for_text(page, "#state", "in 10,000 clips")
        assert time.monotonic() - began_s < 10
        # Fifty frames at 60 Hz, each at another moment: seeking, the moment, and the cursor.
        moving_ms = page.evaluate(
            """() => {
              const began = performance.now(), { left, width, top } = plot.getBoundingClientRect();
              for (let i = 0; i < 50; i++) {
                const at = { clientX: left + (width * i) / 50, clientY: top + 30, pointerId: 1 };
                try { plot.dispatchEvent(new PointerEvent("pointerdown", at)); } catch {}
                void plot.offsetHeight;
              }
              return performance.now() - began;
            }"""
        )
        assert moving_ms < 800
