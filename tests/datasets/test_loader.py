from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from counted_videos import TIMING, CountedVideos, frames_of, video_of, visits, write

from memvit.datasets.augmentation import Augmentation
from memvit.datasets.clips import Annotation, Batch, Video
from memvit.datasets.decoding import ClipDecoder
from memvit.datasets.loader import StreamLoader
from memvit.datasets.streams import draws
from memvit.datasets.views import centre_view
from memvit.video.reader import _Decoder

NUM_FRAMES = (24, 40, 32, 16, 48)  # 3, 5, 4, 2, 6 clips
LIVELY = Augmentation(short_side=(36, 48), random_crop=True, horizontal_flip=0.5, brightness=0.5, rand_augment_ops=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Video]:
    folder = tmp_path_factory.mktemp("videos")
    return [write(folder / f"{name}.mp4", index, NUM_FRAMES[index]) for index, name in enumerate("abcde")]


@pytest.fixture(autouse=True)
def _nothing_stays_behind() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 3
    while (
        left := [t for t in threading.enumerate() if t.name.startswith("memvit-")] + multiprocessing.active_children()
    ):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.01)


def loader(dataset: CountedVideos, **options: object) -> StreamLoader:
    return StreamLoader(dataset, **{"batch_size": 3, "crop_size": 32, "training": True, **options})


