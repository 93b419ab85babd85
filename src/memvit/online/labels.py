"""Class names that are given to a model: a file per head."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from memvit.datasets.class_files import read_class_names


def read_labels(paths: Sequence[str | os.PathLike[str]], num_classes: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """The class names of a model.

    Args:
        paths: a file per head, as `read_class_names` describes it.
        num_classes: classes of each head.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not as many files as heads, not such a file, or not as many names as classes.
    """
    if len(paths) != len(num_classes):
        given = ", ".join(os.fspath(path) for path in paths)
        heads = " + ".join(str(num) for num in num_classes)
        raise ValueError(
            f"the model has {_count(len(num_classes), 'head')} ({heads} classes), but labels come in "
            f"{_count(len(paths), 'file')} ({given}): give one file per head"
        )
    return tuple(_read_file(Path(path), num) for path, num in zip(paths, num_classes, strict=True))


def _read_file(path: Path, num_classes: int) -> tuple[str, ...]:
    names = read_class_names(path)
    if len(names) != num_classes:
        raise ValueError(
            f"{path} holds {_count(len(names), 'label')}, but the model has {_count(num_classes, 'class')}: "
            "give the labels file of the model's own data set"
        )
    return names


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
