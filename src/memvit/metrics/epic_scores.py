"""Scores of verbs and nouns, and the best actions that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

ROWS_AT_A_TIME = 2_000


@dataclass(frozen=True, eq=False)
class TopActions:
    """The best actions of every segment.

    Attributes:
        verbs: int64 (n, K), K actions of each of n segments.
        nouns: int64 (n, K).
        scores: float64 (n, K), finite. Only their order within a segment counts; of equal ones the first is better.

    Raises:
        ValueError: the shapes do not fit.
    """

    verbs: np.ndarray
    nouns: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        shapes = {np.shape(array) for array in (self.verbs, self.nouns, self.scores)}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise ValueError(
                f"the best actions have verbs {np.shape(self.verbs)}, nouns {np.shape(self.nouns)} and scores "
                f"{np.shape(self.scores)}: give three arrays (segments, actions)"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, segments: np.ndarray | slice) -> TopActions:
        return TopActions(self.verbs[segments], self.nouns[segments], self.scores[segments])

    def best(self, num_actions: int) -> TopActions:
        """The best of these, the best first.

        Args:
            num_actions: how many, of each segment.
        """
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :num_actions]
        return TopActions(*(np.take_along_axis(array, order, 1) for array in (self.verbs, self.nouns, self.scores)))


def as_scores(scores: ArrayLike, name: str) -> np.ndarray:
    """Scores as float64 (segments, classes).

    Args:
        scores: array, tensor or lists.
        name: what to call them in messages.

    Raises:
        ValueError: they have another shape, or one is not finite.
    """
    if hasattr(
        scores, "detach"
    ):  # a tensor, maybe on a GPU or of a type that NumPy has not; PyTorch is not needed here
        scores = scores.detach().cpu().double().numpy()
    array = np.asarray(scores, np.float64)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name} has the shape {array.shape}: give (segments, classes)")
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"{name}[{row}, {column}] is {array[row, column]}: did the model's training diverge?")
    return array


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes are better than the true one, int64 (n,); of equal scores the first class is better.

    Args:
        scores: float (n, C).
        labels: int (n,), the true classes.
    """
    true = np.take_along_axis(scores, labels[:, None], axis=1)
    is_before = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > true) | ((scores == true) & is_before)).sum(axis=1)


def top_actions(verb_scores: np.ndarray, noun_scores: np.ndarray, num_actions: int) -> TopActions:
    """The best actions by the product of their verb's and their noun's softmax probability, the best first.

    Products are compared by their logarithms, that is, by the sum of both scores, which neither underflows nor rounds two
    equal sums apart. Of equal actions that with the better verb is better, then that with the better noun; of equal verbs, or
    nouns, the first.

    Args:
        verb_scores: float (n, verbs), raw: softmax is done here.
        noun_scores: float (n, nouns), raw.
        num_actions: how many of each segment; all where there are fewer.

    Returns:
        Actions with the products as scores. These never rise from one action to the next.
    """
    parts = [
        _top_actions(
            verb_scores[first : first + ROWS_AT_A_TIME], noun_scores[first : first + ROWS_AT_A_TIME], num_actions
        )
        for first in range(0, max(1, len(verb_scores)), ROWS_AT_A_TIME)
    ]
    return TopActions(
        *(np.concatenate(arrays) for arrays in zip(*((p.verbs, p.nouns, p.scores) for p in parts), strict=True))
    )


def _top_actions(verb_scores: np.ndarray, noun_scores: np.ndarray, num_actions: int) -> TopActions:
    # All actions with a verb and a noun at least as good are better. So a verb of rank a and a noun of rank b, from 1, are
    # among the k best only if a * b <= k: of 29,100 pairs, 10 are left for k = 5 and 482 for k = 100.
    verb_ranks, noun_ranks = np.nonzero(
        np.multiply.outer(
            np.arange(1, min(num_actions, verb_scores.shape[1]) + 1),
            np.arange(1, min(num_actions, noun_scores.shape[1]) + 1),
        )
        <= num_actions
    )
    verbs = np.argsort(-verb_scores, axis=1, kind="stable")[:, verb_ranks]
    nouns = np.argsort(-noun_scores, axis=1, kind="stable")[:, noun_ranks]
    sums = np.take_along_axis(verb_scores, verbs, 1) + np.take_along_axis(noun_scores, nouns, 1)
    best = TopActions(verbs, nouns, sums).best(num_actions)
    log_total = np.logaddexp.reduce(verb_scores, axis=1) + np.logaddexp.reduce(noun_scores, axis=1)
    return TopActions(best.verbs, best.nouns, np.exp(best.scores - log_total[:, None]))
