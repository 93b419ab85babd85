"""Steps that run again from a record give what the model gives, whatever streams, weights and settings do meanwhile."""

from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import pickle
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from memvit import Memory, MeMViT, OnlineRecognizer
from memvit.kernels import cpu
from memvit.kernels.program import Workspace
from memvit.kernels.recording import CannotRecordError
from memvit.online import ClipPrediction
from memvit.online.recorded_on_cpu import RecordedOnCpu
from tiny_models import small_model

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="no kernels for this processor")


def clip(seed: int, size: tuple[int, int, int] = (4, 32, 32)) -> Tensor:
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed))


def frames(seed: int) -> list[tuple[np.ndarray, None]]:
    """A clip's."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8), None) for _ in range(16)]


def for_kernels(**overrides: object) -> MeMViT:
    """With heads as wide as our kernels take them."""
    return small_model(embed_dim=16, num_heads=1, **overrides)


def pair(model: MeMViT, **options: object) -> tuple[OnlineRecognizer, OnlineRecognizer]:
    """One that records, and one that does not."""
    ours, theirs = OnlineRecognizer(model, **options), OnlineRecognizer(model, **options)  # type: ignore[arg-type]
    theirs.engine.record = None
    return ours, theirs


def check_alike(ours: list[ClipPrediction], theirs: list[ClipPrediction]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one.stream, one.clip) == (other.stream, other.clip)
        for logits, expected in zip(one.logits, other.logits, strict=True):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1))


CONFIGS = [
    {},
    {"memory_length": 0},
    {"memory_length": 6},
    {"memory_length": 6, "memory_gap": 2},
    {"memory_gap": 2, "causal": True, "head_task": "frames", "num_classes": (2, 3)},
    {"memory_compression": "joint", "class_token": False},
    {"memory_boundary": "zero"},
]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("overrides", CONFIGS, ids=str)
@pytest.mark.parametrize("make", [for_kernels, small_model], ids=["our kernels", "PyTorch's operators"])
def test_streams_that_come_go_and_change_places_get_what_they_get_unrecorded(
    make: type, overrides: dict[str, object], dtype: torch.dtype | None
) -> None:
    ours, theirs = pair(make(**overrides), dtype=dtype, max_batch_size=4)
    streams = [["a"], ["a"], ["b"], ["a", "b"], ["a", "b"], ["b", "a"], ["a", "b", "c"], ["c", "a"], *[["a"]] * 8]
    for step, names in enumerate(streams):
        if step == 4:
            ours.forget("a")
            theirs.forget("a")
        pushed = {name: frames(10 * step + ord(name)) for name in names}
        check_alike(ours.push_many(pushed), theirs.push_many(pushed))
    assert {size for size, _ in ours.engine._recorded_steps} == {1, 2, 3}


@torch.inference_mode()
def test_a_memory_stays_what_it_was_when_the_stream_goes_on() -> None:
    for length in (2, 6):
        model = for_kernels(memory_length=length)
        step = RecordedOnCpu(model, clip(0)[None], model.new_memory(1), Workspace())
        memories = [model.new_memory(1)]
        for i in range(9):
            memories.append(step(clip(i)[None], memories[-1])[1])
        before = [tensor.clone() for tensor in memories[4].tensors()]
        for _ in range(2):  # from the middle of the stream, twice
            again, after = step(clip(4)[None], memories[4])
            expected, right = model(clip(4)[None], memories[4])
            torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)
            for tensor, other in zip(after.tensors(), right.tensors(), strict=True):
                torch.testing.assert_close(tensor, other, rtol=0, atol=1e-5)
        for tensor, was in zip(memories[4].tensors(), before, strict=True):
            assert torch.equal(tensor, was)


@torch.inference_mode()
@pytest.mark.parametrize(
    "look", [copy.deepcopy, Memory.clone, lambda m: m[0], lambda m: m.to(torch.float32), copy.copy]
)
def test_a_memory_is_one_whoever_looks_at_it(look: Callable[[Memory], Memory]) -> None:
    model = for_kernels()
    step = RecordedOnCpu(model, clip(0)[None], model.new_memory(1), Workspace())
    memory = expected = model.new_memory(1)
    for i in range(4):
        _, memory = step(clip(i)[None], memory)
        _, expected = model(clip(i)[None], expected)
    assert len(memory) == memory.batch_size == 1
    assert memory.dtype == torch.float32
    seen = look(memory)
    assert type(seen) is type(memory) is Memory
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(seen.state_dict()[name], tensor, rtol=0, atol=1e-5)
    forgotten = memory.forget([True])
    torch.testing.assert_close(step(clip(5)[None], forgotten)[0], model(clip(5)[None], expected.forget([True]))[0])


@torch.inference_mode()
def test_a_memory_that_is_looked_at_goes_on_where_it_is() -> None:
    model = for_kernels(memory_length=3)
    step = RecordedOnCpu(model, clip(0)[None], model.new_memory(1), Workspace())
    memory = model.new_memory(1)
    places = set()
    for i in range(12):
        _, memory = step(clip(i)[None], memory)
        seen = Memory.cat([memory])  # another object with these tensors
        places.add(seen.layers[0].compressed_k.untyped_storage().data_ptr())
        memory = seen
    assert len(places) <= 3
    other = dataclasses.replace(memory, valid=memory.valid.clone())  # not all of its tensors are the step's
    for given in (memory, other, memory.clone()):
        torch.testing.assert_close(step(clip(12)[None], given)[0], model(clip(12)[None], memory)[0])


@torch.inference_mode()
def test_a_memory_that_nobody_has_any_more_is_gone() -> None:
    model = for_kernels(memory_length=3)
    step = RecordedOnCpu(model, clip(0)[None], model.new_memory(1), Workspace())
    _, memory = step(clip(0)[None], model.new_memory(1))
    _, memory = step(clip(1)[None], memory.forget([False]))
    storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in memory.tensors() if tensor.numel()]
    gc.disable()
    try:
        assert not any(storage.expired() for storage in storages)
        del memory
        assert all(storage.expired() for storage in storages)
    finally:
        gc.enable()


def test_logits_keep_nothing_else_in_memory() -> None:
    prediction = OnlineRecognizer(for_kernels()).push_clip(clip(0))
    (logits,) = prediction.logits
    base = logits if logits.base is None else logits.base
    assert torch.as_tensor(base).untyped_storage().nbytes() == logits.nbytes


def test_weights_and_settings_that_change_are_recorded_anew() -> None:
    model = for_kernels()
    ours, theirs = pair(model)
    records = []
    threads, level = torch.get_num_threads(), cpu.status()
    try:
        for i in range(10):
            if i == 3:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(1.1)
            if i == 5:
                torch.set_num_threads(threads + 1)
            if i == 7:
                cpu.use("avx2")
            check_alike([ours.push_clip(clip(i))], [theirs.push_clip(clip(i))])
            records.append(next(iter(ours.engine._recorded_steps.values())))
    finally:
        torch.set_num_threads(threads)
        cpu.use(level)
    changes = [i for i in range(1, 10) if records[i] is not records[i - 1]]
    assert changes == ([3, 5, 7] if level != "avx2" else [3, 5])


def test_who_hooks_a_module_is_called_in_every_step() -> None:
    model = for_kernels()
    ours = OnlineRecognizer(model)
    ours.push_clip(clip(0))
    seen = []
    handle = model.blocks[-1].register_forward_hook(lambda _module, _args, result: seen.append(result[0].shape))
    for i in range(3):
        ours.push_clip(clip(i))
    assert len(seen) == 3
    assert all(shape[1] > 1 for shape in seen)  # all tokens, though only one is classified
    handle.remove()
    ours.push_clip(clip(3))
    assert len(ours.engine._recorded_steps) == 1


def test_a_stream_goes_on_from_a_saved_state() -> None:
    model = for_kernels()
    ours, theirs = pair(model)
    for i in range(3):
        check_alike([ours.push_clip(clip(i))], [theirs.push_clip(clip(i))])
    resumed = OnlineRecognizer(model)
    resumed.load_state_dict(ours.state_dict())
    for i in range(3, 6):
        check_alike([resumed.push_clip(clip(i))], [theirs.push_clip(clip(i))])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda recognizer: pickle.loads(pickle.dumps(recognizer))])
def test_a_copy_of_a_recognizer_goes_on_by_itself(duplicate: Callable[[OnlineRecognizer], OnlineRecognizer]) -> None:
    ours, theirs = pair(for_kernels())
    for i in range(3):
        check_alike([ours.push_clip(clip(i))], [theirs.push_clip(clip(i))])
    other = duplicate(ours)
    for i in range(3, 6):
        expected = theirs.push_clip(clip(i))
        for recognizer in (ours, other):
            check_alike([recognizer.push_clip(clip(i))], [expected])


class Scaled(nn.Module):
    """A LayerNorm whose result is scaled in another way than PyTorch's."""

    def __init__(self, norm: nn.Module, how: str) -> None:
        super().__init__()
        self.norm, self.how = norm, how

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.how == "numpy":
            return torch.from_numpy(x.numpy() * np.float32(0.5))
        return x * 0.5 if x.sum() > 0 else x


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "memvit.online.engine"):
        yield caplog


