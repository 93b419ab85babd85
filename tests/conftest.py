"""Shared set-up of all tests."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so it is in the background of a shell; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # small operations, and two test processes on two cores


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def process() -> Iterator[ProcessPoolExecutor]:
    """Where kernels for GPUs run, interpreted if there is none: one for all of their tests, as it takes seconds to begin."""
    from interpreted import kernel_process

    with kernel_process() as executor:
        yield executor


@pytest.fixture(scope="session")
def interpreting_process(request: pytest.FixtureRequest) -> Iterator[ProcessPoolExecutor]:
    """One in which they are interpreted even if there is a GPU."""
    from interpreted import DEVICE, kernel_process

    if DEVICE == "cpu":
        yield request.getfixturevalue("process")
    else:
        with kernel_process(is_interpreted=True) as executor:
            yield executor
