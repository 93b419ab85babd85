"""What a machine is and how fast it multiplies and copies: the measure of everything that runs on it."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision

from memvit.benchmarks.timing import synchronize

_SQUARE = {"cpu": 2048, "cuda": 8192}
# The multilayer perceptron of MViT's third stage, which most of its blocks are in: rows, dim, hidden dim.
_ROWS = {"cpu": (64, 98), "cuda": (256, 196)}
_DIM, _HIDDEN_DIM = 384, 1536
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Processor, threads, versions, and the GPU if the device is one."""
    machine: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": properties.name,
            "gpu_memory_mib": properties.total_memory // 2**20,
            "cuda": torch.version.cuda or "",
            "cudnn": torch.backends.cudnn.version() or 0,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    return machine


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Rates:
    """The best that a machine was seen to do.

    Attributes:
        flops_per_s: floating point operations per second in matrix products, by number format.
        matmuls: of which kind the fastest were, by number format: every kind tried and its rate.
        bytes_per_s: read and written, copying a large tensor.
    """

    flops_per_s: dict[str, float]
    matmuls: dict[str, dict[str, float]]
    bytes_per_s: float

    def best(self, other: Rates) -> Rates:
        """The better of two measurements of the same machine, rate by rate: one that was disturbed says too little."""
        matmuls = {
            dtype: {kind: max(rate, other.matmuls[dtype][kind]) for kind, rate in rates.items()}
            for dtype, rates in self.matmuls.items()
        }
        flops_per_s = {dtype: max(rates.values()) for dtype, rates in matmuls.items()}
        return Rates(flops_per_s, matmuls, max(self.bytes_per_s, other.bytes_per_s))


@torch.inference_mode()
def measure_rates(device: torch.device, dtypes: tuple[str, ...], num_runs: int = 8) -> Rates:
    """The best rates of matrix products in each number format, and of copying.

    Products are of large squares and of the size of a layer of the model, through `torch.mm` and as convolutions of 1 x 1,
    which on some CPUs another, faster library computes.
    """
    matmuls = {name: _matmul_rates(device, getattr(torch, name), num_runs) for name in dtypes}
    source = torch.zeros(_COPY_BYTES.get(device.type, 2**28) // 4, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), device, num_runs)
    best = {name: max(rates.values()) for name, rates in matmuls.items()}
    return Rates(best, matmuls, 2 * source.nbytes / copy_s)


def _matmul_rates(device: torch.device, dtype: torch.dtype, num_runs: int) -> dict[str, float]:
    side, grid = _SQUARE.get(device.type, 2048), _ROWS.get(device.type, (64, 98))
    square = int(side**0.5) // 2 * 2
    sizes = {"square": ((square, -(-side // square)), side, side), "layer": (grid, _DIM, _HIDDEN_DIM)}
    rates: dict[str, float] = {}
    for name, ((height, width), dim, out_dim) in sizes.items():
        rows = torch.randn(height * width, dim, device=device, dtype=dtype)
        weight = torch.randn(out_dim, dim, device=device, dtype=dtype)
        volume = rows.view(1, height, width, dim).permute(0, 3, 1, 2)  # channels last
        filters = weight[:, :, None, None]
        flops = 2 * len(rows) * dim * out_dim
        kinds = {
            "mm": functools.partial(torch.mm, rows, weight.t()),
            "1x1 convolution": functools.partial(F.conv2d, volume, filters),
        }
        # On GPUs convolutions round float32 to TF32 unless they are told not to; matrix products do as they are told.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=torch.backends.cuda.matmul.allow_tf32):
            rates |= {f"{name}, {kind}": flops / _best_s(product, device, num_runs) for kind, product in kinds.items()}
    return rates


def _best_s(step: Callable[[], object], device: torch.device, num_runs: int) -> float:
    """Seconds of the fastest of several calls; the first ones, which set things up, among them."""
    best_s = float("inf")
    for _ in range(num_runs):
        synchronize(device)
        began_s = time.perf_counter()
        step()
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - began_s)
    return best_s
