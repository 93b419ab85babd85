from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from memvit.datasets.streams import Segment, Stream, after, draws, evaluation_streams, num_steps, training_streams

RAGGED = [7, 1, 0, 12, 5, 5, 30, 2, 9]


def clips(stream: Stream) -> list[tuple[int, int]]:
    """(video, clip) in the order of the stream."""
    return [(segment.video, clip) for segment in stream for clip in range(segment.first, segment.end)]


def every_clip(num_clips: list[int]) -> list[tuple[int, int]]:
    return [(video, clip) for video, count in enumerate(num_clips) for clip in range(count)]


def most_in_step(streams: list[Stream], until: int) -> int:
    """How many streams begin a video at the same step, at most, up to a step."""
    begins = Counter(step for stream in streams for step, (_, clip) in enumerate(clips(stream)[:until]) if clip == 0)
    return max(begins.values())


@pytest.mark.parametrize("num_streams", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("num_clips", [RAGGED, [8] * 12, [1] * 10, [100]])
def test_training_visits_every_clip_once_in_streams_of_equal_length(num_clips: list[int], num_streams: int) -> None:
    for epoch in range(5):
        streams = training_streams(num_clips, num_streams, seed=3, epoch=epoch)
        assert len(streams) == num_streams
        lengths = [len(clips(stream)) for stream in streams]
        assert max(lengths) - min(lengths) <= 1
        assert num_steps(streams) == max(lengths)
        assert sorted(clip for stream in streams for clip in clips(stream)) == every_clip(num_clips)


def test_a_stream_shows_consecutive_clips() -> None:
    for stream in training_streams(RAGGED, 3, seed=0, epoch=0):
        for before, later in zip(clips(stream), clips(stream)[1:], strict=False):
            assert later[0] != before[0] or later[1] == before[1] + 1 or before[1] + 1 == RAGGED[before[0]]


def test_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    streams = training_streams(RAGGED, 3, seed=0, epoch=0)
    assert training_streams(RAGGED, 3, seed=0, epoch=0) == streams
    assert training_streams(RAGGED, 3, seed=0, epoch=1) != streams
    assert training_streams(RAGGED, 3, seed=1, epoch=0) != streams


@pytest.mark.parametrize(
    ("length", "num_videos", "num_streams"),
    [(8, 16, 4), (8, 16, 8), (8, 64, 16), (10, 205, 10), (6, 12, 12), (100, 4, 4), (900, 235, 5)],
)
def test_streams_of_equally_long_videos_are_out_of_step(length: int, num_videos: int, num_streams: int) -> None:
    share = -(-num_streams // length)
    for epoch in range(5):
        streams = training_streams([length] * num_videos, num_streams, seed=1, epoch=epoch)
        # Where streams hold no whole number of videos, the end of a rotated one does not continue its rhythm.
        steps = num_steps(streams)
        assert most_in_step(streams, until=steps - 2 * length if steps % length else steps) <= share
        assert max(Counter(stream[0].first for stream in streams).values()) <= share
        # One video may be cut at every border, and one more in every rotated stream.
        assert sum(map(len, streams)) <= num_videos + num_streams - 1 + num_streams


def test_only_streams_in_step_are_rotated() -> None:
    # Borders fall on clips 0, 2, 5, 8, 1, 4, 7 of a video: all different.
    streams = training_streams([10] * 9, 7, seed=0, epoch=0)
    assert [stream[0].first for stream in streams] == [0, 2, 5, 8, 1, 4, 7]
    assert sum(map(len, streams)) == 9 + 6
    # All on clip 0: one stream may stay.
    streams = training_streams([10] * 9, 3, seed=0, epoch=0)
    assert [stream[0].first for stream in streams].count(0) == 1
    assert sum(map(len, streams)) == 9 + 2


def test_single_clips_cannot_be_out_of_step() -> None:
    streams = training_streams([1] * 12, 4, seed=0, epoch=0)
    assert [len(stream) for stream in streams] == [3, 3, 3, 3]


def test_rotated_streams_begin_anywhere_in_a_video() -> None:
    begins = {stream[0].first for epoch in range(40) for stream in training_streams([5] * 8, 4, seed=0, epoch=epoch)}
    assert begins == set(range(5))


@pytest.mark.parametrize("num_streams", [1, 2, 3, 20])
def test_evaluation_keeps_videos_whole(num_streams: int) -> None:
    streams = evaluation_streams(RAGGED, num_streams)
    segments = sorted(segment for stream in streams for segment in stream)
    assert segments == [Segment(video, 0, count) for video, count in enumerate(RAGGED) if count]
    assert streams == evaluation_streams(RAGGED, num_streams)


def test_evaluation_puts_the_longest_videos_first_onto_the_shortest_stream() -> None:
    streams = evaluation_streams([3, 9, 4, 5], 2)
    assert [[segment.video for segment in stream] for stream in streams] == [[1, 0], [3, 2]]
    assert num_steps(streams) == 12


def test_what_is_left_of_a_stream() -> None:
    stream = (Segment(4, 2, 5), Segment(1, 0, 2))
    assert after(stream, 0) == [(Segment(4, 2, 5), 0), (Segment(1, 0, 2), 0)]
    assert after(stream, 2) == [(Segment(4, 2, 5), 2), (Segment(1, 0, 2), 0)]
    assert after(stream, 3) == [(Segment(1, 0, 2), 0)]
    assert after(stream, 9) == []


def test_draws_depend_on_their_key() -> None:
    assert np.array_equal(draws(1, "a").random(4), draws(1, "a").random(4))
    numbers = {float(draws(seed, name).random()) for seed in range(10) for name in ("a", "b")}
    assert len(numbers) == 20
