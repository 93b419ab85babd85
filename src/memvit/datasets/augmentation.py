"""Random changes to training clips: where they look, colours, RandAugment, erasing.

Every draw comes from a generator that the caller seeds, none from PyTorch's global one: clips are prepared while the
model trains in another thread, and neither may change what the other draws. Draws depend on sizes but not on pixels, so
equal generators change all clips of a video alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from memvit.datasets.views import View, clip_boxes, scaled_size

# What fills corners and erased rectangles: close to the mean of natural images, so close to 0 once normalised.
GREY = 114

# Principal components of RGB values (0 to 1) in ImageNet: eigenvalues, and eigenvectors as columns.
PCA_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_DIRECTIONS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])

NUM_CROP_TRIES = 10
MAX_MAGNITUDE = 30
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random for the clips of training; nothing unless asked for.

    Args:
        short_side: the frame's short side is scaled to a size in this range (pixels, both ends included); ``None``:
            to the size of the crop.
        random_crop: cut out a square anywhere in the frame, not in its centre.
        random_resized_crop: cut out a rectangle of a share of the frame's area in this range and scale it to the crop
            (Inception's crop); instead of ``short_side`` and ``random_crop``.
        random_resized_crop_ratio: range of that rectangle's width over its height.
        horizontal_flip: probability of mirroring left and right.
        brightness, contrast, saturation: factors are drawn from 1 - this to 1 + this.
        hue: turned by up to this share of the colour wheel, at most 0.5.
        pca: standard deviation of the light added along the principal components of colours in natural images
            (AlexNet's jitter; Krizhevsky et al., NeurIPS 2012, section 4.1), 0.1 there.
        frame_jitter: every frame of a clip is taken up to this many sampling steps earlier or later, drawn for each, at
            most 0.5.
        clip_jitter: every clip is taken earlier or later by up to this share, 0 to 1, of the room that its annotation gives
            (`Annotation.room_s`), drawn for each; its labels and the time that it is said to start at stay.
        rand_augment_ops: operations of RandAugment (arXiv 1909.13719) applied to the clip, one after another.
        rand_augment_magnitude: their strength, 0 to 30.
        random_erasing: probability of painting a rectangle grey, the same in all frames (arXiv 1708.04896).
        per_clip: draw anew for every clip. By default a video is changed the same way for as long as a stream shows it,
            so that what is in memory fits what is seen.

    Raises:
        ValueError: an option is impossible.
    """

    short_side: tuple[int, int] | None = None
    random_crop: bool = False
    random_resized_crop: tuple[float, float] | None = None
    random_resized_crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    pca: float = 0.0
    frame_jitter: float = 0.0
    clip_jitter: float = 0.0
    rand_augment_ops: int = 0
    rand_augment_magnitude: int = 9
    random_erasing: float = 0.0
    per_clip: bool = False

    def __post_init__(self) -> None:
        if self.short_side is not None and not 1 <= self.short_side[0] <= self.short_side[1]:
            raise ValueError(f"short_side={self.short_side} is no range of sizes: give (least, most) pixels")
        if self.short_side is not None and self.random_resized_crop is not None:
            raise ValueError("short_side and random_resized_crop both set the scale: choose one")
        if self.random_resized_crop is not None:
            least, most = self.random_resized_crop
            if not 0 < least <= most <= 1:
                raise ValueError(
                    f"random_resized_crop={self.random_resized_crop} is no range of areas: give two shares, such as (0.3, 1.0)"
                )
        least, most = self.random_resized_crop_ratio
        if not 0 < least <= most < math.inf:
            raise ValueError(
                f"random_resized_crop_ratio={self.random_resized_crop_ratio} is no range of ratios: give such as (0.75, 1.33)"
            )
        for name in ("horizontal_flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is no probability: give 0 to 1")
        for name, most in (
            ("brightness", 1.0),
            ("contrast", 1.0),
            ("saturation", 1.0),
            ("hue", 0.5),
            ("pca", 1.0),
            ("frame_jitter", 0.5),
            ("clip_jitter", 1.0),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} cannot be applied: give 0 to {most:g}")
        if self.rand_augment_ops < 0:
            raise ValueError(f"rand_augment_ops={self.rand_augment_ops} cannot be counted: give 0 or more")
        if not 0 <= self.rand_augment_magnitude <= MAX_MAGNITUDE:
            raise ValueError(
                f"rand_augment_magnitude={self.rand_augment_magnitude} is unknown: give 0 to {MAX_MAGNITUDE}"
            )

    def check(self, crop_size: int) -> None:
        """Refuse a crop that does not fit into the frame.

        Raises:
            ValueError: ``short_side`` begins below ``crop_size``.
        """
        if self.short_side is not None and self.short_side[0] < crop_size:
            raise ValueError(
                f"short_side={self.short_side} begins below crop_size={crop_size}: the crop would not fit into the frame; "
                f"begin at {crop_size} or above"
            )

    def view(self, height: int, width: int, crop_size: int, rng: np.random.Generator) -> View:
        """Draw which part of a frame is seen.

        Args:
            height, width: of the frame, pixels.
            crop_size: of the clip, pixels.
            rng: decides.
        """
        if self.random_resized_crop is not None:
            scaled, top, left = self._resized_crop(height, width, crop_size, rng)
        else:
            short_side = crop_size
            if self.short_side is not None:
                short_side = int(rng.integers(self.short_side[0], self.short_side[1] + 1))
            scaled = scaled_size(height, width, short_side)
            room = scaled[0] - crop_size, scaled[1] - crop_size
            top, left = (int(rng.integers(side + 1)) if self.random_crop else side // 2 for side in room)
        flip = bool(rng.random() < self.horizontal_flip)
        return View(*scaled, top, left, crop_size, crop_size, flip)

    def _resized_crop(
        self, height: int, width: int, crop_size: int, rng: np.random.Generator
    ) -> tuple[tuple[int, int], int, int]:
        """Draw a rectangle; returns the size of the frame when the rectangle has that of the crop, and where it is then."""
        assert self.random_resized_crop is not None
        scaled_size(height, width, crop_size)  # refuses thin frames
        least, most = self.random_resized_crop_ratio
        for _ in range(NUM_CROP_TRIES):
            area = rng.uniform(*self.random_resized_crop) * height * width
            ratio = math.exp(rng.uniform(math.log(least), math.log(most)))
            cut_height, cut_width = math.sqrt(area / ratio), math.sqrt(area * ratio)
            if cut_height <= height and cut_width <= width:
                break
        else:
            cut_height = min(height, width / least)
            cut_width = min(width, height * most)
        scaled = round(height * crop_size / cut_height), round(width * crop_size / cut_width)
        top, left = (int(rng.integers(side - crop_size + 1)) for side in scaled)
        return scaled, top, left

    def change(
        self, clip: Tensor, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Draw and apply what happens to the pixels that are seen.

        Args:
            clip: (T, 3, H, W) uint8.
            boxes: float32 (n, 4) x1, y1, x2, y2 in pixels of the clip.
            rng: decides; the same state changes clips of one size alike.

        Returns:
            The clip, the boxes that are left, and which of the boxes those are, bool (n,).
        """
        clip = self._jitter(clip, rng)
        size = clip.shape[-2:]
        moved = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size)
        strength = self.rand_augment_magnitude / MAX_MAGNITUDE
        for _ in range(self.rand_augment_ops):
            operation = OPERATIONS[rng.integers(len(OPERATIONS))]
            sign = 1.0 if rng.random() < 0.5 else -1.0
            clip, moved = operation(clip, moved, strength, sign)
        if rng.random() < self.random_erasing:
            clip = _erased(clip, rng)
        return clip, *clip_boxes(moved.as_subclass(Tensor).numpy(), *size)

    def _jitter(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        adjustments: list[tuple[Callable[[Tensor, float], Tensor], float, float]] = [
            (F.adjust_brightness, 1.0, self.brightness),
            (F.adjust_contrast, 1.0, self.contrast),
            (F.adjust_saturation, 1.0, self.saturation),
            (F.adjust_hue, 0.0, self.hue),
        ]
        for index in rng.permutation(len(adjustments)):
            adjust, centre, spread = adjustments[index]
            if spread:
                clip = adjust(clip, float(rng.uniform(centre - spread, centre + spread)))
        if self.pca:
            light = PCA_DIRECTIONS @ (rng.normal(0, self.pca, 3) * PCA_EIGENVALUES) * 255
            shift = torch.from_numpy(light.round().astype(np.int16)).view(3, 1, 1)
            clip = (clip.short() + shift).clamp_(0, 255).to(torch.uint8)
        return clip


def _erased(clip: Tensor, rng: np.random.Generator) -> Tensor:
    """Paint a random rectangle grey."""
    height, width = clip.shape[-2:]
    area = rng.uniform(*ERASED_AREA) * height * width
    ratio = math.exp(rng.uniform(math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])))
    tall, wide = min(height, round(math.sqrt(area * ratio))), min(width, round(math.sqrt(area / ratio)))
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    clip = clip.clone()
    clip[..., top : top + tall, left : left + wide] = GREY
    return clip


# RandAugment. An operation takes the clip (T, 3, H, W), boxes in it, the strength from 0 to 1 and a random sign.
Operation = Callable[[Tensor, tv_tensors.BoundingBoxes, float, float], tuple[Tensor, tv_tensors.BoundingBoxes]]


def _moving(
    *, angle: float = 0.0, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Operation:
    """An operation that moves pixels and boxes: by up to degrees, shares of the width and height, slopes."""

    def move(
        clip: Tensor, boxes: tv_tensors.BoundingBoxes, strength: float, sign: float
    ) -> tuple[Tensor, tv_tensors.BoundingBoxes]:
        height, width = clip.shape[-2:]
        amount = strength * sign
        how = {
            "angle": angle * amount,
            "translate": [shift[0] * width * amount, shift[1] * height * amount],
            "scale": 1.0,
            "shear": [math.degrees(math.atan(slope * amount)) for slope in shear],
        }
        moved = F.affine(clip, **how, interpolation=InterpolationMode.BILINEAR, fill=GREY)
        return moved, F.affine(boxes, **how) if len(boxes) else boxes

    return move


def _recolouring(change: Callable[[Tensor, float, float], Tensor]) -> Operation:
    """An operation on colours: of (clip, strength, sign)."""
    return lambda clip, boxes, strength, sign: (change(clip, strength, sign), boxes)


OPERATIONS: tuple[Operation, ...] = (
    _recolouring(lambda clip, strength, sign: clip),
    _recolouring(lambda clip, strength, sign: F.autocontrast(clip)),
    _recolouring(lambda clip, strength, sign: F.equalize(clip)),
    _recolouring(lambda clip, strength, sign: F.posterize(clip, bits=8 - round(4 * strength))),
    _recolouring(lambda clip, strength, sign: F.solarize(clip, threshold=255 * (1 - strength))),
    _recolouring(lambda clip, strength, sign: F.adjust_brightness(clip, 1 + 0.9 * strength * sign)),
    _recolouring(lambda clip, strength, sign: F.adjust_contrast(clip, 1 + 0.9 * strength * sign)),
    _recolouring(lambda clip, strength, sign: F.adjust_saturation(clip, 1 + 0.9 * strength * sign)),
    _recolouring(lambda clip, strength, sign: F.adjust_sharpness(clip, 1 + 0.9 * strength * sign)),
    _moving(angle=30.0),
    _moving(shift=(0.45, 0.0)),
    _moving(shift=(0.0, 0.45)),
    _moving(shear=(0.3, 0.0)),
    _moving(shear=(0.0, 0.3)),
)
