"""Annotations for the metrics of EPIC-KITCHENS-100: generated ones, and the real ones where somebody has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from epic_tree import real_annotations

SUBSET_FILES = {
    "tail_verbs": "EPIC_100_tail_verbs.csv",
    "tail_nouns": "EPIC_100_tail_nouns.csv",
    "unseen_participants": "EPIC_100_unseen_participant_ids_validation.csv",
}


@pytest.fixture
def real_epic() -> dict[str, Path]:
    """The official files of the validation set, by what the metrics call them."""
    folder = real_annotations()
    files = {"annotations": folder / "EPIC_100_validation.csv"}
    files |= {option: folder / name for option, name in SUBSET_FILES.items()}
    return files


def make_segments(num: int, *, num_verbs: int, num_nouns: int, seed: int = 0) -> pd.DataFrame:
    """Labelled segments of four participants; low classes are frequent, as they are in life."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "narration_id": [f"Q{number % 4}_01_{number}" for number in range(num)],
            "participant_id": [f"Q{number % 4}" for number in range(num)],
            "verb_class": (num_verbs * rng.random(num) ** 2).astype(int),
            "noun_class": (num_nouns * rng.random(num) ** 2).astype(int),
        }
    )


def make_scores(
    segments: pd.DataFrame, *, num_verbs: int, num_nouns: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Random logits (n, verbs) and (n, nouns), float64, somewhat higher for the true classes."""
    rng = np.random.default_rng(seed)  # the golden values rest on the order of what follows
    verbs, nouns = (rng.standard_normal((len(segments), num)) for num in (num_verbs, num_nouns))
    for scores, name in ((verbs, "verb_class"), (nouns, "noun_class")):
        scores[np.arange(len(segments)), segments[name]] += 1.5 * rng.random(len(segments)) * 2
    return verbs, nouns
