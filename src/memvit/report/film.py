"""The video of a report, in a form that browsers play."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import av

from memvit.online.runs import OnProgress, Progress, total_s
from memvit.video import ImageFolderReader, LiveSource, Prefetcher, VideoError, VideoReader, open_video
from memvit.video.reader import open_container
from memvit.video.writer import VideoWriter

MP4, WEBM = "video/mp4", "video/webm"
MAX_FPS = 60.0
MEGABYTE = 10**6

# What all of today's browsers decode, and the sound that they play with it.
_VIDEO_CODECS = {MP4: {"h264", "vp9", "av1"}, WEBM: {"vp8", "vp9", "av1"}}
_AUDIO_CODECS = {MP4: {"aac", "mp3", "opus", "flac"}, WEBM: {"opus", "vorbis"}}
_PIXEL_FORMATS = {"yuv420p", "yuvj420p"}
_START_SLACK_S = 0.05  # browsers may count from the container's zero, we count from the first frame


@dataclass(frozen=True)
class Film:
    """A video that a browser plays.

    Attributes:
        path: the file.
        media_type: "video/mp4" or "video/webm".
        duration_s: its length, None if unknown.
        notes: what viewers should know about it, a line each.
    """

    path: Path
    media_type: str
    duration_s: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Playable:
    """Whether browsers play a file as it is.

    Attributes:
        media_type: "video/mp4" or "video/webm"; None if they do not.
        has_sound: there is a sound track.
    """

    media_type: str | None
    has_sound: bool


def prepare_film(
    video: str | os.PathLike[str],
    folder: Path,
    *,
    max_width: int,
    max_bytes: int,
    image_fps: float = 30.0,
    is_whole: bool = False,
    on_progress: OnProgress | None = None,
) -> Film:
    """Makes a video playable in browsers: the file itself if it is, else its readable frames as H.264, without sound.

    Args:
        video: a file, or a folder or tar file of images.
        folder: for a new file.
        max_width: of a new file, pixels; its frames are never enlarged.
        max_bytes: what is larger is made anew, and refused if it is still too large.
        image_fps: images per second of folders and tar files.
        is_whole: the file is known to be whole. Otherwise it is read once to see whether something in it is damaged.
        on_progress: called now and then.

    Raises:
        VideoError: the video cannot be read.
        ValueError: it cannot be made small enough, or not be written.
    """
    with open_film(video, image_fps) as source:
        playable = check_playable(source)
        is_small = playable.media_type is not None and os.path.getsize(video) <= max_bytes
        if playable.media_type is not None and is_small:
            warning = None if is_whole else _damage(source, on_progress)
            if warning is None:
                return Film(Path(video), playable.media_type, source.info.duration_s)
        path = folder / "film.mp4"
        end_s = _transcode(source, path, max_width, max_bytes, on_progress)
        notes = [source.warning] if source.warning else []
    if playable.has_sound:
        notes.append("The video was encoded anew for browsers, without its sound.")
    return Film(path, MP4, end_s, tuple(notes))


def open_film(video: str | os.PathLike[str], image_fps: float) -> VideoReader | ImageFolderReader:
    """Opens a video that can be read more than once.

    Raises:
        VideoError: it cannot be opened, or is live.
    """
    source = open_video(video, fps=image_fps)
    if isinstance(source, LiveSource):
        source.close()
        raise VideoError(
            f"{source.name} is live or far away, and a report needs the video itself: download or record it"
        )
    return source


def check_playable(source: VideoReader | ImageFolderReader) -> Playable:
    """Looks into a file whether browsers play it as it is."""
    if not isinstance(source, VideoReader) or "://" in source.path:
        return Playable(None, False)
    container, stream = open_container(f"file:{source.path}", name=source.path)
    with container:
        names = container.format.name.split(",")
        sounds = [sound.codec_context for sound in container.streams.audio]
        media_type = MP4 if "mp4" in names else WEBM if Path(source.path).suffix.lower() == ".webm" else None
        start_s = float((stream.start_time or 0) * (stream.time_base or 0))
        plays = (
            media_type is not None
            and _codec_name(stream.codec_context) in _VIDEO_CODECS[media_type]
            and stream.codec_context.pix_fmt in _PIXEL_FORMATS
            and abs(start_s) <= _START_SLACK_S
            and all(sound is not None and _codec_name(sound) in _AUDIO_CODECS[media_type] for sound in sounds)
        )
        return Playable(media_type if plays else None, bool(sounds))


def _codec_name(context: av.CodecContext) -> str:
    """The codec's name, whatever library decodes it."""
    return context.codec.canonical_name


def _damage(source: VideoReader | ImageFolderReader, on_progress: OnProgress | None) -> str | None:
    """Reads a video to its end; says what is wrong with it, None if nothing is."""
    began_s, length_s = time.monotonic(), total_s(source)
    for number, frame in enumerate(source, start=1):
        if on_progress is not None and number % 64 == 0:
            on_progress(Progress("drawing", frame.time_s, length_s, number, time.monotonic() - began_s))
    return source.warning


def _transcode(
    source: VideoReader | ImageFolderReader, path: Path, max_width: int, max_bytes: int, on_progress: OnProgress | None
) -> float:
    """Writes the readable frames of a video as H.264; returns when the last one ends, seconds."""
    info, began_s, length_s = source.info, time.monotonic(), total_s(source)
    width = min(info.width, max_width)
    height = max(1, round(info.height * width / info.width))
    fps = min(info.average_fps or 30.0, MAX_FPS)
    growing = path.with_name(f"{path.stem}.part{path.suffix}")
    time_s, next_s = 0.0, 0.0
    pictures = ((frame.time_s, frame.rgb(height, width)) for frame in source)
    with VideoWriter(path, width, height, fps) as writer, Prefetcher(pictures) as ahead:
        for time_s, rgb in ahead:
            if time_s < next_s:
                continue  # more frames than a screen shows
            next_s = time_s + 0.75 / MAX_FPS
            writer.write(rgb, time_s)
            if writer.num_frames % 16:
                continue
            if growing.exists() and growing.stat().st_size > max_bytes:
                raise too_large(source.path, f"more than {max_bytes / MEGABYTE:,.0f} MB at {time_s:,.0f} s")
            if on_progress is not None:
                on_progress(Progress("drawing", time_s, length_s, writer.num_frames, time.monotonic() - began_s))
    if path.stat().st_size > max_bytes:
        raise too_large(source.path, f"{path.stat().st_size / MEGABYTE:,.1f} MB")
    with av.open(os.fspath(path)) as written:
        if written.streams.video[0].codec_context.name != "h264":
            raise VideoError(
                f"{source.path} cannot be encoded for browsers: this FFmpeg has no H.264 encoder; reinstall PyAV, or convert "
                "the video and use --link"
            )
    return time_s + 1 / fps


def too_large(name: str, size: str) -> ValueError:
    """The error for a video that makes the page too large: which, how large, and what to do."""
    return ValueError(
        f"{name} is {size} even in small, too much for one page: refer to the file with --link, or give a smaller --max_width "
        "or a larger --max_mb"
    )
