"""Tables and figures of the long-term experiments, from the result files of their trainings."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Result = dict[str, Any]

# Colours that everyone can tell apart (Okabe and Ito).
MEMORY, NONE, THIRD, FOURTH, FIFTH = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
PALETTE = (NONE, MEMORY, THIRD, FOURTH, FIFTH, "#56B4E9")
GREY = "#8a8a8a"

TASK_TITLES = {
    "recall": "Recall",
    "shell_game": "Shell game",
    "recipe": "Recipe",
    "recipe_anticipation": "Recipe, 1 s ahead",
}
# The best that anyone can do who remembers nothing. Of a recipe's step the verb can be seen and the noun not. A second ahead,
# the present verb rules out some continuations: of the eight pairs of verbs that follow one another, three can be guessed.
CHANCE = {"recall": 1 / 4, "shell_game": 1 / 3, "recipe": 1 / 4, "recipe_anticipation": 3 / 8}
# Official metrics, in percent, of the recipe in the files of EPIC-KITCHENS-100.
EPIC_ROWS = (
    ("recognition, verb, top-1", "recipe_epic", "all_verb_accuracy_at_1"),
    ("recognition, noun, top-1", "recipe_epic", "all_noun_accuracy_at_1"),
    ("recognition, action, top-1", "recipe_epic", "all_action_accuracy_at_1"),
    ("recognition, action, top-1, unseen participants", "recipe_epic", "unseen_action_accuracy_at_1"),
    ("anticipation, action, class-mean top-5 recall", "recipe_epic_anticipation", "overall_action_mt5r"),
    ("anticipation, the same, unseen participants", "recipe_epic_anticipation", "unseen_action_mt5r"),
)
BEGIN, END = "<!-- {}: written by memvit.benchmarks.long_term report -->", "<!-- end of {} -->"
MIN_CLIPS = 20  # fewer say too little for a point in a curve


def read_results(folder: Path) -> dict[str, Result]:
    """Results of finished trainings, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def write_report(folder: Path, docs: Path) -> None:
    """Draws `docs/figures/long_term_*.png` and puts the tables into `docs/results.md` between their marks.

    Args:
        folder: with the result files.
        docs: with `results.md`, which has a mark for every table.

    Raises:
        ValueError: there are no results, or `results.md` lacks a mark.
    """
    results = read_results(folder)
    if not results:
        raise ValueError(f"there are no results in {folder}: run the trainings first")
    figures = docs / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    tables = {"gain": _gain_table(results), **{key: _ablation_table(results, key) for key in ABLATIONS}}
    tables["pretraining"] = _pretraining_table(results)
    tables["epic"] = _epic_table(results)
    draw_gain(results, figures / "long_term_gain.png")
    draw_delays(results, figures / "long_term_delay.png")
    draw_ablations(results, figures / "long_term_ablations.png")
    joint = folder.parent / "joint_cost.json"
    if joint.exists():
        data = json.loads(joint.read_text())
        tables["joint"] = _joint_table(data)
        draw_joint(data, figures / "long_term_joint.png")
    page = docs / "results.md"
    text = page.read_text()
    for name, table in tables.items():
        text = _replace(text, name, table, page)
    page.write_text(text)


def _replace(text: str, name: str, table: str, page: Path) -> str:
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no place for the table {name!r}: put {begin} and {end} into it")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}"


def _seeds(results: dict[str, Result], task: str, kind: str) -> list[Result]:
    return [r for name, r in results.items() if name.rsplit("-", 1)[0] == f"{task}-{kind}"]


