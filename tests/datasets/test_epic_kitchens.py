"""EPIC-KITCHENS-100: which clips a video is cut into, what they are asked, and that nothing of the future answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import memvit
from epic_tree import NOUNS, SIZE, VERBS, picture, segment, write_files, write_images
from memvit.benchmarks.epic_test import score_segments
from memvit.datasets.augmentation import GREY, Augmentation
from memvit.datasets.clips import ClipTiming, GroupedDataset
from memvit.datasets.epic_kitchens import EpicKitchensDataset, EpicTask
from memvit.datasets.loader import StreamLoader
from memvit.metrics import epic_kitchens as metrics

FPS = 8.0
TIMING = ClipTiming(num_frames=4, period_s=0.25, stride_s=1.0, num_times=2)
Rows = list[tuple[float, float, int, int]]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 20 s, at eight images a second."""
    root = tmp_path_factory.mktemp("epic")
    for name in ("P01_101", "P02_01"):
        write_images(root, name, [picture(number) for number in range(160)])
    return root


def dataset_of(
    rows: Rows, videos: Path, folder: Path, task: EpicTask = "recognition", timing: ClipTiming = TIMING
) -> EpicKitchensDataset:
    segments = [segment("P01_101", number, *row) for number, row in enumerate(rows)]
    csv = write_files(folder / "annotations", segments, {"P01_101": (20.0, FPS)})
    return EpicKitchensDataset(csv, videos, timing, task=task)


def plan(dataset: EpicKitchensDataset) -> list[tuple[float, int]]:
    """When the clips start, and which segment each is asked about."""
    (video,) = dataset.videos
    return [(round(s, 3), dataset.group(video.name, s)) for s in dataset.clip_starts(video).tolist()]


def test_it_is_measured_by_segments(videos: Path, tmp_path: Path) -> None:
    assert isinstance(dataset_of([(1, 2, 0, 0)], videos, tmp_path), GroupedDataset)


def test_a_segment_is_covered_by_as_many_clips_as_fit(videos: Path, tmp_path: Path) -> None:
    rows = [(0.0, 0.5, 0, 0), (0.5, 2.0, 1, 0), (2.0, 4.0, 2, 0), (4.0, 7.2, 0, 1)]
    assert plan(dataset_of(rows, videos, tmp_path)) == [
        (-0.25, 0),  # centred on what is shorter than a clip
        (0.75, 1),
        (2.0, 2),
        (3.0, 2),
        (4.033, 3),
        (5.1, 3),
        (6.167, 3),
    ]


def test_what_lies_between_segments_is_seen_for_memory(videos: Path, tmp_path: Path) -> None:
    """Every stride from the beginning to the last segment; what comes after it nobody asks about."""
    first_clips = [(0.0, -1), (1.0, -1), (2.0, -1), (3.4, 0)]
    dataset = dataset_of([(3.4, 4.4, 0, 0), (8.0, 9.0, 1, 1)], videos, tmp_path)
    assert plan(dataset) == [*first_clips, (4.4, -1), (5.4, -1), (6.4, -1), (7.4, -1), (8.0, 1)]


@pytest.mark.parametrize("task", ["recognition", "anticipation"])
def test_what_is_seen_until_a_segment_does_not_tell_when_it_will_come(
    task: EpicTask, videos: Path, tmp_path: Path
) -> None:
    plans = [
        plan(dataset_of([(4.0, 5.0, 0, 0), (start_s, start_s + 1.0, 1, 1)], videos, tmp_path, task))
        for start_s in (11.0, 14.3)
    ]
    sooner, later = ([start_s for start_s, _ in clips] for clips in plans)
    assert sooner[:-1] == later[: len(sooner) - 1]


def test_clips_between_segments_carry_no_loss(videos: Path, tmp_path: Path) -> None:
    dataset = dataset_of([(3.0, 4.0, 2, 1)], videos, tmp_path)
    (video,) = dataset.videos
    labels = [[int(label) for label in dataset.annotate(video, s).labels] for s in dataset.clip_starts(video).tolist()]
    assert labels == [[-1, -1], [-1, -1], [-1, -1], [2, 1]]


