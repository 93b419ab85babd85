"""What the server does for its visitors, without the web: one model, many recognitions."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import memvit
from memvit.app.board import Board
from memvit.app.camera import VisitorCamera
from memvit.app.job import Job
from memvit.app.limits import Limits
from memvit.app.recognition import WatchedRecognizer, plain_reason, recognise
from memvit.app.telemetry import Telemetry
from memvit.models.memvit import MeMViT
from memvit.online.predict import head_names_of
from memvit.online.prediction import has_actions
from memvit.online.results import UNTRAINED_NOTICE
from memvit.online.runs import VideoSource
from memvit.online.shared_engine import SharedEngine
from memvit.report import write_report
from memvit.report.page import REPORT_FILE
from memvit.video import LiveSource, VideoError, VideoReader, is_live, without_password

logger = logging.getLogger(__name__)

# What FFmpeg may open for a visitor who names an address. Its other protocols read files of the server.
ADDRESSES = re.compile(r"(?:rtsps?|rtmps?|https?|udp|srt|rtp)://\S+|/dev/video\d+", re.IGNORECASE)

CAMERA_HEIGHT = 256
MAX_ATTEMPTS = 3  # to connect, in a row: a visitor with a wrong address waits for the answer


class Service:
    """One model for all visitors; each has streams, and so memories, of their own.

    Args:
        model: what all of them share, on its device.
        name: what it is called.
        untrained: its weights are random, and visitors are told.
        head_names: what its heads are called; None: as its config does.
        limits: what visitors may ask for.
        sources: visitors may name addresses and cameras for the server to open.
        dtype, max_batch_size, compile: as for `SharedEngine`.
        folder: where temporary files go; the system's own place where None.
        on_idle: called when the last recognition that ran has ended.
        rates: how clips are taken, as for `OnlineRecognizer`: fps, sampling_rate, stride, keep_aspect.

    Raises:
        ValueError: a model that classifies boxes, or a rate that is none.
    """

    def __init__(
        self,
        model: MeMViT,
        name: str,
        *,
        untrained: bool = False,
        head_names: Sequence[str] | None = None,
        limits: Limits | None = None,
        sources: bool = False,
        dtype: torch.dtype | None = None,
        max_batch_size: int = 8,
        compile: bool = False,
        folder: str | None = None,
        on_idle: Callable[[], object] | None = None,
        **rates: Any,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self.sources = sources
        self.name = name
        self.untrained = untrained
        self.telemetry = Telemetry()
        self._model = model.eval()
        self._rates = rates
        number_format = None if dtype in (None, torch.float32) else dtype
        self.engine = SharedEngine(
            self._model,
            number_format,
            max_batch_size=min(max_batch_size, self.limits.running),  # each asks for one clip at a time
            compile=compile,
            on_step=self.telemetry.note_step,
        )
        try:
            probe = WatchedRecognizer(self._model, self.engine, lambda *_: None, **rates)
            self.head_names = head_names_of(probe, head_names)
            probe.warm_up()
            self.board = Board(self.limits, self._run, folder, on_idle)
        except BaseException:
            self.engine.close()
            raise
        self._grid = probe.grid
        self._encoding = threading.Lock()  # reports encode videos, and the model needs the processor as well
        self.telemetry.watch(self.board)

    def about(self) -> dict[str, Any]:
        """What the page has to know before anything is recognised."""
        config, head = self._model.config, self._model.config.head
        clip_s = self._grid.num_frames * self._grid.period_s
        step_s = min(self._grid.stride, self._grid.num_frames) * self._grid.period_s
        return {
            "model": self.name,
            "version": memvit.__version__,
            "untrained": self.untrained,
            "notice": UNTRAINED_NOTICE if self.untrained else "",
            "heads": [
                {"name": name, "num_classes": number}
                for name, number in zip(self.head_names, head.num_classes, strict=True)
            ],
            "actions": has_actions(head),
            "anticipation_s": head.anticipation_s,
            "clip_s": clip_s,
            "reach_s": clip_s + config.support_clips * step_s,
            "memory": self.has_memory,
            "camera": {"fps": round(1 / self._grid.period_s, 3), "height": max(CAMERA_HEIGHT, config.crop_size)},
            "sources": self.sources,
            "limits": {
                "upload_bytes": self.limits.upload_bytes,
                "duration_s": self.limits.duration_s,
                "running": self.limits.running,
                "waiting": self.limits.waiting,
                "keep_s": self.limits.keep_s,
            },
        }

    @property
    def has_memory(self) -> bool:
        """Whether the model remembers anything, so that there is something to compare."""
        return self._model.config.support_clips > 0

    def check_upload(self, job: Job) -> None:
        """Looks at a video that has come in, before it waits for its turn.

        Raises:
            ValueError: a sentence for the visitor.
        """
        try:
            with VideoReader(job.upload, max_pixels=self.limits.pixels) as reader:
                duration_s = reader.info.duration_s
        except VideoError as error:
            logger.info("%s (%s) was refused: %s", job.id[:8], job.name, error)
            raise ValueError(plain_reason(error, job)) from error
        if duration_s is not None and duration_s > self.limits.duration_s:
            raise ValueError(
                f"{job.name} lasts {duration_s / 60:,.1f} minutes, and the server takes videos of up to "
                f"{self.limits.duration_s / 60:,.1f} minutes: cut it into parts."
            )

    def start(self, job: Job) -> None:
        """Lets a job wait for its turn."""
        self.telemetry.note_start(job.kind)
        self.board.submit(job)

    def start_camera(self, compare: bool) -> Job:
        """A visitor's camera; its pictures are pushed into `job.live`.

        Raises:
            BusyError: there is no room for more.
        """
        job = self.board.new("camera", "camera", compare and self.has_memory)
        job.live = VisitorCamera(job.name)
        self.start(job)
        return job

    def start_source(self, address: str, compare: bool) -> Job:
        """An address, or a camera of the server.

        Raises:
            ValueError: no address that may be opened; a sentence for the visitor.
            BusyError: there is no room for more.
        """
        if not ADDRESSES.fullmatch(address):
            raise ValueError(
                "Give an address such as rtsp://camera/stream, or a camera of the server such as /dev/video0."
            )
        job = self.board.new(without_password(address), "source", compare and self.has_memory)
        job.address = address
        self.start(job)
        return job

    def report(self, job: Job) -> Path:
        """The report page of a video that was recognised; made when it is first asked for.

        Raises:
            ValueError: it cannot be made.
        """
        path = job.results / REPORT_FILE
        with job.making_report:
            if not path.is_file():
                with self._encoding:
                    write_report(job.results, job.upload, path, name=job.name)
        return path

    def end_visits(self) -> None:
        """Takes nothing more and lets every visitor's connection end: the first thing to do before `close`."""
        self.board.end_visits()

    def close(self) -> None:
        """Stops everything and removes all files."""
        self.board.close()
        self.engine.close()

    def _open(self, job: Job) -> VideoSource:
        if job.live is not None:
            return job.live
        if job.address is None or not is_live(job.address):
            # A video that does not tell its duration ends here.
            path = job.address or job.upload
            return VideoReader(path, end_s=self.limits.duration_s, max_pixels=self.limits.pixels)
        job.live = LiveSource(job.address, max_attempts=MAX_ATTEMPTS, on_event=job.note_event)
        return job.live

    def _run(self, job: Job) -> None:
        """A job from its turn to its end, in a thread of its own."""
        recognise(
            job,
            lambda: self._open(job),
            self._model,
            self.engine,
            rates=self._rates,
            max_duration_s=self.limits.duration_s,
            on_clip=self.telemetry.clips.inc,
            head_names=self.head_names if len(self.head_names) > 1 else None,
            model_name=self.name,
            untrained=self.untrained,
        )
        self.telemetry.note_end(job.state)
