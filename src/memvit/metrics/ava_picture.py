"""A picture of an evaluation: which actions are found well and which are not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from textwrap import shorten
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memvit.metrics.ava import AvaResult

WIDTH, BAR_HEIGHT, MARGIN = 9.0, 0.22, 1.3  # inches
MAX_NAME = 50


def save_class_picture(
    result: AvaResult,
    path: str | os.PathLike[str],
    *,
    names: Mapping[int, str] | None = None,
    title: str = "Frame AP at IoU 0.5",
) -> None:
    """Draws the average precision of every class as a bar, the best on top, and their mean as a line.

    Behind each bar stands how many boxes the ground truth has of the class.

    Args:
        result: of an evaluation.
        path: of the picture, whose suffix says what it is, such as .png or .pdf.
        names: of the classes by their ids; None: AVA's own.
        title: of the picture.

    Raises:
        OSError: the picture cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot, so that nothing asks for a screen

    from memvit.datasets.ava_actions import action_names

    names = action_names() if names is None else names
    actions = sorted(result.ap, key=lambda action: (result.ap[action], -action))
    figure = Figure(figsize=(WIDTH, MARGIN + BAR_HEIGHT * max(len(actions), 3)), layout="constrained")
    axes = figure.subplots()
    percent = [100 * result.ap[action] for action in actions]
    axes.barh(range(len(actions)), percent, height=0.75, color="C0")
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # the mean's line ends where there is text
    for height, (action, value) in enumerate(zip(actions, percent, strict=True)):
        axes.annotate(
            f"{value:.1f}   ({result.num_boxes[action]:,})",
            *((value, height), (4, 0)),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color="0.25",
            bbox=behind,
        )
    labels = [shorten(names.get(action, str(action)), MAX_NAME, placeholder="...") for action in actions]
    axes.set_yticks(range(len(actions)), labels, fontsize=8, parse_math=False)
    axes.set_ylim(-0.7, max(len(actions), 1) - 0.3)
    axes.set_xlim(0, 100)
    mean = "no class has ground truth"
    if actions:
        mean = f"mean of {len(actions)} {'class' if len(actions) == 1 else 'classes'}: {100 * result.mean_ap:.2f} %"
        axes.axvline(100 * result.mean_ap, color="C1", linewidth=1.5)
    axes.set_title(f"{title}, {mean}", fontsize=10)
    axes.set_xlabel("average precision, % (in brackets: boxes in the ground truth)", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=130)
