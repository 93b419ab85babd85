"""The model card: the README.md of a saved model, made of what its config says and what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from memvit.models.config import MViTConfig

PAPER_URL = "https://arxiv.org/abs/2201.08383"
LIBRARY, TASK = "memvit", "video-classification"
TAGS = ("video-classification", "action-recognition", "memvit")
RELEASE_LICENCE = "CC BY-NC 4.0"  # of the authors' weights, and of what is made from them
PLACEHOLDER = "OWNER/NAME"
NUM_SHOWN_CLASSES = 50

# Identifiers that the Hub knows; anything else is "other", with a name.
# fmt: off
KNOWN_LICENCES = frozenset((
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc", "cc0-1.0",
    "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "ecl-2.0", "epl-2.0", "eupl-1.2",
    "agpl-3.0", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "mit", "mpl-2.0", "ms-pl", "ncsa",
    "openrail", "postgresql", "unlicense", "wtfpl", "zlib",
))
# fmt: on

# What the Hub calls a metric, by the end of the name that a training gives it; it has no name for the others.
_HUB_METRICS = {"top1": "accuracy", "mAP": "mean_average_precision"}


def licence_id(licence: str) -> str:
    """The Hub's way to write a licence: "CC BY-NC 4.0" is "cc-by-nc-4.0".

    Raises:
        ValueError: there is nothing in it.
    """
    identifier = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    if not identifier:
        raise ValueError(f"license {licence!r} names none: give one such as apache-2.0, mit or cc-by-nc-4.0")
    return identifier


def check_licence(licence: str | None, source: Mapping[str, Any]) -> str | None:
    """The licence of weights, by what their user says and where they come from.

    Args:
        licence: what the user says.
        source: where the weights come from, with "licence" where that binds them.

    Raises:
        ValueError: it is another one than that of the weights that they were made from.
    """
    bound = source.get("licence")
    if bound is None:
        return None if licence is None else licence_id(licence)
    if licence is not None and licence_id(licence) != licence_id(bound):
        raise ValueError(
            f"license {licence!r}: these weights come from {source.get('name') or source.get('url') or 'the authors'}, whose "
            f"licence is {bound}; leave license out, or give {licence_id(bound)}"
        )
    return licence_id(bound)


def model_card(
    model: nn.Module,
    config: MViTConfig,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    metrics: Mapping[str, float] | None = None,
    dataset: str | None = None,
    source: Mapping[str, Any] | None = None,
) -> ModelCard:
    """The card of a model.

    Args:
        model: for its parameters.
        config: what it is.
        repo_id: "owner/name" on the Hub, for the lines that say how to use it.
        license: of the weights, such as "apache-2.0"; left out: that of `source`, or none is stated.
        metrics: what was measured, by name.
        dataset: what it was measured on.
        source: where the weights come from: "name", "url", "licence".

    Raises:
        ValueError: the licence contradicts that of the source.
    """
    source, measured = source or {}, dict(metrics or {})
    licence, name = check_licence(license, source), repo_id or PLACEHOLDER
    data = _card_data(licence, measured, dataset, name.rpartition("/")[2])
    sections = (
        ("", [f"# {name.rpartition('/')[2] if repo_id else 'MeMViT'}", "", _opening(config)]),
        ("What it recognises", list(_recognises(config))),
        ("What it is fed", list(_preprocessing(config))),
        ("What it costs and sees", list(_costs(model, config))),
        ("How well", list(_measured(measured, dataset))),
        ("How to use it", _usage(name, config)),
        ("Licence", [_licence_text(licence, source)]),
    )
    parts = ["\n".join([f"## {title}", "", *lines] if title else lines) for title, lines in sections if lines]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _card_data(licence: str | None, metrics: Mapping[str, float], dataset: str | None, name: str) -> ModelCardData:
    options: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": TASK, "tags": list(TAGS)}
    if licence is not None and licence in KNOWN_LICENCES:
        options["license"] = licence
    elif licence is not None:
        options |= {"license": "other", "license_name": licence}
    if metrics:
        measured_on = dataset or "validation"
        kinds = {metric: _HUB_METRICS.get(metric.rpartition("/")[2], metric) for metric in metrics}
        options |= {
            "metrics": sorted({kind for metric, kind in kinds.items() if kind != metric}) or None,
            "model_name": name,
            "eval_results": [
                EvalResult(
                    task_type=TASK,
                    dataset_type=re.sub(r"\W+", "-", measured_on.lower()).strip("-") or "validation",
                    dataset_name=measured_on,
                    metric_type=kinds[metric],
                    metric_name=metric,
                    metric_value=value,
                )
                for metric, value in metrics.items()
            ],
        }
    return ModelCardData(**options)


def _opening(config: MViTConfig) -> str:
    reads = "clip by clip, with a memory of the clips before" if config.memory.length else "one clip at a time"
    ahead = config.head.anticipation_s
    what = f"anticipates what happens {ahead:g} s later" if ahead else "recognises what happens"
    return f"A video transformer that {what} in long videos, {reads} ([MeMViT]({PAPER_URL}), by memvit)."


def _recognises(config: MViTConfig) -> Iterator[str]:
    head = config.head
    unit = {"clip": "clip", "frames": "token time of a clip", "boxes": "box of a clip"}[head.task]
    classes = " + ".join(f"{num:,}" for num in head.num_classes)
    several = ", any number of which can be true at a time" if head.activation == "sigmoid" else ""
    yield f"{classes} classes per {unit}{several}."
    for index, names in enumerate(head.class_names):
        title = f"**{escape(head.names[index])}**: " if head.names else ""
        yield ""
        yield title + _listed(names[:NUM_SHOWN_CLASSES])
        if len(names) > NUM_SHOWN_CLASSES:
            rest = names[NUM_SHOWN_CLASSES:]
            yield from ("", f"<details><summary>and {len(rest):,} more</summary>", "", _listed(rest), "", "</details>")
    if not head.class_names:
        yield ""
        yield "Their names are not known: they are numbered from 0."
        if head.names:
            yield f"The heads are {', '.join(map(escape, head.names))}."


def _listed(names: Sequence[str]) -> str:
    """Class names as they are, whatever characters Markdown or HTML would take for their own."""
    return ", ".join(re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", escape(name, quote=False)) for name in names)


def _preprocessing(config: MViTConfig) -> Iterator[str]:
    def values(numbers: Sequence[float]) -> str:
        return ", ".join(f"{number:g}" for number in numbers)

    side = config.crop_size
    yield "All of this is in `config.json`, and memvit does it by itself."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| clip | {config.num_frames} frames, {config.clip_duration_s:.2f} s |"
    yield f"| frames | 1 in {config.sampling_rate} at {config.fps:g} frames per second |"
    yield f"| size | {side} x {side} pixels |"
    yield f"| mean, RGB in 0..1 | {values(config.mean)} |"
    yield f"| standard deviation | {values(config.std)} |"


def _costs(model: nn.Module, config: MViTConfig) -> Iterator[str]:
    from memvit.benchmarks.cost import count_macs  # which needs the model, which needs this

    macs = count_macs(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    yield "| | |"
    yield "|---|---|"
    yield f"| parameters | {parameters / 1e6:,.2f} M |"
    yield f"| compute of a clip | {_giga(2 * macs)} GFLOPs ({_giga(macs)} G multiply-accumulates) |"
    memory = config.memory
    if not memory.length:
        yield "| memory | none |"
        yield f"| temporal support | {config.clip_duration_s:.1f} s, the clip itself |"
        return
    apart = f", {memory.gap} clips apart" if memory.gap > 1 else ""
    layers = f"{len(config.memory_layers)} of {config.depth} layers"
    yield f"| memory | {memory.length} past clips{apart}, in {layers} |"
    yield f"| temporal support | {config.support_s:.1f} s: {config.support_clips} clips back, and the clip itself |"


def _measured(metrics: Mapping[str, float], dataset: str | None) -> Iterator[str]:
    if not metrics:
        return
    yield f"On {escape(dataset)}:" if dataset else "On the videos that the training was validated with:"
    yield ""
    yield "| metric | value |"
    yield "|---|---:|"
    for name, value in metrics.items():
        yield f"| {name} | {value:.4g} |"


def _usage(name: str, config: MViTConfig) -> list[str]:
    command = "detect" if config.head.task == "boxes" else "predict"
    lines = ["```sh", f"memvit {command} VIDEO --model {name}", "```", "", "```python", "import memvit"]
    if command == "detect":
        lines += [
            "",
            f'model = memvit.create_model("{name}")',
            "memory = None",
            "for clips, boxes in stream:  # (B, 3, frames, height, width), normalised; pixels of each clip's boxes, (N, 4)",
            "    logits, memory = model(clips, memory, boxes)",
        ]
    else:
        lines += [
            "from memvit.video import open_video",
            "",
            f'recognizer = memvit.OnlineRecognizer(memvit.create_model("{name}"))',
            'for prediction in recognizer.run(open_video("VIDEO")):',
            "    print(prediction.start_s, prediction.topk(5))",
        ]
    return [*lines, "```", *([] if name != PLACEHOLDER else ["", f"`{PLACEHOLDER}`: the directory of this file."])]


def _licence_text(licence: str | None, source: Mapping[str, Any]) -> str:
    if source.get("licence"):
        origin = source.get("url") or source.get("name") or "the authors' release"
        made = source.get("made", "converted")
        return (
            f"These weights were {made} from those of MeMViT's authors ({origin}), which are under {source['licence']}: not for "
            "commercial use."
        )
    if licence is None:
        return "None is stated: ask who made this model before you use it."
    return f"The weights are under {licence}."


def _giga(number: int) -> str:
    return f"{number / 1e9:,.1f}" if number >= 1e9 else f"{number / 1e9:.2g}"
