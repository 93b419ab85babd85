"""One model for the recognizers of many threads: what they ask for at the same time goes through it as one batch."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from memvit.models.config import Size3
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.online.engine import StepEngine

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 30.0

Outcome = tuple[list[np.ndarray], list[Memory]]


@dataclass(eq=False)
class _Request:
    """What one thread asks for, and what became of it: a step, or to be warm for clips of a size."""

    clips: Sequence[Tensor] = ()
    memories: Sequence[Memory] = ()
    warm_for: Size3 | None = None
    done: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None
    error: BaseException | None = None


class SharedEngine(StepEngine):
    """Runs the steps of any number of threads in a thread of its own, those that wait at the same time together.

        engine = SharedEngine(model)
        recognizer = OnlineRecognizer(model, engine=engine)  # one in every thread

    Streams are served in the order in which they ask. A batch that fails is tried again one request at a time, so that the
    error reaches only the thread that asked for what cannot be done.

    Args:
        model: in eval mode.
        dtype, max_batch_size, compile: as for `StepEngine`.
        on_step: called after every step with its number of clips and the seconds that it took, in the engine's thread.
    """

    def __init__(
        self,
        model: MeMViT,
        dtype: torch.dtype | None = None,
        *,
        max_batch_size: int = 8,
        compile: bool = False,
        on_step: Callable[[int, float], None] | None = None,
    ) -> None:
        super().__init__(model, dtype, max_batch_size=max_batch_size, compile=compile)
        self.warm_sizes = range(1, max_batch_size + 1)  # any number of threads may ask at a time
        self._on_step = on_step
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="memvit-engine", daemon=True)
        self._thread.start()

    def warm_up(self, clip_size: Size3) -> None:
        """As `StepEngine.warm_up`. In the thread that will run the steps: CUDA graphs belong to the thread that recorded them."""
        self._ask(_Request(warm_for=clip_size))

    def step(self, clips: Sequence[Tensor], memories: Sequence[Memory]) -> Outcome:
        """As `StepEngine.step`, from any thread; waits until it is done.

        Raises:
            RuntimeError: the engine is closed.
            ValueError: no clips, or not as many memories.
        """
        if not len(clips) or len(clips) != len(memories):
            raise ValueError(f"{len(clips)} clips and {len(memories)} memories: give one of each for every stream")
        outcome = self._ask(_Request(clips, memories))
        assert outcome is not None
        return outcome

    @property
    def is_alive(self) -> bool:
        """Whether steps are still run."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Ends the thread once what it has begun is done; who still waits gets an error. Safe to call more than once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(JOIN_TIMEOUT_S)

    def _ask(self, request: _Request) -> Outcome | None:
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._waiting.append(request)
            self._changed.notify()
        request.done.wait()
        if request.error is not None:
            raise request.error
        return request.outcome

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                self._run_batch(batch)
        finally:  # nobody shall wait for a thread that has gone
            with self._changed:
                self._closed = True
                for request in self._waiting:
                    request.error = RuntimeError("the engine is closed")
                    request.done.set()
                self._waiting.clear()

    def _next_batch(self) -> list[_Request]:
        """The requests that have waited longest and go together; none if the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._waiting))
            if self._closed:
                return []
            batch = [self._waiting.popleft()]
            for request in list(self._waiting):
                if _go_together(batch, request, self.max_batch_size):
                    batch.append(request)
                    self._waiting.remove(request)
            return batch

    def _run_batch(self, batch: list[_Request]) -> None:
        began_s = time.perf_counter()
        try:
            if batch[0].warm_for is not None:
                super().warm_up(batch[0].warm_for)
                batch[0].done.set()
                return
            clips = [clip for request in batch for clip in request.clips]
            memories = [memory for request in batch for memory in request.memories]
            logits, after = super().step(clips, memories)
        except BaseException as error:
            if len(batch) > 1:
                logger.warning("a step of %d streams failed (%s); each is tried alone", len(batch), error)
                for request in batch:
                    self._run_batch([request])
                return
            batch[0].error = error
            batch[0].done.set()
            return
        seconds = time.perf_counter() - began_s
        first = 0
        for request in batch:
            those = slice(first, first + len(request.clips))
            request.outcome = [head[those] for head in logits], after[those]
            first = those.stop
            request.done.set()
        if self._on_step is not None:
            try:
                self._on_step(len(clips), seconds)
            except Exception:
                logger.exception("what is called after every step failed")


def _go_together(batch: Sequence[_Request], other: _Request, max_batch_size: int) -> bool:
    """Whether a step can serve one request more."""
    if batch[0].warm_for is not None or other.warm_for is not None:
        return False
    num_clips = sum(len(request.clips) for request in batch) + len(other.clips)
    size, other_size = (getattr(request.clips[0], "shape", None) for request in (batch[0], other))
    return num_clips <= max_batch_size and size == other_size is not None  # what is no tensor fails alone
