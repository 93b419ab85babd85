from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

from memvit.training.averaging import WeightAverage
from memvit.training.checkpoints import read_checkpoint
from training.tiny_data import tiny_data, tiny_module, tiny_trainer


def _average(root: Path, dataset: Path, callback: EMAWeightAveraging, *more: Callback, **options: Any) -> Any:
    torch.manual_seed(0)
    trainer = tiny_trainer(root, callback, *more, max_steps=4, **options)
    trainer.fit(tiny_module(), datamodule=tiny_data(dataset), ckpt_path=None)
    trainer.save_checkpoint(root / "end.ckpt")
    return read_checkpoint(root / "end.ckpt")


def test_the_average_is_lightnings_own(dataset: Path, tmp_path: Path) -> None:
    ours, theirs = (_average(tmp_path, dataset, kind(decay=0.9)) for kind in (WeightAverage, EMAWeightAveraging))
    assert ours["averaging_state"] == theirs["averaging_state"] == {"n_averaged": torch.tensor(4)}
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, tensor in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], tensor, rtol=1e-5, atol=1e-6)


def test_swapping_weights_shows_in_their_versions(dataset: Path, tmp_path: Path) -> None:
    class Versions(Callback):
        before: int
        during: int

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.before = pl_module.network.head.projection.weight._version

        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.during = pl_module.network.head.projection.weight._version

    versions = Versions()
    _average(tmp_path, dataset, WeightAverage(0.9), versions, val_check_interval=4)
    assert versions.during > versions.before
