from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import av
import pytest

from browser import chromium  # noqa: F401
from commands.conftest import Run
from memvit.online.results import read_summary
from online.people import write_boxes, write_people
from report.pages import shown, write_film, write_predictions
from tiny_models import small_model

MODEL = ("--model", "data/model", "--out", "out")


def embedded(page: Path) -> tuple[str, bytes]:
    """Media type and bytes of the video in a page."""
    found = re.search(r'<script id="film" type="text/plain">data:([^;]*);base64,([^<]*)</script>', page.read_text())
    assert found is not None
    return found[1], base64.b64decode(found[2], validate=True)


def length_s(film: bytes, folder: Path) -> float:
    (folder / "embedded.mp4").write_bytes(film)
    with av.open(str(folder / "embedded.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return float(container.duration / av.time_base)


def test_predict_writes_a_report_that_plays(run: Run, chromium: Any) -> None:  # noqa: F811
    code, _, err = run("predict", "data/ok.mp4", *MODEL, "--report")
    assert (code, err) == (0, "")
    assert read_summary("out/ok").files[-1] == "report.html"
    assert embedded(Path("out/ok/report.html")) == ("video/mp4", Path("data/ok.mp4").read_bytes())
    with shown(chromium, Path("out/ok/report.html")) as page:
        assert page.locator("#count").text_content() == "6 clips"
        assert page.locator("#now .name").count() == 5
    run("predict", "data/ok.mp4", *MODEL)
    assert not Path("out/ok/report.html").exists()  # it would show what an earlier run found


def test_detect_writes_a_report_with_boxes(run: Run, chromium: Any) -> None:  # noqa: F811
    small_model(task="boxes", activation="sigmoid", box_depth=1, fps=10.0).save_pretrained("boxes")
    write_people(Path("people.mp4"), duration_s=3.0)
    write_boxes(Path("boxes.csv"), [0.0, 1.0, 2.0])
    options = ("--boxes", "boxes.csv", "--no_overlay", "--report")
    assert run("detect", "people.mp4", "--model", "boxes", "--out", "out", *options)[0] == 0
    with shown(chromium, Path("out/people/report.html")) as page:
        assert page.locator("#now .person").all_text_contents() == ["Person 1", "Person 2"]


def test_the_page_goes_where_it_is_told(run: Run) -> None:
    run("predict", "data/ok.mp4", *MODEL)
    code, out, err = run("report", "out/ok", "data/ok.mp4", "-o", "page.html")
    assert (code, err) == (0, "")
    assert out.startswith("page.html (0.")
    assert run("report", "out/ok/predictions.jsonl", "data/ok.mp4")[0] == 0
    assert Path("out/ok/report.html").read_bytes() == Path("page.html").read_bytes()


def test_a_linked_video_stays_outside(run: Run, chromium: Any) -> None:  # noqa: F811
    Path("a b").mkdir()
    write_film(Path("a b/film #1.mp4"), 2)
    write_predictions(Path("p.jsonl"), 2, video="film #1.mp4")
    assert run("report", "p.jsonl", "a b/film #1.mp4", "-o", "page.html", "--link")[0] == 0
    assert Path("page.html").stat().st_size < 50_000
    with shown(chromium, Path("page.html")) as page:
        assert page.evaluate("video.duration") == pytest.approx(2, abs=0.1)


def test_what_browsers_cannot_play_is_encoded_anew(run: Run, tmp_path: Path) -> None:
    write_film(Path("film.avi"), 2, codec="mpeg4", audio_s=2.0)
    write_predictions(Path("p.jsonl"), 2, video="film.avi")
    assert run("report", "p.jsonl", "film.avi", "--max_width", "64")[0] == 0
    media_type, film = embedded(Path("report.html"))
    assert media_type == "video/mp4"
    assert length_s(film, tmp_path) == pytest.approx(2, abs=0.15)
    with av.open("embedded.mp4") as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (64, 48)
    assert "without its sound" in Path("report.html").read_text()
    assert not list(tmp_path.glob(".report-*"))


def test_images_make_a_report(run: Run, tmp_path: Path) -> None:
    assert run("predict", "data/images", *MODEL, "--image_fps", "10", "--report")[0] == 0
    assert length_s(embedded(Path("out/images/report.html"))[1], tmp_path) == pytest.approx(1.2, abs=0.1)


@pytest.mark.parametrize("name", ["cut.mkv", "damaged.mp4"])
def test_a_damaged_video_gives_a_report_of_what_is_readable(run: Run, name: str, chromium: Any) -> None:  # noqa: F811
    code, _, _ = run("predict", f"data/{name}", *MODEL, "--report")
    assert code == 1
    with shown(chromium, Path("out", Path(name).stem, "report.html")) as page:
        assert f"data/{name} " in page.locator("#notes").text_content()
        assert page.locator("#notes li").count() == 1
        assert page.evaluate("video.duration") > 2


def test_a_video_too_large_for_a_page_is_an_error_and_leaves_nothing(run: Run) -> None:
    write_predictions(Path("p.jsonl"), 3, video="ok.mp4")
    code, _, err = run("report", "p.jsonl", "data/ok.mp4", "--max_mb", "0.001")
    assert code == 1
    assert "even in small, too much for one page: refer to the file with --link" in err
    assert {path.name for path in Path().iterdir()} == {"data", "p.jsonl"}


@pytest.mark.parametrize(
    ("video", "says"),
    [
        ("missing.mp4", "there is no video data/missing.mp4"),
        ("empty.mp4", "data/empty.mp4 is empty"),
        ("truncated.mp4", "cannot read data/truncated.mp4"),
        ("audio.m4a", "data/audio.m4a has no video stream"),
    ],
)
def test_a_bad_video_is_one_line(run: Run, video: str, says: str) -> None:
    write_predictions(Path("p.jsonl"), 2)
    for options in ((), ("--link",)):
        code, out, err = run("report", "p.jsonl", f"data/{video}", *options)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert says in err
    assert not Path("report.html").exists()


def test_predictions_of_another_video_are_noticed(run: Run) -> None:
    write_predictions(Path("p.jsonl"), 60)
    code, _, err = run("report", "p.jsonl", "data/ok.mp4")
    assert code == 1
    assert "data/ok.mp4 ends at 3.0 s, but the predictions, of film.mp4, go on until 60.0 s" in err
    write_predictions(Path("p.jsonl"), 2)
    code, _, err = run("report", "p.jsonl", "data/ok.mp4")
    assert code == 0
    assert err.startswith("warning: data/ok.mp4 was not what these predictions were made of (film.mp4)")
    assert "The predictions were made of film.mp4, the video is ok.mp4." in Path("report.html").read_text()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "p.jsonl is empty"),
        ('{"video": "a"}\n', "p.jsonl, line 1: no line of predictions"),
        ("{", "no whole line yet"),
        ("[1]\n", "p.jsonl, line 1: no line of predictions"),
        ('{"video": "a", "persons": 1}\n', "p.jsonl, line 1: no line of detections"),
        ("\udcff\udcfe\n", "p.jsonl is no text"),
    ],
)
def test_damaged_predictions_are_one_line(run: Run, lines: str, says: str) -> None:
    Path("p.jsonl").write_text(lines, errors="surrogateescape")
    code, _, err = run("report", "p.jsonl", "data/ok.mp4")
    assert (code, err.count("\n")) == (1, 1)
    assert says in err
    assert "unexpected" not in err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"video": "other.mp4"}, "is of other.mp4, those before it of film.mp4"),
        ({"start_s": float("nan")}, "NaN, infinite"),
        ({"start_s": -1.0}, "a time before 0"),
        ({"start_s": 0.5, "end_s": 0.2}, "does not fit the lines before it"),
        ({"topk": [[], []]}, "does not fit the lines before it"),
        ({"topk": [[{"label": "cut", "score": float("inf")}]]}, "NaN, infinite"),
    ],
)
def test_lines_that_make_no_sense_are_named(run: Run, change: dict[str, Any], says: str) -> None:
    first, second = write_predictions(Path("p.jsonl"), 2).read_text().splitlines()
    Path("p.jsonl").write_text(f"{first}\n{json.dumps({**json.loads(second), **change})}\n")
    code, _, err = run("report", "p.jsonl", "data/ok.mp4")
    assert code == 1
    assert "p.jsonl, line 2" in err
    assert says in err


