"""The whole path of EPIC-KITCHENS-100 on its real annotations, with rendered verbs and nouns in place of footage.

    python -m memvit.benchmarks.epic_timelines layout --annotations DIR      how long reading and laying out takes
    python -m memvit.benchmarks.epic_timelines train --annotations DIR       a dozen videos trained on and evaluated, both tasks
    python -m memvit.benchmarks.epic_timelines golden --annotations DIR --golden FILE     metrics against the official evaluators'

DIR is the folder of the published annotations, which are not ours to ship (CC BY-NC 4.0). Nothing of them is kept in the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console

from memvit.datasets.clips import ClipTiming
from memvit.datasets.epic_annotations import HEADS, VIDEO_INFO, EpicVideo, read_video_info, seconds
from memvit.datasets.epic_kitchens import EpicKitchensDataset, EpicTask, open_epic
from memvit.datasets.epic_media import published_rate
from memvit.datasets.loader import StreamLoader
from memvit.metrics.epic_annotations import TAIL_NOUNS_FILE, TAIL_VERBS_FILE, UNSEEN_PARTICIPANTS_FILE
from memvit.metrics.epic_kitchens import anticipation, recognition
from memvit.metrics.epic_submission import read_submission
from memvit.video.writer import VideoWriter

RESULTS = Path("docs/results/epic_timelines.json")
VALIDATION = "EPIC_100_validation.csv"
SIZE = 64
NUM_VIDEOS, NUM_ODD_RATES, LONGEST_S = 12, 4, 600.0
HELD_OUT = 4  # every so many-th video is evaluated and not trained on
USUAL_FPS = 59.94
# In the order in which the metrics take them.
SUBSETS = (TAIL_VERBS_FILE, TAIL_NOUNS_FILE, UNSEEN_PARTICIPANTS_FILE)
# Sixteen cells of eight colours: enough for every verb and noun to look like no other.
CELLS = (2, 4)
COLORS = np.array([(r, g, b) for r in (30, 220) for g in (30, 220) for b in (30, 220)], np.uint8)


def pattern(head: str, number: int) -> np.ndarray:
    """What stands for a class, (32, 64, 3) uint8: coloured cells, the same everywhere."""
    chosen = np.random.default_rng([HEADS.index(head), number]).integers(len(COLORS), size=CELLS)
    return COLORS[chosen].repeat(SIZE // 2 // CELLS[0], axis=0).repeat(SIZE // CELLS[1], axis=1)


def draw(segments: pd.DataFrame, rate: float, duration_s: float, seed: int) -> Iterator[np.ndarray]:
    """A video: the verb above, the noun below, of the action that began last and goes on; noise; grey where there is none."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-25, 26, (16, SIZE, SIZE, 3))
    segments = segments.sort_values("start_s")
    starts_s, stops_s = segments["start_s"].to_numpy(), segments["stop_s"].to_numpy()
    pictures = [
        np.concatenate([pattern(head, number) for head, number in zip(HEADS, classes, strict=True)]).astype(np.int16)
        for classes in segments[["verb_class", "noun_class"]].astype(int).to_numpy().tolist()
    ]
    nothing = np.full((SIZE, SIZE, 3), 128, np.int16)
    for i in range(round(duration_s * rate)):
        on = np.flatnonzero((starts_s <= i / rate) & (i / rate < stops_s))
        picture = pictures[on[-1]] if len(on) else nothing
        yield np.clip(picture + noise[rng.integers(len(noise))], 0, 255).astype(np.uint8)


def choose(rows: pd.DataFrame, infos: Mapping[str, EpicVideo]) -> list[str]:
    """A dozen videos: some of every unusual frame rate, then those with most segments among the short ones."""
    counts = rows["video_id"].value_counts()
    short = [name for name in counts.index if infos[name].duration_s <= LONGEST_S]
    odd = sorted((name for name in short if abs(infos[name].fps - USUAL_FPS) > 1), key=lambda n: infos[n].duration_s)
    usual = [name for name in short if name not in odd and infos[name].duration_s <= LONGEST_S / 5]
    return (odd[:NUM_ODD_RATES] + usual)[:NUM_VIDEOS]


