"""Plays a shell game and lets two models follow it, clip by clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from memvit.datasets.ava import AvaDataset
from memvit.datasets.clips import ClipTiming
from memvit.datasets.loader import StreamLoader
from memvit.datasets.scenes import Scene, ShellGameOptions
from memvit.datasets.synthetic import make_scene, render, write_boxes
from memvit.models.memvit import MeMViT
from memvit.models.zoo import create_model

MODELS = Path(__file__).parent / "models"  # one directory per model, as `save_pretrained` writes it
PLACES = ("left", "middle", "right")
CLASSES = ("empty", "ball")


@dataclass(frozen=True)
class Turn:
    """What happened around a full second of the game, and what was thought of it.

    Attributes:
        second: its middle; cups move in the half second before and rest in the half second after.
        boxes: (3, 4), of the cups at that second, x1, y1, x2, y2 as fractions of the frame.
        holder: the place of the ball.
        hidden_s: seconds since the ball was to be seen; 0: it is.
        scores: per model, the probability of every cup that it holds the ball, made to add up to 1.
    """

    second: int
    boxes: np.ndarray
    holder: int
    hidden_s: float
    scores: dict[str, np.ndarray]

    def guess(self, model: str) -> int:
        """The cup that a model points to."""
        return int(self.scores[model].argmax())


def load_models() -> dict[str, MeMViT]:
    """The trained models of the package: "with memory" and "without memory"."""
    return {f"{which} memory": create_model(str(MODELS / f"shell_game_{which}")) for which in ("with", "without")}


def record_game(folder: Path, *, seed: int, duration_s: int, size: int, fps: float) -> tuple[Path, Scene]:
    """Makes up a game and encodes it: `videos/game.mp4`, with its boxes in AVA's form, `game.csv`.

    Args:
        folder: made where missing; a game of before is replaced.
        seed: chooses everything. The models were trained on games with other numbers, which no seed repeats.
        duration_s: length.
        size: height and width, pixels.
        fps: frames per second.
    """
    scene = make_scene("shell_game", seed, "test", 0, ShellGameOptions(duration_s, duration_s))
    path = folder / "videos" / "game.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    render(scene, path, size=size, fps=fps, seed=seed)
    write_boxes(folder / "game.csv", [("game", scene)], CLASSES)
    return path, scene


@torch.inference_mode()
def watch(
    folder: Path, scene: Scene, models: Mapping[str, MeMViT], on_progress: Callable[[int, int], None] | None = None
) -> list[Turn]:
    """Shows the models the game, a clip a second, each with its own memory.

    The boxes say where the cups are and nothing else.

    Args:
        folder: as `record_game` left it.
        scene: what was recorded, for the truth.
        models: by name; all of the same clips.
        on_progress: called with (turns done, turns in all).
    """
    config = next(iter(models.values())).config
    timing = ClipTiming(config.num_frames, config.frame_period_s, config.clip_duration_s, config.num_times)
    dataset = AvaDataset(folder / "game.csv", folder / "videos", timing, classes=(CLASSES,), multi_label=False)
    delays = dict(scene.delays)
    memories = dict.fromkeys(models)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.mean, config.std))
    turns = []
    loader = StreamLoader(dataset, batch_size=1, crop_size=config.crop_size, training=False)
    for batch in loader:
        clips = (batch.clips.float() / 255 - mean) / std
        scores = {}
        for name, model in models.items():
            logits, memories[name] = model(clips, memories[name], boxes=batch.boxes)
            assert isinstance(logits, torch.Tensor)
            # One cup holds the ball: of three independent opinions, what they make together.
            scores[name] = (logits[:, 1] - logits[:, 0]).softmax(dim=0).numpy()
        second = round(batch.start_s[0] + timing.duration_s / 2)
        boxes = np.array([box.corners for box in scene.boxes if box.second == second])
        turns.append(Turn(second, boxes, int(batch.labels[0].argmax()), delays[float(second)], scores))
        if on_progress is not None:
            on_progress(len(turns), len(loader))
    return turns


def accuracy(turns: list[Turn], model: str) -> tuple[int, int]:
    """(right, in all), of the turns in which the ball cannot be seen."""
    hidden = [turn for turn in turns if turn.hidden_s > 0]
    return sum(turn.guess(model) == turn.holder for turn in hidden), len(hidden)
