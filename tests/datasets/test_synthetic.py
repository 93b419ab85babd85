"""Generated videos: what they show, what is said about them, and that nothing else gives the answer away."""

import csv
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from memvit.datasets.clips import ClipTiming
from memvit.datasets.epic_kitchens import EpicKitchensDataset
from memvit.datasets.epic_writing import tail_classes
from memvit.datasets.scenes import RecallOptions, RecipeOptions, ShellGameOptions
from memvit.datasets.scenes.recall import COLORS
from memvit.datasets.scenes.recipe import RECIPES
from memvit.datasets.synthetic import TASKS, make_dataset, make_scene, task_options
from memvit.video import VideoReader
from memvit.video.shapes import rgb


def drawn(task: str, split: str = "train", index: int = 0, seed: int = 0) -> np.ndarray:
    scene = make_scene(task, seed, split, index)
    return np.stack([scene.draw(time_s, 32) for time_s in (0.1, 0.6, scene.duration_s - 0.1)])


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def amount_of(frame: np.ndarray, color: str) -> int:
    """Pixels about that colour."""
    return int((np.abs(frame - rgb(color)).max(axis=-1) < 24).sum())


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_always_gives_the_same_videos_and_another_seed_or_split_others(task):
    assert np.array_equal(drawn(task), drawn(task))
    others = [drawn(task, "val"), drawn(task, "test"), drawn(task, index=1), drawn(task, seed=1)]
    assert all(not np.array_equal(drawn(task), other) for other in others)


def test_recall_shows_its_cue_in_the_first_second_and_what_passes_by_later_says_nothing():
    agreed, passed = 0, 0
    for index in range(150):
        scene = make_scene("recall", 0, "train", index, RecallOptions(2, 4))
        (segment,) = scene.segments
        assert (segment.start_s, segment.end_s) == (0, scene.duration_s)
        amounts = {name: amount_of(scene.draw(0.5, 48), color) for name, color in COLORS.items()}
        assert max(amounts, key=amounts.__getitem__) == segment.labels[0]
        later = {name: amount_of(scene.draw(1.5, 48), color) for name, color in COLORS.items()}
        agreed += max(later, key=later.__getitem__) == segment.labels[0]
        passed += 1
    assert 0.12 < agreed / passed < 0.40  # chance is 0.25


@pytest.mark.parametrize(("task", "head"), [("recall", 0), ("recipe", 1)])
def test_answers_are_balanced(task, head):
    counts = Counter(make_scene(task, 0, "train", i).segments[0].labels[head] for i in range(400))
    assert len(counts) == 4
    assert min(counts.values()) > 70


def test_the_ball_is_seen_only_where_the_box_says_and_only_when_its_cup_is_lifted():
    for index in range(30):
        scene = make_scene("shell_game", 0, "train", index)
        boxes = {second: [b for b in scene.boxes if b.second == second] for second in {b.second for b in scene.boxes}}
        for moment, delay_s in scene.delays:
            frame = scene.draw(moment, 96)
            red = (frame[..., 0] - frame[..., 1:].max(axis=-1)) > 90
            (holder,) = [b for b in boxes[int(moment)] if b.label == "ball"]
            assert (red.sum() > 15) == (delay_s == 0)
            if delay_s == 0:
                x = np.flatnonzero(red.any(axis=0)).mean() / 96
                assert holder.corners[0] < x < holder.corners[2]


def test_a_cup_that_is_followed_by_its_pictures_ends_where_the_boxes_say():
    followed = 0
    for index in range(12):
        scene = make_scene("shell_game", 0, "val", index, ShellGameOptions(6, 8, 3, 3, swap_probability=1.0))
        size, holder = 96, None
        for moment, delay_s in scene.delays:
            truth = next(b for b in scene.boxes if b.second == int(moment) and b.label == "ball")
            middle = (np.array(truth.corners[:2]) + truth.corners[2:]) / 2 * size
            if delay_s == 0:
                holder = middle
                continue
            for step in range(17):
                frame = scene.draw(moment - 0.5 + step / 32, size)
                holder = _nearest_cup(frame, holder)
            assert abs(holder[0] - middle[0]) < 8  # cups are 20 pixels apart or more
            followed += 1
    assert followed > 30


