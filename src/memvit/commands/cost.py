"""`memvit cost`: compute against temporal support."""

from __future__ import annotations

from memvit.commands.models import choose_config
from memvit.commands.terminal import stderr_console, stdout_console


def cost(model: str = "memvit_16x4", *, out: str = "cost-output", json: bool = False) -> int:
    """Compare ways to see further: remembering more clips, or feeding more frames, as a table and a figure.

    Examples:
        memvit cost memvit_16x4 --out cost
        memvit cost memvit_tiny --json

    Args:
        model: a preset, published weights, a directory with a model, or a repository of the Hugging Face Hub.
        out: folder for cost.csv, cost.json and cost.png.
        json: print cost.json, and the table on stderr.
    """
    from memvit.benchmarks.cost import cost_report
    from memvit.models.hub import make_directory

    root = make_directory(out)
    cost_report(choose_config(model), root, stderr_console() if json else stdout_console(), model)
    if json:
        print((root / "cost.json").read_text(encoding="utf-8"), end="")
    return 0
