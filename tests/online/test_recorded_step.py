"""Steps on fixed tensors, as CUDA graphs want them. On a CPU what is "recorded" runs again, on the same tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from memvit import MeMViT, OnlineRecognizer
from memvit.kernels import branches
from memvit.kernels.branches import branching
from memvit.kernels.frozen import frozen, hold_frozen
from memvit.models.attention import PoolingAttention
from memvit.online import ClipPrediction
from memvit.online.recorded_step import RecordedStep
from tiny_models import small_model


class Recorder:
    """Counts recordings and replays."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.num_recorded += 1
        run()

        def replay() -> None:
            self.num_replayed += 1
            run()

        return replay


class BranchingRecorder(Recorder):
    """Takes the ways that a GPU's recording takes."""

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        def branched() -> None:
            with branching():
                run()

        return super().__call__(branched)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def branching_recorder(monkeypatch: pytest.MonkeyPatch) -> BranchingRecorder:
    """Where tensors on the CPU have branches, which are done one after the other."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for module in (branches, sys.modules["memvit.models.memvit"], sys.modules["memvit.models.attention"]):
        monkeypatch.setattr(module, "has_branches", lambda x: getattr(branches._this_thread, "branches", False))
    return BranchingRecorder()


def recognizer(model: MeMViT, recorder: Recorder, **options: object) -> OnlineRecognizer:
    online = OnlineRecognizer(model, **options)  # type: ignore[arg-type]
    online.engine.record = lambda step, clips, memory: RecordedStep(step, clips, memory, recorder)
    online.engine.fills_batches = True
    return online


def frames(seed: int, num: int = 20) -> list[tuple[np.ndarray, None]]:
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8), None) for _ in range(num)]


def clip(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(seed))


def check_alike(ours: list[ClipPrediction], theirs: list[ClipPrediction]) -> None:
    assert [(p.stream, p.clip) for p in ours] == [(p.stream, p.clip) for p in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for logits, expected in zip(one.logits, other.logits, strict=True):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"memory_gap": 2, "head_task": "frames", "num_classes": (2, 3)},
        {"memory_length": 0},
        {"memory_compression": "joint"},
    ],
    ids=str,
)
def test_streams_that_come_go_and_change_places_get_what_they_get_unrecorded(
    overrides: dict[str, object], recorder: Recorder
) -> None:
    check_streams(small_model(**overrides), recorder)


@pytest.mark.parametrize("overrides", [{}, {"memory_gap": 2}, {"memory_length": 1}, {"memory_length": 0}], ids=str)
def test_streams_get_the_same_where_work_for_later_steps_is_done_beside_the_rest(
    overrides: dict[str, object], branching_recorder: BranchingRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    remember = PoolingAttention._remember
    monkeypatch.setattr(PoolingAttention, "_remember", lambda *args: (begun.append(args), remember(*args))[1])
    check_streams(small_model(**overrides), branching_recorder)
    assert bool(begun) is (overrides.get("memory_length") != 0)


def check_streams(model: MeMViT, recorder: Recorder) -> None:
    """Streams come, go and change places."""
    ours, theirs = recognizer(model, recorder, max_batch_size=4), OnlineRecognizer(model, max_batch_size=4)
    names = [["a"], ["a"], ["b"], ["a"], ["a", "b"], ["a", "b"], ["b", "a"], ["b"], ["a", "b", "c"], ["c", "a"]]
    for step, streams in enumerate(names):
        if step == 5:
            ours.forget("a")
            theirs.forget("a")
        pushed = {name: frames(10 * step + ord(name)) for name in streams}
        check_alike(ours.push_many(pushed), theirs.push_many(pushed))
    assert recorder.num_recorded == 3  # for 1, 2 and 4 clips
    assert recorder.num_replayed >= len(names)


def test_a_memory_stays_what_it_was_when_the_stream_goes_on(recorder: Recorder) -> None:
    model = small_model()
    with torch.inference_mode():
        step = RecordedStep(lambda clips, memory: model(clips, memory), clip(0)[None], model.new_memory(1), recorder)
        memories = [model.new_memory(1)]
        for i in range(4):
            memories.append(step(clip(i)[None], memories[-1])[1])
        before = [tensor.clone() for tensor in memories[2].tensors()]
        again, _ = step(clip(2)[None], memories[2])  # from the middle of the stream
        expected, _ = model(clip(2)[None], memories[2])
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)
    for tensor, was in zip(memories[2].tensors(), before, strict=True):
        assert torch.equal(tensor, was)


def test_weights_that_change_are_recorded_anew(recorder: Recorder) -> None:
    model = small_model()
    ours, theirs = recognizer(model, recorder, max_batch_size=1), OnlineRecognizer(model)
    for i in range(6):
        if i == 3:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.1)
        check_alike([ours.push_clip(clip(i))], [theirs.push_clip(clip(i))])
    assert recorder.num_recorded == 2


def test_where_recording_fails_batches_are_filled_up_no_longer() -> None:
    def fail(*_: object) -> RecordedStep:
        raise RuntimeError("out of graphs")

    ours, theirs = OnlineRecognizer(small_model()), OnlineRecognizer(small_model())
    ours.engine.record, ours.engine.fills_batches = fail, True
    for step in range(2):
        pushed = {name: frames(10 * step + ord(name)) for name in "abc"}
        check_alike(ours.push_many(pushed), theirs.push_many(pushed))
    assert ours.engine.record is None
    assert not ours.engine.fills_batches


def test_of_many_sizes_the_latest_stay_recorded(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memvit.online.engine.MAX_RECORDED_STEPS", 2)
    model = small_model()
    ours, theirs = recognizer(model, recorder, max_batch_size=1), OnlineRecognizer(model)
    for i, height in enumerate((32, 48, 32, 64, 32, 48)):  # 48 has to make room for 64
        pushed = torch.randn(3, 4, height, 32, generator=torch.Generator().manual_seed(i))
        stream = f"of {height}"
        check_alike([ours.push_clip(pushed, stream)], [theirs.push_clip(pushed, stream)])
    assert recorder.num_recorded == 4
    assert len(ours.engine._recorded_steps) == 2


def test_a_stream_goes_on_from_a_saved_state(recorder: Recorder) -> None:
    model = small_model()
    ours, theirs = recognizer(model, recorder, max_batch_size=1), OnlineRecognizer(model)
    for i in range(3):
        check_alike([ours.push_clip(clip(i))], [theirs.push_clip(clip(i))])
    resumed = recognizer(model, Recorder(), max_batch_size=1)
    resumed.load_state_dict(ours.state_dict())
    for i in range(3, 6):
        check_alike([resumed.push_clip(clip(i))], [theirs.push_clip(clip(i))])


def test_what_was_worked_out_from_weights_is_held_for_as_long_as_it_may_be_read() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    with torch.no_grad(), hold_frozen() as held:
        made = frozen([weight], "doubled", lambda: weight * 2)
        for i in range(20):  # more than are kept
            frozen([weight], i, lambda: weight * 3)
    assert held[0] is made
    assert len(held) == 21
