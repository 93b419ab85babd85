"""Puts two trained models into the package, in half precision.

python -m memvit.demo.pack RUN_WITH_MEMORY RUN_WITHOUT_MEMORY     folders of `memvit fit`, such as runs/shell_game/version_0
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from memvit.demo.shell_game import MODELS


def pack(run: Path, folder: Path) -> int:
    """Copies a run's model, its weights as float16.

    Args:
        run: with `model/`.
        folder: made where missing.

    Returns:
        Bytes of the weights.

    Raises:
        FileNotFoundError: the run has no model.
    """
    model = run / "model"
    if not (model / "model.safetensors").is_file():
        raise FileNotFoundError(f"{model} holds no model: train to the end first")
    folder.mkdir(parents=True, exist_ok=True)
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)
    shutil.copy(model / "config.json", folder)
    return (folder / "model.safetensors").stat().st_size


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("with_memory", type=Path)
    parser.add_argument("without_memory", type=Path)
    options = parser.parse_args(argv)
    for run, which in ((options.with_memory, "with"), (options.without_memory, "without")):
        size = pack(run, MODELS / f"shell_game_{which}")
        print(f"{MODELS / f'shell_game_{which}'}: {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
