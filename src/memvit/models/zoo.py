"""Models by name: presets, the authors' published weights, saved directories, and repositories of the Hugging Face Hub."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import http.client
import json
import logging
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from torch import Tensor

from memvit.models.config import MViTConfig
from memvit.models.hub import SOURCE_FILE, WEIGHTS_FILE, load_model, make_directory, save_model
from memvit.models.memvit import MeMViT
from memvit.models.model_card import RELEASE_LICENCE
from memvit.models.presets import PRESETS
from memvit.models.slowfast import (
    LoadReport,
    load_pickle,
    load_release_state,
    model_state,
    read_checkpoint,
    read_config,
)

logger = logging.getLogger(__name__)

WEIGHTS_URL = "https://dl.fbaipublicfiles.com/memvit/models/"
TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PublishedWeights:
    """A checkpoint that the authors published.

    Attributes:
        name: preset, dot, tag.
        preset: the model that it fills.
        num_classes: of its head.
        url: where it is published.
        dataset: what it was trained on last.
        metric: what its authors report; None where they report nothing for it.
        licence: under which the authors publish it; ours does not apply to it.
        num_bytes: size of the file; None where unknown.
    """

    name: str
    preset: str
    num_classes: int
    url: str
    dataset: str
    metric: str | None = None
    licence: str = RELEASE_LICENCE
    num_bytes: int | None = None

    @property
    def tag(self) -> str:
        """What `create_model(preset, pretrained=tag)` calls it."""
        return self.name.removeprefix(f"{self.preset}.")


def _published(
    preset: str, tag: str, num_classes: int, file: str, dataset: str, metric: str | None = None
) -> tuple[str, PublishedWeights]:
    name = f"{preset}.{tag}"
    return name, PublishedWeights(name, preset, num_classes, WEIGHTS_URL + file, dataset, metric)


# The first of a preset is its default.
WEIGHTS: dict[str, PublishedWeights] = dict(
    (
        _published("memvit_16x4", "k400", 400, "Kinetics/MeMViT_16L_16x4_K400.pyth", "Kinetics-400"),
        _published("memvit_24_32x3", "k600", 600, "Kinetics/MeMViT_24L_32x3_K600.pyth", "Kinetics-600"),
        _published("memvit_24_32x3", "k700", 700, "Kinetics/MeMViT_24L_32x3_K700.pyth", "Kinetics-700"),
        _published("memvit_16x4_ava", "k400", 80, "AVA/MeMViT_16L_16x4_K400pt.pyth", "AVA 2.2", "29.3 mAP"),
        _published("memvit_24_32x3_ava", "k700", 80, "AVA/MeMViT_24L_32x3_K700pt.pyth", "AVA 2.2", "34.4 mAP"),
        _published("memvit_24_32x3_ava", "k600", 80, "AVA/MeMViT_24L_32x3_K600pt.pyth", "AVA 2.2", "32.3 mAP"),
    )
)


def list_models(pattern: str | None = None) -> list[str]:
    """The presets that `create_model` knows, all or those that match a pattern such as "*_ava"."""
    return [name for name in PRESETS if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def list_weights() -> list[PublishedWeights]:
    """The published weights that `create_model` can download."""
    return list(WEIGHTS.values())


def create_model(name: str | Path, *, pretrained: bool | str = False, **overrides: Any) -> MeMViT:
    """A model by name, with any config field changed.

        create_model("memvit_16x4", num_classes=97, memory_length=4)       # random weights
        create_model("memvit_16x4", pretrained=True, num_classes=97)       # published weights, new head
        create_model("memvit_24_32x3.k700"), create_model("runs/best"), create_model("owner/name")

    With random weights it comes in training mode, as any new module; with weights in eval mode, ready to predict.
    Published weights are downloaded once, and then kept under $MEMVIT_CACHE (default: ~/.cache/memvit). Where weights
    do not have the parts that `overrides` ask for, the head, box blocks and memory are newly initialised, and listed in
    a warning.

    Args:
        name: a preset (`list_models`); published weights (`list_weights`); a directory that `save_pretrained` or
            `convert` wrote; or a repository of the Hugging Face Hub, "owner/name". The last three come with weights.
        pretrained: True: the preset's default weights; a string: those of this tag, such as "k700".
        overrides: as for `MViTConfig.replace`.

    Raises:
        FileNotFoundError: no such directory or repository, or a file of it is missing.
        ValueError: an unknown name, tag or field, or weights that are damaged or do not fit.
        ConnectionError: weights cannot be downloaded.
    """
    text = str(name)
    if text in PRESETS:
        if not pretrained:
            return MeMViT(PRESETS[text].replace(**overrides))
        return _load_published(_find_weights(text, pretrained), overrides)
    if isinstance(pretrained, str):
        raise ValueError(f"pretrained={pretrained!r} names weights of a preset, and {text!r} is none; {_known(text)}")
    if text in WEIGHTS:
        return _load_published(WEIGHTS[text], overrides)
    if os.path.isdir(text) or (isinstance(name, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", text)):
        return load_model(MeMViT, name, **overrides)
    if isinstance(name, Path) or re.search(r"[/\\]", text):
        raise FileNotFoundError(f"{text}: no such directory; give one that save_pretrained or `memvit convert` wrote")
    raise ValueError(f"unknown model {text!r}; {_known(text)}")


def convert(
    config: str | Path | Mapping[str, Any],
    checkpoint: str | Path,
    out_dir: str | Path,
    boundary: Literal["mask", "zero"] = "mask",
) -> LoadReport:
    """Converts a checkpoint of the authors' release into a directory for `create_model` and `MeMViT.from_pretrained`.

    Args:
        config: its YAML file, or the content as a dict.
        checkpoint: the `.pyth` file.
        out_dir: made where missing; `config.json`, `model.safetensors` and `source.json`, which names the weights' origin
            and licence, are replaced in it.
        boundary: as for `load_slowfast`.

    Returns:
        What became of the checkpoint's entries.

    Raises:
        FileNotFoundError: no such config or checkpoint.
        ValueError: either is unusable, they do not belong together, or `out_dir` cannot be written.
    """
    model_config, _ = read_config(config, boundary)
    state = read_checkpoint(checkpoint)
    model = MeMViT(model_config)
    report = load_release_state(model, state, str(checkpoint))
    directory = make_directory(out_dir)
    save_model(model, model_config, directory)
    source = {"name": Path(checkpoint).name, "licence": RELEASE_LICENCE}
    (directory / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n")
    return report


def cache_dir() -> Path:
    """Where converted weights are kept: $MEMVIT_CACHE, or `memvit` in the user's cache directory."""
    if path := os.environ.get("MEMVIT_CACHE"):
        return Path(path).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "memvit"


