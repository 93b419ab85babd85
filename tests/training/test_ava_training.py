"""AVA end to end, in miniature: frames in lists, both kinds of boxes, exclusions; trained, killed, resumed, tested."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from memvit.cli import main
from memvit.metrics.ava import evaluate
from memvit.video.writer import VideoWriter
from training.tiny_data import TINY_OPTIONS

FPS = 8
SECONDS = range(902, 906)
ACTIONS = {12: "stand", 14: "walk", 80: "watch (a person)"}
SIZES = {"train0": (32, 48), "train1": (48, 32), "val0": (32, 48), "val1": (40, 40)}


def write_tree(root: Path) -> Path:
    """Two videos to train on, as images in a list; two to validate with, as files of different shapes.

    Of every keyframe an annotated box with an action or two, and detected boxes a little beside it and elsewhere.
    """
    rng = np.random.default_rng(0)
    (root / "videos").mkdir(parents=True)
    frames = ["original_vido_id video_id frame_id path labels"]
    rows: dict[str, list[tuple[object, ...]]] = {"train": [], "val": [], "train_found": [], "val_found": []}
    for name, (height, width) in SIZES.items():
        split = name[:-1]
        pictures = rng.integers(0, 256, (6 * FPS, height, width, 3)).astype(np.uint8)
        if split == "train":
            (root / "frames" / name).mkdir(parents=True)
            for i, picture in enumerate(pictures):
                path = f"{name}/{name}_{i + 1:06d}.jpg"
                Image.fromarray(picture).save(root / "frames" / path)
                frames.append(f'{name} 0 {i} {path} ""')
        else:
            with VideoWriter(root / "videos" / f"{name}.mp4", width, height, FPS, codec="mpeg4") as video:
                for picture in pictures:
                    video.write(picture)
        for second in SECONDS:
            x, y = rng.integers(0, 400, 2) / 1000
            box = (f"{x:.3f}", f"{y:.3f}", f"{x + 0.5:.3f}", f"{y + 0.5:.3f}")
            for action in rng.choice(list(ACTIONS), rng.integers(1, 3), replace=False):
                rows[split].append((name, f"{second:04d}", *box, int(action), 1))
            near = tuple(f"{float(c) + 0.02:.3f}" for c in box)
            rows[f"{split}_found"] += [
                (name, second, *near, "" if split == "val" else 12, "0.98"),
                (name, second, "0.1", "0.7", "0.3", "0.9", "-1", "0.95"),
                (name, second, "0.5", "0.7", "0.7", "0.9", "-1", "0.2"),
            ]
    for file, content in rows.items():
        with (root / f"{file}.csv").open("w", newline="") as out:
            csv.writer(out).writerows(content)
    (root / "train_frames.csv").write_text("\n".join(frames) + "\n")
    (root / "excluded.csv").write_text("val0,0903\n")
    items = [f'item {{\n  name: "{name}"\n  id: {number}\n}}' for number, name in ACTIONS.items()]
    (root / "actions.pbtxt").write_text("\n".join(items) + "\n")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("ava") / "tree")


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Path:
    # Frames and videos in one folder, as links: the list and the files name them relative to it.
    media = tmp_path / "media"
    media.mkdir()
    for found in [*(root / "frames").iterdir(), *(root / "videos").iterdir()]:
        (media / found.name).symlink_to(found)
    content = {
        "model": {"name": "memvit_tiny", "options": {**TINY_OPTIONS, "box_depth": 1, "max_boxes": 4, "memory_gap": 2}},
        "data": {
            "class_path": "AvaData",
            "init_args": {
                "root": str(root),
                "test": "val.csv",
                "videos": str(media),
                "classes": "actions.pbtxt",
                "first_second": 900,
                "seconds": [902, 1798],
                "train_detections": ["train_found.csv"],
                "val_detections": ["val_found.csv"],
                "test_detections": ["val_found.csv"],
                "val_excluded": "excluded.csv",
                "test_excluded": "excluded.csv",
                "train_frames": "train_frames.csv",
                "image_fps": FPS,
                "batch_size": 2,
                "num_workers": 0,
                "augmentation": {
                    "short_side": [36, 40],
                    "random_crop": True,
                    "horizontal_flip": 0.5,
                    "pca": 0.1,
                    "frame_jitter": 0.5,
                },
            },
        },
        "optimizer": {"name": "sgd", "lr": 0.05, "warmup_epochs": 0.5},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        "run": {"name": "ava", "directory": str(tmp_path / "runs"), "checkpoint_every_n_steps": 1},
    }
    path = tmp_path / "ava.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def losses(run: Path) -> dict[str, str]:
    return {row["step"]: row["train/loss"] for row in rows_of(run / "metrics.csv") if row["train/loss"]}


def test_a_miniature_of_ava_is_trained_resumed_and_tested(
    config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(config)]) == 0
    report = capsys.readouterr().err
    assert "2 videos to train on, 2 to validate with; 3 classes per box" in report
    run = tmp_path / "runs" / "ava" / "version_0"
    validated = [float(row["val/mAP"]) for row in rows_of(run / "metrics.csv") if row["val/mAP"]]
    assert len(validated) == 2
    assert not any("loss" in name for name in rows_of(run / "metrics.csv")[0] if name.startswith("val/"))

    # Killed in the middle and gone on with, it is the same training.
    again = config.with_name("again.yaml")
    again.write_text(config.read_text().replace("name: ava\n", "name: again\n"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    kill = ["--trainer.callbacks+=training.tiny_data.KillAt", "--trainer.callbacks.step=5"]
    command = [sys.executable, "-m", "memvit", "fit", "--config", str(again)]
    assert subprocess.run([*command, *kill], env=environment, capture_output=True, check=False).returncode == -9
    assert main(["fit", "--config", str(again), "--ckpt_path", "last"]) == 0
    assert losses(tmp_path / "runs" / "again" / "version_0") == losses(run)

    # What a test measures is what the evaluation of its file gives.
    capsys.readouterr()
    found = tmp_path / "out" / "found.csv"
    test = ["test", "--config", str(config), "--ckpt_path", "last"]
    assert main([*test, "--model.detections", str(found)]) == 0
    printed = capsys.readouterr().out
    assert "loss" not in printed  # detected boxes carry no labels
    measured = float(next(line for line in printed.splitlines() if "mAP" in line).split("│")[2].split()[0])
    result = evaluate(root / "val.csv", found, root / "excluded.csv", classes=ACTIONS)
    assert 100 * result["mAP"] == pytest.approx(measured, abs=0.01)
    assert measured == pytest.approx(validated[-1], abs=0.01)
    scores = list(csv.reader(found.open()))
    assert len(scores) == 2 * len(SECONDS) * 2 * len(ACTIONS)  # detected with a score of 0.9 or more
    assert {row[0] for row in scores} == {"val0", "val1"}
    assert {row[6] for row in scores} == {"12", "14", "80"}
    assert (tmp_path / "out" / "found_classes.png").read_bytes().startswith(b"\x89PNG")

    # However many videos are read at a time; a validation, here with the same files, writes what a test does.
    one = tmp_path / "out" / "one.csv"
    validate = ["validate", *test[1:], "--data.val_batch_size", "1"]
    assert main([*validate, "--model.detections", str(one)]) == 0
    assert (tmp_path / "out" / "one_classes.png").exists()
    assert {tuple(row[:7]): float(row[7]) for row in csv.reader(one.open())} == pytest.approx(
        {tuple(row[:7]): float(row[7]) for row in scores}, abs=1e-5
    )


def test_the_best_is_chosen_by_what_is_measured(
    config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the loss nor the accuracy of boxes that carry no labels."""
    fit = ["fit", "--config", str(config), "--trainer.max_epochs", "1"]
    one_action = ["--data.multi_label", "false"]
    for split in ("train", "val"):
        of_box = {line.rsplit(",", 2)[0]: line for line in (root / f"{split}.csv").read_text().splitlines()}
        (tmp_path / f"{split}.csv").write_text("\n".join(of_box.values()))
        one_action += [f"--data.{split}", str(tmp_path / f"{split}.csv")]
    assert main([*fit, *one_action]) == 0
    assert "best val/mAP: " in capsys.readouterr().err
    assert main([*fit, "--run.monitor", "val/loss"]) == 1
    assert "run.monitor='val/loss' is not measured; metrics are val/mAP" in capsys.readouterr().err
    assert (tmp_path / "runs" / "ava" / "version_1" / "checkpoints" / "last.ckpt").is_file()  # nothing is lost


def test_mirrored_clips_are_measured_as_well(config: Path, tmp_path: Path) -> None:
    """Each way has a memory of its own: the mean of two is what a mirrored video gives as well."""
    assert main(["fit", "--config", str(config), "--trainer.max_epochs", "1"]) == 0
    files = {}
    for flip in ("true", "false"):
        files[flip] = tmp_path / f"{flip}.csv"
        test = ["test", "--config", str(config), "--ckpt_path", "last", "--model.test_flip", flip]
        assert main([*test, "--model.detections", str(files[flip])]) == 0
    both, one = ([row[7] for row in csv.reader(path.open())] for path in files.values())
    assert len(both) == len(one)
    assert both != one
