"""Where people are between the moments at which they were seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain, islice

from memvit.online.box_files import interpolate
from memvit.online.persons import Corners


class Trajectories:
    """Boxes of people at any time, from boxes at some times; asked and read in order of time, in constant memory.

    Between two boxes of a person, the box moves straight from one to the other, unless they are too far apart in time. Before
    the first and after the last it stands still for half a period, and until the end of the video where nobody looked again.

    Args:
        seen: (time_s, track, box), in order of time.
        period_s: from one look to the next.
        end_s: when the last look was.
        max_absence_s: people who were out of sight for longer are not drawn in between.
    """

    def __init__(
        self, seen: Iterable[tuple[float, int, Corners]], period_s: float, end_s: float, max_absence_s: float = 2.0
    ) -> None:
        self.period_s = period_s
        self.end_s = end_s
        self.max_absence_s = max(max_absence_s, 1.5 * period_s) + 1e-6
        self._seen = iter(seen)
        self._next = next(self._seen, None)
        self._points: dict[int, deque[tuple[float, Corners]]] = {}

    def at(self, time_s: float) -> dict[int, Corners]:
        """The boxes of a time, no earlier than the one before, by track."""
        while self._next is not None and self._next[0] <= time_s + self.max_absence_s:
            seen_s, track, corners = self._next
            self._points.setdefault(track, deque()).append((seen_s, corners))
            self._next = next(self._seen, None)
        boxes = {}
        for track, points in sorted(self._points.items()):
            while len(points) > 1 and points[1][0] <= time_s:
                points.popleft()
            if points[-1][0] < time_s - self.max_absence_s:
                del self._points[track]
            elif (box := self._between(points, time_s)) is not None:
                boxes[track] = box
        return boxes

    def _between(self, points: deque[tuple[float, Corners]], time_s: float) -> Corners | None:
        """The box at a time, of points of which at most the first is earlier."""
        (first_s, first), (later_s, later) = islice(chain(points, [points[-1]]), 2)
        if first_s > time_s:
            return first if first_s - time_s <= self.period_s / 2 else None
        if first_s < later_s <= first_s + self.max_absence_s:
            return interpolate(first, later, (time_s - first_s) / (later_s - first_s))
        if later_s > time_s and later_s - time_s <= self.period_s / 2:
            return later
        is_last_look = first_s + self.period_s / 2 > self.end_s
        return first if is_last_look or time_s - first_s <= self.period_s / 2 else None
