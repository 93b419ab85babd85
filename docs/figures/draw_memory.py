"""Measures how memory works on real models, and draws what was measured.

python docs/figures/draw_memory.py

Nothing in the figures is put there by hand: which past clips reach a layer is found by changing them, one after another, and
looking whether the layer's output changes; what a layer reads by changing what it remembers; sizes are those of the tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from torch import Tensor, nn

import memvit

INK, GREY, FAINT = "#1f2933", "#868e96", "#e3e7ec"
NOW, NEW, KNOWN = "#d9480f", "#1971c2", "#a5d8ff"
LENGTHS = (0, 1, 2, 4, 8)


@dataclass(frozen=True)
class Reach:
    """Which past clips a model sees at its last clip, by measurement.

    Attributes:
        layers: per block, the clips back that change its output, in ascending order; 0 is the clip itself.
        prediction: the same of the logits.
        reads: memory layer -> the clips back that it attends to directly.
        furthest: clips back that were tried.
    """

    layers: tuple[tuple[int, ...], ...]
    prediction: tuple[int, ...]
    reads: dict[int, tuple[int, ...]]
    furthest: int


@dataclass(frozen=True)
class LayerSize:
    """What one clip leaves in one memory layer: keys, and the bytes of keys and values (float32)."""

    layer: int
    keys: int
    remembered_keys: int
    bytes: int
    remembered_bytes: int


def make_model(**overrides: object) -> memvit.MeMViT:
    """A small model in float64 with weights so large that whatever can reach an output does so visibly."""
    torch.manual_seed(0)
    options = {"num_classes": 5, "depth": 6, "memory_layers": "uniform", **overrides}
    model = memvit.create_model("memvit_nano", **options).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=1.5 * weight[0].numel() ** -0.5)
    return model


@torch.no_grad()
def measure_reach(model: memvit.MeMViT, furthest: int, new_video_at: int | None = None) -> Reach:
    """Changes the clip k back, for every k up to `furthest`, and sees which outputs at the last clip change.

    Args:
        model: in float64, where a change of the last bit is a change.
        furthest: clips back to try.
        new_video_at: clips back at which a new video began, so that memory was forgotten; None: all is one video.
    """
    before, after = (_last_outputs(model, furthest, changes, new_video_at) for changes in (False, True))
    changed = [
        tuple((was != now).flatten(1).any(dim=1).nonzero().flatten().tolist())
        for was, now in zip(before, after, strict=True)
    ]
    return Reach(tuple(changed[:-1]), changed[-1], _measure_reads(model), furthest)


def _last_outputs(model: memvit.MeMViT, furthest: int, changes: bool, new_video_at: int | None) -> list[Tensor]:
    """Every block's output and the logits at the last clip; stream k of the batch has the clip k back changed."""
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: outputs.append(out[0])) for block in _blocks(model)]
    generator = torch.Generator().manual_seed(1)
    memory = model.new_memory(furthest + 1)
    for clips_back in range(furthest, -1, -1):
        outputs.clear()
        clip, other = (_random_clip(model, generator) for _ in range(2))
        clips = clip.expand(furthest + 1, *clip.shape).clone()
        if changes:
            clips[clips_back] = other
        if clips_back == new_video_at:
            memory = memory.forget([True] * len(memory))
        logits, memory = model(clips, memory)
    for hook in hooks:
        hook.remove()
    return [*outputs, logits]


@torch.no_grad()
def _measure_reads(model: memvit.MeMViT) -> dict[int, tuple[int, ...]]:
    """Changes what a layer remembers of one past clip, for every layer and clip, and sees whether its output changes."""
    generator = torch.Generator().manual_seed(2)
    memory = model.new_memory(1)
    num_slots = model.config.memory.num_slots
    for _ in range(num_slots):
        _, memory = model(_random_clip(model, generator)[None], memory)
    clip = _random_clip(model, generator)[None]

    def output_of(layer: int, remembered: memvit.Memory) -> Tensor:
        outputs: list[Tensor] = []
        hook = _blocks(model)[layer].register_forward_hook(lambda _, __, out: outputs.append(out[0]))
        model(clip, remembered)
        hook.remove()
        return outputs[0]

    reads = {}
    for layer in model.config.memory_layers:
        unchanged = output_of(layer, memory)
        found = []
        for clips_back in range(1, num_slots + 1):
            state = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
            num_waiting = state[f"layers.{layer}.waiting_k"].shape[1]  # the newest clips, not compressed yet
            kind = "waiting" if clips_back <= num_waiting else "compressed"
            slot = -clips_back if kind == "waiting" else num_waiting - clips_back
            for part in ("k", "v"):
                remembered = state[f"layers.{layer}.{kind}_{part}"][:, slot]
                remembered += torch.randn(remembered.shape, generator=generator, dtype=remembered.dtype)
            if not torch.equal(output_of(layer, memory.clone().load_state_dict(state)), unchanged):
                found.append(clips_back)
        reads[layer] = tuple(found)
    return reads