def is_cached(weights: PublishedWeights) -> bool:
    """Whether published weights are here already, converted."""
    return (cache_dir() / weights.name / WEIGHTS_FILE).is_file()


def config_of_state(state: Mapping[str, Tensor], preset: MViTConfig) -> MViTConfig:
    """A preset with what can be read off a checkpoint of the release: classes, whether there is memory, its length."""
    overrides: dict[str, Any] = {}
    if "head.projection.weight" in state:
        overrides["num_classes"] = state["head.projection.weight"].shape[0]
    times = [tensor.shape[0] for name, tensor in state.items() if name.endswith(".rel_pos_mem_t")]
    if times:  # (M + 1) T - 1 rows
        overrides["memory_length"] = (times[0] + 1) // preset.num_times - 1
    elif not any(re.search(r"\.(compress_k\.|rel_pos_mem_)", name) for name in state):
        overrides["memory_length"] = 0
    return preset.replace(**overrides)


def _find_weights(preset: str, pretrained: bool | str) -> PublishedWeights:
    ours = [weights for weights in WEIGHTS.values() if weights.preset == preset]
    if not ours:
        raise ValueError(f"there are no published weights for {preset}; there are for {', '.join(WEIGHTS)}")
    if pretrained is True:
        return ours[0]
    for weights in ours:
        if pretrained in (weights.tag, weights.name):
            return weights
    tags = ", ".join(weights.tag for weights in ours)
    raise ValueError(f"unknown weights {pretrained!r} of {preset}; it has {tags}")


def _known(name: str) -> str:
    close = difflib.get_close_matches(name, [*PRESETS, *WEIGHTS], n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}models are {', '.join(PRESETS)}, with weights {', '.join(WEIGHTS)}, or a directory or Hub repository"


def _load_published(weights: PublishedWeights, overrides: Mapping[str, Any]) -> MeMViT:
    directory = cache_dir() / weights.name
    if not directory.exists():
        _fetch(weights, directory)
    _verify(directory)
    model = load_model(MeMViT, directory, **overrides)
    if PRESETS[weights.preset].memory.length and not model.config.memory.length and "memory_length" not in overrides:
        logger.warning("%s were trained without memory; memory_length=... adds it, untrained", weights.name)
    return model


