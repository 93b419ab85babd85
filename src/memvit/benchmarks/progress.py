"""How far a measurement is, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""What is measured, how many of its steps are done, and how many there are."""


def no_progress(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def counter(on_progress: OnProgress, what: str, total: int) -> Callable[[], None]:
    """A function to call after every step."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        on_progress(what, done, total)

    on_progress(what, 0, total)
    return tick
