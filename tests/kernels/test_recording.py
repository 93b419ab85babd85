"""A recorded step computes what the step does, of any tensors that lie anywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memvit.kernels import cpu
from memvit.kernels.frozen import frozen
from memvit.kernels.linear import Linear
from memvit.kernels.norm import layer_norm
from memvit.kernels.program import Program, Workspace
from memvit.kernels.recording import MAX_COPIED_BYTES, MAX_FILLED, CannotRecordError, active_recorder, recording

pytestmark = pytest.mark.usefixtures("cpu_level")

Step = Callable[..., list[Tensor]]


def record(step: Step, *inputs: Tensor, workspace: Workspace | None = None) -> Program:
    with torch.inference_mode():
        step(*inputs)  # works out what follows from weights alone
        copies = [t.clone() for t in inputs]
        with recording(copies) as recorder:
            outputs = step(*copies)
        return Program(recorder, outputs, workspace or Workspace())


def run(program: Program, *inputs: Tensor) -> list[Tensor]:
    results = program(inputs)
    return [results.tensor(i) for i in range(len(results))]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(step: Step, *inputs: Tensor) -> Program:
    """Recorded with some tensors, it gives what the step gives for others, and leaves them as they are."""
    program = record(step, *inputs)
    with torch.inference_mode():
        for seed in (1, 2):
            others = [numbers(*t.shape, seed=seed, dtype=t.dtype) for t in inputs]
            before = [t.clone() for t in others]
            found, expected = run(program, *others), step(*[t.clone() for t in others])
            for one, other in zip(found, expected, strict=True):
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            for t, was in zip(others, before, strict=True):
                assert torch.equal(t, was)
    return program


def num_pieces(program: Program) -> int:
    return len(program._pieces)


def kinds_of_copies(x: Tensor) -> list[Tensor]:
    half = x.to(torch.bfloat16)
    joined = torch.cat([x[:, 1:], x.transpose(0, 1)[:, :1], x.new_zeros(4, 0)], dim=1)
    room = x.new_empty(4, 2, 4)
    room[:, 0] = x
    room[:, 1] = half
    repeated = x[:, :, None].expand(-1, -1, 3).flatten(1)
    ones = x.new_ones(2, 3)
    summed = x.clone().add_(half)
    return [half, joined, room, repeated, ones, summed, torch.zeros_like(half), x.t().contiguous()]


def test_copies_of_all_kinds_are_one_piece() -> None:
    assert num_pieces(check(kinds_of_copies, numbers(4, 4))) == 1


def test_bfloat16_is_rounded_as_by_pytorch() -> None:
    bits = torch.arange(-(1 << 31), 1 << 31, 65521, dtype=torch.int64).to(torch.int32)
    program = record(lambda x: [x.to(torch.bfloat16), x.to(torch.bfloat16).float()], bits.view(torch.float32)[:1000])
    for part in bits.view(torch.float32).split(1000)[:-1]:
        low, high = run(program, part)
        expected = part.to(torch.bfloat16)
        is_nan = part.isnan()
        assert torch.equal(low.isnan(), is_nan)
        assert torch.equal(high.isnan(), is_nan)
        assert torch.equal(low[~is_nan].view(torch.int16), expected[~is_nan].view(torch.int16))
        assert torch.equal(high[~is_nan], expected[~is_nan].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_follow_one_another_without_python(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, first, second = nn.LayerNorm(32), Linear(32, 64), Linear(64, 32)
    for parameter in (*first.parameters(), *second.parameters()):
        parameter.requires_grad_(False)

    def step(x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden = second(first(layer_norm(x, norm)))
            return [hidden, second(first(layer_norm(hidden.float(), norm)))]

    program = check(step, numbers(3, 5, 32))
    if cpu.has_products():  # otherwise linear layers are PyTorch's
        assert num_pieces(program) == 1


def operators(x: Tensor, y: Tensor) -> list[Tensor]:
    smaller, indices = (x @ y.t()).topk(2, dim=1)
    x = x + 1
    for _ in range(4):  # each result goes when it is no longer needed
        x = F.gelu(x * 1.01)
    x[0].mul_(2)
    return [x, smaller, indices, y[1:], y, torch.arange(3), x.t()]


def test_whatever_there_is_no_kernel_for_is_run_by_pytorch() -> None:
    program = check(operators, numbers(4, 8), numbers(3, 8, seed=5))
    x, y = numbers(4, 8, seed=7), numbers(3, 8, seed=8)
    outputs = run(program, x, y)
    assert outputs[4] is y
    assert outputs[3].data_ptr() == y[1].data_ptr()  # views stay views


def scattered(x: Tensor) -> list[Tensor]:
    """Copies along more axes than the kernel has, and sums that are none of tensors alike."""
    x = x.unflatten(0, (2, 2, 2, 2, 2))  # and one more
    swapped = x.permute(4, 2, 0, 3, 1, 5)
    joined = torch.cat([swapped, swapped.contiguous()], dim=-1)
    total = x.clone().add_(1).add_(2.5).add_(x, alpha=2).add_(torch.tensor(0.5, dtype=torch.float64))
    total.add_(torch.ones(3))
    return [joined, total, swapped.clone(), swapped.flatten()]


def test_what_the_kernel_for_copies_does_not_take_is_left_to_pytorch() -> None:
    check(scattered, numbers(32, 3))


def test_large_tensors_are_copied_by_pytorch() -> None:
    rows = MAX_COPIED_BYTES // 4 // 100 + 1
    program = check(lambda x: [torch.cat([x, x[:1]]), x.new_zeros(MAX_FILLED + 1)], numbers(rows, 100))
    assert num_pieces(program) == 2


def test_results_stay_what_they_are_when_it_runs_again() -> None:
    program = record(kinds_of_copies, numbers(4, 4))
    first = run(program, numbers(4, 4, seed=1))
    before = [t.clone() for t in first]
    run(program, numbers(4, 4, seed=2))
    assert all(torch.equal(t, was) for t, was in zip(first, before, strict=True))


def test_room_is_used_again_when_nobody_needs_it() -> None:
    def step(x: Tensor) -> list[Tensor]:
        for i in range(10):
            room = x.new_empty(x.shape)
            room.copy_(x)
            x = room.add_(x[:, :1]) if i % 2 else room
        return [x]

    program = check(step, numbers(64, 64))
    assert program._num_bytes <= 2 * 64 * 64 * 4


def test_a_run_goes_on_from_the_results_of_the_one_before() -> None:
    """As a stream does: tensors that nobody has looked at, in a kernel's call and in an operator's."""

    def step(x: Tensor, state: Tensor, other: Tensor) -> list[Tensor]:
        return [x + state, state.clone().add_(x), other.clone().add_(F.gelu(state))]

    program = check(step, *(numbers(3, 4) for _ in range(3)))
    state = expected = [numbers(3, 4, seed=3), numbers(3, 4, seed=4)]
    results = None
    for seed in range(5, 10):
        x = numbers(3, 4, seed=seed)
        results = program([x, *state]) if results is None else program([x], results, 1)
        y, *expected = step(x, *expected)
        torch.testing.assert_close(results.tensor(0), y)
    assert results is not None
    torch.testing.assert_close([results.tensor(1), results.tensor(2)], expected)


def test_programs_share_a_workspace() -> None:
    workspace = Workspace()
    small = record(lambda x: [x.clone().add_(x).clone()], numbers(4, 4), workspace=workspace)
    large = record(lambda x: [x.clone().add_(x).clone()], numbers(40, 40), workspace=workspace)
    for program, size in ((small, 4), (large, 40), (small, 4)):
        x = numbers(size, size, seed=3)
        torch.testing.assert_close(run(program, x)[0], x + x)


def test_what_follows_from_weights_is_not_worked_out_again() -> None:
    weight = nn.Parameter(torch.ones(4))
    made = []

    def step(x: Tensor) -> list[Tensor]:
        doubled = frozen([weight], "doubled", lambda: made.append(1) or weight.detach() * 2)  # type: ignore[func-returns-value]
        return [x * doubled, doubled.to(torch.float32)]

    program = check(step, numbers(3, 4))
    assert len(made) == 1
    assert run(program, numbers(3, 4))[1].tolist() == [2, 2, 2, 2]


def test_what_depends_on_values_cannot_be_recorded() -> None:
    def step(x: Tensor) -> list[Tensor]:
        return [x + 1] if x.sum() > 0 else [x]

    with pytest.raises(CannotRecordError, match="depends on the values of tensors"):
        record(step, numbers(3))
    assert active_recorder() is None


def test_a_kernel_that_reads_what_nobody_keeps_cannot_be_recorded() -> None:
    call = cpu._NormCall(rows=2, channels=32)
    weight, x = torch.ones(32), numbers(2, 32)
    call.x, call.weight = x.data_ptr(), weight.data_ptr()
    with (
        pytest.raises(CannotRecordError, match="layer_norm reads a tensor that was made outside"),
        recording([x]) as found,
    ):
        found.note_kernel("layer_norm", call)


def appending(x: Tensor, slots: Tensor) -> list[Tensor]:
    recorder = active_recorder()
    appended = None if recorder is None else recorder.append(slots, x[:, None])
    return [x + 1, torch.cat([slots[:, 1:], x[:, None]], dim=1) if appended is None else appended]


def empty_slots(num_streams: int, num_slots: int, spare: int) -> Tensor:
    return torch.zeros(num_streams, num_slots + spare, 2, 3)[:, :num_slots]


def record_appending(slots: Tensor) -> Program:
    x = numbers(len(slots), 2, 3)
    with torch.inference_mode(), recording([x, slots]) as recorder:
        outputs = appending(x, slots)
    return Program(recorder, outputs, Workspace())


@pytest.mark.parametrize("num_slots", [1, 2, 6])
@pytest.mark.parametrize(("num_streams", "spare"), [(1, 0), (3, 4)])
def test_slots_are_appended_to_and_stay_what_they_were(num_streams: int, spare: int, num_slots: int) -> None:
    slots = empty_slots(num_streams, num_slots, spare)
    program = record_appending(slots.clone() if num_streams == 1 else empty_slots(num_streams, num_slots, spare))
    results, given, expected, storages = [], [slots], [slots], set()
    for step in range(14):
        x = numbers(num_streams, 2, 3, seed=step)
        earlier = (results[-1], 1) if results else (None, 0)
        results.append(program([x] if results else [x, slots], *earlier))
        given.append(results[-1].tensor(1))
        expected.append(appending(x, expected[-1])[1])
        assert torch.equal(results[-1].tensor(0), x + 1)
        storages.add(given[-1].untyped_storage().data_ptr())
    for found, right in zip(given, expected, strict=True):
        assert torch.equal(found, right)
    assert len(storages) <= 3  # 14 steps: a room has space for five windows


def test_two_go_on_from_one_result() -> None:
    slots = empty_slots(1, 2, 0)
    program = record_appending(slots.clone())
    a, b, c, d = (numbers(1, 2, 3, seed=i) for i in range(4))
    start = program([a, slots])
    one, other = program([b], start, 1), program([c], start, 1)
    one, other = program([d], one, 1), program([d], other, 1)
    assert torch.equal(start.tensor(1), torch.stack([torch.zeros_like(a), a], dim=1))
    assert torch.equal(one.tensor(1), torch.stack([b, d], dim=1))
    assert torch.equal(other.tensor(1), torch.stack([c, d], dim=1))


def test_slots_without_room_are_copied() -> None:
    for slots in (empty_slots(2, 3, 0), numbers(1, 4, 3, 2).transpose(2, 3)):
        with torch.inference_mode(), recording([slots]) as recorder:
            assert recorder.append(slots, numbers(len(slots), 1, 2, 3)) is None
            assert recorder.append(slots + 1, numbers(len(slots), 1, 2, 3)) is None  # nobody gave it


def test_operators_may_read_what_is_appended() -> None:
    def step(x: Tensor, slots: Tensor) -> list[Tensor]:
        _, appended = appending(x, slots)
        return [appended.cumsum(dim=1), appended]

    x, slots = numbers(1, 2, 3), numbers(1, 4, 2, 3, seed=5)
    given = slots.clone()
    with torch.inference_mode(), recording([x, given]) as recorder:
        outputs = step(x, given)
    program = Program(recorder, outputs, Workspace())
    sums, expected = program([x, slots]).tensor(0), step(x, slots)[0]
    torch.testing.assert_close(sums, expected)
