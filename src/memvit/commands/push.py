"""`memvit push`: share a model on the Hugging Face Hub."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memvit.commands.models import load_saved
from memvit.commands.terminal import say, stderr_console, stdout_console

RUN_METRICS, RUN_WEIGHTS = "metrics.csv", "weights.txt"  # what a training leaves in its folder


def push(
    model: str,
    repo: str,
    *,
    license: str | None = None,
    private: bool = False,
    metrics: list[str] | None = None,
    dataset: str | None = None,
    card: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> int:
    """Upload a model to the Hugging Face Hub, with its labels, its preprocessing and a model card.

    After that, memvit predict VIDEO --model OWNER/NAME works everywhere. Log in first: hf auth login, or set HF_TOKEN. The card
    says what the model recognises, what it is fed, what it costs, how far back it sees and how to use it; of a model in a run's
    folder also what the training measured.

    Examples:
        memvit push runs/kitchen/version_0/model me/kitchen --license apache-2.0
        memvit push runs/kitchen/version_0/checkpoints/best.ckpt me/kitchen --license mit --dry_run

    Args:
        model: a directory with a model, or a checkpoint of `memvit fit`.
        repo: the repository, OWNER/NAME; made where missing.
        license: of the weights, such as apache-2.0, mit or cc-by-nc-4.0. Weights made from the authors' have theirs, CC BY-NC
            4.0.
        private: only you can see a new repository.
        metrics: what you measured, such as top1=0.82 top5=0.97, instead of what the training did.
        dataset: what it was measured on, for the card.
        card: a file to upload as the model card, instead of a generated one.
        message: of the commit.
        dry_run: print the model card, and upload nothing.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        raise ValueError(f"{repo}: a repository is called OWNER/NAME, such as me/kitchen")
    given, network = _parse_metrics(metrics), load_saved(model)
    run = _run_of(Path(model))
    if not network.source and run is not None:
        network.source = _source_of_run(run)
    if license is None and not network.source.get("licence"):
        raise ValueError(
            f"under which licence is {model}? Give --license, such as apache-2.0, or cc-by-nc-4.0 if the training began with the "
            "authors' weights"
        )
    measured = given if given is not None or run is None else _measured(run, Path(model))
    facts: dict[str, Any] = {"license": license, "metrics": measured, "dataset": dataset}
    text = str(network.generate_model_card(repo_id=repo, **facts)) if card is None else _read_card(card)
    if dry_run:
        print(text, end="")
        return 0
    if not network.config.head.class_names:
        say(stderr_console(), "warning: this model does not know what its classes are called", "yellow")
    options = facts if message is None else {**facts, "commit_message": message}
    address = network.push_to_hub(repo, private=private or None, model_card_kwargs={"text": text}, **options)
    say(stdout_console(), f"uploaded: {address}; use it as: memvit predict VIDEO --model {repo}")
    return 0


def _read_card(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"--card {path} cannot be read ({error}); give a Markdown file") from error
    if not text.startswith("---\n"):
        raise ValueError(
            f"--card {path} does not begin with metadata between lines of ---; see --dry_run for an example"
        )
    return text


def _parse_metrics(given: Sequence[str] | None) -> dict[str, float] | None:
    """`top1=0.82` and so on.

    Raises:
        ValueError: something else.
    """
    if given is None:
        return None
    metrics = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            metrics[name.strip()] = float(value)
        except ValueError as error:
            raise ValueError(f"--metrics {text}: give NAME=NUMBER, such as top1=0.82") from error
        if not name.strip():
            raise ValueError(f"--metrics {text}: give NAME=NUMBER, such as top1=0.82")
    return metrics


def _run_of(model: Path) -> Path | None:
    """The folder of the training that wrote a model: model/ and checkpoints/*.ckpt lie in it."""
    model = model.resolve()
    run = model.parent if model.is_dir() else model.parent.parent
    return run if (run / RUN_METRICS).is_file() and (run / "checkpoints").is_dir() else None


def _source_of_run(run: Path) -> dict[str, Any]:
    """Whether a training began with the authors' weights, whose licence binds what was made from them."""
    from memvit.models.model_card import RELEASE_LICENCE
    from memvit.models.presets import PRESETS
    from memvit.models.zoo import WEIGHTS

    try:
        first = (run / RUN_WEIGHTS).read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return {}
    name = first.removeprefix("weights: ").strip()
    if name in PRESETS or name in WEIGHTS or Path(name).suffix in (".pyth", ".pth", ".pt"):
        return {"name": name, "licence": RELEASE_LICENCE, "made": "fine-tuned"}
    if Path(name).is_dir():
        from memvit.models.hub import SOURCE_FILE, read_source_file

        source = read_source_file(Path(name, SOURCE_FILE))
        return {**source, "made": "fine-tuned"} if source else {}
    return {}


def _measured(run: Path, model: Path) -> dict[str, float]:
    """What the training's validation measured of this model; empty where it is not known."""
    from memvit.training.checkpoints import BEST, FOLDER, LAST, read_checkpoint

    checkpoint = model
    if model.is_dir():  # finish_run makes it of the best
        checkpoint = next((path for name in (BEST, LAST) if (path := run / FOLDER / name).is_file()), model)
    if not checkpoint.is_file():
        return {}
    step = int(read_checkpoint(checkpoint, mmap=True)["global_step"])
    with (run / RUN_METRICS).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("step") == str(step) and not row.get("batch")]
    values = {name: value for row in rows for name, value in row.items() if name and name.startswith("val/") and value}
    return {name: float(value) for name, value in values.items()}
