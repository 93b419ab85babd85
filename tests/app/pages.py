"""Visitors of the page in a browser, and a model whose clips come when a test says so."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from app.serving import Server, running
from memvit.app import Service
from report.pages import wait_until
from tiny_models import small_model

CLASSES = ("cut onion", "pour water", "stir <b>soup</b>", "take cup", "wash pan")
NUM_CLIPS = 23  # of 3 s, in clips of 4 frames at 30 frames a second; memory reaches over 8 clips and the clip itself
CLIP_S, REACH_S = 4 / 30, 9 * 4 / 30


class Gate(torch.nn.Module):
    """Stands where a model's last layer does, and lets clips through when it is open, or as many as it was told.

    Args:
        layer: of the model.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._changed = threading.Condition()
        self._num_left = 0
        self._is_open = True
        self.register_forward_hook(lambda *_: None)  # with a hook it is called in every step, where others are recorded

    def forward(self, *inputs: Any) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or self._num_left > 0, timeout=30)
            self._num_left -= 1
        return self.layer(*inputs)

    def let_pass(self, number: int) -> None:
        """From now on so many steps of the model, and then none."""
        with self._changed:
            self._is_open, self._num_left = False, number
            self._changed.notify_all()

    def open(self) -> None:
        """From now on all."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()


class Cable:
    """What lies between a visitor and a server on this machine, and can be cut.

    Args:
        url: of the server.

    Attributes:
        url: under which it is reached through the cable.
    """

    def __init__(self, url: str) -> None:
        self._port = urlsplit(url).port
        self._ends: list[socket.socket] = []
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Breaks all connections; new ones break at once."""
        self._is_cut = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """New connections work again."""
        self._is_cut = False

    def close(self) -> None:
        """Takes it away."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=_carry, args=(source, target), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def gate_and_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gate, Server]]:
    model = small_model(class_names=(CLASSES,), sampling_rate=1)
    folder = tmp_path_factory.mktemp("temporary")
    service = Service(model, "small", sources=True, folder=str(folder))
    gate = model.head = Gate(model.head)
    with running(service) as server:
        yield gate, server


@pytest.fixture
def gate(gate_and_server: tuple[Gate, Server]) -> Iterator[Gate]:
    gate = gate_and_server[0]
    yield gate
    gate.open()


@pytest.fixture
def page_server(gate_and_server: tuple[Gate, Server]) -> Server:
    """Clips of 0.13 s, with memory over 1.2 s; sources are allowed."""
    return gate_and_server[1]


@contextmanager
def visit(browser: Any, url: str, allowed: Sequence[str] = (), **options: Any) -> Iterator[Any]:
    """The page as a visitor of its own sees it, once it is ready.

    Fails on an error in the page or its console, and on anything that it asks somebody else than the server for.

    Args:
        browser: of the fixture.
        url: of the server, with or without what stands after it.
        allowed: parts of messages in the console that are meant to come.
        options: of the browser's context.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    page = context.new_page()
    errors: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    wait_until(page, "document.getElementById('start').hidden !== document.getElementById('watch').hidden")
    try:
        yield page
        assert [error for error in errors if not any(part in error for part in allowed)] == []
        own = url.partition("#")[0].rstrip("/")
        assert [asked for asked in requests if not asked.startswith((f"{own}/", "blob:", "data:"))] == []
    finally:
        context.close()


def give(page: Any, video: Path, compare: bool = False) -> None:
    """Chooses a video, and says whether also without memory."""
    page.locator("#compare").set_checked(compare)
    page.set_input_files("#file", video)


def wait_for_text(page: Any, selector: str, part: str, timeout_s: float = 10.0) -> str:
    """The text of an element that is seen, as soon as a part of it is as wanted."""
    element = page.locator(selector)
    element.filter(has_text=part).filter(visible=True).first.wait_for(timeout=1000 * timeout_s)
    return str(element.first.inner_text())


def wait_for_end(page: Any, timeout_s: float = 15.0) -> str:
    """What is said once everything is recognised."""
    page.locator("#results").wait_for(timeout=1000 * timeout_s)
    return str(page.locator("#state").inner_text())


def hide(page: Any, is_hidden: bool) -> None:
    """As browsers do when another tab is seen instead, which they do not where there is no window."""
    page.evaluate(
        """(isHidden) => {
          Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        is_hidden,
    )


def click_timeline(page: Any, share: float) -> None:
    """Clicks on a place of the timeline, from 0 on its left to 1 on its right."""
    plot = page.locator("#plot").bounding_box()
    page.mouse.click(plot["x"] + share * plot["width"], plot["y"] + 40)


def place(page: Any, selector: str) -> tuple[float, float]:
    """From where to where an element of the timeline reaches, from 0 to 1."""
    plot, box = page.locator("#plot").bounding_box(), page.locator(selector).bounding_box()
    return (box["x"] - plot["x"]) / plot["width"], (box["x"] + box["width"] - plot["x"]) / plot["width"]


def colors_at(page: Any, share: float, y: float) -> tuple[int, int, int, int]:
    """The colour that is drawn at a place of the timeline, `y` pixels below its top."""
    script = """([share, y]) => {
      const c = document.getElementById('drawing'), scale = c.width / c.clientWidth;
      return [...c.getContext('2d').getImageData(Math.min(share * c.width, c.width - 1), y * scale, 1, 1).data];
    }"""
    red, green, blue, alpha = page.evaluate(script, [share, y])
    return red, green, blue, alpha