def assert_equal(batches: Sequence[Batch], others: Sequence[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for each in dataclasses.fields(Batch):
            value, expected = getattr(batch, each.name), getattr(other, each.name)
            if each.name in ("clips", "starts", "present"):
                assert torch.equal(value, expected), each.name
            elif each.name == "labels":
                assert all(map(torch.equal, value, expected))
            else:
                assert value == expected, each.name


def test_a_batch_holds_the_clips_it_says(videos: list[Video]) -> None:
    batches = list(loader(CountedVideos(videos)))
    for batch in batches:
        assert batch.clips.dtype == torch.uint8
        assert batch.clips.shape == (3, 3, 4, 32, 32)
        assert batch.clips.is_contiguous()
        for row in batch.present.nonzero()[:, 0].tolist():
            first = round(batch.start_s[row] * 10)
            assert frames_of(batch.clips[row]) == [first, first + 2, first + 4, first + 6]
            assert "abcde"[video_of(batch.clips[row])] == batch.videos[row]
            assert batch.labels[0][row] == "abcde".index(batch.videos[row])


def test_an_epoch_of_training_visits_every_clip_once_in_an_order_of_its_own(videos: list[Video]) -> None:
    training = loader(CountedVideos(videos))
    epochs = [list(training), list(training)]
    everything = sorted(visits(list(loader(CountedVideos(videos), training=False))))
    assert len(everything) == 3 + 5 + 4 + 2 + 6
    for epoch, batches in enumerate(epochs):
        assert len(batches) == len(training) == 7
        assert [(batch.epoch, batch.step) for batch in batches] == [(epoch, step) for step in range(7)]
        assert sorted(visits(batches)) == everything
    assert visits(epochs[0]) != visits(epochs[1])


def test_memory_is_forgotten_where_a_stream_does_not_go_on(videos: list[Video]) -> None:
    batches = list(loader(CountedVideos(videos), seed=2))
    assert batches[0].starts.all()
    for before, batch in pairwise(batches):
        for row in batch.present.nonzero()[:, 0].tolist():
            follows = (
                batch.videos[row] == before.videos[row]
                and batch.start_s[row] == pytest.approx(before.start_s[row] + 0.8)
            )  # fmt: skip
            assert bool(batch.starts[row]) is not follows


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_evaluation_sees_the_same_clips_whatever_the_batch_size(videos: list[Video], batch_size: int) -> None:
    def clips(batch_size: int) -> dict[tuple[str, float], tuple[bool, torch.Tensor]]:
        return {
            (batch.videos[row], batch.start_s[row]): (bool(batch.starts[row]), batch.clips[row])
            for batch in loader(CountedVideos(videos), training=False, batch_size=batch_size)
            for row in batch.present.nonzero()[:, 0].tolist()
        }

    seen, expected = clips(batch_size), clips(3)
    assert seen.keys() == expected.keys()
    for place, (starts, clip) in seen.items():
        assert starts == expected[place][0] == (place[1] == 0)
        assert torch.equal(clip, expected[place][1])


def test_streams_that_end_early_are_padded(videos: list[Video]) -> None:
    batches = list(loader(CountedVideos(videos, task="frames"), training=False, batch_size=2))
    assert len(batches) == 11
    lasting = [int(sum(batch.present[row] for batch in batches)) for row in range(2)]
    assert lasting == [11, 9]
    batches = list(loader(CountedVideos(videos[:2], task="frames"), training=False, batch_size=3))
    assert len(batches) == 5
    last = batches[-1]
    assert last.present.tolist() == [True, False, False]
    assert last.videos == ["b", "", ""]
    assert last.starts.tolist() == [False, True, True]
    assert last.labels[0].tolist() == [[1, 1], [-1, -1], [-1, -1]]
    assert not last.clips[1:].any()


@pytest.mark.parametrize("training", [True, False])
def test_processes_share_the_streams_of_one(videos: list[Video], training: bool) -> None:
    dataset = CountedVideos(videos)
    augmentation = LIVELY if training else None
    alone = list(loader(dataset, batch_size=4, training=training, augmentation=augmentation))
    ranks = [
        list(loader(dataset, batch_size=2, training=training, augmentation=augmentation, rank=rank, world_size=2))
        for rank in range(2)
    ]
    for batch, first, second in zip(alone, *ranks, strict=True):
        assert batch.videos == first.videos + second.videos
        assert torch.equal(batch.clips, torch.cat([first.clips, second.clips]))
        assert torch.equal(batch.starts, torch.cat([first.starts, second.starts]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_worker_processes_change_nothing(videos: list[Video], num_workers: int) -> None:
    dataset = CountedVideos([*videos, Video("lost", "/no/such/video.mp4", 1.6)])
    options = {"augmentation": LIVELY, "max_failed_share": 0.5}
    assert_equal(list(loader(dataset, num_workers=num_workers, **options)), list(loader(dataset, **options)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_going_on_from_any_batch_gives_the_same_batches(videos: list[Video], num_workers: int) -> None:
    dataset = CountedVideos(videos, timing=dataclasses.replace(TIMING, stride_s=0.6))
    whole = loader(dataset, augmentation=LIVELY)
    epochs = [list(whole), list(whole)]
    for step in range(0, len(whole) + 1, 3 if num_workers else 1):
        resumed = loader(dataset, augmentation=LIVELY, num_workers=num_workers)
        resumed.load_state_dict({"epoch": 1, "step": step})
        assert_equal(list(resumed), epochs[1][step:])
        assert resumed.state_dict() == {"epoch": 2, "step": 0}


def test_state_counts_the_batches_handed_out(videos: list[Video]) -> None:
    training = loader(CountedVideos(videos))
    assert training.state_dict() == {"epoch": 0, "step": 0}
    for step, _ in enumerate(training):
        time.sleep(0.01)  # batches are being prepared ahead
        assert training.state_dict() == {"epoch": 0, "step": step + 1}
    assert training.state_dict() == {"epoch": 1, "step": 0}
    training.resume(5, 7)
    assert list(training) == []
    assert training.epoch == 6
    with pytest.raises(ValueError, match="an epoch has 7 batches"):
        training.resume(0, 8)


def test_an_iteration_left_early_begins_anew(videos: list[Video]) -> None:
    training = loader(CountedVideos(videos))
    first = next(iter(training))
    for batch in training:
        if batch.step == 2:
            break
    assert training.state_dict() == {"epoch": 0, "step": 3}
    batches = list(training)
    assert_equal(batches[:1], [first])
    assert len(batches) == 7


@pytest.mark.parametrize("num_workers", [0, 2])
def test_leaving_the_loop_ends_threads_and_processes(videos: list[Video], num_workers: int) -> None:
    began = time.monotonic()
    for batch in loader(CountedVideos(videos), num_workers=num_workers, prefetch=1):
        if batch.step == 1:
            break
    assert not multiprocessing.active_children()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("stride_s", [0.8, 0.4])
def test_a_batch_of_streams_costs_one_decode_of_each_frame(videos: list[Video], stride_s: float) -> None:
    dataset = CountedVideos(videos, timing=dataclasses.replace(TIMING, stride_s=stride_s))
    decoded: list[int] = []
    decode = _Decoder._decode

    def counting(self: _Decoder, packet: object) -> list:
        pictures = decode(self, packet)
        decoded.append(len(pictures))
        return pictures

    with patch.object(_Decoder, "_decode", counting):
        batches = list(loader(dataset, training=False, batch_size=4))
    assert len(visits(batches)) == (20 if stride_s == 0.8 else 40)
    assert sum(decoded) == sum(NUM_FRAMES)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("augmentation", [None, LIVELY])
def test_preparing_clips_draws_nothing_from_the_models_generator(
    videos: list[Video], num_workers: int, augmentation: Augmentation | None
) -> None:
    state = torch.get_rng_state()
    list(loader(CountedVideos(videos), num_workers=num_workers, augmentation=augmentation))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_video_that_cannot_be_opened_is_skipped_and_named(
    videos: list[Video], num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = CountedVideos([*videos, Video("lost", "/no/such/lost.mp4", 2.4)])
    evaluation = loader(dataset, training=False, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        batches = list(evaluation) + list(evaluation)
    assert len([record for record in caplog.records if "lost.mp4" in record.message]) == 1
    failures = [failure for batch in batches for failure in batch.failures]
    assert [video for video, _ in failures] == ["lost", "lost"]  # once an epoch
    assert "there is no video /no/such/lost.mp4" in failures[0][1]
    filler = [(b.start_s[row], int(b.labels[0][row])) for b in batches for row in range(3) if b.videos[row] == "lost"]
    assert filler == [(0.0, -1), (0.8, -1), (1.6, -1)] * 2
    assert len(visits(batches)) == 2 * 20
    assert not any(present for b in batches for v, present in zip(b.videos, b.present, strict=True) if v == "lost")


def test_what_a_cut_off_video_lacks_is_filler(videos: list[Video], tmp_path: Path) -> None:
    half = write(tmp_path / "half.mkv", 5, 64)
    path = Path(half.path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    batches = list(loader(CountedVideos([*videos, half]), training=False))
    present = [bool(b.present[row]) for b in batches for row in range(3) if b.videos[row] == "half"]
    assert len(present) == 8
    assert present == sorted(present, reverse=True)
    assert 2 <= sum(present) <= 6
    failures = [failure for batch in batches for failure in batch.failures]
    assert [video for video, _ in failures] == ["half"]
    assert len(visits(batches)) == 20 + sum(present)


def test_a_video_shorter_than_its_annotations_is_named_beyond_rounding(videos: list[Video]) -> None:
    longer = dataclasses.replace(
        videos[3], name="longer", duration_s=2.4
    )  # 1.6 s: the third clip repeats the last frame
    batches = list(loader(CountedVideos([longer]), training=False, batch_size=1))
    assert [frames_of(batch.clips[0]) for batch in batches][2] == [15] * 4
    assert not any(batch.failures for batch in batches)
    longer = dataclasses.replace(longer, duration_s=4.0)
    batches = list(loader(CountedVideos([longer]), training=False, batch_size=1))
    assert [bool(batch.present[0]) for batch in batches] == [True, True, True, False, False]
    assert batches[3].failures[0][0] == "longer"
    assert "before its clip at 2.4 s" in batches[3].failures[0][1]


def test_a_damaged_video_is_reported_though_all_clips_are_there(tmp_path: Path, videos: list[Video]) -> None:
    hurt = write(tmp_path / "hurt.mp4", 1, 40)
    path = Path(hurt.path)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 1500
    data[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(data)
    batches = list(loader(CountedVideos([*videos, hurt]), training=False, max_failed_share=0.0))
    failures = [failure for batch in batches for failure in batch.failures]
    assert [video for video, _ in failures] == ["hurt"]
    assert "damaged" in failures[0][1]
    assert len(visits(batches)) == 25


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_lost_videos_end_the_pass(videos: list[Video], num_workers: int) -> None:
    lost = [Video(f"lost{index}", f"/no/such/{index}.mp4", 1.6) for index in range(2)]
    many = loader(CountedVideos([*videos, *lost]), num_workers=num_workers)
    with pytest.raises(ValueError, match=r"2 of \d videos could not be read.*lost.*Check the folder"):
        list(many)
    allowed = loader(CountedVideos([*videos, *lost]), num_workers=num_workers, max_failed_share=0.3)
    assert len(visits(list(allowed))) == 20


@dataclasses.dataclass
class BrokenAnnotations(CountedVideos):
    def annotate(self, video: Video, start_s: float) -> Annotation:
        if start_s > 1.5:
            raise KeyError("no annotation at 1.6 s")
        return super().annotate(video, start_s)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_goes_wrong_while_reading_ahead_is_raised(videos: list[Video], num_workers: int) -> None:
    def read() -> str:
        try:
            list(loader(BrokenAnnotations(videos), training=False, num_workers=num_workers))
        except KeyError as error:
            return str(error)
        return ""

    assert "no annotation at 1.6 s" in read()


def test_boxes_are_in_pixels_of_the_clip(videos: list[Video]) -> None:
    # Frames of 64x48 scaled to 43x32, the centre 32x32 begins at x=5.
    boxes = np.array([[0.25, 0.25, 0.75, 1.0], [0.0, 0.0, 0.1, 0.5], [0.5, -0.1, 1.2, 0.5]], np.float32)
    dataset = CountedVideos(videos, task="boxes", boxes=boxes)
    batch = next(iter(loader(dataset, training=False, batch_size=2)))
    assert batch.boxes is not None
    for row in batch.boxes:
        torch.testing.assert_close(row, torch.tensor([[5.75, 8, 27.25, 32], [16.5, 0, 32, 16]]))
    assert batch.labels[0].tolist() == [0, 2, 0, 2]
    batches = list(loader(dataset, training=False, batch_size=4))
    assert batches[-1].boxes is not None
    assert [len(boxes) for boxes in batches[-1].boxes] == [2 if there else 0 for there in batches[-1].present]
    assert batches[-1].labels[0].shape == (2 * int(batches[-1].present.sum()),)
    batch = next(iter(loader(dataset, training=False, keep_aspect=True)))
    assert batch.boxes is not None
    torch.testing.assert_close(
        batch.boxes[0], torch.tensor([[10.75, 8, 32.25, 32], [0, 0, 4.3, 16], [21.5, 0, 43, 16]])
    )


def test_boxes_follow_the_augmentation(videos: list[Video]) -> None:
    # In blue, the right half of every frame is bright: the box around it stays around what is bright.
    dataset = CountedVideos(videos, task="boxes", boxes=np.array([[0.5, 0.0, 1.0, 1.0]], np.float32))
    augmentation = Augmentation(random_resized_crop=(0.3, 1.0), horizontal_flip=0.5)
    flips = set()
    for batch in loader(dataset, augmentation=augmentation):
        assert batch.boxes is not None
        for clip, boxes, present in zip(batch.clips, batch.boxes, batch.present, strict=True):
            bright = (clip[2, 0].float().mean(0) > 100).nonzero()[:, 0]
            if present and len(boxes):
                assert boxes[0, 0] == pytest.approx(int(bright[0]), abs=1.5)
                assert boxes[0, 2] == pytest.approx(int(bright[-1]) + 1, abs=1.5)
                flips.add(int(bright[0]) == 0)
            elif present:
                assert len(bright) <= 1
    assert flips == {True, False}


def test_whole_frames_of_one_shape_share_a_batch(videos: list[Video], tmp_path: Path) -> None:
    dataset = CountedVideos(videos)
    batches = list(loader(dataset, training=False, keep_aspect=True, num_workers=2))
    assert {batch.clips.shape for batch in batches} == {(3, 3, 4, 32, 43)}
    wide = CountedVideos([*videos, write(tmp_path / "wide.mp4", 0, 48, size=(48, 96))])
    for num_workers in (0, 2):

        def read(num_workers: int = num_workers) -> None:
            list(loader(wide, training=False, keep_aspect=True, num_workers=num_workers))

        with pytest.raises(ValueError, match=r"different shapes \(clips of 43x32, 64x32 pixels\)[^$]*batch_size=1"):
            read()
    alone = loader(wide, training=False, keep_aspect=True, batch_size=1)
    assert {batch.clips.shape[-1] for batch in alone} == {43, 64}


def test_augmentation_is_drawn_once_per_video_and_epoch(videos: list[Video]) -> None:
    def looks(batches: list[Batch]) -> dict[str, set[tuple[bool, int]]]:
        """Per video, how blue, which never moves, was seen: mirrored or not, and how many columns of it."""
        found: dict[str, set[tuple[bool, int]]] = {}
        for batch in batches:
            for row in batch.present.nonzero()[:, 0].tolist():
                blue = batch.clips[row, 2].float().mean((0, 1)) > 100
                found.setdefault(batch.videos[row], set()).add((bool(blue[0]), int(blue.sum())))
        return found

    dataset = CountedVideos(videos)
    augmentation = Augmentation(random_resized_crop=(0.2, 1.0), horizontal_flip=0.5)
    training = loader(dataset, batch_size=1, augmentation=augmentation)
    epochs = [looks(list(training)) for _ in range(2)]
    assert all(len(found) == 1 for epoch in epochs for found in epoch.values())
    assert epochs[0] != epochs[1]
    per_clip = loader(dataset, batch_size=1, augmentation=dataclasses.replace(augmentation, per_clip=True))
    assert all(len(found) > 1 for found in looks(list(per_clip)).values())


@dataclasses.dataclass
class RoomyVideos(CountedVideos):
    """A clip may be taken a second earlier, but not before the video, and up to two seconds later."""

    def annotate(self, video: Video, start_s: float) -> Annotation:
        return dataclasses.replace(super().annotate(video, start_s), room_s=(min(1.0, start_s), 2.0))


JITTERED = Augmentation(clip_jitter=0.75)


@pytest.mark.parametrize("frame_jitter", [0.0, 0.5])
def test_jittered_clips_show_what_clips_that_start_then_do(videos: list[Video], frame_jitter: float) -> None:
    dataset = RoomyVideos(videos, timing=dataclasses.replace(TIMING, stride_s=0.2))
    augmentation = dataclasses.replace(JITTERED, frame_jitter=frame_jitter)
    of_name = {video.name: video for video in videos}
    shifts_s, num_compared = [], 0
    for batch, plain in zip(loader(dataset, augmentation=augmentation), loader(dataset), strict=True):
        assert (batch.videos, batch.start_s) == (plain.videos, plain.start_s)
        for row in batch.present.nonzero()[:, 0].tolist():
            name, start_s = batch.videos[row], batch.start_s[row]
            assert batch.labels[0][row] == plain.labels[0][row]
            shifts_s.append(0.75 * draws("clip", 0, 0, name, row, start_s).uniform(-min(1.0, start_s), 2.0))
            frames_s = draws("frames", 0, 0, name, row, start_s).uniform(-1, 1, (1, 4)) * frame_jitter * 0.2
            alone = ClipDecoder(
                of_name[name],
                [start_s + shifts_s[-1]],
                dataset.timing,
                lambda height, width, _: centre_view(height, width, 32),
                frames_s,
            )
            for clip in alone:  # none where that is beyond the end of the video
                assert np.array_equal(batch.clips[row].permute(1, 2, 3, 0).numpy(), clip)
                num_compared += 1
    assert num_compared > 60
    assert min(shifts_s) == pytest.approx(-0.75, abs=0.1)
    assert max(shifts_s) == pytest.approx(1.5, abs=0.1)
    assert sum(after < before - 0.2 for before, after in pairwise(shifts_s)) > 10  # out of order


@pytest.mark.parametrize("num_workers", [0, 2])
def test_going_on_with_jittered_clips_gives_the_same_batches(videos: list[Video], num_workers: int) -> None:
    longer = [dataclasses.replace(video, duration_s=video.duration_s + 0.8) for video in videos]  # some clips are lost
    dataset = RoomyVideos(longer, timing=dataclasses.replace(TIMING, stride_s=0.4))
    options = {"augmentation": dataclasses.replace(JITTERED, frame_jitter=0.5), "max_failed_share": 1.0}
    expected = list(loader(dataset, **options))
    assert any(batch.failures for batch in expected)
    for step in range(0, len(expected), 5 if num_workers else 1):
        resumed = loader(dataset, num_workers=num_workers, **options)
        resumed.resume(0, step)
        for batch, other in zip(resumed, expected[step:], strict=True):
            assert torch.equal(batch.clips, other.clips)
            assert torch.equal(batch.present, other.present)
            assert (batch.videos, batch.start_s) == (other.videos, other.start_s)


def test_every_epoch_jitters_clips_anew_and_only_where_there_is_room(videos: list[Video]) -> None:
    training = loader(RoomyVideos(videos), batch_size=1, augmentation=JITTERED)
    epochs = [{(batch.videos[0], batch.start_s[0]): frames_of(batch.clips[0]) for batch in training} for _ in range(2)]
    assert epochs[0].keys() == epochs[1].keys()
    assert sum(epochs[0][place] != epochs[1][place] for place in epochs[0]) > 10
    assert_equal(list(loader(CountedVideos(videos), augmentation=JITTERED)), list(loader(CountedVideos(videos))))


def test_room_is_asked_for_only_where_clips_are_jittered(videos: list[Video]) -> None:
    dataset = CountedVideos(videos)
    with patch.object(CountedVideos, "annotate", autospec=True, side_effect=CountedVideos.annotate) as annotate:
        list(loader(dataset, augmentation=LIVELY))
        assert annotate.call_count == 1 + 20
        list(loader(dataset, augmentation=JITTERED))
        assert annotate.call_count == 2 + 20 + 40


def test_clips_without_any_video_are_refused(videos: list[Video]) -> None:
    with pytest.raises(ValueError, match="none of the 0 videos has a clip"):
        loader(CountedVideos([]))
    with pytest.raises(ValueError, match="none of the 1 videos has a clip"):
        loader(CountedVideos(videos[:1], starts_s={"a": []}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"crop_size": 0}, "crop_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2 is none of 2"),
        ({"max_failed_share": 1.5}, "max_failed_share=1.5"),
        ({"training": False, "augmentation": Augmentation()}, "for training"),
        ({"keep_aspect": True, "augmentation": Augmentation()}, "choose one"),
        ({"augmentation": Augmentation(short_side=(20, 40))}, "begins below crop_size=32"),
    ],
)
def test_impossible_options_are_refused(videos: list[Video], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(CountedVideos(videos), **options)
