"""A benchmark for long-term memory: generated videos in real files, with annotations, for the readers of real data.

Train, validation and test videos come from seeds that never meet; the same seed draws the same videos. The files of a
segments data set, of EPIC-KITCHENS-100 or, for boxes, of AVA's format are all that a model is given; `*_delays.csv` says for
every second how long ago the answer was last to be seen, for whoever evaluates, and `*_seen.csv`, for boxes, lists the
keyframes at which it can be seen, to be excluded from what shall measure memory alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from memvit.datasets.epic_writing import video_ids, video_path, write_epic, write_rows
from memvit.datasets.scenes import (
    RecallOptions,
    RecipeOptions,
    Scene,
    ShellGameOptions,
    recall,
    recipe,
    shell_game,
)
from memvit.video.writer import VideoWriter

Options = RecallOptions | ShellGameOptions | RecipeOptions

SPLITS = ("train", "val", "test")
DESCRIPTION_FILE = "dataset.json"
LABEL_MAP_FILE = "classes.csv"


@dataclass(frozen=True)
class SyntheticTask:
    """A game: how to make up a scene, and what can be set."""

    make: Callable[[np.random.Generator, Any], Scene]
    options: type[Options]


TASKS: dict[str, SyntheticTask] = {
    "recall": SyntheticTask(recall, RecallOptions),
    "shell_game": SyntheticTask(shell_game, ShellGameOptions),
    "recipe": SyntheticTask(recipe, RecipeOptions),
}


def task_options(task: str, values: Mapping[str, float]) -> Options:
    """The options of a task, of plain numbers.

    Raises:
        ValueError: no such task, or an option that it does not have or that makes no sense.
    """
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}: choose {', '.join(TASKS)}")
    fields = {field.name: field for field in dataclasses.fields(TASKS[task].options)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{task} has no option {', '.join(unknown)}: it has {', '.join(fields)}")
    typed: dict[str, Any] = {
        name: int(value) if fields[name].type == "int" else float(value) for name, value in values.items()
    }
    return TASKS[task].options(**typed)


def make_scene(task: str, seed: int, split: str, index: int, options: Options | None = None) -> Scene:
    """The scene of one video, always the same for the same arguments.

    Args:
        task: "recall", "shell_game" or "recipe".
        seed: of the data set.
        split: "train", "val" or "test".
        index: which video of the split, from 0.
        options: of the task; the defaults where None.

    Raises:
        ValueError: no such task or split, or the options of another task.
    """
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}: choose {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}: choose {', '.join(SPLITS)}")
    options = options or TASKS[task].options()
    if not isinstance(options, TASKS[task].options):
        raise ValueError(f"{task} takes {TASKS[task].options.__name__}, not {type(options).__name__}")
    # SeedSequence turns every different list into unrelated numbers: no video of a split is one of another.
    rng = np.random.default_rng(np.random.SeedSequence([seed, list(TASKS).index(task), SPLITS.index(split), index]))
    return TASKS[task].make(rng, options)


def render(scene: Scene, path: str | os.PathLike[str], *, size: int, fps: float, seed: int = 0) -> None:
    """Draws and encodes a scene.

    Args:
        path: the file to write; see `VideoWriter`.
        size: height and width, pixels.
        fps: frames per second.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    with VideoWriter(path, size, size, fps) as video:
        for i in range(round(scene.duration_s * fps)):
            # A frame stands for the time until the next one; its middle is what it shows.
            frame = scene.draw((i + 0.5) / fps, size)
            frame += rng.normal(0, scene.noise, frame.shape).astype(np.float32)
            video.write(np.clip(frame, 0, 255).astype(np.uint8))


