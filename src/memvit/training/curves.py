"""The picture of a run: loss, validation metrics and learning rate over steps."""

from __future__ import annotations

import math
from pathlib import Path

from memvit.training.journal import Journal

FILE = "curves.png"


def draw_curves(journal: Path, picture: Path, title: str) -> bool:
    """Draws a run's journal.

    Args:
        journal: the file `metrics.csv`.
        picture: the file to write.
        title: of the picture.

    Returns:
        Whether there was anything to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = Journal(journal).rows()
    loss, lr = _series(rows, "train/loss"), _series(rows, "train/lr")
    if not loss:
        return False
    metrics = [name for name in rows[0] if name.startswith("val/") and name != "val/loss" and name.count("/") == 1]
    panels = 3 if any(_series(rows, name) for name in metrics) else 2
    figure, axes = plt.subplots(panels, 1, figsize=(8, 2.6 * panels), sharex=True, layout="constrained")
    figure.suptitle(title)

    axes[0].plot(*zip(*loss, strict=True), color="0.8", linewidth=0.8, label="training, each step")
    axes[0].plot(*zip(*smooth(loss), strict=True), color="C0", label="training, smoothed")
    if val_loss := _series(rows, "val/loss"):
        axes[0].plot(*zip(*val_loss, strict=True), color="C1", marker="o", markersize=3, label="validation")
    axes[0].set_ylabel("loss")
    if panels == 3:
        for name in metrics:
            if series := _series(rows, name):
                label = name.removeprefix("val/").replace("_", " ")
                axes[1].plot(*zip(*series, strict=True), marker="o", markersize=3, label=label)
        axes[1].set_ylabel("validation, %")
    axes[-1].plot(*zip(*lr, strict=True), color="C2", label="learning rate")
    axes[-1].set_ylabel("learning rate")
    axes[-1].set_ylim(bottom=0)
    axes[-1].set_xlabel("optimiser step")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return True


def smooth(series: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """An exponential moving average over about a fiftieth of the series, without a bias towards its beginning."""
    decay = 1 - 1 / max(len(series) / 50, 1)
    total = weight = 0.0
    smoothed = []
    for step, value in series:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed.append((step, total / weight))
    return smoothed


def _series(rows: list[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """Steps and values of a column, where it has any."""
    pairs = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [(step, value) for step, value in pairs if math.isfinite(value)]
