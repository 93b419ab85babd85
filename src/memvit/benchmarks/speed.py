"""How fast a model is, on this machine: `memvit benchmark`.

    memvit benchmark memvit_16x4 --threads 2 --out speed
    python -m memvit.benchmarks.speed report speed/benchmark.json --out speed     tables and figure again

Contenders take turns within a run, so that a machine that slows down slows down all of them; compare runs with one another
with care, and machines not at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import torch
from rich.console import Console

from memvit.benchmarks.comparison import compare, with_rooflines
from memvit.benchmarks.contenders import CompileMode, Task, check_config
from memvit.benchmarks.machine import describe_machine, measure_rates
from memvit.benchmarks.progress import OnProgress, no_progress
from memvit.benchmarks.speed_figure import draw_speed
from memvit.benchmarks.speed_records import SpeedResult
from memvit.benchmarks.speed_tables import as_markdown, as_rich, speed_tables
from memvit.benchmarks.stream_speed import time_memory, time_streams
from memvit.benchmarks.video_speed import time_videos
from memvit.models.config import MViTConfig

JSON_FILE, TABLE_FILE, FIGURE_FILE = "benchmark.json", "benchmark.md", "benchmark.png"

PLAIN_WIDTH = 160  # of tables in files and pipes

Part = Literal["comparison", "memory", "streams", "video"]


@dataclass(frozen=True)
class Plan:
    """What to measure, and how often.

    Attributes:
        parts: comparison with torchvision, cost of memory, several streams, video files.
        dtypes: number formats: "float32", or others for autocast.
        tasks, batch_sizes, compile_mode, measures_memory: of the comparison, see `compare`.
        memory_lengths: M, each against no memory.
        num_streams: streams in a batch.
        video_sizes: width and height, pixels.
        num_clips: of a video.
        num_rounds: how often contenders and numbers of streams are timed.
        num_pairs: how often with and without memory are timed.
        num_videos: how often each way through a video is timed.
        num_matmuls: how often each matrix product is timed, for the machine's own rate.
    """

    parts: tuple[Part, ...] = ("comparison", "memory")
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    tasks: tuple[Task, ...] = ("forward",)
    batch_sizes: tuple[int, ...] = (1,)
    compile_mode: CompileMode | None = None
    measures_memory: bool = True
    memory_lengths: tuple[int, ...] = (2, 4)
    num_streams: tuple[int, ...] = (1, 2, 4, 8)
    video_sizes: tuple[tuple[int, int], ...] = ((320, 240), (1280, 720))
    num_clips: int = 10
    num_rounds: int = 10
    num_pairs: int = 30
    num_videos: int = 3
    num_matmuls: int = 8

    def __post_init__(self) -> None:
        counts = {
            "batch_sizes": min(self.batch_sizes, default=1),
            "num_streams": min(self.num_streams, default=1),
            "num_clips": self.num_clips,
            "num_rounds": self.num_rounds,
            "num_pairs": self.num_pairs,
            "num_videos": self.num_videos,
            "num_matmuls": self.num_matmuls,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}: {count} is too few, give 1 or more")
        if min(self.memory_lengths, default=0) < 0:
            raise ValueError(f"memory_lengths: {min(self.memory_lengths)} is no number of past clips, give 0 or more")
        unknown = sorted(set(self.parts) - set(get_args(Part)))
        if unknown:
            raise ValueError(f"parts: there is no {', '.join(unknown)}; choose from {', '.join(get_args(Part))}")
        for dtype in self.dtypes:
            if dtype not in ("float32", "bfloat16", "float16"):
                raise ValueError(f"dtypes: {dtype} is no number format; choose from float32, bfloat16, float16")

    @classmethod
    def full(cls, device: torch.device) -> Plan:
        """Everything: about an hour on two CPU cores, minutes on a GPU."""
        on_cpu = device.type == "cpu"
        return cls(
            parts=get_args(Part),
            tasks=("forward", "training"),
            batch_sizes=(1, 4) if on_cpu else (1, 8, 32),
            compile_mode="default",
            memory_lengths=(0, 1, 2, 4, 8, 16, 32),
            num_rounds=10 if on_cpu else 30,
            num_pairs=30 if on_cpu else 100,
        )

    def quick(self) -> Plan:
        """The same parts, each a few times: enough to see that all of it works."""
        return dataclasses.replace(
            self,
            measures_memory=False,
            video_sizes=((320, 240),),
            num_clips=2,
            num_rounds=2,
            num_pairs=2,
            num_videos=1,
            num_matmuls=1,
        )


def run(
    config: MViTConfig,
    name: str,
    plan: Plan,
    device: torch.device,
    on_progress: OnProgress = no_progress,
    on_result: Callable[[SpeedResult], None] = lambda _: None,
) -> SpeedResult:
    """Measures what the plan says.

    Args:
        config: the model; weights are random.
        name: what to call it.
        plan: what to measure.
        device: where.
        on_progress: told what is measured and how far it is.
        on_result: given what there is after every group of measurements, so that an interrupted run leaves something.

    Returns:
        All times.

    Raises:
        ValueError: a model that classifies boxes.
    """
    check_config(config)
    on_progress("matrix products", 0, 1)
    result = SpeedResult(
        model=name,
        config=config.to_dict(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(device),
        rates=measure_rates(device, plan.dtypes, plan.num_matmuls),
        plan=dataclasses.asdict(plan),
    )
    if "comparison" in plan.parts:
        for group in compare(
            config,
            name,
            result.rates,
            device,
            tasks=plan.tasks,
            dtypes=plan.dtypes,
            batch_sizes=plan.batch_sizes,
            compile_mode=plan.compile_mode,
            num_rounds=plan.num_rounds,
            measures_memory=plan.measures_memory,
            on_progress=on_progress,
        ):
            # What else a machine does in the moment of a measurement halves its rates; so they are measured again and again.
            result.rates = result.rates.best(measure_rates(device, plan.dtypes, plan.num_matmuls))
            result.cases = with_rooflines([*result.cases, *group], config, result.rates)
            on_result(result)
    if "memory" in plan.parts:
        for memory in time_memory(
            config,
            device,
            dtypes=plan.dtypes,
            lengths=plan.memory_lengths,
            num_pairs=plan.num_pairs,
            on_progress=on_progress,
        ):
            result.memory.append(memory)
            on_result(result)
    if "streams" in plan.parts:
        for streams in time_streams(
            config,
            device,
            dtypes=plan.dtypes,
            num_streams=plan.num_streams,
            num_rounds=plan.num_rounds,
            on_progress=on_progress,
        ):
            result.streams.append(streams)
            on_result(result)
    if "video" in plan.parts:
        for video in time_videos(
            config,
            device,
            dtypes=plan.dtypes,
            sizes=plan.video_sizes,
            num_clips=plan.num_clips,
            num_rounds=plan.num_videos,
            on_progress=on_progress,
        ):
            result.videos.append(video)
            on_result(result)
    return result


def write_report(result: SpeedResult, folder: str | Path) -> list[Path]:
    """Writes `benchmark.md`, the tables in Markdown, and `benchmark.png`; returns their paths."""
    table, figure = Path(folder, TABLE_FILE), Path(folder, FIGURE_FILE)
    table.write_text(as_markdown(result), encoding="utf-8")
    draw_speed(result, figure)
    return [table, figure]


def print_tables(result: SpeedResult, console: Console) -> None:
    """Prints all tables."""
    for table in speed_tables(result):
        console.print(as_rich(table))
        for note in table.notes:
            console.print(note, markup=False)
        console.print()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: tables and figure of a result that was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="tables and figure of a result")
    report.add_argument("result", type=Path, metavar="FILE.json", help="what memvit benchmark wrote")
    report.add_argument("--out", type=Path, help="folder for both; the result's own where left out")
    options = parser.parse_args(argv)
    result = SpeedResult.load(options.result)
    folder = options.out or options.result.parent
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    print_tables(result, console)
    for path in write_report(result, folder):
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