def make_dataset(
    task: str,
    out: str | os.PathLike[str],
    *,
    videos: int = 200,
    eval_videos: int | None = None,
    seed: int = 0,
    size: int = 64,
    fps: float = 8.0,
    options: Options | None = None,
    form: Literal["own", "epic"] = "own",
    num_processes: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Makes a whole data set: `videos/*.mp4`, `train.csv`, `val.csv`, `test.csv`, and what describes them.

    Recall and recipe come in the segments format (`video,start_s,end_s,label` or `...,verb,noun`), the shell game in AVA's
    (`video,second,x1,y1,x2,y2,action_id,person_id`) with its label map `classes.csv`. In the form of EPIC-KITCHENS-100 videos
    are `P01/videos/P01_101.mp4` and so on, and the annotations are in `annotations`. Videos that are there already are kept, so
    that an interrupted run goes on where it stopped.

    Args:
        task: "recall", "shell_game" or "recipe".
        out: folder; made where missing.
        videos: for training.
        eval_videos: for validation, and as many for testing; a fifth of `videos` where None.
        seed: chooses everything. Splits never share a video, whatever the seed.
        size: height and width of the videos, pixels.
        fps: their frame rate.
        options: how hard the task is.
        form: "epic": the files are those of EPIC-KITCHENS-100; only for the recipe, which has verbs and nouns.
        num_processes: draw and encode in so many processes.
        on_progress: called with (videos done, videos in all).

    Raises:
        ValueError: an option makes no sense, or the folder holds another data set.
    """
    if videos < 1 or (eval_videos is not None and eval_videos < 1):
        raise ValueError(f"videos={videos}, eval_videos={eval_videos}: make 1 or more")
    if size < 16 or not fps > 0:
        raise ValueError(f"size={size}, fps={fps}: videos have 16 pixels or more, and some frames per second")
    counts = dict(zip(SPLITS, (videos, *[eval_videos or max(1, videos // 5)] * 2), strict=True))
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}: choose {', '.join(TASKS)}")
    if form == "epic" and task != "recipe":
        raise ValueError(f"form='epic' is for verbs and nouns, which {task} has not: make a recipe, or leave it out")
    options = options or TASKS[task].options()
    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    settings = {"seed": seed, "size": size, "fps": fps, "videos": counts}
    _describe(root, task, options, settings if form == "own" else {**settings, "form": form})

    if form == "epic":
        names = video_ids(counts)
        paths = {name: video_path(root, name) for split in names.values() for name in split}
    else:
        names = {split: [f"{split}_{index:05d}" for index in range(num)] for split, num in counts.items()}
        paths = {name: root / "videos" / f"{name}.mp4" for split in names.values() for name in split}
    for folder in {path.parent for path in paths.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    scenes = {
        split: [(name, make_scene(task, seed, split, i, options)) for i, name in enumerate(of_split)]
        for split, of_split in names.items()
    }
    if form == "epic":
        write_epic(root, scenes, options.classes, size=size, fps=fps)
    else:
        _write_annotations(root, task, scenes)
    for split, named in scenes.items():
        delays = [(name, time_s, delay_s) for name, scene in named for time_s, delay_s in scene.delays]
        write_rows(root / f"{split}_delays.csv", [("video", "time_s", "delay_s"), *delays])

    jobs = [
        (task, seed, split, i, options, paths[name], size, fps)
        for split, of_split in names.items()
        for i, name in enumerate(of_split)
    ]
    for done, _ in enumerate(_run(jobs, num_processes), start=1):
        if on_progress is not None:
            on_progress(done, len(jobs))
    return root


def _write_annotations(root: Path, task: str, scenes: Mapping[str, Sequence[tuple[str, Scene]]]) -> None:
    """The files of a segments data set, or of one with boxes."""
    classes = TASKS[task].options().classes[0]
    for split, named in scenes.items():
        if not named[0][1].boxes:
            write_segments(root / f"{split}.csv", named, ("verb", "noun") if task == "recipe" else ("label",))
            continue
        write_boxes(root / f"{split}.csv", named, classes)
        seen = [
            (name, f"{int(time_s):04d}") for name, scene in named for time_s, delay_s in scene.delays if not delay_s
        ]
        write_rows(root / f"{split}_seen.csv", seen)
    if any(scene.boxes for _, scene in scenes["train"]):
        write_rows(root / LABEL_MAP_FILE, [("label_id", "label_name"), *enumerate(classes, start=1)])


def write_segments(path: Path, scenes: Sequence[tuple[str, Scene]], heads: Sequence[str]) -> None:
    """The segments of named scenes as `video,start_s,end_s,...`."""
    rows = [(name, round(s.start_s, 3), round(s.end_s, 3), *s.labels) for name, scene in scenes for s in scene.segments]
    write_rows(path, [("video", "start_s", "end_s", *heads), *rows])


def write_boxes(path: Path, scenes: Sequence[tuple[str, Scene]], classes: Sequence[str]) -> None:
    """The boxes of named scenes as AVA writes them, without a header; action ids count from 1."""
    rows = [
        (name, f"{box.second:04d}", *(f"{c:.3f}" for c in box.corners), classes.index(box.label) + 1, box.track)
        for name, scene in scenes
        for box in scene.boxes
    ]
    write_rows(path, rows)


def _draw(job: tuple[str, int, str, int, Options, Path, int, float]) -> None:
    task, seed, split, index, options, path, size, fps = job
    if not path.exists():  # files appear whole or not at all
        render(make_scene(task, seed, split, index, options), path, size=size, fps=fps, seed=index)


def _run(jobs: Sequence[Any], num_processes: int) -> Any:
    if num_processes <= 1:
        return map(_draw, jobs)
    return _in_processes(jobs, num_processes)


def _in_processes(jobs: Sequence[Any], num_processes: int) -> Any:
    with ProcessPoolExecutor(num_processes) as pool:
        yield from pool.map(_draw, jobs, chunksize=8)


def _describe(root: Path, task: str, options: Options, settings: dict[str, Any]) -> None:
    """Writes what the folder holds; refuses a folder that holds something else."""
    path = root / DESCRIPTION_FILE
    description = {"task": task, "options": dataclasses.asdict(options), **settings}
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): remove the folder, or choose another") from error
        if found != json.loads(json.dumps(description)):
            raise ValueError(f"{root} holds another data set ({path.name}: {found}): choose another folder")
        return
    path.write_text(json.dumps(description, indent=2) + "\n")
