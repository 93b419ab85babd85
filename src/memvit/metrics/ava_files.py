"""Reads files in AVA's form, annotated boxes and detections with very many rows.

Blocks of lines are parsed by pandas, which is fast and strict. Where it stumbles, or finds another number of rows than there
are lines, the block is parsed in smaller pieces; and of the pieces that it stumbles over once more, lines that do not look as
they should are parsed cell by cell.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from memvit.metrics.ava_records import (
    NO_ACTION,
    Faults,
    GroundTruth,
    Keyframes,
    Rows,
    ScoredBoxes,
    on_grid,
)

CORNERS = ["x1", "y1", "x2", "y2"]
PLACE = ("video", "second", *CORNERS)
GROUND_TRUTH = (*PLACE, "action_id", "person_id")
DETECTIONS = (*PLACE, "action_id", "score")

BLOCK_BYTES = 32 * 2**20
NUM_PIECES = 16
_NUMBER = rb",\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*"
_PLAIN = re.compile(rb"[^,\"]+" + 7 * _NUMBER)
_BOM = b"\xef\xbb\xbf"

Table = tuple[np.ndarray, pd.DataFrame]
"""Lines int64 (n,) and rows: video as categories, numbers as float64, person_id as text."""


def read_ground_truth(path: str | os.PathLike[str], *, known: Collection[int]) -> GroundTruth:
    """Annotated boxes, ``video,second,x1,y1,x2,y2,action_id,person_id`` a row, of which the last may be missing.

    Rows that cannot be used are left out and logged.

    Args:
        path: the file.
        known: ids of actions that may occur.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, has a line with column names, or more than a tenth of its rows cannot be used.
    """
    faults = Faults.of_file(path)
    parts = []
    for lines, table in _read_tables(path, GROUND_TRUTH, faults):
        rows = Rows(faults, lines)
        _drop_nameless(rows, table["video"])
        rows.drop_bad_boxes(table["second"].to_numpy(), on_grid(table[CORNERS].to_numpy()))
        actions = rows.drop_unknown_actions(table["action_id"].to_numpy(), {NO_ACTION, *known})
        if "person_id" in table:
            _drop_strange_persons(rows, table["person_id"])
        usable = table[rows.good]
        parts.append((usable["video"].astype(object), usable[["second", *CORNERS]].to_numpy(), actions[rows.good]))
    faults.check()
    if not faults.num_rows:
        raise ValueError(f"{path}: empty; it should hold annotated boxes, {','.join(GROUND_TRUTH)} in every line")
    videos, numbers, actions = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return GroundTruth(videos, numbers[:, 0], numbers[:, 1:], actions)


def read_detections(
    path: str | os.PathLike[str], keyframes: Keyframes, *, counted: Collection[int], known: Collection[int]
) -> ScoredBoxes:
    """Detections, ``video,second,x1,y1,x2,y2,action_id,score`` a row; there may be none.

    Rows that cannot be used are left out and logged. Kept are 14 bytes of each row that counts, and 24 for each box; rows that
    follow one another and have the same corners are one box.

    Args:
        path: the file.
        keyframes: gives them numbers, and knows which are excluded.
        counted: ids of actions that count; rows with others are read over.
        known: ids of actions that may occur.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has a line with column names, or more than a tenth of its rows cannot be used.
    """
    faults = Faults.of_file(path)
    ids = np.array(sorted(counted), np.int64)
    blocks = [
        _read_block(lines, table, faults, keyframes, ids, known)
        for lines, table in _read_tables(path, DETECTIONS, faults)
    ]
    faults.check()
    if not blocks:
        return ScoredBoxes(np.zeros(0, np.int64), np.zeros((0, 4), np.int32), {})
    first_boxes = np.cumsum([0, *(len(block.keyframes) for block in blocks)])
    boxes = np.concatenate([block.boxes + first for block, first in zip(blocks, first_boxes[:-1], strict=True)])
    return ScoredBoxes(
        np.concatenate([block.keyframes for block in blocks]),
        np.concatenate([block.corners for block in blocks]),
        _by_action(
            ids,
            np.concatenate([block.columns for block in blocks]),
            boxes.astype(np.int32),
            np.concatenate([block.scores for block in blocks]),
        ),
    )


class _Block(NamedTuple):
    """Detections that count: boxes as in `ScoredBoxes`, and per row its box, its action as an index, and its score."""

    keyframes: np.ndarray
    corners: np.ndarray
    boxes: np.ndarray
    columns: np.ndarray
    scores: np.ndarray


def _read_block(
    lines: np.ndarray,
    table: pd.DataFrame,
    faults: Faults,
    keyframes: Keyframes,
    ids: np.ndarray,
    known: Collection[int],
) -> _Block:
    begin, length = _find_boxes(table)
    first = table.iloc[begin]
    videos, seconds, corners = first["video"], first["second"].to_numpy(), on_grid(first[CORNERS].to_numpy())
    boxes = Rows(faults, lines[begin], length)
    _drop_nameless(boxes, videos)
    boxes.drop_bad_boxes(seconds, corners)

    scores = table["score"].to_numpy()
    rows = Rows(faults, lines)
    rows.good &= np.repeat(boxes.good, length)
    actions = rows.drop_unknown_actions(table["action_id"].to_numpy(), known)
    rows.drop(~np.isfinite(scores), "score", lambda index: f"score {scores[index]:g} is no finite number")

    usable = np.flatnonzero(boxes.good)
    numbers = keyframes.number(videos.array[usable], seconds[usable])
    chosen = keyframes.is_counted(numbers)
    index_of_box = np.full(len(begin), -1, np.int32)
    index_of_box[usable[chosen]] = np.arange(chosen.sum())
    box_of_row = np.repeat(index_of_box, length)
    counts = rows.good & (box_of_row >= 0) & np.isin(actions, ids)
    columns = np.searchsorted(ids, actions[counts]).astype(np.uint16)
    return _Block(
        numbers[chosen], corners[usable[chosen]].astype(np.int32), box_of_row[counts], columns, scores[counts]
    )


def _drop_nameless(rows: Rows, videos: pd.Series) -> None:
    nameless = [not name.strip() for name in videos.cat.categories]
    if any(nameless):
        rows.drop(np.array(nameless)[videos.cat.codes], "video", lambda index: "the row names no video")


def _drop_strange_persons(rows: Rows, persons: pd.Series) -> None:
    is_id = persons.map({cell: _is_person(cell) for cell in persons.unique()}).to_numpy(bool)
    rows.drop(~is_id, "person", lambda index: f"person_id {_short(persons.iloc[index])} is no whole number")


def _find_boxes(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The rows at which boxes begin, and how many rows each has."""
    is_new = np.zeros(len(table), bool)
    is_new[:1] = True
    for values in (table["video"].cat.codes.to_numpy(), *(table[name].to_numpy() for name in PLACE[1:])):
        is_new[1:] |= values[1:] != values[:-1]
    begin = np.flatnonzero(is_new)
    return begin, np.diff(begin, append=len(table))


