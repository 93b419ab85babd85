"""How clips are looked at when nothing is trained."""

from __future__ import annotations

import torch

from memvit.training.views import clip_views


def columns(height: int, width: int) -> torch.Tensor:
    """A clip (1, 3, 2, height, width) whose pixels are the number of their column, or of their row where it is taller."""
    along = torch.arange(max(height, width)).float()
    return (along if width >= height else along[:, None]).expand(1, 3, 2, height, width)


def test_a_wide_clip_is_seen_from_left_to_right_and_a_tall_one_from_top_to_bottom() -> None:
    for size in ((4, 9), (9, 4)):
        views = clip_views(columns(*size), None, crops=3)
        assert [tuple(view.clips.shape[-2:]) for view in views] == [(4, 4)] * 3
        assert [float(view.clips.min()) for view in views] == [0, 2, 5]
        assert len({view.name for view in views}) == 3


def test_a_square_clip_is_seen_once() -> None:
    (view,) = clip_views(columns(4, 4), None, crops=3)
    assert view.name == ""


def test_every_look_can_be_mirrored_and_boxes_with_it() -> None:
    views = clip_views(columns(4, 9), None, crops=3, flip=True)
    assert [float(view.clips[..., 0].max()) for view in views] == [0, 2, 5, 3, 5, 8]
    assert len({view.name for view in views}) == 6
    _, mirrored = clip_views(columns(4, 9), [torch.tensor([[1.0, 0, 3, 4]])], flip=True)
    assert mirrored.boxes is not None
    assert mirrored.boxes[0].tolist() == [[6, 0, 8, 4]]
