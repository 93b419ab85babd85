"""Classes over a video's time as one picture, from any number of clips in constant memory."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from memvit.video.time_bins import HeadScores, TimeBins
from memvit.video.timeline_picture import draw


class Timeline:
    """Gathers the scores of clips into bins of time, and draws them.

    The bins are fixed in number and double their width when the video outgrows them, and only the classes with the
    highest peaks are kept: memory does not grow with the video. Where clips overlap their scores are averaged, each
    weighted by the time it covers.

    Args:
        title: stands above the picture.
        max_labels: classes drawn, each in its own row.
        notice: what has to be plain to every viewer ("untrained weights"), drawn as a banner.
        remark: what else there is to say of the picture; stands in small letters below the title.
        heads: what the heads are called whose classes are added; nothing where there is one.
        first_leads: the first head is what the others say together, an action: its best class per time is drawn large.
        start_s: where the picture begins, seconds; where the first clip does if None.
        num_bins: bins of time, an even number.
        max_tracked: classes kept per head.

    Attributes:
        heads: per head, the scores gathered so far.
        num_clips: clips added.

    Raises:
        ValueError: a count is out of range.
    """

    def __init__(
        self,
        *,
        title: str = "",
        max_labels: int = 8,
        notice: str | None = None,
        remark: str = "",
        heads: Sequence[str] = ("",),
        first_leads: bool = False,
        start_s: float | None = None,
        num_bins: int = 2048,
        max_tracked: int = 64,
    ) -> None:
        if num_bins < 2 or num_bins % 2:
            raise ValueError(f"num_bins={num_bins}: bins merge in pairs; use an even number, 2 or more")
        if not 1 <= max_labels <= max_tracked:
            raise ValueError(f"max_labels={max_labels} must lie between 1 and max_tracked={max_tracked}")
        self.title = title
        self.max_labels = max_labels
        self.notice = notice
        self.remark = remark
        self.first_leads = first_leads
        self.num_clips = 0
        self.bins = TimeBins(num_bins, start_s)
        self.heads = [HeadScores(name, self.bins, max_tracked) for name in heads]

    def add(self, start_s: float, end_s: float, *scores: Sequence[tuple[str, float]]) -> None:
        """Take in one clip.

        Args:
            start_s: where the clip begins, seconds; not before the beginning of the picture.
            end_s: where it ends, after `start_s`.
            scores: per head, its classes, each once, with scores of 0 or more. Classes left out count as 0.

        Raises:
            ValueError: the times are not in that order, or a score is negative or not finite.
        """
        if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s < end_s):
            raise ValueError(f"a clip from {start_s} s to {end_s} s has no length; give start_s < end_s, both finite")
        assert len(scores) == len(self.heads)
        for label, score in itertools.chain(*scores):
            if not (math.isfinite(score) and score >= 0):
                raise ValueError(f"the score of {label!r} at {start_s} s is {score}; it must be finite and 0 or more")
        where, overlap_s, doublings = self.bins.cover(start_s, end_s)
        self.num_clips += 1
        for head, classes in zip(self.heads, scores, strict=True):
            for _ in range(doublings):
                head.double_bins()
            for label, score in classes:
                head.add(where, overlap_s, label, score)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Draw what was added so far into a PNG file, which appears whole or not at all.

        Raises:
            ValueError: no clip was added, or the file cannot be written.
        """
        path = Path(path)
        if self.num_clips == 0:
            raise ValueError(f"{path}: there is no clip to draw; add one or more")
        part = path.with_name(f"{path.name}.part")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the label shows boxes, as it must
                draw(self).savefig(part, format="png")
            os.replace(part, path)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"{path}: cannot write the picture ({reason}); choose another file") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


def draw_timeline(
    path_png: str | os.PathLike[str],
    rows: Iterable[tuple[float, float, Sequence[tuple[str, float]]]],
    *,
    title: str,
    max_labels: int = 8,
    notice: str | None = None,
) -> None:
    """Draw which classes were seen when.

    Args:
        path_png: the picture to write.
        rows: (start_s, end_s, [(label, score), ...]) per clip, in order; read once, so an iterator will do.
        title: stands above the picture.
        max_labels: classes drawn.
        notice: a banner's text.

    Raises:
        ValueError: there are no rows, a row is not valid (see `Timeline.add`), or the file cannot be written.
    """
    timeline = Timeline(title=title, max_labels=max_labels, notice=notice)
    for start_s, end_s, scores in rows:
        timeline.add(start_s, end_s, scores)
    timeline.save(path_png)
