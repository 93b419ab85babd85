"""EPIC-KITCHENS-100 end to end, in miniature: both tasks, trained, killed, resumed, tested, submitted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import memvit
from epic_tree import NOUNS, SIZE, VERBS, read_rows, segment, write_files, write_images
from memvit.cli import main
from memvit.commands.models import load_training_checkpoint
from memvit.metrics.epic_submission import read_submission
from training.tiny_data import TINY_OPTIONS

FPS = 8
# Participant P02 is one that training never sees.
VIDEOS = {"train": ("P01_101", "P01_102", "P03_101"), "val": ("P02_101", "P03_102")}
SECONDS = 8


def write_tree(root: Path) -> Path:
    """Videos whose colour is the verb and whose bright side the noun, as folders, tar files and at 50 images a second."""
    rng = np.random.default_rng(0)
    infos = {name: (float(SECONDS), float(FPS)) for names in VIDEOS.values() for name in names}
    for split, names in VIDEOS.items():
        rows = []
        for name in names:
            actions = [(int(rng.integers(3)), int(rng.integers(2))) for _ in range(SECONDS)]
            rows += [segment(name, k, k + 0.1, k + 0.9, *action) for k, action in enumerate(actions)]
            rate = 50 if name == "P01_102" else FPS  # as published, and as a film has them
            pictures: list[np.ndarray | None] = []
            for i in range(SECONDS * rate):
                verb, noun = actions[i // rate]
                frame = rng.integers(0, 60, (*SIZE, 3)).astype(np.uint8)
                frame[:, 24 * noun : 24 * noun + 24, verb] += 150
                pictures.append(frame)
            write_images(root, name, pictures, tar=name in ("P01_101", "P02_101"))
        file = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}[split]
        write_files(root / "annotations", rows, infos, name=file)
    hidden = [{k: v for k, v in row.items() if "verb" not in k and "noun" not in k} for row in rows]
    write_files(root / "annotations", hidden, infos, name="EPIC_100_test_timestamps.csv")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("epic") / "tree")


def write_config(root: Path, folder: Path, task: str, **data: Any) -> Path:
    content = {
        "model": {"name": "memvit_tiny", "options": {**TINY_OPTIONS, "causal": task == "anticipation"}},
        "data": {
            "class_path": "EpicKitchensData",
            "init_args": {
                "root": str(root),
                "task": task,
                "batch_size": 2,
                "num_workers": 0,
                "augmentation": {"clip_jitter": 1.0} if task == "recognition" else {"horizontal_flip": 0.0},
                **data,
            },
        },
        "optimizer": {"lr": 0.01},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        "run": {"name": task, "directory": str(folder / "runs"), "checkpoint_every_n_steps": 3},
    }
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMVIT_CACHE", str(tmp_path / "cache"))


def printed_metrics(text: str) -> dict[str, float]:
    """The values in the table that a test prints."""
    cells = [line.split("│")[1:3] for line in text.splitlines() if line.startswith("│")]
    return {name.strip(): float(value.split()[0]) for name, value in cells}


@pytest.mark.parametrize("task", ["recognition", "anticipation"])
def test_a_miniature_is_trained_resumed_tested_and_submitted(
    task: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(root, tmp_path, task)
    assert main(["fit", "--config", str(config)]) == 0
    report = capsys.readouterr().err
    assert "3 videos to train on, 2 to validate with; 3 + 2 classes per" in report
    run = tmp_path / "runs" / task / "version_0"
    best = {"recognition": "val/all_action_accuracy_at_1", "anticipation": "val/overall_action_mt5r"}[task]
    validated = [float(row[best]) for row in read_rows(run / "metrics.csv") if row[best]]
    assert len(validated) == 2

    # Killed in the middle and gone on with, it is the same training.
    again = config.with_name("again.yaml")
    again.write_text(config.read_text().replace(f"name: {task}\n", "name: again\n"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    kill = ["--trainer.callbacks+=training.tiny_data.KillAt", "--trainer.callbacks.step=5"]
    command = [sys.executable, "-m", "memvit", "fit", "--config", str(again)]
    assert subprocess.run([*command, *kill], env=environment, capture_output=True, check=False).returncode == -9
    assert main(["fit", "--config", str(again), "--ckpt_path", "last"]) == 0
    losses = [
        [row["train/loss"] for row in read_rows(tmp_path / "runs" / name / "version_0" / "metrics.csv")]
        for name in ("again", task)
    ]
    assert losses[0] == losses[1]

    # What a test, or a validation, prints is what its submission is worth, however many videos are read at a time.
    annotations = root / "annotations"
    subsets = {
        "tail_verbs": annotations / "EPIC_100_tail_verbs.csv",
        "tail_nouns": annotations / "EPIC_100_tail_nouns.csv",
        "unseen_participants": annotations / "EPIC_100_unseen_participant_ids_validation.csv",
    }
    for command, batch_size in (("test", "1"), ("validate", "2")):
        capsys.readouterr()
        path = tmp_path / "out" / f"{batch_size}.zip"
        test = [command, "--config", str(config), "--ckpt_path", "last", "--data.val_batch_size", batch_size]
        assert main([*test, "--model.submission", str(path)]) == 0
        printed = printed_metrics(capsys.readouterr().out)
        submission = read_submission(path)
        assert submission.challenge == f"action_{task}"
        measured = submission.measure(annotations / "EPIC_100_validation.csv", **subsets)
        assert {name: value for name, value in printed.items() if name != "loss"} == pytest.approx(measured, rel=1e-3)
        assert printed[best.removeprefix("val/")] == pytest.approx(validated[-1], abs=0.01)
        assert any(name.startswith("unseen") for name in printed)
        assert any(name.startswith("tail") for name in printed)

    # The model knows what it was trained for.
    head = memvit.create_model(str(run / "model")).config.head
    assert (head.names, head.class_names) == (("verb", "noun"), (VERBS, NOUNS))
    assert head.anticipation_s == (1.0 if task == "anticipation" else 0.0)
    assert load_training_checkpoint(run / "checkpoints" / "last.ckpt").config.head == head


def test_a_submission_for_segments_without_classes_is_written(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(root, tmp_path, "recognition", test="annotations/EPIC_100_test_timestamps.csv")
    assert main(["fit", "--config", str(config), "--trainer.max_epochs", "1"]) == 0
    path = tmp_path / "test.zip"
    assert main(["test", "--config", str(config), "--ckpt_path", "last", "--model.submission", str(path)]) == 0
    submission = read_submission(path)
    assert len(submission.narration_ids) == 2 * SECONDS
    assert capsys.readouterr().out == ""


def test_anticipation_with_a_model_that_sees_ahead_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(root, tmp_path, "anticipation")
    assert main(["fit", "--config", str(config), "--model.options.causal", "false"]) == 1
    assert "set model.options.causal to true" in " ".join(capsys.readouterr().err.split())


def test_a_submission_needs_segments(
    dataset: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(config), "--trainer.max_epochs", "1"]) == 0
    test = ["test", "--config", str(config), "--ckpt_path", "last"]
    assert main([*test, "--model.submission", str(tmp_path / "x.zip")]) == 1
    assert "use EpicKitchensData, or leave it out" in " ".join(capsys.readouterr().err.split())


def test_segments_that_were_not_read_do_not_count_and_are_submitted_as_unknown(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(root, tmp_path, "recognition", val_batch_size=1)
    assert main(["fit", "--config", str(config), "--trainer.max_epochs", "1"]) == 0
    capsys.readouterr()
    path = tmp_path / "some.zip"
    test = ["test", "--config", str(config), "--ckpt_path", "last", "--model.submission", str(path)]
    assert main([*test, "--trainer.limit_test_batches", "9"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    scores = read_submission(path)
    missed = [len(set(row)) == 1 for row in scores.verb_scores.tolist()]
    assert len(missed) == 2 * SECONDS
    assert 0 < sum(missed) < 2 * SECONDS
    assert f"{sum(missed)} of {2 * SECONDS} segments or videos were not read and do not count" in told
    assert f"{sum(missed)} segments could not be read: all classes get the same score" in told


def test_weights_without_a_head_for_the_classes_cannot_be_measured(
    dataset: Path, config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(config), "--trainer.max_epochs", "1"]) == 0
    weights = tmp_path / "runs" / "tiny" / "version_0" / "model" / "model.safetensors"
    renamed = tmp_path / "weights.safetensors"  # without the config that knows its classes
    renamed.write_bytes(weights.read_bytes())
    capsys.readouterr()
    test = ["test", "--config", str(write_config(root, tmp_path, "recognition"))]
    assert main([*test, "--model.weights", str(renamed)]) == 1
    assert "new (head.projection" in (told := " ".join(capsys.readouterr().err.split()))
    assert "what is new is random, and cannot be measured" in told
