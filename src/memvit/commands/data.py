"""`memvit data`: look at annotated videos before training on them, or make some."""

from __future__ import annotations

import contextlib
import json as jsons
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from memvit.commands.terminal import say, stderr_console, stdout_console


def check(
    files: list[str],
    *,
    videos: str,
    task: Literal["clip", "frames", "boxes", "epic", "kinetics"] = "clip",
    multi_label: bool = False,
    clip_s: float | None = None,
    label_map: str | None = None,
    classes: str | None = None,
    first_second: float = 0.0,
    image_fps: float | None = None,
    json: bool = False,
) -> int:
    """Find everything that is wrong with annotations and videos, before a training does.

    Prints videos, hours, segments and classes, then what was found, with file and line. Exit code 0: nothing that training
    would stop at; 1: there are errors.

    Examples:
        memvit data check train.csv val.csv --videos DIR
        memvit data check train.csv --videos DIR --json
        memvit data check data/k400/train.csv data/k400/val.csv --videos data/k400/videos --task kinetics

    Args:
        files: CSV files to train on, validate and test with, in this order; the first alone will do. For kinetics lists, or
            folders with a folder of videos per class.
        videos: folder with the videos.
        task: what is labelled: clips, the token times in them (both as video,start_s,end_s,label), boxes (AVA's form);
            epic: segments in the files of EPIC-KITCHENS-100; kinetics: whole videos, one label each.
        multi_label: several classes can be true at a time. Boxes always may have several actions.
        clip_s: length of a clip in seconds, to see how many clips an epoch has.
        label_map: names of the actions of boxes, a CSV file with the columns label_id,label_name.
        classes: names of the classes, for kinetics: a file with one a line, or .json or .csv with their numbers.
        first_second: the second of the annotations at which the video files begin, for boxes; 900 for AVA's own.
        image_fps: images per second of folders of images; left out: 30, or in EPIC-KITCHENS-100 what it must be.
        json: print JSON.
    """
    from memvit.commands.data_report import print_report
    from memvit.datasets.annotations import IMAGE_FPS, VideoFolder
    from memvit.datasets.ava_boxes import read_boxes
    from memvit.datasets.check import check_annotations
    from memvit.datasets.epic_kitchens import open_epic
    from memvit.datasets.kinetics import find_labelled_videos
    from memvit.datasets.label_maps import read_label_map
    from memvit.datasets.segments import read_segments
    from memvit.models.zoo import cache_dir

    VideoFolder(videos)  # a wrong folder is wrong for every file
    read: Callable[..., Any]
    if task != "boxes" and (label_map is not None or first_second):
        raise ValueError("--label_map and --first_second are for boxes: give --task boxes as well, or leave them out")
    if task != "kinetics" and classes is not None:
        raise ValueError("--classes is for kinetics: give --task kinetics as well, or leave it out")
    if task == "kinetics":
        if clip_s is not None:
            raise ValueError(
                "--clip_s says nothing of kinetics, where an epoch takes one clip of every video: leave it out"
            )
        read = partial(find_labelled_videos, videos=videos, classes=classes)
    elif task == "epic":
        read = partial(open_epic, videos=videos, image_fps=image_fps, cache=cache_dir())
    elif task == "boxes":
        if label_map is not None:
            read_label_map(label_map)
        read = partial(read_boxes, videos=videos, classes=label_map, first_second=first_second)
    else:
        read = partial(read_segments, videos=videos, multi_label=multi_label)
    with _counting("opening videos") as show:
        report = check_annotations(files, read, clip_s=clip_s, image_fps=image_fps or IMAGE_FPS, on_progress=show)
    if json:
        print(jsons.dumps(report.to_dict(), indent=2))
    else:
        print_report(report, {"boxes": "boxes", "kinetics": "labels"}.get(task, "segments"))
    return 0 if report.ok else 1


def make(
    task: Literal["recall", "shell_game", "recipe"],
    out: str,
    *,
    videos: int = 200,
    eval_videos: int | None = None,
    seed: int = 0,
    size: int = 64,
    fps: float = 8.0,
    options: dict[str, float] | None = None,
    form: Literal["own", "epic"] = "own",
    jobs: int = 1,
) -> int:
    """Make videos with annotations that can only be told from what was to be seen long before.

    Writes OUT/videos/*.mp4, train.csv, val.csv and test.csv, in the form that `memvit fit` reads. Train, validation and test
    videos never share a seed. Run again after an interruption, it goes on where it stopped.

    Examples:
        memvit data make recall data/recall --videos 1600 --jobs 2

    Args:
        task: the game: recall (a colour shown in the first second, asked for ever after), shell_game (a ball under one of three
            cups, which swap places) or recipe (steps that follow from an ingredient under a lid).
        out: folder for the videos and CSV files.
        videos: how many to train on.
        eval_videos: how many to validate with, and as many to test with; a fifth of the others where left out.
        seed: chooses the videos.
        size: height and width, pixels.
        fps: frames per second.
        options: how hard the task is, such as --options.longest_s 20. recall: shortest_s, longest_s, num_classes,
            max_distractors; shell_game: shortest_s, longest_s, min_hidden_s, max_hidden_s, swap_probability; recipe:
            shortest_s, longest_s, min_step_s, max_step_s.
        form: epic: the recipe in the files of EPIC-KITCHENS-100.
        jobs: processes that draw.
    """
    from memvit.datasets.synthetic import make_dataset, task_options

    difficulty = task_options(task, options or {})
    with _counting("making videos") as show:
        make_dataset(
            task,
            out,
            videos=videos,
            eval_videos=eval_videos,
            seed=seed,
            size=size,
            fps=fps,
            options=difficulty,
            form=form,
            num_processes=jobs,
            on_progress=show,
        )
    config = f"configs/{task}.yaml" if form == "own" else f"configs/{task}_{form}.yaml"
    say(stdout_console(), f"made videos and annotations in {out}; to train on them: memvit fit --config {config}")
    return 0


@contextlib.contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for things done one after another; nothing where nobody watches."""
    console = stderr_console()
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
