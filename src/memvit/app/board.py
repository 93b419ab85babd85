"""All that visitors asked for: what waits, what runs, what is kept for how long."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from memvit.app.camera import VisitorCamera
from memvit.app.job import Job, Kind
from memvit.app.limits import Limits

logger = logging.getLogger(__name__)

FOLDER_PREFIX = "memvit-serve-"
SWEEP_PERIOD_S = 1.0
JOIN_TIMEOUT_S = 10.0


class BusyError(Exception):
    """There is no room for more; the message is for the visitor."""


class Board:
    """Starts what waits when its turn comes, each in a thread of its own, and removes what has been kept long enough.

    Args:
        limits: how much there may be of everything.
        run: recognises a job to its end, and ends it.
        folder: where the folder for all files is made; the system's own for temporary files where None.
        on_idle: called when nothing runs any more, for the program to tidy up.
    """

    def __init__(
        self,
        limits: Limits,
        run: Callable[[Job], None],
        folder: str | None = None,
        on_idle: Callable[[], object] | None = None,
    ) -> None:
        self.limits = limits
        self._run = run
        self._on_idle = on_idle
        self._is_idle = True
        _remove_leftovers(Path(folder or tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=folder))
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: dict[Job, threading.Thread] = {}
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_until_closed, name="memvit-sweeper", daemon=True)
        self._sweeper.start()

    @property
    def closed(self) -> bool:
        """Whether the server ends."""
        return self._closed.is_set()

    def new(self, name: str, kind: Kind, compare: bool) -> Job:
        """A job that is counted from now on; it waits for its video until `submit`, or `remove`.

        Raises:
            BusyError: too many wait already, or the disk is full.
        """
        with self._lock:
            num_waiting = sum(job.state in ("receiving", "waiting") for job in self._jobs.values())
            if self.closed:
                raise BusyError("The server is being ended.")
            if num_waiting >= self.limits.waiting:
                raise BusyError(f"The server is busy: {num_waiting} videos wait already. Try again in a minute.")
            if shutil.disk_usage(self.folder).free < self.limits.free_bytes:
                logger.error("the disk of %s is full: visitors are sent away", self.folder)
                raise BusyError("The server has no room for more videos. Try again later.")
            id = secrets.token_urlsafe(18)
            folder = self.folder / id
            folder.mkdir()
            job = self._jobs[id] = Job(id, name, kind, compare, folder)
            return job

    def submit(self, job: Job) -> None:
        """The video is there: it runs as soon as there is room."""
        with self._lock:
            job.state = "waiting"
            self._waiting.append(job)
            self._start_waiting()

    def get(self, id: str) -> Job | None:
        """The job of this id, if there is one."""
        return self._jobs.get(id)

    def position(self, job: Job) -> int:
        """Place in the queue, from 1; 0 if it does not wait."""
        with self._lock:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    def counts(self) -> dict[str, int]:
        """How many jobs are in which state."""
        counts: dict[str, int] = {}
        for job in list(self._jobs.values()):
            counts[job.state] = counts.get(job.state, 0) + 1
        return counts

    def stop(self, job: Job) -> None:
        """Ends a job; what was recognised is kept."""
        with self._lock:
            job.stopping.set()
            if job in self._waiting:
                self._waiting.remove(job)
                job.end("stopped")
            live = job.live
        if isinstance(live, VisitorCamera):
            live.finish()
        elif live is not None:
            live.close()

    def remove(self, job: Job) -> None:
        """Ends a job, and removes everything of it as soon as its thread has gone."""
        with self._lock:
            self._jobs.pop(job.id, None)
            self.stop(job)
            if job not in self._running:
                shutil.rmtree(job.folder, ignore_errors=True)

    def end_visits(self) -> None:
        """Takes nothing more, and tells those who follow a job."""
        self._closed.set()

    def close(self) -> None:
        """Stops everything and removes all files."""
        self.end_visits()
        for job in list(self._jobs.values()):
            self.remove(job)
        ends_s = time.monotonic() + JOIN_TIMEOUT_S
        for thread in [*self._running.values(), self._sweeper]:
            thread.join(max(ends_s - time.monotonic(), 0.0))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self.limits.running and not self.closed:
            job = self._waiting.popleft()
            job.state = "running"
            job.watched_s = time.monotonic()
            thread = threading.Thread(target=self._work, args=(job,), name=f"memvit-job-{job.id[:6]}", daemon=True)
            self._running[job] = thread
            thread.start()

    def _work(self, job: Job) -> None:
        try:
            self._run(job)
        finally:
            with self._lock:
                assert job.has_ended
                del self._running[job]
                if job.id not in self._jobs:  # it was removed while it ran
                    shutil.rmtree(job.folder, ignore_errors=True)
                self._start_waiting()

    def _sweep_until_closed(self) -> None:
        while not self._closed.wait(SWEEP_PERIOD_S):
            try:
                self._sweep(time.monotonic())
            except Exception:
                logger.exception("cleaning up failed; it is tried again")

    def _sweep(self, now_s: float) -> None:
        """Removes what was kept long enough, and ends live sources that nobody watches or feeds."""
        was_idle, self._is_idle = self._is_idle, not self._running
        if self._is_idle and not was_idle and self._on_idle is not None:
            self._on_idle()
        jobs = list(self._jobs.values())
        ended = sorted((job for job in jobs if job.ended_s is not None), key=lambda job: job.ended_s or 0.0)
        surplus = ended[: max(len(ended) - self.limits.kept, 0)]
        old = [job for job in ended if now_s - (job.ended_s or 0.0) > self.limits.keep_s]
        for job in {*surplus, *old}:
            self.remove(job)
        for job in jobs:
            if job.state != "running" or job.live is None:
                continue
            is_silent = isinstance(job.live, VisitorCamera) and now_s - job.live.heard_s > self.limits.silent_s
            if is_silent or (not job.watchers and now_s - job.watched_s > self.limits.unwatched_s):
                logger.info("%s (%s) is stopped: nobody watches it, or nothing comes", job.id[:8], job.name)
                self.stop(job)


def _remove_leftovers(root: Path) -> None:
    """Removes the files of servers that were killed."""
    for folder in root.glob(f"{FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if pid.isdecimal() and folder.is_dir() and not folder.is_symlink() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
