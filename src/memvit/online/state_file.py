"""The state of running streams in a file, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memvit.video import ClipTransform, Frame


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes a state to a file; one of that name stays as it was until the new one is whole."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_state(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Reads what `write_state` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such recognizer state")
    try:
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is no recognizer state, or is cut short: {str(error).splitlines()[0]}") from error
    return state


def pack_frame(frame: Frame | None, transform: ClipTransform) -> dict[str, Any] | None:
    """A frame as plain data, already scaled: scaling it again changes nothing."""
    if frame is None:
        return None
    return {"time_s": frame.time_s, "pixels": torch.from_numpy(transform.frame(frame).copy())}


def unpack_frame(packed: Mapping[str, Any] | None) -> Frame | None:
    """The frame of `pack_frame`."""
    return None if packed is None else Frame(packed["time_s"], packed["pixels"].numpy())
