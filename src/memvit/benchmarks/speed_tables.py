"""Tables of a benchmark of speed, for a console and for Markdown."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from memvit.benchmarks.contenders import REFERENCE_SIZE, Task
from memvit.benchmarks.speed_records import CaseTimes, SpeedResult
from memvit.benchmarks.timing import Estimate, quartiles

TITLES: dict[Task, str] = {
    "forward": "One forward pass",
    "training": "One training step: forward, backward, AdamW",
}
NONE = "–"


@dataclass(frozen=True)
class SpeedTable:
    """A table and what has to be said about it.

    Attributes:
        title: what it shows.
        headings, rows: cells; the first `num_left` columns are words, the others numbers.
        notes: sentences below it.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    num_left: int = 1


def speed_tables(result: SpeedResult) -> list[SpeedTable]:
    """The tables of everything that was measured."""
    tables = [_case_table(result, task) for task in TITLES if result.of_task(task)]
    if tables:
        tables[0] = dataclasses.replace(tables[0], notes=(_how(result), *tables[0].notes))
    for rows, table in (
        (result.memory, _memory_table),
        (result.streams, _streams_table),
        (result.videos, _video_table),
    ):
        if rows:
            tables.append(table(result))
    return tables


def as_rich(table: SpeedTable) -> Table:
    """For a rich console."""
    shown = Table(title=table.title, title_justify="left")
    for i, heading in enumerate(table.headings):
        shown.add_column(heading, justify="left" if i < table.num_left else "right")
    for i, row in enumerate(table.rows):
        last_of_group = i + 1 < len(table.rows) and table.rows[i + 1][0] != row[0]
        shown.add_row(*row, end_section=last_of_group)
    return shown


def as_markdown(result: SpeedResult) -> str:
    """All tables with their notes, and on what machine they were measured."""
    parts = [_machine_line(result)]
    for table in speed_tables(result):
        rule = ["---"] * table.num_left + ["---:"] * (len(table.headings) - table.num_left)
        lines = [f"| {' | '.join(line)} |" for line in (table.headings, rule, *table.rows)]
        parts += [f"**{table.title}**", "\n".join(lines), *table.notes]
    return "\n\n".join(parts) + "\n"


def _machine_line(result: SpeedResult) -> str:
    machine, rates = result.machine, result.rates
    gpu = f"{machine['gpu']}, CUDA {machine['cuda']}; " if "gpu" in machine else ""
    matmuls = ", ".join(f"{rate / 1e12:.2f} TFLOP/s in {dtype}" for dtype, rate in rates.flops_per_s.items())
    return (
        f"{gpu}{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; torch {machine['torch']}, "
        f"torchvision {machine['torchvision']}; {result.date[:10]}. The machine's best matrix products: {matmuls}; copying: "
        f"{rates.bytes_per_s / 1e9:.0f} GB/s."
    )


def _case_table(result: SpeedResult, task: Task) -> SpeedTable:
    cases = result.of_task(task)
    has_compiled = any(c.case.contender == "mvit_v2_s" and c.case.form == "compiled" for c in cases)
    headings = ["format", "batch", "model", "ms, median (quartiles)", "time / mvit_v2_s", "clips/s", "TFLOP/s"]
    if has_compiled:
        headings.insert(5, "time / compiled")
    headings += ["GFLOP, GB", "roofline ms", "MiB"]
    rows, notes = [], []
    for c in cases:
        own_mib = NONE if c.own_bytes is None else f"{c.own_bytes / 2**20:,.0f}"
        work = f"{c.flops / 1e9:,.0f}, {c.num_bytes / 1e9:,.2f}"
        row = [c.case.dtype, str(c.case.batch_size), c.name, NONE, NONE, NONE, NONE, work, _ms(c.roofline_s), own_mib]
        if c.seconds:
            row[3] = _spread(c.seconds)
            row[4] = _ratio(result.over_torchvision(c))
            row[5] = f"{c.clips_per_s:,.2f}"
            row[6] = f"{c.flops_per_s / 1e12:,.3f} ({c.flops_per_s / result.rates.flops_per_s[c.case.dtype]:.0%})"
        if has_compiled:
            row.insert(5, _ratio(result.over_torchvision(c, "compiled")))
        rows.append(tuple(row))
        if c.error is not None:
            notes.append(f"{c.name}, {c.case.dtype}, batch {c.case.batch_size} did not run: {c.error}.")
    return SpeedTable(TITLES[task], tuple(headings), tuple(rows), (*_clip_note(cases), *notes), num_left=3)


