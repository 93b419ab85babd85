"""What a model is, as plain data: frozen dataclasses that a JSON file or a keyword argument can fill.

The names follow the paper (Wu et al., CVPR 2022) and the field; `slowfast.py` translates the authors' YAML keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

Size3 = tuple[int, int, int]  # time, height, width

LAYER_PLACEMENTS = ("all", "early", "middle", "late", "uniform")
ACTION = "action"  # what the classes of several heads make together; no head of theirs is called so


@dataclass(frozen=True)
class MemoryConfig:
    """What the model remembers and which layers look back (paper section 4).

    Attributes:
        length: past clips attended by each memory layer, M. 0 switches memory off.
        gap: attend every `gap`-th past clip, counted back from `gap` clips ago. 1 attends the newest M.
        layers: the blocks that have memory: indices, or "all", "early", "middle", "late" (half of the blocks each) or
            "uniform" (every other block, beginning with the first; the paper's choice).
        compression: "pipelined" (the paper's: one past clip is compressed per step), "joint" (all of them, at every
            step; the paper's baseline) or "none".
        kernel: kernel of the compressing convolution, (time, height, width).
        stride: its stride, that is, by how much memory shrinks along each axis.
        boundary: what a clip sees of another video. "mask": nothing. "zero": zeros that stay attended, as the authors'
            release does when it batches streams; only to reproduce its runs.
    """

    length: int = 0
    gap: int = 1
    layers: tuple[int, ...] | str = "uniform"
    compression: Literal["pipelined", "joint", "none"] = "pipelined"
    kernel: Size3 = (7, 3, 3)
    stride: Size3 = (4, 2, 2)
    boundary: Literal["mask", "zero"] = "mask"

    def __post_init__(self) -> None:
        _require_whole("memory.length", self.length, least=0)
        _require_whole("memory.gap", self.gap)
        _require_choice("memory.compression", self.compression, ("pipelined", "joint", "none"))
        _require_choice("memory.boundary", self.boundary, ("mask", "zero"))
        _require_size3("memory.kernel", self.kernel)
        _require_size3("memory.stride", self.stride)
        if isinstance(self.layers, str):
            _require_choice("memory.layers", self.layers, LAYER_PLACEMENTS)
        if self.length and self.boundary == "zero" and self.compression != "pipelined":
            raise ValueError(
                f"memory.boundary='zero' reproduces the release's pipelined compression and does not exist with "
                f"memory.compression={self.compression!r}; use boundary='mask'"
            )

    @property
    def num_slots(self) -> int:
        """Past clips kept per memory layer: M x gap."""
        return self.length * self.gap

    @property
    def compresses(self) -> bool:
        """Whether remembered keys and values are compressed at all."""
        return self.compression != "none"


@dataclass(frozen=True)
class HeadConfig:
    """What is predicted from the tokens.

    Attributes:
        num_classes: classes of each head; an int means one head.
        task: "clip" (one prediction a clip), "frames" (one per token time) or "boxes" (one per box).
        activation: turns logits into scores outside the model: "softmax" or "sigmoid".
        dropout: before the last Linear.
        class_names: per head, the names of its classes; empty where unknown.
        names: what the heads are called, say "verb" and "noun"; empty where unknown.
        anticipation_s: the model says what goes on so many seconds after the end of what it has seen; 0: it recognises.
        spatial_scale_factor: input pixels per token of the last block, for RoIAlign.
        box_depth: attention blocks over the boxes of a clip, with box memory.
        max_boxes: box tokens per clip; fewer boxes are padded with zero vectors, more enlarge it.
        box_dropout, box_attention_dropout, box_qkv_dropout, box_drop_path: rates inside those blocks.
    """

    num_classes: tuple[int, ...] = (400,)
    task: Literal["clip", "frames", "boxes"] = "clip"
    activation: Literal["softmax", "sigmoid"] = "softmax"
    dropout: float = 0.5
    class_names: tuple[tuple[str, ...], ...] = ()
    names: tuple[str, ...] = ()
    anticipation_s: float = 0.0
    spatial_scale_factor: int = 32
    box_aligned: bool = True
    box_depth: int = 0
    max_boxes: int = 100
    box_dropout: float = 0.0
    box_attention_dropout: float = 0.0
    box_qkv_dropout: float = 0.0
    box_drop_path: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.num_classes, int):
            object.__setattr__(self, "num_classes", (self.num_classes,))
        _require(len(self.num_classes) > 0, "head.num_classes", self.num_classes, "needs at least one head")
        for num in self.num_classes:
            _require(_is_whole(num), "head.num_classes", self.num_classes, "every head needs at least one class")
        _require_whole("head.spatial_scale_factor", self.spatial_scale_factor)
        _require_whole("head.max_boxes", self.max_boxes)
        _require_whole("head.box_depth", self.box_depth, least=0)
        _require_choice("head.task", self.task, ("clip", "frames", "boxes"))
        _require_choice("head.activation", self.activation, ("softmax", "sigmoid"))
        _require(self.box_depth == 0 or self.task == "boxes", "head.box_depth", self.box_depth, "needs task='boxes'")
        if self.class_names:
            counts = tuple(len(names) for names in self.class_names)
            _require(
                counts == self.num_classes,
                "head.class_names",
                counts,
                f"names do not match num_classes={self.num_classes}",
            )
        if self.names:
            self._check_names()
        ahead_s = self.anticipation_s
        _require(_is_duration(ahead_s), "head.anticipation_s", ahead_s, "must be seconds, 0 or more")
        _require(not ahead_s or self.task != "boxes", "head.anticipation_s", ahead_s, "needs task 'clip' or 'frames'")
        for name in ("dropout", "box_dropout", "box_attention_dropout", "box_qkv_dropout", "box_drop_path"):
            _require_rate(f"head.{name}", getattr(self, name))

    def _check_names(self) -> None:
        num_heads, names = len(self.num_classes), self.names
        is_named = len(names) == num_heads and all(isinstance(name, str) and name for name in names)
        _require(is_named, "head.names", names, f"{num_heads} heads (num_classes={self.num_classes}) need a name each")
        _require(len(set(names)) == num_heads, "head.names", names, "two heads have one name")
        if num_heads > 1:
            _require(ACTION not in names, "head.names", names, f"{ACTION!r} is what the heads say together")


@dataclass(frozen=True)
class MViTConfig:
    """A multiscale vision transformer, with or without memory. The defaults are MeMViT-16 16x4 without memory.

    Attributes:
        num_frames, sampling_rate, crop_size: a clip is `num_frames` frames, every `sampling_rate`-th of the video, of
            `crop_size` x `crop_size` pixels. Other sizes can be fed: positions are resized.
        fps: the frame rate that `sampling_rate` refers to.
        mean, std: per RGB channel, in 0..1, how clips are normalised.
        patch_kernel, patch_stride, patch_padding: the patch embedding's convolution.
        embed_dim, num_heads: width and heads of the first block; `dim_mul` and `head_mul` list (block, factor).
        widen_in_attention: the attention of the block that `dim_mul` names outputs the new width; otherwise the MLP of
            the block before does (DIM_MUL_IN_ATT).
        pool_mode: "conv" (one filter bank shared by heads), "conv_unshared", "avg" or "max".
        pool_kernel: kernel of query, key and value pooling; None: stride + 1 along strided axes, 1 along others.
        q_strides: (block, stride_t, stride_h, stride_w) of query pooling. Blocks not listed do not pool queries.
        kv_stride_adaptive: key/value stride of the first block, divided by the query strides so far; None: `kv_strides`
            lists them as `q_strides` does.
        pool_first: pool, then project. Memory requires it.
        separate_qkv: three Linears instead of one where projection comes first.
        residual_pooling: "none", "add" (the pooled query is added to attention's result) or "conv" (after a convolution).
        absolute_positions: "none", "joint" (one table) or "separate" (space, time and class token).
        causal: a token time sees nothing later in its clip (paper section 5.3).
    """

    num_frames: int = 16
    sampling_rate: int = 4
    crop_size: int = 224
    fps: float = 30.0
    in_channels: int = 3
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)

    patch_kernel: Size3 = (3, 7, 7)
    patch_stride: Size3 = (2, 4, 4)
    patch_padding: Size3 = (1, 3, 3)
    class_token: bool = True
    norm_stem: bool = False
    absolute_positions: Literal["none", "joint", "separate"] = "none"
    relative_positions_spatial: bool = True
    relative_positions_temporal: bool = True

    depth: int = 16
    embed_dim: int = 96
    num_heads: int = 1
    dim_mul: tuple[tuple[int, float], ...] = ((1, 2.0), (3, 2.0), (14, 2.0))
    head_mul: tuple[tuple[int, float], ...] = ((1, 2.0), (3, 2.0), (14, 2.0))
    widen_in_attention: bool = True
    mlp_ratio: float = 4.0
    qkv_bias: bool = True

    pool_mode: Literal["conv", "conv_unshared", "avg", "max"] = "conv"
    pool_kernel: Size3 | None = (3, 3, 3)
    q_strides: tuple[tuple[int, int, int, int], ...] = tuple(
        (i, 1, 2, 2) if i in (1, 3, 14) else (i, 1, 1, 1) for i in range(16)
    )
    kv_stride_adaptive: Size3 | None = (1, 8, 8)
    kv_strides: tuple[tuple[int, int, int, int], ...] = ()
    pool_first: bool = True
    separate_qkv: bool = False
    residual_pooling: Literal["none", "add", "conv"] = "add"
    causal: bool = False

    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.1

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        for name in ("num_frames", "sampling_rate", "crop_size", "in_channels", "depth", "embed_dim", "num_heads"):
            _require_whole(name, getattr(self, name))
        _require(self.fps > 0, "fps", self.fps, "must be positive")
        _require(self.mlp_ratio > 0, "mlp_ratio", self.mlp_ratio, "must be positive")
        for name in ("patch_kernel", "patch_stride"):
            _require_size3(name, getattr(self, name))
        _require_size3("patch_padding", self.patch_padding, least=0)
        if self.pool_kernel is not None:
            _require_size3("pool_kernel", self.pool_kernel)
        if self.kv_stride_adaptive is not None:
            _require_size3("kv_stride_adaptive", self.kv_stride_adaptive)
            _require(
                not self.kv_strides, "kv_strides", self.kv_strides, "contradicts kv_stride_adaptive; give one of them"
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            is_complete = isinstance(value, Sequence) and len(value) == self.in_channels and all(map(_is_number, value))
            _require(is_complete, name, value, f"needs one value per channel, {self.in_channels} in all")
        _require(all(s > 0 for s in self.std), "std", self.std, "must be positive")
        _require_choice("pool_mode", self.pool_mode, ("conv", "conv_unshared", "avg", "max"))
        _require_choice("residual_pooling", self.residual_pooling, ("none", "add", "conv"))
        _require_choice("absolute_positions", self.absolute_positions, ("none", "joint", "separate"))
        for name in ("dropout", "attention_dropout", "drop_path"):
            _require_rate(name, getattr(self, name))
        _require(
            self.num_times >= 1, "num_frames", self.num_frames, f"fewer than the patch stride {self.patch_stride[0]}"
        )
        for name, num in (("dim_mul", 2), ("head_mul", 2), ("q_strides", 4), ("kv_strides", 4)):
            for entry in getattr(self, name):
                form = "(block, factor)" if num == 2 else "(block, stride_t, stride_h, stride_w)"
                _require(isinstance(entry, tuple) and len(entry) == num, name, entry, f"needs entries {form}")
                _require(0 <= entry[0] < self.depth, name, entry, f"names a block outside 0..{self.depth - 1}")
                _require(all(x > 0 for x in entry[1:]), name, entry, "factors and strides must be positive")
        _require(
            self.embed_dim % self.num_heads == 0,
            "embed_dim",
            self.embed_dim,
            f"not divisible by {self.num_heads} heads",
        )
        self._check_combinations()
        if not isinstance(self.memory.layers, str):
            outside = [layer for layer in self.memory.layers if not 0 <= layer < self.depth]
            _require(
                not outside, "memory.layers", self.memory.layers, f"names blocks outside 0..{self.depth - 1}: {outside}"
            )

    def _check_combinations(self) -> None:
        if self.memory.length and not self.pool_first:
            raise ValueError("memory needs pool_first=True: what is remembered are keys and values before projection")
        if self.pool_mode == "conv_unshared" and not self.pool_first:
            raise ValueError("pool_mode='conv_unshared' needs pool_first=True")
        if self.causal and (self.pool_mode in ("avg", "max") or self.residual_pooling == "conv"):
            raise ValueError(
                f"causal=True would leak the future through pool_mode={self.pool_mode!r}, "
                f"residual_pooling={self.residual_pooling!r}; use pool_mode='conv' and residual_pooling 'add' or 'none'"
            )
        if self.causal and any(entry[1] > 1 for entry in self.q_strides):
            raise ValueError("causal=True would leak the future through the shortcut of queries strided in time")
        has_residual = bool(self.q_strides) or self.residual_pooling == "conv"
        if self.pool_kernel is not None and has_residual and any(k % 2 == 0 for k in self.pool_kernel):
            raise ValueError(
                f"pool_kernel={self.pool_kernel!r}: needs odd numbers where queries are pooled (q_strides, "
                "residual_pooling='conv'); after even ones their number is not that of the tokens that join them"
            )
        if not self.widen_in_attention and any(block == 0 for block, _ in self.dim_mul):
            raise ValueError(
                "dim_mul names block 0, which no block before it can widen; use widen_in_attention or embed_dim"
            )

    @property
    def memory_layers(self) -> tuple[int, ...]:
        """The blocks that keep memory; none where memory is off."""
        if self.memory.length == 0:
            return ()
        layers = self.memory.layers
        return place_memory(layers, self.depth) if isinstance(layers, str) else tuple(sorted(set(layers)))

    @property
    def num_times(self) -> int:
        """Token times of a clip, as the tables of temporal positions count them."""
        return self.num_frames // self.patch_stride[0]

    @property
    def frame_period_s(self) -> float:
        """Seconds between two sampled frames."""
        return self.sampling_rate / self.fps

    @property
    def clip_duration_s(self) -> float:
        """Seconds that one clip covers."""
        return self.num_frames * self.frame_period_s

    @property
    def support_clips(self) -> int:
        """How many clips back an input can change the output: memory layers (box layers too) x M x gap."""
        layers = len(self.memory_layers) + (self.head.box_depth if self.memory.length else 0)
        return layers * self.memory.num_slots

    @property
    def support_s(self) -> float:
        """Temporal support in seconds for clips that follow one another, the current clip included."""
        return (self.support_clips + 1) * self.clip_duration_s

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` restores it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MViTConfig:
        """Restores a config from `to_dict`'s data.

        Raises:
            ValueError: an unknown field, or values that contradict one another.
        """
        values = dict(data)
        memory = _build(MemoryConfig, values.pop("memory", {}), "memory.")
        head = _build(HeadConfig, values.pop("head", {}), "head.")
        return _build(cls, {**values, "memory": memory, "head": head}, "")

    def replace(self, **overrides: Any) -> MViTConfig:
        """A copy with some fields changed, whichever part they belong to.

        A name is a field of `MViTConfig`, `memory_` + a field of `MemoryConfig`, or a field of `HeadConfig`, so
        `replace(depth=8, memory_length=4, num_classes=97)` needs no nesting. Other `num_classes` drop the `class_names`, and
        another number of heads drops their `names`, unless they are given too. `memory` and `head` replace that part as a
        whole, by a `MemoryConfig` or `HeadConfig` or a dict of its fields; those left out take their defaults.

        Raises:
            ValueError: an unknown name, a value of the wrong type, or values that contradict one another.
        """
        trunk: dict[str, Any] = {}
        memory: dict[str, Any] = {}
        head: dict[str, Any] = {}
        for name, value in overrides.items():
            if name in _PARTS:
                trunk[name] = value if isinstance(value, _PARTS[name]) else _build(_PARTS[name], value, f"{name}.")
            elif name in _field_names(MViTConfig):
                trunk[name] = _as_tuples(value)
            elif name.removeprefix("memory_") in _field_names(MemoryConfig) and name.startswith("memory_"):
                memory[name.removeprefix("memory_")] = _as_tuples(value)
            elif name.removeprefix("head_") in _field_names(HeadConfig):
                head[name.removeprefix("head_")] = _as_tuples(value)
            else:
                known = sorted(_field_names(MViTConfig) | _field_names(HeadConfig))
                known += [f"memory_{field_name}" for field_name in sorted(_field_names(MemoryConfig))]
                raise ValueError(f"unknown model option {name!r}; options are {', '.join(known)}")
        if "num_classes" in head:
            num_heads = len(head["num_classes"]) if isinstance(head["num_classes"], tuple) else 1
            head.setdefault("class_names", ())
            if num_heads != len(trunk.get("head", self.head).names):
                head.setdefault("names", ())
        try:
            if memory:
                trunk["memory"] = dataclasses.replace(trunk.get("memory", self.memory), **memory)
            if head:
                trunk["head"] = dataclasses.replace(trunk.get("head", self.head), **head)
            return dataclasses.replace(self, **trunk)
        except TypeError as error:
            raise ValueError(f"a model option has a value of the wrong type: {error}") from error


_PARTS: dict[str, type] = {"memory": MemoryConfig, "head": HeadConfig}


def place_memory(placement: str, depth: int) -> tuple[int, ...]:
    """The blocks of a named placement, as in the paper's ablation (table 4c).

    Args:
        placement: "all"; "early", "middle" or "late" (that half of the blocks); "uniform" (every other block).
        depth: number of blocks.

    Raises:
        ValueError: an unknown name.
    """
    half = depth // 2
    quarter = (depth - half) // 2
    placements = {
        "all": range(depth),
        "early": range(half),
        "middle": range(quarter, quarter + half),
        "late": range(depth - half, depth),
        "uniform": range(0, depth, 2),
    }
    _require_choice("memory.layers", placement, tuple(placements))
    return tuple(placements[placement])


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'the model config'} must be a mapping, not {type(values).__name__}")
    unknown = sorted(set(values) - _field_names(cls))
    if unknown:
        raise ValueError(
            f"unknown field{'s' if len(unknown) > 1 else ''} {', '.join(prefix + name for name in unknown)} in the model "
            f"config; {cls.__name__} has {', '.join(sorted(_field_names(cls)))}"
        )
    try:
        return cls(
            **{name: value if dataclasses.is_dataclass(value) else _as_tuples(value) for name, value in values.items()}
        )
    except TypeError as error:
        raise ValueError(f"the model config has a value of the wrong type: {error}") from error


def _field_names(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _require(condition: bool, name: str, value: object, why: str) -> None:
    if not condition:
        raise ValueError(f"{name}={value!r}: {why}")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    _require(value in choices, name, value, f"must be one of {', '.join(choices)}")


def _is_whole(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_duration(value: object) -> bool:
    return _is_number(value) and 0 <= value < math.inf


def _require_whole(name: str, value: object, least: int = 1) -> None:
    _require(_is_whole(value, least), name, value, f"must be a whole number, {least} or more")


def _require_rate(name: str, value: float) -> None:
    _require(0 <= value < 1, name, value, "a rate must be at least 0 and below 1")


def _require_size3(name: str, value: Size3, least: int = 1) -> None:
    ok = isinstance(value, tuple) and len(value) == 3 and all(_is_whole(n, least) for n in value)
    _require(ok, name, value, f"needs three whole numbers (time, height, width) of at least {least}")
