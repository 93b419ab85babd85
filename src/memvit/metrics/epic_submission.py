"""Submissions to the challenges of EPIC-KITCHENS-100: written, read and measured. Their form is in `epic_format`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memvit.metrics.epic_annotations import Annotations, FilePath, read_annotations
from memvit.metrics.epic_format import CHALLENGES, Challenge
from memvit.metrics.epic_kitchens import anticipation, recognition
from memvit.metrics.epic_reading import read_content
from memvit.metrics.epic_scores import TopActions
from memvit.metrics.epic_writing import write_submission

__all__ = ["CHALLENGES", "Challenge", "Submission", "read_submission", "write_submission"]


@dataclass(frozen=True, eq=False)
class Submission:
    """What a model predicts for the segments of a challenge.

    Attributes:
        challenge: "action_recognition" or "action_anticipation".
        narration_ids: of the segments (n,), in any order.
        verb_scores: float64 (n, verbs), raw.
        noun_scores: float64 (n, nouns), raw.
        actions: the best 100 actions of every segment, or all where there are fewer; None: they follow from verbs and nouns.
        sls_pt: supervision level of pre-training.
        sls_tl: that of training labels.
        sls_td: that of training data.
    """

    challenge: Challenge
    narration_ids: tuple[str, ...]
    verb_scores: np.ndarray
    noun_scores: np.ndarray
    actions: TopActions | None
    sls_pt: int
    sls_tl: int
    sls_td: int

    def measure(
        self,
        annotations: Annotations,
        tail_verbs: FilePath | Iterable[int] | None = None,
        tail_nouns: FilePath | Iterable[int] | None = None,
        unseen_participants: FilePath | Iterable[str] | None = None,
    ) -> dict[str, float]:
        """The metrics of the challenge, in percent; segments are matched by their narration ids.

        Args:
            annotations: as of `memvit.metrics.epic_kitchens.recognition`, with the column (or index) narration_id.
            tail_verbs: as there.
            tail_nouns: as there.
            unseen_participants: as there.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a segment is annotated but not submitted, or submitted but not annotated; and as there.
        """
        segments = read_annotations(annotations)
        rows = self._rows_of(segments.unique_ids())
        measure = recognition if self.challenge == "action_recognition" else anticipation
        return measure(
            self.verb_scores[rows],
            self.noun_scores[rows],
            segments,
            tail_verbs,
            tail_nouns,
            unseen_participants,
            actions=None if self.actions is None else self.actions[rows],
        )

    def _rows_of(self, narration_ids: np.ndarray) -> np.ndarray:
        """Where these segments are among the submitted, int64 (n,)."""
        submitted, annotated = pd.Index(self.narration_ids, dtype=object), pd.Index(narration_ids, dtype=object)
        rows = submitted.get_indexer(annotated)
        missing, unknown = annotated[rows < 0], submitted[annotated.get_indexer(submitted) < 0]
        faults = []
        if len(missing):
            faults.append(f"{len(missing):,} of {len(annotated):,} annotated segments are missing, {_name(missing)}")
        if len(unknown):
            faults.append(f"{len(unknown):,} of {len(submitted):,} segments are not annotated, {_name(unknown)}")
        if faults:
            raise ValueError(
                f"the submission does not fit the annotations: {'; '.join(faults)}: is it for another split?"
            )
        return rows


def read_submission(path: FilePath) -> Submission:
    """Reads a submission to the recognition or the anticipation challenge.

    How many verbs and nouns there are is taken from the file; every segment must have scores of all. A zip with one JSON file
    of another name is read as well.

    Args:
        path: of the zip file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no zip file or holds no submission: another version or challenge, a level that is none, a segment
            that occurs twice or has not all verbs, nouns or 100 actions, a score that is no finite number.
    """
    content = read_content(path)
    return Submission(
        content.challenge,
        content.narration_ids,
        content.verb_scores,
        content.noun_scores,
        content.actions,
        **content.levels,
    )


def _name(segments: pd.Index) -> str:
    return f"{'such as ' if len(segments) > 3 else ''}{', '.join(map(str, segments[:3]))}"
