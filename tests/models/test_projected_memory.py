"""At inference the past is kept projected: the results are those of the plain path, whatever is done with the memory."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_memory import clips_at

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


@pytest.mark.parametrize("has_branches", [False, True], ids=["", "in branches"])
@pytest.mark.parametrize("overrides", OVERRIDES)
@torch.inference_mode()
def test_a_stream_gives_what_the_plain_path_gives(
    overrides: dict[str, object], has_branches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_branches:  # as while a step is recorded on a GPU
        for module in ("models.attention", "models.memvit"):
            monkeypatch.setattr(f"memvit.{module}.has_branches", lambda x: True)
    model = small_model(**overrides)
    ours = plain = None
    for step in range(10):
        if step == 6 and ours is not None and plain is not None:
            ours, plain = ours.forget([True, False]), plain.forget([True, False])
        logits, ours = model(clips_at(step, 2), ours)
        with reference_kernels():
            wanted, plain = model(clips_at(step, 2), plain)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-5)
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


@torch.inference_mode()
def test_every_past_clip_is_projected_once() -> None:
    model = small_model(memory_length=4)
    memory = warm(model)
    num_tokens = []
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


def test_training_goes_on_from_a_memory_of_inference() -> None:
    model = small_model()
    with torch.no_grad():
        memory = warm(model)
    logits, after = model(clips_at(7, 2), memory)
    assert not is_projected(after)
    logits.sum().backward()
    assert model.blocks[0].attn.k.weight.grad is not None
    with reference_kernels():
        plain, _ = model(clips_at(7, 2), memory)
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-5)


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