def test_segments_that_overlap_have_clips_of_their_own(videos: Path, tmp_path: Path) -> None:
    """Even two with the same times."""
    rows = [(2.0, 3.0, 0, 0), (2.0, 3.0, 1, 1), (2.3, 3.3, 2, 0)]
    dataset = dataset_of(rows, videos, tmp_path)
    assert plan(dataset)[-3:] == [(2.0, 0), (2.0, 1), (2.3, 2)]
    (video,) = dataset.videos
    starts_s = dataset.clip_starts(video)
    assert (np.diff(starts_s) > 0).all()
    assert [int(dataset.annotate(video, s).labels[0]) for s in starts_s[-3:]] == [0, 1, 2]


def test_a_smaller_stride_looks_more_often(videos: Path, tmp_path: Path) -> None:
    timing = ClipTiming(4, 0.25, 0.5, 2)
    assert plan(dataset_of([(0.0, 2.0, 0, 0)], videos, tmp_path, timing=timing)) == [
        (-0.167, 0),
        (0.5, 0),
        (1.167, 0),
    ]


def test_a_clip_may_move_within_its_part_of_a_segment(videos: Path, tmp_path: Path) -> None:
    dataset = dataset_of([(4.0, 5.5, 0, 0), (8.0, 8.5, 0, 0)], videos, tmp_path)
    (video,) = dataset.videos
    rooms = {dataset.group(video.name, s): dataset.annotate(video, s).room_s for s in dataset.clip_starts(video)}
    assert rooms[0] == pytest.approx((0.25, 0.25))
    assert rooms[1] == pytest.approx((0.25, 0.25))
    assert rooms[-1] == (0.0, 0.0)
    # At its most it begins with the segment, or ends with it; one that is longer than the segment shows all of it.
    jittered = StreamLoader(
        dataset, batch_size=1, crop_size=32, training=True, augmentation=Augmentation(clip_jitter=1.0), seed=3
    )
    assert all(batch.present.all() for batch in jittered)


def test_the_clip_of_an_anticipated_segment_ends_a_second_before_it(videos: Path, tmp_path: Path) -> None:
    dataset = dataset_of([(4.0, 5.0, 1, 1), (6.0, 7.0, 2, 0)], videos, tmp_path, "anticipation")
    assert dataset.task == "frames"
    assert dataset.anticipation_s == 1.0
    (video,) = dataset.videos
    starts_s = {dataset.group(video.name, s): s for s in dataset.clip_starts(video).tolist()}
    for number, start_s in ((0, 4.0), (1, 6.0)):
        last_s = starts_s[number] + 3 * TIMING.period_s
        assert start_s - 1 - 0.002 < last_s < start_s - 1


def test_every_token_time_is_asked_what_goes_on_a_second_later(videos: Path, tmp_path: Path) -> None:
    """Of several actions, what began last; and whatever else goes on, a segment's clip is asked about that segment."""
    rows = [(2.0, 9.0, 0, 0), (3.75, 5.0, 1, 1), (6.0, 7.0, 2, 0), (6.0, 8.0, 1, 0)]
    dataset = dataset_of(rows, videos, tmp_path, "anticipation")
    (video,) = dataset.videos
    asked = {}
    for start_s in dataset.clip_starts(video).tolist():
        verbs, _ = dataset.annotate(video, start_s).labels
        asked[dataset.group(video.name, start_s)] = [round(start_s + 0.25, 2), verbs.tolist()]
    # Token times end a quarter and three quarters of a second after the start.
    assert asked[0] == [0.5, [-1, 0]]
    assert asked[1] == [2.25, [0, 1]]
    assert asked[2][1] in ([0, 2], [1, 2])
    assert asked[3][1] == [0, 1]


