"""Names of classes from files: a line each, a JSON list, or a table of ids and names."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names in a file, in the order of the classes.

    A file is text with a name per line; a `.json` list of names, or a mapping of ids to names or of names to ids; or a
    `.csv` with lines `id,name` in any order, ids from 0, with or without a header. Quotation marks around a name are left
    out: Kinetics' own mapping has them.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a class without a name.
    """
    path = Path(path)
    readers = {".json": _from_json, ".csv": _from_csv}
    names = [_bare(name) for name in readers.get(path.suffix.lower(), _from_text)(path, _read_text(path))]
    empty = next((i for i, name in enumerate(names) if not name), None)
    if empty is not None:
        raise ValueError(f"{path} has no name for class {empty}: give every class a name")
    return tuple(names)


def _bare(name: str) -> str:
    name = name.strip()
    return name[1:-1].strip() if len(name) > 1 and name[0] == name[-1] == '"' else name


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
    return text.strip("\r\n").splitlines() if text.strip() else []


def _from_json(path: Path, text: str) -> list[str]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): give a list of names") from error
    if isinstance(data, list) and all(isinstance(name, str) for name in data):
        return data
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
        names[int(index)] = name
    missing = next((i for i in range(len(names)) if i not in names), None)
    if missing is not None:
        raise ValueError(f"{path} holds {len(names)} labels but none for class {missing}: ids run from 0")
    return [names[i] for i in range(len(names))]
