"""What a model costs: parameters, multiply-accumulates, memory, and compute against temporal support.

Counted, not timed: the model runs on PyTorch's meta device, which knows shapes and no values, so the largest inputs take
a second and no memory, and every machine gets the same numbers. Source of the comparison: Wu et al., CVPR 2022, abstract
(30 times the temporal support for 4.5 % more compute, where more frames cost over 3,000 % more).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from memvit.kernels import reference_kernels
from memvit.models.config import MViTConfig
from memvit.models.memvit import MeMViT

LENGTHS = (0, 1, 2, 4, 8)
CLIP_FACTORS = (1, 2, 4, 8, 16, 30, 60)

_MEMORY_COLOUR, _FRAMES_COLOUR = "#0072B2", "#D55E00"


def count_parameters(model: nn.Module | MViTConfig) -> int:
    """The parameters of a model, or of the model that a config describes."""
    if isinstance(model, MViTConfig):
        model = _meta_model(model)
    return sum(parameter.numel() for parameter in model.parameters())


@functools.lru_cache(maxsize=256)
def count_macs(
    config: MViTConfig, num_frames: int | None = None, height: int | None = None, width: int | None = None
) -> int:
    """Multiply-accumulates of one clip (batch 1) with full memory.

    Counted are convolutions, linear layers and matrix products, those of attention and of relative positions among them,
    in the plain form of attention whatever kernel runs it. Not counted, as is usual: normalisation, softmax,
    activations, averages and maxima. A model that classifies boxes is given `max_boxes` of them. What was counted is
    remembered.

    Args:
        config: the model. Its memory has fixed slots, so an empty one costs what a full one does.
        num_frames, height, width: size of the clip; the config's where left out.

    Raises:
        ValueError: a clip too small for the model.
    """
    own = (config.num_frames, config.crop_size, config.crop_size)
    size = [n if n is not None else default for n, default in zip((num_frames, height, width), own, strict=True)]
    if min(size) < 1:
        raise ValueError(f"a clip of {size[0]} frames of {size[1]} x {size[2]} pixels (height x width) has no size")
    model = _meta_model(config)
    clips = torch.empty(1, config.in_channels, *size, device="meta")
    boxes = [torch.empty(config.head.max_boxes, 4, device="meta")] if config.head.task == "boxes" else None
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), reference_kernels(), counter:
        model(clips, None, boxes)
    return counter.get_total_flops() // 2


def _meta_model(config: MViTConfig) -> MeMViT:
    with torch.device("meta"):
        return MeMViT(config).eval()


@dataclass(frozen=True)
class ModelSummary:
    """A model in figures; `describe` makes it.

    Attributes:
        name: what the model is called.
        task, num_classes: what is predicted, and the classes of each head.
        num_frames, sampling_rate, fps, clip_duration_s, crop_size: one clip.
        parameters: those of this model.
        release_parameters: those that the authors' release would count: it creates compression and positions of memory
            in layers without memory too, where nothing uses them.
        macs, macs_without_memory: multiply-accumulates of one clip, with full memory and without any.
        depth, memory_layers, box_depth: blocks, which of them remember, and blocks over boxes (all of which remember).
        memory_length, gap: past clips that a layer attends, M, and how far apart; 0: no memory.
        compression, compression_stride: how remembered keys and values shrink (time, height, width).
        boundary: what a clip sees of another video.
        support_clips: how many clips back one can change a prediction: layers x M x gap.
        support_s: the same and the clip itself, in seconds of video, for clips that follow one another.
        memory_bytes, training_memory_bytes: what one stream's memory holds in inference mode and in training, float32.
    """

    name: str
    task: str
    num_classes: tuple[int, ...]
    num_frames: int
    sampling_rate: int
    fps: float
    clip_duration_s: float
    crop_size: int
    parameters: int
    release_parameters: int
    macs: int
    macs_without_memory: int
    depth: int
    memory_layers: tuple[int, ...]
    box_depth: int
    memory_length: int
    gap: int
    compression: str
    compression_stride: tuple[int, int, int]
    boundary: str
    support_clips: int
    support_s: float
    memory_bytes: int
    training_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def describe(config: MViTConfig, name: str = "") -> ModelSummary:
    """Counts what a model, called `name`, holds, costs and sees."""
    memory, macs, parameters = config.memory, count_macs(config), count_parameters(config)
    return ModelSummary(
        name=name,
        task=config.head.task,
        num_classes=config.head.num_classes,
        num_frames=config.num_frames,
        sampling_rate=config.sampling_rate,
        fps=config.fps,
        clip_duration_s=config.clip_duration_s,
        crop_size=config.crop_size,
        parameters=parameters,
        release_parameters=count_parameters(config.replace(memory_layers="all")) if memory.length else parameters,
        macs=macs,
        macs_without_memory=count_macs(config.replace(memory_length=0)) if memory.length else macs,
        depth=config.depth,
        memory_layers=config.memory_layers,
        box_depth=config.head.box_depth,
        memory_length=memory.length,
        gap=memory.gap,
        compression=memory.compression,
        compression_stride=memory.stride,
        boundary=memory.boundary,
        support_clips=config.support_clips,
        support_s=config.support_s,
        memory_bytes=_memory_bytes(config, for_inference=True),
        training_memory_bytes=_memory_bytes(config, for_inference=False),
    )


def _memory_bytes(config: MViTConfig, for_inference: bool) -> int:
    if not config.memory.length:
        return 0
    with torch.inference_mode(mode=for_inference):
        return _meta_model(config).new_memory(1).nbytes


def format_summary(summary: ModelSummary) -> Table:
    """A summary as a table for a rich console."""
    s = summary
    table = Table(title=s.name or None, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    predicted = {"clip": "one prediction a clip", "frames": "one prediction a token time", "boxes": "one per box"}
    table.add_row("task", f"{predicted[s.task]}, {' + '.join(f'{num:,}' for num in s.num_classes)} classes")
    table.add_row(
        "clip",
        f"{s.num_frames} frames of {s.crop_size} x {s.crop_size} pixels, 1 in {s.sampling_rate} at {s.fps:g} fps: "
        f"{s.clip_duration_s:.2f} s",
    )
    table.add_row("parameters", f"{s.parameters / 1e6:.2f} M")
    unused = s.release_parameters - s.parameters
    if unused:
        table.add_row(
            "",
            f"{s.release_parameters / 1e6:.2f} M as the authors' release builds it: {unused / 1e6:.2f} M more for memory, in "
            "layers without memory, which nothing uses",
        )
    table.add_row("compute", f"{_giga(s.macs)} GMACs (multiply-accumulates) a clip")
    if s.memory_length == 0:
        table.add_row("memory", "none")
        return table
    table.add_row(
        "",
        f"{_giga(s.macs_without_memory)} without memory: memory costs {_percent(_more(s.macs, s.macs_without_memory))}",
    )
    apart = f", {s.gap} clips apart" if s.gap > 1 else ""
    size = f"{s.memory_bytes / 1e6:.1f} MB a stream, in training {s.training_memory_bytes / 1e6:.1f}"
    table.add_row("memory", f"M = {s.memory_length} past clips a layer{apart}; {size}")
    boxes = f", and {s.box_depth} over boxes" if s.box_depth else ""
    layers = ", ".join(map(str, s.memory_layers))
    table.add_row("memory layers", f"{len(s.memory_layers)} of {s.depth} ({layers}){boxes}")
    stride = "" if s.compression == "none" else f", {' x '.join(map(str, s.compression_stride))} (time, height, width)"
    table.add_row("compression", f"{s.compression}{stride}")
    table.add_row("video boundary", s.boundary)
    table.add_row("temporal support", f"{s.support_clips} clips back, {s.support_s:.1f} s with the clip itself")
    return table


@dataclass(frozen=True)
class CostRow:
    """One way to see further, and its price for each clip.

    Attributes:
        way: "memory" or "frames" (a longer clip, no memory).
        amount: past clips attended, M; or by how much longer the clip is than the config's.
        num_frames: frames fed at once.
        clips_seen: clips (of the config's length) that can change a prediction, its own included.
        support_s: the same in seconds of video.
        macs: multiply-accumulates of one step.
        more_percent: how many percent more than one clip without memory.
    """

    way: Literal["memory", "frames"]
    amount: int
    num_frames: int
    clips_seen: int
    support_s: float
    macs: int
    more_percent: float

    @property
    def label(self) -> str:
        """Which row it is: "M = 2", or "16 × frames"."""
        return f"M = {self.amount}" if self.way == "memory" else f"{self.amount} × frames"


def cost_table(
    config: MViTConfig, lengths: Sequence[int] = LENGTHS, clip_factors: Sequence[int] = CLIP_FACTORS
) -> list[CostRow]:
    """Compute against temporal support, for more memory and for more frames (the paper's claim, see above).

    Args:
        config: the model; its own memory length is not used.
        lengths: memory lengths M.
        clip_factors: how many times the config's frames to feed at once, to the same model without memory.

    Returns:
        Rows for `lengths`, then rows for `clip_factors`, each in the order given.

    Raises:
        ValueError: a negative length or a factor below 1.
    """
    return list(_cost_rows(config, lengths, clip_factors))


def _cost_rows(config: MViTConfig, lengths: Sequence[int], clip_factors: Sequence[int]) -> Iterator[CostRow]:
    if any(factor < 1 for factor in clip_factors):
        raise ValueError(f"clip_factors={tuple(clip_factors)}: a clip can be 1 or more times as long")
    with_memory = [config.replace(memory_length=length) for length in lengths]
    without = config.replace(memory_length=0)
    base = count_macs(without)
    for remembering in with_memory:
        macs = count_macs(remembering) if remembering.memory.length else base
        yield CostRow(
            way="memory",
            amount=remembering.memory.length,
            num_frames=config.num_frames,
            clips_seen=remembering.support_clips + 1,
            support_s=remembering.support_s,
            macs=macs,
            more_percent=_more(macs, base),
        )
    for factor in clip_factors:
        num_frames = factor * config.num_frames
        macs = count_macs(without, num_frames) if factor > 1 else base
        yield CostRow(
            way="frames",
            amount=factor,
            num_frames=num_frames,
            clips_seen=factor,
            support_s=factor * config.clip_duration_s,
            macs=macs,
            more_percent=_more(macs, base),
        )


def format_table(rows: Sequence[CostRow], title: str = "") -> Table:
    """Rows of `cost_table` as a table for a rich console."""
    table = Table(title=title or None, title_justify="left")
    table.add_column("")
    for heading in ("frames a step", "clips seen", "support (s)", "GMACs", "over one clip"):
        table.add_column(heading, justify="right")
    for i, row in enumerate(rows):
        table.add_row(
            row.label,
            f"{row.num_frames:,}",
            f"{row.clips_seen:,}",
            f"{row.support_s:,.1f}",
            _giga(row.macs),
            _percent(row.more_percent),
            end_section=i + 1 < len(rows) and rows[i + 1].way != row.way,
        )
    return table


def write_csv(rows: Sequence[CostRow], path: str | Path) -> None:
    """Writes rows of `cost_table`, a column per field of `CostRow`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(CostRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def draw_cost(rows: Sequence[CostRow], path: str | Path, title: str = "") -> None:
    """Draws compute against temporal support, both logarithmic, and saves the figure (PNG, PDF or SVG by suffix).

    Raises:
        ValueError: rows of one way alone, between which there is nothing to compare.
    """
    ways = {way: [row for row in rows if row.way == way] for way in ("memory", "frames")}
    if not all(ways.values()):
        raise ValueError("the figure compares memory with frames; give rows of both")
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="Temporal support (seconds)", ylabel="Compute per prediction (GMACs)")
    support, giga = [row.support_s for row in rows], [row.macs / 1e9 for row in rows]
    left, right = min(support) / 1.4, max(support) * 1.5
    axes.set_xlim(left, right)
    axes.set_ylim(min(giga) / 3.2, max(giga) * 3)

    _draw_way(axes, ways["frames"], _FRAMES_COLOUR, "s", "more frames, no memory")
    _draw_way(axes, ways["memory"], _MEMORY_COLOUR, "o", "more memory (M past clips a layer)")

    ticks = [2.0**n for n in range(math.ceil(math.log2(left)), math.floor(math.log2(right)) + 1)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    figure.savefig(path, dpi=200)


def _draw_way(axes: Axes, rows: Sequence[CostRow], colour: str, marker: str, legend: str) -> None:
    """One line; labels of "frames" stand above their points, those of "memory" below."""
    points = [(row.support_s, row.macs / 1e9) for row in rows]
    axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5.5, linewidth=1.8, label=legend)
    for row, point in zip(rows, points, strict=True):
        above = row.way == "frames"
        if above and row.amount == 1:
            continue  # the point of M = 0, which says what it is
        text = f"×{row.amount} frames" if above else f"M = {row.amount}"
        price = "one clip" if row.more_percent == 0 else _percent(row.more_percent)
        axes.annotate(
            f"{text}\n{price}",
            point,
            xytext=(-8, 2) if above else (0, -9),
            textcoords="offset points",
            ha="right" if above else "center",
            va="bottom" if above else "top",
            color=colour,
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # the grid stops at the text
        )


def cost_report(config: MViTConfig, out_dir: str | Path, console: Console, name: str = "") -> list[CostRow]:
    """Counts, prints the table, and writes `cost.csv`, `cost.json` and `cost.png`.

    Args:
        config: the model.
        out_dir: where the files go; made where missing.
        console: where progress and table go.
        name: what to call the model in titles and in `cost.json`.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    counting = _cost_rows(config, LENGTHS, CLIP_FACTORS)
    total = len(LENGTHS) + len(CLIP_FACTORS)
    rows = list(track(counting, "Counting", total, console=console, transient=True))
    console.print(format_table(rows, title=name))
    report = {"model": name, "config": config.to_dict(), "rows": [dataclasses.asdict(row) for row in rows]}
    write_csv(rows, out_dir / "cost.csv")
    (out_dir / "cost.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw_cost(rows, out_dir / "cost.png", title=name)
    console.print(f"Wrote cost.csv, cost.json and cost.png to {out_dir}")
    return rows


def _more(macs: int, base: int) -> float:
    return 100 * (macs / base - 1)


def _percent(more: float) -> str:
    return f"{more:+,.1f} %" if abs(more) < 100 else f"{more:+,.0f} %"


def _giga(macs: int) -> str:
    return f"{macs / 1e9:,.2f}"
