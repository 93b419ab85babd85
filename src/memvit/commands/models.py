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
        model: a preset, published weights, a directory, a Hub repository, or a checkpoint of `memvit fit`.
        config: a YAML file of the authors' release; instead of `model`.
        checkpoint: weights of the authors' release, for `config` or for a preset; or, alone, a checkpoint of `memvit fit`.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: they do not go together, or cannot be used.
    """
    import memvit
    from memvit.models.presets import PRESETS
    from memvit.models.slowfast import load_release_state, load_slowfast, read_checkpoint
    from memvit.models.zoo import config_of_state

    if config is None and model is not None and Path(model).suffix == ".ckpt":
        if checkpoint is not None:
            raise ValueError(f"--model {model} and --checkpoint {checkpoint} name two models: give one of them")
        return ChosenModel(load_training_checkpoint(model), _name_of(Path(model)), untrained=False)
    if config is None and checkpoint is not None and Path(checkpoint).suffix == ".ckpt":
        if model is not None:
            raise ValueError(f"--checkpoint {checkpoint} knows its model: leave --model {model} out")
        return ChosenModel(load_training_checkpoint(checkpoint), _name_of(Path(checkpoint)), untrained=False)
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


def load_saved(model: str) -> MeMViT:
    """The model in a directory or in a checkpoint of `memvit fit`: what there is on this machine, in eval mode.

    Raises:
        FileNotFoundError: no such model.
        ValueError: it is damaged, or none of ours.
    """
    from memvit.models.memvit import MeMViT

    path = Path(model)
    if path.is_dir():
        return MeMViT.from_pretrained(path)
    if path.suffix == ".ckpt":
        return load_training_checkpoint(path)
    raise FileNotFoundError(
        f"{model}: no such model; give a directory that `memvit fit`, `memvit convert` or save_pretrained wrote, or a .ckpt of "
        "`memvit fit`"
    )


def load_training_checkpoint(path: str | Path) -> MeMViT:
    """The model in a checkpoint of `memvit fit`, in eval mode, with its labels and preprocessing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no checkpoint of a training.
    """
    from memvit.models.config import MViTConfig
    from memvit.models.hub import fill
    from memvit.models.memvit import MeMViT
    from memvit.training.checkpoints import SECTION, read_checkpoint

    content = read_checkpoint(path)
    own, prefix = content[SECTION], "network."
    network = MeMViT(MViTConfig.from_dict(own["identity"]["model"]).replace(**own.get("head", {})))
    state = content["state_dict"]
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    fill(network, weights, str(path), lambda name: False)
    return network.eval()


def _name_of(checkpoint: Path) -> str:
    """What to call the model of a run's checkpoint: the run, where it is in one."""
    run = checkpoint.resolve().parent.parent
    return f"{run.parent.name}/{run.name}" if checkpoint.resolve().parent.name == "checkpoints" else checkpoint.stem


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


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """PyTorch's number format of this name.

    Raises:
        ValueError: the device does not compute in it.
    """
    import torch

    if name == "float16" and device.type == "cpu":
        raise ValueError("--dtype float16 needs a GPU: a CPU computes in float32 or bfloat16")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
