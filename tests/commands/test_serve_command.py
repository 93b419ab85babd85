from __future__ import annotations

import builtins
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from commands.conftest import Run

SHELL_GAME = "memvit_16x4_ava"


def test_a_port_that_is_taken_is_one_line(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("serve", "--model", "data/model", "--port", str(port))
    assert code == 1
    assert err.startswith(f"error: cannot listen on 127.0.0.1, port {port}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "memvit_tinny"), "did you mean memvit_tiny"),
        ((), "which model? give --model"),
        (("--model", SHELL_GAME), "classifies boxes"),
        (("--model", "data/model", "--max_running", "0"), "--max_running 0 lets nothing through"),
        (("--model", "data/model", "--max_upload_mb", "0"), "--max_upload_mb 0 lets nothing through"),
        (("--model", "data/model", "--folder", "nowhere"), "there is no folder nowhere"),
        (("--model", "data/model", "--host", "no.such.host.invalid"), "no such address"),
        (("--model", "data/model", "--port", "99999"), "port"),
        (("--model", "data/model", "--stride", "0"), "stride=0 must be above 0"),
        (("--model", "data/model", "--labels", "none.txt"), "there is no labels file none.txt"),
    ],
)
def test_what_cannot_be_served_is_one_line(run: Run, options: tuple[str, ...], says: str) -> None:
    code, _, err = run("serve", "--port", "0", *options)
    assert code == 1
    assert says in err
    assert err.count("\n") == 1


def test_it_ends_at_once_though_somebody_watches_and_somebody_sends(data: Path) -> None:
    command = [sys.executable, "-m", "memvit", "serve", "--model", str(data / "model"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = next(found for line in server.stderr if (found := re.search(r"http://(127\.0\.0\.1):(\d+)", line)))
        camera = http.client.HTTPConnection(address[1], int(address[2]))
        camera.request("POST", "/api/jobs/camera", b"{}", {"Content-Type": "application/json"})
        id = json.load(camera.getresponse())["id"]
        with (
            socket.create_connection((address[1], int(address[2]))) as watcher,
            socket.create_connection((address[1], int(address[2]))) as sender,
        ):
            watcher.sendall(f"GET /api/jobs/{id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert b"retry" in watcher.recv(4096) + watcher.recv(4096)
            sender.sendall(b"POST /api/jobs?name=x.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n0")
            time.sleep(0.3)
            server.send_signal(signal.SIGINT)
            rest = server.communicate(timeout=10)[1]
        camera.close()
    assert "ERROR" not in rest
    assert "Traceback" not in rest


def test_without_its_packages_it_says_how_to_install_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    importer = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return importer(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "uvicorn", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    code, _, err = run("serve", "--model", "data/model")
    assert code == 1
    assert err == "error: memvit serve needs uvicorn: pip install 'memvit[app]'\n"
