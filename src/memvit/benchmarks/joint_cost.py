"""Pipelined against joint compression: time and peak memory of a training step as memory grows (paper, section 4.3).

    python -m memvit.benchmarks.joint_cost --model memvit_tiny --out docs/results/joint_cost.json

Every measurement has a process of its own, because only then does peak memory mean anything; in it, both ways of compressing
would get the same clips. The contenders take turns, so that a machine that slows down slows down all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from memvit.benchmarks.peak_memory import PeakMemory
from memvit.models.zoo import create_model

LENGTHS = (1, 2, 4, 8, 16, 32)
WAYS = ("pipelined", "joint")
NUM_ROUNDS = 2
NUM_STEPS = 4


def measure(model_name: str, way: str, length: int, batch_size: int, device_name: str) -> dict[str, float]:
    """Median seconds of a training step with full memory, and the peak memory of the process in MiB."""
    device = torch.device(device_name)
    torch.manual_seed(0)
    model = create_model(model_name, num_classes=10, memory_length=length, memory_compression=way).to(device).train()
    config = model.config
    clips = torch.randn(batch_size, 3, config.num_frames, config.crop_size, config.crop_size, device=device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)
    # Every slot has a clip: what a clip in the middle of a long video costs.
    memory = model.new_memory(batch_size)
    for state in (memory.valid, memory.filled):
        state.fill_(True)
    seconds = []
    with PeakMemory(device) as peak:
        for _ in range(NUM_STEPS + 1):
            began_s = time.perf_counter()
            logits, memory = model(clips, memory)
            torch.nn.functional.cross_entropy(logits, labels).backward()
            model.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began_s)
    return {"step_s": statistics.median(seconds[1:]), "peak_mib": peak.bytes / 2**20}


def compare(model_name: str, batch_size: int, device: str, console: Console) -> dict[str, Any]:
    """Both ways at every length, in processes that take turns."""
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _ in range(NUM_ROUNDS):
        for length in LENGTHS:
            for way in WAYS:
                command = [
                    sys.executable,
                    "-m",
                    "memvit.benchmarks.joint_cost",
                    "--model",
                    model_name,
                    "--device",
                    device,
                ]
                command += ["--batch_size", str(batch_size), "--one", way, str(length)]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found.setdefault((length, way), []).append(json.loads(output))
                console.print(f"M = {length}, {way}: {output.strip()}", markup=False)
    rows = []
    for length in LENGTHS:
        row: dict[str, Any] = {"memory_length": length}
        for way in WAYS:
            times = [one["step_s"] for one in found[length, way]]
            row[way] = {
                "step_s": statistics.median(times),
                "step_s_spread": [min(times), max(times)],
                "peak_mib": statistics.median(one["peak_mib"] for one in found[length, way]),
            }
        rows.append(row)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    if device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return {"model": model_name, "batch_size": batch_size, "machine": machine, "rows": rows}


def format_table(result: dict[str, Any]) -> Table:
    """Time and memory of both, and their ratio."""
    table = Table(title=f"Training step of {result['model']}, batch {result['batch_size']}")
    for heading in ("M", "pipelined s", "joint s", "ratio", "pipelined MiB", "joint MiB", "ratio"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        p, j = row["pipelined"], row["joint"]
        table.add_row(
            str(row["memory_length"]),
            f"{p['step_s']:.3f}",
            f"{j['step_s']:.3f}",
            f"{j['step_s'] / p['step_s']:.2f}",
            f"{p['peak_mib']:.0f}",
            f"{j['peak_mib']:.0f}",
            f"{j['peak_mib'] / p['peak_mib']:.2f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memvit_tiny")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "LENGTH"), help="one measurement, as JSON")
    options = parser.parse_args(argv)
    if options.one:
        way, length = options.one
        print(json.dumps(measure(options.model, way, int(length), options.batch_size, options.device)))
        return 0
    console = Console(highlight=False)
    result = compare(options.model, options.batch_size, options.device, console)
    console.print(format_table(result))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