@pytest.mark.parametrize("task", ["recognition", "anticipation"])
def test_measuring_gives_the_official_metrics(task: EpicTask, videos: Path, tmp_path: Path) -> None:
    """Of the segments that were seen."""
    rng = np.random.default_rng(0)
    rows = [(float(i), i + 1.0, int(rng.integers(3)), int(rng.integers(2))) for i in range(12)]
    dataset = dataset_of(rows, videos, tmp_path, task)
    scores = [torch.rand(12, num).double().softmax(1).numpy() for num in (3, 2)]
    answered = rng.random(12) < 0.7
    measured = dataset.measure(scores, answered)
    subsets = {"tail_verbs": [2], "tail_nouns": [1], "unseen_participants": ["P02"]}
    evaluate = getattr(metrics, task)
    wanted = evaluate(*(np.log(s[answered]) for s in scores), dataset.rows[answered], **subsets)
    assert measured == pytest.approx(wanted)
    assert "tail_action_accuracy_at_1" in measured or "tail_action_mt5r" in measured
    nothing = dataset.measure(scores, np.zeros(12, bool))
    assert nothing
    assert all(np.isnan(value) for value in nothing.values())


def small_model(*, causal: bool) -> memvit.MeMViT:
    torch.manual_seed(0)
    model = memvit.create_model(
        "memvit_tiny",
        crop_size=32,
        num_frames=4,
        sampling_rate=2,
        fps=FPS,
        depth=2,
        embed_dim=8,
        dim_mul=((1, 2.0),),
        head_mul=((1, 2.0),),
        q_strides=((0, 1, 1, 1), (1, 1, 2, 2)),
        memory_layers="all",
        memory_kernel=(3, 3, 3),
        memory_stride=(2, 2, 2),
        memory_length=2,
        num_classes=(len(VERBS), len(NOUNS)),
        causal=causal,
        task="frames" if causal else "clip",
    )
    return model.eval()


def test_no_frame_after_the_moment_it_is_asked_at_can_change_an_anticipation(videos: Path, tmp_path: Path) -> None:
    """All images from just after a second before a segment on are replaced: what was said of it stays, to the last bit."""
    rng = np.random.default_rng(1)
    starts_s = [0.4, 1.9, 3.0, 4.37, 5.25, 7.5, 9.99]
    rows = [(start_s, start_s + 1.5, number % 3, number % 2) for number, start_s in enumerate(starts_s)]
    model = small_model(causal=True)
    before = score_segments(model, dataset_of(rows, videos, tmp_path, "anticipation")).means()
    for number, start_s in enumerate(starts_s):
        moment_s = start_s - 1.0
        noise = [rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8) for _ in range(160)]
        pictures = [picture(i) if i / FPS <= moment_s else noise[i] for i in range(160)]
        changed = tmp_path / f"changed{number}"
        write_images(changed, "P01_101", pictures)
        after = score_segments(model, dataset_of(rows, changed, changed, "anticipation")).means()
        for head, other in zip(before[0], after[0], strict=True):
            assert (head[: number + 1] == other[: number + 1]).all()
            assert (head[number + 1 :] != other[number + 1 :]).any() or number + 1 == len(starts_s)


def test_what_starts_before_a_second_has_passed_is_anticipated_from_nothing(videos: Path, tmp_path: Path) -> None:
    dataset = dataset_of([(0.4, 2.0, 0, 0)], videos, tmp_path, "anticipation")
    (batch,) = StreamLoader(dataset, batch_size=1, crop_size=32, training=False)
    assert batch.present.all()
    assert (batch.clips == GREY).all()
    assert batch.labels[0].tolist() == [[-1, 0]]


def test_scores_of_a_segments_clips_are_averaged(videos: Path, tmp_path: Path) -> None:
    dataset = dataset_of([(0.0, 3.0, 0, 0), (6.0, 7.0, 1, 1)], videos, tmp_path)
    model = small_model(causal=False)
    scores, answered = score_segments(model, dataset).means()
    assert answered.all()
    memory, of_first = None, []
    for batch in StreamLoader(dataset, batch_size=1, crop_size=32, training=False):
        with torch.inference_mode():
            logits, memory = model((batch.clips.float() / 255 - 0.45) / 0.225, memory)
        if dataset.group(batch.videos[0], batch.start_s[0]) == 0:
            of_first.append([head.softmax(-1)[0] for head in logits])
    assert len(of_first) == 3
    for head in range(2):
        mean = torch.stack([clip[head] for clip in of_first]).mean(0)
        assert torch.from_numpy(scores[head][0]) == pytest.approx(mean, abs=1e-6)