def test_places_that_cannot_be_used_are_named(run: Run) -> None:
    write_predictions(Path("p.jsonl"), 2)
    for arguments, says in (
        (("nowhere", "data/ok.mp4"), "there is no nowhere"),
        (("data", "data/ok.mp4"), "run memvit predict first"),
        (("p.jsonl", "data/ok.mp4", "-o", "no/page.html"), "there is no folder no"),
        (("p.jsonl", "data/ok.mp4", "-o", "data"), "data is a folder"),
        (("p.jsonl", "data/ok.mp4", "-o", "p.jsonl"), "p.jsonl would be overwritten"),
        (("p.jsonl", "data/ok.mp4", "--max_mb", "1000"), "380 at most"),
        (("p.jsonl", "data/ok.mp4", "--max_width", "1"), "16 pixels or more"),
        (("p.jsonl", "data/images", "--link"), "data/images is no video file"),
    ):
        code, _, err = run("report", *arguments)
        assert code == 1
        assert says in err


def test_a_full_disk_leaves_the_page_of_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_predictions(Path("p.jsonl"), 2)
    Path("report.html").write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        code, _, err = run("report", "p.jsonl", "data/ok.mp4")
    assert code == 1
    assert "cannot write report.html (No space left on device)" in err
    assert Path("report.html").read_text() == "before"
    assert {path.name for path in Path().iterdir()} == {"data", "p.jsonl", "report.html"}
