import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memvit.video.time_bins import HeadScores
from memvit.video.timeline import Timeline, draw_timeline


def the_head(timeline: Timeline) -> HeadScores:
    (head,) = timeline.heads
    return head


def test_a_bin_holds_the_score_of_its_clip() -> None:
    timeline = Timeline()
    timeline.add(0, 1, [("cut", 0.8), ("wash", 0.2)])
    timeline.add(1, 2, [("cut", 0.4)])
    bins_per_s = round(1 / timeline.bins.bin_s)
    assert the_head(timeline).mean_scores("cut") == pytest.approx([0.8] * bins_per_s + [0.4] * bins_per_s)
    assert the_head(timeline).mean_scores("wash") == pytest.approx([0.2] * bins_per_s + [0.0] * bins_per_s)
    assert the_head(timeline).peak_score("cut") == 0.8


def test_overlapping_clips_are_averaged_and_gaps_stay_empty() -> None:
    timeline = Timeline()
    for start_s, score in ((10, 0.9), (11, 0.3), (15, 0.6)):
        timeline.add(start_s, start_s + 2, [("cut", score)])
    per_s = the_head(timeline).mean_scores("cut").reshape(7, -1)
    assert (per_s == per_s[:, :1]).all() or np.isnan(per_s).any()
    assert per_s[:, 0] == pytest.approx([0.9, 0.6, 0.3, np.nan, np.nan, 0.6, 0.6], nan_ok=True)


def test_bins_double_without_losing_score() -> None:
    timeline = Timeline(num_bins=16)
    scores = np.random.default_rng(0).uniform(size=64)
    for i, score in enumerate(scores):
        timeline.add(i, i + 1, [("cut", score)])
    assert timeline.bins.bin_s == 4
    assert the_head(timeline).mean_scores("cut") == pytest.approx(scores.reshape(16, 4).mean(axis=1))


