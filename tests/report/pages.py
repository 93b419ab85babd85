"""Videos and predictions for reports, and their pages in a browser."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from video.encode import write_video


def write_predictions(path: Path, clips: int, video: str = "film.mp4", clip_s: float = 1.0, **fields: Any) -> Path:
    """Clips of which one in two is of "pour", the others of "cut"; "stir" is always the second best."""
    with open(path, "w") as file:
        for clip in range(clips):
            best = "pour" if clip % 2 else "cut"
            topk = [[{"label": best, "score": 0.8}, {"label": "stir", "score": 0.1}]]
            line = {
                "video": video,
                "clip": clip,
                "start_s": clip * clip_s,
                "end_s": (clip + 1) * clip_s,
                "topk": topk,
                **fields,
            }
            file.write(json.dumps(line) + "\n")
    return path


def write_film(path: Path, duration_s: int = 8, **options: Any) -> Path:
    """A plain grey video of 10 frames a second."""
    return write_video(path, [np.full((96, 128, 3), 90, np.uint8)] * (10 * duration_s), fps=10, **options)


@contextmanager
def shown(browser: Any, page_file: Path, **options: Any) -> Iterator[Any]:
    """The page in a browser once its video is loaded. Fails on an error in the page, or anything it asks a network for."""
    context = browser.new_context(**options)
    page = context.new_page()
    errors: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.resolve().as_uri())
    wait_until(page, "video.readyState >= 2")
    try:
        yield page
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "blob:", "data:"))] == []
    finally:
        context.close()


def time_of(page: Any) -> float:
    """Where the video is, seconds."""
    wait_until(page, "!video.seeking")
    return float(page.evaluate("video.currentTime"))


def wait_until(page: Any, expression: str, timeout_s: float = 10.0) -> None:
    """Waits for something in the page. (Playwright's own function polls with `eval`, which the page forbids.)"""
    end_s = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < end_s, f"still not: {expression}"
        page.wait_for_timeout(20)
