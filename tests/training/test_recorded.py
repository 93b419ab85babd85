"""Recorded training computes what plain training does. On a CPU what is "recorded" runs again, on the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memvit import MeMViT
from memvit.training.recorded import RecordedNetwork, Run
from tiny_models import small_model
from training.tiny_data import TINY_OPTIONS, tiny_data, tiny_module, tiny_trainer


class Recorder:
    """Counts recordings."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def __call__(self, forward: Run, backward: Run) -> tuple[Run, Run]:
        self.num_recorded += 1
        forward()
        backward()
        return forward, backward


def clips(seed: int, num: int = 2) -> Tensor:
    return torch.randn(num, 3, 4, 32, 32, generator=torch.Generator().manual_seed(seed))


def train(
    model: MeMViT, network: Any, *, num_steps: int = 4, accumulate: int = 1, dtype: torch.dtype | None = None
) -> tuple[list[float], list[Tensor]]:
    """Losses, and the gradients of the last step."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    memory, losses = model.new_memory(2), []
    for step in range(num_steps):
        torch.manual_seed(step)  # stochastic depth
        if step == 2:
            memory = memory.forget([True, False])
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            logits, memory = network(clips(step), memory)
        loss = sum(head.float().square().mean() for head in (logits if isinstance(logits, tuple) else (logits,)))
        assert isinstance(loss, Tensor)
        loss.backward()
        losses.append(loss.item())
        if (step + 1) % accumulate == 0:
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            optimizer.zero_grad()
    return losses, gradients


@pytest.mark.parametrize(
    "overrides",
    [{"drop_path": 0.3}, {"num_classes": (2, 3), "head_task": "frames", "memory_gap": 2}, {"memory_length": 0}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_losses_and_gradients_are_those_of_plain_training(overrides: dict[str, Any], dtype: torch.dtype | None) -> None:
    recorder = Recorder()
    results = []
    for records in (False, True):
        torch.manual_seed(0)
        model = small_model(**overrides).train()
        network = RecordedNetwork(model, recorder) if records else model
        results.append(train(model, network, dtype=dtype))
    (losses, gradients), (recorded_losses, recorded_gradients) = results
    assert recorded_losses == losses
    for found, expected in zip(recorded_gradients, gradients, strict=True):
        assert torch.equal(found, expected)
    assert recorder.num_recorded == 1


def test_layers_find_parameters_while_they_are_recorded() -> None:
    """Kernels leave a layer to itself whose weight is none."""
    model, found = small_model().train(), []
    model.patch_embed.register_forward_pre_hook(lambda module, _: found.append(type(module.proj.weight)))
    RecordedNetwork(model, Recorder())(clips(0), model.new_memory(2))
    assert set(found) == {torch.nn.Parameter}


def test_gradients_of_several_steps_add_up() -> None:
    results = []
    for records in (False, True):
        torch.manual_seed(0)
        model = small_model().train()
        results.append(train(model, RecordedNetwork(model, Recorder()) if records else model, accumulate=2))
    for found, expected in zip(*(gradients for _, gradients in results), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_other_sizes_and_frozen_parameters_are_recorded_anew() -> None:
    recorder = Recorder()
    model = small_model().train()
    network = RecordedNetwork(model, recorder)
    for num in (2, 2, 1, 1):
        network(clips(0, num), model.new_memory(num))
    assert recorder.num_recorded == 2
    model.head.requires_grad_(False)
    logits, _ = network(clips(0, 1), model.new_memory(1))
    assert recorder.num_recorded == 3
    logits.sum().backward()
    assert all(p.grad is None for p in model.head.parameters())
    assert all(p.grad is not None for p in model.blocks.parameters())


def test_logits_and_memory_stay_when_the_next_step_is_computed() -> None:
    model = small_model().train()
    network = RecordedNetwork(model, Recorder())
    logits, memory = network(clips(0), model.new_memory(2))
    before = [t.clone() for t in (logits, *memory.tensors())]
    network(clips(1), memory)
    for tensor, was in zip((logits, *memory.tensors()), before, strict=True):
        assert torch.equal(tensor, was)
        assert not tensor.is_inference()


def test_recording_leaves_the_parameters_alone() -> None:
    model = small_model().train()
    hooked = []
    model.head.projection.weight.register_hook(lambda grad: hooked.append(grad.clone()))
    network = RecordedNetwork(model, Recorder())
    logits, _ = network(clips(0), model.new_memory(2))
    assert not hooked
    assert all(p.grad is None for p in model.parameters())
    logits.sum().backward()
    assert len(hooked) == 1
    assert torch.equal(hooked[0], model.head.projection.weight.grad)


def test_fit_records_where_there_is_a_gpu_and_trains_as_ever_where_there_is_none(dataset: Path, tmp_path: Path) -> None:
    parameters = []
    for record in (False, True):
        torch.manual_seed(0)
        module = tiny_module(options=TINY_OPTIONS, record=record)
        tiny_trainer(tmp_path, max_steps=2).fit(module, datamodule=tiny_data(dataset))
        parameters.append([p.detach().clone() for p in module.parameters()])
    assert isinstance(module._train_network, RecordedNetwork)
    assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True))


def test_what_cannot_be_recorded_is_refused() -> None:
    for options in ({"compile": True}, {"activation_checkpointing": "mlp"}, {"options": {"box_depth": 1}}):
        with pytest.raises(ValueError, match=r"model\.record goes without"):
            tiny_module(record=True, **options)
    model = small_model()
    model.activation_checkpointing = "blocks"
    with pytest.raises(ValueError, match="keeps all activations"):
        RecordedNetwork(model, Recorder())
