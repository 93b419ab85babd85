"""The authors' files: PySlowFast-style YAML configs and `.pyth` checkpoints, translated into ours.

Parameters have the same names here and there, but for those that `release_name` renames.
"""

from __future__ import annotations

import ast
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor

from memvit.models.config import HeadConfig, MemoryConfig, MViTConfig
from memvit.models.memvit import MeMViT

logger = logging.getLogger(__name__)

# Keys of the model's own sections that the architecture does not depend on.
TRAINING_KEYS = {
    "MVIT": {"ZERO_DECAY_POS_CLS", "REL_POS_ZERO_INIT", "HEAD_INIT_SCALE"},
    "MODEL": {
        "LOSS_FUNC", "SINGLE_PATHWAY_ARCH", "MULTI_PATHWAY_ARCH", "FC_INIT_STD", "FROZEN_BN", "ACT_CHECKPOINT",
        "DETACH_FINAL_FC", "DROPCONNECT_RATE", "MODEL_NAME",
    },
    "MEMVIT": set(),
    "DETECTION": set(),
}  # fmt: skip

# Keys with one value that this model implements.
FIXED_KEYS: dict[tuple[str, str], tuple[object, ...]] = {
    ("MODEL", "ARCH"): ("mvit",),
    ("MVIT", "NORM"): ("layernorm",),
    ("MVIT", "PATCH_2D"): (False,),
    ("DETECTION", "ROI_XFORM_RESOLUTION"): (7,),
}

# Numbers such as an optimiser's learning rate, under the names that NumPy 1 and 2 give them: data, no code.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")),
]


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's entries.

    Attributes:
        matched: parameters of ours that were filled.
        unused: entries of the checkpoint for modules that this model does without: compression and memory tables of
            layers without memory, which the release creates and never uses.
    """

    matched: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.matched)} parameters loaded"
        if self.unused:
            text += f"; {len(self.unused)} entries for layers without memory left out ({self.unused[0]}, ...)"
        return text


def load_slowfast(
    config: str | Path | Mapping[str, Any],
    checkpoint: str | Path | Mapping[str, Any] | None = None,
    boundary: Literal["mask", "zero"] = "mask",
) -> MeMViT:
    """A model from the authors' release, in eval mode.

    Args:
        config: a YAML file in the release's form, or its content as a dict.
        checkpoint: a `.pyth` file, or a state dict with the release's names (with or without `model_state` around it);
            None: random weights. Loaded strictly; what the release stores without using it is reported in the log.
        boundary: what a clip sees of another video. "mask": nothing; "zero": zeros, as the release at batch size > 1.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown or contradictory key, a checkpoint of another model, or one that would run code.
    """
    model_config, ignored = read_config(config, boundary)
    if ignored:
        logger.info("%d config keys outside the model are ignored: %s", len(ignored), ", ".join(ignored))
    model = MeMViT(model_config)
    if checkpoint is not None:
        source = str(checkpoint) if isinstance(checkpoint, str | Path) else "the state dict"
        state = read_checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else model_state(checkpoint, source)
        logger.info("%s: %s", source, load_release_state(model, state, source))
    return model.eval()


def read_config(
    config: str | Path | Mapping[str, Any], boundary: Literal["mask", "zero"] = "mask"
) -> tuple[MViTConfig, list[str]]:
    """Translates a config of the release's form.

    Returns:
        Our config, and the keys that say nothing about the model (training, data paths).

    Raises:
        FileNotFoundError, ValueError: as `load_slowfast`.
    """
    source = "the config"
    if isinstance(config, str | Path):
        source = str(config)
        config = _read_yaml(Path(config))
    keys = _Keys(config, source)
    try:
        fields = _translate(keys, boundary)
        ignored = keys.finish()  # first: a misspelt key explains more than what its absence contradicts
        return MViTConfig(**fields), ignored
    except (ValueError, TypeError, IndexError) as error:
        if isinstance(error, _ConfigError):
            raise
        raise ValueError(f"{source}: {error}") from error


def release_name(name: str) -> str:
    """The release's name of one of our parameters."""
    return name.removeprefix("positions.")


