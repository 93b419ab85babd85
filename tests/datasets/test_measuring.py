from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from counted_videos import write

from memvit.datasets import measuring
from memvit.datasets.annotations import AnnotationFile, Measured, VideoFolder
from memvit.datasets.measuring import measure_once

NUM_VIDEOS = 20
SIZE = Measured(0.4, 32, 48)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AnnotationFile:
    """Annotations of twenty videos, which are measured eight by eight and kept on disk."""
    monkeypatch.setenv("MEMVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "MIN_KEPT", 1)
    monkeypatch.setattr(measuring, "PER_TASK", 1)
    folder = tmp_path / "videos"
    folder.mkdir()
    write(folder / "00.mp4", 0, 4, (32, 48))
    for number in range(1, NUM_VIDEOS):
        shutil.copy(folder / "00.mp4", folder / f"{number:02d}.mp4")
    return annotations(tmp_path)


def annotations(root: Path) -> AnnotationFile:
    file = AnnotationFile(root / "list.csv", VideoFolder(root / "videos"), ("label",))
    for line in range(1, NUM_VIDEOS + 1):
        file.video(f"{line - 1:02d}.mp4", line)
    return file


def opened(file: AnnotationFile) -> tuple[list[Measured | str], int]:
    """What is measured, and how many videos are opened for it."""
    seen: list[tuple[int, int]] = []
    found = measure_once(file, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]
    return [found[path] for path in file.paths.values()], len(seen)


def test_a_video_is_opened_once(file: AnnotationFile) -> None:
    assert opened(file) == ([SIZE] * NUM_VIDEOS, NUM_VIDEOS)
    assert opened(file) == ([SIZE] * NUM_VIDEOS, 0)


def test_what_is_known_does_not_depend_on_where_the_folder_is_seen_from(
    file: AnnotationFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(file)
    monkeypatch.chdir(tmp_path)
    assert opened(annotations(Path())) == ([SIZE] * NUM_VIDEOS, 0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "videos").symlink_to(tmp_path / "videos")
    assert opened(annotations(tmp_path / "elsewhere")) == ([SIZE] * NUM_VIDEOS, 0)


def test_a_video_that_has_changed_is_opened_again(file: AnnotationFile) -> None:
    opened(file)
    write(file.folder.path / "05.mp4", 0, 8, (32, 48))
    os.utime(file.folder.path / "07.mp4", (1, 1))
    found, num_opened = opened(file)
    assert found == [*[SIZE] * 5, Measured(0.8, 32, 48), *[SIZE] * 14]
    assert num_opened == 2


def test_a_video_that_cannot_be_read_is_tried_again(file: AnnotationFile) -> None:
    (file.folder.path / "03.mp4").write_bytes(b"no video")
    for expected in (NUM_VIDEOS, 1):
        found, num_opened = opened(file)
        assert num_opened == expected
        assert "03.mp4" in str(found[3])
        assert found[:3] + found[4:] == [SIZE] * 19


def test_what_was_measured_before_an_interruption_is_kept(file: AnnotationFile) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_once(file, on_progress=interrupt)
    assert opened(file)[1] == NUM_VIDEOS - 8  # the first eight were complete


def test_what_another_process_measured_meanwhile_is_kept_as_well(file: AnnotationFile) -> None:
    one, other = (measuring._Kept(file.folder.path) for _ in range(2))
    paths = list(file.paths.values())
    versions = measuring._versions(paths)
    one.add({paths[0]: SIZE}, versions)
    other.add({paths[1]: SIZE}, versions)
    one.save()
    other.save()
    assert opened(file) == ([SIZE] * NUM_VIDEOS, NUM_VIDEOS - 2)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 0, "videos": {"00.mp4": []}}', "{"])
def test_a_file_that_is_not_ours_is_written_anew(file: AnnotationFile, content: str) -> None:
    opened(file)
    (kept,) = (Path(os.environ["MEMVIT_CACHE"]) / "videos").iterdir()
    kept.write_text(content)
    assert opened(file)[1] == NUM_VIDEOS
    assert len(json.loads(kept.read_text())["videos"]) == NUM_VIDEOS


def test_a_disk_that_cannot_be_written_is_no_error(
    file: AnnotationFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert opened(file) == ([SIZE] * NUM_VIDEOS, NUM_VIDEOS)
    assert "cannot be written" in caplog.text
    assert "set MEMVIT_CACHE to another folder" in caplog.text


def test_few_videos_leave_nothing_behind(file: AnnotationFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MIN_KEPT", NUM_VIDEOS + 1)
    assert opened(file) == ([SIZE] * NUM_VIDEOS, NUM_VIDEOS)
    assert not Path(os.environ["MEMVIT_CACHE"]).exists()
