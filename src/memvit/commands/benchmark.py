"""`memvit benchmark`: how fast a model is, beside torchvision's and its own without memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

from memvit.commands.models import choose_config, choose_device
from memvit.commands.process import keep_freed_memory
from memvit.commands.terminal import say, stderr_console, stdout_console


def benchmark(
    model: str = "memvit_16x4",
    *,
    out: str = "benchmark-output",
    device: str = "auto",
    threads: int | None = None,
    parts: list[str] | None = None,
    dtypes: list[str] | None = None,
    batch_sizes: list[int] | None = None,
    training: bool = False,
    compiled: bool = False,
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default",
    memory_lengths: list[int] | None = None,
    rounds: int | None = None,
    pairs: int | None = None,
    full: bool = False,
    quick: bool = False,
) -> int:
    """Time a model on this machine: beside torchvision's mvit_v2_s, with and without memory, in turns within one run.

    Left alone it takes a few minutes on a laptop with memvit_16x4, and compares forward passes and what memory costs. It
    prints tables and writes benchmark.json with every single time, benchmark.md and benchmark.png. Weights are random.
    An interrupted run leaves what it had measured in benchmark.json; python -m memvit.benchmarks.speed report makes tables
    and figure of it.

    Examples:
        memvit benchmark memvit_16x4
        memvit benchmark memvit_tiny --device cpu --threads 1 --quick

    Args:
        model: a preset, published weights, a directory with a model, or a repository of the Hugging Face Hub.
        out: folder for the results.
        device: auto (a GPU if there is one), cpu, cuda or cuda:N.
        threads: CPU threads to use. Left out: PyTorch's choice.
        parts: what to measure: comparison, memory, streams (several in one batch), video (files from end to end). Left out:
            comparison and memory.
        dtypes: number formats of the forward pass: float32, bfloat16, float16; all but the first are autocast. Left out:
            float32 and bfloat16.
        batch_sizes: clips in a step of the comparison. Left out: 1.
        training: compare training steps as well.
        compiled: compare what torch.compile makes of the models as well; compiling takes minutes on a CPU.
        compile_mode: how torch.compile compiles.
        memory_lengths: past clips that a layer attends, M, each timed against no memory. Left out: 2 and 4.
        rounds: how often contenders are timed. Left out: 10.
        pairs: how often the model with and without memory is timed. Left out: 30.
        full: measure everything, training and compiled forms included; about an hour on two cores. Other options narrow it.
        quick: time everything twice and no more, to see that it works.
    """
    import dataclasses
    from pathlib import Path

    import torch

    from memvit.benchmarks.speed import JSON_FILE, Plan, print_tables, run, write_report
    from memvit.models.hub import make_directory

    keep_freed_memory()  # for all contenders
    target, config = choose_device(device), choose_config(model)
    if threads is not None and threads < 1:
        raise ValueError(f"--threads {threads}: give 1 or more")
    plan = Plan.full(target) if full else Plan()
    plan = plan.quick() if quick else plan
    given: dict[str, Any] = {
        "parts": parts,
        "dtypes": dtypes,
        "batch_sizes": batch_sizes,
        "tasks": ["forward", "training"] if training else None,
        "compile_mode": compile_mode if compiled or full else None,
        "memory_lengths": memory_lengths,
        "num_rounds": rounds,
        "num_pairs": pairs,
    }
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None
    }
    plan = dataclasses.replace(plan, **chosen)
    root = make_directory(out)
    name = model if not Path(model).is_dir() else Path(model).resolve().name
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        with _progress() as show:
            result = run(config, name, plan, target, show, lambda so_far: so_far.save(root / JSON_FILE))
    finally:
        torch.set_num_threads(threads_before)
    console = stdout_console()
    print_tables(result, console)
    for path in (root / JSON_FILE, *write_report(result, root)):
        say(console, f"wrote {path}")
    return 0


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for what is being measured; a line for each where nobody watches."""
    console = stderr_console()
    if not console.is_terminal:

        def announce(what: str, done: int, total: int) -> None:
            if done == 0:
                say(console, f"timing {what}")

        yield announce
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show
