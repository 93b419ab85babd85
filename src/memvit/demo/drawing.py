"""What the demo leaves behind: the annotated video, the timeline, and a picture that tells the story at a glance."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from memvit.demo.shell_game import PLACES, Turn, accuracy
from memvit.video import Prefetcher, VideoReader
from memvit.video.writer import VideoWriter

CUPS = dict(zip(PLACES, ("#3b6fb6", "#2a9d74", "#c9722c"), strict=True))
COLORS = {"with memory": "#2f8fff", "without memory": "#ff9a3c"}
INK, PAPER, RIGHT, WRONG = "#f2f4f8", "#14181f", "#4fd18b", "#ff6b6b"
CHANCE = 1 / 3


def draw_overlay(
    video: Path, turns: list[Turn], path: Path, on_progress: Callable[[float], None] | None = None
) -> None:
    """The game with both models' opinions: bars under the cups while they rest, and the score so far.

    Args:
        video: the game.
        turns: as `watch` gave them.
        path: the video to write.
        on_progress: called with the seconds of video done, now and then.
    """
    with VideoReader(video) as reader:
        size, fps = reader.info.height, Fraction(reader.info.average_fps or 24).limit_denominator(1000)
        panel = round(0.34 * size / 2) * 2
        by_second = {turn.second: turn for turn in turns}
        frames = ((frame.time_s, frame.rgb()) for frame in reader)
        with VideoWriter(path, size, size + panel, fps) as writer, Prefetcher(frames) as ahead:
            for time_s, rgb in ahead:
                # A clip reaches half a second beyond its middle; what was recognised in it is known from then on.
                known = by_second.get(int(time_s + 1e-6))
                resting = known if known is not None and time_s % 1 < 0.5 else None
                past = [turn for turn in turns if turn.second <= time_s]
                writer.write(_frame(rgb, panel, resting, past, time_s))
                if on_progress is not None and writer.num_frames % 24 == 0:
                    on_progress(time_s)


def _frame(rgb: np.ndarray, panel: int, turn: Turn | None, past: list[Turn], time_s: float) -> np.ndarray:
    size = rgb.shape[0]
    image = Image.new("RGB", (size, size + panel), PAPER)
    image.paste(Image.fromarray(rgb), (0, 0))
    draw = ImageDraw.Draw(image)
    if turn is not None:
        _draw_cups(draw, turn, size)
    line, small = _font(round(0.044 * size)), _font(round(0.038 * size))
    if past:
        latest = past[-1]
        seen = "the ball is shown" if latest.hidden_s == 0 else f"hidden for {latest.hidden_s:.0f} s"
    else:
        seen = "cups are set up"
    draw.text((0.04 * size, 0.03 * size), f"{int(time_s) // 60}:{int(time_s) % 60:02d}  {seen}", INK, small)
    for row, model in enumerate(COLORS):
        y = size + panel * (0.16 + 0.42 * row)
        draw.text((0.04 * size, y), model, COLORS[model], line)
        right, total = accuracy(past, model)
        if total:
            score = f"{right} of {total}"
            draw.text((0.96 * size - line.getlength(score), y), score, INK, line)
        if turn is not None:
            guess = turn.guess(model)
            word = PLACES[guess]
            draw.text((0.485 * size, y), word, RIGHT if guess == turn.holder else WRONG, line)
    return np.asarray(image)


def _draw_cups(draw: ImageDraw.ImageDraw, turn: Turn, size: int) -> None:
    """Under every cup two bars, the models' probabilities, and a frame around the cup that each points to."""
    width = max(2, round(0.008 * size))
    for place, box in enumerate(turn.boxes):
        x1, y1, x2, y2 = box * size
        for row, (model, color) in enumerate(COLORS.items()):
            top = y2 + (0.035 + 0.05 * row) * size
            draw.rectangle((x1, top, x2, top + 0.036 * size), "#00000090", outline="#5a6270")
            share = float(turn.scores[model][place])
            draw.rectangle((x1, top, x1 + (x2 - x1) * share, top + 0.036 * size), color)
            if turn.guess(model) == place:
                grow = 2 * width * row
                draw.rectangle((x1 - grow, y1 - grow, x2 + grow, y2 + grow), outline=color, width=width)


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib, so that pictures look alike on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf"), size_px)


