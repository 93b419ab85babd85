"""A miniature of EPIC-KITCHENS-100: its files, and videos as images, tar files or films."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memvit.datasets.epic_writing import SEGMENT_COLUMNS, timestamp, write_rows

VERBS, NOUNS = ("take", "cut", "stir"), ("onion", "pan")
SIZE = (32, 48)

REAL_FILES = "EPIC_ANNOTATIONS"


def real_annotations() -> Path:
    """The folder with the published annotations; skips the test where there is none."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "epic_kitchens"
    folder = Path(os.environ.get(REAL_FILES, beside))
    if not (folder / "EPIC_100_validation.csv").is_file():
        pytest.skip(f"EPIC-KITCHENS-100's annotations are not ours to ship: set {REAL_FILES} to their folder")
    return folder


def segment(video: str, number: int, start_s: float, stop_s: float, verb: int, noun: int) -> dict[str, Any]:
    """A row of the segments, as the published files write it."""
    return {
        "narration_id": f"{video}_{number}",
        "participant_id": video.partition("_")[0],
        "video_id": video,
        "narration_timestamp": timestamp(start_s),
        "start_timestamp": timestamp(start_s),
        "stop_timestamp": timestamp(stop_s),
        "start_frame": int(start_s * 60),
        "stop_frame": int(stop_s * 60),
        "narration": f"{VERBS[verb % 3]} {NOUNS[noun % 2]}",
        "verb": VERBS[verb % 3],
        "verb_class": verb,
        "noun": NOUNS[noun % 2],
        "noun_class": noun,
        "all_nouns": [NOUNS[noun % 2]],
        "all_noun_classes": [noun],
    }


def write_files(
    folder: Path,
    segments: Sequence[dict[str, Any]],
    infos: dict[str, tuple[float, float]],
    *,
    name: str = "EPIC_100_validation.csv",
) -> Path:
    """The segments, and beside them what is known about videos (duration, rate), classes and subsets.

    Returns:
        The file of the segments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = [column for column in SEGMENT_COLUMNS if not segments or column in segments[0]]
    write_rows(folder / name, [columns, *([row[column] for column in columns] for row in segments)])
    info = [(video, duration_s, fps, "48x32") for video, (duration_s, fps) in infos.items()]
    write_rows(folder / "EPIC_100_video_info.csv", [("video_id", "duration", "fps", "resolution"), *info])
    for kind, names in (("verb", VERBS), ("noun", NOUNS)):
        rows = [(number, key, [key], key) for number, key in enumerate(names)]
        write_rows(folder / f"EPIC_100_{kind}_classes.csv", [("id", "key", "instances", "category"), *rows])
        write_rows(folder / f"EPIC_100_tail_{kind}s.csv", [(kind,), (len(names) - 1,)])
    write_rows(folder / "EPIC_100_unseen_participant_ids_validation.csv", [("participant_id",), ("P02",)])
    return folder / name


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def picture(number: int) -> np.ndarray:
    """A frame (32, 48, 3) that tells which one it is: red counts single frames, green twenties."""
    rgb = np.zeros((*SIZE, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = 20 + 10 * (number % 20), 20 + 4 * (number // 20)
    return rgb


def number_of(rgb: np.ndarray) -> int:
    """Which frame it is."""
    red, green = rgb.reshape(-1, 3)[:, :2].mean(axis=0)
    return round((green - 20) / 4) * 20 + round((red - 20) / 10)


def jpeg(rgb: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_images(root: Path, video: str, pictures: Sequence[np.ndarray | None], *, tar: bool = False) -> Path:
    """Images numbered from 1 as they are published; None leaves one out.

    Returns:
        The folder or tar file.
    """
    folder = root / video.partition("_")[0] / "rgb_frames"
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"frame_{i:010d}.jpg": jpeg(p) for i, p in enumerate(pictures, start=1) if p is not None}
    if not tar:
        (folder / video).mkdir()
        for name, data in files.items():
            (folder / video / name).write_bytes(data)
        return folder / video
    path = folder / f"{video}.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
