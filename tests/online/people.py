"""A video of two squares that walk, which stand for people, and a detector that finds them by their colours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torchvision

from video.encode import write_video

COLORS = ((230, 40, 40), (40, 40, 230))
HEIGHT, WIDTH, FPS = 96, 128, 10
LIGHT = "ssdlite320_mobilenet_v3_large"


def corners_at(time_s: float) -> list[tuple[float, float, float, float]]:
    """Where the squares are: the red one goes right, the blue one left and, after 3 s, out of sight."""
    red, blue = 0.05 + 0.12 * time_s, 0.7 - 0.1 * time_s
    boxes = [(red, 0.25, red + 0.15, 0.75)]
    return [*boxes, (blue, 0.3, blue + 0.15, 0.8)] if time_s < 3 else boxes


def draw(time_s: float) -> np.ndarray:
    """A frame (96, 128, 3)."""
    frame = np.full((HEIGHT, WIDTH, 3), 150, np.uint8)
    for color, (x1, y1, x2, y2) in zip(COLORS, corners_at(time_s), strict=False):
        frame[round(y1 * HEIGHT) : round(y2 * HEIGHT), round(x1 * WIDTH) : round(x2 * WIDTH)] = color
    return frame


def write_people(path: Path, duration_s: float = 5.0) -> Path:
    """Encodes the video at 10 frames per second."""
    pictures = [draw(i / FPS) for i in range(round(duration_s * FPS))]
    return write_video(path, pictures, fps=FPS, pix_fmt="yuv444p")


def write_boxes(path: Path, times_s: list[float], video: str = "people", ids: bool = True) -> Path:
    """The boxes at some times in AVA's form."""
    rows = [
        f"{video},{time_s:g},{','.join(f'{corner:.4f}' for corner in corners)},,{person if ids else ''}\n"
        for time_s in times_s
        for person, corners in enumerate(corners_at(time_s), start=1)
    ]
    path.write_text("".join(rows))
    return path


class ColorDetector:
    """Finds the squares; the order in which it gives them changes from frame to frame, as detectors' do."""

    def __init__(self) -> None:
        self.num_frames = 0

    def detect(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = frame.shape[:2]
        boxes = []
        for color in COLORS:
            rows, columns = np.nonzero((np.abs(frame.astype(int) - color) < 60).all(axis=2))
            if len(rows):
                boxes.append(
                    (columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)
                )
        self.num_frames += 1
        if self.num_frames % 2:
            boxes.reverse()
        noise = (0.0, 0.0, 0.01, 0.01)  # nobody is sure about this one
        return np.array([*boxes, noise]), np.array([0.9] * len(boxes) + [0.1])


def light_detector_weights() -> bytes:
    """A file of random weights of the detector `LIGHT`, of which only the class "person" is ever sure."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(LIGHT, weights=None, weights_backbone=None, num_classes=91)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "classification_head" in name and name.endswith("bias") and tensor.numel() % 91 == 0:
                tensor.view(-1, 91)[:, 1] += 4.0
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()
