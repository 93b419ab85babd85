from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from memvit.cli import main
from memvit.training.checkpoints import SECTION, read_checkpoint

TESTS = Path(__file__).parents[1]


def _run(runs: Path, name: str) -> Path:
    (folder,) = (runs / name).iterdir()
    return folder


def _assert_same(runs: Path) -> None:
    """The interrupted run has the same numbers, digit by digit, and the same weights as the other."""
    whole, resumed = _run(runs, "whole"), _run(runs, "resumed")
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_killed_training_goes_on_as_if_nothing_had_been(config: Path, tmp_path: Path) -> None:
    arguments = ["fit", "--config", str(config), "--run.name"]
    assert main([*arguments, "whole"]) == 0
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for step in (5, 20):  # in the middle of the first epoch, then of the second
        callback = ["--trainer.callbacks+=training.tiny_data.KillAt", f"--trainer.callbacks.step={step}"]
        command = [sys.executable, "-m", "memvit", *arguments, "resumed", "--ckpt_path", "last", *callback]
        killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = read_checkpoint(_run(tmp_path / "runs", "resumed") / "checkpoints" / "last.ckpt")
    assert (last["global_step"], last["SegmentsData"]) == (18, {"epoch": 1, "step": 2})
    assert len(last[SECTION]["memory"]) == 1
    assert main([*arguments, "resumed", "--ckpt_path", "last"]) == 0
    _assert_same(tmp_path / "runs")
    rows = (_run(tmp_path / "runs", "resumed") / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 32 + 2  # columns, steps, validations


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        (["--trainer.max_epochs=-1", "--trainer.max_steps=30"], (16, 16, 17)),
        (["--trainer.val_check_interval=5", "--run.ema_decay=0.9"], (10, 14)),
        (["--trainer.accumulate_grad_batches=3", "--run.checkpoint_every_n_steps=1"], (2, 8)),
        (["--trainer.check_val_every_n_epoch=3", "--trainer.max_epochs=3", "--trainer.limit_train_batches=6"], (9, 13)),
        (["--data.val=null", "--data.num_workers=1"], (16, 20)),
        ([], (16, 16, 17)),
    ],
)
def test_so_does_one_with_other_rhythms(
    config: Path, tmp_path: Path, options: list[str], stops: tuple[int, ...]
) -> None:
    arguments = ["fit", "--config", str(config), *options, "--run.name"]
    assert main([*arguments, "whole"]) == 0
    for step in stops:
        stop = ["--trainer.callbacks+=training.tiny_data.FailAt", f"--trainer.callbacks.step={step}"]
        assert main([*arguments, "resumed", "--ckpt_path", "last", *stop]) == 1
    assert main([*arguments, "resumed", "--ckpt_path", "last"]) == 0
    _assert_same(tmp_path / "runs")


def test_another_configuration_is_refused_before_anything_is_changed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", str(config), "--trainer.max_steps", "3"]
    assert main(arguments) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    other = ["--data.batch_size", "1", "--data.seed", "7", "--model.options.depth", "3", "--data.train", "val.csv"]
    assert main([*arguments, *other, "--ckpt_path", "last"]) == 1
    error = capsys.readouterr().err
    for difference in (
        "data.batch_size was 2 and is 1",
        "data.seed was 0 and is 7",
        "model.depth was 2 and is 3",
        "data.annotations_sha256 was",
        "data.videos was 5 and is 2",
    ):
        assert difference in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_best_checkpoint_goes_on_in_a_run_of_its_own(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", str(config), "--run.checkpoint_every_n_steps=0"]
    assert main([*arguments, "--trainer.max_epochs=1"]) == 0
    assert main([*arguments, "--ckpt_path", "best"]) == 0
    first, second = sorted((tmp_path / "runs" / "tiny").iterdir())
    assert f"going on from {first}/checkpoints/best.ckpt\n" in capsys.readouterr().err
    before, after = ((folder / "metrics.csv").read_text().splitlines() for folder in (first, second))
    assert after[: len(before)] == before
    assert len(after) == 2 * (len(before) - 1) + 1
