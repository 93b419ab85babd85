"""A training step asks a GPU for things and never waits for it.

There is no GPU in these tests: PyTorch's fake tensors stand for one. They have a device, a shape and no numbers, so whatever
needs a number fails, and a copy between devices shows.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from memvit.datasets.clips import Batch
from memvit.models.config import MViTConfig
from memvit.models.memvit import MeMViT
from memvit.training.late import LateValues
from memvit.training.module import VideoClassifier
from memvit.training.optimization import OptimizerOptions, build_optimizer
from tiny_models import small_config

GPU = torch.device("cuda")


class Synchronisations(TorchDispatchMode):
    """Notes where the CPU would wait for the GPU.

    Attributes:
        found: what would wait, and the line of ours that asked for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            out = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self._note(func)
            raise
        if func.name() in ("aten::_to_copy", "aten::copy_"):
            devices = {tensor.device.type for tensor in (*args, out) if isinstance(tensor, Tensor)}
            may_go_on = kwargs.get("non_blocking") or (func.name() == "aten::copy_" and True in args[2:])
            if len(devices) > 1 and not may_go_on:
                self._note(func)
        return out

    def _note(self, func: Any) -> None:
        ours = [frame for frame in traceback.extract_stack() if "/memvit/" in frame.filename]
        where = f"{ours[-1].filename.split('/memvit/')[-1]}: {ours[-1].line}" if ours else "the test"
        self.found.append(f"{func.name()} in {where}")


class Event:
    """Stands for an event of CUDA."""

    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


@pytest.fixture(autouse=True)
def no_cuda_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)


@contextmanager
def fake_gpu() -> Iterator[Synchronisations]:
    with FakeTensorMode(), Synchronisations() as watched:
        yield watched


class Logged(VideoClassifier):
    """Training steps without a trainer: what it is asked for is answered here."""

    class _Trainer:
        world_size = 1
        num_training_batches = 10

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizers = [optimizer]

    class _Data:
        def trained(self, batch: Batch, num_batches: int) -> None:
            pass

    def __init__(self, network: MeMViT) -> None:
        super().__init__()
        self.logged: dict[str, Any] = {}
        for part in network.modules():
            for name, parameter in part.named_parameters(recurse=False):
                part.register_parameter(name, nn.Parameter(torch.zeros(parameter.shape, device=GPU)))
        self.network = network.train()
        self.mean, self.std = (torch.ones(1, 3, 1, 1, 1, device=GPU) for _ in range(2))
        self.optimizer = build_optimizer(self.network, OptimizerOptions())
        self._connected = self._Trainer(self.optimizer)

    @property
    def trainer(self) -> Any:
        return self._connected

    @property
    def data(self) -> Any:
        return self._Data()

    def log(self, name: str, value: Any, **_: Any) -> None:  # type: ignore[override]
        self.logged[name] = value


def _batch(config: MViTConfig, step: int, num_boxes: tuple[int, ...] | None) -> Batch:
    """Two streams, on the GPU; with boxes where numbers of them are given."""
    B, classes = 2, config.head.num_classes[0]
    boxes = None
    if num_boxes is not None:
        boxes = [torch.zeros(n, 4, device=GPU) for n in num_boxes]
        labels = torch.zeros(sum(num_boxes), classes, device=GPU)
    else:
        shape = (B, config.num_times) if config.head.task == "frames" else (B,)
        labels = torch.zeros(shape, dtype=torch.long, device=GPU)
    flags = torch.ones(B, dtype=torch.bool, device=GPU)
    size = config.num_frames, config.crop_size, config.crop_size
    clips = torch.zeros(B, 3, *size, dtype=torch.uint8, device=GPU)
    return Batch(clips, flags, flags, (labels,), boxes, ["a", "b"], [0.0, 1.0], 0, step)


def _train(config: MViTConfig, num_boxes: tuple[int, ...] | None = None) -> tuple[Logged, list[str]]:
    """Two steps, with clipped gradients, and what would have waited in them."""
    network = MeMViT(config)
    with fake_gpu() as watched:
        module = Logged(network)
        for step in range(2):
            # What the step before has left for the CPU is there by now, and no business of the GPU any more.
            module._loss_check._losses.flush()
            loss = module.training_step(_batch(config, step, num_boxes), step)
            assert loss.requires_grad  # autograd itself would need a real GPU
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            module.optimizer.step()
            module.optimizer.zero_grad()
    return module, watched.found


@pytest.mark.parametrize("overrides", [{}, {"causal": True, "head_task": "frames"}, {"memory_gap": 2, "dropout": 0.1}])
def test_a_step_does_not_wait_for_the_gpu(overrides: dict[str, Any]) -> None:
    module, found = _train(small_config(drop_path=0.2, **overrides))
    assert found == []
    memory = module._memories["train"]
    assert memory is not None
    assert memory.device.type == "cuda"
    assert module.logged["train/loss"].device.type == "cuda"
    # Lightning would copy a plain number to the GPU, and wait.
    assert module.logged["train/lr"].device.type == "cpu"


def test_a_step_with_boxes_does_not_either() -> None:
    config = small_config(task="boxes", activation="sigmoid", box_depth=1, max_boxes=2)
    _, found = _train(config, num_boxes=(3, 0))
    assert found == []


def test_waiting_would_show() -> None:
    with fake_gpu() as watched:
        values = torch.zeros(3, device=GPU)
        for would_wait in (
            lambda: values.sum().item(),
            lambda: bool(torch.isfinite(values).all()),
            lambda: values[values > 0],
            lambda: values.repeat_interleave(values.long()),
        ):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                would_wait()
        torch.tensor([1, 2], device=GPU)
        values.cpu()
        values.to("cpu", non_blocking=True)
    assert [name.split()[0].partition(".")[0] for name in watched.found] == [
        "aten::_local_scalar_dense",
        "aten::_local_scalar_dense",
        "aten::index",
        "aten::repeat_interleave",
        "aten::_to_copy",
        "aten::_to_copy",
    ]


def test_late_values_come_one_step_later_in_order_and_as_they_were() -> None:
    late: LateValues[str] = LateValues()
    value = torch.tensor([1.0])
    assert late.put("first", value) == []
    value += 1
    ((label, arrived),) = late.put("second", value)
    assert (label, arrived.tolist()) == ("first", [1.0])
    assert [(label, v.tolist()) for label, v in late.flush()] == [("second", [2.0])]
    assert late.flush() == []
