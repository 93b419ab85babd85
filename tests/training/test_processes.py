from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from memvit.cli import main
from memvit.training.checkpoints import SECTION, read_checkpoint
from training.tiny_data import CALM


def _fit_in_two_processes(arguments: list[str]) -> None:
    options = ["--data.batch_size=1", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "memvit", *arguments, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def _losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def _validated(folder: Path) -> dict[str, float]:
    with (folder / "metrics.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["val/top1"])
    return {name: float(value) for name, value in row.items() if name.startswith("val/")}


def test_two_processes_train_as_one_with_the_same_streams(config: Path) -> None:
    content = yaml.safe_load(config.read_text())
    content["model"]["options"] = CALM
    content["optimizer"] = {"name": "sgd", "lr": 0.1, "warmup_epochs": 0}
    content["trainer"] |= {"max_epochs": 1, "limit_train_batches": 6}
    content["run"] |= {"checkpoint_every_n_steps": 0}
    config.write_text(yaml.safe_dump(content))
    arguments = ["fit", "--config", str(config), "--run.name"]
    assert main([*arguments, "one"]) == 0
    _fit_in_two_processes([*arguments, "two"])
    one, two = (config.parent / "runs" / name / "version_0" for name in ("one", "two"))
    assert [path.name for path in two.parent.iterdir()] == ["version_0"]

    assert _losses(two) == pytest.approx(_losses(one), abs=1e-6)
    assert len(_losses(two)) == 6
    assert _validated(two) == pytest.approx(_validated(one), abs=1e-5)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, two)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-6, rtol=0), name
    memories = [read_checkpoint(folder / "checkpoints" / "last.ckpt")[SECTION]["memory"] for folder in (one, two)]
    assert [len(memory) for memory in memories] == [1, 2]
    for name, tensor in memories[0][0].items():
        parts = [part[name] for part in memories[1]]
        if name in ("clip_grid", "kind"):  # what the memory is for, not what is in it
            assert all(torch.equal(tensor, part) for part in parts), name
        else:
            assert torch.allclose(tensor.float(), torch.cat(parts).float(), atol=1e-5), name
