"""A real server on this machine, in a thread, and what its tests ask it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import uvicorn

from memvit.app import Service, create_app


@dataclass(frozen=True)
class Server:
    """A server that runs, and its service."""

    url: str
    service: Service

    def ask(
        self, path: str, data: bytes | None = None, method: str | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = Request(f"{self.url}/{path}", data, named, method=method)
        try:
            with urlopen(request, timeout=30) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def json(self, path: str, data: bytes | None = None, method: str | None = None, **headers: str) -> Any:
        """The JSON of an answer that is no error."""
        status, body, _ = self.ask(path, data, method, **headers)
        assert status < 400, body
        return json.loads(body)

    def refusal(
        self, path: str, data: bytes | None = None, method: str | None = None, **headers: str
    ) -> tuple[int, str]:
        """Status and sentence of an answer that is an error."""
        status, body, _ = self.ask(path, data, method, **headers)
        assert status >= 400, body
        return status, json.loads(body)["error"]

    def upload(self, video: Path, name: str | None = None, compare: bool = False) -> str:
        """The id under which a video is recognised."""
        query = f"name={name or video.name}&compare={int(compare)}"
        id: str = self.json(f"api/jobs?{query}", video.read_bytes())["id"]
        return id

    def ended(self, id: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """How it has ended."""
        return self.until(id, lambda state: state["state"] not in ("waiting", "running"), timeout_s)

    def until(self, id: str, condition: Any, timeout_s: float = 30.0) -> dict[str, Any]:
        """The first state that is as wanted."""
        end_s = time.monotonic() + timeout_s
        while True:
            state: dict[str, Any] = self.json(f"api/jobs/{id}")
            if condition(state):
                return state
            assert time.monotonic() < end_s, state
            time.sleep(0.02)

    def events(self, id: str, last_id: int | None = None) -> list[tuple[str, int | None, Any]]:
        """All events until the end: their kind, id and data."""
        headers = {} if last_id is None else {"Last_Event_ID": str(last_id)}
        status, body, _ = self.ask(f"api/jobs/{id}/events", **headers)
        assert status == 200
        found = []
        for block in body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in fields:
                number = int(fields["id"]) if "id" in fields else None
                found.append((fields["event"], number, json.loads(fields["data"])))
        return found


@contextlib.contextmanager
def running(service: Service, **options: Any) -> Iterator[Server]:
    """Serves on a free port until the block ends.

    Args:
        service: what is served; it is closed at the end.
        options: of `create_app`.
    """
    app = create_app(service, **options)
    settings = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
