"""What `memvit data check` prints."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from memvit.commands.terminal import say, stdout_console
from memvit.datasets.annotations import Finding
from memvit.datasets.check import Report

MAX_PER_KIND = 20
NUM_CLASSES_SHOWN = 5
STYLES = {"error": "red", "warning": "yellow", "note": None}


def print_report(report: Report, entries: str) -> None:
    """Prints the figures as a table, then the findings.

    Args:
        report: of `check_annotations`.
        entries: what its entries are called.
    """
    console = stdout_console()
    if report.splits:
        console.print(_table(report, entries))
    for split in report.splits:
        for head, counts in split.classes.items():
            say(console, f"{split.split}: {_count(len(counts), 'class', 'classes')} of {head}: {_frequencies(counts)}")
    by_kind: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.findings:
        by_kind.setdefault((finding.level, finding.kind), []).append(finding)
    for (level, kind), findings in by_kind.items():
        for finding in findings[:MAX_PER_KIND]:
            say(console, f"{level}: {finding}", STYLES[level])
        if len(findings) > MAX_PER_KIND:
            say(console, f"{level}: {kind}: {len(findings) - MAX_PER_KIND} more; --json lists all", STYLES[level])
    num_errors, num_warnings = report.count("error"), report.count("warning")
    say(console, f"{_count(num_errors, 'error')}, {_count(num_warnings, 'warning')}", "red" if num_errors else "green")


def _table(report: Report, entries: str) -> Table:
    table = Table()
    table.add_column("split")
    table.add_column("file", overflow="fold")
    for heading in ("videos", "hours", entries, "classes", "labelled", "clips an epoch"):
        table.add_column(heading, justify="right")
    for split in report.splits:
        table.add_row(
            split.split,
            escape(split.file),
            f"{split.num_videos:,}",
            f"{split.hours:,.2f}",
            f"{split.num_entries:,}",
            ", ".join(f"{len(counts):,}" for counts in split.classes.values()),
            "-" if split.labelled_share is None else f"{split.labelled_share:.0%}",
            "-" if split.num_clips is None else f"{split.num_clips:,}",
        )
    return table


def _frequencies(counts: dict[str, int]) -> str:
    """The classes that occur most often and least often."""
    named = [f"{name} ({number:,})" for name, number in counts.items()]
    if len(named) > 2 * NUM_CLASSES_SHOWN:
        named[NUM_CLASSES_SHOWN:-NUM_CLASSES_SHOWN] = ["..."]
    return ", ".join(named)


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