def _blocks(model: memvit.MeMViT) -> list[nn.Module]:
    return list(model.blocks)


def _random_clip(model: memvit.MeMViT, generator: torch.Generator) -> Tensor:
    config = model.config
    size = (config.in_channels, config.num_frames, config.crop_size, config.crop_size)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def layer_sizes(name: str) -> list[LayerSize]:
    """What one clip leaves in each memory layer of a preset with M = 2: while it waits, and once it is compressed."""
    memory = _empty_model(name, memory_length=2, memory_gap=1).new_memory(1)
    sizes = []
    for layer, kept in memory.layers.items():
        (was_k, was_v), (is_k, is_v) = (kept.waiting_k, kept.waiting_v), (kept.compressed_k, kept.compressed_v)
        sizes.append(
            LayerSize(layer, was_k.shape[2], is_k.shape[2], was_k.nbytes + was_v.nbytes, is_k.nbytes + is_v.nbytes)
        )
    return sizes


def bytes_by_length(name: str, compression: str, lengths: Sequence[int] = LENGTHS) -> list[int]:
    """What one stream's memory holds, in bytes of float32, for every memory length M."""
    options = {"memory_compression": compression, "memory_gap": 1}
    return [_empty_model(name, memory_length=length, **options).new_memory(1).nbytes for length in lengths]


def _empty_model(name: str, **overrides: object) -> memvit.MeMViT:
    """A model that knows its shapes and has no values, so that the largest costs nothing."""
    with torch.device("meta"):
        return memvit.create_model(name, **overrides)


def main() -> None:
    """Writes memory.png, memory_variants.png and memory_size.png beside this file."""
    folder = Path(__file__).parent
    draw_reach(measure_reach(make_model(memory_length=2), 8), folder / "memory.png")
    draw_variants(folder / "memory_variants.png")
    draw_sizes("memvit_16x4", folder / "memory_size.png")


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def draw_reach(reach: Reach, path: Path) -> None:
    """All blocks, with an arrow from every remembered clip to the clip whose layer reads it."""
    figure = _new_figure(8.4, 5.6)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    _draw_cells(axes, reach, arrows=True)
    num_rows, oldest = len(reach.layers) + 1, max(reach.prediction)
    axes.set_xlim(-reach.furthest - 2.75, 1.0)
    axes.set_ylim(-2.7, num_rows + 1.25)
    axes.annotate(
        "",
        (-oldest, -1.3),
        (0.8, -1.3),
        arrowprops={"arrowstyle": "|-|", "color": INK, "lw": 1.2, "mutation_scale": 4},
    )
    length = len(next(iter(reach.reads.values())))
    support = f"{len(reach.reads)} memory layers × M = {length}: the prediction depends on {oldest} clips back, no more"
    axes.text(0.8, -1.72, support, ha="right", va="center", color=INK, fontsize=10)
    axes.text(
        -reach.furthest - 2.6,
        num_rows + 0.65,
        "Coloured: changing that clip changes what the block computes for the newest clip, t (measured).\n"
        "Arrows: the longest way there. A memory layer reads what it kept of the clips before.",
        ha="left",
        va="center",
        color=INK,
        fontsize=10,
        linespacing=1.5,
    )
    figure.legend(
        handles=[
            Patch(color=NOW, label="the newest clip"),
            Patch(color=NEW, label="first reached in this block"),
            Patch(color=KNOWN, label="reached below already"),
            Patch(color=FAINT, label="changes nothing"),
        ],
        loc="lower center",
        ncols=4,
        frameon=False,
        fontsize=9.5,
        handlelength=1.2,
    )
    _save(figure, path)


def draw_variants(path: Path) -> None:
    """The same model with a gap, and with a video that began three clips ago."""
    figure = _new_figure(8.4, 4.9)
    gapped = measure_reach(make_model(memory_length=2, memory_gap=2), 13)
    cut = measure_reach(make_model(memory_length=2), 13, new_video_at=3)
    for reach, title, bottom in (
        (gapped, "memory_gap = 2: every second clip is read, and memory reaches twice as far", 0.5),
        (cut, "A new video began three clips ago, and its stream forgot: nothing before that counts", 0.0),
    ):
        axes = figure.add_axes((0.0, bottom, 1.0, 0.5))
        _draw_cells(axes, reach, arrows=False)
        axes.set_xlim(-reach.furthest - 3.9, 1.0)
        axes.set_ylim(-1.3, len(reach.layers) + 2.2)
        axes.text(-reach.furthest, len(reach.layers) + 1.65, title, va="center", color=INK, fontsize=10.5)
        if reach is cut:
            axes.plot([-3.1, -3.1], [-1.05, len(reach.layers) + 0.9], color=NOW, lw=1.5, ls=(0, (4, 2)))
    _save(figure, path)


