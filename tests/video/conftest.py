"""What the tests of reading video share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_thread_stays_behind() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 3
    while left := [thread.name for thread in threading.enumerate() if thread.name.startswith("memvit-")]:
        assert time.monotonic() < deadline, f"threads left behind: {left}"
        time.sleep(0.01)
