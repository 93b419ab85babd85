"""How long AVA's evaluation takes at the size of its validation set, from files and from arrays, and how much memory.

    python -m memvit.benchmarks.ava_evaluation --out docs/results/ava_evaluation.json

Boxes and scores are made up; their numbers, and how often actions occur, are about those of AVA v2.2. Every measurement is
made in a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from memvit.datasets.ava_actions import action_names
from memvit.metrics.ava import AvaResult, Detections, GroundTruth, evaluate_boxes, evaluate_files, write_detections

NUM_VIDEOS, FIRST_SECOND, NUM_SECONDS = 64, 902, 897
PERSONS_PER_KEYFRAME = 2.5
ACTIONS_PER_PERSON = 2.3
DETECTIONS_PER_KEYFRAME = 4.2
FOUND_SHARE = 0.85
EXCLUDED_SHARE = 0.001
GROUND_TRUTH, DETECTIONS, EXCLUDED, ARRAYS = "ground_truth.csv", "detections.csv", "excluded.csv", "arrays.npz"


def make_boxes(num_videos: int, seed: int = 0) -> tuple[GroundTruth, Detections]:
    """Annotated and detected boxes of as many videos, detections with float32 scores of 80 actions."""
    rng = np.random.default_rng(seed)
    ids = np.array(list(action_names()))
    frequency = 1 / np.arange(1, len(ids) + 1) ** 1.3  # a few actions are most of what people do
    frequency = rng.permutation(frequency / frequency.sum() * ACTIONS_PER_PERSON)
    num_keyframes = num_videos * NUM_SECONDS
    keyframes = np.repeat(np.arange(num_keyframes), 1 + rng.poisson(PERSONS_PER_KEYFRAME - 1, num_keyframes))
    size = rng.uniform(0.15, 0.6, (len(keyframes), 2))
    low = rng.random((len(keyframes), 2)) * (1 - size)
    corners = np.concatenate([low, low + size], axis=1)
    does = rng.random((len(keyframes), len(ids))) < frequency.clip(max=0.8)

    found = np.flatnonzero(rng.random(len(keyframes)) < FOUND_SHARE)
    num_false = int(num_keyframes * DETECTIONS_PER_KEYFRAME) - len(found)
    false_low = rng.random((num_false, 2)) * 0.8
    shaken = corners[found] + rng.normal(0, 0.06, (len(found), 4)) * np.tile(size[found], 2)
    detected = np.concatenate([shaken, np.hstack([false_low, false_low + rng.uniform(0.05, 0.2, (num_false, 2))])])
    detected_keyframes = np.concatenate([keyframes[found], rng.integers(0, num_keyframes, num_false)])
    logits = rng.normal(0, 1.5, (len(detected), len(ids))).astype(np.float32) + np.log(frequency).astype(np.float32)
    logits[: len(found)] += 3 * does[found]
    order = np.argsort(detected_keyframes, kind="stable")

    person, action = np.nonzero(does)
    truth = GroundTruth(*_name(keyframes[person]), np.round(corners[person], 3), ids[action])
    scores = 1 / (1 + np.exp(-logits[order]))
    boxes = detected[order].clip(0, 1).astype(np.float32)
    return truth, Detections(*_name(detected_keyframes[order]), boxes, scores, ids)


def _name(keyframes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The videos and seconds of keyframes that are numbered."""
    names = np.array([f"video{number:06d}" for number in range(keyframes.max() // NUM_SECONDS + 1)], object)
    return names[keyframes // NUM_SECONDS], FIRST_SECOND + keyframes % NUM_SECONDS


def make(folder: Path, num_videos: int) -> dict[str, Any]:
    """Writes the files of a benchmark, and the detections as arrays; returns how large all is."""
    truth, detections = make_boxes(num_videos)
    corners = {name: truth.corners[:, column] for column, name in enumerate(("x1", "y1", "x2", "y2"))}
    seconds = [f"{second:04d}" for second in truth.seconds]
    rows = pd.DataFrame({"video": truth.videos, "second": seconds, **corners, "action": truth.action_ids, "person": 0})
    rows.to_csv(folder / GROUND_TRUTH, header=False, index=False)
    excluded = rows[["video", "second"]].drop_duplicates().sample(frac=EXCLUDED_SHARE, random_state=0)
    excluded.to_csv(folder / EXCLUDED, header=False, index=False)
    np.savez(folder / ARRAYS, allow_pickle=False, **{**vars(detections), "videos": detections.videos.astype(str)})
    return {
        "keyframes": len(rows[["video", "second"]].drop_duplicates()),
        "ground_truth_rows": len(rows),
        "detected_boxes": len(detections.videos),
        "detection_rows": detections.scores.size,
    }


def _read_arrays(folder: Path) -> Detections:
    with np.load(folder / ARRAYS) as arrays:
        fields = {name: arrays[name] for name in arrays.files}
    return Detections(**{**fields, "videos": fields["videos"].astype(object)})


def write(folder: Path) -> Callable[[], int]:
    """The task of writing detections."""
    detections = _read_arrays(folder)
    return lambda: write_detections(folder / DETECTIONS, detections)


def from_files(folder: Path) -> Callable[[], AvaResult]:
    """The task of evaluating files, reading them included."""
    return lambda: evaluate_files(folder / GROUND_TRUTH, folder / DETECTIONS, folder / EXCLUDED)


def from_arrays(folder: Path) -> Callable[[], AvaResult]:
    """The task of evaluating arrays."""
    kinds = {"video": "str", "second": "str"}
    truth = pd.read_csv(
        folder / GROUND_TRUTH, header=None, names=["video", "second", *"abcd", "action"], usecols=range(7)
    )
    excluded = pd.read_csv(folder / EXCLUDED, header=None, names=list(kinds), dtype=kinds)
    ground_truth = GroundTruth(
        truth["video"].to_numpy(object),
        truth["second"].to_numpy(),
        truth[list("abcd")].to_numpy(),
        truth["action"].to_numpy(),
    )
    detections, pairs = _read_arrays(folder), list(excluded.itertuples(index=False, name=None))
    return lambda: evaluate_boxes(ground_truth, detections, excluded=pairs)


TASKS: dict[str, Callable[[Path], Callable[[], Any]]] = {"write": write, "files": from_files, "arrays": from_arrays}


def measure(task: Callable[[], Any]) -> dict[str, Any]:
    """Runs a task once: its seconds, those of the CPU (user and system), and the most memory that the process ever had."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = task()
    seconds = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    value = {"mAP": found.mean_ap} if isinstance(found, AvaResult) else {}
    return {**seconds, "peak_mib": peak_mib, **value}


def _in_child(folder: str, *arguments: str) -> dict[str, Any]:
    """What this file prints as a process of its own, whose memory is its alone."""
    command = [sys.executable, "-m", "memvit.benchmarks.ava_evaluation", "--folder", folder, *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=NUM_VIDEOS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=["make", *TASKS], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.task is not None:
        found = (
            make(options.folder, options.videos)
            if options.task == "make"
            else measure(TASKS[options.task](options.folder))
        )
        print(json.dumps(found))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        sizes = _in_child(folder, "--task", "make", "--videos", str(options.videos))
        results = {task: _in_child(folder, "--task", task) for task in TASKS}
        sizes["detections_mb"] = Path(folder, DETECTIONS).stat().st_size / 1e6
    if results["files"]["mAP"] != results["arrays"]["mAP"]:
        raise RuntimeError("files and arrays of the same boxes give different results")
    table = Table(title=f"{sizes['detection_rows']:,} scores of {sizes['detected_boxes']:,} boxes")
    for heading in ("task", "wall s", "CPU s", "peak MiB", "mAP"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for task, row in results.items():
        mean_ap = f"{row['mAP']:.6f}" if "mAP" in row else ""
        table.add_row(task, f"{row['wall_s']:.1f}", f"{row['cpu_s']:.1f}", f"{row['peak_mib']:,.0f}", mean_ap)
    Console().print(table)
    if options.out is not None:
        machine = (
            f"{platform.machine()}, {os.cpu_count()} cores, nice {os.nice(0)}, load {os.getloadavg()[0]:.1f}, "
            f"numpy {np.__version__}, pandas {pd.__version__}"
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine, "sizes": sizes, **results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
