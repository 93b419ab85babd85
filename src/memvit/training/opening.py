"""What is told while many videos are opened."""

from __future__ import annotations

import logging
import time
from pathlib import Path

logger = logging.getLogger(__name__)

TELL_EVERY_S = 15.0


class OpeningLog:
    """Tells now and then how many videos have been opened, where that takes long.

    Args:
        path: of the list of videos.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began_at = self._told_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Takes how many videos are done, of how many."""
        now = time.monotonic()
        if now - self._told_at < TELL_EVERY_S:
            return
        self._told_at = now
        left_s = (now - self._began_at) / done * (total - done)
        logger.info(
            "%s: %d of %d videos opened to see how long they are, about %.0f s to go",
            *(self.path, done, total, left_s),
        )
