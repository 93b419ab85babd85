"""A visitor's file on its way to the disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.concurrency import run_in_threadpool

PATIENCE_S = 60.0
PATIENCE_BYTES = 64_000  # less than that in so long a time is no upload, but keeps others waiting
POLL_PERIOD_S = 0.5


class UploadError(Exception):
    """The upload is refused.

    Attributes:
        status: HTTP's.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_size(declared: str | None, max_bytes: int) -> int:
    """The size that a visitor declares.

    Raises:
        UploadError: none, or too much.
    """
    if declared is None or not declared.isdecimal():
        raise UploadError(411, "The size of the video is missing.")
    if int(declared) > max_bytes:
        raise UploadError(413, f"This file is too large: the server takes up to {size_text(max_bytes)}.")
    if int(declared) == 0:
        raise UploadError(422, "This file is empty (0 bytes): copy or download it again.")
    return int(declared)


async def receive(
    chunks: AsyncIterator[bytes], path: Path, size: int, *, is_ending: Callable[[], bool] = lambda: False
) -> None:
    """Writes what comes to a file.

    Args:
        chunks: what comes.
        path: of the file.
        size: bytes that were declared.
        is_ending: asked now and then whether the server ends.

    Raises:
        UploadError: more or less than declared, hardly anything for a minute, the disk is full, or the server ends.
    """
    num_bytes = num_before = 0
    since_s = time.monotonic()
    try:
        with open(path, "wb") as file:
            while True:
                chunk = await _next(chunks, since_s + PATIENCE_S, is_ending)
                if chunk is None:
                    break
                num_bytes += len(chunk)
                if num_bytes > size:
                    break
                await run_in_threadpool(file.write, chunk)
                if num_bytes - num_before >= PATIENCE_BYTES:
                    num_before, since_s = num_bytes, time.monotonic()
    except TimeoutError as error:
        raise UploadError(408, "Next to nothing of the video came for a minute. Try again.") from error
    except OSError as error:
        raise UploadError(503, "The server has no room for this video. Try again later.") from error
    if num_bytes != size:
        raise UploadError(400, "The upload is not what was announced. Try again.")


async def _next(chunks: AsyncIterator[bytes], until_s: float, is_ending: Callable[[], bool]) -> bytes | None:
    """The next chunk; None: there is none."""
    waiting = asyncio.ensure_future(anext(chunks, None))
    try:
        while not waiting.done():
            if is_ending():
                raise UploadError(503, "The server is being ended.")
            if time.monotonic() >= until_s:
                raise TimeoutError
            await asyncio.wait([waiting], timeout=POLL_PERIOD_S)
        return waiting.result()
    finally:
        waiting.cancel()


def size_text(num_bytes: int) -> str:
    """Bytes for people: "2 GB", "64 MB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes} bytes"
