from __future__ import annotations

import numpy as np
import pytest
import torch
from encode import barcode, read_barcode

from memvit.video import ClipTransform, Frame

MEAN, STD = (0.45, 0.40, 0.35), (0.225, 0.2, 0.25)


def transform(crop_size: int = 32, keep_aspect: bool = False) -> ClipTransform:
    return ClipTransform(crop_size, MEAN, STD, keep_aspect)


@pytest.mark.parametrize(
    "size", [(32, 32), (48, 72), (720, 1280), (1280, 720), (16, 20), (33, 57), (1, 1), (4, 3000), (3000, 4), (1, 400)]
)
def test_any_frame_becomes_a_square(size: tuple[int, int]) -> None:
    shown = transform().frame(np.full((*size, 3), 90, np.uint8))
    assert shown.shape == (32, 32, 3)
    assert shown.dtype == np.uint8
    assert np.abs(shown.astype(int) - 90).max() <= 1


@pytest.mark.parametrize(("size", "wanted"), [((48, 72), (32, 48)), ((57, 33), (55, 32)), ((16, 20), (32, 40))])
def test_keep_aspect_keeps_the_whole_frame(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert transform(keep_aspect=True).frame(np.zeros((*size, 3), np.uint8)).shape == (*wanted, 3)


def test_keep_aspect_shows_everything() -> None:
    assert read_barcode(transform(48, keep_aspect=True).frame(Frame(0.0, barcode(341, 120, 360)))) == 341


def test_the_centre_is_kept() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    shown = transform(40).frame(wide)
    assert shown[:, 2:-2].min() >= 198
    thin = np.zeros((10, 1000, 3), np.uint8)
    thin[:, 495:505] = 200
    assert transform(40).frame(thin).min() == 200


def test_clip_is_normalised_channels_first() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(4)]
    clip = transform().clip(frames)
    assert (clip.shape, clip.dtype, clip.is_contiguous()) == ((3, 4, 6, 8), torch.float32, True)
    expected = (np.stack(frames).astype(np.float64) / 255 - MEAN) / STD
    np.testing.assert_allclose(clip.numpy(), expected.transpose(3, 0, 1, 2), atol=1e-6)


def test_clips_take_frames_of_one_size() -> None:
    with pytest.raises(ValueError, match="one or more frames of one size"):
        transform().clip([])
    with pytest.raises(ValueError, match=r"not \[\(4, 4, 3\), \(4, 5, 3\)\]"):
        transform().clip([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)])


def test_impossible_transforms_are_refused() -> None:
    with pytest.raises(ValueError, match="crop_size=0"):
        transform(0)
    with pytest.raises(ValueError, match="std above 0"):
        ClipTransform(32, MEAN, (0.2, 0.2, 0.0))
