"""At inference the past is kept projected: the results are those of the plain path, whatever is done with the memory."""

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_memory import clips_at
from torch import Tensor

from memvit import Memory, MeMViT
from memvit.kernels import reference_kernels
from tiny_models import small_model

OVERRIDES: list[dict[str, object]] = [
    {},
    {"embed_dim": 16},  # heads as wide as a vector: the C++ kernels take them
    {"embed_dim": 16, "memory_gap": 2, "memory_length": 3},
    {"memory_length": 1},
    {"memory_length": 4},
    {"memory_length": 6},  # slots that are written in place
    {"memory_gap": 3},
    {"memory_compression": "joint", "memory_gap": 2},
    {"memory_compression": "none"},
    {"memory_boundary": "zero"},
    {"causal": True, "head_task": "frames"},
]


def is_projected(memory: Memory) -> bool:
    return all(layer.projected is not None for layer in memory.layers.values())


MODES = [torch.no_grad, torch.inference_mode]
TWO_STREAMS = 1e-4  # logits of about one, of two streams that have rounded differently for some steps


@pytest.mark.parametrize(
    ("mode", "has_branches"),
    [(torch.no_grad, False), (torch.inference_mode, False), (torch.inference_mode, True)],
    ids=["no gradients", "inference", "in branches"],
)
@pytest.mark.parametrize("overrides", OVERRIDES)
def test_a_stream_gives_what_the_plain_path_gives(
    overrides: dict[str, object], mode: type, has_branches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_branches:  # as while a step is recorded on a GPU
        for module in ("models.attention", "models.memvit"):
            monkeypatch.setattr(f"memvit.{module}.has_branches", lambda x: True)
    with mode():  # weights made in inference mode are left to PyTorch's linear layers, in both ways
        model = small_model(**overrides)
    tolerance = 2e-5 if mode is torch.inference_mode else TWO_STREAMS
    ours = plain = None
    for step in range(10):
        with mode():
            if step == 6 and ours is not None and plain is not None:
                ours, plain = ours.forget([True, False]), plain.forget([True, False])
            logits, ours = model(clips_at(step, 2), ours)
            with reference_kernels():
                wanted, plain = model(clips_at(step, 2), plain)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=tolerance)
        assert is_projected(ours) == (overrides.get("memory_boundary") != "zero")
        assert not is_projected(plain)


def warm(model: MeMViT, num_streams: int = 2) -> Memory:
    memory = None
    for step in range(6):
        _, memory = model(clips_at(step, num_streams), memory)
    return memory


@torch.inference_mode()
def test_a_saved_memory_takes_no_more_than_its_numbers(tmp_path: Path) -> None:
    model = small_model(memory_length=6)
    memory = warm(model)
    save_file(memory.state_dict(), tmp_path / "memory.safetensors")
    num_bytes = sum(tensor.nbytes for tensor in memory.state_dict().values())
    assert (tmp_path / "memory.safetensors").stat().st_size < num_bytes + 10_000
    restored = model.new_memory(2).load_state_dict(load_file(tmp_path / "memory.safetensors"))
    torch.testing.assert_close(model(clips_at(7, 2), restored)[0], model(clips_at(7, 2), memory)[0], rtol=0, atol=2e-5)
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    assert (tmp_path / "memory.pt").stat().st_size < num_bytes + 20_000


def test_every_past_clip_is_projected_once() -> None:
    model, num_tokens = small_model(memory_length=4), []
    with torch.inference_mode():
        memory = warm(model)
        k = model.blocks[0].attn.k
        k.register_forward_hook(lambda _, args, out: num_tokens.append(args[0].shape[:-1].numel()))
        model(clips_at(7, 2), memory)
    layer = memory.layers[0]
    # One past clip and the present one, together.
    assert num_tokens == [2 * (layer.compressed_k.shape[2] + layer.waiting_k.shape[2])]


def test_changed_weights_project_the_past_anew() -> None:
    model = small_model(memory_length=4)
    with torch.inference_mode():
        memory = warm(model)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.k.weight.mul_(1.5)
            block.attn.norm_compress_v.bias.add_(0.1)
    with torch.inference_mode():
        with_old, _ = model(clips_at(7, 2), memory)
        unprojected = model.new_memory(2, 4, 32, 32).load_state_dict(memory.state_dict())
        assert not is_projected(unprojected)
        afresh, _ = model(clips_at(7, 2), unprojected)
    torch.testing.assert_close(with_old, afresh, rtol=0, atol=1e-6)


class Adapter(torch.nn.Module):
    """Adds a layer of its own to another one, and looks like it, as libraries of adapters do it."""

    def __init__(self, layer: torch.nn.Linear, is_alike: bool) -> None:
        super().__init__()
        self.layer, self.own, self.scale = layer, torch.nn.Linear(layer.in_features, layer.out_features), 1.0
        if is_alike:
            self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) + self.scale * self.own(x)
        return result


def _adapt(model: MeMViT, *, is_alike: bool) -> Callable[[], None]:
    adapters = [Adapter(block.attn.k, is_alike) for block in model.blocks]
    for block, adapter in zip(model.blocks, adapters, strict=True):
        block.attn.k = adapter

    def change() -> None:
        for adapter in adapters[::2]:
            adapter.own.weight.mul_(3)
        for adapter in adapters[1::2]:
            adapter.scale = -2.0

    return change


def _parametrize(model: MeMViT) -> Callable[[], None]:
    for block in model.blocks:
        torch.nn.utils.parametrizations.weight_norm(block.attn.v)

    def change() -> None:
        for block in model.blocks:
            block.attn.v.parametrizations.weight.original0.mul_(1.5)

    return change


