"""Which clips each stream of a batch shows, in which order.

A model with memory reads a stream of consecutive clips; a batch holds clip t of B streams. Every clip is read once a
pass.

- **Training**: the videos are shuffled, laid end to end and cut into streams of equal length (give or take one clip).
  A cut mostly falls inside a video. What comes after a cut starts with an empty memory.
- **Evaluation**: a video is never cut, so each clip is seen with the same memory, and metrics are the same, however many
  streams there are. Whole videos go to streams, the longest first onto the shortest stream.

Streams should be out of step: a batch of all first clips (of all last clips, ...) has strongly correlated gradients, and
all its memories are empty at once. Streams of shuffled videos of different lengths get out of step by themselves. Streams
of videos with equally many clips stay as far apart as they begin; where cuts fall on the borders of videos, all begin
with a clip 0. :func:`training_streams` therefore looks at the first clips of the streams, and where too many have the
same place in videos of the same number of clips, rotates some: such a stream begins inside a video and shows what
comes before its beginning at its end. That cuts at most one video more per rotated stream, and only when needed.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

# In place of a video: the stream waits for others.
NOTHING = -1


class Segment(NamedTuple):
    """Consecutive clips of one video in a stream.

    Attributes:
        video: number of the video in the data set, or `NOTHING`.
        first: number of the first clip, from 0.
        end: number after the last clip.
    """

    video: int
    first: int
    end: int

    @property
    def num_clips(self) -> int:
        """How many clips."""
        return self.end - self.first


Stream = tuple[Segment, ...]


def draws(*key: object) -> np.random.Generator:
    """Random numbers that depend on nothing but ``key`` (numbers and strings), on any machine and in any process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def num_steps(streams: Sequence[Stream]) -> int:
    """Clips of the longest stream."""
    return max((sum(segment.num_clips for segment in stream) for stream in streams), default=0)


def training_streams(num_clips: Sequence[int], num_streams: int, seed: int, epoch: int) -> list[Stream]:
    """Shuffle videos and cut them into streams of equal length, give or take one clip.

    Args:
        num_clips: of each video; may be 0.
        num_streams: of all processes together.
        seed: with ``epoch``, decides the order.
        epoch: number of the pass over the data.

    Returns:
        The streams; some are empty if there are fewer clips than streams.
    """
    rng = draws("streams", seed, epoch)
    order = [int(video) for video in rng.permutation(len(num_clips)) if num_clips[video]]
    total = sum(num_clips)
    streams: list[list[Segment]] = [[] for _ in range(num_streams)]
    stream, at = 0, 0
    for video in order:
        first = 0
        while first < num_clips[video]:
            border = total * (stream + 1) // num_streams
            if at == border:
                stream += 1
                continue
            end = min(num_clips[video], first + border - at)
            streams[stream].append(Segment(video, first, end))
            at += end - first
            first = end
    return _out_of_step([tuple(stream) for stream in streams], num_clips, rng)


def evaluation_streams(
    num_clips: Sequence[int], num_streams: int, groups: Sequence[Hashable] | None = None
) -> list[Stream]:
    """Distribute whole videos over streams, the longest first onto the shortest stream.

    Args:
        num_clips: of each video; may be 0.
        num_streams: of all processes together.
        groups: per video, what group it belongs to: videos of different groups (shapes) are never read at the same time.
            One group is read after another, the one with most clips first, and streams wait for the longest.

    Returns:
        The streams; some are empty if there are fewer videos than streams.
    """
    if groups is None:
        return _distribute(num_clips, range(len(num_clips)), num_streams)
    members: dict[Hashable, list[int]] = {}
    for video, group in enumerate(groups):
        members.setdefault(group, []).append(video)
    streams: list[Stream] = [()] * num_streams
    for videos in sorted(members.values(), key=lambda videos: -sum(num_clips[video] for video in videos)):
        longest = num_steps(streams)
        waits = [longest - num_steps([stream]) for stream in streams]
        more = _distribute(num_clips, videos, num_streams)
        streams = [
            (*stream, *([Segment(NOTHING, 0, wait)] if wait and new else []), *new)
            for stream, wait, new in zip(streams, waits, more, strict=True)
        ]
    return streams


def _distribute(num_clips: Sequence[int], videos: Iterable[int], num_streams: int) -> list[Stream]:
    streams: list[list[Segment]] = [[] for _ in range(num_streams)]
    lengths = [(0, stream) for stream in range(num_streams)]
    for video in sorted(videos, key=lambda video: -num_clips[video]):
        if num_clips[video]:
            length, stream = lengths[0]
            streams[stream].append(Segment(video, 0, num_clips[video]))
            heapq.heapreplace(lengths, (length + num_clips[video], stream))
    return [tuple(stream) for stream in streams]


def after(stream: Stream, step: int) -> list[tuple[Segment, int]]:
    """What is left of a stream once ``step`` clips are read: the segments, each with how many of its clips are read."""
    left = []
    for segment in stream:
        read = min(step, segment.num_clips)
        if read < segment.num_clips:
            left.append((segment, read))
        step -= read
    return left


def _out_of_step(streams: list[Stream], num_clips: Sequence[int], rng: np.random.Generator) -> list[Stream]:
    """Rotate streams until no place in videos of one length is the beginning of more streams than its share."""
    begun = [stream for stream in streams if stream]
    lengths = Counter(num_clips[stream[0].video] for stream in begun)
    crowd = Counter((num_clips[stream[0].video], stream[0].first) for stream in begun)
    for index in rng.permutation(len(streams)):
        stream = streams[index]
        if not stream:
            continue
        length = num_clips[stream[0].video]
        share = -(-lengths[length] // length)
        if crowd[length, stream[0].first] <= share:
            continue
        free = [
            (at, clip) for at, clip in _beginnings(stream, num_clips, length) if crowd[length, clip] < share
        ]  # fmt: skip
        if not free:
            continue
        at, clip = free[rng.integers(len(free))]
        crowd[length, stream[0].first] -= 1
        crowd[length, clip] += 1
        streams[index] = _rotated(stream, at)
    return streams


def _beginnings(stream: Stream, num_clips: Sequence[int], length: int) -> list[tuple[int, int]]:
    """Where a stream could begin: (place in the stream, clip), each clip of a video of ``length`` clips at most once."""
    found: dict[int, int] = {}
    at = 0
    for segment in stream:
        if num_clips[segment.video] == length:
            for clip in range(segment.first, segment.end):
                found.setdefault(clip, at + clip - segment.first)
        at += segment.num_clips
        if len(found) == length:
            break
    return [(at, clip) for clip, at in found.items()]


def _rotated(stream: Stream, at: int) -> Stream:
    """The stream from its clip ``at`` on, then what comes before."""
    head: list[Segment] = []
    tail: list[Segment] = []
    for segment in stream:
        cut = segment.first + min(max(at, 0), segment.num_clips)
        if cut > segment.first:
            head.append(Segment(segment.video, segment.first, cut))
        if cut < segment.end:
            tail.append(Segment(segment.video, cut, segment.end))
        at -= segment.num_clips
    return (*tail, *head)
