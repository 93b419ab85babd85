from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from memvit.online import OnlineRecognizer, SharedEngine
from tiny_models import small_model
from video.encode import barcode


@pytest.fixture
def steps() -> list[int]:
    return []


@pytest.fixture
def engine(steps: list[int]) -> Iterator[SharedEngine]:
    engine = SharedEngine(small_model(), max_batch_size=4, on_step=lambda num_clips, _: steps.append(num_clips))
    yield engine
    engine.close()


def scores(recognizer: OnlineRecognizer, first: int) -> np.ndarray:
    frames = [(barcode(first + i), i / 7.5) for i in range(24)]
    predictions = [p for frame, time_s in frames for p in recognizer.push(frame, time_s)]
    return np.stack([prediction.logits[0] for prediction in predictions + recognizer.finish()])


def test_streams_of_many_threads_go_through_the_model_together_and_get_what_each_gets_alone(
    engine: SharedEngine, steps: list[int]
) -> None:
    alone = [scores(OnlineRecognizer(small_model()), first) for first in range(4)]
    all_here = threading.Barrier(4)

    def run(first: int) -> np.ndarray:
        recognizer = OnlineRecognizer(engine.model, engine=engine)
        all_here.wait()
        return scores(recognizer, first)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(steps) == 4 * 6
    assert max(steps) > 1


def test_an_error_reaches_only_who_asked_for_it(engine: SharedEngine) -> None:
    clip = torch.zeros(3, 4, 32, 32)
    memory = engine.model.new_memory(1, 4, 32, 32)
    blocked = threading.Event()
    forward = engine.model.forward

    def slow(*inputs: torch.Tensor) -> object:
        blocked.wait(10)
        if inputs[0].isnan().any():
            raise ValueError("a bad clip")
        return forward(*inputs)

    engine.model.forward = slow  # type: ignore[method-assign, assignment]
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(engine.step, [torch.full_like(clip, fill)], [memory]) for fill in (0.0, 0.0, np.nan)]
        blocked.set()
        assert [future.exception() is None for future in asked] == [True, True, False]
    engine.model.forward = forward  # type: ignore[method-assign]


def test_nonsense_reaches_only_who_asked_for_it(engine: SharedEngine) -> None:
    clip, memory = torch.zeros(3, 4, 32, 32), engine.model.new_memory(1, 4, 32, 32)
    with pytest.raises(ValueError, match="0 clips and 0 memories"):
        engine.step([], [])
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(engine.step, [own], [memory]) for own in (clip, "a clip", clip, None, clip, clip)]
        assert [future.exception(30) is None for future in asked] == [True, False, True, False, True, True]
    assert engine.is_alive


def test_a_listener_that_fails_stops_nobody() -> None:
    def fail(*_: object) -> None:
        raise KeyError("a listener")

    engine = SharedEngine(small_model(), on_step=fail)
    for _ in range(2):
        engine.step([torch.zeros(3, 4, 32, 32)], [engine.model.new_memory(1, 4, 32, 32)])
    assert engine.is_alive
    engine.close()


def test_a_closed_engine_says_so(engine: SharedEngine) -> None:
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.step([torch.zeros(3, 4, 32, 32)], [engine.model.new_memory(1, 4, 32, 32)])


def test_an_engine_of_another_model_is_refused(engine: SharedEngine) -> None:
    with pytest.raises(ValueError, match="another model"):
        OnlineRecognizer(small_model(), engine=engine)
