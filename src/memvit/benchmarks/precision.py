"""What number formats with fewer bits cost: accuracy in the shell game, and the error of logits.

    python -m memvit.benchmarks.precision --games 40 --out docs/results/precision.json

Both models of the demo watch the same games in every format, each with its own memory. What counts are the turns in which the
ball cannot be seen. "bfloat16" is autocast of float32 weights. "bfloat16 throughout" has weights, clips and memory in bfloat16,
without autocast; it plays no games, as RoI align takes no bfloat16 on CPUs. "int8" rounds the linear layers of all blocks as
dynamic quantisation does and computes in float32: it shows the accuracy that int8 would have, not its speed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from memvit.benchmarks.machine import describe_machine
from memvit.demo.shell_game import load_models, record_game, watch
from memvit.kernels import reference_kernels
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.models.zoo import create_model

NumberFormat = Literal["float32", "bfloat16", "bfloat16 throughout", "int8"]
FORMATS: tuple[NumberFormat, ...] = get_args(NumberFormat)
GAME_FORMATS: tuple[NumberFormat, ...] = ("float32", "bfloat16", "int8")

SIZE, FPS = 128, 24.0  # of the games; the models see 64 pixels


class Int8Linear(nn.Module):
    """What dynamic quantisation makes of a linear layer, computed in float32.

    Weights are 8-bit integers times a scale per output feature, activations 8-bit integers times a scale per token, found
    anew for every token; all without offset.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", round_to_int8(linear.weight.detach()))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(round_to_int8(x), cast(Tensor, self.weight), self.bias)


def round_to_int8(x: Tensor) -> Tensor:
    """The nearest of 255 levels, evenly spaced between plus and minus the largest magnitude of a row: (..., n) of floats."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / 127
    return (x / scale).round() * scale


class InFormat(nn.Module):
    """A copy of a model that computes in a number format; called like the model, it answers in float32.

    Attributes:
        logits: those of every step so far.
    """

    def __init__(self, model: MeMViT, number_format: NumberFormat) -> None:
        super().__init__()
        self.model, self.config, self.number_format = copy.deepcopy(model).eval(), model.config, number_format
        self.logits: list[Tensor] = []
        self.dtype = torch.bfloat16 if number_format == "bfloat16 throughout" else torch.float32
        self.model.to(self.dtype)
        if number_format == "int8":
            _replace_linears(self.model.blocks)  # not the few of the head

    def forward(
        self, clips: Tensor, memory: Memory | None = None, boxes: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Memory]:
        """See `MeMViT.forward`."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.number_format == "bfloat16"):
            logits, memory = self.model(clips.to(self.dtype), memory, boxes)
        self.logits.append(logits.float())
        return self.logits[-1], memory


def _replace_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            _replace_linears(child)


@dataclass(frozen=True)
class FormatResult:
    """How a model in a number format did in the hidden turns, compared with itself in float32.

    Attributes:
        right: turns in which it pointed to the ball.
        accuracy: per cent of the turns.
        difference: of the accuracy, points; below 0: worse than float32.
        interval: where the true difference lies with 95 % probability, points; see `paired_interval`.
        same_guess: share of turns with the guess of float32, right or wrong.
        largest_error: of a logit.
        relative_error: of the logits of all turns, ||a - b|| / ||b||.
    """

    right: int
    accuracy: float
    difference: float
    interval: tuple[float, float]
    same_guess: float
    largest_error: float
    relative_error: float


def play(
    num_games: int, duration_s: int = 64, seed: int = 0, formats: Sequence[NumberFormat] = GAME_FORMATS
) -> dict[str, Any]:
    """Lets the demo's models follow the ball in games and number formats.

    Args:
        num_games: how many, of consecutive seeds.
        duration_s: length of each, whole seconds.
        seed: of the first game.
        formats: what to compare with float32.

    Returns:
        {"games", "duration_s", "seed", "hidden_turns", "models": {model: {format: a `FormatResult` as a dict}}}.
    """
    names: tuple[NumberFormat, ...] = ("float32", *(f for f in formats if f != "float32"))
    players = {(name, f): InFormat(model, f) for name, model in load_models().items() for f in names}
    guesses: dict[tuple[str, str], list[int]] = {key: [] for key in players}
    holders: list[int] = []
    games: list[int] = []
    # `watch` asks its models for their config and to be called.
    contenders = {"/".join(key): cast(MeMViT, player) for key, player in players.items()}
    with tempfile.TemporaryDirectory() as folder:
        for game in range(num_games):
            _, scene = record_game(Path(folder), seed=seed + game, duration_s=duration_s, size=SIZE, fps=FPS)
            hidden = [turn for turn in watch(Path(folder), scene, contenders) if turn.hidden_s > 0]
            holders += [turn.holder for turn in hidden]
            games += [game] * len(hidden)
            for key, own in guesses.items():
                own += [turn.guess("/".join(key)) for turn in hidden]

    def compare(name: str, number_format: NumberFormat) -> FormatResult:
        key, base = (name, number_format), (name, "float32")
        right, base_right = (
            [guess == holder for guess, holder in zip(guesses[k], holders, strict=True)] for k in (key, base)
        )
        own, exact = torch.cat(players[name, number_format].logits), torch.cat(players[name, "float32"].logits)
        same = sum(a == b for a, b in zip(guesses[key], guesses[base], strict=True))
        return FormatResult(
            right=sum(right),
            accuracy=100 * sum(right) / len(right),
            difference=100 * (sum(right) - sum(base_right)) / len(right),
            interval=paired_interval(right, base_right, games),
            same_guess=same / len(right),
            largest_error=float((own - exact).abs().max()),
            relative_error=relative_error(own, exact),
        )

    results = {name: {f: asdict(compare(name, f)) for f in names} for name in dict.fromkeys(key[0] for key in players)}
    return {
        "games": num_games,
        "duration_s": duration_s,
        "seed": seed,
        "hidden_turns": len(holders),
        "models": results,
    }


