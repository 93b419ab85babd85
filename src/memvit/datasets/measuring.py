"""How long and large very many videos are, kept on disk: opening half a million of them takes from minutes to hours."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from memvit.datasets.annotations import IMAGE_FPS, NUM_PROBES, AnnotationFile, Measured, Progress, measure
from memvit.models.zoo import cache_dir

logger = logging.getLogger(__name__)

MIN_KEPT = 1000  # fewer videos are opened in seconds, every time
SAVE_EVERY_S = 60.0
PER_TASK = 256  # for a thread: enough that handing it over costs nothing
FORMAT = 1

# Of a video file: time of its last change in nanoseconds, bytes. What was measured is true of that version alone.
Version = tuple[int, int]


def measure_once(
    file: AnnotationFile, *, image_fps: float = IMAGE_FPS, on_progress: Progress | None = None
) -> dict[Path, Measured | str]:
    """As `measure`, but opens only what is new: what was measured before is read from a file, and added to it.

    The file lies in `cache_dir`, one for every folder with videos. A video that has changed since is opened again, one that
    could not be read as well, and folders of images are never kept. What an interrupted call measured is not lost.

    Args:
        file: the annotations.
        image_fps: images per second of folders of images.
        on_progress: called with (videos opened, videos to be opened); not at all where everything is known.
    """
    if len(file.paths) < MIN_KEPT:
        return measure(file, image_fps=image_fps, on_progress=on_progress)
    kept = _Kept(file.folder.path)
    versions = _versions(file.paths.values())
    found: dict[Path, Measured | str] = {path: size for path in versions if (size := kept.get(path, versions[path]))}
    new = {name: path for name, path in file.paths.items() if path not in found}
    num_done = 0

    def show(done: int, _: int) -> None:
        if on_progress is not None:
            on_progress(num_done + done, len(new))

    try:
        for names in _batched(list(new), NUM_PROBES * PER_TASK):
            part = dataclasses.replace(file, paths={name: new[name] for name in names})
            measured = measure(part, image_fps=image_fps, on_progress=show)
            found |= measured
            kept.add(measured, versions)
            num_done += len(names)
    finally:
        kept.save()
    return found


def _versions(paths: Iterable[Path]) -> dict[Path, Version | None]:
    """The version of every file; None for folders and for what cannot be looked at."""

    def look(some: Sequence[Path]) -> list[Version | None]:
        return [_version(path) for path in some]

    batches = _batched(list(paths), PER_TASK)
    with ThreadPoolExecutor(NUM_PROBES) as pool:  # on a network drive every look takes its time
        found = pool.map(look, batches)
        return dict(zip(itertools.chain(*batches), itertools.chain(*found), strict=True))


def _version(path: Path) -> Version | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return None if stat.S_ISDIR(status.st_mode) else (status.st_mtime_ns, status.st_size)


def _batched(items: Sequence, size: int) -> list[Sequence]:
    return [items[first : first + size] for first in range(0, len(items), size)]


class _Kept:
    """What is known of the videos of a folder, on disk.

    Args:
        folder: of the videos.
    """

    def __init__(self, folder: Path) -> None:
        self._prefix = os.path.join(folder, "")
        where = os.path.realpath(folder)
        digest = hashlib.sha256(where.encode()).hexdigest()[:12]
        self.path = cache_dir() / "videos" / f"{os.path.basename(where) or 'root'}-{digest}.json"
        self._videos = self._read()
        self._added: dict[str, list[float]] = {}
        self._saved_at = time.monotonic()

    def get(self, path: Path, version: Version | None) -> Measured | None:
        """What was measured of a version of a video; None if nothing was."""
        row = self._videos.get(self._key(path))
        if row is None or version is None or (row[0], row[1]) != version:
            return None
        return Measured(float(row[2]), int(row[3]), int(row[4]))

    def add(self, measured: Mapping[Path, Measured | str], versions: Mapping[Path, Version | None]) -> None:
        """Keeps what can be kept, and writes it down if that was long ago."""
        for path, size in measured.items():
            version = versions[path]
            if version is not None and not isinstance(size, str):
                self._added[self._key(path)] = [*version, *size]
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Writes down what is new, beside what other processes may have written; a full or protected disk is no error."""
        if not self._added:
            return
        self._videos = {**self._videos, **self._read(), **self._added}
        self._added = {}
        self._saved_at = time.monotonic()
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"format": FORMAT, "videos": self._videos}), encoding="utf-8")
            os.replace(part, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            logger.warning(
                "%s cannot be written (%s): videos are opened again next time; set MEMVIT_CACHE to another folder",
                *(self.path, error.strerror),
            )

    def _key(self, path: Path) -> str:
        return os.fspath(path).removeprefix(self._prefix)

    def _read(self) -> dict[str, list[float]]:
        """Nothing where there is no such file, or it is not one of ours."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return content["videos"] if content["format"] == FORMAT else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.debug("%s cannot be used: %s", self.path, error)
            return {}