def test_memory_does_not_grow_with_the_video() -> None:
    rng = np.random.default_rng(0)
    timeline = Timeline()

    def add(first: int, last: int) -> None:
        for i in range(first, last):
            labels = rng.integers(0, 5000, 3)
            timeline.add(2.0 * i, 2.0 * i + 2.1, [(f"verb: {label}", float(rng.uniform())) for label in set(labels)])

    add(0, 17_000)  # untraced, which is faster
    tracemalloc.start()
    add(17_000, 20_000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 100_000
    assert len(the_head(timeline).labels) == 64
    assert len(the_head(timeline).mean_scores(the_head(timeline).labels[0])) <= 2048
    assert timeline.num_clips == 20_000


def test_a_strong_class_that_comes_late_is_kept() -> None:
    timeline = Timeline(max_labels=2, max_tracked=4)
    for i in range(200):
        timeline.add(i, i + 1, [(f"weak {i % 10}", 0.05), ("steady", 0.5)])
    timeline.add(200, 201, [("late", 0.9)])
    assert set(the_head(timeline).labels[:2]) == {"steady", "late"}


def test_the_best_class_is_known_per_bin_and_a_dropped_one_is_not_replaced() -> None:
    timeline = Timeline(max_labels=2, max_tracked=2)
    timeline.add(0, 1, [("a", 0.3), ("b", 0.2)])
    timeline.add(1, 2, [("b", 0.9), ("a", 0.1)])
    timeline.add(2, 3, [("c", 0.8), ("b", 0.1)])  # drops "a", the weakest
    labels = the_head(timeline).labels
    assert set(labels) == {"b", "c"}
    bins_per_s = round(1 / timeline.bins.bin_s)
    best = the_head(timeline).best(labels)[::bins_per_s]
    assert best.tolist() == [-1, labels.index("b"), labels.index("c")]


def test_clips_that_make_no_sense_are_refused() -> None:
    timeline = Timeline()
    timeline.add(10, 12, [("cut", 0.5)])
    with pytest.raises(ValueError, match="no length"):
        timeline.add(12, 12, [])
    with pytest.raises(ValueError, match="in order"):
        timeline.add(2, 12, [])
    with pytest.raises(ValueError, match="'cut' at 13 s is nan"):
        timeline.add(13, 14, [("cut", float("nan"))])
    with pytest.raises(ValueError, match="num_bins=7"):
        Timeline(num_bins=7)
    with pytest.raises(ValueError, match="max_labels=0"):
        Timeline(max_labels=0)
    assert timeline.num_clips == 1


def test_the_picture_shows_each_class_when_it_was_seen(tmp_path: Path) -> None:
    rows = [(i, i + 1.0, [("a", 1.0)] if i < 5 else [("b", 1.0)]) for i in range(10)]
    draw_timeline(tmp_path / "a.png", rows, title="t")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    blue = np.abs(picture - (0x2F, 0x6F, 0xDE)).sum(axis=2) < 10
    red = np.abs(picture - (0xE4, 0x57, 0x2E)).sum(axis=2) < 10
    plot = slice(190, None)  # right of the names
    assert blue[:, plot].sum() > 20_000
    assert red[:, plot].sum() == pytest.approx(blue[:, plot].sum(), rel=0.1)
    assert np.nonzero(blue[:, plot].any(axis=0))[0].max() <= np.nonzero(red[:, plot].any(axis=0))[0].min() + 1


@pytest.mark.parametrize("num_clips", [1, 30, 3000])
def test_any_number_of_clips_makes_a_picture_of_one_size(tmp_path: Path, num_clips: int) -> None:
    rows = ((2.0 * i, 2.0 * i + 2, [(f"class {i // 10 % 12}", 0.6), ("other", 0.2)]) for i in range(num_clips))
    draw_timeline(tmp_path / "a.png", rows, title="t", notice="untrained weights", max_labels=2)
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    assert picture.size[0] == 1560
    assert 200 < picture.size[1] < 400
    assert picture.getpixel((3, 3)) == (255, 190, 40)  # the banner
    assert os.listdir(tmp_path) == ["a.png"]


def test_odd_labels_and_no_labels_can_be_drawn(tmp_path: Path) -> None:
    odd = [("$x^2 \\frac", 0.4), ("切る 🍉", 0.3), ("\ud800 half\nlines", 0.2), ("long " * 200, 0.1)]
    draw_timeline(tmp_path / "a.png", [(-3.5, 0.5, odd)], title="$" * 500, notice="n" * 500)
    draw_timeline(tmp_path / "b.png", [(0, 0.01, []), (1, 2, [])], title="")
    draw_timeline(tmp_path / "c.png", [(0, 1e7, [("verb: a", 1e-9), ("noun: b", 0.0)])], title="")
    assert len(os.listdir(tmp_path)) == 3


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = Timeline()
    with pytest.raises(ValueError, match="no clip to draw"):
        timeline.save(tmp_path / "a.png")
    timeline.add(0, 1, [("cut", 0.5)])
    with pytest.raises(ValueError, match="cannot write the picture"):
        timeline.save(tmp_path / "missing" / "a.png")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(ValueError, match="No space left on device"):
        timeline.save(tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_heads_are_kept_apart_and_a_weak_one_is_not_pushed_out() -> None:
    timeline = Timeline(heads=("action", "verb"), max_labels=2, max_tracked=2)
    timeline.add(0, 1, [("cut tomato", 0.2), ("cut pan", 0.1)], [("cut", 0.9), ("wash", 0.8)])
    timeline.add(1, 2, [("wash pan", 0.3)], [("cut", 0.4)])
    actions, verbs = timeline.heads
    assert set(actions.labels) == {"cut tomato", "wash pan"}
    bins_per_s = round(1 / timeline.bins.bin_s)
    assert actions.mean_scores("wash pan")[::bins_per_s] == pytest.approx([0.0, 0.3])
    assert verbs.mean_scores("cut")[::bins_per_s] == pytest.approx([0.9, 0.4])


def test_the_picture_may_begin_before_the_first_prediction(tmp_path: Path) -> None:
    timeline = Timeline(start_s=0.0, remark="drawn ahead")
    timeline.add(5, 10, [("a", 1.0)])
    assert np.isnan(the_head(timeline).mean_scores("a").reshape(10, -1)[:, 0]).tolist() == [True] * 5 + [False] * 5
    timeline.save(tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    blue = np.nonzero((np.abs(picture - (0x2F, 0x6F, 0xDE)).sum(axis=2) < 10).sum(axis=0) > 20)[0]
    left, right = blue.min(), blue.max()
    assert right - left == pytest.approx((picture.shape[1] - 0.95 * 120 - left), abs=2)  # up to the right margin
    with pytest.raises(ValueError, match="in order"):
        timeline.add(-1, 2, [])


def test_what_leads_stands_on_top_and_is_twice_as_tall(tmp_path: Path) -> None:
    timeline = Timeline(heads=("action", "verb", "noun"), first_leads=True, max_labels=3)
    timeline.add(0, 1, [("cut tomato", 1.0)], [("cut", 1.0)], [("tomato", 1.0)])
    timeline.save(tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    column = picture[:, 400]
    tops, heights = [], []
    for color in ((0x2F, 0x6F, 0xDE), (0xE4, 0x57, 0x2E), (0x2A, 0x9D, 0x5C)):
        rows = np.nonzero(np.abs(column - color).sum(axis=1) < 10)[0]
        band = rows[: int(np.argmax(np.diff(rows) > 1)) + 1]  # below it comes the row of the class
        tops.append(int(band[0]))
        heights.append(len(band))
    assert tops == sorted(tops)
    assert heights[0] > 1.9 * heights[1]
    assert heights[1] == pytest.approx(heights[2], abs=1)


def test_many_heads_long_names_and_heads_without_classes_can_be_drawn(tmp_path: Path) -> None:
    timeline = Timeline(heads=("action", *(f"head {i}" for i in range(9))), first_leads=True)
    for i in range(30):
        name = f"put-down the very long chopping board number {i}"
        timeline.add(i, i + 1, [(name, 0.1)], *[[(f"class {i}", 0.4)]] * 8, [])
    timeline.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] == 1560
