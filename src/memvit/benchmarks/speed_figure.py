"""The figure of a benchmark of speed: a panel for everything that was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from memvit.benchmarks.contenders import Contender, Task
from memvit.benchmarks.speed_records import CaseTimes, SpeedResult
from memvit.benchmarks.timing import quartiles

# Colours that everyone can tell apart (Okabe and Ito).
_CONTENDERS: dict[Contender, str] = {"memory": "#0072B2", "no memory": "#56B4E9", "mvit_v2_s": "#D55E00"}
_DTYPES = {"float32": "#0072B2", "bfloat16": "#D55E00", "float16": "#009E73"}
_PARTS = {"reading": "#E69F00", "model": "#56B4E9", "recognizer": "#0072B2"}
_DARK, _GRID = "#303030", "#e4e4e4"

Panel = Callable[[Axes], None]


def draw_speed(result: SpeedResult, path: str | Path) -> None:
    """Draws and saves the figure (PNG, PDF or SVG by suffix).

    Raises:
        ValueError: nothing was measured.
    """
    panels: list[tuple[Panel, float]] = []  # and how many bars high
    for task in ("forward", "training"):
        cases = [c for c in result.of_task(task) if c.seconds]
        for batch_size in sorted({c.case.batch_size for c in cases}):
            shown = [c for c in cases if c.case.batch_size == batch_size]
            panels.append((partial(_draw_cases, result, task, shown), len(shown) + 1))
    if result.memory:
        panels.append((partial(_draw_memory, result), 6))
    if result.streams:
        panels.append((partial(_draw_streams, result), 6))
    if result.videos:
        panels.append((partial(_draw_videos, result), 4 * len(result.videos)))
    if not panels:
        raise ValueError("nothing was measured, so there is nothing to draw")

    num_columns = min(2, len(panels))
    rows = [panels[i : i + num_columns] for i in range(0, len(panels), num_columns)]
    heights = [max(2.6, 0.9 + 0.3 * max(bars for _, bars in row)) for row in rows]
    figure = Figure(figsize=(6.4 * num_columns, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr,call-arg]
    grid = figure.add_gridspec(len(rows), num_columns, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, (draw, _) in enumerate(row):
            axes = figure.add_subplot(grid[i, j])
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
            draw(axes)
    figure.savefig(path, dpi=160)


def _draw_cases(result: SpeedResult, task: Task, cases: list[CaseTimes], axes: Axes) -> None:
    """A bar for each contender, number formats apart, with the roofline as a mark."""
    places, y, dtype = [], 0.0, cases[0].case.dtype
    for c in cases:
        y += 0.6 if c.case.dtype != dtype else 0.0
        dtype = c.case.dtype
        places.append(y)
        y += 1.0
    longest_ms = max(1e3 * quartiles(c.seconds)[1] for c in cases)
    for place, c in zip(places, cases, strict=True):
        ms, (low, high) = 1e3 * statistics.median(c.seconds), (1e3 * q for q in quartiles(c.seconds))
        bar = axes.barh(place, ms, height=0.78, color=_CONTENDERS[c.case.contender])
        if c.case.form == "compiled":
            bar[0].set(hatch="////", edgecolor="white", linewidth=0)
        axes.errorbar(ms, place, xerr=[[ms - low], [high - ms]], color=_DARK, linewidth=1.1, capsize=2.5)
        axes.plot([1e3 * c.roofline_s] * 2, [place - 0.39, place + 0.39], color="black", linewidth=2)
        ratio = result.over_torchvision(c)
        is_base = (c.case.contender, c.case.form) == ("mvit_v2_s", "eager")
        label = f"{_rounded(ms)} ms" + (f" ({ratio.median:.2f})" if ratio is not None and not is_base else "")
        end = max(
            high, 1e3 * c.roofline_s
        )  # kernels of ours may be faster than PyTorch's products, the roofline's rate
        axes.text(end + 0.015 * longest_ms, place, label, va="center", fontsize=8.5, color=_DARK)
    axes.set_yticks(places, [f"{c.name}\n{c.case.dtype}" for c in cases], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.32 * longest_ms)
    axes.set_xlabel("milliseconds, median and quartiles (ratio to mvit_v2_s)")
    axes.plot([], [], color="black", linewidth=2, label="roofline of this machine")
    what = "Forward pass" if task == "forward" else "Training step"
    _head(axes, f"{what}, batch {cases[0].case.batch_size}")
    axes.grid(axis="x", color=_GRID, linewidth=0.7)


def _draw_memory(result: SpeedResult, axes: Axes) -> None:
    """What memory costs, in per cent, against its length."""
    lengths = sorted({m.length for m in result.memory})
    dtypes = list(dict.fromkeys(m.dtype for m in result.memory))
    for number, dtype in enumerate(dtypes):
        rows = sorted((m for m in result.memory if m.dtype == dtype), key=lambda m: m.length)
        shift = 0.12 * (number - (len(dtypes) - 1) / 2)
        x = [lengths.index(m.length) + shift for m in rows]
        more = [100 * (m.ratio.median - 1) for m in rows]
        ends = [m.ratio.interval or (m.ratio.median, m.ratio.median) for m in rows]
        below = [y - 100 * (low - 1) for y, (low, _) in zip(more, ends, strict=True)]
        above = [100 * (high - 1) - y for y, (_, high) in zip(more, ends, strict=True)]
        colour = _DTYPES[dtype]
        axes.errorbar(
            x, more, [below, above], fmt="o-", color=colour, markersize=5, linewidth=1.5, capsize=3, label=dtype
        )
    axes.axhline(0, color=_DARK, linewidth=0.8)
    axes.margins(y=0.12)
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_xlim(-0.4, len(lengths) - 0.6)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:+g} %" if y else "0"))
    axes.set_xlabel("memory length M (past clips a layer attends)")
    axes.set_ylabel("more time (95 % interval)")
    _head(axes, "What memory costs")
    axes.grid(axis="y", color=_GRID, linewidth=0.7)


def _draw_streams(result: SpeedResult, axes: Axes) -> None:
    """Milliseconds of a stream's step against the number of streams in the batch."""
    for dtype in dict.fromkeys(s.dtype for s in result.streams):
        rows = sorted((s for s in result.streams if s.dtype == dtype), key=lambda s: s.num_streams)
        ms = [1e3 * s.stream_s for s in rows]
        axes.plot([s.num_streams for s in rows], ms, "o-", color=_DTYPES[dtype], markersize=5, label=dtype)
    numbers = sorted({s.num_streams for s in result.streams})
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1.15e3 * max(s.stream_s for s in result.streams))
    axes.set_xlabel("streams in one batch")
    axes.set_ylabel("ms a stream")
    _head(axes, "Several streams in one batch")
    axes.grid(color=_GRID, linewidth=0.7)


