"""What a run tells its user: what it starts with, what came of it, and where things are."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from memvit.commands.terminal import say
from memvit.models.hub import make_directory
from memvit.training.checkpoints import Checkpoints, read_checkpoint
from memvit.training.curves import FILE as CURVES_FILE
from memvit.training.curves import draw_curves
from memvit.training.journal import FILE as JOURNAL_FILE
from memvit.training.module import VideoClassifier
from memvit.training.progress import TrainingProgress

logger = logging.getLogger(__name__)

MODEL_FOLDER, WEIGHTS_FILE = "model", "weights.txt"
NUM_NAMED_FAILURES = 5


class Announcement(Callback):
    """Tells what is trained on what, and what became of the weights that it starts from.

    Args:
        folder: of the run; it gets a file with every parameter's fate.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells it, before the first step."""
        assert isinstance(pl_module, VideoClassifier)
        if not trainer.is_global_zero:
            return
        config = pl_module.config
        train, val = pl_module.data.dataset("train"), pl_module.data.dataset("val")
        assert train is not None
        classes = " + ".join(str(num) for num in config.head.num_classes)
        remembered = f"remembers {config.support_clips} clips back" if config.memory.length else "without memory"
        logger.info(
            "%s: %d videos to train on, %s; %s classes per %s; clips of %.2f s, %s; %.1f M parameters",
            self.folder,
            len(train.videos),
            f"{len(val.videos)} to validate with" if val is not None else "none to validate with",
            classes,
            {"clip": "clip", "frames": "token time", "boxes": "box"}[config.head.task],
            config.clip_duration_s,
            remembered,
            sum(parameter.numel() for parameter in pl_module.parameters()) / 1e6,
        )
        if pl_module.frozen:
            logger.info("%d parameters are frozen: %s", len(pl_module.frozen), ", ".join(pl_module.frozen))
        if report := pl_module.weights_report:
            logger.info("%s", report)
            (make_directory(self.folder) / WEIGHTS_FILE).write_text(report.listing(), encoding="utf-8")


def finish_run(trainer: Trainer, module: VideoClassifier, folder: Path, console: Console) -> None:
    """Writes the model and the curves of a finished training and tells where they are.

    Args:
        trainer: after `fit`.
        module: what it trained.
        folder: of the run.
        console: where the report goes.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    checkpoints = next((c for c in callbacks if isinstance(c, Checkpoints)), None)
    state = None
    if checkpoints is not None and checkpoints.best_path.is_file():
        state = read_checkpoint(checkpoints.best_path, mmap=True)["state_dict"]
    module.save_network(folder / MODEL_FOLDER, state)
    draw_curves(folder / JOURNAL_FILE, folder / CURVES_FILE, str(folder))
    if checkpoints is not None and checkpoints.best_score is not None:
        say(console, f"best {checkpoints.monitor}: {checkpoints.best_score:.4g} at step {checkpoints.best_step}")
    elif checkpoints is not None:
        say(console, f"no best checkpoint, {_why_no_best(trainer, module, checkpoints)}; the model is the last state")
    progress = next((c for c in callbacks if isinstance(c, TrainingProgress)), None)
    if progress is not None and progress.speed.num_clips:
        speed = progress.speed
        say(console, f"trained {speed.num_clips:,} clips in {speed.seconds:,.0f} s: {speed.mean:.1f} clips/s")
    report_failures(module, console)
    say(console, f"model: {folder / MODEL_FOLDER} (memvit predict VIDEO --model {folder / MODEL_FOLDER})")
    say(
        console,
        f"curves: {folder / CURVES_FILE}, numbers: {folder / JOURNAL_FILE}, checkpoints: {folder / 'checkpoints'}",
    )


def _why_no_best(trainer: Trainer, module: VideoClassifier, checkpoints: Checkpoints) -> str:
    if module.data.dataset("val") is None:
        return "as there is nothing to validate with"
    if checkpoints.has_validated:
        return "as no validation gave a number" + (f" for {checkpoints.monitor}" if checkpoints.monitor else "")
    if trainer.limit_val_batches == 0:
        return "as nothing was validated: --trainer.limit_val_batches is 0"
    return (
        f"as nothing was validated in {trainer.global_step} steps: --trainer.val_check_interval is "
        f"{trainer.val_check_interval}, --trainer.check_val_every_n_epoch {trainer.check_val_every_n_epoch}"
    )


def report_failures(module: VideoClassifier, console: Console) -> None:
    """Tells which videos could not be read."""
    if not module.failures:
        return
    names = sorted(module.failures)
    more = f" and {len(names) - NUM_NAMED_FAILURES} more" if len(names) > NUM_NAMED_FAILURES else ""
    text = f"{len(names)} videos could not be read and were left out: {', '.join(names[:NUM_NAMED_FAILURES])}{more}"
    say(console, text, "yellow")
