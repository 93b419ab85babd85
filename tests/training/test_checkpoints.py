from __future__ import annotations

import resource
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from memvit.training.checkpoints import SECTION, AtomicCheckpointIO, check_same, read_checkpoint
from memvit.training.journal import Journal
from memvit.training.runs import RunOptions, find_checkpoint, new_version, run_of


def _save_on_a_full_disk(path: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        AtomicCheckpointIO().save_checkpoint({SECTION: 2, "weights": torch.zeros(1_000_000)}, path)
    except ValueError as error:
        Path(path).with_suffix(".error").write_text(str(error))


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({SECTION: 1, "weights": torch.ones(5)}, path)
    process = get_context("spawn").Process(target=_save_on_a_full_disk, args=(str(path),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert read_checkpoint(path)[SECTION] == 1
    error = path.with_suffix(".error").read_text()
    assert "cannot be written" in error
    assert "is whole" in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "last.error"]


def test_a_checkpoint_cut_short_and_other_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({SECTION: 1, "weights": torch.ones(5000)}, path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="cut short"):
        read_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"not a checkpoint of `memvit fit`.*--model\.weights"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"other\.ckpt"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_every_difference_is_listed_with_both_values() -> None:
    saved = {"model": {"depth": 2, "memory": {"length": 4}}, "data": {"batch_size": 8, "seed": 0}}
    check_same(saved, {"data": dict(saved["data"]), "model": dict(saved["model"])}, "x")
    now = {"model": {"depth": 2, "memory": {"length": 2}}, "data": {"batch_size": 4, "seed": 0}}
    with pytest.raises(ValueError, match="another training") as caught:
        check_same(saved, now, "last.ckpt")
    assert "data.batch_size was 8 and is 4; model.memory.length was 4 and is 2" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_runs_are_numbered_and_the_newest_with_a_checkpoint_is_last(tmp_path: Path) -> None:
    experiment = RunOptions(name="x", directory=str(tmp_path)).experiment
    assert new_version(experiment).name == "version_0"
    assert find_checkpoint("last", experiment) is None
    for number in (2, 10):
        (experiment / f"version_{number}" / "checkpoints").mkdir(parents=True)
    last = experiment / "version_2" / "checkpoints" / "last.ckpt"
    last.touch()
    assert new_version(experiment).name == "version_11"
    assert find_checkpoint("last", experiment) == last
    assert run_of(last) == experiment / "version_2"
    assert run_of(last.with_name("best.ckpt")) is None
    with pytest.raises(FileNotFoundError, match=r"--ckpt_path nowhere\.ckpt"):
        find_checkpoint("nowhere.ckpt", experiment)


def test_the_best_of_an_older_run_is_not_taken_for_that_of_the_newest(tmp_path: Path) -> None:
    folders = [tmp_path / f"version_{number}" / "checkpoints" for number in range(3)]
    for folder in folders:
        folder.mkdir(parents=True)
    for path in (folders[0] / "last.ckpt", folders[0] / "best.ckpt"):
        path.touch()
    assert find_checkpoint("best", tmp_path) == folders[0] / "best.ckpt"  # the others were killed before their first
    (folders[1] / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"version_1 has none: it has not been validated.*--ckpt_path last"):
        find_checkpoint("best", tmp_path)
    assert find_checkpoint("last", tmp_path) == folders[1] / "last.ckpt"
    (folders[1] / "last.ckpt").rename(folders[1] / "best.ckpt")
    with pytest.raises(FileNotFoundError, match=r"version_1/checkpoints/last\.ckpt: no such file; --ckpt_path best"):
        find_checkpoint("last", tmp_path)


def test_the_journal_keeps_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    journal = Journal(path)
    for step in range(4):
        journal.write({"step": step + 1, "epoch": step // 2, "batch": step % 2, "train/loss": 1 / (step + 3)})
        if step % 2:
            journal.write({"step": step + 1, "epoch": step // 2, "val/top1": 50.0})
    with path.open("a") as file:
        file.write("5,2,0,0.1")  # killed while writing
    again = Journal(path)
    again.keep_until(2, (1, 0))
    again.write({"step": 3, "epoch": 1, "batch": 0, "train/loss": 0.5})
    rows = again.rows()
    assert [(row["step"], row["batch"]) for row in rows] == [("1", "0"), ("2", "1"), ("2", ""), ("3", "0")]
    assert float(rows[0]["train/loss"]) == 1 / 3
    assert rows[2]["val/top1"] == "50.0"
