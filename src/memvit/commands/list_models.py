"""`memvit models`: what there is by name."""

from __future__ import annotations

import json as jsons
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memvit.commands.terminal import stdout_console

if TYPE_CHECKING:
    from rich.table import Table

# Multiply-accumulates of one clip with full memory, as `memvit.benchmarks.cost.count_macs` counts them: counting them all
# takes ten seconds, which is too long for a look at a list. A test compares.
MACS = {
    "mvit_16x4": 57_180_460_224,
    "memvit_16x4": 58_493_271_360,
    "mvit_16x4_ava": 57_909_445_824,
    "memvit_16x4_ava": 59_488_906_560,
    "mvit_24_32x3": 205_140_682_752,
    "memvit_24_32x3": 212_434_281_600,
    "mvit_24_32x3_ava": 205_869_514_752,
    "memvit_24_32x3_ava": 213_429_763_200,
    "memvit_tiny": 1_691_929_152,
    "memvit_nano": 29_929_984,
    "memvit_vit_small": 59_063_682_048,
}


def models(pattern: str | None = None, *, json: bool = False) -> int:
    """List the models by name: size, compute, what a clip is, how far back they see, and published weights.

    Weights are used as --model NAME.TAG, by the names in the second table; without a tag a model is random. Those that are
    here already are marked; others are downloaded when they are first used.

    Examples:
        memvit models
        memvit models "*_ava" --json

    Args:
        pattern: only names that match it, where * stands for anything.
        json: print JSON.
    """
    found = _describe(pattern)
    if not found:
        from memvit.models.zoo import list_models

        raise ValueError(f"no model is called {pattern}; there are {', '.join(list_models())}")
    if json:
        print(jsons.dumps(found, indent=2))
    else:
        _print(found)
    return 0


def _describe(pattern: str | None) -> list[dict[str, Any]]:
    import torch

    from memvit.models.memvit import MeMViT
    from memvit.models.presets import PRESETS
    from memvit.models.zoo import is_cached, list_models, list_weights

    found = []
    for name in list_models(pattern):
        config = PRESETS[name]
        with torch.device("meta"):  # shapes without values
            parameters = sum(parameter.numel() for parameter in MeMViT(config).parameters())
        found.append(
            {
                "name": name,
                "task": config.head.task,
                "parameters": parameters,
                "macs": MACS[name],
                "num_frames": config.num_frames,
                "sampling_rate": config.sampling_rate,
                "fps": config.fps,
                "crop_size": config.crop_size,
                "clip_duration_s": config.clip_duration_s,
                "memory_length": config.memory.length,
                "support_clips": config.support_clips,
                "support_s": config.support_s,
                "weights": [
                    {
                        "name": weights.name,
                        "dataset": weights.dataset,
                        "metric": weights.metric,
                        "licence": weights.licence,
                        "cached": is_cached(weights),
                    }
                    for weights in list_weights()
                    if weights.preset == name
                ],
            }
        )
    return found


def _print(found: list[dict[str, Any]]) -> None:
    table = _table(("model", "parameters", "GMACs a clip", "clip", "support"), num_words=1)
    published = _table(("weights", "trained on", "licence", "here"), num_words=4)
    for model in found:
        table.add_row(
            model["name"],
            f"{model['parameters'] / 1e6:.1f} M",
            f"{model['macs'] / 1e9:,.{1 if model['macs'] >= 1e9 else 2}f}",
            f"{model['num_frames']} x {model['sampling_rate']}, {model['clip_duration_s']:.1f} s",
            f"{model['support_s']:.1f} s",
        )
        for weights in model["weights"]:
            metric = f", {weights['metric']}" if weights["metric"] else ""
            here = "yes" if weights["cached"] else "no"
            published.add_row(weights["name"], weights["dataset"] + metric, weights["licence"], here)
    console = stdout_console()
    console.print(table)
    if published.row_count:
        console.print()
        console.print(published)
    console.print(
        "\nclip: frames, one in so many, and how long that is; support: how far back a clip can matter, itself included.\n"
        "memvit info NAME says more.",
        style="dim",
        soft_wrap=True,
    )


def _table(headings: Sequence[str], num_words: int) -> Table:
    """A table whose first columns are words and whose others are figures."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(
            heading,
            style="bold" if index == 0 else None,
            justify="left" if index < num_words else "right",
            no_wrap=True,
        )
    return table