def _by_action(
    ids: np.ndarray, columns: np.ndarray, boxes: np.ndarray, scores: np.ndarray
) -> dict[int, tuple[np.ndarray | None, np.ndarray]]:
    """Boxes and scores of each action, in the order of rows."""
    order = np.argsort(columns, kind="stable")
    ends = np.cumsum(np.bincount(columns, minlength=len(ids)))
    boxes, scores = boxes[order], scores[order]
    return {
        action: (boxes[begin:end], scores[begin:end])
        for action, (begin, end) in zip(ids.tolist(), itertools.pairwise([0, *ends.tolist()]), strict=True)
        if end > begin
    }


def _read_tables(path: str | os.PathLike[str], columns: Sequence[str], faults: Faults) -> Iterator[Table]:
    """The rows of a file whose cells are what they should be, in blocks; notes the others, and counts all."""
    line = 1
    try:
        with open(path, "rb") as file:
            while data := file.read(BLOCK_BYTES):
                data += file.readline()
                if line == 1:
                    data = data.removeprefix(_BOM)
                    columns = _columns_of(data, columns, path)
                yield from _parse(data, line, columns, faults)
                line += data.count(b"\n")
    except FileNotFoundError:
        form = ",".join(columns)
        raise FileNotFoundError(f"{path}: no such file; give a CSV file with {form} in every line") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a CSV file") from error


def _columns_of(data: bytes, columns: Sequence[str], path: str | os.PathLike[str]) -> Sequence[str]:
    """The columns that a file has: without persons' ids if its first line has none.

    Raises:
        ValueError: the first line holds their names.
    """
    line, cells = 0, [""]
    for text in io.BytesIO(data):
        line, cells = line + 1, _cells(text)
        if any(cells):
            break
    if len(cells) > 1 and cells[0] and all(_number(cell) is None for cell in cells[1:6]):
        raise ValueError(
            f"{path}:{line}: {','.join(cells)[:80]!r} is a line with column names, which files in AVA's form do not have: "
            "remove it"
        )
    return columns[:-1] if columns[-1] == "person_id" and len(cells) == len(columns) - 1 else columns


