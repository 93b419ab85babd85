"""Builds the CPU kernels (src/memvit/kernels/csrc) where there is a compiler for them; without them everything works, slower."""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCES = ("dispatch", "avx2", "avx512", "avx512_bf16", "amx", "program")
BUILDS_KERNELS = platform.machine() in ("x86_64", "AMD64") and sys.platform.startswith("linux")

kernels = Extension(
    "memvit.kernels._cpu",
    sources=[f"src/memvit/kernels/csrc/{name}.cpp" for name in SOURCES],
    depends=[str(path) for path in sorted(Path("src/memvit/kernels/csrc").glob("*"))],
    # Instructions beyond the baseline are chosen function by function in the sources, and at run time.
    extra_compile_args=[
        "-O3",
        "-std=c++17",
        "-fvisibility=hidden",
        "-g0",
        "-Wno-uninitialized",
        "-Wno-maybe-uninitialized",
    ],
    language="c++",
    optional=True,
)

setup(ext_modules=[kernels] if BUILDS_KERNELS else [])