def draw_timeline(turns: list[Turn], path: Path) -> None:
    """Which cup holds the ball, second by second: the truth, what both models say, and where they are wrong."""
    rows = {"the ball": [turn.holder for turn in turns]}
    rows |= {model: [turn.guess(model) for turn in turns] for model in COLORS}
    figure = Figure((11, 2.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shades = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in CUPS.values()]) / 255
    for row, (name, places) in enumerate(rows.items()):
        colors = shades[places]
        if name == "the ball":  # pale where it is under a cup
            hidden = np.array([turn.hidden_s > 0 for turn in turns])
            colors = np.where(hidden[:, None], 0.55 * colors + 0.45, colors)
        extent = (turns[0].second - 0.5, turns[-1].second + 0.5, row + 0.4, row - 0.4)
        axes.imshow(colors[None], extent=extent, aspect="auto", interpolation="nearest")
        wrong = [turn.second for turn, place in zip(turns, places, strict=True) if place != turn.holder]
        axes.plot(wrong, [row] * len(wrong), "x", color="white", markersize=6, markeredgewidth=1.6)
    axes.set(xlim=(turns[0].second - 0.5, turns[-1].second + 0.5), ylim=(2.5, -0.5), xlabel="seconds")
    axes.set_yticks(range(3), list(rows))
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Where is the ball? Pale: under a cup. A cross: wrong.", loc="left", fontsize=11)
    handles = [Rectangle((0, 0), 1, 1, color=color, label=place) for place, color in CUPS.items()]
    axes.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def draw_picture(video: Path, turns: list[Turn], path: Path) -> None:
    """One round in pictures, and accuracy by how long the ball was hidden."""
    chosen = _telling_round(turns)
    # Of every turn the cups on their way, where they move, and at rest, where the models are asked.
    moments = [(t, at, at > t.second) for t in chosen for at in (t.second - 0.28, t.second + 0.25)]
    moments = [(t, at, is_asked) for t, at, is_asked in moments if is_asked or t.hidden_s > 0]
    figure = Figure((max(8.0, 1.55 * len(moments)), 5.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    halves = figure.add_gridspec(2, 1, height_ratios=(1, 1.25))
    upper, lower = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    pictures = upper.subplots(1, len(moments), squeeze=False)[0]
    frames = _frames_at(video, [at for _, at, _ in moments])
    for axes, (turn, _, is_asked), frame in zip(pictures, moments, frames, strict=True):
        axes.imshow(frame)
        axes.set(xticks=[], yticks=[])
        if not is_asked:
            continue
        for row, (model, color) in enumerate(COLORS.items()):
            x1, y1, x2, y2 = turn.boxes[turn.guess(model)] * frame.shape[0]
            grow = 12 * row
            corner, width, height = (x1 - grow, y1 - grow), x2 - x1 + 2 * grow, y2 - y1 + 2 * grow
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=2))
        hidden = "shown" if turn.hidden_s == 0 else f"hidden {turn.hidden_s:.0f} s"
        axes.set_xlabel(f"{hidden}: {PLACES[turn.holder]}", fontsize=8.5)
    upper.suptitle("One round, and the cup that each model points to", fontsize=11, x=0.01, ha="left")
    axes = lower.subplots()
    delays = sorted({turn.hidden_s for turn in turns})
    for row, (model, color) in enumerate(COLORS.items()):
        right = [np.mean([t.guess(model) == t.holder for t in turns if t.hidden_s == d]) * 100 for d in delays]
        num_right, num_all = accuracy(turns, model)
        label = f"{model}: {num_right} of {num_all} while hidden"
        axes.bar(np.arange(len(delays)) + (row - 0.5) * 0.38, right, 0.36, color=color, label=label)
    axes.axhline(CHANCE * 100, color="#777777", linestyle="--", linewidth=1, label="chance")
    axes.set_xticks(range(len(delays)), ["shown" if d == 0 else f"hidden {d:.0f} s" for d in delays])
    axes.set(ylabel="right, %", ylim=(0, 104))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=3)
    figure.savefig(path)


def _telling_round(turns: list[Turn]) -> list[Turn]:
    """The round, from the ball's showing to the next, that sets the models apart most."""
    starts = [i for i, turn in enumerate(turns) if turn.hidden_s == 0] + [len(turns)]
    rounds = [turns[a:b] for a, b in itertools.pairwise(starts)] or [turns]

    def gap(one: list[Turn]) -> tuple[int, int]:
        return accuracy(one, "with memory")[0] - accuracy(one, "without memory")[0], len(one)

    return max(rounds, key=gap)


def _frames_at(video: Path, times_s: list[float]) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    with VideoReader(video, start_s=times_s[0]) as reader:
        for frame in reader:
            if frame.time_s >= times_s[len(frames)] - 1e-3:
                frames.append(frame.rgb())
            if len(frames) == len(times_s):
                break
    return frames
