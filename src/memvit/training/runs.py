"""Where a run's files are: `runs/NAME/version_N`, and which of them a checkpoint continues."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from memvit.training.checkpoints import BEST, FOLDER, LAST


@dataclass(frozen=True)
class RunOptions:
    """Where a run is kept, and what of it.

    Attributes:
        name: of the experiment; runs are numbered below it.
        directory: the folder of all experiments.
        checkpoint_every_n_steps: optimiser steps between two checkpoints, beside those after every validation; 0: none.
        monitor: the validation metric that decides which weights are best; val/top1, or val/mAP where several classes can be
            true at a time, if left out.
        ema_decay: keeps a moving average of the weights, with this share of the past at every step, such as 0.999; it is what
            is validated and saved as the model. None: no average.
    """

    name: str = "run"
    directory: str = "runs"
    checkpoint_every_n_steps: int = 500
    monitor: str | None = None
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if not self.name or re.search(r"[/\\]|^\.\.?$", self.name):
            raise ValueError(f"run.name={self.name!r} must be a plain name; run.directory says where it is kept")
        if self.checkpoint_every_n_steps < 0:
            raise ValueError(f"run.checkpoint_every_n_steps={self.checkpoint_every_n_steps} must be 0 or more")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"run.ema_decay={self.ema_decay} must be between 0 and 1, such as 0.999")

    @property
    def experiment(self) -> Path:
        """The folder of all runs of this name."""
        return Path(self.directory).expanduser() / self.name


def versions(experiment: Path) -> list[Path]:
    """The runs of an experiment, the oldest first."""
    found = [(int(match[1]), path) for path in experiment.glob("version_*") if (match := _numbered(path))]
    return [path for _, path in sorted(found)]


def _numbered(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"version_(\d+)", path.name)


def new_version(experiment: Path) -> Path:
    """The folder of the next run, which is not made yet."""
    existing = versions(experiment)
    match = _numbered(existing[-1]) if existing else None
    return experiment / f"version_{int(match[1]) + 1 if match else 0}"


def find_checkpoint(given: str, experiment: Path) -> Path | None:
    """The checkpoint that `--ckpt_path` means.

    Args:
        given: a file, or "last" or "best" of the newest run that has any checkpoint.
        experiment: where to look for those.

    Returns:
        None where no run has any yet, so that one command line serves to start and to continue.

    Raises:
        FileNotFoundError: no such file, or that run has only the other; an older run's is not what was asked for.
    """
    if given not in ("last", "best"):
        path = Path(given)
        if not path.is_file():
            raise FileNotFoundError(f"--ckpt_path {given}: no such file; give a checkpoint, last or best")
        return path
    for run in reversed(versions(experiment)):
        last, best = run / FOLDER / LAST, run / FOLDER / BEST
        path, other = (last, best) if given == "last" else (best, last)
        if path.is_file():
            return path
        if other.is_file():
            raise FileNotFoundError(f"--ckpt_path {given}: {_why_missing(path, run)}")
        # Killed before its first checkpoint.
    return None


def _why_missing(path: Path, run: Path) -> str:
    if path.name == LAST:
        return f"{path}: no such file; --ckpt_path best takes the best state of {run}"
    return (
        f"{run} has none: it has not been validated yet, or no validation gave a number; --ckpt_path last measures its last "
        "state, or goes on from it"
    )


def run_of(checkpoint: Path) -> Path | None:
    """The run that goes on from a checkpoint in place: the one whose last checkpoint it is."""
    return checkpoint.parent.parent if checkpoint.name == LAST and checkpoint.parent.name == FOLDER else None
