"""What the user sees: one line per message on stderr, a progress bar where somebody watches, tables on stdout."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from memvit.online.runs import Progress

PLAIN_WIDTH = 160  # of tables in files and pipes


def stdout_console() -> Console:
    """Where results go."""
    return _console(Console(highlight=False))


def stderr_console() -> Console:
    """Where everything else goes."""
    return _console(Console(stderr=True, highlight=False))


def _console(console: Console) -> Console:
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    return console


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints one line as it is: nothing wrapped, no markup."""
    console.print(" ".join(text.split()), style=style, markup=False, emoji=False, soft_wrap=True)


def reason(error: BaseException) -> str:
    """An error as one line; one that nobody foresaw says what it is."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError):
        return text or type(error).__name__
    return f"unexpected {type(error).__name__}: {text}; --debug shows where it comes from"


@contextlib.contextmanager
def log_to(console: Console, debug: bool) -> Iterator[None]:
    """Shows what the library logs, each message once; what happens to live sources as often as it happens."""
    handler = _OneLine(console)
    logger, live = logging.getLogger("memvit"), logging.getLogger("memvit.video.live")
    before = logger.level, live.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    if not debug:
        live.setLevel(logging.INFO)  # connections that come back are news
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        live.setLevel(before[1])


@contextlib.contextmanager
def log_with_times() -> Iterator[None]:
    """A server's log on stderr: what the library tells, as often as it happens, with its time."""
    logger, root = logging.getLogger("memvit"), logging.getLogger()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before, level = logger.handlers[:], logger.level
    logger.handlers.clear()
    logger.setLevel(min(level, logging.INFO))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        logger.setLevel(level)
        logger.handlers[:] = before


class _OneLine(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        is_live = record.name == "memvit.video.live"
        if is_live and text.startswith("gave up"):
            return  # comes as an error as well
        if record.levelno >= logging.WARNING:
            if text in self.seen and not is_live:
                return
            if len(self.seen) < 1000:
                self.seen.add(text)
            say(self.console, f"{record.levelname.lower()}: {text}", "yellow")
        else:
            say(self.console, text)
        if record.exc_info:
            self.console.print(logging.Formatter().formatException(record.exc_info), markup=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(console: Console, name: str) -> Iterator[Callable[[Progress], None]]:
    """A bar for one video, with frames per second, speed and time left; nothing where nobody watches."""
    if not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.fields[stage]} {task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, stage="opening", speed="")

        def show(progress: Progress) -> None:
            if bar.tasks[0].fields["stage"] != progress.stage:
                bar.reset(task, stage=progress.stage, speed="")
            elapsed_s = max(progress.elapsed_s, 1e-9)
            rate, times = progress.num_frames / elapsed_s, progress.done_s / elapsed_s
            speed = f"{rate:,.0f} frames/s, {times:.1f}x real time"
            total_s = None if progress.total_s is None else max(progress.total_s, progress.done_s)
            bar.update(task, completed=progress.done_s, total=total_s, speed=speed)

        yield show
