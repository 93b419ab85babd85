from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from memvit.cli import main
from memvit.datasets.clips import Batch
from memvit.training.averaging import WeightAverage
from memvit.training.checkpoints import read_checkpoint
from memvit.training.data import AvaData
from memvit.training.module import VideoClassifier
from memvit.training.optimization import OptimizerOptions
from memvit.training.predictions import prediction_rows
from training.tiny_data import CALM, TINY_OPTIONS, tiny_data, tiny_module, tiny_trainer


class Watch(Callback):
    """Keeps what happens."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.losses: list[float] = []
        self.memories: list[Any] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.memories.append(pl_module._memories["train"])


def _fit(root: Path, dataset: Path, module: VideoClassifier, *callbacks: Callback, **options: Any) -> Watch:
    watch = Watch()
    data = tiny_data(dataset, **options.pop("data", {}))
    torch.manual_seed(0)
    tiny_trainer(root, watch, *callbacks, **options).fit(module, datamodule=data)
    return watch


def test_training_computes_what_the_plain_model_does(dataset: Path, tmp_path: Path) -> None:
    module = tiny_module()
    watch = _fit(tmp_path, dataset, module, max_steps=1)
    torch.manual_seed(0)
    fresh = tiny_module()
    fresh._trainer = module._trainer
    fresh.configure_model()
    assert fresh.network is not None
    fresh.network.train()
    batch = watch.batches[0]
    logits, _ = fresh.network((batch.clips / 255 - 0.45) / 0.225)
    loss = torch.nn.functional.cross_entropy(logits, batch.labels[0], ignore_index=-1)
    assert watch.losses[0] == pytest.approx(loss.item(), abs=1e-6)
    assert module.config.head.class_names == (("blue", "green", "red"),)


def test_memory_is_carried_on_and_forgotten_where_videos_start(dataset: Path, tmp_path: Path) -> None:
    module = tiny_module()
    watch = _fit(tmp_path, dataset, module, max_epochs=1, max_steps=-1)
    slots = torch.zeros(2, 2, dtype=torch.bool)
    starts = 0
    for batch, memory in zip(watch.batches, watch.memories, strict=True):
        slots = torch.cat([slots[:, 1:] & ~batch.starts[:, None], torch.ones(2, 1, dtype=torch.bool)], dim=1)
        starts += int(batch.starts.sum())
        assert torch.equal(memory.valid, slots)
        assert not any(tensor.requires_grad for tensor in memory.state_dict().values())
    assert starts >= 5
    assert set(module._memories) == {"train"}  # validation has its own, and it is gone


@pytest.mark.parametrize("policy", [True, "mlp", "selective"])
def test_recomputed_activations_give_the_same_gradients(dataset: Path, tmp_path: Path, policy: Any) -> None:
    gradients = []
    for recompute in (False, policy):
        module = tiny_module(options=TINY_OPTIONS, activation_checkpointing=recompute)
        watch = _fit(tmp_path, dataset, module, max_steps=3)
        gradients.append(watch.gradients)
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 40
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-7), name


def test_a_batch_without_labels_has_gradients_of_zero(dataset: Path, tmp_path: Path) -> None:
    class Unlabel(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            batch.labels[0].fill_(-1)

    module = tiny_module()
    watch = _fit(tmp_path, dataset, module, Unlabel(), max_steps=1)
    assert watch.losses == [0.0]
    assert len(watch.gradients) == len(list(module.parameters()))
    assert not any(gradient.any() for gradient in watch.gradients.values())


def test_a_loss_that_is_no_number_names_the_clips(dataset: Path, tmp_path: Path) -> None:
    class Break(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
            if batch.step == 2:
                pl_module.network.head.projection.bias.data.fill_(math.nan)

    says = r"not a number at epoch 0, step 2 \(clips: train\d\.mp4 at \d\.\d\d s, train"
    with pytest.raises(ValueError, match=says):
        _fit(tmp_path, dataset, tiny_module(), Break(), max_steps=5)
    with pytest.raises(ValueError, match=says):  # the last step, which none comes after
        _fit(tmp_path, dataset, tiny_module(), Break(), max_steps=3, limit_val_batches=0)


def test_weights_that_a_loss_has_broken_are_not_saved(config: Path, tmp_path: Path) -> None:
    every_step = ["--run.checkpoint_every_n_steps=1", "--trainer.callbacks+=training.tiny_data.BreakAt"]
    assert main(["fit", "--config", str(config), *every_step, "--trainer.callbacks.step=4"]) == 1
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_frames_and_several_heads_are_learnt(dataset: Path, tmp_path: Path) -> None:
    module = tiny_module()
    files = {"train": "train_sides.csv", "val": "val_sides.csv"}
    watch = _fit(tmp_path, dataset, module, max_steps=40, data={**files, "task": "frames"})
    assert module.config.head.num_classes == (3, 2)
    assert module.config.head.task == "frames"
    assert module.config.num_times == 2
    assert sum(watch.losses[-5:]) / 5 < 0.8 * watch.losses[0]
    metrics = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    assert metrics["val/top1"] == pytest.approx((metrics["val/top1/1"] + metrics["val/top1/2"]) / 2)


@pytest.mark.parametrize("multi_label", [False, True])
def test_boxes_are_learnt(dataset: Path, tmp_path: Path, multi_label: bool) -> None:
    with (dataset / "train_sides.csv").open(newline="") as file:
        lit = [(row["video"], float(row["start_s"]), row["side"]) for row in csv.DictReader(file)]
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        for video, start_s, side in lit[::2]:  # every other second; some clips have no box at all
            for x, where in ((0.0, "left"), (0.5, "right")):
                csv.writer(file).writerow((video, start_s + 0.5, x, 0, x + 0.5, 1, 1 if where == side else 2, 0))
    files = {"train": str(tmp_path / "boxes.csv"), "val": str(tmp_path / "boxes.csv")}
    data = AvaData(root=str(dataset), multi_label=multi_label, batch_size=2, num_workers=0, **files)
    module = tiny_module(options={**CALM, "box_depth": 1, "max_boxes": 2, "box_drop_path": 0.0})
    watch = Watch()
    tiny_trainer(tmp_path, watch, max_steps=40).fit(module, datamodule=data)
    assert module.config.head.task == "boxes"
    assert sum(watch.losses[-5:]) / 5 < 0.7 * watch.losses[0]
    assert float(module.trainer.callback_metrics["val/mAP" if multi_label else "val/top1"]) > 60
    (batch,) = watch.batches[-1:]
    items = [(torch.zeros(len(batch.labels[0]), 2), batch.labels[0])]
    rows = prediction_rows(batch, items, module)
    assert [row[3:7] for row in rows[:2]] == [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]
    assert len(rows) == sum(len(boxes) for boxes in batch.boxes or [])
    assert {row[7] for row in rows} == {"1", "2"}


def test_several_labels_at_a_time_are_learnt(dataset: Path, tmp_path: Path) -> None:
    module = tiny_module()
    _fit(tmp_path, dataset, module, max_epochs=1, max_steps=-1, data={"multi_label": True})
    assert module.config.head.activation == "sigmoid"
    assert 0 < float(module.trainer.callback_metrics["val/mAP"]) <= 100


def test_the_average_of_the_weights_is_what_is_validated(dataset: Path, tmp_path: Path) -> None:
    class Keep(Callback):
        raw: torch.Tensor
        validated: torch.Tensor

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            self.raw = pl_module.network.head.projection.weight.detach().clone()

        def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            self.validated = pl_module.network.head.projection.weight.detach().clone()

    keep, average = Keep(), WeightAverage(0.9)
    module = tiny_module()
    _fit(tmp_path, dataset, module, average, keep, max_epochs=1, max_steps=-1)
    assert not torch.equal(keep.raw, keep.validated)
    assert module.network is not None
    assert torch.equal(module.network.head.projection.weight, keep.validated)


def test_accumulated_batches_make_one_step(dataset: Path, tmp_path: Path) -> None:
    module = tiny_module()
    watch = _fit(tmp_path, dataset, module, max_steps=2, accumulate_grad_batches=3)
    assert (len(watch.batches), module.trainer.global_step) == (6, 2)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_number_formats_train(dataset: Path, tmp_path: Path, precision: str) -> None:
    watch = _fit(tmp_path, dataset, tiny_module(), max_steps=3, precision=precision)
    assert all(math.isfinite(loss) for loss in watch.losses)


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_gradients_in_bfloat16_are_clipped_before_a_fused_step(
    dataset: Path, tmp_path: Path, algorithm: str | None
) -> None:
    module = tiny_module()
    options = {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": algorithm}
    watch = _fit(tmp_path, dataset, module, max_steps=2, precision="bf16-mixed", **options)
    assert module.trainer.optimizers[0].defaults["fused"]
    left = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert (left.abs().max() if algorithm == "value" else left.norm()).item() == pytest.approx(1e-4, rel=1e-3)
    assert all(math.isfinite(loss) for loss in watch.losses)


@pytest.mark.parametrize(("clip", "fused"), [(0.01, False), (0.0, True)])
def test_scaled_gradients_are_clipped_where_they_are_unscaled(
    dataset: Path, tmp_path: Path, clip: float, fused: bool
) -> None:
    module, watch = tiny_module(), Watch()
    trainer = tiny_trainer(tmp_path, watch, max_steps=2, gradient_clip_val=clip)
    scaler = torch.amp.GradScaler("cpu", init_scale=256)
    trainer.strategy._precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer.fit(module, datamodule=tiny_data(dataset))
    assert bool(trainer.optimizers[0].defaults["fused"]) == fused
    left = torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm().item()
    unclipped = torch.stack([gradient.norm() for gradient in watch.gradients.values()]).norm().item()
    assert left == pytest.approx(unclipped / 256 if fused else clip, rel=1e-3)  # fused: the step itself unscales
    assert all(math.isfinite(loss) for loss in watch.losses)


def test_a_compiled_training_computes_the_same(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _fit(tmp_path, dataset, tiny_module())
    options: list[dict[str, Any]] = []

    def without_compiler(model: Any, **given: Any) -> Any:
        options.append(given)
        return torch._dynamo.optimize("aot_eager", dynamic=given.get("dynamic"), nopython=True)(model)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", without_compiler)
    module = tiny_module(compile=True)
    compiled = _fit(tmp_path, dataset, module, data={"val_batch_size": 1})
    assert compiled.losses == pytest.approx(plain.losses, abs=1e-5)
    for name, gradient in plain.gradients.items():
        assert torch.allclose(gradient, compiled.gradients[name], atol=1e-5), name
    assert {"dynamic": False} in options
    assert not any("orig_mod" in name for name in module.state_dict())


def test_the_frozen_stay_as_they_are(dataset: Path, tmp_path: Path) -> None:
    module = tiny_module(optimizer=OptimizerOptions(lr=0.01, warmup_epochs=0, freeze=("^patch_embed", "^blocks")))
    watch = _fit(tmp_path, dataset, module)
    assert {name.split(".")[1] for name in watch.gradients} == {"cls_token", "norm", "head"}
    assert len(module.frozen) + len(watch.gradients) == len(list(module.parameters()))


def test_what_the_data_decides_cannot_be_an_option() -> None:
    with pytest.raises(ValueError, match=r"model\.options: num_classes come from the data"):
        VideoClassifier(options={**CALM, "num_classes": 5})


def test_missing_annotations_name_the_file(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.train .*nowhere\.csv: no such file"):
        _fit(tmp_path, dataset, tiny_module(), data={"train": "nowhere.csv"})
    with pytest.raises(FileNotFoundError, match=r"data\.val .*nowhere\.csv"):
        _fit(tmp_path, dataset, tiny_module(), data={"val": "nowhere.csv"})
