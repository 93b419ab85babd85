"""What a training starts from: weights of ours or of the authors', as far as they fit, with a report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from memvit.models.config import MViTConfig
from memvit.models.hub import CONFIG_FILE, WEIGHTS_FILE, read_config_file, read_weights_file
from memvit.models.memvit import MeMViT
from memvit.models.positions import resize_table
from memvit.models.presets import PRESETS
from memvit.models.slowfast import read_checkpoint as read_release_checkpoint
from memvit.models.slowfast import release_name
from memvit.models.zoo import create_model, list_models
from memvit.training.checkpoints import SECTION, read_checkpoint

# Parts that may be missing or of another shape: they depend on the data set and on memory.
_MAY_BE_NEW = re.compile(
    r"head\.projection\.|box_blocks\.|blocks\.\d+\.attn\.((norm_)?compress_[kv]\.|rel_pos_mem_[hwt]$)"
)


@dataclass(frozen=True)
class WeightsReport:
    """What became of weights that a training starts from.

    Attributes:
        source: where they come from.
        loaded: parameters that were taken over.
        resized: position tables that were fitted to another clip size, clip length or memory length.
        new: parameters that the weights do not have, or have in another shape; initialised at random.
        unused: entries of the weights that the model has no place for.
    """

    source: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = []
        for what, names in (("resized", self.resized), ("new", self.new), ("unused", self.unused)):
            parts.append(f"{len(names)} {what}" + (f" ({_folded(names)})" if names else ""))
        return f"{self.source}: {len(self.loaded)} parameters loaded, {', '.join(parts)}"

    def listing(self) -> str:
        """Every name, for a file."""
        lines = [f"weights: {self.source}"]
        for what in ("loaded", "resized", "new", "unused"):
            names: tuple[str, ...] = getattr(self, what)
            lines += ["", f"{what}: {len(names)}", *(f"  {name}" for name in names)]
        return "\n".join(lines) + "\n"


def base_config(name: str) -> MViTConfig:
    """The config of a preset, or of a directory that `save_pretrained` wrote.

    Raises:
        ValueError, FileNotFoundError: there is no such model.
    """
    if name in PRESETS:
        return PRESETS[name]
    if Path(name).is_dir():
        return read_config_file(Path(name) / CONFIG_FILE)
    raise ValueError(
        f"model.name={name!r} is unknown; models are {', '.join(list_models())}, or a directory with a model"
    )


def load_weights(model: MeMViT, source: str) -> WeightsReport:
    """Fills a model with weights as far as they fit.

    Args:
        source: a directory or .safetensors of ours, a .ckpt of `memvit fit`, a .pyth of the authors', or a name as of
            `memvit.create_model` that has weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is none of those, or of a model with other blocks; the model is left as it was.
    """
    return fit_weights(model, read_weights(source), source)


def read_weights(source: str) -> dict[str, Tensor]:
    """Weights under our names; see `load_weights`."""
    path = Path(source)
    if path.is_dir():
        return read_weights_file(path / WEIGHTS_FILE)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such weights; give a file that exists with --model.weights")
        return read_weights_file(path)
    if path.suffix == ".ckpt":
        state = read_checkpoint(path)["state_dict"]
        return {name.removeprefix("network."): t for name, t in state.items() if name.startswith("network.")}
    if path.suffix in (".pyth", ".pth", ".pt"):
        return dict(read_release_checkpoint(path))
    if source in PRESETS:
        return dict(create_model(source, pretrained=True).state_dict())
    return dict(create_model(source).state_dict())


def fit_weights(model: MeMViT, state: Mapping[str, Tensor], source: str) -> WeightsReport:
    """Fills a model with weights as far as they fit; see `load_weights`.

    Args:
        state: under our names or the release's.
    """
    own = model.state_dict()
    ours = {release_name(name): name for name in own}
    given = {ours.get(name, name): tensor for name, tensor in state.items()}
    filled: dict[str, Tensor] = {}
    resized, wrong = [], []
    for name, tensor in own.items():
        if name not in given:
            continue
        other = given[name]
        if other.shape != tensor.shape:
            fitted = _resize(name, other, tensor)
            if fitted is None:
                if not _MAY_BE_NEW.match(name):
                    wrong.append(f"{name} is {tuple(other.shape)} and should be {tuple(tensor.shape)}")
                continue
            resized.append(name)
            other = fitted
        filled[name] = other
    if wrong or not any(name.startswith("blocks.") for name in filled):
        reason = (
            f"{len(wrong)} parameters differ ({wrong[0]}{', ...' if len(wrong) > 1 else ''})"
            if wrong
            else ("none of the blocks' parameters is in it")
        )
        raise ValueError(f"{source} is of another model: {reason}; choose --model.name and --model.options to match it")
    model.load_state_dict(filled, strict=False)
    return WeightsReport(
        source=source,
        loaded=tuple(name for name in filled if name not in resized),
        resized=tuple(resized),
        new=tuple(name for name in own if name not in filled),
        unused=tuple(name for name in given if name not in own or (name not in filled)),
    )


def class_names_of(weights: str) -> tuple[tuple[str, ...], ...] | None:
    """The class names that come with weights; None where they are not known."""
    path = Path(weights)
    if path.suffix == ".ckpt":
        names = read_checkpoint(path, mmap=True)[SECTION]["identity"]["model"]["head"]["class_names"]
        return tuple(tuple(head) for head in names) or None
    folder = path if path.is_dir() else path.parent
    if (folder / CONFIG_FILE).is_file():
        return read_config_file(folder / CONFIG_FILE).head.class_names or None
    return None


def _resize(name: str, table: Tensor, wanted: Tensor) -> Tensor | None:
    """A table of positions with as many entries as wanted; None for anything else."""
    table = table.float()
    kind = name.rpartition(".")[2]
    if table.dim() != wanted.dim() or table.shape[-1] != wanted.shape[-1]:
        return None
    if kind == "rel_pos_mem_t":
        # Row i is i token times before the newest remembered clip: what a longer memory adds is further away.
        missing = max(wanted.shape[0] - table.shape[0], 0)
        return torch.cat([table, table[-1:].expand(missing, -1)])[: wanted.shape[0]]
    if kind.startswith("rel_pos"):
        return resize_table(table, wanted.shape[0])
    if kind == "pos_embed_temporal":
        return resize_table(table[0], wanted.shape[1])[None]
    if kind == "pos_embed_spatial":
        old, new = (round(size**0.5) for size in (table.shape[1], wanted.shape[1]))
        if old * old != table.shape[1] or new * new != wanted.shape[1]:
            return None
        plane = table.transpose(1, 2).unflatten(2, (old, old))
        return F.interpolate(plane, size=(new, new), mode="bilinear").flatten(2).transpose(1, 2)
    return None


def _folded(names: Iterable[str]) -> str:
    """Names with the blocks' numbers folded: `blocks.*.attn.rel_pos_mem_t (8 times)`."""
    counts = Counter(re.sub(r"blocks\.\d+\.", "blocks.*.", name) for name in names)
    return ", ".join(name if n == 1 else f"{name} ({n} times)" for name, n in counts.items())