def _percent(values: Sequence[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.1%}"
    return f"{statistics.mean(values):.1%} ({min(values):.1%} to {max(values):.1%}, {len(values)} seeds)"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _gain_table(results: dict[str, Result]) -> str:
    rows = []
    for task, title in TASK_TITLES.items():
        values = {kind: [r["remembered"] for r in _seeds(results, task, kind)] for kind in ("short", "memory")}
        minutes = [r["training_s"] / 60 for kind in ("short", "memory") for r in _seeds(results, task, kind)]
        took = f"{min(minutes):.0f} to {max(minutes):.0f} min" if minutes else "–"
        rows.append([title, f"{CHANCE[task]:.1%}", _percent(values["short"]), _percent(values["memory"]), took])
    return _table(("task", "chance", "without memory", "with memory", "training"), rows)


ABLATIONS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "length": (
        "memory length M",
        (
            ("0", "recall-short-0"),
            ("1", "recall-length-1"),
            ("2", "recall-length-2"),
            ("4", "recall-length-4"),
            ("8", "recall-memory-0"),
        ),
    ),
    "compression": (
        "compression",
        (
            ("none", "recall-compression-none"),
            ("2x1x1", "recall-compression-2x1x1"),
            ("1x2x2", "recall-compression-1x2x2"),
            ("2x2x2", "recall-length-2"),
            ("4x2x2", "recall-compression-4x2x2"),
            ("4x4x4", "recall-compression-4x4x4"),
        ),
    ),
    "layers": (
        "layers with memory",
        (
            ("early", "recall-layers-early"),
            ("middle", "recall-layers-middle"),
            ("late", "recall-layers-late"),
            ("uniform", "recall-layers-uniform"),
            ("all", "recall-length-2"),
        ),
    ),
}


def _ablation_table(results: dict[str, Result], key: str) -> str:
    heading, runs = ABLATIONS[key]
    rows = []
    for label, name in runs:
        if name not in results:
            continue
        result = results[name]
        reach = _reach(result)
        rows.append(
            [label, str(result["support_clips"]), f"{result['remembered']:.1%}", "–" if reach is None else str(reach)]
        )
    return _table((heading, "support, clips", "accuracy once the cue is gone", "above 90 % up to"), rows)


def _reach(result: Result) -> int | None:
    """The longest delay up to which accuracy stays above 90 %, clips."""
    curve = result["by_long_delay"] or result["by_delay"]
    reach = None
    for delay in sorted(int(d) for d in curve if int(d) > 0):
        if curve[str(delay)]["accuracy"] <= 0.9:
            break
        reach = delay
    return reach


def _epic_table(results: dict[str, Result]) -> str:
    rows = []
    for title, task, metric in EPIC_ROWS:
        kinds = ([r["metrics"][metric] / 100 for r in _seeds(results, task, kind)] for kind in ("short", "memory"))
        rows.append([title, *map(_percent, kinds)])
    return _table(("metric", "without memory", "with memory"), rows)


def _pretraining_table(results: dict[str, Result]) -> str:
    cells = {
        "nano": ("recall-short-0", "recall-length-2", "recall-pretrained"),
        "larger": ("recall-small-short", "recall-small", "recall-small-pretrained"),
    }
    rows = []
    for size, names in cells.items():
        known = [results.get(name) for name in names]
        if not any(known):
            continue
        parameters = next(r["parameters"] for r in reversed(known) if r)
        shown = [f"{r['remembered']:.1%}" if r else "–" for r in known]
        rows.append([f"{size}, {parameters / 1e6:.2f} M parameters", *shown])
    return _table(("model", "without memory", "with, from random weights", "with, from the short-term model"), rows)


def _joint_table(data: Result) -> str:
    rows = []
    for row in data["rows"]:
        p, j = row["pipelined"], row["joint"]
        rows.append(
            [
                str(row["memory_length"]),
                f"{p['step_s'] * 1000:.0f} ms",
                f"{j['step_s'] * 1000:.0f} ms",
                f"{j['step_s'] / p['step_s']:.2f}",
                f"{p['peak_mib']:.0f} MiB",
                f"{j['peak_mib']:.0f} MiB",
                f"{j['peak_mib'] - p['peak_mib']:+.0f} MiB",
            ]
        )
    heads = ("M", "pipelined", "joint", "ratio", "peak memory, pipelined", "joint", "difference")
    return f"{data['model']}, batch {data['batch_size']}, {data['machine']}.\n\n{_table(heads, rows)}"


# --- Figures ------------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure((width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e4e4e4", linewidth=0.7)
        one.set_axisbelow(True)
    return figure, axes


