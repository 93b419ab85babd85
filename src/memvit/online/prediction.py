"""What was recognised in one clip."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from memvit.models.config import HeadConfig


@dataclass(frozen=True)
class ClipPrediction:
    """What was recognised in one clip of a stream.

    Attributes:
        stream: the stream's name.
        clip: number of the clip in its stream, from 0.
        start_s, end_s: the clip in seconds of the stream. The last clip of a stream may be shorter than the others.
        logits: per head, raw: (classes,), or (T, classes) for frame-level models.
    """

    stream: Hashable
    clip: int
    start_s: float
    end_s: float
    logits: tuple[np.ndarray, ...]
    head: HeadConfig

    @property
    def scores(self) -> tuple[np.ndarray, ...]:
        """Per head, softmax or sigmoid of the logits, of the same shape."""
        return tuple(activate(logits, self.head.activation) for logits in self.logits)

    def topk(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Per head, the `k` best (label, score), best first; of frame-level models, by the mean over the clip."""
        means = [scores.reshape(-1, scores.shape[-1]).mean(axis=0) for scores in self.scores]
        return [best_classes(mean, self.head, k, which) for which, mean in enumerate(means)]

    def label(self, class_index: int, head: int = 0) -> str:
        """The name of a class, or "class 17" where the model knows no names."""
        return label_of(self.head, class_index, head)


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
