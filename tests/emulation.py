"""The CPU kernels for instructions that this processor lacks: compiled with those instructions emulated by AVX2 (emulated/).

Which kernels a test run covers would depend on the machine otherwise, and most have no AMX.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import memvit.kernels

SOURCES = Path(memvit.kernels.__file__).parent / "csrc"
EMULATED = Path(__file__).parent / "emulated"
COMPILER = os.environ.get("CXX", "c++")
OPTIONS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-w", "-include", "avx512.h")
FILES = {  # and how far they are optimised
    "amx": "-O2",
    "avx512": "-O2",
    "avx512_bf16": "-O2",
    "avx2": "-O0",  # the processor's own are tested
    "program": "-O0",
    "dispatch": "-O0",
}


def build_emulated(folder: Path) -> Path | None:
    """The library, made in this folder unless it is there; None: there is no compiler. Processes may call this at once."""
    if shutil.which(COMPILER) is None:
        return None
    key = hashlib.sha256(" ".join((COMPILER, *OPTIONS, *FILES.values())).encode())
    for path in sorted((*SOURCES.iterdir(), *EMULATED.iterdir())):
        key.update(path.read_bytes())
    library = folder / f"emulated-{key.hexdigest()[:16]}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _build(folder / "sources", library)
    return library


def _build(sources: Path, library: Path) -> None:
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(SOURCES, sources)
    shutil.copytree(EMULATED, sources, dirs_exist_ok=True)  # its tiles.inl too
    for name in FILES:
        source = sources / f"{name}.cpp"
        source.write_text(re.sub(r'target\("[^"]*"\)', 'target("avx2,fma,f16c")', source.read_text()))

    def compile_file(name: str) -> None:
        _run(sources, *OPTIONS, FILES[name], "-c", f"{name}.cpp", "-o", f"{name}.o")

    with ThreadPoolExecutor(2) as executor:
        list(executor.map(compile_file, FILES))
    _run(sources, "-shared", *(f"{name}.o" for name in FILES), "-o", "made.so")
    (sources / "made.so").rename(library)


def _run(folder: Path, *arguments: str) -> None:
    result = subprocess.run([COMPILER, "-I.", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
