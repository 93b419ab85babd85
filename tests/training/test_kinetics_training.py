"""Kinetics end to end, in miniature: pre-trained without memory, tested in 5 x 3 views, made a model with memory."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import memvit
from memvit.cli import main
from memvit.datasets import measuring
from memvit.datasets.clips import ClipTiming
from memvit.datasets.kinetics import KineticsDataset
from memvit.models.config import MViTConfig
from memvit.training.kinetics import KineticsData
from memvit.training.opening import OpeningLog
from memvit.video import VideoReader
from memvit.video.writer import VideoWriter
from training.tiny_data import CALM, FPS

CONFIGS = Path(__file__).parents[2] / "configs" / "kinetics"
CLASSES = ("abseiling", "air drumming", "answering questions", "zumba")  # of which there are videos
NAMES = (*CLASSES, "applauding", "archery")
COLOURS = ((160, 0, 0), (0, 160, 0), (0, 0, 160), (120, 120, 120))
SIZES = ((40, 64), (64, 40), (40, 40), (40, 56))  # height, width
CLIP_S = 0.5


def write_tree(root: Path) -> Path:
    """Videos as folders of classes, of different shapes and lengths, one shorter than a clip; lists of them; names.

    What tells a video's class is in one corner of it, and only for a while.
    """
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(20):
        label, split = number % 4, "train" if number < 12 else "val"
        height, width = SIZES[int(rng.integers(4))]
        name = f"{split}/{CLASSES[label]}/clip {number}.mp4"
        (root / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(root / "videos" / name, width, height, FPS, codec="mpeg4") as video:
            length, seen_from = int(rng.integers(8, 20)), int(rng.integers(6))
            for i in range(3 if number == 15 else length):
                frame = np.kron(rng.integers(0, 90, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
                if i >= seen_from:
                    frame[:24, :24] += np.array(COLOURS[label], np.uint8)
                video.write(frame)
        lists[split].append(f"{name} {label}")
    for split, lines in lists.items():
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("kinetics") / "tree")


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Path:
    content = {
        "model": {"name": "memvit_tiny", "options": {**CALM, "memory_length": 0}},
        "data": {
            "class_path": "KineticsData",
            "init_args": {
                "root": str(root),
                "test": "val.csv",
                "classes": "classes.txt",
                "batch_size": 2,
                "num_workers": 0,
                "augmentation": {"clip_jitter": 1.0, "random_resized_crop": [0.6, 1.0], "horizontal_flip": 0.5},
            },
        },
        "optimizer": {"lr": 0.02, "warmup_epochs": 0},
        "trainer": {"max_epochs": 12, "accelerator": "cpu", "enable_progress_bar": False},
        "run": {"name": "kinetics", "directory": str(tmp_path / "runs"), "checkpoint_every_n_steps": 0},
    }
    path = tmp_path / "kinetics.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def measured(printed: str) -> dict[str, float]:
    """The table that a test prints."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]
    return {name: float(value.split()[0]) for name, value in cells}


