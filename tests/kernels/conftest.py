"""What tests of kernels share."""

from collections.abc import Iterator

import pytest
import torch

from cpu_levels import cpu_level, emulated_kernels, products_level, tiles  # noqa: F401


@pytest.fixture
def threads() -> Iterator[None]:
    """Leaves the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
