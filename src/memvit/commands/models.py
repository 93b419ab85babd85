"""Which model a command means: a name, a directory, or the authors' config and checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from memvit.models.config import MViTConfig
    from memvit.models.memvit import MeMViT


@dataclass(frozen=True)
class ChosenModel:
    """A model to predict with.

    Attributes:
        model: in eval mode.
        name: what to call it.
        untrained: its weights are random.
    """

    model: MeMViT
    name: str
    untrained: bool

    def name_classes(self, labels: Sequence[str] | None) -> tuple[str, ...] | None:
        """Gives the model class names from files, one per head.

        Returns:
            The names of several heads, by their files; None where there are no files, or one head.

        Raises:
            FileNotFoundError, ValueError: the files are missing, unreadable or of other classes.
        """
        if not labels:
            return None
        from memvit.online.labels import read_labels

        config = self.model.config
        self.model.config = config.replace(class_names=read_labels(labels, config.head.num_classes))
        stems = tuple(Path(path).stem for path in labels)
        return stems if len(set(stems)) == len(stems) > 1 else None


def choose_model(model: str | None, config: str | None, checkpoint: str | None) -> ChosenModel:
    """The model that `--model`, `--config` and `--checkpoint` name.

    Args:
        model: a preset, published weights, a directory or a Hub repository.
        config: a YAML file of the authors' release; instead of `model`.
        checkpoint: weights of the authors' release, for `config` or for a preset.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: they do not go together, or cannot be used.
    """
    import memvit
    from memvit.models.presets import PRESETS
    from memvit.models.slowfast import load_release_state, load_slowfast, read_checkpoint
    from memvit.models.zoo import config_of_state

    if config is not None:
        if model is not None:
            raise ValueError(f"--config {config} and --model {model} name two models: give one of them")
        return ChosenModel(load_slowfast(config, checkpoint), Path(config).stem, untrained=checkpoint is None)
    if model is None:
        raise ValueError(f"which model? give --model, one of {', '.join(PRESETS)}, or a directory")
    if checkpoint is None:
        return ChosenModel(memvit.create_model(model).eval(), model, untrained=model in PRESETS)
    if model not in PRESETS:
        raise ValueError(
            f"--checkpoint {checkpoint} is for a preset ({', '.join(PRESETS)}) or a --config: {model} has its own weights"
        )
    state = read_checkpoint(checkpoint)
    chosen = memvit.MeMViT(config_of_state(state, PRESETS[model]))
    load_release_state(chosen, state, checkpoint)
    return ChosenModel(chosen.eval(), model, untrained=False)


def choose_config(name: str, **overrides: Any) -> MViTConfig:
    """The config of a model, without its weights.

    Args:
        name: as for `create_model`, Hub repositories excepted.
        overrides: config fields to change; None: as it is.

    Raises:
        ValueError, FileNotFoundError: no such model, or a field is unknown or contradicts others.
    """
    from memvit.models.hub import CONFIG_FILE, read_config_file
    from memvit.models.presets import PRESETS
    from memvit.models.zoo import WEIGHTS, create_model

    given = {field: value for field, value in overrides.items() if value is not None}
    if name in PRESETS:
        return PRESETS[name].replace(**given)
    if name in WEIGHTS:
        weights = WEIGHTS[name]
        return PRESETS[weights.preset].replace(**{"num_classes": weights.num_classes, **given})
    if Path(name).is_dir():
        return read_config_file(Path(name, CONFIG_FILE)).replace(**given)
    return create_model(name, **given).config  # of the Hub, or an error that lists what there is


def choose_device(name: str) -> torch.device:
    """The device that a name means: "auto" is a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        detail = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({detail}): choose auto or cpu") from error
    return device


def choose_dtype(name: str) -> torch.dtype:
    """PyTorch's number format of this name."""
    import torch

    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
