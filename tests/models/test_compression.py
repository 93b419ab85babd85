"""Compression: learned under every selection, done once per clip, equal in both forms."""

from collections.abc import Sequence

import pytest
import torch
from test_memory import clips_at
from torch import Tensor

from memvit.kernels.pooling import Pooling, pool_norm
from memvit.models.config import Size3
from tiny_models import small_model


@pytest.mark.parametrize("gap", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 4])
@torch.inference_mode()
def test_joint_and_pipelined_agree_in_eval(length: int, gap: int) -> None:
    pipelined = small_model(memory_length=length, memory_gap=gap)
    joint = small_model(memory_length=length, memory_gap=gap, memory_compression="joint")
    a = b = None
    for step in range(2 * length * gap + 2):
        ours, a = pipelined(clips_at(step, 2), a)
        theirs, b = joint(clips_at(step, 2), b)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compression", ["pipelined", "joint"])
@pytest.mark.parametrize("gap", [1, 2, 3])
def test_compression_learns_under_every_selection(gap: int, compression: str) -> None:
    model = small_model(memory_gap=gap, memory_compression=compression)
    memory = None
    for step in range(gap + 1):
        tokens, memory = model.forward_features(clips_at(step, 2), memory)
    tokens.square().sum().backward()
    learned = [(n, p.grad) for n, p in model.named_parameters() if "compress" in n or "rel_pos_mem" in n]
    assert len(learned) == 4 * (2 + 4 + 3)
    for name, gradient in learned:
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("length", [1, 2, 8])
def test_a_step_compresses_one_clip_whatever_the_length(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(memory_length=length)
    filters = {id(block.attn.compress_k.weight) for block in model.blocks}
    compressed = []

    def pool_and_count(
        x: Tensor, grid: Size3, poolings: list[Pooling], *, num_class: int, compressions: Sequence[Pooling | None] = ()
    ) -> list[Tensor]:
        used = [*poolings, *[pooling for pooling in compressions if pooling is not None]]
        compressed.extend(len(x) for pooling in used if id(pooling.weight) in filters)
        return pool_norm(x, grid, poolings, num_class=num_class, compressions=compressions)

    monkeypatch.setattr("memvit.models.attention.pool_norm", pool_and_count)
    # The graph is kept, or might be wanted later, or what was compressed is kept projected.
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        compressed.clear()
        memory = None
        with mode():
            for step in range(3):
                _, memory = model(clips_at(step, 2), memory)
        assert compressed == [2] * (4 * 3)


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (2, 1, 1)), ((1, 2, 2), (1, 2, 2)), ((5, 5, 5), (4, 4, 4))])
@torch.inference_mode()
def test_any_kernel_and_stride_works_on_any_grid(kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
    model = small_model(memory_kernel=kernel, memory_stride=stride)
    for height, width in ((32, 32), (40, 72), (72, 40)):
        memory = None
        for _ in range(3):
            logits, memory = model(torch.randn(1, 3, 4, height, width), memory)
            assert torch.isfinite(logits).all()
