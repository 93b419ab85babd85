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
        return tuple(_activate(logits, self.head.activation) for logits in self.logits)

    def topk(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Per head, the `k` best (label, score), best first; of frame-level models, by the mean over the clip."""
        best = []
        for head, scores in enumerate(self.scores):
            mean = scores.reshape(-1, scores.shape[-1]).mean(axis=0)
            order = np.argsort(-mean, kind="stable")[:k]
            best.append([(self.label(int(i), head), float(mean[i])) for i in order])
        return best

    def label(self, class_index: int, head: int = 0) -> str:
        """The name of a class, or "class 17" where the model knows no names."""
        names = self.head.class_names
        return names[head][class_index] if names else f"class {class_index}"


def _activate(logits: np.ndarray, activation: str) -> np.ndarray:
    if activation == "sigmoid":
        return 1.0 / (1.0 + np.exp(-logits))
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
