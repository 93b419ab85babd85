"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from memvit.app.board import Board

STEP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Telemetry:
    """Counts what happens; one of each server, so that two in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self.clips = Counter("memvit_clips", "Clips recognised.", registry=self._registry)
        self.received = Counter("memvit_received_bytes", "Bytes of videos that came in.", registry=self._registry)
        self.refused = Counter("memvit_refused", "What was not accepted.", ("status",), registry=self._registry)
        self._started = Counter("memvit_started", "What was accepted.", ("kind",), registry=self._registry)
        self._ended = Counter("memvit_ended", "What has ended.", ("state",), registry=self._registry)
        self._step_s = Histogram(
            "memvit_step_seconds", "Time of a step of the model.", buckets=STEP_BUCKETS_S, registry=self._registry
        )
        self._batch = Histogram(
            "memvit_step_clips", "Clips of a step of the model.", buckets=(1, 2, 4, 8, 16, 32), registry=self._registry
        )

    def watch(self, board: Board) -> None:
        """Adds how many jobs are in which state."""
        self._registry.register(_States(board))

    def note_start(self, kind: str) -> None:
        """Something was accepted."""
        self._started.labels(kind).inc()

    def note_end(self, state: str) -> None:
        """Something has ended."""
        self._ended.labels(state).inc()

    def note_step(self, num_clips: int, seconds: float) -> None:
        """The model made a step."""
        self._step_s.observe(seconds)
        self._batch.observe(num_clips)

    def render(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)


class _States(Collector):
    """How many jobs are in which state, counted when somebody asks."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[GaugeMetricFamily]:
        states = GaugeMetricFamily("memvit_jobs", "Recognitions that are kept, by state.", labels=("state",))
        for state, number in self._board.counts().items():
            states.add_metric((state,), number)
        yield states
