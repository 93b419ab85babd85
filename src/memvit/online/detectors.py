"""Where the people in a picture are: torchvision's detectors and, as an extra, RF-DETR, trained on COCO."""

from __future__ import annotations

import difflib
import hashlib
import http.client
import logging
import os
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torchvision
from torch import Tensor

from memvit.video.errors import without_password

logger = logging.getLogger(__name__)

DEFAULT_DETECTOR = "fasterrcnn_resnet50_fpn_v2"

# Accurate to light. Others of torchvision either need to know that their weights are trained when they are made, or find
# more than boxes.
TORCHVISION_DETECTORS = (
    DEFAULT_DETECTOR,
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "ssdlite320_mobilenet_v3_large",
)

# Those whose code and weights are under Apache-2.0: the extra-large ones are not.
RFDETR_DETECTORS = {
    "rfdetr_nano": "RFDETRNano",
    "rfdetr_small": "RFDETRSmall",
    "rfdetr_medium": "RFDETRMedium",
    "rfdetr_large": "RFDETRLarge",
}

PERSON = "person"
LEAST_SCORE = 0.05  # of what detectors return at all; whoever asks them chooses among it


class PersonDetector(Protocol):
    """Finds people in pictures. Anything with this method will do."""

    def detect(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the people in one frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            Boxes (n, 4), x1, y1, x2, y2 as fractions of the frame's width and height; and scores (n,) from 0 to 1.
        """


def create_detector(
    name: str = DEFAULT_DETECTOR,
    weights: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> PersonDetector:
    """A detector by name, with weights.

    Its own weights are downloaded once, by torch.hub or by rfdetr, and kept in their caches.

    Args:
        name: one of `TORCHVISION_DETECTORS` or `RFDETR_DETECTORS`.
        weights: a file or an address to load instead, for machines without network and for mirrors.
        device: where it runs.

    Raises:
        ValueError: no such detector, weights that do not fit it, or rfdetr is not installed.
        FileNotFoundError: no such file.
        ConnectionError: weights cannot be downloaded.
    """
    check_detector(name)
    if name in TORCHVISION_DETECTORS:
        return TorchvisionDetector(name, weights, device)
    return RFDETRDetector(name, weights, device)


def check_detector(name: str) -> None:
    """Refuses names of detectors that there are not.

    Raises:
        ValueError: there is none of this name.
    """
    if name in TORCHVISION_DETECTORS or name in RFDETR_DETECTORS:
        return
    known = [*TORCHVISION_DETECTORS, *RFDETR_DETECTORS]
    close = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(f"unknown detector {name!r}; {hint}detectors are {', '.join(known)}")


class TorchvisionDetector:
    """A detector of torchvision.

    Args:
        name: one of `TORCHVISION_DETECTORS`.
        weights: a file or an address of a state dict; None: torchvision's own, of COCO.
        device: where it runs.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `create_detector`.
    """

    def __init__(
        self, name: str, weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        own = torchvision.models.get_model_weights(name).DEFAULT
        self.device = torch.device(device)
        self.person = own.meta["categories"].index(PERSON)
        path = _fetch(own.url if weights is None else os.fspath(weights), name, is_own=weights is None)
        state = _load_state(path, name)
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=91)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{path} holds no weights of {name} ({' '.join(str(error).split())[:200]}): give the state dict of this "
                "detector, with COCO's classes"
            ) from error
        self.model = model.eval().to(self.device)

    @torch.inference_mode()
    def detect(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `PersonDetector.detect`."""
        picture = torch.from_numpy(np.ascontiguousarray(frame)).to(self.device).permute(2, 0, 1).float().div_(255)
        (found,) = self.model([picture])
        chosen = (found["labels"] == self.person) & (found["scores"] >= LEAST_SCORE)
        return _as_fractions(found["boxes"][chosen].cpu().numpy(), frame), found["scores"][chosen].cpu().numpy()


class RFDETRDetector:
    """RF-DETR (Robinson et al., 2025), which needs `pip install 'memvit[rfdetr]'`.

    Args:
        name: one of `RFDETR_DETECTORS`.
        weights: a file that rfdetr can load; None: its own, of COCO.
        device: where it runs.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `create_detector`.
    """

    def __init__(
        self, name: str, weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        try:
            import rfdetr
        except ImportError as error:
            raise ValueError(
                f"the detector {name} needs a package that is not installed: pip install 'memvit[rfdetr]'"
            ) from error
        options: dict[str, Any] = {"device": str(device)}
        if weights is not None:
            options["pretrain_weights"] = os.fspath(_fetch(os.fspath(weights), name).resolve())
        try:
            self.model = getattr(rfdetr, RFDETR_DETECTORS[name])(**options)
        except OSError as error:  # requests' errors are among these
            raise _not_downloaded(name, "where rfdetr looks for them", error) from error
        except (RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{weights or name}: rfdetr cannot load these weights ({type(error).__name__}: {_first_line(error)})"
            ) from error

    def detect(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `PersonDetector.detect`."""
        found = self.model.predict(np.ascontiguousarray(frame), threshold=LEAST_SCORE, include_source_image=False)
        chosen = np.asarray(found.data["class_name"]) == PERSON
        return _as_fractions(found.xyxy[chosen], frame), np.asarray(found.confidence[chosen], np.float32)


def _as_fractions(boxes: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) in pixels of a frame as fractions of it, cut off at its edges."""
    height, width = frame.shape[:2]
    fractions = np.asarray(boxes, np.float64).reshape(-1, 4) / (width, height, width, height)
    return fractions.clip(0, 1).astype(np.float32)


def _load_state(path: Path, name: str) -> Mapping[str, Tensor]:
    """The state dict in a file.

    Raises:
        ValueError: the file holds none.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is no file of weights, or is damaged ({_first_line(error)}): delete it, and copy or download it again"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}: give a file with the state dict of {name}")
    return state


def _fetch(source: str, name: str, *, is_own: bool = False) -> Path:
    """A file with weights, downloaded where it is an address that torch.hub's cache does not hold yet.

    Raises:
        FileNotFoundError: no such file.
        ConnectionError: it cannot be downloaded.
    """
    if "://" not in source:
        if not Path(source).is_file():
            raise FileNotFoundError(f"there is no file {source} with weights of {name}: check the path")
        return Path(source)
    path = Path(torch.hub.get_dir(), "checkpoints", source.split("?")[0].rsplit("/", 1)[-1] or "weights.pth")
    if not is_own:  # files of two mirrors may have the same name
        path = path.with_name(f"{hashlib.sha256(source.encode()).hexdigest()[:12]}-{path.name}")
    if path.exists():
        return path
    logger.warning("downloading the weights of %s from %s to %s", name, without_password(source), path)
    published_hash = re.search(r"-([0-9a-f]{8,})\.pth$", path.name) if is_own else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = published_hash[1] if published_hash else None
        torch.hub.download_url_to_file(source, str(path), prefix, progress=sys.stderr.isatty())
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # the last is a wrong hash
        raise _not_downloaded(name, without_password(source), error) from error
    return path


def _not_downloaded(name: str, place: str, error: Exception) -> ConnectionError:
    reason = getattr(error, "reason", None) or _first_line(error)
    return ConnectionError(
        f"the weights of the detector {name} cannot be downloaded from {place} ({reason}): check the network, give "
        "--detector_weights a file or the address of a mirror, or --boxes a file with boxes, which needs no detector"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
