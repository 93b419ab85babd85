"""What the tests of the page and of its server share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.serving import Server, running
from memvit.app import Service
from tiny_models import small_model
from video.encode import cut, write_video


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a small model with memory: clips of 4 frames, 0.53 s, and 5 classes."""
    folder = tmp_path_factory.mktemp("temporary")
    service = Service(small_model(), "small", folder=str(folder))
    with running(service) as server:
        yield server
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ok.mp4 (3 s), short.mp4 (1 s), cut.mkv (cut off), text.mp4 and empty.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "ok.mp4", 90)
    write_video(folder / "short.mp4", 30)
    cut(write_video(folder / "cut.mkv", 240, size=(96, 128)), 0.6)
    (folder / "text.mp4").write_text("hello\n" * 100)
    (folder / "empty.mp4").write_bytes(b"")
    return folder
