"""Clips of other sizes, wide, tall, longer; frame-level and causal predictions; features."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from memvit.models.presets import PRESETS
from tiny_models import small_model


@torch.inference_mode()
def test_wide_and_tall_mirror_each_other() -> None:
    """A model whose weights treat height and width alike gives the same logits for a clip and its transpose."""
    model = small_model()
    for block in model.blocks:
        attn = block.attn
        attn.rel_pos_w.copy_(attn.rel_pos_h)
        attn.rel_pos_mem_w.copy_(attn.rel_pos_mem_h)
        for name in ("pool_q", "pool_k", "pool_v", "compress_k", "compress_v"):
            weight = getattr(attn, name).weight
            weight.copy_((weight + weight.transpose(3, 4)) / 2)
    weight = model.patch_embed.proj.weight
    weight.copy_((weight + weight.transpose(3, 4)) / 2)
    wide_memory = tall_memory = None
    for step in range(4):
        clip = torch.randn(1, 3, 4, 32, 72, generator=torch.Generator().manual_seed(step))
        wide, wide_memory = model(clip, wide_memory)
        tall, tall_memory = model(clip.transpose(3, 4), tall_memory)
        torch.testing.assert_close(wide, tall, rtol=0, atol=1e-5)


@pytest.mark.parametrize("absolute", ["none", "joint", "separate"])
@pytest.mark.parametrize("size", [(4, 32, 32), (8, 32, 32), (5, 32, 32), (4, 48, 48), (4, 36, 60), (2, 60, 36)])
@torch.inference_mode()
def test_other_clip_sizes_work(size: tuple[int, int, int], absolute: str) -> None:
    model = small_model(absolute_positions=absolute)
    memory = model.new_memory(2, *size)
    for _ in range(3):
        tokens, memory = model.forward_features(torch.randn(2, 3, *size), memory)
        t, h, w = model.token_grid(*size)
        assert tokens.shape == (2, 1 + t * h * w, 32)
        assert torch.isfinite(tokens).all()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"pool_first": False, "memory_length": 0},
        {"residual_pooling": "conv"},
        {"pool_mode": "max"},
        {"memory_length": 0},
        {"causal": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(("mode", "atol"), [(torch.enable_grad, 0), (torch.inference_mode, 1e-5)])
def test_features_are_what_the_head_reads(
    mode: Callable[[], AbstractContextManager[None]], atol: float, overrides: dict[str, object]
) -> None:
    # In inference the last block computes the class token alone, in other kernels.
    model = small_model(**overrides)
    clip = torch.randn(2, 3, 4, 32, 32)
    with mode():
        tokens, features_memory = model.forward_features(clip)
        logits, memory = model(clip)
        torch.testing.assert_close(model.head(tokens[:, 0]), logits, rtol=0, atol=atol)
    for name, tensor in memory.state_dict().items():
        torch.testing.assert_close(features_memory.state_dict()[name], tensor, rtol=0, atol=0)


@torch.inference_mode()
def test_causal_predictions_ignore_later_frames() -> None:
    model = small_model(num_frames=8, causal=True, head_task="frames")
    clip = torch.randn(1, 3, 8, 32, 32)
    _, memory = model(torch.randn(1, 3, 8, 32, 32))
    base, _ = model(clip, memory)
    assert base.shape == (1, 4, 5)
    for time in range(3):
        later = clip.clone()
        later[:, :, 2 * time + 2 :] += 1.0  # token time t reads frames up to 2t + 1
        changed, _ = model(later, memory)
        torch.testing.assert_close(changed[:, : time + 1], base[:, : time + 1], rtol=0, atol=0)
        assert not torch.allclose(changed[:, time + 1], base[:, time + 1])


@pytest.mark.parametrize(
    "overrides",
    [
        {"pool_mode": "conv_unshared"},
        {"pool_mode": "max"},
        {"pool_mode": "avg", "class_token": False},
        {"residual_pooling": "conv"},
        {"pool_kernel": None},
        {"qkv_bias": False, "norm_stem": True},
        {"relative_positions_spatial": False, "relative_positions_temporal": False},
        {"memory_compression": "none"},
        {"drop_path": 0.5, "dropout": 0.2, "attention_dropout": 0.2},
        {"pool_first": False, "memory_length": 0, "separate_qkv": True},
        {"pool_first": False, "memory_length": 0, "widen_in_attention": False},
    ],
)
def test_every_option_trains_and_remembers(overrides: dict[str, object]) -> None:
    model = small_model(**overrides).train()
    memory = None
    for _ in range(4):
        logits, memory = model(torch.randn(2, 3, 4, 32, 32), memory)
    logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_built_and_run_on_meta(name: str) -> None:
    import memvit

    with torch.device("meta"):
        model = memvit.MeMViT(PRESETS[name])
        size = (model.config.num_frames, model.config.crop_size, model.config.crop_size)
        boxes = [torch.zeros(1, 4)] if model.config.head.task == "boxes" else None
        if boxes is not None:
            return  # RoIAlign has no meta kernel for its padding; detection runs in test_memory
        logits, memory = model(torch.zeros(1, 3, *size))
        logits, memory = model(torch.zeros(1, 3, *size), memory)
    assert logits.shape == (1, model.config.head.num_classes[0])