def load_release_state(model: MeMViT, state: Mapping[str, Tensor], source: str = "the checkpoint") -> LoadReport:
    """Fills a model with the release's weights, strictly.

    Raises:
        ValueError: missing, unknown or differently shaped parameters; the model is left as it was.
    """
    ours = {release_name(name): name for name in model.state_dict()}
    own = model.state_dict()
    left_out = _unused_memory_names(model)
    unused = tuple(name for name in state if name not in ours and _matches(name, left_out))
    unknown = [name for name in state if name not in ours and name not in unused]
    missing = [name for name in ours if name not in state]
    wrong = [
        f"{name} is {tuple(state[name].shape)}, the model's {tuple(own[ours[name]].shape)}"
        for name in ours
        if name in state and state[name].shape != own[ours[name]].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("parameters missing", missing), ("entries unknown", unknown), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise ValueError(f"{source} is of another model: {'; '.join(problems)}; use the config that belongs to it")
    model.load_state_dict({name: state[release] for release, name in ours.items()})
    return LoadReport(tuple(ours.values()), unused)


def read_checkpoint(path: str | Path) -> Mapping[str, Tensor]:
    """The weights in a `.pyth` file, by the release's names. Nothing in the file is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, cut short, or a pickle that asks for code to be run.
    """
    return model_state(load_pickle(Path(path)), str(path))


def model_state(checkpoint: Any, source: str) -> Mapping[str, Tensor]:
    """The state dict in a checkpoint's content, whether bare or under `model_state`."""
    state = checkpoint.get("model_state", checkpoint) if isinstance(checkpoint, Mapping) else checkpoint
    named = isinstance(state, Mapping) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items())
    if not named or not state:
        raise ValueError(f"{source} holds no weights: expected a state dict, or one under 'model_state'")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_pickle(path: Path, source: str | None = None) -> Any:
    """The content of a `.pyth` file: plain data and tensors alone. Nothing in the file is executed.

    Args:
        source: what error messages call the file; its path where left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, cut short, or a pickle that asks for code to be run.
    """
    source = source or str(path)
    if not path.is_file():
        raise FileNotFoundError(f"{source}: no such checkpoint file")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are no pickle, the unpickler stumbles in any way
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise ValueError(
                f"{source} is a pickle that asks for code to be run on loading ({code[1]}), and is refused: a checkpoint "
                "needs only tensors and plain data; get it from a source you trust, or have its owner save the state dict alone"
            ) from error
        raise ValueError(f"{source} is not a checkpoint, or is cut short; get it again") from error


def _unused_memory_names(model: MeMViT) -> list[str]:
    """Prefixes of what the release's blocks carry and never use."""
    parts = [f"{kind}_{name}" for kind in ("compress", "norm_compress") for name in "kv"]
    parts += [f"rel_pos_mem_{axis}" for axis in "hwt"]
    used = model.config.memory_layers
    return [f"blocks.{i}.attn.{part}" for i in range(model.config.depth) if i not in used for part in parts]


