"""Metrics of EPIC-KITCHENS-100 (Damen et al., IJCV 2022): action recognition and action anticipation.

A segment has a verb and a noun; both together are its action. A model scores verbs and nouns; the score of an action is the
product of both softmax probabilities. All values are percentages, under the names of the official evaluators:

- Recognition: top-1 and top-5 accuracy of all segments, and top-1 accuracy of those of participants that training never saw
  (`unseen`) and of those with rare classes (`tail`).
- Anticipation: top-5 recall of every class, averaged over the classes that occur, for all segments (`overall`) and the same
  subsets. A class of actions is a pair of verb and noun.

For verbs, `tail` are the segments with a tail verb; for nouns, those with a tail noun; for actions, those with either.

Of equal scores the first class is better; of equal actions that with the better verb, then that with the better noun.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from memvit.metrics.epic_annotations import (
    Annotations,
    FilePath,
    Segments,
    read_annotations,
    read_classes,
    read_participants,
)
from memvit.metrics.epic_scores import TopActions, as_scores, label_ranks, top_actions

__all__ = ["TASKS", "TopActions", "anticipation", "recognition"]

TASKS = ("verb", "noun", "action")
TOP = 5


def recognition(
    verb_scores: ArrayLike,
    noun_scores: ArrayLike,
    annotations: Annotations,
    tail_verbs: FilePath | Iterable[int] | pd.DataFrame | None = None,
    tail_nouns: FilePath | Iterable[int] | pd.DataFrame | None = None,
    unseen_participants: FilePath | Iterable[str] | pd.DataFrame | None = None,
    *,
    actions: TopActions | None = None,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy of recognised verbs, nouns and actions.

    Args:
        verb_scores: (n, verbs), raw; arrays or tensors.
        noun_scores: (n, nouns), raw.
        annotations: n segments in the order of the scores: a CSV file as EPIC_100_validation.csv, or a table of it.
        tail_verbs: ids of the tail classes, or a CSV file or a table with the column verb; None: no values for tail verbs and
            actions.
        tail_nouns: ids of the tail classes, or a CSV file or a table with the column noun; None: no values for tail nouns and
            actions.
        unseen_participants: their ids, such as "P00", or a CSV file or a table with the column participant_id; None: no values
            for unseen participants.
        actions: the best actions where they are not to be found from verbs and nouns; five or more, if there are as many.

    Returns:
        ``{all,tail,unseen}_{verb,noun,action}_accuracy_at_{1,5}``, the 5 of `all` only, in percent. Values of a subset that
        no segment belongs to are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: shapes do not fit, a score is not finite, columns are missing, or a segment's class has no score.
    """
    segments = read_annotations(annotations)
    outcome = _rank(verb_scores, noun_scores, segments, actions)
    values = {f"all_{task}_accuracy_at_{k}": _accuracy(outcome.ranks[task] < k) for task in TASKS for k in (1, TOP)}
    for subset, of_task in _subsets(segments, tail_verbs, tail_nouns, unseen_participants).items():
        for task, chosen in of_task.items():
            values[f"{subset}_{task}_accuracy_at_1"] = _accuracy(outcome.ranks[task][chosen] < 1)
    return values


def anticipation(
    verb_scores: ArrayLike,
    noun_scores: ArrayLike,
    annotations: Annotations,
    tail_verbs: FilePath | Iterable[int] | pd.DataFrame | None = None,
    tail_nouns: FilePath | Iterable[int] | pd.DataFrame | None = None,
    unseen_participants: FilePath | Iterable[str] | pd.DataFrame | None = None,
    *,
    actions: TopActions | None = None,
) -> dict[str, float]:
    """Class-mean top-5 recall of anticipated verbs, nouns and actions.

    Args:
        verb_scores: as of `recognition`.
        noun_scores: as of `recognition`.
        annotations: as of `recognition`.
        tail_verbs: as of `recognition`.
        tail_nouns: as of `recognition`.
        unseen_participants: as of `recognition`.
        actions: as of `recognition`.

    Returns:
        ``{overall,unseen,tail}_{verb,noun,action}_mt5r`` in percent. Values of a subset that no segment belongs to are left
        out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as of `recognition`.
    """
    segments = read_annotations(annotations)
    outcome = _rank(verb_scores, noun_scores, segments, actions)
    subsets = _subsets(segments, tail_verbs, tail_nouns, unseen_participants)
    everything = np.ones(len(segments), bool)
    values = {}
    for subset in ("overall", "unseen", "tail"):
        of_task = dict.fromkeys(TASKS, everything) if subset == "overall" else subsets[subset]
        for task, chosen in of_task.items():
            is_hit = outcome.ranks[task][chosen] < TOP
            values[f"{subset}_{task}_mt5r"] = _mean_recall(is_hit, outcome.labels[task][chosen])
    return values


