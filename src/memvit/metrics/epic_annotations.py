"""The annotations of EPIC-KITCHENS-100 that its metrics need: labelled segments, tail classes, unseen participants."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

TAIL_VERBS_FILE = "EPIC_100_tail_verbs.csv"
TAIL_NOUNS_FILE = "EPIC_100_tail_nouns.csv"
UNSEEN_PARTICIPANTS_FILE = "EPIC_100_unseen_participant_ids_validation.csv"

FilePath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Segments:
    """Labelled segments of videos.

    Attributes:
        path: the file they are from; None where they were a table.
        verbs: int64 (n,), the classes of their verbs.
        nouns: int64 (n,), the classes of their nouns.
        participants: ids (n,) such as "P00"; None where the annotations have none.
        narration_ids: of the segments (n,); None where the annotations have none.
    """

    path: FilePath | None
    verbs: np.ndarray
    nouns: np.ndarray
    participants: np.ndarray | None
    narration_ids: np.ndarray | None

    def __len__(self) -> int:
        return len(self.verbs)

    def place(self, row: int) -> str:
        """Where a segment is annotated, for messages.

        Args:
            row: its index.
        """
        return _place(self.path, row, self.narration_ids)

    def check_classes(self, *, num_verbs: int, num_nouns: int) -> None:
        """Finds a label that no score is of.

        Args:
            num_verbs: the classes of verbs that have scores.
            num_nouns: the classes of nouns that have scores.

        Raises:
            ValueError: there is one.
        """
        for name, labels, num in (("verb", self.verbs, num_verbs), ("noun", self.nouns, num_nouns)):
            strange = np.flatnonzero((labels < 0) | (labels >= num))
            if len(strange):
                row = int(strange[0])
                raise ValueError(
                    f"{self.place(row)}: {name}_class {labels[row]} is none of the {num} classes that {name} scores are for, "
                    f"0 to {num - 1}: are model and annotations of the same version?"
                )

    def is_of_participants(self, wanted: Iterable[str]) -> np.ndarray:
        """Which segments are of these participants, bool (n,).

        Args:
            wanted: ids of participants.

        Raises:
            ValueError: the annotations have no participants.
        """
        if self.participants is None:
            raise ValueError(_missing(self.path, ["participant_id"]))
        return np.isin(self.participants.astype(str), np.array(sorted(wanted), str))

    def unique_ids(self) -> np.ndarray:
        """The narration ids (n,), object.

        Raises:
            ValueError: the annotations have none, or one occurs twice.
        """
        if self.narration_ids is None:
            raise ValueError(_missing(self.path, ["narration_id"]))
        twice = np.flatnonzero(pd.Index(self.narration_ids).duplicated())
        if len(twice):
            raise ValueError(f"{self.place(int(twice[0]))}: the segment occurs twice: remove one of them")
        return self.narration_ids


Annotations = FilePath | pd.DataFrame | Segments


def read_annotations(annotations: Annotations) -> Segments:
    """Reads labelled segments.

    Args:
        annotations: CSV file as EPIC_100_validation.csv, or a table of it. The columns verb_class and noun_class must be
            there; participant_id and narration_id, which may also be the index, are used where they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, columns are missing, a class is no whole number, or there are no segments.
    """
    if isinstance(annotations, Segments):
        return annotations
    path = None if isinstance(annotations, pd.DataFrame) else annotations
    table = read_text_table(annotations) if not isinstance(annotations, pd.DataFrame) else annotations
    if table.index.name == "narration_id" and "narration_id" not in table.columns:
        table = table.reset_index()
    missing = [name for name in ("verb_class", "noun_class") if name not in table.columns]
    if missing:
        raise ValueError(_missing(path, missing, list(map(str, table.columns))))
    if not len(table):
        raise ValueError(f"{path or 'annotations'}: no segments; there should be one in every row")
    ids, participants = (
        table[name].to_numpy(object) if name in table.columns else None for name in ("narration_id", "participant_id")
    )
    verbs, nouns = (
        _whole_numbers(table[name], lambda row: _place(path, row, ids)) for name in ("verb_class", "noun_class")
    )
    return Segments(path, verbs, nouns, participants, ids)


def read_classes(classes: FilePath | Iterable[int] | pd.DataFrame, column: str) -> frozenset[int]:
    """Ids of classes.

    Args:
        classes: the ids, or a CSV file as EPIC_100_tail_verbs.csv, or a table of it.
        column: of the file that holds them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or has no such column, or an id is no whole number.
    """
    if isinstance(classes, pd.DataFrame):
        classes = _column(classes, column, "tail classes")
    if isinstance(classes, str | os.PathLike):
        path = classes
        ids, place = _column(read_text_table(path), column, f"{path}:1"), lambda row: _place(path, row, None)
    else:
        ids, place = pd.Series(list(classes), name=column, dtype=object), lambda row: f"tail classes[{row}]"
    return frozenset(_whole_numbers(ids, place).tolist())


def read_participants(participants: FilePath | Iterable[str] | pd.DataFrame) -> frozenset[str]:
    """Ids of participants.

    Args:
        participants: the ids, or a CSV file with the column participant_id, or a table of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or has no such column.
    """
    if isinstance(participants, str | os.PathLike):
        return frozenset(_column(read_text_table(participants), "participant_id", f"{participants}:1").str.strip())
    if isinstance(participants, pd.DataFrame):
        participants = _column(participants, "participant_id", "unseen participants")
    return frozenset(map(str, participants))


def _column(table: pd.DataFrame, column: str, where: str) -> pd.Series:
    if column not in table.columns:
        columns = ", ".join(map(str, table.columns))
        raise ValueError(f"{where}: no column {column}; there are {columns}: is it the right file?")
    return table[column]


def read_text_table(path: FilePath) -> pd.DataFrame:
    """The cells of a CSV file as text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, or is no CSV file.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give a CSV file of EPIC-KITCHENS-100") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a CSV file") from error
    except ValueError as error:  # also what pandas raises for broken rows, and for files that are no text
        raise ValueError(f"{path}: is no CSV file ({error}); give one, or a table that pandas read") from error


def _whole_numbers(values: pd.Series, place: Callable[[int], str]) -> np.ndarray:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    strange = np.flatnonzero(~(np.isfinite(numbers) & (numbers == np.floor(numbers))))
    if len(strange):
        row = int(strange[0])
        raise ValueError(f"{place(row)}: {values.name} {values.iloc[row]!r} is no whole number: correct it")
    return numbers.astype(np.int64)


def _place(path: FilePath | None, row: int, narration_ids: np.ndarray | None) -> str:
    where = f"annotations.iloc[{row}]" if path is None else f"{path}:{row + 2}"  # below the line of column names
    return where if narration_ids is None else f"{where} ({narration_ids[row]})"


def _missing(path: FilePath | None, names: list[str], found: list[str] | None = None) -> str:
    there_are = f"; there are {', '.join(found)}" if found else ""
    return (
        f"{path or 'annotations'}: no column {', '.join(names)}{there_are}: is it an annotation file of another version? Give "
        "one as EPIC_100_validation.csv"
    )
