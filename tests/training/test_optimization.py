from __future__ import annotations

import copy
import math
from typing import Literal

import pytest
import torch
from torch import nn

import memvit
import memvit.kernels
from memvit.training.optimization import (
    OptimizerOptions,
    build_optimizer,
    build_schedule,
    freeze,
    learning_rate_factor,
    parameter_groups,
)
from tiny_models import small_config


def _by_name(model: nn.Module, options: OptimizerOptions) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(model, options)
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_biases_norms_positions_and_the_class_token_do_not_decay() -> None:
    model = memvit.MeMViT(small_config(absolute_positions="separate"))
    settings = _by_name(model, OptimizerOptions(weight_decay=0.1))
    assert set(settings) == {name for name, _ in model.named_parameters()}
    without = {name for name, (_, decay) in settings.items() if decay == 0}
    for name in ("cls_token", "positions.pos_embed_spatial", "blocks.0.attn.rel_pos_h", "blocks.0.attn.rel_pos_mem_t"):
        assert name in without
    for name, parameter in model.named_parameters():
        kept = name.endswith(".bias") or parameter.ndim == 1 or "pos" in name or name == "cls_token"
        assert (name in without) == kept, name
    assert settings["head.projection.weight"] == (1e-3, 0.1)


def test_layer_decay_slows_blocks_down_by_their_distance_from_the_head() -> None:
    settings = _by_name(memvit.MeMViT(small_config()), OptimizerOptions(lr=1.0, layer_decay=0.5))
    rates = [
        settings[name][0]
        for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.3.mlp.fc1.weight", "norm.weight")
    ]
    assert rates == [1 / 32, 1 / 16, 1 / 2, 1.0]


def test_the_rate_rises_linearly_and_falls_along_a_cosine_to_the_minimum() -> None:
    factor = learning_rate_factor(OptimizerOptions(lr=1.0, min_lr=0.1), warmup_steps=4, total_steps=15)
    assert [factor(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factor(4) == 1.0
    assert factor(9) == pytest.approx(0.55)
    assert factor(7) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.3)) / 2)
    assert factor(14) == factor(20) == pytest.approx(0.1)


def test_the_schedule_keeps_the_ratio_between_groups() -> None:
    options = OptimizerOptions(name="sgd", lr=1.0, layer_decay=0.5, warmup_epochs=0)
    optimizer = build_optimizer(memvit.MeMViT(small_config()), options)
    schedule = build_schedule(optimizer, options, steps_per_epoch=5, total_steps=10)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    rates = schedule.get_last_lr()
    assert rates[0] == pytest.approx(rates[-1] / 32)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["nesterov"]


def test_a_warm_up_that_is_too_long_for_the_training_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    options = OptimizerOptions(warmup_epochs=2, lr=1.0)
    optimizer = build_optimizer(memvit.MeMViT(small_config()), options)
    schedule = build_schedule(optimizer, options, steps_per_epoch=10, total_steps=30)
    assert "warmup_epochs=2 is 20 steps, and the training has 30: the learning rate rises over 3" in caplog.text
    assert schedule.get_last_lr()[0] == pytest.approx(1 / 4)


def test_frozen_parameters_are_told_and_not_trained() -> None:
    model = memvit.MeMViT(small_config())
    frozen = freeze(model, ["^patch_embed", r"^blocks\.[01]\."])
    assert "patch_embed.proj.weight" in frozen
    assert not any(name.startswith("blocks.2") for name in frozen)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == frozen
    assert not set(frozen) & set(_by_name(model, OptimizerOptions()))


@pytest.mark.parametrize(("pattern", "says"), [("^stem", "fits no parameter"), ("(", "no regular"), (".", "nothing")])
def test_a_pattern_that_cannot_be_meant_is_an_error(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        freeze(memvit.MeMViT(small_config()), [pattern])


def test_impossible_options_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.min_lr=1 must be between 0 and optimizer\.lr"):
        OptimizerOptions(min_lr=1)


def _steps(optimizer: torch.optim.Optimizer, model: nn.Module, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_fused_optimiser_does_the_same_and_takes_over_from_one_that_is_not(name: Literal["adamw", "sgd"]) -> None:
    models = []
    for ways in ((False, False), (True, True), (False, True), (True, False)):
        torch.manual_seed(0)
        model, state = memvit.MeMViT(small_config()), None
        for part, fused in enumerate(ways):  # the second goes on from the checkpoint of the first
            optimizer = build_optimizer(model, OptimizerOptions(name=name, lr=0.01), fused=fused)
            if state is not None:
                optimizer.load_state_dict(state)
            assert {bool(group["fused"]) for group in optimizer.param_groups} == {fused}
            _steps(optimizer, model, range(3 * part, 3 * part + 3))
            state = copy.deepcopy(optimizer.state_dict())
        models.append(model)
    for other in models[1:]:
        for (key, a), b in zip(models[0].named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=key)


def test_what_follows_from_weights_follows_them_after_a_fused_step() -> None:
    model = memvit.MeMViT(small_config()).eval()
    clips = torch.randn(1, 3, 4, 32, 32)
    optimizer = build_optimizer(model, OptimizerOptions(lr=0.1))
    for seed in range(2):
        _steps(optimizer, model, range(seed, seed + 1))
        with torch.no_grad():
            fast = model(clips)[0]
            with memvit.kernels.reference_kernels():
                torch.testing.assert_close(fast, model(clips)[0], rtol=1e-3, atol=1e-4)