@dataclass(frozen=True)
class _Outcome:
    """Per task the true classes int64 (n,), and how many classes are better, int64 (n,): exact if below `TOP`."""

    labels: dict[str, np.ndarray]
    ranks: dict[str, np.ndarray]


def _rank(verb_scores: ArrayLike, noun_scores: ArrayLike, segments: Segments, actions: TopActions | None) -> _Outcome:
    verbs, nouns = as_scores(verb_scores, "verb_scores"), as_scores(noun_scores, "noun_scores")
    rows = {"verb_scores": len(verbs), "noun_scores": len(nouns)} | (
        {} if actions is None else {"actions": len(actions)}
    )
    for name, num in rows.items():
        if num != len(segments):
            raise ValueError(f"{name} has {num} rows for {len(segments)} annotated segments: give one row per segment")
    num_verbs, num_nouns = verbs.shape[1], nouns.shape[1]
    segments.check_classes(num_verbs=num_verbs, num_nouns=num_nouns)
    best = top_actions(verbs, nouns, TOP) if actions is None else actions.best(TOP)
    if best.scores.shape[1] < min(TOP, num_verbs * num_nouns):
        raise ValueError(f"actions holds {best.scores.shape[1]} actions of each segment: give {TOP} or more")
    is_true = (best.verbs == segments.verbs[:, None]) & (best.nouns == segments.nouns[:, None])
    return _Outcome(
        {"verb": segments.verbs, "noun": segments.nouns, "action": segments.verbs * num_nouns + segments.nouns},
        {
            "verb": label_ranks(verbs, segments.verbs),
            "noun": label_ranks(nouns, segments.nouns),
            "action": np.where(is_true.any(axis=1), is_true.argmax(axis=1), TOP),
        },
    )


def _subsets(
    segments: Segments,
    tail_verbs: FilePath | Iterable[int] | pd.DataFrame | None,
    tail_nouns: FilePath | Iterable[int] | pd.DataFrame | None,
    unseen_participants: FilePath | Iterable[str] | pd.DataFrame | None,
) -> dict[str, dict[str, np.ndarray]]:
    """By name of the subset and task, which segments belong to it, bool (n,); without what is unknown or empty."""
    tail, unseen = {}, {}
    if tail_verbs is not None:
        tail["verb"] = np.isin(segments.verbs, sorted(read_classes(tail_verbs, "verb")))
    if tail_nouns is not None:
        tail["noun"] = np.isin(segments.nouns, sorted(read_classes(tail_nouns, "noun")))
    if len(tail) == 2:
        tail["action"] = tail["verb"] | tail["noun"]
    if unseen_participants is not None:
        unseen = dict.fromkeys(TASKS, segments.is_of_participants(read_participants(unseen_participants)))
    return {
        name: {task: chosen for task, chosen in of_task.items() if chosen.any()}
        for name, of_task in (("tail", tail), ("unseen", unseen))
    }


def _accuracy(is_hit: np.ndarray) -> float:
    return 100 * float(is_hit.mean())


def _mean_recall(is_hit: np.ndarray, labels: np.ndarray) -> float:
    _, classes = np.unique(labels, return_inverse=True)
    return 100 * float(np.mean(np.bincount(classes, weights=is_hit) / np.bincount(classes)))