def _how(result: SpeedResult) -> str:
    """How cases were measured and what the columns mean."""
    rounds = sorted({len(c.seconds) for c in result.cases if c.seconds})
    measured = [c.own_bytes is not None for c in result.cases]
    return (
        f"Contenders of the same format and batch took turns, {' or '.join(map(str, rounds))} rounds. Ratios are medians of the "
        "rounds' ratios, with the 95 % interval of the median in brackets where there are enough. GFLOP: operations of the "
        "model's matrix products and convolutions, whatever its kernels do; GB: what these read and write; TFLOP/s: operations "
        "over time, in brackets as a share of this machine's matrix products. Roofline: each of these operators at the "
        "machine's rate of matrix products or of copying, whichever takes longer, and nothing else."
        + (" MiB: peak memory of a step beyond what the process held before." if any(measured) else "")
        + (" Recorded: as `OnlineRecognizer` runs it." if any(c.case.form == "recorded" for c in result.cases) else "")
    )


def _clip_note(cases: Sequence[CaseTimes]) -> list[str]:
    sizes = {c.clip_size for c in cases if c.case.contender != "mvit_v2_s"}
    if not sizes or sizes == {REFERENCE_SIZE}:
        return []
    own, theirs = (" × ".join(map(str, size)) for size in (*sizes, REFERENCE_SIZE))
    return [f"The clips are not alike: mvit_v2_s takes {theirs} (frames, height, width) only, the model {own}."]


def _memory_table(result: SpeedResult) -> SpeedTable:
    rows = []
    for times in result.memory:
        ratio = times.ratio
        interval = NONE
        if ratio.interval is not None:
            interval = " to ".join(_more(end) for end in ratio.interval)
        rows.append(
            (
                times.dtype,
                f"M = {times.length}",
                _spread(times.seconds),
                _spread(times.seconds_without),
                _more(ratio.median),
                interval,
                str(len(times.seconds)),
            )
        )
    headings = ("format", "memory", "with, ms", "without, ms", "memory costs", "95 % interval", "pairs")
    notes = [
        "One stream with full memory and the same model without memory, in turns; what memory costs is the median."
    ]
    if any(times.length == 0 for times in result.memory):
        notes.append("M = 0 is the model without memory against itself: the error of the measurement.")
    return SpeedTable("Cost of memory in a forward pass", headings, tuple(rows), (" ".join(notes),), num_left=2)


def _streams_table(result: SpeedResult) -> SpeedTable:
    alone = {s.dtype: s.stream_s for s in result.streams if s.num_streams == 1}
    rows = [
        (
            s.dtype,
            str(s.num_streams),
            _spread(s.seconds),
            _ms(s.stream_s),
            f"{s.stream_s / alone[s.dtype]:.2f}" if s.dtype in alone else NONE,
        )
        for s in result.streams
    ]
    headings = ("format", "streams", "ms a step", "ms a stream", "of one stream alone")
    notes = ["From clips in the host's memory to scores there."] if "gpu" in result.machine else []
    return SpeedTable("Streams in one batch, each with full memory", headings, tuple(rows), tuple(notes), num_left=1)


def _video_table(result: SpeedResult) -> SpeedTable:
    rows = []
    for v in result.videos:
        rates = [f"{v.frames_per_s(part):,.0f}" for part in ("reading", "model", "recognizer", "predict")]
        real_time = f"{v.frames_per_s('recognizer') / v.fps:.1f}"
        over = [f"{v.over_slower(part):.2f}" for part in ("recognizer", "predict")]
        rows.append((v.dtype, f"{v.width} × {v.height}", *rates, real_time, *over))
    headings = (
        "format",
        "video",
        "reading, frames/s",
        "model, frames/s",
        "both, frames/s",
        "predict, frames/s",
        "× real time",
        "both / slower part",
        "predict / slower part",
    )
    first = result.videos[0]
    notes = (
        f"H.264 at {first.fps:g} frames per second, {first.num_clips} clips. Reading: decoding, choosing, scaling and "
        "normalising. Both: OnlineRecognizer.run on the file. predict: results written and the timeline drawn as well.",
    )
    return SpeedTable("Video files", headings, tuple(rows), notes, num_left=2)


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _spread(seconds: Sequence[float]) -> str:
    low, high = quartiles(seconds)
    return f"{_ms(statistics.median(seconds))} ({_ms(low)} to {_ms(high)})"


def _ratio(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    if estimate.interval is None:
        return f"{estimate.median:.3f}"
    low, high = estimate.interval
    return f"{estimate.median:.3f} ({low:.3f} to {high:.3f})"


def _more(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
