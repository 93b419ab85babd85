"""Photographs reports, light and dark: of a shell game, and of people whose boxes and actions are made up.

python docs/figures/draw_report.py    (needs Chromium and Playwright: pip install 'memvit[dev]')
"""

import json
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

from memvit.demo.shell_game import PLACES, load_models, record_game, watch
from memvit.online.results import ClipRecord, VideoResult
from memvit.report import write_report
from memvit.video.writer import VideoWriter

GAME_S, FILM_S, FPS = 64, 12, 12
WIDTH, HEIGHT = 640, 360
PEOPLE = ((1, "#c0563b", ("walk", "talk to a person")), (2, "#3f7f6b", ("stand", "watch a person")))


def main() -> None:
    """Writes report.png, report_dark.png and report_people.png beside this file."""
    here = Path(__file__).parent
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        game, people = _game(folder), _people(folder / "people")
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for page, scheme, at_s, target in (
            (game, "light", 41.0, "report.png"),
            (game, "dark", 41.0, "report_dark.png"),
            (people, "dark", 5.3, "report_people.png"),
        ):
            tab = browser.new_page(color_scheme=scheme, viewport={"width": 1180, "height": 940})
            tab.goto(page.as_uri())
            tab.evaluate(
                "new Promise((ready) => (video.readyState > 1 ? ready() : video.addEventListener('loadeddata', ready)))"
            )
            tab.evaluate(f"""new Promise((ready) => {{
                video.controls = false;
                video.addEventListener("seeked", () => setTimeout(ready, 300), {{ once: true }});
                seek({at_s});
            }})""")
            tab.screenshot(path=here / target)
            picture = Image.open(here / target).convert("RGB").quantize(192, dither=Image.Dither.NONE)
            picture.save(here / target, optimize=True)
        browser.close()


def _game(folder: Path) -> Path:
    """The report of a game in which two models, with memory and without, say which cup holds the ball."""
    video, scene = record_game(folder, seed=7, duration_s=GAME_S, size=320, fps=24.0)
    models = load_models()
    with open(folder / "predictions.jsonl", "w") as file:
        for clip, turn in enumerate(watch(folder, scene, models)):
            topk = tuple(_places(turn.scores[name].tolist()) for name in models)
            file.write(ClipRecord(video.name, clip, turn.second - 0.5, turn.second + 0.5, topk).to_json() + "\n")
    heads, end_s = tuple(models), float(GAME_S)
    VideoResult(
        *(video.name, str(folder), "complete", clip + 1, round(24 * end_s), 0.0, end_s, 1.0), head_names=heads
    ).save()
    return write_report(folder, video)


def _places(scores: list[float]) -> tuple[tuple[str, float], ...]:
    ranked = sorted(zip(scores, PLACES, strict=True), reverse=True)
    return tuple((f"ball under the {place} cup", score) for score, place in ranked)


def _people(folder: Path) -> Path:
    """The report of a drawn film in which one person walks past another."""
    folder.mkdir()
    with VideoWriter(folder / "street.mp4", WIDTH, HEIGHT, FPS) as writer:
        for number in range(FILM_S * FPS):
            picture = Image.new("RGB", (WIDTH, HEIGHT), "#c9d6df")
            draw = ImageDraw.Draw(picture)
            draw.rectangle((0, 250, WIDTH, HEIGHT), fill="#8c9aa5")
            for track, color, _ in PEOPLE:
                x1, y1, x2, y2 = (
                    int(c * s) for c, s in zip(_box(track, number / FPS), (WIDTH, HEIGHT) * 2, strict=True)
                )
                draw.ellipse((x1 + 22, y1 + 4, x2 - 22, y1 + 4 + (x2 - x1 - 44)), fill="#f0c8a4")
                draw.rounded_rectangle((x1 + 12, y1 + 46, x2 - 12, y2), 18, fill=color)
            writer.write(np.asarray(picture))
    with open(folder / "detections.jsonl", "w") as file:
        for second in range(FILM_S):
            persons = []
            for track, _, labels in PEOPLE:
                wave = 0.5 + 0.4 * math.sin(second / 1.7 + track)
                scores = sorted(zip((0.9, wave), labels, strict=True), reverse=True)
                actions = [{"label": label, "score": round(score, 3)} for score, label in scores]
                persons.append({"track": track, "box": _box(track, second), "actions": actions})
            line = {"video": "street.mp4", "keyframe": second, "time_s": second, "persons": persons}
            file.write(json.dumps(line) + "\n")
    return write_report(folder, folder / "street.mp4")


def _box(track: int, time_s: float) -> tuple[float, float, float, float]:
    left = 0.06 + 0.06 * time_s if track == 1 else 0.68
    return left, 0.27, left + 0.14, 0.88


if __name__ == "__main__":
    main()