def _nearest_cup(frame: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The middle of the uniform square nearest to a place."""
    size = frame.shape[0]
    best, found = np.inf, place
    for dy in range(-7, 8):
        for dx in range(-7, 8):
            y, x = int(place[1]) + dy, int(place[0]) + dx
            if 6 <= x < size - 6 and 6 <= y < size - 6:
                patch = frame[y - 2 : y + 6, x - 6 : x + 7]
                cost = patch.std(axis=(0, 1)).sum() + 0.4 * np.hypot(dx, dy)
                if cost < best:
                    best, found = cost, np.array([x, y], float)
    return found


def test_a_recipe_follows_from_the_ingredient_that_was_taken():
    for index in range(30):
        scene = make_scene("recipe", 0, "train", index)
        noun, place = "", 0
        for segment in scene.segments:
            verb = segment.labels[0]
            if verb == "take":
                noun, place = segment.labels[1], 0
            else:
                assert segment.labels[1] == noun
                assert RECIPES[noun][place] == verb
                place += 1
        assert [s.end_s for s in scene.segments[:-1]] == [s.start_s for s in scene.segments[1:]]


def test_the_present_step_of_a_recipe_does_not_tell_the_next():
    following = {}
    for verbs in RECIPES.values():
        for now, then in itertools.pairwise(verbs):
            following.setdefault(now, set()).add(then)
    assert all(len(then) > 1 for then in following.values())


@pytest.mark.parametrize("task", TASKS)
def test_a_data_set_is_real_files_that_the_readers_read(task, tmp_path):
    root = make_dataset(task, tmp_path / "data", videos=3, eval_videos=2, seed=4, size=32)
    description = json.loads((root / "dataset.json").read_text())
    assert description["task"] == task
    assert description["videos"] == {"train": 3, "val": 2, "test": 2}
    names = {split: {row[0] for row in rows(root / f"{split}.csv")} - {"video"} for split in ("train", "val", "test")}
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == 7
    for name in names["train"]:
        reader = VideoReader(root / "videos" / f"{name}.mp4")
        assert (reader.info.width, reader.info.height) == (32, 32)
    header = rows(root / "train.csv")[0]
    assert header[:2] == (["video", "start_s"] if task != "shell_game" else [header[0], "0001"])
    assert rows(root / "test_delays.csv")[0] == ["video", "time_s", "delay_s"]
    assert (root / "test_seen.csv").exists() == (task == "shell_game")
    if task == "shell_game":  # what shows the ball, and nothing else, is excluded from measuring memory
        seen = [(row[0], float(row[1])) for row in rows(root / "test_seen.csv")]
        assert seen == [(row[0], float(row[1])) for row in rows(root / "test_delays.csv")[1:] if float(row[2]) == 0]
        assert len(seen) >= 2


def test_videos_that_are_there_are_kept_and_another_data_set_is_refused(tmp_path):
    root = make_dataset("recall", tmp_path, videos=2, eval_videos=1, size=32)
    before = {path: path.stat().st_mtime_ns for path in (root / "videos").iterdir()}
    (root / "videos" / "train_00001.mp4").unlink()
    done = []
    make_dataset("recall", tmp_path, videos=2, eval_videos=1, size=32, on_progress=lambda n, of: done.append((n, of)))
    assert done[-1] == (4, 4)
    after = {path: path.stat().st_mtime_ns for path in (root / "videos").iterdir()}
    assert sum(after[path] != before[path] for path in before) == 1
    with pytest.raises(ValueError, match="holds another data set"):
        make_dataset("recall", tmp_path, videos=2, eval_videos=1, size=32, seed=1)


def test_a_recipe_is_written_as_epic_kitchens_is(tmp_path):
    root = make_dataset("recipe", tmp_path, videos=21, eval_videos=4, size=32, form="epic")
    timing = ClipTiming(8, 1 / 8, 1.0, 4)
    datasets = {
        split: EpicKitchensDataset(root / "annotations" / f"EPIC_100_{name}.csv", root, timing)
        for split, name in (("train", "train"), ("val", "validation"), ("test", "test"))
    }
    assert [video.name for video in datasets["train"].videos][::20] == ["P01_101", "P01_102"]
    seen = {video.name[:3] for video in datasets["train"].videos}
    assert [video.name[:3] in seen for video in datasets["val"].videos] == [True, False, True, False]
    unseen = {row[0] for row in rows(root / "annotations" / "EPIC_100_unseen_participant_ids_validation.csv")[1:]}
    assert not unseen & seen
    names = [video.name for dataset in datasets.values() for video in dataset.videos]
    assert len(set(names)) == len(names) == 29
    # What the reader understands is what was drawn.
    dataset = datasets["val"]
    for index, video in enumerate(dataset.videos):
        scene = make_scene("recipe", 0, "val", index)
        found = dataset.rows[dataset.rows["video_id"] == video.name]
        assert len(found) == len(scene.segments)
        for segment, (_, row) in zip(scene.segments, found.iterrows(), strict=True):
            assert row["start_s"] == pytest.approx(segment.start_s, abs=0.0051)
            assert row["stop_s"] == pytest.approx(segment.end_s, abs=0.0051)
            labels = dataset.classes[0][row["verb_class"]], dataset.classes[1][row["noun_class"]]
            assert labels == segment.labels


@pytest.mark.parametrize(
    ("counts", "tail"),
    [({"a": 90, "b": 6, "c": 4}, [1, 2]), ({"a": 50, "b": 50, "c": 0}, [2]), ({"a": 1, "b": 1, "c": 1}, [])],
)
def test_tail_classes_are_the_smallest_that_make_up_a_fifth(counts, tail):
    assert tail_classes([name for name, number in counts.items() for _ in range(number)], "abc") == tail


def test_difficulty_is_given_as_plain_numbers():
    assert task_options("shell_game", {"max_hidden_s": 6.0, "swap_probability": 1}) == ShellGameOptions(
        max_hidden_s=6, swap_probability=1.0
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecallOptions(5, 2), "lengths are 1 s or more, the longest no shorter"),
        (lambda: RecallOptions(num_classes=9), "2 to 4 colours"),
        (lambda: ShellGameOptions(swap_probability=2), "from 0 to 1"),
        (lambda: ShellGameOptions(min_hidden_s=4, max_hidden_s=2), "the maximum no less"),
        (lambda: RecipeOptions(min_step_s=0), "1 or more"),
        (lambda: make_scene("chess", 0, "train", 0), "choose recall, shell_game, recipe"),
        (lambda: make_scene("recall", 0, "holdout", 0), "choose train, val, test"),
        (lambda: make_scene("recall", 0, "train", 0, RecipeOptions()), "takes RecallOptions"),
        (
            lambda: task_options("recall", {"swap_probability": 1}),
            "recall has no option swap_probability: it has shortest_s",
        ),
        (lambda: make_dataset("recall", "/nowhere", videos=0), "make 1 or more"),
        (lambda: make_dataset("recall", "/nowhere", size=3), "16 pixels or more"),
        (lambda: make_dataset("recall", "/nowhere", form="epic"), "for verbs and nouns, which recall has not"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