def _make_in_inference_mode(model: MeMViT) -> Callable[[], None]:
    with torch.inference_mode():
        for block in model.blocks:
            block.attn.k.weight = torch.nn.Parameter(block.attn.k.weight.clone(), requires_grad=False)

    def change() -> None:
        with torch.inference_mode():
            for block in model.blocks:
                block.attn.k.weight.mul_(1.5)

    return change


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "prepare",
    [partial(_adapt, is_alike=True), partial(_adapt, is_alike=False), _parametrize, _make_in_inference_mode],
    ids=["adapters", "plain adapters", "parametrised", "made in inference mode"],
)
def test_changes_that_cannot_be_told_are_not_overlooked(
    prepare: Callable[[MeMViT], Callable[[], None]], mode: type
) -> None:
    model = small_model(memory_length=4)
    change = prepare(model)
    with mode():
        memory = warm(model)
    with torch.no_grad():
        change()
    with mode():
        with_old, _ = model(clips_at(7, 2), memory)
        unprojected = model.new_memory(2, 4, 32, 32).load_state_dict(memory.state_dict())
        afresh, _ = model(clips_at(7, 2), unprojected)
    torch.testing.assert_close(with_old, afresh, rtol=0, atol=1e-5)


def test_weights_in_the_place_of_parameters_are_not_taken_for_one_another() -> None:
    model = small_model(memory_length=4)
    both = [{name: factor * p for name, p in model.state_dict().items()} for factor in (1.0, 1.1)]
    with torch.inference_mode():
        memory: Memory | None = None
        for step in range(4):
            _, memory = torch.func.functional_call(model, both[0], (clips_at(step, 2), memory))
        assert memory is not None
        unprojected = model.new_memory(2, 4, 32, 32).load_state_dict(memory.state_dict())
        with_old, afresh = (
            torch.func.functional_call(model, both[1], (clips_at(7, 2), own))[0] for own in (memory, unprojected)
        )
    torch.testing.assert_close(with_old, afresh, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gap", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_training_goes_on_from_a_memory_of_inference(length: int, gap: int, mode: type) -> None:
    model = small_model(memory_length=length, memory_gap=gap)
    with mode():
        memory = warm(model)
    with torch.no_grad(), reference_kernels():
        plain = warm(model)
    memory = memory.clone()  # which autograd takes, wherever it comes from
    for step in range(6, 6 + length * gap + 2):
        logits, memory = model(clips_at(step, 2), memory)
        assert not is_projected(memory)
        with reference_kernels():
            wanted, plain = model(clips_at(step, 2), plain)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=TWO_STREAMS)
        # What inference mode has not kept as it was teaches the compression nothing.
        learns = mode is torch.no_grad or step >= 6 + gap
        logits.square().sum().backward()
        assert (model.blocks[0].attn.compress_k.weight.grad is not None) == learns
        assert model.blocks[0].attn.k.weight.grad is not None
        model.zero_grad()
    assert {name: t.shape for name, t in memory.state_dict().items()} == {
        name: t.shape for name, t in plain.state_dict().items()
    }


@pytest.mark.parametrize("modes", [(torch.no_grad, torch.inference_mode), (torch.inference_mode, torch.no_grad)])
@pytest.mark.parametrize("gap", [1, 2])
def test_modes_take_turns(gap: int, modes: tuple[type, type]) -> None:
    model = small_model(memory_gap=gap)
    memory = plain = None
    for step in range(12):
        with modes[step // 2 % 2]():
            logits, memory = model(clips_at(step, 2), memory)
        with torch.no_grad(), reference_kernels() if step % 5 else nullcontext():
            wanted, plain = model(clips_at(step, 2), plain)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=TWO_STREAMS)


def test_what_one_mode_saved_another_loads() -> None:
    model = small_model(memory_gap=2)
    memories = {}
    for mode in MODES:
        with mode():
            memories[mode] = warm(model)
    with torch.no_grad():
        expected, _ = model(clips_at(7, 2), memories[torch.no_grad])
    assert memories[torch.inference_mode].nbytes < memories[torch.no_grad].nbytes
    for saving in MODES:
        state = memories[saving].state_dict()
        for loading in (torch.enable_grad, *MODES):
            with loading():
                restored = model.new_memory(2, 4, 32, 32).load_state_dict(state)
                logits, _ = model(clips_at(7, 2), restored)
            torch.testing.assert_close(logits.detach(), expected, rtol=0, atol=TWO_STREAMS)
    with pytest.raises(ValueError, match="make them in the same mode"):
        Memory.cat([memories[mode] for mode in MODES])
    other = small_model(memory_gap=1).new_memory(2).state_dict()
    with pytest.raises(ValueError, match="the saved memory is of another model: memory_gap=1, not 2"):
        model.new_memory(2).load_state_dict(other)


@torch.inference_mode()
def test_streams_take_what_is_projected_with_them() -> None:
    model = small_model(memory_length=4)
    memory = warm(model, 3)
    parts = [memory[2:], memory[0], memory[[1]]]
    assert all(is_projected(part) for part in parts)
    joined = Memory.cat(parts)
    assert is_projected(joined)
    clips = clips_at(7, 3)
    torch.testing.assert_close(
        model(clips[[2, 0, 1]], joined)[0], model(clips, memory)[0][[2, 0, 1]], rtol=0, atol=1e-5
    )
    assert not is_projected(
        Memory.cat([memory, model.new_memory(1, 4, 32, 32).load_state_dict(memory[0].state_dict())])
    )


@torch.inference_mode()
def test_a_copy_in_another_process_has_nothing_projected() -> None:
    memory = warm(small_model())
    copied = pickle.loads(pickle.dumps(memory))
    assert not is_projected(copied)
    assert set(copied.state_dict()) == set(memory.state_dict())
