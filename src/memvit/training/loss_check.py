"""Ends a training whose loss is no number, and says which clips it came from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memvit.datasets.clips import Batch
from memvit.training.late import LateValues


class _Step(NamedTuple):
    """Which step it was: as in `Batch`."""

    epoch: int
    step: int
    videos: list[str]
    start_s: list[float]


class LossCheck:
    """Looks at losses one step late, so that no step waits for a GPU.

    With several processes all of them call it alike, with the same loss.
    """

    def __init__(self) -> None:
        self._losses: LateValues[_Step] = LateValues()

    def add(self, batch: Batch, loss: Tensor, local: Tensor) -> None:
        """Notes the loss of a step, and looks at the one before.

        Args:
            batch: this process's.
            loss: of all processes.
            local: what this process has added to it.

        Raises:
            ValueError: the loss of the step before was no number.
        """
        step = _Step(batch.epoch, batch.step, batch.videos, batch.start_s)
        self._look(self._losses.put(step, torch.cat([loss[None], local])))

    def finish(self) -> None:
        """Looks at all that were noted.

        Raises:
            ValueError: one of them was no number.
        """
        self._look(self._losses.flush())

    def _look(self, arrived: list[tuple[_Step, Tensor]]) -> None:
        for step, values in arrived:
            if not torch.isfinite(values[0]):
                raise ValueError(_where_it_broke(step, values[1:]))


def _where_it_broke(step: _Step, local: Tensor) -> str:
    clips = [f"{name} at {start:.2f} s" for name, start in zip(step.videos, step.start_s, strict=True) if name]
    mine = clips if not torch.isfinite(local).all() else []
    everyone: list[list[str]] = [mine]
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        everyone = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(everyone, mine)
    shown = ", ".join(clip for clips in everyone for clip in clips)
    return (
        f"the loss is not a number at epoch {step.epoch}, step {step.step} (clips: {shown}); lower --optimizer.lr, "
        "clip gradients with --trainer.gradient_clip_val, use bf16-mixed instead of 16-mixed, or look at those clips"
    )
