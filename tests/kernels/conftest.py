"""Kernels for CPUs are tested with every set of instructions that this processor has."""

from collections.abc import Iterator

import pytest

from memvit.kernels import cpu


@pytest.fixture(params=cpu.LEVELS[1:])
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with these instructions, as on a processor that has no better ones."""
    usual = cpu.status()
    if cpu.LEVELS.index(request.param) > cpu.best_level():
        pytest.skip(f"this processor or installation has no {request.param} kernels: {usual}")
    cpu.use(request.param)
    assert cpu.status() == request.param
    yield request.param
    cpu.use(usual)