def _draw_cells(axes: Axes, reach: Reach, *, arrows: bool) -> None:
    """A row per block and one for the prediction, a column per clip, the newest at x = 0."""
    axes.axis("off")
    rows = [*reach.layers, reach.prediction]
    font = 10.0 if arrows else 8.5
    for row, reached in enumerate(rows):
        below = rows[row - 1] if row else (0,)
        for clips_back in range(reach.furthest + 1):
            known = clips_back in below or row == len(rows) - 1
            color = NOW if clips_back == 0 else KNOWN if known else NEW
            axes.add_patch(_box(-clips_back, row, color if clips_back in reached else FAINT))
        remembers = row in reach.reads
        name = "prediction" if row == len(rows) - 1 else f"block {row}" + (", memory" if remembers else "")
        weight = "bold" if remembers or row == len(rows) - 1 else "normal"
        axes.text(
            -reach.furthest - 0.2, row + 0.3, name, ha="right", va="center", color=INK, fontsize=font, weight=weight
        )
    for clips_back in range(reach.furthest + 1):
        seen = clips_back in reach.prediction
        axes.add_patch(_box(-clips_back, -1.0, "#495057" if seen else "#adb5bd"))
        label = "t" if clips_back == 0 else f"t−{clips_back}"
        axes.text(0.4 - clips_back, -0.7, label, ha="center", va="center", color="white", fontsize=font - 1.5)
    axes.text(-reach.furthest - 0.2, -0.7, "clips", ha="right", va="center", color=INK, fontsize=font)
    if arrows:
        _draw_arrows(axes, reach)


def _draw_arrows(axes: Axes, reach: Reach) -> None:
    """From the top memory layer down: what it reads, then what the one below read for the oldest of that, and so on."""
    reader = 0
    for layer in sorted(reach.reads, reverse=True):
        for read in reach.reads[layer]:
            start, end = (0.4 - reader - read, layer + 0.62), (0.4 - reader, layer + 0.62)
            arrow = FancyArrowPatch(
                start, end, connectionstyle="arc3,rad=-0.25", arrowstyle="-|>", mutation_scale=9, color=INK, lw=1.1
            )
            axes.add_patch(arrow)
        reader += max(reach.reads[layer])


def _box(x: float, y: float, color: str) -> FancyBboxPatch:
    style = "round,pad=0,rounding_size=0.07"
    return FancyBboxPatch((x, y), 0.8, 0.6, boxstyle=style, facecolor=color, edgecolor="none")


def draw_sizes(name: str, path: Path) -> None:
    """Keys of a clip before and after compression, and what a stream's memory holds by its length."""
    figure = _new_figure(8.4, 3.7)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.25, 1)})
    sizes = layer_sizes(name)
    places = range(len(sizes))
    for shift, label, color, counts in (
        (-0.2, "as it was", GREY, [size.keys for size in sizes]),
        (0.2, "as it is remembered", NEW, [size.remembered_keys for size in sizes]),
    ):
        bars = left.bar([place + shift for place in places], counts, 0.4, color=color, label=label)
        left.bar_label(bars, fontsize=8, color=color, padding=1)
    left.set_yscale("log")
    left.set_ylim(10, 6000)
    left.set_xticks(list(places), [str(size.layer) for size in sizes])
    left.set(xlabel="memory layer (block)", ylabel="keys of one clip", title=f"{name}: compression")
    left.legend(frameon=False, fontsize=9, loc="upper left")

    for compression, label, color in (
        ("none", "uncompressed", GREY),
        ("pipelined", "compressed, pipelined", NEW),
    ):
        megabytes = [size / 1e6 for size in bytes_by_length(name, compression)]
        right.plot(LENGTHS, megabytes, marker="o", color=color, label=label)
        right.annotate(
            f"{megabytes[-1]:.0f} MB",
            (LENGTHS[-1], megabytes[-1]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=color,
            fontsize=9,
        )
    right.set_xticks(LENGTHS)
    right.set(xlabel="memory length M (clips)", ylabel="MB per stream (float32)", title=f"{name}: what a stream holds")
    right.set_ylim(0, right.get_ylim()[1] * 1.1)
    right.legend(frameon=False, fontsize=9, loc="upper left")
    for axes in (left, right):
        axes.title.set_size(10.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=FAINT, lw=0.7)
        axes.set_axisbelow(True)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, pil_kwargs={"optimize": True})
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
