"""Kernels for CPUs are tested with every set of instructions that this processor has."""

from collections.abc import Iterator

import pytest
import torch

from memvit.kernels import cpu


def _at(level: str) -> Iterator[str]:
    usual = cpu.status()
    if cpu.LEVELS.index(level) > cpu.best_level():
        pytest.skip(f"this processor or installation has no {level} kernels: {usual}")
    cpu.use(level)
    assert level == "off" or cpu.status() == level
    yield level
    cpu.use(usual if usual in cpu.LEVELS else "off")


@pytest.fixture(params=cpu.LEVELS[1:])
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with these instructions, as on a processor that has no better ones."""
    yield from _at(request.param)


@pytest.fixture(params=["off", "avx2", "amx"])
def products_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with what linear layers and patches are computed by: PyTorch's operators, or kernels of ours."""
    yield from _at(request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    """Leaves the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