def views_of(path: Path, crops: int) -> dict[float, np.ndarray]:
    """By hand: per start of a clip its squares, uint8 (crops, T, 32, 32, 3), in 5 clips if the video is long enough."""
    with VideoReader(path) as reader:
        frames = list(reader)
    height, width = frames[0].height, frames[0].width
    scale = 32 / min(height, width)
    pictures = [frame.rgb(round(height * scale), round(width * scale)) for frame in frames]
    room_s = len(frames) / FPS - CLIP_S
    views = {}
    for start_s in [room_s * i / 4 for i in range(5)] if room_s > 0 else [0.0]:
        on_display = [min(int((start_s + i / FPS) * FPS + 0.01), len(frames) - 1) for i in range(4)]
        clip = np.stack([pictures[index] for index in on_display])
        room = max(clip.shape[1:3]) - 32
        corners = [room // 2] if crops == 1 else [0, room // 2, room]
        wide = clip.shape[2] > clip.shape[1]
        views[start_s] = np.stack(
            [clip[:, :, at : at + 32] if wide else clip[:, at : at + 32] for at in corners]
        )  # fmt: skip
    return views


def measure_by_hand(
    model: memvit.MeMViT, root: Path, crops: int
) -> tuple[dict[tuple[str, float], np.ndarray], dict[str, float]]:
    """Per video and start of a clip the mean score of its squares, (classes,); and the metrics, in percent."""
    found, hits = {}, []
    for line in (root / "val.csv").read_text().splitlines():
        name, _, label = line.rpartition(" ")
        of_video = []
        for start_s, squares in views_of(root / "videos" / name, crops).items():
            clips = torch.from_numpy(squares).permute(0, 4, 1, 2, 3).float() / 255
            with torch.inference_mode():
                logits, _ = model((clips - 0.45) / 0.225, None)
            of_video.append(logits.softmax(dim=-1).mean(dim=0).numpy())
            found[name, round(start_s, 3)] = of_video[-1]
        order = np.argsort(-np.mean(of_video, axis=0)).tolist()
        hits.append((int(label), order[0] == int(label), int(label) in order[:5]))
    labels, top1, top5 = np.array(hits, float).T
    per_class = [top1[labels == label].mean() for label in range(len(CLASSES))]
    values = {"top1": top1.mean(), "top5": top5.mean(), "mean_class_accuracy": np.mean(per_class)}
    return found, {name: 100 * float(value) for name, value in values.items()}


def test_what_a_test_measures_is_what_views_computed_by_hand_give(
    config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(config)]) == 0
    report = capsys.readouterr().err
    assert "12 videos to train on, 8 to validate with; 6 classes per clip; clips of 0.50 s, without memory" in report
    run = tmp_path / "runs" / "kinetics" / "version_0"
    model = memvit.create_model(run / "model").eval()
    assert model.config.head.class_names == (NAMES,)

    found = {}
    for crops in ("1", "3"):
        predictions = tmp_path / f"{crops}.csv"
        test = ["test", "--config", str(config), "--ckpt_path", "best", "--model.predictions", str(predictions)]
        test += ["--data.test_clips", "5", "--model.test_crops", crops]
        assert main(test) == 0
        of_test = measured(capsys.readouterr().out)
        by_hand, expected = measure_by_hand(model, root, int(crops))
        assert {name: of_test[name] for name in expected} == pytest.approx(expected, abs=0.01)
        rows = rows_of(predictions)
        assert len(rows) == len(by_hand) == 5 * 7 + 1
        for row in rows:
            scores = by_hand[row["video"], round(float(row["start_s"]), 3)]
            assert float(row["score"]) == pytest.approx(scores.max(), abs=2e-5)
            assert row["predicted"] == NAMES[int(scores.argmax())]
            assert row["label"] in row["video"]
        found[crops] = [float(row["score"]) for row in rows]
        # However many videos are read at a time.
        assert main([*test, "--data.val_batch_size", "3"]) == 0
        assert measured(capsys.readouterr().out) == pytest.approx(of_test, abs=0.01)
    assert np.abs(np.subtract(*found.values())).max() > 0.02

    # What training validated: the clip in the middle of every video.
    assert main(["validate", "--config", str(config), "--ckpt_path", "best"]) == 0
    best = max(float(row["val/top1"]) for row in rows_of(run / "metrics.csv") if row["val/top1"])
    assert measured(capsys.readouterr().out)["top1"] == pytest.approx(best, abs=0.01)


def test_the_model_becomes_one_with_memory(config: Path, dataset: Path, tmp_path: Path) -> None:
    """Everything is taken over but what short clips cannot teach: memory, and the classes of the long videos."""
    assert main(["fit", "--config", str(config), "--trainer.max_epochs", "1"]) == 0
    before = tmp_path / "runs" / "kinetics" / "version_0" / "model"
    long = yaml.safe_load(config.read_text())
    long["data"] = {
        "class_path": "SegmentsData",
        "init_args": {"root": str(dataset), "batch_size": 2, "num_workers": 0},
    }
    long["model"]["options"]["memory_length"] = 2
    long["run"]["name"] = "long"
    config.write_text(yaml.safe_dump(long))
    still = ["--optimizer.lr", "1e-30", "--optimizer.min_lr", "0", "--trainer.max_steps", "2"]
    assert main(["fit", "--config", str(config), "--model.weights", str(before), *still]) == 0

    run = tmp_path / "runs" / "long" / "version_0"
    head, *sections = (run / "weights.txt").read_text().split("\n\n")
    fate = {title.split(":")[0]: names for title, *names in (section.split() for section in sections)}
    fate = {what: {name for name in names if not name.isdecimal()} for what, names in fate.items()}
    old, new = (load_file(path / "model.safetensors") for path in (before, run / "model"))
    of_memory = {name for name in new if "compress_" in name or "rel_pos_mem" in name}
    assert head == f"weights: {before}"
    assert any("blocks.1." in name for name in of_memory)
    assert {name.rpartition(".")[2] for name in of_memory if "rel_pos" in name} >= {"rel_pos_mem_t"}
    assert fate["new"] == {*of_memory, "head.projection.weight", "head.projection.bias"}
    assert fate["loaded"] == set(new) - fate["new"]
    assert fate["resized"] == set()
    assert fate["unused"] == {"head.projection.weight", "head.projection.bias"}
    for name in fate["loaded"]:
        torch.testing.assert_close(new[name], old[name], rtol=0, atol=0)
    assert memvit.create_model(run / "model").config.memory.length == 2


