"""Files that say which numbers stand for which classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from memvit.datasets.annotations import read_rows
from memvit.datasets.ava_actions import action_names

# The built-in label map's name, in place of a file's.
AVA = "ava"

# A protocol buffer in text form: item { name: "bend/bow (at the waist)" id: 1 }, over several lines or in one.
_ITEM = re.compile(r"\b(?:item|label)\s*\{(.*?)\}", re.DOTALL)
_ID = re.compile(r"\b(?:id|label_id)\s*:\s*(\S+)")
_NAME = re.compile(r"\bname\s*:\s*(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')")


def read_label_map(path: str | os.PathLike[str]) -> dict[str, str]:
    """The names of classes by their ids, in the order of the ids.

    Args:
        path: of a CSV file with the columns ``label_id,label_name`` or ``id,name``, maybe among others; of a ``.pbtxt``
            file as AVA's own is; or "ava" for the 80 actions of AVA v2.2.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no such form, or an id or a name twice.
    """
    if os.fspath(path) == AVA:
        return {str(number): name for number, name in action_names().items()}
    found = _read_items(Path(path)) if Path(path).suffix == ".pbtxt" else _read_csv(path)
    names: dict[str, str] = {}
    for line, cell, name in found:
        number = as_id(cell)
        if number is None:
            raise ValueError(f"{path}:{line}: {cell!r} is no id: give a whole number from 1")
        if number in names or name in names.values() or not name:
            raise ValueError(
                f"{path}:{line}: id {number} or name {name!r} is there before, or empty: make them different"
            )
        names[number] = name
    if not names:
        raise ValueError(f"{path}: no classes, only column names: add one line per class")
    return dict(sorted(names.items(), key=lambda item: int(item[0])))


def as_id(cell: str) -> str | None:
    """A whole number from 1 in its usual form; None if a cell holds something else."""
    return str(int(cell)) if cell.isdecimal() and int(cell) else None


def _read_csv(path: str | os.PathLike[str]) -> Iterable[tuple[int, str, str]]:
    """Lines, ids and names."""
    (line, columns), *rows = read_rows(path)
    for id_column, name_column in (("label_id", "label_name"), ("id", "name")):
        if id_column in columns and name_column in columns:
            at_id, at_name = columns.index(id_column), columns.index(name_column)
            break
    else:
        raise ValueError(
            f"{path}:{line}: a label map has the columns label_id,label_name; there are {', '.join(columns)}"
        )
    for line, cells in rows:
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}:{line}: {len(cells)} cells for {len(columns)} columns; put quotation marks around names with commas"
            )
        yield line, cells[at_id], cells[at_name]


def _read_items(path: Path) -> Iterable[tuple[int, str, str]]:
    """Lines, ids and names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give the label map") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a label map in text form: give AVA's .pbtxt file, or a CSV file") from None
    items = list(_ITEM.finditer(text))
    if not items:
        raise ValueError(
            f"{path}: no items; a label map in this form has `item {{ name: ... id: ... }}` for every class"
        )
    for item in items:
        line = text.count("\n", 0, item.start()) + 1
        number, name = _ID.search(item[1]), _NAME.search(item[1])
        if number is None or name is None:
            raise ValueError(f"{path}:{line}: an item without name or id: it should be `item {{ name: ... id: ... }}`")
        yield line, number[1], re.sub(r"\\(.)", r"\1", name[1][1:-1])
