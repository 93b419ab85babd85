from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from memvit.datasets.augmentation import GREY, OPERATIONS, Augmentation
from memvit.datasets.streams import draws
from memvit.datasets.views import View, centre_view, clip_boxes, scaled_size
from memvit.video import Frame, VideoError

NO_BOXES = np.zeros((0, 4), np.float32)


def noise(seed: int = 0, num_frames: int = 4, size: int = 40) -> torch.Tensor:
    """(T, 3, H, W) uint8."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (num_frames, 3, size, size), dtype=np.uint8))


def still(num_frames: int = 4, size: int = 40) -> torch.Tensor:
    """A clip whose frames are all the same, (T, 3, H, W) uint8."""
    return noise(num_frames=1, size=size).repeat(num_frames, 1, 1, 1)


def gradient(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: red grows to the right, green downwards, from 0 to 250."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.linspace(0, 250, width)[None, :]
    rgb[..., 1] = np.linspace(0, 250, height)[:, None]
    return rgb


def test_nothing_is_drawn_unless_asked_for() -> None:
    nothing = Augmentation()
    assert nothing.view(48, 64, 32, draws(0)) == centre_view(48, 64, 32)
    clip, boxes, left = nothing.change(noise(), np.array([[1, 2, 3, 4]], np.float32), draws(0))
    assert torch.equal(clip, noise())
    assert boxes.tolist() == [[1, 2, 3, 4]]
    assert left.tolist() == [True]


def test_a_view_shows_a_part_of_the_frame() -> None:
    frame = Frame(0.0, gradient(48, 64))
    view = View(48, 64, top=10, left=20, height=16, width=24)
    assert np.array_equal(view.frame(frame), gradient(48, 64)[10:26, 20:44])
    mirrored = View(48, 64, 10, 20, 16, 24, flip=True)
    assert np.array_equal(mirrored.frame(frame), gradient(48, 64)[10:26, 20:44][:, ::-1])
    boxes = np.array([[22 / 64, 12 / 48, 30 / 64, 20 / 48]])
    assert view.boxes(boxes).tolist() == [[2, 2, 10, 10]]
    assert mirrored.boxes(boxes).tolist() == [[14, 2, 22, 10]]


def test_boxes_outside_are_dropped_and_others_cut() -> None:
    boxes = np.array([[-5, -5, 5, 5], [-9, 0, -1, 9], [3, 4, 50, 60], [40, 0, 50, 9]], np.float32)
    cut, inside = clip_boxes(boxes, height=30, width=40)
    assert cut.tolist() == [[0, 0, 5, 5], [3, 4, 40, 30]]
    assert inside.tolist() == [True, False, True, False]


def test_thin_frames_are_refused() -> None:
    assert scaled_size(8, 64, 4) == (4, 32)
    with pytest.raises(VideoError, match="100x10 pixels are too thin"):
        scaled_size(10, 100, 4)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (40, 300), (32, 32), (1080, 1920)])
@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(short_side=(32, 50)),
        Augmentation(short_side=(32, 50), random_crop=True, horizontal_flip=0.5),
        Augmentation(random_resized_crop=(0.08, 1.0)),
        Augmentation(random_resized_crop=(1.0, 1.0), random_resized_crop_ratio=(2.0, 2.0)),
    ],
)
def test_a_drawn_crop_lies_within_the_frame(augmentation: Augmentation, size: tuple[int, int]) -> None:
    views = [augmentation.view(*size, 32, draws(seed)) for seed in range(50)]
    for view in views:
        assert (view.height, view.width) == (32, 32)
        assert 0 <= view.top <= view.scaled_height - 32
        assert 0 <= view.left <= view.scaled_width - 32
    assert all(augmentation.view(*size, 32, draws(seed)) == views[seed] for seed in range(5))


def test_drawn_views_have_the_distributions_asked_for() -> None:
    jitter = Augmentation(short_side=(32, 34), random_crop=True, horizontal_flip=0.25)
    views = [jitter.view(48, 64, 32, draws(seed)) for seed in range(400)]
    assert {view.scaled_height for view in views} == {32, 33, 34}
    assert {view.top for view in views} == {0, 1, 2}
    assert {view.left for view in views} == set(range(round(34 * 64 / 48) - 32 + 1))
    assert 60 < sum(view.flip for view in views) < 140
    crop = Augmentation(random_resized_crop=(0.25, 0.5))
    views = [crop.view(480, 640, 32, draws(seed)) for seed in range(200)]
    shares = [32 * 32 / (view.scaled_height * view.scaled_width) for view in views]
    assert min(shares) == pytest.approx(0.25, abs=0.02)
    assert max(shares) == pytest.approx(0.5, abs=0.03)
    ratios = [view.scaled_height / 480 / (view.scaled_width / 640) for view in views]
    assert min(ratios) == pytest.approx(3 / 4, abs=0.06)
    assert max(ratios) == pytest.approx(4 / 3, abs=0.06)


STRONG = {
    "jitter": Augmentation(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5),
    "rand_augment": Augmentation(rand_augment_ops=2, rand_augment_magnitude=20),
    "erasing": Augmentation(random_erasing=1.0),
}


@pytest.mark.parametrize("kind", STRONG)
def test_equal_draws_change_all_clips_and_frames_alike(kind: str) -> None:
    changed = 0
    for seed in range(20):
        clip, _, _ = STRONG[kind].change(still(), NO_BOXES, draws(seed))
        assert clip.shape == still().shape
        assert clip.dtype == torch.uint8
        assert all(torch.equal(frame, clip[0]) for frame in clip)
        again, _, _ = STRONG[kind].change(still(), NO_BOXES, draws(seed))
        assert torch.equal(clip, again)
        changed += not torch.equal(clip, still())
        # What is drawn does not depend on the pixels: the next draw of the generator is the same.
        first, second = draws(seed), draws(seed)
        STRONG[kind].change(noise(1), NO_BOXES, first)
        STRONG[kind].change(torch.zeros_like(noise()), NO_BOXES, second)
        assert first.random() == second.random()
    assert changed >= 18


@pytest.mark.parametrize("kind", STRONG)
def test_nothing_is_drawn_from_the_global_generators(kind: str) -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for seed in range(20):
        STRONG[kind].change(noise(), NO_BOXES, draws(seed))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_colours_are_jittered_within_their_range() -> None:
    clip = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    means = [
        float(Augmentation(brightness=0.2).change(clip, NO_BOXES, draws(seed))[0].float().mean())
        for seed in range(100)
    ]  # fmt: skip
    assert min(means) == pytest.approx(80, abs=3)
    assert max(means) == pytest.approx(120, abs=3)


def test_an_erased_rectangle_is_grey_and_leaves_the_clip_it_came_from() -> None:
    clip = torch.zeros(3, 3, 50, 50, dtype=torch.uint8)
    erased, _, _ = STRONG["erasing"].change(clip, NO_BOXES, draws(1))
    share = float((erased == GREY).float().mean())
    assert 0.01 < share < 0.35
    assert not clip.any()
    assert set(erased.unique().tolist()) == {0, GREY}


def test_boxes_follow_the_operations_of_rand_augment() -> None:
    bounds = np.array([[12, 16, 28, 24]], np.float32)
    clip = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    clip[..., 16:24, 12:28] = 255
    for operation in OPERATIONS:
        for sign in (-1.0, 1.0):
            boxes = tv_tensors.BoundingBoxes(torch.from_numpy(bounds), format="XYXY", canvas_size=(40, 40))
            changed, moved = operation(clip, boxes, 0.4, sign)
            bright = (changed[0, 0] > 180).nonzero()
            if len(bright) in (0, 1600):
                continue  # all of one colour
            (top, left), (bottom, right) = bright.min(0).values.tolist(), (bright.max(0).values + 1).tolist()
            assert np.asarray(moved)[0].tolist() == pytest.approx([left, top, right, bottom], abs=2)


def test_boxes_moved_out_of_the_clip_are_dropped() -> None:
    boxes = np.array([[0, 0, 4, 4], [10, 10, 30, 30]], np.float32)
    augmentation = Augmentation(rand_augment_ops=1, rand_augment_magnitude=30)
    counts = set()
    for seed in range(60):
        _, left, inside = augmentation.change(noise(), boxes, draws(seed))
        assert len(left) == inside.sum()
        assert ((left >= 0) & (left <= 40)).all()
        counts.add(tuple(inside.tolist()))
    assert counts == {(True, True), (False, True)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": (50, 40)}, "no range of sizes"),
        ({"short_side": (32, 40), "random_resized_crop": (0.5, 1.0)}, "choose one"),
        ({"random_resized_crop": (0.0, 1.0)}, "no range of areas"),
        ({"random_resized_crop": (0.5, 1.5)}, "no range of areas"),
        ({"random_resized_crop_ratio": (0.0, 1.0)}, "no range of ratios"),
        ({"horizontal_flip": 1.5}, "horizontal_flip=1.5 is no probability"),
        ({"random_erasing": -0.1}, "random_erasing=-0.1 is no probability"),
        ({"brightness": 2.0}, "brightness=2.0"),
        ({"hue": 0.6}, "hue=0.6 cannot be applied: give 0 to 0.5"),
        ({"frame_jitter": 0.6}, "frame_jitter=0.6 cannot be applied: give 0 to 0.5"),
        ({"clip_jitter": -0.1}, "clip_jitter=-0.1 cannot be applied: give 0 to 1"),
        ({"clip_jitter": 1.5}, "clip_jitter=1.5 cannot be applied: give 0 to 1"),
        ({"rand_augment_ops": -1}, "rand_augment_ops=-1"),
        ({"rand_augment_magnitude": 31}, "give 0 to 30"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)