def _parse(
    data: bytes, line: int, columns: Sequence[str], faults: Faults, num_pieces: int = NUM_PIECES
) -> Iterator[Table]:
    """The good rows of whole lines, the first of which has this number."""
    num_lines = data.count(b"\n") + (not data.endswith(b"\n"))
    table = _parse_fast(data, num_lines, columns)
    if table is not None:
        faults.num_rows += num_lines
        yield np.arange(line, line + num_lines), table
    elif num_pieces == 1:
        yield _parse_apart(data.split(b"\n"), line, columns, faults)
    else:
        least = len(data) // num_pieces
        while data:
            size = data.find(b"\n", least) + 1 or len(data)
            piece, data = data[:size], data[size:]
            yield from _parse(piece, line, columns, faults, num_pieces=1)
            line += piece.count(b"\n")


def _parse_apart(texts: list[bytes], line: int, columns: Sequence[str], faults: Faults) -> Table:
    """The good rows of lines: those that look as they should are parsed together, the others cell by cell."""
    is_plain = [_PLAIN.fullmatch(text) is not None for text in texts]
    plain = np.flatnonzero(is_plain)
    table = _parse_fast(b"\n".join([texts[index] for index in plain]), len(plain), columns)
    if table is None:
        return _parse_carefully(enumerate(texts, start=line), columns, faults)
    faults.num_rows += len(plain)
    odd = [(line + index, text) for index, text in enumerate(texts) if not is_plain[index]]
    lines, odd_table = _parse_carefully(odd, columns, faults)
    if not len(lines):
        return line + plain, table
    lines = np.concatenate([line + plain, lines])
    order = np.argsort(lines)
    together = pd.concat([part.astype({"video": "str"}) for part in (table, odd_table)]).iloc[order]
    return lines[order], together.astype({"video": "category"})


def _parse_fast(data: bytes, num_lines: int, columns: Sequence[str]) -> pd.DataFrame | None:
    """The rows if every line is one and has nothing but numbers where they belong."""
    if data.count(b",") != num_lines * (len(columns) - 1):
        return None
    kinds = {"video": "category", "person_id": "str"}
    try:
        table = pd.read_csv(
            io.BytesIO(data),
            header=None,
            names=list(columns),
            dtype={name: kinds.get(name, "float64") for name in columns},
            na_filter=False,  # an empty cell is no number
            low_memory=False,
        )
    except (ValueError, OverflowError):  # also what pandas raises for rows of other lengths
        return None
    is_whole = len(table) == num_lines and isinstance(table.index, pd.RangeIndex)
    return table if is_whole and np.isfinite(table["action_id"].to_numpy()).all() else None


def _parse_carefully(texts: Iterable[tuple[int, bytes]], columns: Sequence[str], faults: Faults) -> Table:
    """The good rows of numbered lines, cell by cell; notes the others."""
    lines: list[int] = []
    rows: list[list[str | float]] = []
    for number, text in texts:
        cells = _cells(text)
        if not any(cells):
            continue
        faults.num_rows += 1
        row = _parse_cells(cells, columns)
        if isinstance(row, _Fault):
            faults.note(row.kind, number, row.message)
        else:
            lines.append(number)
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(columns))
    table = table.astype({name: "float64" for name in columns if name not in ("video", "person_id")})
    return np.array(lines, np.int64), table.astype({"video": "category"})


class _Fault(NamedTuple):
    kind: str
    message: str


def _parse_cells(cells: list[str], columns: Sequence[str]) -> list[str | float] | _Fault:
    """A row's values, or what is wrong with it."""
    if columns[-1] == "person_id" and len(cells) == len(columns) - 1:
        cells = [*cells, ""]
    if len(cells) != len(columns):
        hint = "; separate them by commas" if len(cells) == 1 else ""
        return _Fault("cells", f"{len(cells)} cells, not {len(columns)} ({','.join(columns)}){hint}")
    row: list[str | float] = []
    for name, cell in zip(columns, cells, strict=True):
        if name in ("video", "person_id"):
            row.append(cell)
            continue
        if name == "action_id" and not cell and columns[-1] != "score":
            cell = str(NO_ACTION)
        value = _number(cell)
        if value is None:
            return _Fault(name, f"{name} {_short(cell)} is not a number")
        row.append(value)
    return row


def _cells(line: bytes) -> list[str]:
    """The cells of a line, without spaces around them."""
    text = line.decode("utf-8", errors="replace").strip()
    try:
        return [cell.strip() for cell in next(csv.reader([text], skipinitialspace=True, strict=True), [])]
    except csv.Error:
        return text.split(",")


def _number(cell: str) -> float | None:
    """The finite number that a cell holds."""
    try:
        value = float("" if "_" in cell else cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _is_person(cell: str) -> bool:
    return not cell.strip() or cell.strip().removeprefix("-").isdecimal()


def _short(cell: object) -> str:
    text = str(cell)
    return repr(text if len(text) <= 40 else text[:40] + "...")
