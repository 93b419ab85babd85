"""What was recognised in one clip, or what is coming."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from memvit.models.config import HeadConfig


@dataclass(frozen=True)
class ClipPrediction:
    """What a model says of one clip of a stream.

    A model recognises: what it says is about the clip. Or it anticipates (`head.anticipation_s` above 0): what it says is
    about one moment after what it has seen, `about_s`.

    Attributes:
        stream: the stream's name.
        clip: number of the clip in its stream, from 0.
        start_s, end_s: the clip in seconds of the stream. The last clip of a stream may be shorter than the others.
        logits: per head, raw: (classes,), or (T, classes) for frame-level models.
        about_s: the moment that `topk` and `actions` speak of if the model anticipates, seconds of the stream: of a clip
            `anticipation_s` after its end; of frame-level models so long after the last frame that the token time `newest`
            shows. None: the model recognises.
        newest: of frame-level models, the token time that shows the last frame of the clip. It is not the last one where a
            stream ended within a clip, which is then filled up by repeating that frame.
    """

    stream: Hashable
    clip: int
    start_s: float
    end_s: float
    logits: tuple[np.ndarray, ...]
    head: HeadConfig
    about_s: float | None = None
    newest: int = -1

    @property
    def scores(self) -> tuple[np.ndarray, ...]:
        """Per head, softmax or sigmoid of the logits, of the same shape."""
        return tuple(activate(logits, self.head.activation) for logits in self.logits)

    @property
    def clip_scores(self) -> tuple[np.ndarray, ...]:
        """Per head, the scores that `topk` ranks, (classes,).

        Of frame-level models that recognise, the mean over the clip. Of those that anticipate, the scores of the token time
        `newest`: those before it are about other moments.
        """
        if self.head.task != "frames":
            return self.scores
        if self.head.anticipation_s > 0:
            return tuple(scores[self.newest] for scores in self.scores)
        return tuple(scores.mean(axis=0) for scores in self.scores)

    def topk(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Per head, the `k` best (label, score) of `clip_scores`, best first."""
        return [best_classes(scores, self.head, k, which) for which, scores in enumerate(self.clip_scores)]

    def actions(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` best actions as (label, score), best first; of models with two or more heads and softmax, else none.

        An action is one class of each head, a verb and a noun; its score is the product of their softmax probabilities, as
        EPIC-KITCHENS defines it. They are those of `clip_scores`, so that the score is the product of what `topk` says. The
        label joins the names of the classes in the order of the heads: "cut tomato".
        """
        if not has_actions(self.head):
            return []
        return [
            (" ".join(self.label(index, which) for which, index in enumerate(classes)), score)
            for classes, score in best_combinations(self.clip_scores, k)
        ]

    def label(self, class_index: int, head: int = 0) -> str:
        """The name of a class, or "class 17" where the model knows no names."""
        return label_of(self.head, class_index, head)


def has_actions(head: HeadConfig) -> bool:
    """Whether the classes of several heads make actions: one of each is true at a time, so their probabilities multiply."""
    return len(head.num_classes) > 1 and head.activation == "softmax"


def best_combinations(scores: Sequence[np.ndarray], k: int) -> list[tuple[tuple[int, ...], float]]:
    """The `k` best combinations of one class of each head by the product of their scores, best first.

    Only combinations whose ranks (from 1, per head) multiply to `k` or less are looked at. One of ranks (a, b) has a x b - 1
    others that are at least as good: all those that no head ranks lower.

    Args:
        scores: per head (classes,), 0 or more.
        k: fewer are returned where there are fewer.

    Returns:
        (the class of each head, the product). Of equal ones those come first whose first heads rank higher.
    """
    orders = [np.argsort(-head, kind="stable")[:k] for head in scores]
    ranked = []
    for ranks in _ranks([len(order) for order in orders], k):
        classes = tuple(int(order[rank]) for order, rank in zip(orders, ranks, strict=True))
        ranked.append((-math.prod(float(head[i]) for head, i in zip(scores, classes, strict=True)), ranks, classes))
    return [(classes, -product) for product, _, classes in sorted(ranked)[:k]]


def _ranks(counts: Sequence[int], k: int) -> Iterator[tuple[int, ...]]:
    """Ranks from 0 for each head, below `counts`, that multiply to `k` or less when they are counted from 1."""
    if not counts:
        yield ()
        return
    for rank in range(min(counts[0], k)):
        for rest in _ranks(counts[1:], k // (rank + 1)):
            yield (rank, *rest)


def newest_time(num_seen: int, num_frames: int, num_times: int) -> int:
    """The token time that shows the last of the first `num_seen` frames of a clip of `num_frames`."""
    return math.ceil(num_seen * num_times / num_frames) - 1


def best_classes(scores: np.ndarray, head: HeadConfig, k: int, which: int = 0) -> list[tuple[str, float]]:
    """The `k` best (label, score) of a vector of scores, best first; `which` of a model's heads gave it."""
    order = np.argsort(-scores, kind="stable")[:k]
    return [(label_of(head, int(i), which), float(scores[i])) for i in order]


def label_of(head: HeadConfig, class_index: int, which: int = 0) -> str:
    """The name of a class of one of a model's heads, or "class 17" where the model knows no names."""
    return head.class_names[which][class_index] if head.class_names else f"class {class_index}"


def activate(logits: np.ndarray, activation: str) -> np.ndarray:
    """Scores of raw logits (..., classes): their "sigmoid" or "softmax"."""
    if activation == "sigmoid":
        return 1.0 / (1.0 + np.exp(-logits))
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
