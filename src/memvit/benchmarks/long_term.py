"""Evidence that memory works: models with and without it, trained alike on generated videos that need it.

    python -m memvit.benchmarks.long_term run --groups a b --jobs 2     trains what is missing
    python -m memvit.benchmarks.long_term report                        draws what is there, writes docs/results.md's tables

Every training is one `memvit fit` of a config in `configs/` with the options of its experiment. A training that was
interrupted goes on from its last checkpoint; one that is finished leaves a small JSON file with its results, by which it is
known the next time. Groups of experiments, after the paper (Wu et al., CVPR 2022, sections 5.2 and 5.4, table 4):

- a: with and without memory, three tasks, three seeds.
- b: accuracy against delay, two sizes and a plain vision transformer.
- c: memory length. d: compression. e: which layers remember.
- g: the gain at two sizes, from random weights and from those of a short-term model.
- h: recognition and anticipation of segments in the files of EPIC-KITCHENS-100, with and without memory, three seeds.

Group f, the cost of joint compression, trains nothing: see `memvit.benchmarks.joint_cost`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from memvit.datasets.scenes import RecallOptions
from memvit.datasets.synthetic import make_dataset

RESULTS = Path("docs/results/long_term")
CONFIGS = Path("configs")
TASKS = ("recall", "shell_game", "recipe", "recipe_anticipation")
EPIC_TASKS = ("recipe_epic", "recipe_epic_anticipation")
SEEDS = (0, 1, 2)
NUM_VIDEOS, NUM_TEST_VIDEOS = 1600, 200
# Recall is tested far beyond what any model here can reach, as many videos for every delay.
LONG_RECALL = RecallOptions(shortest_s=24, longest_s=24)

SMALL = {"depth": 6, "embed_dim": 48, "dim_mul": [[2, 2.0]], "head_mul": [[2, 2.0]]}
SMALL |= {"q_strides": [[i, 1, 2, 2] if i == 2 else [i, 1, 1, 1] for i in range(6)]}
PLAIN: dict[str, Any] = {"embed_dim": 64, "num_heads": 2, "dim_mul": [], "head_mul": [], "q_strides": []}
PLAIN |= {"kv_stride_adaptive": None, "pool_kernel": None, "residual_pooling": "none", "spatial_scale_factor": 8}
SHORT = {"memory_length": 0}
# Short enough for the support (M clips a layer) to end within the videos: what lies beyond it can be seen as well.
TWO = {"memory_length": 2}


@dataclass(frozen=True)
class Training:
    """One training and its test.

    Attributes:
        name: of the run and of its result file.
        groups: the experiments that use it.
        task: the data, and the config.
        options: of the model, beside the config's.
        seed: of everything random in the training.
        start: another training whose weights this one starts from.
    """

    name: str
    groups: str
    task: str = "recall"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    start: str | None = None


def trainings() -> Iterator[Training]:
    """All of them, the most telling first."""
    for seed in SEEDS:
        for task in TASKS:
            also = "bcg" if task == "recall" and seed == 0 else ""
            yield Training(f"{task}-memory-{seed}", f"a{also}", task, {}, seed)
            yield Training(f"{task}-short-{seed}", f"a{also}", task, SHORT, seed)
    for seed in SEEDS:
        for task in EPIC_TASKS:
            yield Training(f"{task}-memory-{seed}", "h", task, {}, seed)
            yield Training(f"{task}-short-{seed}", "h", task, SHORT, seed)
    yield Training("recall-length-2", "bcdeg", options=TWO)
    yield Training("recall-small", "bg", options={**SMALL, **TWO})
    yield Training("recall-plain", "b", options={**PLAIN, **TWO})
    for length in (1, 4):
        yield Training(f"recall-length-{length}", "c", options={"memory_length": length})
    yield Training("recall-compression-none", "d", options={**TWO, "memory_compression": "none"})
    for stride in ((2, 1, 1), (1, 2, 2), (4, 2, 2), (4, 4, 4)):
        name = "x".join(map(str, stride))
        yield Training(f"recall-compression-{name}", "d", options={**TWO, "memory_stride": list(stride)})
    for layers in ("early", "middle", "late", "uniform"):
        yield Training(f"recall-layers-{layers}", "e", options={**TWO, "memory_layers": layers})
    yield Training("recall-small-short", "g", options={**SMALL, **SHORT})
    yield Training("recall-pretrained", "g", options=TWO, start="recall-short-0")
    yield Training("recall-small-pretrained", "g", options={**SMALL, **TWO}, start="recall-small-short")


@dataclass(frozen=True)
class Workshop:
    """Where trainings happen and how.

    Attributes:
        root: data, runs and logs; may be deleted when all is done.
        results: one JSON file per finished training.
        threads: of every training.
        overrides: further options of `memvit fit`, for trials.
    """

    root: Path
    results: Path
    threads: int
    overrides: Sequence[str] = ()

    def data(self, task: str) -> Path:
        """The data set of a task."""
        return self.root / "data" / task.removesuffix("_anticipation")

    def result(self, training: Training) -> Path:
        """The result file of a training."""
        return self.results / f"{training.name}.json"

    def make_data(self, tasks: Sequence[str], console: Console, num_processes: int) -> None:
        """Generates what is missing."""
        wanted: list[tuple[str, str, RecallOptions | None, int, int]] = [
            (task, task, None, NUM_VIDEOS, 0) for task in tasks
        ]
        if "recall" in tasks:
            # Another seed as well, though splits would not meet anyway.
            wanted.append(("recall_long", "recall", LONG_RECALL, 1, 1))
        for name, task, options, videos, seed in wanted:
            root = self.data(name)
            if (root / "complete").exists():
                continue
            console.print(f"making the videos of {name}")
            is_epic = task.endswith("_epic")
            make_dataset(
                task.removesuffix("_epic"),
                root,
                form="epic" if is_epic else "own",
                videos=videos,
                eval_videos=NUM_TEST_VIDEOS,
                seed=seed,
                options=options,
                num_processes=num_processes,
            )
            (root / "complete").touch()

    def run(self, training: Training) -> dict[str, Any]:
        """Trains, tests and writes the result; goes on where an earlier attempt ended.

        Raises:
            RuntimeError: `memvit fit` failed; the message names its log.
        """
        log = self.root / "logs" / f"{training.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["fit", "--config", str(CONFIGS / f"{training.task}.yaml")]
        arguments += ["--data.root", str(self.data(training.task)), "--data.seed", str(training.seed)]
        arguments += ["--seed_everything", str(training.seed), "--trainer.enable_progress_bar", "false"]
        arguments += ["--run.name", training.name, "--run.directory", str(self.root / "runs"), "--ckpt_path", "last"]
        for name, value in training.options.items():
            arguments += [f"--model.options.{name}", value if isinstance(value, str) else json.dumps(value)]
        if training.start is not None:
            arguments += ["--model.weights", str(self._model(training.start))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        began_s = time.monotonic()
        with open(log, "a") as output:
            code = subprocess.run(
                [sys.executable, "-m", "memvit", *arguments, *self.overrides],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            ).returncode
        if code:
            raise RuntimeError(f"{training.name} ended with code {code}: see {log}")
        seconds = time.monotonic() - began_s
        command = [sys.executable, "-m", *self._test(training)]
        test = subprocess.run(command, capture_output=True, text=True, env=environment)
        if test.returncode:
            raise RuntimeError(f"testing {training.name} failed: {test.stderr[-2000:]}")
        result = {
            "name": training.name,
            "task": training.task,
            "options": dict(training.options),
            "seed": training.seed,
            "start": training.start,
            "command": "memvit " + " ".join(arguments).replace(str(self.root), "WORK"),
            "training_s": round(seconds, 1),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {self.threads} thread(s) each training",
            **json.loads(test.stdout),
        }
        path = self.result(training)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
        part.write_text(f"{{\n{lines}\n}}\n")
        part.replace(path)
        return result

    def _test(self, training: Training) -> list[str]:
        """What measures the model of a training, and with which arguments."""
        model, task = str(self._model(training.name)), training.task
        if task in EPIC_TASKS:
            kind = "anticipation" if task.endswith("_anticipation") else "recognition"
            return ["memvit.benchmarks.epic_test", model, kind, str(self.data(task))]
        data = [str(self.data(name)) for name in (task, "recall_long")[: 1 + (task == "recall")]]
        return ["memvit.benchmarks.delays", model, task, *data]

    def models(self, name: str) -> list[Path]:
        """The models that a training has left here, oldest first."""
        return sorted((self.root / "runs" / name).glob("version_*/model"))

    def _model(self, name: str) -> Path:
        models = self.models(name)
        if not models:
            raise RuntimeError(f"there is no model of {name} in {self.root / 'runs'}: train it first")
        return models[-1]


def run(workshop: Workshop, groups: Sequence[str], only: Sequence[str], jobs: int, console: Console) -> int:
    """Trains everything of some groups that has no result yet.

    Returns:
        How many trainings failed.
    """
    wanted = [t for t in trainings() if set(groups) & set(t.groups) and (not only or t.name in only or t.task in only)]
    missing = [t for t in wanted if not workshop.result(t).exists()]
    console.print(f"{len(wanted)} trainings, {len(wanted) - len(missing)} of them done")
    # A result outlives the work folder; who starts from a training needs its weights as well.
    starts = {t.start for t in missing if t.start is not None and not workshop.models(t.start)}
    missing += [t for t in trainings() if t.name in starts and t not in missing]
    if not missing:
        return 0
    workshop.make_data(sorted({t.task.removesuffix("_anticipation") for t in missing}), console, jobs)

    def attempt(training: Training) -> bool:
        console.print(f"{training.name}: begins")
        try:
            result = workshop.run(training)
        except RuntimeError as error:
            console.print(f"{training.name}: {error}", style="red", markup=False)
            return False
        console.print(f"{training.name}: {result['remembered']:.1%} in {result['training_s'] / 60:.1f} min")
        return True

    failed = 0
    for stage in ([t for t in missing if t.start is None], [t for t in missing if t.start is not None]):
        with ThreadPoolExecutor(jobs) as pool:
            failed += sum(not done for done in pool.map(attempt, stage))
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="train what is missing")
    runner.add_argument("--groups", nargs="+", default=list("abcdegh"), help="experiments: a b c d e g h")
    runner.add_argument("--only", nargs="+", default=[], help="names of trainings, or tasks")
    runner.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    runner.add_argument("--threads", type=int, default=1, help="of every training")
    runner.add_argument("--work", type=Path, default=Path("work/long_term"), help="folder for data and runs")
    runner.add_argument("--results", type=Path, default=RESULTS)
    runner.add_argument("--list", action="store_true", help="name the trainings and end")
    reporter = commands.add_parser("report", help="draw and write what is there")
    reporter.add_argument("--results", type=Path, default=RESULTS)
    reporter.add_argument("--out", type=Path, default=Path("docs"))
    options, rest = parser.parse_known_args(argv)
    console = Console(highlight=False)
    if options.command == "report":
        from memvit.benchmarks.long_term_report import write_report

        write_report(options.results, options.out)
        return 0
    if options.list:
        for training in trainings():
            console.print(f"{training.groups:6s} {training.name}")
        return 0
    workshop = Workshop(options.work.resolve(), options.results, options.threads, rest)
    return min(1, run(workshop, options.groups, options.only, options.jobs, console))


if __name__ == "__main__":
    sys.exit(main())