def paired_interval(own: Sequence[bool], base: Sequence[bool], groups: Sequence[int]) -> tuple[float, float]:
    """Where the difference of two accuracies on the same questions lies with 95 % probability, in points.

    The wider of two: Agresti and Min's for matched pairs (Statistics in Medicine, 2005), which stays honest where the two
    hardly ever differ, and the one from the spread among groups, within which questions may depend on each other.

    Args:
        own: whether each question was answered rightly.
        base: the same of what it is compared with.
        groups: which group a question belongs to.
    """
    n = len(own)
    gained = sum(a and not b for a, b in zip(own, base, strict=True))
    lost = sum(b and not a for a, b in zip(own, base, strict=True))
    center = (gained - lost) / (n + 2)
    half = 1.96 * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)

    mean = (gained - lost) / n
    residuals = dict.fromkeys(groups, 0.0)
    for a, b, group in zip(own, base, groups, strict=True):
        residuals[group] += a - b - mean
    k = len(residuals)
    half_groups = 1.96 * math.sqrt(sum(r * r for r in residuals.values()) * k / max(k - 1, 1)) / n
    low, high = max((center - half, center + half), (mean - half_groups, mean + half_groups), key=lambda i: i[1] - i[0])
    return 100 * low, 100 * high


def relative_error(own: Tensor, exact: Tensor) -> float:
    """||own - exact|| / ||exact||."""
    return float((own - exact).norm() / exact.norm())


@torch.inference_mode()
def logit_errors(model: MeMViT, num_clips: int = 6, seed: int = 0) -> dict[str, list[float]]:
    """Relative errors of the logits against float32, clip by clip of a stream of noise, with memory.

    "float32 of rounded inputs" tells what bfloat16 costs before any computation: weights and clips are rounded once, and
    everything else is float32. "bfloat16, plain PyTorch" is autocast without this package's kernels.

    Args:
        model: of clips, with one head.
        num_clips: length of the stream.
        seed: of the clips.
    """
    config = model.config
    size = (config.in_channels, config.num_frames, config.crop_size, config.crop_size)
    clips = torch.randn(num_clips, 1, *size, generator=torch.Generator().manual_seed(seed))
    rounded = copy.deepcopy(model).to(torch.bfloat16).float()

    def stream(player: InFormat, clips: Tensor = clips) -> list[Tensor]:
        memory: Memory | None = None
        for clip in clips:
            _, memory = player(clip, memory)
        return player.logits

    exact = stream(InFormat(model, "float32"))
    found: dict[str, list[Tensor]] = {f: stream(InFormat(model, f)) for f in FORMATS[1:]}
    with reference_kernels():
        plain = stream(InFormat(model, "bfloat16"))
    found["bfloat16, plain PyTorch"] = plain
    found["float32 of rounded inputs"] = stream(InFormat(rounded, "float32"), clips.bfloat16().float())
    return {name: [relative_error(a, b) for a, b in zip(logits, exact, strict=True)] for name, logits in found.items()}


def report(result: Mapping[str, Any], console: Console) -> None:
    """Prints what `main` measured."""
    game = result["shell_game"]
    table = Table(title=f"Accuracy in {game['hidden_turns']} turns with a hidden ball, %")
    for heading in ("model", "format", "accuracy", "difference", "95 % interval", "same guess", "logits' error"):
        table.add_column(heading, justify="left" if heading in ("model", "format") else "right")
    for name, formats in game["models"].items():
        for number_format, row in formats.items():
            low, high = row["interval"]
            is_base = number_format == "float32"
            compared = (f"{row['difference']:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{row['same_guess']:.2%}")
            compared = ("", "", "") if is_base else compared
            error = "" if is_base else f"{row['relative_error']:.4f}"
            table.add_row(name, number_format, f"{row['accuracy']:.2f}", *compared, error)
    console.print(table)
    logits = result["logits"]
    table = Table(
        title=f"{logits['model']}, random weights: relative error of the logits, {logits['clips']} clips of a stream"
    )
    for heading in ("format", "first", "last", "largest"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for name, errors in logits["relative_errors"].items():
        table.add_row(name, *(f"{error:.4f}" for error in (errors[0], errors[-1], max(errors))))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=40)
    parser.add_argument("--duration", type=int, default=64, help="of a game, whole seconds, 4 or more")
    parser.add_argument("--seed", type=int, default=0, help="of the first game")
    parser.add_argument("--model", default="memvit_16x4", help="whose logits to compare, with random weights")
    parser.add_argument("--clips", type=int, default=6, help="of the stream for that")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args(argv)
    if options.games < 1 or options.duration < 4 or options.clips < 1:
        parser.error("--games and --clips take 1 or more, --duration 4 or more")
    torch.manual_seed(0)
    model = create_model(options.model, num_classes=400)
    result = {
        "machine": describe_machine(torch.device("cpu")),
        "shell_game": play(options.games, options.duration, options.seed),
        "logits": {
            "model": options.model,
            "clips": options.clips,
            "relative_errors": logit_errors(model, options.clips),
        },
    }
    report(result, Console())
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
