"""`memvit doctor`: what is here, and whether it works."""

from __future__ import annotations

import json as jsons
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from memvit.commands.terminal import reason, stdout_console

Status = Literal["ok", "failed", "missing", "info"]

PACKAGES = ("torch", "torchvision", "av", "numpy", "safetensors", "huggingface_hub", "lightning")
DECODERS = ("h264", "hevc", "vp9", "av1")
ENCODER = "libx264"
EXTRAS = {"rfdetr": "detect --detector rfdetr_*", "shtab": "completion", "triton": "kernels on GPUs"}
LEAST_FREE_GB = 1.0
SELF_TEST_MODEL, SELF_TEST_S = "memvit_tiny", 6


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: ok; failed: memvit does not work as it should; missing: something optional is not here; info: a fact.
        detail: what was found, and what to do.
    """

    name: str
    status: Status
    detail: str


def doctor(*, json: bool = False) -> int:
    """Look at what memvit runs on, and try it: versions, devices, codecs, kernels, caches, and a video through a small model.

    Takes about ten seconds and changes nothing. Exit code 0: what memvit needs works; 1: something does not. What is only
    missing (a GPU, a compiler, an optional package) is no failure.

    Examples:
        memvit doctor
        memvit doctor --json > report.json

    Args:
        json: print JSON.
    """
    checks: list[Check] = []
    console = stdout_console()
    for check in run_checks():
        checks.append(check)
        if not json:
            _print(check)
    failed = [check.name for check in checks if check.status == "failed"]
    if json:
        print(jsons.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        summary = f"failed: {', '.join(failed)}" if failed else "all is well"
        console.print(summary, style="red" if failed else "green", markup=False)
    return 1 if failed else 0


def run_checks() -> Iterator[Check]:
    """All checks, as they are done; what goes wrong in one is its result."""
    groups: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("versions", _versions),
        ("devices", _devices),
        ("codecs", _codecs),
        ("kernels", _kernels),
        ("torch.compile", _compiler),
        ("caches", _caches),
        ("optional packages", _extras),
        ("self-test", _self_test),
    )
    for name, group in groups:
        try:
            yield from group()
        except Exception as error:  # a broken installation fails in any way
            yield Check(name, "failed", reason(error))


def _versions() -> Iterator[Check]:
    import memvit

    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield Check("memvit", "ok", f"{memvit.__version__}, Python {platform.python_version()}, {system}")
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        yield Check("packages", "failed", f"not installed: {', '.join(missing)}; install memvit again")
    else:
        yield Check("packages", "ok", ", ".join(found))


def _devices() -> Iterator[Check]:
    import torch

    bits = torch.backends.cpu.get_cpu_capability()
    yield Check("CPU", "ok", f"{torch.get_num_threads()} threads, {bits}")
    if not torch.cuda.is_available():
        yield Check("GPU", "missing", "none that PyTorch can use; everything runs on the CPU")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        total = torch.ones(1000, device=f"cuda:{index}").sum().item()
        status: Status = "ok" if total == 1000 else "failed"
        yield Check(f"GPU cuda:{index}", status, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def _codecs() -> Iterator[Check]:
    import av

    versions = ", ".join(f"{name} {'.'.join(map(str, numbers))}" for name, numbers in av.library_versions.items())
    yield Check("FFmpeg", "info", f"PyAV {av.__version__} with {versions}")
    missing = [name for name in DECODERS if not _has_codec(name, "r")]
    if missing:
        yield Check("decoders", "failed", f"not in this FFmpeg: {', '.join(missing)}; install the package av from PyPI")
    else:
        yield Check("decoders", "ok", ", ".join(DECODERS))
    if _has_codec(ENCODER, "w"):
        yield Check("encoder", "ok", f"{ENCODER}, for annotated videos")
    else:
        yield Check(
            "encoder", "failed", f"no {ENCODER} in this FFmpeg, for annotated videos; install the package av from PyPI"
        )


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.codec.Codec(name, mode)
    except Exception:  # PyAV's own class for an unknown codec has moved between its versions
        return False
    return True


def _kernels() -> Iterator[Check]:
    from memvit.kernels.status import status

    for part, implementation in status().items():
        yield Check(part, "info", implementation)


def _compiler() -> Iterator[Check]:
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        yield Check("torch.compile", "ok", f"has a C++ compiler, {get_cpp_compiler()}")
    except Exception:
        wanted = ", ".join(filter(None, config.cpp.cxx)) if isinstance(config.cpp.cxx, tuple) else config.cpp.cxx
        yield Check("torch.compile", "missing", f"no C++ compiler ({wanted}): --compile does not work on CPUs")


def _caches() -> Iterator[Check]:
    from huggingface_hub import constants

    from memvit.models.zoo import cache_dir

    places = {"Hub cache": Path(constants.HF_HUB_CACHE), "memvit cache": cache_dir()}
    for name, place in places.items():
        size = _size_of(place)
        yield Check(name, "info", f"{place}: {f'{size / 1e9:.2f} GB' if size is not None else 'not there yet'}")
    for name, place in {**places, "current folder": Path.cwd()}.items():
        existing = next(path for path in (place, *place.parents) if path.exists())
        free_gb = shutil.disk_usage(existing).free / 1e9
        writable = os.access(existing, os.W_OK)
        if not writable or free_gb < LEAST_FREE_GB:
            problem = "cannot be written to" if not writable else f"has only {free_gb:.2f} GB free"
            yield Check(f"disk of the {name}", "failed", f"{existing} {problem}; free space or choose another place")
        else:
            yield Check(f"disk of the {name}", "ok", f"{free_gb:,.1f} GB free")


def _size_of(folder: Path) -> int | None:
    """Bytes of the files below a folder, links not followed; None where there is none."""
    if not folder.is_dir():
        return None
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue  # gone in between
    return total


def _extras() -> Iterator[Check]:
    for package, purpose in EXTRAS.items():
        if find_spec(package) is not None:
            yield Check(package, "ok", f"{version(package)}, for {purpose}")
        else:
            yield Check(package, "missing", f"not installed; it is for {purpose}")


def _self_test() -> Iterator[Check]:
    """Encodes a video, decodes it, and runs a small model on it."""
    import torch

    import memvit
    from memvit.video import open_video
    from memvit.video.sample import make_sample_video

    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memvit-doctor-") as folder:
        path = Path(folder, "video.mp4")
        make_sample_video(path, duration_s=SELF_TEST_S)
        with open_video(path) as video:
            num_frames = sum(1 for _ in video)
        wanted, took_s = SELF_TEST_S * 30, time.monotonic() - began_s
        status: Status = "ok" if num_frames == wanted else "failed"
        yield Check("video", status, f"{num_frames} of {wanted} frames encoded and decoded in {took_s:.1f} s")

        began_s = time.monotonic()
        torch.manual_seed(0)
        model = memvit.create_model(SELF_TEST_MODEL, num_classes=5).eval()
        recognizer = memvit.OnlineRecognizer(model)
        with open_video(path) as video:
            predictions = list(recognizer.run(video))
    took_s, clips = time.monotonic() - began_s, len(predictions)
    finite = all(torch.isfinite(torch.as_tensor(scores)).all() for p in predictions for scores in p.scores)
    status = "ok" if clips and finite else "failed"
    yield Check(
        "model", status, f"{SELF_TEST_MODEL}, {clips} clips in {took_s:.1f} s, {SELF_TEST_S / took_s:.1f}x real time"
    )


def _print(check: Check) -> None:
    from rich.text import Text

    word = {"ok": ("ok", "green"), "failed": ("FAILED", "bold red"), "missing": ("absent", "yellow"), "info": ("", "")}
    label, style = word[check.status]
    line = Text.assemble((f"{label:<8}", style), (f"{check.name}: ", "bold"), check.detail)
    stdout_console().print(line, soft_wrap=True)
    sys.stdout.flush()
