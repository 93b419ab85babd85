"""Names of classes from files: a line each, a JSON list, or a table of ids and names."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path


def read_labels(paths: Sequence[str | os.PathLike[str]], num_classes: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """The class names of a model.

    A file is text with a name per line, in the order of the classes; a `.json` list of names, or a mapping of ids to
    names or of names to ids; or a `.csv` with lines `id,name` in any order, ids from 0, with or without a header.

    Args:
        paths: a file per head.
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
    readers = {".json": _from_json, ".csv": _from_csv}
    names = readers.get(path.suffix.lower(), _from_text)(path, _read_text(path))
    if len(names) != num_classes:
        raise ValueError(
            f"{path} holds {_count(len(names), 'label')}, but the model has {_count(num_classes, 'class')}: "
            "give the labels file of the model's own data set"
        )
    empty = next((i for i, name in enumerate(names) if not name), None)
    if empty is not None:
        raise ValueError(f"{path} has no name for class {empty}: give every class a name")
    return tuple(names)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no labels file {path}: check the path") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text file (byte {error.start} is not UTF-8): give one label per line"
        ) from error
    except OSError as error:
        raise ValueError(f"cannot read the labels file {path} ({error.strerror}): check the path") from error


def _from_text(path: Path, text: str) -> list[str]:
    if "\0" in text:
        raise ValueError(f"{path} is no text file: give one label per line")
    return [line.strip() for line in text.strip("\r\n").splitlines()] if text.strip() else []


def _from_json(path: Path, text: str) -> list[str]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): give a list of names") from error
    if isinstance(data, list) and all(isinstance(name, str) for name in data):
        return [name.strip() for name in data]
    if isinstance(data, dict) and all(isinstance(value, str) for value in data.values()):
        return _by_id(path, [(key, name) for key, name in data.items()])
    if isinstance(data, dict) and all(isinstance(value, int) for value in data.values()):
        return _by_id(path, [(str(index), name) for name, index in data.items()])
    raise ValueError(f"{path} is no list of labels: give a JSON list of names, in the order of the classes")


def _from_csv(path: Path, text: str) -> list[str]:
    try:
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV ({error}): give lines of id,name") from error
    short = next((row for row in rows if len(row) < 2), None)
    if short is not None:
        raise ValueError(f"{path} has a line with one column ({short[0]}): give lines of id,name")
    if rows and not rows[0][0].strip().isdecimal():
        rows = rows[1:]  # a header
    return _by_id(path, [(row[0], row[1]) for row in rows])


def _by_id(path: Path, pairs: list[tuple[str, str]]) -> list[str]:
    """Names in the order of their ids, which are 0, 1, 2 and so on."""
    names: dict[int, str] = {}
    for index, name in pairs:
        if not index.strip().isdecimal():
            raise ValueError(f"{path}: {index!r} is no class id: ids are whole numbers from 0")
        if int(index) in names:
            raise ValueError(f"{path} names class {int(index)} twice: give every class one name")
        names[int(index)] = name.strip()
    missing = next((i for i in range(len(names)) if i not in names), None)
    if missing is not None:
        raise ValueError(f"{path} has {_count(len(names), 'label')} but none for class {missing}: ids run from 0")
    return [names[i] for i in range(len(names))]


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
