"""What visitors may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """What visitors may ask for, all of them together where it says so.

    Attributes:
        upload_bytes: of a video.
        duration_s: of a video; a live source ends after it.
        pixels: of a picture of a video: larger ones are small to send and large in memory.
        running: videos recognised at a time, all visitors together.
        waiting: videos that come in or wait for their turn, all visitors together.
        kept: ended recognitions whose results are kept; the oldest make room.
        keep_s: how long they are kept.
        unwatched_s: a live source that nobody has watched for so long ends.
        silent_s: a visitor's camera that has sent nothing for so long ends.
        free_bytes: what an upload must leave free on the disk.

    Raises:
        ValueError: a limit that lets nothing through.
    """

    upload_bytes: int = 2_000_000_000
    duration_s: float = 7200.0
    pixels: int = 36_000_000
    running: int = 4
    waiting: int = 16
    kept: int = 64
    keep_s: float = 1800.0
    unwatched_s: float = 60.0
    silent_s: float = 30.0
    free_bytes: int = 500_000_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("free_bytes", "kept") and not value > 0:
                raise ValueError(f"{field.name}={value} lets nothing through: give more than 0")