def test_folders_of_classes_need_no_list(
    config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "videos").symlink_to(root / "videos")
    content = yaml.safe_load(config.read_text())
    content["data"]["init_args"] |= {"root": str(bare), "classes": None}
    content["run"]["checkpoint_every_n_steps"] = 2
    config.write_text(yaml.safe_dump(content))
    fit = ["fit", "--config", str(config), "--ckpt_path", "last", "--trainer.max_epochs"]
    assert main([*fit, "1"]) == 0
    assert main([*fit, "2"]) == 0
    run = tmp_path / "runs" / "kinetics" / "version_0"
    assert len([row for row in rows_of(run / "metrics.csv") if row["train/loss"]]) == 12
    capsys.readouterr()
    assert main(["test", "--config", str(config), "--model.weights", str(run / "model")]) == 0
    assert measured(capsys.readouterr().out).keys() == {"top1", "top5", "mean_class_accuracy", "loss"}
    assert memvit.create_model(run / "model").config.head.class_names == (CLASSES,)


def test_a_split_is_a_list_or_the_folder_of_its_name(root: Path, tmp_path: Path) -> None:
    for folder in ("videos/train", "videos/holdout", "more"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    data = KineticsData(str(tmp_path), val="holdout.csv", test="more")
    assert data.annotations("train") == tmp_path / "train.csv"
    assert data.annotations("val") == tmp_path / "videos/holdout"
    assert data.annotations("test") == tmp_path / "more"
    assert KineticsData(str(tmp_path), val=None).annotations("val") is None
    data = KineticsData(str(root), val="missing.csv")
    data.connect(MViTConfig().replace(**CALM))
    with pytest.raises(FileNotFoundError, match=r"data\.val .*missing\.csv: no such file"):
        data.dataset("val")
    with pytest.raises(ValueError, match=r"data\.test_clips=0"):
        KineticsData(test_clips=0)


def test_names_of_other_classes_than_the_models_are_refused(root: Path) -> None:
    data = KineticsData(str(root), test="val.csv", classes="classes.txt")
    data.connect(MViTConfig().replace(**CALM))
    data.known_classes = (CLASSES,)
    with pytest.raises(
        ValueError, match=r"data\.classes=classes\.txt names 6 classes, but the model was trained with 4"
    ):
        data.dataset("test")


def test_only_tests_take_several_clips_of_a_video(root: Path) -> None:
    data = KineticsData(str(root), test="val.csv", test_clips=3)
    data.connect(MViTConfig().replace(**CALM))
    num_clips = {}
    for split in ("train", "val", "test"):
        found = data.dataset(split)
        assert isinstance(found, KineticsDataset)
        assert found.classes == (("0", "1", "2", "3"),)
        num_clips[split] = max(len(found.clip_starts(video)) for video in found.videos)
    assert num_clips == {"train": 1, "val": 1, "test": 3}


def test_one_process_of_a_machine_opens_the_videos_for_all(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "MIN_KEPT", 1)
    data = KineticsData(str(root))
    for world_size, kept in ((1, False), (2, True)):
        data.trainer = SimpleNamespace(world_size=world_size, state=SimpleNamespace(fn="fit"))  # type: ignore[assignment]
        data.prepare_data()
        assert (tmp_path / "cache").exists() == kept
    opened: list[int] = []
    for split, num_videos in (("train", 12), ("val", 8)):
        file = KineticsDataset(
            root / f"{split}.csv",
            root / "videos",
            ClipTiming(4, 1 / FPS, CLIP_S, 2),
            on_progress=lambda done, total: opened.append(total),
        )
        assert file.num_groups == num_videos
    assert opened == []


def test_opening_many_videos_is_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("memvit.training.opening.time.monotonic", lambda: now_s[0])
    tell = OpeningLog(Path("train.csv"))
    with caplog.at_level(logging.INFO):
        for done in range(1, 41):
            now_s[0] = done * 1.0
            tell(done, 100)
    assert caplog.messages == [
        "train.csv: 15 of 100 videos opened to see how long they are, about 85 s to go",
        "train.csv: 30 of 100 videos opened to see how long they are, about 70 s to go",
    ]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_read(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(path), "--print_config"])
    assert stopped.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    data = config["data"]["init_args"]
    assert config["data"]["class_path"].endswith(".KineticsData")
    assert config["model"]["options"]["memory_length"] == 0
    assert config["model"]["name"] in memvit.list_models()
    assert data["augmentation"]["clip_jitter"] == 1.0
    trainer = config["trainer"]
    assert data["batch_size"] * trainer["devices"] * trainer["num_nodes"] == 512
    assert config["optimizer"]["lr"] == 1.6e-3
    # Every value says where it comes from, or is a name or a number of machines.
    plain = ("name:", "class_path:", "root:", "accelerator:", "devices:", "num_nodes:", "strategy:")
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    bare = [line for line in lines if "#" not in line and not line.endswith(":") and not line.startswith(plain)]
    assert bare == []


def test_there_is_a_config_for_every_kinetics() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {
        "mvit_16x4_k400",
        "mvit_24_32x3_k600",
        "mvit_24_32x3_k700",
    }
