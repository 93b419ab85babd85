"""Reads submissions to the challenges of EPIC-KITCHENS-100, and finds what is wrong with them."""

from __future__ import annotations

import itertools
import json
import zipfile
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from memvit.metrics.epic_annotations import FilePath
from memvit.metrics.epic_format import (
    JSON_FILE,
    LEVELS,
    NUM_ACTIONS,
    VERSION,
    Challenge,
    check_challenge,
    check_level,
)
from memvit.metrics.epic_scores import TopActions

FORM = f"give a zip file with {JSON_FILE}, as memvit's write_submission writes it"
_NO_ACTION = -1


class Content(NamedTuple):
    """What a file holds; see `Submission`."""

    challenge: Challenge
    levels: dict[str, int]
    narration_ids: tuple[str, ...]
    verb_scores: np.ndarray
    noun_scores: np.ndarray
    actions: TopActions | None


class _Numbers(NamedTuple):
    """A JSON object with nothing but numbers: far smaller than a dict, of which there would be millions of numbers."""

    keys: tuple[str, ...]
    values: np.ndarray


def read_content(path: FilePath) -> Content:
    """Reads a submission; arguments and errors are those of `read_submission`."""
    text = _read_json_file(path)
    try:
        return _parse(json.loads(text, object_pairs_hook=_pack))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: what it holds is no JSON ({error}); {FORM}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_json_file(path: FilePath) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found = [JSON_FILE] if JSON_FILE in names else [name for name in names if name.endswith(".json")]
            if len(found) != 1:
                raise ValueError(f"{path}: holds {', '.join(names[:5]) or 'nothing'}, not {JSON_FILE}; {FORM}")
            return archive.read(found[0])
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; {FORM}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {FORM}") from error
    # The last two for encrypted files and compression that Python lacks.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path}: is no zip file, or a broken one ({error}); {FORM}") from error


def _pack(pairs: list[tuple[str, Any]]) -> _Numbers | dict[str, Any]:
    """A JSON object, as it is parsed."""
    if pairs:
        try:
            return _Numbers(tuple(key for key, _ in pairs), np.frombuffer(array("d", [value for _, value in pairs])))
        except (TypeError, OverflowError):
            pass
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise ValueError(f"{twice!r} occurs twice: give every segment once")
    return members


def _parse(content: Any) -> Content:
    if not isinstance(content, dict):
        raise ValueError(f"holds no submission; {FORM}")
    missing = [key for key in ("version", "challenge", *LEVELS, "results") if key not in content]
    if missing:
        raise ValueError(f"has no {', '.join(missing)}; {FORM}")
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']!r} is not {VERSION!r}, that of EPIC-KITCHENS-100")
    check_challenge(content["challenge"])
    for name in LEVELS:
        check_level(name, content[name])
    results = content["results"]
    if not isinstance(results, dict) or not results:
        raise ValueError("results holds no segments; it should hold scores by narration ids")
    for name, entry in results.items():
        if not isinstance(entry, dict):
            raise ValueError(f"segment {name!r} has no scores of verbs and nouns")
    verbs, nouns = (_class_scores(results, kind) for kind in ("verb", "noun"))
    return Content(
        content["challenge"],
        {name: content[name] for name in LEVELS},
        tuple(results),
        verbs,
        nouns,
        _read_actions(results, num_verbs=verbs.shape[1], num_nouns=nouns.shape[1]),
    )


@dataclass(frozen=True)
class _Layout:
    """The classes in one order that objects have: int64 (classes,), and the first segment that has it."""

    classes: np.ndarray
    segment: str