def _fetch(weights: PublishedWeights, directory: Path) -> None:
    """Downloads and converts, all beside the place where it belongs; the finished directory is moved there."""
    base = os.environ.get("MEMVIT_WEIGHTS_URL")
    url = weights.url.replace(WEIGHTS_URL, base.rstrip("/") + "/") if base else weights.url
    logger.warning("downloading %s to %s; its licence is %s", url, directory, weights.licence)
    with tempfile.TemporaryDirectory(dir=make_directory(directory.parent), prefix=f".{weights.name}-") as work:
        checkpoint, converted = Path(work) / "checkpoint.pyth", make_directory(Path(work) / "model")
        sha256 = _download(url, checkpoint)
        try:
            model = _convert_published(checkpoint, weights, url)
        except ValueError as error:
            raise ValueError(f"what {url} served cannot be used: {error}; try again, or another mirror") from error
        save_model(model, model.config, converted)
        source = {
            "name": weights.name,
            "url": url,
            "licence": weights.licence,
            "downloaded": datetime.now(UTC).isoformat(timespec="seconds"),
            "sha256": sha256,
            "converted_sha256": _sha256(converted / WEIGHTS_FILE),
        }
        (converted / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n")
        try:
            converted.rename(directory)
        except OSError:
            if not directory.is_dir():  # otherwise another process was first
                raise


def _convert_published(checkpoint: Path, weights: PublishedWeights, url: str) -> MeMViT:
    """The model that a downloaded file holds, by its own config where that can be read, else by the preset's."""
    if zipfile.is_zipfile(checkpoint):
        with zipfile.ZipFile(checkpoint) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged} is damaged")
    content = load_pickle(checkpoint, url)
    state = model_state(content, url)
    if own_config := _own_config(content, url):
        try:
            model = MeMViT(own_config)
            logger.info("%s: %s", url, load_release_state(model, state, url))
            return model
        except ValueError as error:
            logger.info("the config inside is not used, but the preset's: %s", error)
    model = MeMViT(config_of_state(state, PRESETS[weights.preset]))
    logger.info("%s: %s", url, load_release_state(model, state, url))
    return model


def _own_config(content: Any, url: str) -> MViTConfig | None:
    """The config that a checkpoint carries, as PySlowFast writes it; None where it cannot be read."""
    text = content.get("cfg") if isinstance(content, Mapping) else None
    try:
        parsed = yaml.safe_load(text) if isinstance(text, str) else None
        return read_config(parsed)[0] if isinstance(parsed, Mapping) else None
    except (ValueError, yaml.YAMLError) as error:
        logger.info("%s: the config inside is not used, but the preset's: %s", url, error)
        return None


def _verify(directory: Path) -> None:
    """Checks converted weights against the hash that was recorded when they were downloaded."""
    cure = f"delete {directory} to download them again"
    try:
        recorded = json.loads((directory / SOURCE_FILE).read_text())["converted_sha256"]
        found = _sha256(directory / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the weights in {directory} are incomplete or damaged ({error}); {cure}") from error
    if found != recorded:
        raise ValueError(f"{directory / WEIGHTS_FILE} has changed: sha256 {found}, recorded {recorded}; {cure}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: Path) -> str:
    """Fetches a URL into a file; returns its sha256."""
    digest = hashlib.sha256()
    chunks = _chunks(url)
    try:
        with path.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
    except ConnectionError:
        raise
    except OSError as error:
        raise ValueError(
            f"{path.parent.parent}: {error.strerror}; free space, or set MEMVIT_CACHE to another place"
        ) from error
    return digest.hexdigest()


def _chunks(url: str) -> Iterator[bytes]:
    """The content behind a URL, piece by piece.

    Raises:
        ConnectionError: it cannot be had, or not in full.
    """
    received, expected = 0, None
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "memvit"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response, progress:
            length = response.headers.get("Content-Length")
            expected = int(length) if length else None
            task = progress.add_task(url.rsplit("/", 1)[-1], total=expected)
            while chunk := response.read(CHUNK_BYTES):
                received += len(chunk)
                progress.advance(task, len(chunk))
                yield chunk
    except urllib.error.HTTPError as error:
        raise _not_downloaded(url, f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _not_downloaded(url, str(getattr(error, "reason", error)) or type(error).__name__) from error
    if expected is not None and received != expected:
        raise _not_downloaded(url, f"cut short: {received} of {expected} bytes")


def _not_downloaded(url: str, reason: str) -> ConnectionError:
    return ConnectionError(
        f"{url} cannot be downloaded ({reason}); check the network and try again, set MEMVIT_WEIGHTS_URL to a mirror, or get "
        "the file by other means and use `memvit convert`"
    )
