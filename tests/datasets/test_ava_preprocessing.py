"""From the authors' AVA config and 8-bit frames to what the model is given, computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

import memvit
from memvit.datasets.ava import AvaDataset
from memvit.datasets.clips import ClipTiming
from memvit.datasets.loader import StreamLoader
from memvit.models.presets import PRESETS

GOLDEN = Path(__file__).parents[1] / "golden"
HEIGHT, WIDTH = 20, 32  # frames; neither square nor a multiple of patches


def ava_yaml(path: Path) -> Path:
    """MeMViT-16 16x4 in the release's form for AVA, sections that do not concern the model included."""
    config = yaml.safe_load((GOLDEN / "memvit_16x4.yaml").read_text())
    config["AVA"] = {"FRAME_DIR": "frames", "BGR": False, "DETECTION_SCORE_THRESH": 0.9}
    config["DETECTION"] = {"ENABLE": True, "ALIGNED": True, "SPATIAL_SCALE_FACTOR": 32}
    config["MEMVIT"]["SAMPLER"] = "gap2"
    config["MODEL"] |= {"NUM_CLASSES": 80, "HEAD_ACT": "sigmoid", "LOSS_FUNC": "bce", "DROPOUT_RATE": 0.5}
    config["MVIT"] |= {
        "BOX_DEPTH": 1,
        "BOX_DROPOUT_RATE": 0.3,
        "BOX_DROP_ATTN_RATE": 0.5,
        "BOX_DROP_QKV_RATE": 0.3,
        "BOX_DROPPATH_RATE": 0.1,
        "DROPPATH_RATE": 0.4,
    }
    config["SOLVER"] = {"BASE_LR": 0.075}
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_release_s_ava_config_is_a_model_of_boxes(tmp_path: Path) -> None:
    model = memvit.load_slowfast(ava_yaml(tmp_path / "ava.yaml"))
    assert model.config == PRESETS["memvit_16x4_ava"].replace(memory_layers=tuple(range(0, 16, 2)))
    assert (model.config.memory.gap, model.config.head.task, model.config.head.max_boxes) == (2, "boxes", 100)
    assert {name.split(".")[0] for name in dict(model.named_parameters())} >= {"box_blocks", "head"}
    boxes = [torch.tensor([[0.0, 0, 48, 64], [10, 5, 60, 40]]), torch.zeros(0, 4)]
    with torch.inference_mode():  # small pictures: positions are resized
        logits, memory = model(torch.zeros(2, 3, 16, 64, 96), boxes=boxes)
        again, _ = model(torch.zeros(2, 3, 16, 64, 96), memory, boxes=boxes)
    assert logits.shape == again.shape == (2, 80)


def test_frames_and_boxes_become_these_numbers(tmp_path: Path) -> None:
    """Second 902 is frame 60; of 16 frames, every fourth, the first is 60 - 32. Pixels stand for their frame and place."""
    folder = tmp_path / "frames" / "film"
    folder.mkdir(parents=True)
    rows = ["original_vido_id video_id frame_id path labels"]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for frame in range(120):
        picture = np.stack([np.full((HEIGHT, WIDTH), frame), 3 * x, 5 * y], axis=2).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"film_{frame + 1:06d}.png")
        rows.append(f'film 0 {frame} film/film_{frame + 1:06d}.png ""')
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "boxes.csv").write_text(
        "film,0902,0.250,0.100,0.750,0.900,12,1\nfilm,0902,0.250,0.100,0.750,0.900,80,1\n"
    )
    config = memvit.load_slowfast(ava_yaml(tmp_path / "ava.yaml")).config.replace(crop_size=HEIGHT)
    timing = ClipTiming(config.num_frames, config.frame_period_s, 1.0, config.num_times)
    dataset = AvaDataset(
        tmp_path / "boxes.csv",
        tmp_path / "frames",
        timing,
        classes="ava",
        first_second=900,
        seconds=(902, 1798),
        frame_lists=[tmp_path / "list.csv"],
    )
    (batch,) = StreamLoader(dataset, batch_size=1, crop_size=HEIGHT, training=False, keep_aspect=True)
    clips = (batch.clips.float() / 255 - torch.tensor(config.mean).view(3, 1, 1, 1)) / torch.tensor(config.std).view(
        3, 1, 1, 1
    )
    assert clips.shape == (1, 3, 16, HEIGHT, WIDTH)
    for index in range(16):
        frame = 60 - 32 + 4 * index
        expected = np.stack([np.full((HEIGHT, WIDTH), frame), 3 * x, 5 * y]) / 255
        np.testing.assert_allclose(clips[0, :, index].numpy(), (expected - 0.45) / 0.225, atol=1e-6)
    assert batch.boxes is not None
    np.testing.assert_allclose(batch.boxes[0].numpy(), [[8, 2, 24, 18]], atol=1e-5)
    labels = torch.zeros(1, 80)
    labels[0, [11, 79]] = 1
    assert torch.equal(batch.labels[0], labels)
