"""A visitor's file on its way to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.concurrency import run_in_threadpool

SILENCE_S = 60.0


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


async def receive(chunks: AsyncIterator[bytes], path: Path, size: int) -> None:
    """Writes what comes to a file.

    Raises:
        UploadError: more or less than declared, nothing for a minute, or the disk is full.
    """
    num_bytes = 0
    try:
        with open(path, "wb") as file:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                num_bytes += len(chunk)
                if num_bytes > size:
                    break
                await run_in_threadpool(file.write, chunk)
    except TimeoutError as error:
        raise UploadError(408, "The upload stood still for a minute. Try again.") from error
    except OSError as error:
        raise UploadError(503, "The server has no room for this video. Try again later.") from error
    if num_bytes != size:
        raise UploadError(400, "The upload is not what was announced. Try again.")


def size_text(num_bytes: int) -> str:
    """Bytes for people: "2 GB", "64 MB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes} bytes"
