"""Read video: files, folders of images and live streams give the same frames to whoever watches them.

This package knows nothing of models; it depends on PyAV, NumPy and PyTorch.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from memvit.video.errors import VideoError, without_password
from memvit.video.frames import Frame, VideoInfo
from memvit.video.images import ImageFolderReader
from memvit.video.live import LiveEvent, LiveSource, is_live
from memvit.video.prefetch import Prefetcher
from memvit.video.reader import VideoReader, probe
from memvit.video.sampling import TimeSampler
from memvit.video.tar_images import TarImages
from memvit.video.transforms import ClipTransform

__all__ = [
    "VIDEO_SUFFIXES",
    "ClipTransform",
    "Frame",
    "ImageFolderReader",
    "LiveEvent",
    "LiveSource",
    "Prefetcher",
    "TimeSampler",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "is_live",
    "open_video",
    "probe",
    "without_password",
]


# Of files that are taken for videos where a folder is searched; a file that is named may be called anything.
VIDEO_SUFFIXES = frozenset(
    {
        ".264",
        ".265",
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".dv",
        ".f4v",
        ".flv",
        ".h264",
        ".h265",
        ".hevc",
        ".m2ts",
        ".m2v",
    }
    | {
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mpv",
        ".mts",
        ".mxf",
        ".ogv",
        ".rm",
        ".rmvb",
    }
    | {".ts", ".vob", ".webm", ".wmv", ".y4m"}
)


def open_video(
    source: str | os.PathLike[str], *, fps: float = 30.0, start_s: float = 0.0, end_s: float | None = None
) -> VideoReader | ImageFolderReader | LiveSource:
    """Open whatever ``source`` is: a video file, a folder or tar file of images, the address of a stream or a camera.

    Args:
        source: path or address; :func:`is_live` tells streams from files.
        fps: images per second of a folder or tar file; other sources know their times.
        start_s, end_s: range of time in seconds; not for live streams.

    Returns:
        An iterable of :class:`Frame` that is also a context manager.

    Raises:
        VideoError: the source cannot be opened; a live source is only connected to when it is iterated.
    """
    name = os.fspath(source)
    if is_live(name):
        if start_s or end_s is not None:
            raise VideoError(f"{without_password(name)} is live and has no range of time: leave out start_s and end_s")
        return LiveSource(name)
    if name.startswith("file://"):
        name = url2pathname(urlsplit(name).path)
    if Path(name).is_dir():
        return ImageFolderReader(name, fps, start_s, end_s)
    if name.lower().endswith(".tar") and Path(name).is_file():
        return ImageFolderReader(name, fps, start_s, end_s, TarImages.counted(name))
    return VideoReader(name, start_s, end_s)