@pytest.mark.parametrize(
    ("how", "says"), [("numpy", "runs where PyTorch does not see it"), ("values", "depends on the values of tensors")]
)
def test_what_cannot_be_recorded_runs_as_it_is_and_says_so(
    how: str, says: str, warned: pytest.LogCaptureFixture
) -> None:
    model = for_kernels()
    model.blocks[1].norm1 = Scaled(model.blocks[1].norm1, how)
    ours, theirs = pair(model)
    for i in range(4):
        check_alike([ours.push_clip(clip(i))], [theirs.push_clip(clip(i))])
    (record,) = warned.records
    assert says in record.getMessage()
    with torch.inference_mode(), pytest.raises(CannotRecordError):
        RecordedOnCpu(model, clip(0)[None], model.new_memory(1), Workspace())


def test_a_memory_of_other_shapes_is_no_input() -> None:
    model = for_kernels()
    with torch.inference_mode():
        step = RecordedOnCpu(model, clip(0)[None], model.new_memory(1), Workspace())
        with pytest.raises(AssertionError, match="in place of one of"):
            step(clip(0)[None], model.new_memory(2))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize("make", [for_kernels, small_model], ids=["our kernels", "PyTorch's operators"])
def test_a_model_may_change_its_number_format_while_streams_run(
    make: type, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    model = make().to(dtypes[0])
    ours, theirs = pair(model)
    for step in range(9):
        if step == 4:
            model.to(dtypes[1])
        one, other = ours.push_clip(clip(step)), theirs.push_clip(clip(step))
        scale = np.abs(other.logits[0]).max()
        np.testing.assert_allclose(one.logits[0], other.logits[0], rtol=0, atol=0.1 * scale)
        assert np.isfinite(one.logits[0]).all()
    assert ours.engine._recorded_steps  # and steps are recorded again


def test_a_memory_that_was_made_elsewhere_is_taken() -> None:
    ours, _ = pair(for_kernels())
    with torch.inference_mode():
        made = [ours.model.new_memory(1), ours.model.new_memory(1).to(torch.float64)]
    wanted: list[np.ndarray] = []
    for memory in (*made, ours.model.new_memory(1)):
        found = []
        for step in range(4):
            logits, (memory,) = ours.engine.step([clip(step)], [memory])
            found.append(logits[0])
        wanted = wanted or found
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_memories_that_were_filled_anew_are_those_that_count() -> None:
    ours, theirs = pair(for_kernels(), max_batch_size=2)
    memories = [ours.model.new_memory(1) for _ in range(2)]
    for step in range(4):
        _, memories = ours.engine.step([clip(step), clip(step + 50)], memories)
    saved = [memory.state_dict() for memory in memories]
    for memory, state in zip(memories, reversed(saved), strict=True):
        memory.load_state_dict(state)
    expected, _ = theirs.engine.step([clip(7), clip(8)], [memory.clone() for memory in memories])
    found, _ = ours.engine.step([clip(7), clip(8)], memories)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5 * np.abs(expected[0]).max())


def test_models_without_memory_are_freed() -> None:
    ours, _ = pair(for_kernels(memory_length=0), max_batch_size=2)
    memories = [ours.model.new_memory(1) for _ in range(2)]
    for step in range(3):
        _, memories = ours.engine.step([clip(step), clip(step + 50)], memories)
    gone = [weakref.ref(recorded) for recorded in ours.engine._recorded_steps.values()]
    assert gone
    del ours, _, memories
    gc.collect()
    assert [reference() for reference in gone] == [None]


def test_a_model_that_is_changed_while_it_is_recorded_is_recorded_later(caplog: pytest.LogCaptureFixture) -> None:
    ours, _ = pair(for_kernels())
    record, engine = ours.engine.record, ours.engine
    assert record is not None

    def disturbed(*arguments: object) -> object:
        engine.model.eval()  # as another thread may do it, which makes another recognizer
        raise CannotRecordError("because of that")

    engine.record = disturbed  # type: ignore[assignment]
    ours.push_clip(clip(0))
    assert engine.record is disturbed
    engine.record = record
    ours.push_clip(clip(1))
    assert engine._recorded_steps
    assert "cannot be recorded" not in caplog.text