def draw_gain(results: dict[str, Result], path: Path) -> None:
    """Accuracy once the answer is out of sight, with and without memory, every seed a point."""
    figure, (axes,) = _figure(7, 3.6)
    for i, task in enumerate(TASK_TITLES):
        for kind, colour, offset in (("short", NONE, -0.12), ("memory", MEMORY, 0.12)):
            values = [r["remembered"] * 100 for r in _seeds(results, task, kind)]
            label = {"short": "without memory", "memory": "with memory"}[kind] if i == 0 else None
            axes.plot([i + offset] * len(values), values, "o", color=colour, alpha=0.8, label=label)
        axes.hlines(CHANCE[task] * 100, i - 0.35, i + 0.35, color=GREY, linestyle="--", linewidth=1)
    axes.plot([], [], color=GREY, linestyle="--", linewidth=1, label="chance")
    axes.set_xticks(range(len(TASK_TITLES)), list(TASK_TITLES.values()))
    axes.set_xlim(-0.5, len(TASK_TITLES) - 0.5)
    axes.set_ylim(0, 103)
    axes.set_ylabel("accuracy, %")
    axes.set_title("Once the answer is out of sight", loc="left")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


CURVES = (
    ("recall-short-0", "without memory", NONE),
    ("recall-length-2", "nano, M = 2", MEMORY),
    ("recall-memory-0", "nano, M = 8", FIFTH),
    ("recall-small", "larger, M = 2", THIRD),
    ("recall-plain", "plain, M = 2", FOURTH),
)


def draw_delays(results: dict[str, Result], path: Path) -> None:
    """Accuracy against delay, the predicted support marked."""
    figure, (axes,) = _figure(7.6, 3.9)
    for name, label, colour in CURVES:
        if name in results and results[name]["by_long_delay"]:
            support = results[name]["support_clips"]
            _curve(axes, results[name]["by_long_delay"], label, colour)
            if support:
                axes.axvline(support + 0.5, color=colour, linestyle=":", linewidth=1.4)
                axes.annotate(
                    f"support {support}",
                    (support + 0.5, 101),
                    color=colour,
                    fontsize=8,
                    ha="center",
                    va="bottom",
                    annotation_clip=False,
                )
    axes.axhline(CHANCE["recall"] * 100, color=GREY, linestyle="--", linewidth=1, label="chance")
    axes.set_xlabel("clips since the cue")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 101)
    axes.set_xlim(left=-0.3)
    axes.set_title("Recall: how far back memory reaches", loc="left", pad=18)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def draw_ablations(results: dict[str, Result], path: Path) -> None:
    """Accuracy against delay for memory length, compression and layers."""
    figure, panels = _figure(12, 3.6, 3)
    for axes, (heading, runs) in zip(panels, ABLATIONS.values(), strict=True):
        for (label, name), colour in zip(runs, PALETTE, strict=False):
            if name in results and results[name]["by_long_delay"]:
                _curve(axes, results[name]["by_long_delay"], label, colour)
        axes.axhline(CHANCE["recall"] * 100, color=GREY, linestyle="--", linewidth=1)
        axes.set_ylim(0, 101)
        axes.set_xlabel("clips since the cue")
        axes.set_title(heading, loc="left")
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("accuracy, %")
    figure.savefig(path)


def _curve(axes: Axes, by_delay: dict[str, Any], label: str, colour: str) -> None:
    points = [(int(d), v["accuracy"] * 100) for d, v in by_delay.items() if v["clips"] >= MIN_CLIPS]
    axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3.5, linewidth=1.6, label=label)


def draw_joint(data: Result, path: Path) -> None:
    """Time and peak memory of a training step against memory length, both ways of compressing."""
    figure, panels = _figure(9, 3.4, 2)
    lengths = [row["memory_length"] for row in data["rows"]]
    for axes, key, scale, unit in ((panels[0], "step_s", 1.0, "s a step"), (panels[1], "peak_mib", 1.0, "MiB")):
        for way, colour in (("joint", NONE), ("pipelined", MEMORY)):
            values = [row[way][key] * scale for row in data["rows"]]
            axes.plot(lengths, values, "o-", color=colour, markersize=4, linewidth=1.6, label=way)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("memory length M")
        axes.set_ylabel(unit)
    panels[0].set_title("Time of a training step", loc="left")
    panels[1].set_title("Peak memory of the process", loc="left")
    panels[0].legend(frameon=False)
    figure.savefig(path)
