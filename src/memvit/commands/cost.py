"""`memvit cost`: compute against temporal support."""

from __future__ import annotations

from memvit.commands.models import choose_config
from memvit.commands.terminal import stdout_console


def cost(model: str = "memvit_16x4", *, out: str = "cost-output") -> int:
    """Compare ways to see further: remembering more clips, or feeding more frames, as a table and a figure.

    Args:
        model: a preset, published weights, a directory with a model, or a repository of the Hugging Face Hub.
        out: folder for cost.csv, cost.json and cost.png.
    """
    from memvit.benchmarks.cost import cost_report
    from memvit.models.hub import make_directory

    cost_report(choose_config(model), make_directory(out), stdout_console(), model)
    return 0