def _draw_videos(result: SpeedResult, axes: Axes) -> None:
    """Times real time: reading alone, the model alone, and both."""
    names = {"reading": "reading alone", "model": "model alone", "recognizer": "both, end to end"}
    places = range(len(result.videos))
    fastest = max(v.frames_per_s(part) / v.fps for v in result.videos for part in _PARTS)
    slowest = min(v.frames_per_s(part) / v.fps for v in result.videos for part in _PARTS)
    for number, (part, colour) in enumerate(_PARTS.items()):
        y = [place + 0.24 * (number - 1) for place in places]
        times = [v.frames_per_s(part) / v.fps for v in result.videos]
        axes.plot(times, y, "o", color=colour, markersize=8, label=names[part])
        for place, value in zip(y, times, strict=True):
            axes.annotate(_rounded(value), (value, place), (7, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(0.7 * slowest, 1.6 * fastest)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(list(places), [f"{v.width} × {v.height}\n{v.dtype}" for v in result.videos], fontsize=8)
    axes.set_ylim(len(result.videos) - 0.5, -0.5)
    axes.set_xlabel(f"times real time ({result.videos[0].fps:g} frames per second), logarithmic")
    _head(axes, "Video files")
    axes.grid(axis="x", color=_GRID, linewidth=0.7)


def _head(axes: Axes, title: str) -> None:
    """A title and, above the panel as well, where it covers nothing, the legend."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(
        frameon=False,
        fontsize=8.5,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.985),
        ncols=3,
        borderaxespad=0,
        handletextpad=0.5,
        columnspacing=1.0,
    )


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
