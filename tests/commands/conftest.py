"""What the tests of the subcommands share: a small model on disk, and videos of every kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from memvit.cli import main
from tiny_models import small_model
from video.encode import barcode, cut, damage, write_audio, write_image, write_video

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` (clips of 4 frames, 5 classes), `ok.mp4` (3 s), and everything that can be wrong with videos."""
    folder = tmp_path_factory.mktemp("data")
    small_model().save_pretrained(folder / "model")
    write_video(folder / "ok.mp4", 90)
    write_video(folder / "one.mp4", 1)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("hello\n" * 100)
    cut(write_video(folder / "truncated.mp4", 90), 0.5)
    cut(write_video(folder / "cut.mkv", 240, size=(96, 128)), 0.6)
    damage(write_video(folder / "damaged.mp4", 240, size=(96, 128)), 0.4, 0.6)
    write_audio(folder / "audio.m4a")
    (folder / "no_images").mkdir()
    (folder / "images").mkdir()
    for i in range(12):
        write_image(folder / "images" / f"{i}.png", barcode(i))
    (folder / "videos").mkdir()
    for name in ("b.mp4", "a.mp4"):
        shutil.copy(folder / "one.mp4", folder / "videos" / name)
    (folder / "both").mkdir()
    shutil.copy(folder / "one.mp4", folder / "both")
    shutil.copy(folder / "images" / "0.png", folder / "both")
    return folder


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in an empty folder with `data` beside it: exit code, what stdout says, what stderr says."""
    (tmp_path / "data").symlink_to(data)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return code, said.out, said.err

    return run
