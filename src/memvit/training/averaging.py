"""The moving average of the weights, without a GPU having to be waited for."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.autograd.graph import increment_version
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(EMAWeightAveraging):
    """Lightning's moving average of the weights, its results and its checkpoints, with another way to compute a step.

    Lightning's own asks the GPU twice a step whether it is the first, and updates the parameters one by one. This one counts
    on the CPU and updates them together.

    Args:
        decay: share of the past at every step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)
        self._update = get_ema_multi_avg_fn(decay)
        self._is_first = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the average, on the device that the model will be trained on."""
        self._device = trainer.strategy.root_device  # the model is not there yet, and Lightning would stay where it is
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks once whether there is an average to go on with."""
        super().on_train_start(trainer, pl_module)
        assert self._average_model is not None
        self._is_first = int(self._average_model.n_averaged) == 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the average after an optimiser step."""
        if trainer.global_step <= self._latest_update_step or not self.should_update(step_idx=trainer.global_step - 1):
            return
        assert self._average_model is not None
        average = [p.detach() for p in self._average_model.module.parameters()]
        current = [p.detach() for p in pl_module.parameters()]
        if self._is_first:
            for a, c in zip(average, current, strict=True):
                a.copy_(c)
        else:
            self._update(average, current, self._average_model.n_averaged)
        self._is_first = False
        self._average_model.n_averaged += 1
        self._latest_update_step = trainer.global_step

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        increment_version(list(pl_module.parameters()))  # Lightning writes behind PyTorch's back; see `kernels.frozen`

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        super()._copy_average_to_current(pl_module)
        increment_version(list(pl_module.parameters()))
