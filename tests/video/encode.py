"""Encode small videos whose frames carry their own number, so that a test sees which frame came out."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

NUM_BITS = 9


def barcode(index: int, height: int = 48, width: int = 72) -> np.ndarray:
    """A frame (height, width, 3) uint8 of vertical stripes that spell ``index`` in binary."""
    bits = [(index >> bit) & 1 for bit in range(NUM_BITS)]
    columns = np.array([32 + 192 * bits[column * NUM_BITS // width] for column in range(width)], np.uint8)
    return np.ascontiguousarray(np.broadcast_to(columns[None, :, None], (height, width, 3)))


def read_barcode(rgb: np.ndarray) -> int:
    """The number of a :func:`barcode` frame, however it was scaled."""
    edges = np.linspace(0, rgb.shape[1], NUM_BITS + 1)
    index = 0
    for bit in range(NUM_BITS):
        middle = slice(int(edges[bit] * 0.7 + edges[bit + 1] * 0.3), int(edges[bit] * 0.3 + edges[bit + 1] * 0.7) + 1)
        index |= int(rgb[:, middle].mean() > 128) << bit
    return index


def indices(frames: Any) -> list[int]:
    """The numbers of frames that carry barcodes."""
    return [read_barcode(frame.rgb()) for frame in frames]


def write_video(
    path: Path | str,
    pictures: int | Sequence[np.ndarray] = 30,
    *,
    fps: Fraction | int = 30,
    times_s: Sequence[float] | None = None,
    codec: str = "libx264",
    size: tuple[int, int] = (48, 72),
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int | None = None,
    options: dict[str, str] | None = None,
    format: str | None = None,
    container_options: dict[str, str] | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    sample_aspect: Fraction | None = None,
    audio_s: float = 0.0,
) -> Path:
    """Write ``pictures`` (how many barcodes, or the arrays) at ``fps`` or at ``times_s``; returns the path."""
    if isinstance(pictures, int):
        pictures = [barcode(index, *size) for index in range(pictures)]
    options = {"preset": "ultrafast", "crf": "10", **(options or {})} if codec == "libx264" else options
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        if rotation is not None:
            degrees, hflip, vflip = rotation
            stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
        if sample_aspect is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        clock = Fraction(1, 1000) if times_s is not None else 1 / Fraction(fps)
        if times_s is not None:
            stream.codec_context.time_base = clock
        if audio_s:
            sound = container.add_stream("aac", rate=48000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base = clock
            frame.pts = index if times_s is None else round(times_s[index] * 1000)
            container.mux(stream.encode(frame))
        if audio_s:
            _write_silence(container, sound, audio_s)
        container.mux(stream.encode())
    return Path(path)


def write_audio(path: Path | str, duration_s: float = 0.5) -> Path:
    """Write a file with sound only."""
    with av.open(str(path), "w") as container:
        _write_silence(container, container.add_stream("aac", rate=48000), duration_s)
    return Path(path)


def _write_silence(container: Any, stream: Any, duration_s: float) -> None:
    for start in range(0, int(duration_s * 48000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        frame.pts = start
        frame.time_base = Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_image(path: Path | str, picture: np.ndarray, codec: str = "png", pix_fmt: str = "rgb24") -> Path:
    """Write one image file."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt = pix_fmt
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
    frame.pts = 0
    packets = [*encoder.encode(frame), *encoder.encode()]
    Path(path).write_bytes(b"".join(bytes(packet) for packet in packets))
    return Path(path)


def damage(path: Path, start: float, end: float) -> Path:
    """Overwrite part of a file (fractions of its size) with noise."""
    data = bytearray(path.read_bytes())
    first, last = int(start * len(data)), int(end * len(data))
    data[first:last] = np.random.default_rng(0).integers(0, 256, last - first, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """Keep only the first ``share`` of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path
