"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from training.tiny_data import TINY_OPTIONS, write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos to train on, of different lengths, two to validate with and two to test with."""
    root = tmp_path_factory.mktemp("data") / "colors"
    return write_dataset(root, {"train": (3, 4, 2, 3, 4), "val": (2, 3), "test": (2, 3)})


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> Path:
    """A configuration file for the command; its runs are kept in the test's folder."""
    path = tmp_path / "tiny.yaml"
    content = {
        "model": {"name": "memvit_tiny", "options": TINY_OPTIONS},
        "data": {
            "class_path": "SegmentsData",
            "init_args": {"root": str(dataset), "batch_size": 2, "num_workers": 0},
        },
        "optimizer": {"lr": 0.01},
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "run": {"name": "tiny", "directory": str(tmp_path / "runs"), "checkpoint_every_n_steps": 3},
    }
    path.write_text(yaml.safe_dump(content))
    return path