def write_media(root: Path, video: str, info: EpicVideo, segments: pd.DataFrame, kind: str, seed: int) -> None:
    """A rendered video as images in a folder, in a tar file, both at the published rate, or as a film at its own."""
    folder = root / video.partition("_")[0] / ("videos" if kind == "film" else "rgb_frames")
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "film":
        with VideoWriter(folder / f"{video}.mp4", SIZE, SIZE, info.fps, codec="mpeg4") as film:
            for frame in draw(segments, info.fps, info.duration_s, seed):
                film.write(frame)
        return
    images = folder / video
    images.mkdir()
    for number, frame in enumerate(draw(segments, published_rate(video), info.duration_s, seed), start=1):
        Image.fromarray(frame).save(images / f"frame_{number:010d}.jpg", quality=90)
    if kind == "tar":
        with tarfile.open(folder / f"{video}.tar", "w") as tar:
            tar.add(images, arcname=".")
        shutil.rmtree(images)


def make(annotations: Path, root: Path, console: Console) -> dict[str, Any]:
    """Renders a dozen videos and writes their part of the real annotations; what there is."""
    rows = pd.read_csv(annotations / VALIDATION, dtype=str, keep_default_na=False)
    timed = rows.assign(start_s=seconds(rows["start_timestamp"]), stop_s=seconds(rows["stop_timestamp"]))
    infos = read_video_info(annotations / VIDEO_INFO)
    chosen = choose(rows, infos)
    held_out = chosen[HELD_OUT - 1 :: HELD_OUT]
    kinds = dict(zip(chosen, itertools.cycle(("folder", "tar", "film")), strict=False))
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for path in annotations.glob("*.csv"):
        if path.name != VALIDATION:
            shutil.copy(path, root / "annotations")
    parts = {"train": [name for name in chosen if name not in held_out], "validation": held_out}
    for split, names in parts.items():
        rows[rows["video_id"].isin(names)].to_csv(root / "annotations" / f"EPIC_100_{split}.csv", index=False)
    if not (root / "complete").exists():
        for seed, name in enumerate(chosen):
            console.print(f"rendering {infos[name].duration_s:.0f} s at {infos[name].fps:.2f} fps as {kinds[name]}")
            write_media(root, name, infos[name], timed[timed["video_id"] == name], kinds[name], seed)
        (root / "complete").touch()
    trained, held = (rows[rows["video_id"].isin(names)] for names in parts.values())
    classes = {"verb": ["verb_class"], "noun": ["noun_class"], "action": ["verb_class", "noun_class"]}
    return {
        "videos": {split: len(names) for split, names in parts.items()},
        "segments": {"train": len(trained), "validation": len(held)},
        # Nobody can name what was never shown.
        "percent_seen_in_training": {
            name: round(100 * float(held.set_index(columns).index.isin(trained.set_index(columns).index).mean()), 1)
            for name, columns in classes.items()
        },
        "minutes": round(sum(infos[name].duration_s for name in chosen) / 60, 1),
        "own_rates_fps": sorted({round(infos[name].fps, 2) for name in chosen}),
        "media": {kind: list(kinds.values()).count(kind) for kind in ("folder", "tar", "film")},
    }