def _matches(name: str, prefixes: list[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


class _ConfigError(ValueError):
    """A config error whose message already names the file."""


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    return content if content is not None else {}


class _Keys:
    """Hands out a config's values and keeps count of what was asked for."""

    def __init__(self, config: Any, source: str) -> None:
        if not isinstance(config, Mapping) or not all(isinstance(config.get(s, {}), Mapping) for s in TRAINING_KEYS):
            raise _ConfigError(
                f"{source} is not a config of the release's form: expected sections such as MVIT: and MEMVIT:"
            )
        self.values = _flatten(config)
        self.source = source
        self.asked: set[str] = set()

    def __call__(self, key: str, default: Any) -> Any:
        """The value at SECTION.KEY, Python literals in strings understood, lists as tuples."""
        self.asked.add(key)
        value = self.values.get(key, default)
        if isinstance(value, str) and not isinstance(default, str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                raise _ConfigError(
                    f"{self.source}: {key}: {value!r} is not a value of the kind of {default!r}"
                ) from None
        value = _as_tuples(value)
        kinds: type | tuple[type, ...] = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
            raise _ConfigError(
                f"{self.source}: {key}: {value!r} should be a {type(default).__name__}, as {default!r} is"
            )
        return value

    def finish(self) -> list[str]:
        """Checks that every key of the model's sections was understood; returns those outside the model."""
        ignored = []
        for key, value in self.values.items():
            section, _, name = key.partition(".")
            allowed = FIXED_KEYS.get((section, name))
            if allowed is not None and value not in allowed:
                raise _ConfigError(f"{self.source}: {key}: {value!r} is not implemented, only {allowed[0]!r}")
            if key in self.asked or allowed is not None:
                continue
            if section in TRAINING_KEYS and name not in TRAINING_KEYS[section]:
                raise _ConfigError(
                    f"{self.source}: unknown key {key} in a model section; remove it or correct its name"
                )
            ignored.append(key)
        return ignored


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _translate(keys: _Keys, boundary: Literal["mask", "zero"]) -> dict[str, Any]:
    """The release's keys, with its defaults, as the fields of our config."""
    adaptive = keys("MVIT.POOL_KV_STRIDE_ADAPTIVE", ())
    kv_strides = keys("MVIT.POOL_KV_STRIDE", ())
    channels = keys("DATA.INPUT_CHANNEL_NUM", (3, 3))
    if not channels:
        raise ValueError("DATA.INPUT_CHANNEL_NUM: needs the number of channels, as [3]")
    absolute = keys("MVIT.USE_ABS_POS", True)
    separate = keys("MVIT.SEP_POS_EMBED", False)
    conv_q = keys("MVIT.CONV_Q", 0)
    keys("DATA.TEST_CROP_SIZE", 224)
    return {
        "num_frames": keys("DATA.NUM_FRAMES", 8),
        "sampling_rate": keys("DATA.SAMPLING_RATE", 8),
        "crop_size": keys("DATA.TRAIN_CROP_SIZE", 224),
        "in_channels": channels[0],
        "mean": keys("DATA.MEAN", (0.45,) * channels[0]),
        "std": keys("DATA.STD", (0.225,) * channels[0]),
        "patch_kernel": keys("MVIT.PATCH_KERNEL", (3, 7, 7)),
        "patch_stride": keys("MVIT.PATCH_STRIDE", (2, 4, 4)),
        "patch_padding": keys("MVIT.PATCH_PADDING", (2, 4, 4)),
        "class_token": keys("MVIT.CLS_EMBED_ON", True),
        "norm_stem": keys("MVIT.NORM_STEM", False),
        "absolute_positions": ("separate" if separate else "joint") if absolute else "none",
        "relative_positions_spatial": keys("MVIT.REL_POS_SPATIAL", False),
        "relative_positions_temporal": keys("MVIT.REL_POS_TEMPORAL", False),
        "depth": keys("MVIT.DEPTH", 16),
        "embed_dim": keys("MVIT.EMBED_DIM", 96),
        "num_heads": keys("MVIT.NUM_HEADS", 1),
        "dim_mul": keys("MVIT.DIM_MUL", ()),
        "head_mul": keys("MVIT.HEAD_MUL", ()),
        "widen_in_attention": keys("MVIT.DIM_MUL_IN_ATT", False),
        "mlp_ratio": float(keys("MVIT.MLP_RATIO", 4.0)),
        "qkv_bias": keys("MVIT.QKV_BIAS", True),
        "pool_mode": keys("MVIT.MODE", "conv"),
        "pool_kernel": keys("MVIT.POOL_KVQ_KERNEL", ()) or None,
        "q_strides": keys("MVIT.POOL_Q_STRIDE", ()),
        "kv_stride_adaptive": adaptive or None,
        "kv_strides": kv_strides,
        "pool_first": keys("MVIT.POOL_FIRST", False),
        "separate_qkv": keys("MVIT.SEPARATE_QKV", False),
        "residual_pooling": "none" if conv_q == 0 else "add" if conv_q == 1 else "conv",
        "causal": keys("MVIT.CAUSAL", False),
        "dropout": float(keys("MVIT.DROPOUT_RATE", 0.0)),
        "attention_dropout": float(keys("MVIT.DROP_ATTN_RATE", 0.0)),
        "drop_path": float(keys("MVIT.DROPPATH_RATE", 0.1)),
        "memory": _translate_memory(keys, boundary, keys("MVIT.DEPTH", 16)),
        "head": _translate_head(keys),
    }


def _translate_memory(keys: _Keys, boundary: Literal["mask", "zero"], depth: int) -> MemoryConfig:
    enabled = keys("MEMVIT.ENABLE", False)
    length = keys("MEMVIT.ATTN_MAX_LEN", 2) - 1
    if enabled and length < 1:
        raise ValueError(
            f"MEMVIT.ATTN_MAX_LEN: {length + 1} leaves no past clip to attend; it counts the current one too"
        )
    sampler = keys("MEMVIT.SAMPLER", "all")
    gap = re.fullmatch(r"all|gap([1-9]\d*)", sampler)
    if not gap:
        raise ValueError(f"MEMVIT.SAMPLER: {sampler!r} should be 'all' or 'gapN', as 'gap2'")
    excluded = keys("MEMVIT.EXCLUDE_LAYERS", ())
    compresses = keys("MEMVIT.COMPRESS.ENABLE", False)
    kernel, stride = keys("MEMVIT.COMPRESS.POOL_KERNEL", (3, 3, 3)), keys("MEMVIT.COMPRESS.POOL_STRIDE", (2, 2, 2))
    return MemoryConfig(
        length=length if enabled else 0,
        gap=int(gap[1] or 1),
        layers=tuple(i for i in range(depth) if i not in excluded),
        compression="pipelined" if compresses else "none",
        kernel=kernel,
        stride=stride,
        boundary=boundary if enabled else "mask",
    )


def _translate_head(keys: _Keys) -> HeadConfig:
    num_classes, several = keys("MODEL.NUM_CLASSES", 400), keys("MODEL.NUM_CLASSES_LIST", ())
    detection, frames = keys("DETECTION.ENABLE", False), keys("MVIT.FRAME_LEVEL", False)
    if detection and frames:
        raise ValueError("DETECTION.ENABLE and MVIT.FRAME_LEVEL contradict each other; switch one off")
    box = {
        "spatial_scale_factor": keys("DETECTION.SPATIAL_SCALE_FACTOR", 16),
        "box_aligned": keys("DETECTION.ALIGNED", True),
        "box_depth": keys("MVIT.BOX_DEPTH", 0),
        "box_dropout": float(keys("MVIT.BOX_DROPOUT_RATE", 0.0)),
        "box_attention_dropout": float(keys("MVIT.BOX_DROP_ATTN_RATE", 0.0)),
        "box_qkv_dropout": float(keys("MVIT.BOX_DROP_QKV_RATE", 0.0)),
        "box_drop_path": float(keys("MVIT.BOX_DROPPATH_RATE", 0.1)),
    }
    return HeadConfig(
        num_classes=several or (num_classes,),
        task="boxes" if detection else "frames" if frames else "clip",
        activation=keys("MODEL.HEAD_ACT", "softmax"),
        dropout=float(keys("MODEL.DROPOUT_RATE", 0.5)),
        **(box if detection else {}),
    )
