"""`memvit info`: a model in figures."""

from __future__ import annotations

import json as jsons
from typing import Literal

from memvit.commands.models import choose_config
from memvit.commands.terminal import stdout_console


def info(
    model: str,
    *,
    num_classes: list[int] | None = None,
    memory_length: int | None = None,
    memory_gap: int | None = None,
    memory_layers: list[str] | None = None,
    memory_compression: Literal["pipelined", "joint", "none"] | None = None,
    num_frames: int | None = None,
    sampling_rate: int | None = None,
    crop_size: int | None = None,
    fps: float | None = None,
    json: bool = False,
) -> int:
    """Show what a model costs and sees: parameters, multiply-accumulates per clip, temporal support; and which kernels run here.

    Examples:
        memvit info memvit_16x4 --memory_length 4
        memvit info runs/kitchen/version_0/model --json

    Args:
        model: a preset, published weights, a directory with a model, or a repository of the Hugging Face Hub.
        num_classes: classes, of each head.
        memory_length: past clips that a memory layer attends, M. 0: no memory.
        memory_gap: attend every so-many-th past clip.
        memory_layers: blocks that remember: all, early, middle, late, uniform, or their numbers.
        memory_compression: how memory is compressed.
        num_frames: frames of a clip.
        sampling_rate: a clip takes every so-many-th frame.
        crop_size: pixels of a frame's side.
        fps: frame rate that the sampling rate refers to.
        json: print JSON.
    """
    from memvit.benchmarks.cost import describe, format_summary
    from memvit.kernels.status import status

    config = choose_config(
        model,
        num_classes=num_classes,
        memory_length=memory_length,
        memory_gap=memory_gap,
        memory_layers=_layers(memory_layers),
        memory_compression=memory_compression,
        num_frames=num_frames,
        sampling_rate=sampling_rate,
        crop_size=crop_size,
        fps=fps,
    )
    summary, head = describe(config, model), config.head
    if json:
        says = {"head_names": head.names, "anticipation_s": head.anticipation_s, "kernels": status()}
        print(jsons.dumps(summary.to_dict() | says, indent=2))
        return 0
    table = format_summary(summary)
    if head.names:
        table.add_row("heads", ", ".join(head.names))
    if head.anticipation_s:
        seen = {"clip": "the end of a clip", "frames": "the last frame of a token time"}[head.task]
        table.add_row("anticipates", f"what goes on {head.anticipation_s:g} s after {seen}")
    for i, (part, implementation) in enumerate(status().items()):
        table.add_row("kernels" if i == 0 else "", f"{part}: {implementation}")
    stdout_console().print(table)
    return 0


def _layers(given: list[str] | None) -> str | list[int] | None:
    """A placement's name or blocks' numbers, as the config takes them."""
    if given is None:
        return None
    if all(layer.isdecimal() for layer in given):
        return [int(layer) for layer in given]
    if len(given) > 1:
        raise ValueError(
            f"--memory_layers {' '.join(given)}: give one of all, early, middle, late, uniform, or numbers"
        )
    return given[0]
