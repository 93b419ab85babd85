from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from browser import chromium  # noqa: F401
from memvit.report import write_report
from report.pages import shown, time_of, wait_until, write_film, write_predictions

CANVAS_ALPHA = """([id, x, y, w, h]) => {
  const c = document.getElementById(id), sx = c.width / c.clientWidth;
  const d = c.getContext('2d').getImageData(x * sx, y * sx, Math.max(w * sx, 1), Math.max(h * sx, 1)).data;
  let n = 0;
  for (let i = 3; i < d.length; i += 4) n += d[i] > 0;
  return n;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_film(folder / "film.mp4")
    return write_report(write_predictions(folder / "predictions.jsonl", 8), folder / "film.mp4", folder / "r.html")


def cursor_x(page: Any) -> float:
    return float(page.locator("#cursor").bounding_box()["x"] - page.locator("#plot").bounding_box()["x"])


def test_a_click_on_the_timeline_goes_there(chromium: Any, report: Path) -> None:  # noqa: F811
    with shown(chromium, report) as page:
        plot = page.locator("#plot").bounding_box()
        assert page.locator("#now .name").first.text_content() == "cut"
        page.mouse.click(plot["x"] + plot["width"] * 0.6875, plot["y"] + 30)
        assert time_of(page) == pytest.approx(5.5, abs=0.1)
        assert page.locator("#now .name").all_text_contents() == ["pour", "stir"]
        assert cursor_x(page) == pytest.approx(plot["width"] * 0.6875, abs=3)


def test_cursor_and_classes_follow_the_video(chromium: Any, report: Path) -> None:  # noqa: F811
    with shown(chromium, report) as page:
        before = cursor_x(page)
        page.keyboard.press("Space")
        wait_until(page, "document.querySelector('#now .name').textContent === 'pour'")
        page.keyboard.press("Space")
        assert page.evaluate("document.getElementById('video').paused")
        assert cursor_x(page) > before + 20
        assert time_of(page) >= 1


def test_keys_go_through_the_video(chromium: Any, report: Path) -> None:  # noqa: F811
    with shown(chromium, report) as page:
        for key, at in (("ArrowRight", 5), ("Shift+ArrowLeft", 4), (".", 5), (",", 4), ("ArrowLeft", 0)):
            page.keyboard.press(key)
            assert time_of(page) == pytest.approx(at, abs=0.05)


def test_filters_reach_timeline_table_and_moment(chromium: Any, report: Path) -> None:  # noqa: F811
    with shown(chromium, report) as page:
        assert page.locator("#rows .name").all_text_contents() == ["cut", "pour", "stir"]
        assert page.locator("#count").text_content() == "8 clips"
        page.fill("#filter", "POU")
        assert page.locator("#rows .name").all_text_contents() == ["pour"]
        assert page.locator("#count").text_content() == "4 clips"
        page.keyboard.press("Space")  # is typed, and plays nothing
        assert page.evaluate("document.getElementById('video').paused")
        page.fill("#filter", "")
        page.locator("#rows button", has_text="cut").click()
        assert page.locator("#now .name").all_text_contents() == ["stir"]
        plot = page.locator("#plot").bounding_box()
        bar = ["picture", plot["width"] * 0.02, 28, 20, 8]
        assert page.evaluate(CANVAS_ALPHA, bar) == 0
        page.click("#all")
        assert page.evaluate(CANVAS_ALPHA, bar) > 100


def test_the_table_sorts_and_goes_to_the_time(chromium: Any, report: Path) -> None:  # noqa: F811
    with shown(chromium, report) as page:
        page.click("[data-sort=label]")
        labels = page.locator("#body tr[data-index] td:nth-child(3)").all_text_contents()
        assert labels == ["cut"] * 4 + ["pour"] * 4
        page.click("[data-sort=label]")
        assert page.locator("#body tr[data-index] td:nth-child(3)").first.text_content() == "pour"
        page.locator("#body tr[data-index] td:nth-child(1)", has_text="0:03.0").click()
        assert time_of(page) == pytest.approx(3, abs=0.05)
        assert page.locator("tr.playing td").first.text_content() == "0:03.0"


def test_neighbours_of_one_class_merge(chromium: Any, report: Path) -> None:  # noqa: F811
    with shown(chromium, report) as page:
        page.fill("#filter", "stir")
        page.check("#merge")
        assert page.locator("#count").text_content() == "1 segment"
        assert page.locator("#body tr[data-index] td").all_text_contents() == ["0:00.0", "0:08.0", "stir", "10 %"]


def test_dark_follows_the_system_and_the_switch(chromium: Any, report: Path) -> None:  # noqa: F811
    colour = "getComputedStyle(document.body).backgroundColor"
    with shown(chromium, report, color_scheme="dark") as page:
        dark = page.evaluate(colour)
        page.click("#theme")
        light = page.evaluate(colour)
        assert (dark, light) == ("rgb(18, 22, 28)", "rgb(246, 247, 249)")
        page.reload()
        assert page.evaluate(colour) == light  # the choice is remembered
    with shown(chromium, report, color_scheme="light") as page:
        assert page.evaluate(colour) == light
        page.click("#theme")
        assert page.evaluate(colour) == dark


def test_a_phone_needs_no_sideways_scrolling(chromium: Any, report: Path) -> None:  # noqa: F811
    with shown(chromium, report, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        plot = page.locator("#plot").bounding_box()
        page.locator("#plot").scroll_into_view_if_needed()
        page.locator("#plot").tap(position={"x": plot["width"] / 2, "y": 30})
        assert time_of(page) == pytest.approx(4, abs=0.1)


def test_a_phone_shows_the_whole_table(chromium: Any, tmp_path: Path) -> None:  # noqa: F811
    film = write_film(tmp_path / f"{'a_long_name_' * 6}.mp4", 2)
    labels = ("take a cup from the upper shelf of the cupboard", "x" * 60)
    topk = [[{"label": label, "score": 1.0} for label in labels]]
    predictions = write_predictions(tmp_path / "p.jsonl", 300, video=film.name, clip_s=0.005, topk=topk, about_s=3600.0)
    page_file = write_report(predictions, film)
    page_file.write_text(page_file.read_text().replace('"model":""', f'"model":"{"m" * 60}"'))
    sizes = "[...document.querySelectorAll('#body tr[data-index]')].map(row => row.offsetHeight)"
    with shown(chromium, page_file, viewport={"width": 360, "height": 740}) as page:
        page.locator("#rows button", has_text="upper shelf").click()  # then the other, which has no spaces, is listed
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        score = page.locator("#body td").last.bounding_box()
        for index in (0, 250):
            page.evaluate(f"document.getElementById('scroll').scrollTop = {index} * 44")
            wait_until(page, f"document.querySelector('#body tr[data-index=\"{index}\"]') !== null")
            assert page.evaluate(
                "document.getElementById('scroll').scrollWidth <= document.getElementById('scroll').clientWidth"
            )
            assert set(page.evaluate(sizes)) == {44}  # rows that are not drawn are counted as high as this
        assert score["x"] + score["width"] <= 360
        model = page.locator("#model").bounding_box()
        assert model["width"] > 300
        assert model["height"] < 30
        page.set_viewport_size({"width": 1000, "height": 740})
        wait_until(page, f"{sizes}.every(height => height === 30)")


def test_labels_and_names_never_become_html(chromium: Any, tmp_path: Path) -> None:  # noqa: F811
    evil = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    film = write_film(tmp_path / 'it\'s "naïve" <b>#1 100%.mp4', 2)
    topk = [[{"label": evil, "score": 0.9}]]
    predictions = write_predictions(tmp_path / "p.jsonl", 2, video=film.name, topk=topk)
    for link in (False, True):
        with shown(chromium, write_report(predictions, film, tmp_path / "r.html", link=link)) as page:
            assert page.title() == film.name
            assert page.locator("h1").text_content() == film.name
            assert page.locator("#now .name").text_content() == evil
            assert page.locator("#rows .name").text_content() == evil
            assert page.locator("img").count() == 0
            assert page.locator("h1 b").count() == 0


def test_boxes_are_drawn_where_people_are(chromium: Any, tmp_path: Path) -> None:  # noqa: F811
    film = write_film(tmp_path / "film.mp4", 4)
    lines = []
    for keyframe, left in enumerate((0.1, 0.1, 0.5, 0.5)):
        actions = [{"label": "walk", "score": 0.9}, {"label": "sit", "score": 0.1}]
        person = {"track": 7, "box": [left, 0.4, left + 0.3, 0.9], "score": 0.9, "actions": actions}
        persons = [person] if keyframe < 3 else []
        lines.append(
            json.dumps({"video": "film.mp4", "keyframe": keyframe, "time_s": keyframe, "persons": persons}) + "\n"
        )
    (tmp_path / "detections.jsonl").write_text("".join(lines))
    with shown(chromium, write_report(tmp_path, film)) as page:
        video = page.locator("#video").bounding_box()
        height = video["height"]
        width = height * 128 / 96
        left = (video["width"] - width) / 2

        def painted(x: float, y: float) -> bool:
            return page.evaluate(CANVAS_ALPHA, ["boxes", left + x * width - 4, y * height - 4, 8, 8]) > 10

        assert painted(0.1, 0.7)
        assert not painted(0.5, 0.7)
        assert page.locator("#now .person").text_content() == "Person 7"
        assert page.locator("#now .name").all_text_contents() == ["walk", "sit"]
        page.evaluate("seek(1.5)")
        time_of(page)
        assert painted(0.3, 0.7)  # half of the way
        page.evaluate("seek(2)")
        time_of(page)
        assert painted(0.5, 0.7)
        page.evaluate("seek(3)")
        time_of(page)
        assert not painted(0.5, 0.7)
        page.locator("#tabs button", has_text="people").click()
        assert page.locator("#rows .name").all_text_contents() == ["person 7"]


def test_heads_actions_and_anticipation_are_told_apart(chromium: Any, tmp_path: Path) -> None:  # noqa: F811
    verb, noun = [{"label": "cut", "score": 0.9}], [{"label": "leek", "score": 0.8}]
    action = [{"label": "cut leek", "score": 0.72}]
    film = write_film(tmp_path / "film.mp4", 6)
    with open(tmp_path / "predictions.jsonl", "w") as file:
        for clip in range(5):
            line = {"video": "film.mp4", "clip": clip, "start_s": clip, "end_s": clip + 1, "about_s": clip + 2}
            file.write(json.dumps({**line, "topk": [verb, noun], "actions": action}) + "\n")
    with shown(chromium, write_report(tmp_path, film)) as page:
        assert page.locator("#tabs button").all_text_contents() == ["action", "head 1", "head 2"]
        assert page.locator("#now .name").count() == 0  # nothing was said before the end of the first clip
        page.evaluate("seek(1.5)")
        assert page.locator("#now .name").text_content() == "cut leek"
        assert page.locator("#ahead").text_content() == "Anticipated: expected in 0.5 s (at 0:02.0)"
        page.locator("#tabs button", has_text="head 2").click()
        assert page.locator("#now .name").text_content() == "leek"
        page.keyboard.press("End")
        assert page.locator("#when").text_content() == "0:06.0 of 0:06.0"


def test_what_is_expected_after_the_end_does_not_count_as_its_length(chromium: Any, tmp_path: Path) -> None:  # noqa: F811
    film = write_film(tmp_path / "film.mp4", 3)
    with open(tmp_path / "predictions.jsonl", "w") as file:
        for clip in range(3):
            topk = [[{"label": "cut", "score": 0.9}]]
            line = {
                "video": "film.mp4",
                "clip": clip,
                "start_s": clip,
                "end_s": clip + 1,
                "about_s": clip + 2,
                "topk": topk,
            }
            file.write(json.dumps(line) + "\n")
    with shown(chromium, write_report(tmp_path, film)) as page:
        assert page.locator("#when").text_content() == "0:00.0 of 0:03.0"
        plot = page.locator("#plot").bounding_box()
        page.mouse.click(plot["x"] + 0.5 * plot["width"], plot["y"] + 30)  # of four seconds that are drawn
        assert time_of(page) == pytest.approx(2, abs=0.1)
        assert page.evaluate(CANVAS_ALPHA, ["picture", 0.95 * plot["width"], 28, 10, 8]) > 0


def test_random_weights_are_said_at_the_top(chromium: Any, report: Path, tmp_path: Path) -> None:  # noqa: F811
    film = write_film(tmp_path / "film.mp4", 2)
    predictions = write_predictions(tmp_path / "p.jsonl", 2, untrained=True)
    with shown(chromium, write_report(predictions, film)) as page:
        notice = page.locator("#notice")
        assert notice.is_visible()
        assert notice.text_content() == "Untrained model: weights are random: these predictions mean nothing."
        assert notice.bounding_box()["y"] < 100
    with shown(chromium, report) as page:
        assert not page.locator("#notice").is_visible()


def test_twenty_thousand_clips_stay_fluid(chromium: Any, tmp_path: Path) -> None:  # noqa: F811
    film = write_film(tmp_path / "film.mp4", 400, options={"preset": "ultrafast", "crf": "50"}, gop=100)
    predictions = write_predictions(tmp_path / "p.jsonl", 20_000, clip_s=0.02)
    began_s = time.monotonic()
    with shown(chromium, write_report(predictions, film)) as page:
        assert time.monotonic() - began_s < 10
        assert page.locator("#count").text_content() == "20,000 clips"
        assert page.locator("#body tr").count() < 60
        drawing_ms = page.evaluate(
            "(() => { const t = performance.now(); drawTimeline(); return performance.now() - t; })()"
        )
        assert drawing_ms < 250
        moving_ms = page.evaluate(
            "(() => { const t = performance.now(); for (let i = 0; i < 100; i++) follow(4 * i); return performance.now() - t })()"
        )
        assert moving_ms < 1600  # a hundred frames at 60 Hz
        page.evaluate("document.getElementById('scroll').scrollTop = 15000 * 30")
        wait_until(page, "document.querySelector('#body tr[data-index]').dataset.index > 14000")
        page.locator("#body tr[data-index='15000']").click()
        assert time_of(page) == pytest.approx(300, abs=0.05)
