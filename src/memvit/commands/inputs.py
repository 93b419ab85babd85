"""What stands on the command line of `predict`: which videos are meant, and where the results of each go."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit


def expand(source: str) -> list[str]:
    """The videos that an input stands for.

    A folder with videos and no images stands for its videos in the order of their names (not those in its subfolders); a
    folder of images is one video. Anything else stands for itself.

    Raises:
        ValueError: a folder with neither, or with both.
    """
    if "://" in source or not Path(source).is_dir():
        return [source]
    from memvit.video import VIDEO_SUFFIXES
    from memvit.video.images import list_images

    videos = sorted(
        str(path)
        for path in Path(source).iterdir()
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    num_images = len(list_images(source))
    if videos and num_images:
        raise ValueError(
            f"{source} holds images ({num_images}) and videos ({len(videos)}): name the videos, as in {source}/*"
            f"{Path(videos[0]).suffix}, or move either away"
        )
    if not videos and not num_images:
        raise ValueError(f"there is no image and no video in {source}: pass a folder that holds them itself")
    return videos or [source]


def result_names(sources: Sequence[str]) -> Iterator[str]:
    """A folder name per video: its file's name without the suffix, numbered where several are called the same."""
    taken: set[str] = set()
    for source in sources:
        stem = _stem(source)
        name, number = stem, 2
        while name.casefold() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.casefold())
        yield name


def _stem(source: str) -> str:
    from memvit.video import is_live, without_password

    if "://" in source and not source.startswith("file://"):
        address = urlsplit(without_password(source))
        name = (
            f"{address.hostname or ''}_{address.path.strip('/')}"
            if is_live(source)
            else Path(unquote(address.path)).stem
        )
        name = re.sub(r"[^\w.-]+", "_", name)
    else:
        path = Path(unquote(urlsplit(source).path) if source.startswith("file://") else source)
        name = path.resolve().name if path.is_dir() else path.stem
    return name.strip("._ ")[:120] or "video"
