"""Photographs the page of `memvit serve` after it has watched a shell game, with memory and without.

python docs/figures/draw_serve.py    (needs Chromium and Playwright: pip install 'memvit[dev]')

The server and the page are those of `memvit serve`, and the answers those of the package's model with memory; as there,
"without memory" is the same model with an empty memory at every clip. Only what runs the model differs: it is asked about
cups, so somebody has to say where the cups are, which `memvit serve` never knows.
"""

import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from torch import Tensor

from memvit.app import Service, create_app
from memvit.app.job import Job
from memvit.datasets.scenes import Scene
from memvit.demo.shell_game import PLACES, Turn, load_models, record_game, watch
from memvit.models.memvit import MeMViT
from memvit.online.results import ClipRecord, ResultWriter

GAME_S, SHOWN_S = 64, 39.0
WITH, WITHOUT = "with memory", "without memory"


class Forgetful:
    """A model that remembers nothing.

    Args:
        model: with memory.
    """

    def __init__(self, model: MeMViT) -> None:
        self.model = model

    def __call__(self, clips: Tensor, memory: Any, *, boxes: Any) -> Any:
        """As the model, with an empty memory."""
        return self.model(clips, None, boxes=boxes)


class GameService(Service):
    """Recognises one game, whoever uploads it.

    Args:
        folder: of the game, as `record_game` left it.
        scene: what was recorded.
    """

    def __init__(self, folder: Path, scene: Scene) -> None:
        model = load_models()[WITH]
        self._game, self._scene, self._models = folder, scene, {WITH: model, WITHOUT: Forgetful(model)}
        config = model.config.replace(task="clip", num_classes=len(PLACES))
        super().__init__(MeMViT(config), "shell game")

    def _run(self, job: Job) -> None:
        began_s = time.monotonic()
        turns = watch(self._game, self._scene, self._models)
        with ResultWriter(job.results, ("",)) as writer:
            for clip, turn in enumerate(turns):
                answers = {name: _ranked(turn, name) for name in self._models}
                start_s, end_s = turn.second - 0.5, turn.second + 0.5
                job.add_clip(
                    {
                        "clip": clip,
                        "start_s": start_s,
                        "end_s": end_s,
                        "about_s": None,
                        **_classes(answers[WITH]),
                        "without": _classes(answers[WITHOUT]),
                    }
                )
                writer.write(ClipRecord(job.name, clip, start_s, end_s, (answers[WITH],)))
        job.done_s = job.total_s = float(GAME_S)
        job.speed = GAME_S / (time.monotonic() - began_s)
        job.end("complete")


def main() -> None:
    """Writes serve.png beside this file."""
    target = Path(__file__).parent / "serve.png"
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as name, socket.socket() as listener, sync_playwright() as playwright:
        folder = Path(name)
        video, scene = record_game(folder, seed=7, duration_s=GAME_S, size=320, fps=24.0)
        server = uvicorn.Server(uvicorn.Config(create_app(GameService(folder, scene)), log_level="warning"))
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page(color_scheme="light", viewport={"width": 1280, "height": 800})
            page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}")
            _show(page, video)
            page.screenshot(path=target)
        finally:
            browser.close()
            server.should_exit = True
            thread.join()
    picture = Image.open(target).convert("RGB").quantize(192, dither=Image.Dither.NONE)
    picture.save(target, optimize=True)


def _show(page: Page, video: Path) -> None:
    """Uploads the game, and goes to the moment once it is recognised."""
    page.locator("#start").wait_for()
    page.check("#compare")
    page.set_input_files("#file", video)
    page.locator("#results").wait_for(timeout=120_000)
    plot = page.locator("#plot").bounding_box()
    assert plot is not None
    page.mouse.click(plot["x"] + plot["width"] * SHOWN_S / GAME_S, plot["y"] + 5)
    page.mouse.move(0, 0)
    page.evaluate("video.controls = false")
    page.wait_for_timeout(1000)


def _ranked(turn: Turn, model: str) -> tuple[tuple[str, float], ...]:
    ranked = sorted(zip(turn.scores[model].tolist(), PLACES, strict=True), reverse=True)
    return tuple((f"ball under the {place} cup", score) for score, place in ranked)


def _classes(labels: tuple[tuple[str, float], ...]) -> dict[str, Any]:
    return {"topk": [[{"label": label, "score": score} for label, score in labels]], "actions": []}


if __name__ == "__main__":
    main()