def _class_scores(results: Mapping[str, Mapping[str, Any]], kind: str) -> np.ndarray:
    """The scores of verbs or nouns, float64 (segments, classes)."""
    layouts: dict[tuple[str, ...], _Layout] = {}
    for name, entry in results.items():
        numbers = _numbers(entry, kind, name)
        if numbers.keys not in layouts:
            layouts[numbers.keys] = _Layout(_class_ids(numbers.keys, kind, name), name)
    widest = max(layouts.values(), key=lambda layout: int(layout.classes.max()))
    num = int(widest.classes.max()) + 1
    for layout in layouts.values():
        if len(layout.classes) < num:
            known = set(layout.classes.tolist())
            missing = next(number for number in itertools.count() if number not in known)
            raise ValueError(
                f"segment {layout.segment!r} has no score of {kind} {missing}, though {widest.segment!r} has one of {kind} "
                f"{num - 1}: every segment needs the scores of all"
            )
    scores = np.empty((len(results), num))
    for row, entry in zip(scores, results.values(), strict=True):
        keys, values = entry[kind]
        row[layouts[keys].classes] = values
    if not np.isfinite(scores).all():
        segment, number = np.argwhere(~np.isfinite(scores))[0].tolist()
        raise ValueError(
            f"segment {list(results)[segment]!r}: the score of {kind} {number} is {scores[segment, number]}, not finite"
        )
    return scores


def _class_ids(keys: Sequence[str], kind: str, segment: str) -> np.ndarray:
    strange = [key for key in keys if not (key.isascii() and key.isdecimal() and len(key) < 10)]
    if strange:
        raise ValueError(f"segment {segment!r}: {strange[0]!r} is no {kind}: give the number of its class")
    ids = np.array([int(key) for key in keys], np.int64)
    numbers, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        raise ValueError(f"segment {segment!r} has {kind} {numbers[counts.argmax()]} twice: give one score of each")
    return ids


def _read_actions(results: Mapping[str, Mapping[str, Any]], *, num_verbs: int, num_nouns: int) -> TopActions | None:
    """The submitted actions, if all segments have some; None if no segment has."""
    without = [name for name, entry in results.items() if "action" not in entry]
    if len(without) == len(results):
        return None
    if without:
        raise ValueError(
            f"segment {without[0]!r} has no actions, though others do: give those of all segments or of none"
        )
    num = min(NUM_ACTIONS, num_verbs * num_nouns)
    codes = _ActionCodes(num_verbs, num_nouns)
    actions, scores = np.empty((len(results), num), np.int64), np.empty((len(results), num))
    for row, (name, entry) in enumerate(results.items()):
        keys, values = _numbers(entry, "action", name)
        if len(keys) != num:
            raise ValueError(f"segment {name!r} has {len(keys)} actions: give the best {num}")
        actions[row] = [codes[key] for key in keys]
        scores[row] = values
    _check_actions(results, actions, scores)
    return TopActions(actions // num_nouns, actions % num_nouns, scores)


def _check_actions(results: Mapping[str, Mapping[str, Any]], actions: np.ndarray, scores: np.ndarray) -> None:
    segments = list(results)
    is_unknown, is_infinite = actions == _NO_ACTION, ~np.isfinite(scores)
    for bad, fault in ((is_unknown, "is no verb and noun that have scores"), (is_infinite, "has no finite score")):
        if bad.any():
            row, column = np.argwhere(bad)[0].tolist()
            key = results[segments[row]]["action"].keys[column]
            raise ValueError(f"segment {segments[row]!r}: action {key!r} {fault}")
    ordered = np.sort(actions, axis=1)
    is_twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if is_twice.any():
        raise ValueError(f"segment {segments[int(is_twice.argmax())]!r} has an action twice: give one score of each")


class _ActionCodes(dict[str, int]):
    """verb * nouns + noun by names such as "3,17"; -1 where there is no such action."""

    def __init__(self, num_verbs: int, num_nouns: int) -> None:
        super().__init__()
        self.num_verbs, self.num_nouns = num_verbs, num_nouns

    def __missing__(self, key: str) -> int:
        verb, _, noun = key.partition(",")
        code = _NO_ACTION
        if verb.strip().isdecimal() and noun.strip().isdecimal():
            verb_class, noun_class = int(verb), int(noun)
            if verb_class < self.num_verbs and noun_class < self.num_nouns:
                code = verb_class * self.num_nouns + noun_class
        self[key] = code
        return code


def _numbers(entry: Mapping[str, Any], kind: str, segment: str) -> _Numbers:
    if kind not in entry:
        raise ValueError(f"segment {segment!r} has no scores of {kind}s")
    numbers = entry[kind]
    if not isinstance(numbers, _Numbers):
        raise ValueError(
            f"segment {segment!r}: the scores of {kind}s are not all numbers: give one by the name of each"
        )
    return numbers
