"""`memvit demo`: a shell game, watched by a model that remembers and one that does not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

from memvit.commands.terminal import say, stderr_console, stdout_console

SIZE, FPS = 320, 24.0


def demo(*, out: str = "demo-output", seed: int | None = None, duration: int = 64) -> int:
    """Play a shell game and let two small trained models follow the ball, one with memory and one without.

    The game is made up on the spot. Both models come with the package, were trained alike on other games, and see it clip by
    clip; once the ball is under a cup, only memory can tell which. Prints how often each was right and writes the game, the
    annotated game, a timeline and a picture.

    Examples:
        memvit demo
        memvit demo --seed 7 --duration 30 --out game

    Args:
        out: folder for the results.
        seed: chooses the game; another one every time where left out.
        duration: of the game, whole seconds, 4 or more.
    """
    import secrets
    import time

    from rich.table import Table

    from memvit.demo.drawing import CHANCE, draw_overlay, draw_picture, draw_timeline
    from memvit.demo.shell_game import accuracy, load_models, record_game, watch
    from memvit.models.hub import make_directory

    if duration < 4:
        raise ValueError(f"--duration {duration}: a game takes 4 seconds or more")
    seed = secrets.randbelow(2**31) if seed is None else seed
    root, console, stdout = make_directory(out), stderr_console(), stdout_console()
    say(console, f"making up a game of {duration} s (--seed {seed})")
    video, scene = record_game(root, seed=seed, duration_s=duration, size=SIZE, fps=FPS)
    models = load_models()
    began_s = time.monotonic()
    with _progress("watching") as show:
        turns = watch(root, scene, models, lambda done, total: show(done / total))
    watched_s = time.monotonic() - began_s
    overlay, timeline, picture = root / "overlay.mp4", root / "timeline.png", root / "picture.png"
    with _progress("drawing") as show:
        draw_overlay(video, turns, overlay, lambda time_s: show(time_s / duration))
    draw_timeline(turns, timeline)
    draw_picture(video, turns, picture)

    table = Table(title="Which cup holds the ball, while it cannot be seen?")
    for heading in ("model", "right", "accuracy"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    scores = {}
    for name in models:
        right, total = accuracy(turns, name)
        scores[name] = right / total if total else None
        table.add_row(name, f"{right} of {total}", f"{right / total:.1%}" if total else "-")
    table.add_row("chance", "", f"{CHANCE:.1%}")
    stdout.print(table)
    summary = {"seed": seed, "duration_s": duration, "accuracy": scores}
    (root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    say(stdout, f"both models watched {duration} s in {watched_s:.1f} s ({duration / watched_s:.0f}x real time)")
    for kind, path in (("game", video), ("annotated", overlay), ("timeline", timeline), ("picture", picture)):
        stdout.print(f"{kind:<10} {path}", markup=False, soft_wrap=True)
    return 0


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[float], None]]:
    """A bar for a share done, from 0 to 1; nothing where nobody watches."""
    console = stderr_console()
    if not console.is_terminal:
        yield lambda share: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)
