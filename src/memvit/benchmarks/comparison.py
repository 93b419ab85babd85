"""A model beside torchvision's `mvit_v2_s`, the model of the same size that people use today, on the same clips."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import product

import torch

from memvit.benchmarks.contenders import (
    NUM_MEASURED_STEPS,
    Case,
    CompileMode,
    Contender,
    Form,
    StepMemory,
    Task,
    clip_size,
    count_step,
    make_step,
    measure_memory_apart,
    usual_form,
)
from memvit.benchmarks.machine import Rates
from memvit.benchmarks.peak_memory import PeakMemory
from memvit.benchmarks.progress import OnProgress, counter
from memvit.benchmarks.speed_records import CaseTimes
from memvit.benchmarks.timing import Step, synchronize, take_turns
from memvit.models.config import MViTConfig


def compare(
    config: MViTConfig,
    name: str,
    rates: Rates,
    device: torch.device,
    *,
    tasks: Sequence[Task],
    dtypes: Sequence[str],
    batch_sizes: Sequence[int],
    compile_mode: CompileMode | None,
    num_rounds: int,
    measures_memory: bool,
    on_progress: OnProgress,
) -> Iterator[list[CaseTimes]]:
    """Times all contenders at every task, number format and batch size.

    A contender that fails, because it cannot be compiled or does not fit, says so in its record; the others go on.

    Args:
        config: our model.
        name: what to call it.
        rates: the machine's.
        device: where they run.
        compile_mode: of `torch.compile`, to time the model with memory and mvit_v2_s in compiled form too; None: not.
        num_rounds: how often each is timed.
        measures_memory: also measure the memory that a step takes.

    Yields:
        The contenders of each group, which took turns.
    """
    for task, batch_size, dtype in product(tasks, batch_sizes, dtypes):
        contenders: list[Contender] = ["memory"] if config.memory.length else []
        contenders += ["no memory", "mvit_v2_s"]
        entries: list[tuple[Contender, Form]] = []
        if usual_form(device) == "recorded" and (task == "forward" or device.type == "cuda"):
            entries += [(contender, "recorded") for contender in contenders[:-1]]
        entries += [(contender, "eager") for contender in contenders]
        if compile_mode is not None:
            entries += [(contender, "compiled") for contender in (contenders[0], "mvit_v2_s")]
        cases = [Case(task, contender, form, dtype, batch_size) for contender, form in entries]
        tick = counter(on_progress, f"{task}, {dtype}, batch {batch_size}", len(cases) + 1 + num_rounds)

        steps: dict[Case, Step] = {}
        memory: dict[Case, StepMemory] = {}
        errors: dict[Case, str] = {}
        for case in cases:
            try:
                steps[case], found = _prepare(case, config, device, compile_mode or "default", measures_memory)
                if found is not None:
                    memory[case] = found
            except Exception as error:  # of any kind: compilers and drivers have their own
                errors[case] = _first_line(error)
            tick()
        seconds = take_turns(steps, num_rounds, device, on_round=tick)
        steps.clear()
        if compile_mode is not None:
            torch.compiler.reset()  # only so many compiled forms of one function are kept
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield [
            _record(case, config, name, rates, seconds.get(case, []), memory.get(case), errors.get(case))
            for case in cases
        ]


def _prepare(
    case: Case, config: MViTConfig, device: torch.device, compile_mode: CompileMode, measures_memory: bool
) -> tuple[Step, StepMemory | None]:
    """A step that has run, so that it is compiled and set up, and the memory it takes.

    On a GPU, PyTorch counts every tensor, whoever else holds some. On a CPU only a process of its own can tell, and would
    tell of the compiler as well.
    """
    on_gpu = device.type == "cuda"
    apart = measures_memory and device.type == "cpu" and case.form != "compiled"
    found = measure_memory_apart(case, config, device) if apart else None
    base = torch.cuda.memory_allocated(device) if on_gpu else 0
    with PeakMemory(device) if on_gpu else nullcontext() as making:
        step = make_step(case, config, device, compile_mode)
        step()
        synchronize(device)
    if on_gpu and measures_memory:
        with PeakMemory(device) as peak:
            for _ in range(NUM_MEASURED_STEPS):
                step()
            synchronize(device)
        # What a graph computes in between counts as free once it is recorded, though nobody else gets it.
        most = max(peak.bytes, making.bytes) if making is not None and case.form == "recorded" else peak.bytes
        found = StepMemory(most, base)
    return step, found


def with_rooflines(cases: Sequence[CaseTimes], config: MViTConfig, rates: Rates) -> list[CaseTimes]:
    """The cases with the least time for their work at these rates."""
    return [dataclasses.replace(c, roofline_s=_roofline_s(c.case, config, rates)) for c in cases]


def _roofline_s(case: Case, config: MViTConfig, rates: Rates) -> float:
    itemsize = getattr(torch, case.dtype).itemsize
    return count_step(case, config).roofline_s(rates.flops_per_s[case.dtype], rates.bytes_per_s, itemsize)


def _record(
    case: Case,
    config: MViTConfig,
    name: str,
    rates: Rates,
    seconds: list[float],
    memory: StepMemory | None,
    error: str | None,
) -> CaseTimes:
    work = count_step(case, config)
    names = {"memory": f"{name}, M = {config.memory.length}", "no memory": f"{name}, no memory"}
    called = names.get(case.contender, "torchvision mvit_v2_s")
    return CaseTimes(
        case,
        called if case.form == "eager" else f"{called}, {case.form}",
        clip_size(config, case.contender),
        work.flops,
        work.num_bytes(getattr(torch, case.dtype).itemsize),
        _roofline_s(case, config, rates),
        tuple(seconds),
        None if memory is None else memory.peak_bytes,
        None if memory is None else memory.base_bytes,
        error,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
