"""Activation checkpointing changes what is kept for the backward pass, and nothing that comes out of it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

import memvit
from memvit.benchmarks.checkpointing import LiveBytes, measure
from memvit.models.checkpointing import Recompute
from tiny_models import TWO_BLOCKS, small_model

POLICIES = get_args(Recompute)
RANDOM = {"drop_path": 0.4, "dropout": 0.2, "head_dropout": 0.5}


def _train(policy: Recompute, steps: int = 3, **overrides: Any) -> tuple[dict[str, torch.Tensor], memvit.Memory]:
    """The gradients of all parameters, over steps with memory, and the memory at the end."""
    torch.manual_seed(0)
    model = small_model(memory_layers=(0, 2), **overrides).train()
    model.activation_checkpointing = policy
    memory = None
    for step in range(steps):
        torch.manual_seed(step)
        logits, memory = model(torch.randn(2, 3, 4, 32, 32), memory)
        logits.square().mean().backward()
        memory = memory.forget([step == 1, False])
    assert memory is not None
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, memory


@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("overrides", [{}, RANDOM, {"attention_dropout": 0.3, **RANDOM}, {"memory_gap": 2}])
def test_gradients_and_memory_are_the_same_to_the_bit(policy: Recompute, overrides: dict[str, Any]) -> None:
    kept, kept_memory = _train("none", **overrides)
    recomputed, memory = _train(policy, **overrides)
    assert kept.keys() == recomputed.keys()
    assert len(kept) > 80
    for name, gradient in kept.items():
        assert torch.equal(gradient, recomputed[name]), name
    assert any(gradient.any() for name, gradient in kept.items() if "compress" in name)  # memory is learnt from
    for name, tensor in kept_memory.state_dict().items():
        assert torch.equal(tensor, memory.state_dict()[name]), name
        assert not memory.state_dict()[name].requires_grad


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_so_they_are_in_low_precision(policy: Recompute) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept, _ = _train("none", **RANDOM)
        recomputed, _ = _train(policy, **RANDOM)
    for name, gradient in kept.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_each_policy_keeps_less_than_the_one_before() -> None:
    kept = []
    for policy in POLICIES:
        model = small_model().train()
        model.activation_checkpointing = policy
        with LiveBytes() as live:
            logits, _ = model(torch.randn(2, 3, 4, 64, 64))
            kept.append(live.now)
            logits.sum().backward()
    none, mlp, selective, blocks = kept
    assert mlp < 0.9 * none
    assert selective < 0.7 * none
    assert blocks < 0.4 * none
    assert blocks < selective < mlp


def test_the_benchmark_measures_every_policy() -> None:
    records = measure("memvit_nano", 1, torch.float32, "cpu", rounds=1)
    assert [record["policy"] for record in records] == list(POLICIES)
    peaks = [record["peak_mib"] for record in records]
    assert peaks == sorted(peaks, reverse=True)
    assert all(0 < record["kept_mib"] <= record["peak_mib"] for record in records)
    assert all(record["step_s"] > 0 and record["dispatch_s"] > 0 for record in records)


def test_tensors_are_counted_while_they_exist() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        view = a[10:]
        b = a + 1
        assert live.now == 8000
        del a
        assert live.now == 8000  # the view needs it
        del view, b
    assert (live.now, live.peak) == (0, 8000)


def test_without_gradients_nothing_is_recomputed() -> None:
    model = small_model()
    clips = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        expected, _ = model(clips)
        for policy in POLICIES:
            model.activation_checkpointing = policy
            assert torch.equal(model(clips)[0], expected)


def test_true_and_false_are_understood_and_other_names_are_not() -> None:
    model = small_model()
    model.activation_checkpointing = True
    assert model.activation_checkpointing == "blocks"
    model.activation_checkpointing = False
    assert model.activation_checkpointing == "none"
    with pytest.raises(ValueError, match=r"activation_checkpointing='all' .* none, mlp, selective, blocks"):
        model.activation_checkpointing = "all"  # type: ignore[assignment]
    assert model.activation_checkpointing == "none"


@pytest.mark.parametrize("policy", ["selective", "blocks"])
def test_recomputing_compiles_to_one_graph(policy: Recompute) -> None:
    torch._dynamo.reset()
    model = small_model(memory_layers=(0,), **TWO_BLOCKS).train()
    model.activation_checkpointing = policy
    step = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    gradients, memory = [], None
    for run in (model, step):
        model.zero_grad()
        for seed in range(2):
            torch.manual_seed(seed)
            logits, memory = run(torch.randn(2, 3, 4, 32, 32), model.new_memory(2) if seed == 0 else memory)
            logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
