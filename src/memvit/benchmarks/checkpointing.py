"""What activation checkpointing saves and costs: memory and time of a training step under every policy.

    python -m memvit.benchmarks.checkpointing --model memvit_16x4 --out docs/results/checkpointing.json

A step is forward and backward, without optimiser, in train mode, with memory. `kept` is what lies between the two; `peak` the
most at any time, without weights, their gradients, and what was there before. On a GPU both come from PyTorch's allocator,
elsewhere from counting the tensors that operators return. `dispatch` is the time of a step on clips so small that the
operators themselves take none of it: what the CPU needs to tell a GPU what to do. torchvision's mvit_v2_s, which has no memory
and is of the size of memvit_16x4, stands beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memvit.models.checkpointing import Recompute
from memvit.models.memvit import MeMViT
from memvit.models.zoo import create_model

TORCHVISION = "mvit_v2_s"
Step = Callable[[], Tensor]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators have returned and that still exist.

    Attributes:
        now: bytes at this moment.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._known:
            return
        self._known.add(address)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, address, storage.nbytes())

    def _forget(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self.now -= num_bytes


def measure(model_name: str, batch_size: int, dtype: torch.dtype, device: str, rounds: int) -> list[dict[str, Any]]:
    """One record per policy, and one of torchvision's model: policy, kept_mib, peak_mib, step_s, dispatch_s.

    Policies take turns in every round, so that a machine that slows down slows down all of them; times are medians.
    """
    contenders: dict[str, tuple[nn.Module, Step, Step | None]] = {}
    for policy in get_args(Recompute):
        torch.manual_seed(0)
        model = create_model(model_name, num_classes=400).train().to(device)
        model.activation_checkpointing = policy
        config = model.config
        side = 2 * config.patch_kernel[1]
        sizes = [(config.num_frames, config.crop_size), (2 * config.patch_stride[0], side)]
        whole, tiny = (_step(model, batch_size, size, dtype, device) for size in sizes)
        contenders[policy] = model, whole, tiny
    if model_name.endswith("16x4"):
        from torchvision.models.video import mvit_v2_s

        other = mvit_v2_s(weights=None).train().to(device)
        contenders[TORCHVISION] = other, _step(other, batch_size, (16, 224), dtype, device), None
    records: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    dispatches: dict[str, list[float]] = {name: [] for name in contenders}
    for name, (_, step, _) in contenders.items():
        _seconds(step, device)  # gradients are there from now on
        kept, peak = _memory(step, device)
        records[name] = {"policy": name, "kept_mib": kept / 2**20, "peak_mib": peak / 2**20}
    for _ in range(rounds):
        for name, (_, step, small) in contenders.items():
            times[name].append(_seconds(step, device))
            if small is not None:
                dispatches[name] += [_seconds(small, device) for _ in range(3)]
    for name, record in records.items():
        record["step_s"] = statistics.median(times[name])
        record["dispatch_s"] = statistics.median(dispatches[name]) if dispatches[name] else None
    return list(records.values())


def _step(model: nn.Module, batch_size: int, size: tuple[int, int], dtype: torch.dtype, device: str) -> Step:
    """What computes the loss of clips of (frames, side)."""
    clips = torch.randn(batch_size, 3, size[0], size[1], size[1], device=device)
    memory = model.new_memory(batch_size, size[0], size[1], size[1]) if isinstance(model, MeMViT) else None

    def run() -> Tensor:
        with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32):
            logits = model(clips, memory)[0] if isinstance(model, MeMViT) else model(clips)
        return logits.float().square().mean()

    return run


def _memory(step: Step, device: str) -> tuple[int, int]:
    """Bytes between forward and backward, and at most."""
    if device == "cpu":
        with LiveBytes() as live:
            loss = step()
            kept = live.now
            loss.backward()
        return kept, live.peak
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = step()
    kept = torch.cuda.memory_allocated() - before
    loss.backward()
    return kept, torch.cuda.max_memory_allocated() - before


def _seconds(step: Step, device: str) -> float:
    began = time.perf_counter()
    step().backward()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memvit_16x4")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    records = measure(options.model, options.batch_size, getattr(torch, options.dtype), options.device, options.rounds)
    table = Table(title=f"{options.model}, batch {options.batch_size}, {options.dtype}, {options.device}")
    for heading in ("recomputed", "kept, MiB", "peak, MiB", "step, s", "dispatch, ms"):
        table.add_column(heading, justify="right")
    for record in records:
        dispatch = "" if record["dispatch_s"] is None else f"{1000 * record['dispatch_s']:.0f}"
        table.add_row(
            *(record["policy"], f"{record['kept_mib']:.0f}", f"{record['peak_mib']:.0f}"),
            *(f"{record['step_s']:.2f}", dispatch),
        )
    Console().print(table)
    if options.out is not None:
        gpu = f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"
        result = {
            "model": options.model,
            "batch_size": options.batch_size,
            "dtype": options.dtype,
            "machine": f"{machine}, torch {torch.__version__}",
            "policies": records,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
