"""How long one clip takes, beside torchvision's MViT of the same size, in one run on one machine.

python -m memvit.benchmarks.speed --model memvit_16x4 --threads 2
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torchvision.models.video import mvit_v2_s

from memvit.models.zoo import create_model


def time_clip(step: Callable[[], object], num_warmup: int = 2, num_runs: int = 7) -> list[float]:
    """Seconds of each of `num_runs` calls, after `num_warmup` that are not counted."""
    for _ in range(num_warmup):
        step()
    seconds = []
    for _ in range(num_runs):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


@torch.inference_mode()
def compare(model_name: str = "memvit_16x4", num_runs: int = 7) -> dict[str, list[float]]:
    """Seconds per clip, batch 1, float32: ours with full memory, ours without memory, and torchvision's mvit_v2_s.

    The contenders take turns, so that a machine that slows down slows down all of them.
    """
    model = create_model(model_name).eval()
    config = model.config
    plain = create_model(model_name, memory_length=0).eval()
    theirs = mvit_v2_s().eval()
    clip = torch.randn(1, 3, config.num_frames, config.crop_size, config.crop_size)
    reference_clip = torch.randn(1, 3, 16, 224, 224)
    memory = None
    for _ in range(config.memory.num_slots + 1):
        _, memory = model(clip, memory)
    steps: dict[str, Callable[[], object]] = {
        f"{model_name}, M={config.memory.length}": lambda: model(clip, memory),
        f"{model_name}, no memory": lambda: plain(clip),
        "torchvision mvit_v2_s": lambda: theirs(reference_clip),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_index in range(num_runs):
        for name, step in steps.items():
            seconds[name] += time_clip(step, num_warmup=2 if round_index == 0 else 0, num_runs=1)
    return seconds


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memvit_16x4")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds = compare(arguments.model, arguments.runs)
    baseline = statistics.median(seconds["torchvision mvit_v2_s"])
    table = Table("", "median ms", "min", "max", "ratio", title=f"one clip, float32, {arguments.threads} threads")
    for name, runs in seconds.items():
        median = statistics.median(runs)
        values = (1e3 * median, 1e3 * min(runs), 1e3 * max(runs))
        table.add_row(name, *(f"{v:.0f}" for v in values), f"{median / baseline:.2f}")
    console = Console()
    console.print(table)
    console.print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
