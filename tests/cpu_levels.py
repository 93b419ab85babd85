"""Kernels for CPUs are tested with every set of instructions; those that this processor lacks are emulated, see `emulation`."""

from collections.abc import Iterator

import pytest

from emulation import build_emulated
from memvit.kernels import cpu


@pytest.fixture(scope="session")
def emulated_kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> cpu.Library:
    """The kernels for better processors than this one."""
    cache = getattr(request.config, "cache", None)  # kept from run to run, unless pytest is told to keep nothing
    path = build_emulated(cache.mkdir("emulated-kernels") if cache else tmp_path_factory.mktemp("emulated-kernels"))
    if path is None:
        pytest.skip("there is no C++ compiler to build kernels for other processors with")
    library = cpu.load(path)
    assert isinstance(library, cpu.Library), library
    library.handle.memvit_best_level = lambda: len(cpu.LEVELS) - 1
    return library


def _at(level: str, request: pytest.FixtureRequest) -> Iterator[str]:
    usual = cpu.status()
    if not cpu.is_available() and level != "off":
        pytest.skip(f"this processor or installation has no kernels: {usual}")
    with pytest.MonkeyPatch.context() as patch:
        if cpu.LEVELS.index(level) > cpu.best_level():
            patch.setattr(cpu, "_loaded", request.getfixturevalue("emulated_kernels"))
        cpu.use(level)
        assert level == "off" or cpu.status() == level
        yield level
    cpu.use(usual if usual in cpu.LEVELS else "off")


@pytest.fixture(params=cpu.LEVELS[1:])
def cpu_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with these instructions, as on a processor that has no better ones."""
    yield from _at(request.param, request)


@pytest.fixture(params=["off", "avx2", "amx"])
def products_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test with what linear layers and patches are computed by: PyTorch's operators, or kernels of ours."""
    yield from _at(request.param, request)


@pytest.fixture
def tiles(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on AMX's tiles."""
    yield from _at("amx", request)
