"""What `memvit evaluate` prints and writes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from memvit.commands.terminal import say, stdout_console
from memvit.metrics.ava import AvaResult
from memvit.metrics.epic_kitchens import TASKS

EPIC_METRICS = {"accuracy_at_1": "top-1 accuracy", "accuracy_at_5": "top-5 accuracy", "mt5r": "class-mean top-5 recall"}


def as_json(result: AvaResult, names: Mapping[int, str]) -> str:
    """The mean and every class, values from 0 to 1.

    Args:
        result: of an evaluation.
        names: of the classes by their ids.
    """
    classes = [
        {"id": action, "name": names[action], "AP": ap, "boxes": result.num_boxes[action]}
        for action, ap in result.ap.items()
    ]
    mean = None if math.isnan(result.mean_ap) else result.mean_ap
    return json.dumps({"mAP": mean, "classes": classes}, indent=2, ensure_ascii=False)


def print_classes(result: AvaResult, names: Mapping[int, str]) -> None:
    """Prints a table of the classes, the best first, and the mean, in percent.

    Args:
        result: of an evaluation.
        names: of the classes by their ids.
    """
    console = stdout_console()
    if not result.ap:
        say(console, "mAP is not defined: no class that counts has ground truth", "yellow")
        return
    table = Table()
    table.add_column("id", justify="right")
    table.add_column("class", overflow="fold")
    table.add_column("boxes", justify="right")
    table.add_column("AP", justify="right")
    for action in sorted(result.ap, key=lambda action: (-result.ap[action], action)):
        boxes, ap = f"{result.num_boxes[action]:,}", f"{100 * result.ap[action]:.2f} %"
        table.add_row(str(action), escape(names[action]), boxes, ap)
    console.print(table)
    say(console, f"mAP: {100 * result.mean_ap:.2f} %, the mean of {len(result.ap)} classes with ground truth")


def write_classes(result: AvaResult, names: Mapping[int, str], path: Path) -> None:
    """Writes a CSV file of the classes, values from 0 to 1.

    Args:
        result: of an evaluation.
        names: of the classes by their ids.
        path: of the file.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["action_id", "name", "boxes", "ap"])
        for action, ap in result.ap.items():
            writer.writerow([action, names[action], result.num_boxes[action], ap])


def epic_as_json(challenge: str, num_segments: int, values: Mapping[str, float]) -> str:
    """The metrics of EPIC-KITCHENS-100, in percent.

    Args:
        challenge: that they are of.
        num_segments: how many segments are annotated.
        values: by the names of the official evaluators.
    """
    return json.dumps({"challenge": challenge, "segments": num_segments, "metrics": dict(values)}, indent=2)


def print_epic(challenge: str, num_segments: int, values: Mapping[str, float]) -> None:
    """Prints a table of the metrics of EPIC-KITCHENS-100, in percent: a row for every subset and metric.

    Args:
        challenge: that they are of.
        num_segments: how many segments are annotated.
        values: by the names of the official evaluators.
    """
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in values.items():
        subset, task, metric = name.split("_", 2)
        rows.setdefault((subset, metric), {})[task] = value
    table = Table()
    table.add_column("segments")
    table.add_column("metric")
    for task in TASKS:
        table.add_column(task, justify="right")
    for (subset, metric), cells in rows.items():
        texts = [f"{cells[task]:.2f} %" if task in cells else "" for task in TASKS]
        table.add_row(subset, EPIC_METRICS[metric], *texts)
    console = stdout_console()
    console.print(table)
    say(console, f"{challenge.replace('_', ' ')}, {num_segments:,} segments")
