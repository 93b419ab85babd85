"""Draws how memory works: which clips the newest prediction sees, layer by layer.

python docs/figures/draw_memory.py
"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

NUM_LAYERS, LENGTH, NUM_CLIPS = 3, 2, 9
INK, FAINT = "#1f2933", "#d9dee5"
NOW, READ, REACHED = "#d9480f", "#1971c2", "#a5d8ff"


def main() -> None:
    """Writes memory.png beside this file."""
    figure = Figure(figsize=(10, 4.9), dpi=160)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(-2.1, NUM_CLIPS + 0.25)
    axes.set_ylim(-1.75, NUM_LAYERS + 1.05)
    axes.axis("off")
    now = NUM_CLIPS - 1

    for clip in range(NUM_CLIPS):
        axes.add_patch(_box(clip, -1.0, 0.66, "#495057" if now - clip <= NUM_LAYERS * LENGTH else FAINT))
        label = "t" if clip == now else f"t − {now - clip}"
        axes.text(clip + 0.4, -0.67, label, ha="center", va="center", color="white", fontsize=9.5)
        for layer in range(NUM_LAYERS):
            hops = NUM_LAYERS - 1 - layer
            distance = now - clip
            is_reached = distance <= hops * LENGTH
            is_read = 0 < distance <= (hops + 1) * LENGTH and distance > hops * LENGTH
            color = NOW if distance == 0 else REACHED if is_reached else READ if is_read else FAINT
            axes.add_patch(_box(clip, layer, 0.66, color))
    for layer in range(NUM_LAYERS):
        hops = NUM_LAYERS - 1 - layer
        axes.text(-0.25, layer + 0.33, f"memory layer {layer + 1}", ha="right", va="center", color=INK, fontsize=10.5)
        for source in range(max(0, now - hops * LENGTH), now + 1):
            for step in range(1, LENGTH + 1):
                if source - step >= 0 and source in (now, now - hops * LENGTH):
                    _arrow(axes, source - step, source, layer, NOW if source == now else READ)
    axes.text(-0.25, -0.67, "clips", ha="right", va="center", color=INK, fontsize=10.5)
    _arrow_up(axes, now)
    axes.text(
        now + 0.4, NUM_LAYERS + 0.52, "prediction", ha="center", va="center", color=NOW, fontsize=11, weight="bold"
    )
    oldest = now - NUM_LAYERS * LENGTH
    support = f"temporal support: {NUM_LAYERS} memory layers × M = {LENGTH}: {now - oldest} clips back, {LENGTH} read per layer"
    axes.annotate(
        "",
        (oldest, -1.22),
        (now + 0.8, -1.22),
        arrowprops={"arrowstyle": "|-|", "color": INK, "lw": 1.2, "mutation_scale": 4},
    )
    axes.text(
        (oldest + now + 0.8) / 2,
        -1.5,
        support,
        ha="center",
        va="center",
        color=INK,
        fontsize=10.5,
    )
    axes.text(
        -2.0,
        NUM_LAYERS + 0.62,
        "Each layer attends to its clip and to the compressed keys and values that it kept of the M clips before.\n"
        "Those had looked back themselves, so every layer sees M clips further. No clip is run again.",
        ha="left",
        va="center",
        color=INK,
        fontsize=10.5,
        linespacing=1.5,
    )
    figure.savefig(Path(__file__).with_name("memory.png"))


def _box(x: float, y: float, height: float, color: str) -> FancyBboxPatch:
    style = "round,pad=0,rounding_size=0.07"
    return FancyBboxPatch((x, y), 0.8, height, boxstyle=style, facecolor=color, edgecolor="none")


def _arrow(axes: object, source: int, target: int, layer: int, color: str) -> None:
    """From a remembered clip to the clip that reads it."""
    start, end = (source + 0.4, layer + 0.68), (target + 0.4, layer + 0.68)
    arrow = FancyArrowPatch(
        start, end, connectionstyle="arc3,rad=-0.28", arrowstyle="-|>", mutation_scale=9, color=color, lw=1.4
    )
    axes.add_patch(arrow)  # type: ignore[attr-defined]


def _arrow_up(axes: object, clip: int) -> None:
    x = clip + 0.66
    arrow = FancyArrowPatch(
        (x, NUM_LAYERS - 0.32), (x, NUM_LAYERS + 0.36), arrowstyle="-|>", mutation_scale=11, color=NOW, lw=1.6
    )
    axes.add_patch(arrow)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
