"""Writes submissions to the challenges of EPIC-KITCHENS-100."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from memvit.metrics.epic_annotations import FilePath
from memvit.metrics.epic_format import JSON_FILE, NUM_ACTIONS, VERSION, Challenge, check_challenge, check_level
from memvit.metrics.epic_scores import as_scores, top_actions

ROWS_AT_A_TIME = 500


def write_submission(
    path: FilePath,
    challenge: Challenge,
    narration_ids: Iterable[str],
    verb_scores: ArrayLike,
    noun_scores: ArrayLike,
    *,
    sls_pt: int = 2,
    sls_tl: int = 3,
    sls_td: int = 3,
) -> None:
    """Writes a submission, whole or not at all.

    Scores have the 9 digits that tell all float32 numbers apart, or 17 if one of them is no float32 number. Actions stand in
    their order, the best first, so that evaluating the file gives the metrics of evaluating the scores.

    Args:
        path: of the zip file.
        challenge: "action_recognition" or "action_anticipation".
        narration_ids: of n segments.
        verb_scores: (n, verbs), raw; arrays or tensors. The challenge has 97 verbs.
        noun_scores: (n, nouns), raw. The challenge has 300 nouns.
        sls_pt: supervision level of pre-training: 0 none, 1 public images, 2 public images and videos (such as Kinetics), 3
            self-supervised on public data, 4 the same with videos of EPIC-KITCHENS, 5 private data.
        sls_tl: supervision level of training labels: 0 none, 1 of whole videos, 2 single timestamps, 3 start and end, 4
            spatial annotations as well, 5 additional knowledge.
        sls_td: supervision level of training data: 0 none, 1 up to five examples of each class, 2 up to a quarter of the
            training set, 3 the training set, 4 the validation set as well, 5 additional data.

    Raises:
        OSError: the file cannot be written.
        ValueError: the challenge is unknown, shapes do not fit, a score is not finite, an id occurs twice, or a level is not
            from 0 to 5.
    """
    check_challenge(challenge)
    levels = {"sls_pt": sls_pt, "sls_tl": sls_tl, "sls_td": sls_td}
    for name, level in levels.items():
        check_level(name, level)
    ids = list(map(str, narration_ids))
    verbs, nouns = as_scores(verb_scores, "verb_scores"), as_scores(noun_scores, "noun_scores")
    if not len(ids) == len(verbs) == len(nouns) > 0:
        raise ValueError(
            f"{len(ids)} narration_ids, {len(verbs)} rows of verb_scores, {len(nouns)} of noun_scores: give one or more "
            "segments, each with its id and a row of both"
        )
    if len(set(ids)) < len(ids):
        twice = pd.Index(ids)[pd.Index(ids).duplicated()][0]
        raise ValueError(f"narration_ids has {twice!r} twice: give every segment once")
    head = json.dumps({"version": VERSION, "challenge": challenge, **levels, "results": {}})
    part = Path(f"{os.fspath(path)}.part")
    info = zipfile.ZipInfo(JSON_FILE)  # without the time, so that equal scores make equal files
    info.compress_type = zipfile.ZIP_DEFLATED
    try:
        with zipfile.ZipFile(part, "w") as archive, archive.open(info, "w") as file:
            file.write(head.removesuffix("}}").encode())
            for text in _entries(ids, verbs, nouns):
                file.write(text.encode())
            file.write(b"}}\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _entries(ids: Sequence[str], verbs: np.ndarray, nouns: np.ndarray) -> Iterator[str]:
    """The entries of all segments, some at a time."""
    with np.errstate(over="ignore"):
        is_single = all(np.array_equal(scores.astype(np.float32), scores) for scores in (verbs, nouns))
    number = "%.9g" if is_single else "%.17g"
    verb_form, noun_form = (
        ",".join(f'"{column}":{number}' for column in range(scores.shape[1])) for scores in (verbs, nouns)
    )
    for first in range(0, len(ids), ROWS_AT_A_TIME):
        some = slice(first, first + ROWS_AT_A_TIME)
        best = top_actions(verbs[some], nouns[some], NUM_ACTIONS)
        action_form = ",".join([f'"%d,%d":{number}'] * best.scores.shape[1])
        # Verb, noun and score of one action after the other; as floats, which hold whole numbers exactly.
        cells = np.stack([best.verbs, best.nouns, best.scores], axis=2).reshape(len(best), -1)
        texts = []
        for name, verb, noun, action in zip(
            ids[some], verbs[some].tolist(), nouns[some].tolist(), cells.tolist(), strict=True
        ):
            texts.append(
                f'{json.dumps(name)}:{{"verb":{{{verb_form % tuple(verb)}}},"noun":{{{noun_form % tuple(noun)}}},'
                f'"action":{{{action_form % tuple(action)}}}}}'
            )
        yield (",\n" if first else "\n") + ",\n".join(texts)
