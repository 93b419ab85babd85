"""The ways in which a clip is looked at when nothing is trained: mirrored, or square by square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CROPS = ("first", "middle", "last")


@dataclass(frozen=True)
class ClipView:
    """One look at the clips of a batch.

    Attributes:
        name: tells it from the others of the same clips; each has a memory of its own.
        clips: (B, 3, T, H, W).
        boxes: per clip (n_i, 4) x1, y1, x2, y2 in pixels of the look, or None.
    """

    name: str
    clips: Tensor
    boxes: list[Tensor] | None = None


def clip_views(clips: Tensor, boxes: Sequence[Tensor] | None, *, crops: int = 1, flip: bool = False) -> list[ClipView]:
    """All looks at the clips of a batch; their scores are to be averaged.

    Args:
        clips: (B, 3, T, H, W).
        boxes: per clip (n_i, 4), or None.
        crops: 1: the clips as they are. 3: the squares at the beginning, in the middle and at the end of the longer side;
            one, where the clips are square.
        flip: every look also mirrored left and right.
    """
    views = [ClipView("", clips, None if boxes is None else list(boxes))]
    height, width = clips.shape[-2:]
    if crops == 3 and height != width:
        assert boxes is None, "boxes are not cut into squares"
        side = min(height, width)
        room = max(height, width) - side
        along = -1 if width > height else -2
        views = [
            ClipView(name, clips.narrow(along, start, side))
            for name, start in zip(CROPS, (0, room // 2, room), strict=True)
        ]
    if flip:
        views += [_mirrored(view) for view in views]
    return views


def _mirrored(view: ClipView) -> ClipView:
    width = view.clips.shape[-1]
    boxes = None
    if view.boxes is not None:
        boxes = [torch.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], dim=1) for b in view.boxes]
    return ClipView(f"{view.name} mirrored".strip(), view.clips.flip(-1), boxes)
