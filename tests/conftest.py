"""Shared set-up of all tests."""

import os
import signal

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so it is in the background of a shell; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # small operations, and two test processes on two cores


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