def memvit(*arguments: str) -> None:
    """Runs the command; what it says is shown where it fails.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", "memvit", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"memvit {' '.join(arguments)} ended with code {done.returncode}: {done.stderr[-3000:]}")


def train(annotations: Path, work: Path, steps: int, console: Console) -> dict[str, Any]:
    """Trains and tests both tasks by the command, and measures what a submission of each is worth."""
    root = work / "data" / "epic_timelines"
    found: dict[str, Any] = {"data": make(annotations, root, console)}
    subsets = [root / "annotations" / name for name in SUBSETS]
    for task, config in (("recognition", "recipe_epic"), ("anticipation", "recipe_epic_anticipation")):
        began_s = time.monotonic()
        common = ["--config", f"configs/{config}.yaml", "--data.root", str(root), "--run.directory", str(work / "runs")]
        common += ["--data.test", "annotations/EPIC_100_validation.csv", "--run.name", f"epic_timelines_{task}"]
        common += ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(min(steps, 200))]
        common += ["--trainer.enable_progress_bar", "false", "--data.val_batch_size", "4"]
        memvit("fit", *common, "--ckpt_path", "last")
        submission = work / f"epic_timelines_{task}.zip"
        memvit("test", *common, "--ckpt_path", "last", "--model.submission", str(submission))
        measured = read_submission(submission).measure(root / "annotations" / VALIDATION, *subsets)
        console.print(f"{task}: {measured}")
        found[task] = {
            "command": "memvit fit " + " ".join(common).replace(str(work), "WORK"),
            "seconds": round(time.monotonic() - began_s, 1),
            "metrics": {name: round(value, 3) for name, value in measured.items()},
        }
    return found


def layout(annotations: Path, work: Path) -> dict[str, Any]:
    """How long the real validation set takes: to be read, and until its streams and all their labels are there."""
    root = work / "data" / "epic_layout"
    infos = read_video_info(annotations / VIDEO_INFO)
    names = pd.read_csv(annotations / VALIDATION, dtype=str)["video_id"].unique()
    for name in names:  # of the right length, and with next to nothing to see
        path = root / name.partition("_")[0] / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with VideoWriter(path, 32, 32, 1.0, codec="mpeg4") as film:
                for _ in range(round(infos[name].duration_s)):
                    film.write(np.zeros((32, 32, 3), np.uint8))
    began_s = time.monotonic()
    file = open_epic(annotations / VALIDATION, root)
    read_s = time.monotonic() - began_s
    result: dict[str, Any] = {"videos": len(file.lines), "segments": len(file.entries), "read_s": round(read_s, 2)}
    tasks: tuple[EpicTask, ...] = ("recognition", "anticipation")
    for task in tasks:
        began_s = time.monotonic()
        timing = ClipTiming(16, 4 / 30, 64 / 30, 8)
        dataset = EpicKitchensDataset(annotations / VALIDATION, root, timing, task=task)
        loader = StreamLoader(dataset, batch_size=8, crop_size=224, training=True)
        labels = [dataset.annotate(video, s) for video in dataset.videos for s in dataset.clip_starts(video).tolist()]
        clips_if_cut = sum(np.ceil(video.duration_s / timing.stride_s) for video in dataset.videos)
        result[task] = {
            "laid_out_s": round(time.monotonic() - began_s, 2),
            "clips": len(labels),
            "clips_every_stride": int(clips_if_cut),
            "batches_of_8": len(loader),
        }
    return result


def golden(annotations: Path, expected: Path) -> dict[str, Any]:
    """The largest differences from the official evaluators' values."""
    wanted = json.loads(expected.read_text())
    rows = pd.read_csv(annotations / VALIDATION)
    rng = np.random.default_rng(wanted["seed"])
    n = len(rows)
    verbs, nouns = rng.standard_normal((n, 97)), rng.standard_normal((n, 300))
    for scores, column in ((verbs, "verb_class"), (nouns, "noun_class")):
        scores[np.arange(n), rows[column]] += 1.5 * rng.random(n) * 2
    subsets = [annotations / name for name in SUBSETS]
    found: dict[str, Any] = {}
    for name, measure in (("recognition", recognition), ("anticipation", anticipation)):
        began_s = time.monotonic()
        values = measure(verbs, nouns, annotations / VALIDATION, *subsets)
        found[name] = {
            "values": len(values),
            "largest_difference": max(abs(values[key] - value) for key, value in wanted[name].items()),
            "seconds": round(time.monotonic() - began_s, 2),
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layout", "train", "golden"))
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--golden", type=Path, help="the official evaluators' values, JSON")
    parser.add_argument("--steps", type=int, default=1000, help="of every training")
    parser.add_argument("--work", type=Path, default=Path("work/long_term"), help="folder for data and runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    console = Console(highlight=False)
    if options.what == "golden" and options.golden is None:
        parser.error("golden needs --golden")
    work = options.work.resolve()
    if options.what == "layout":
        found = layout(options.annotations, work)
    elif options.what == "train":
        found = train(options.annotations, work, options.steps, console)
    else:
        found = golden(options.annotations, options.golden)
    console.print_json(json.dumps(found))
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    results[options.what] = {"machine": machine, **found}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
