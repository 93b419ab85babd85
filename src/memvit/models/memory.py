"""Memory: what B streams remember, as a value that goes into the model and comes out (paper section 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from memvit.models.config import MemoryConfig, Size3
from memvit.models.layer_memory import TENSORS, LayerMemory, SlotMasks
from memvit.models.memory_kind import differences
from memvit.models.slots import append_slot


@dataclass
class Memory:
    """What B streams remember, in all memory layers. Made by `model.new_memory(B)`; every step returns a new one.

    It can be indexed and joined along streams (`memory[2:4]`, `Memory.cat`), moved, saved (`state_dict`), and streams that
    start another video are told so with `forget`.

    Attributes:
        layers: trunk block index -> its memory.
        box_layers: one memory per box-attention block.
        valid: bool (B, slots), oldest first: slots with a clip of the stream's current video.
        filled: bool (B, slots): slots with any clip, of an earlier video too (what boundary="zero" attends).
        box_counts: int (B, slots), box tokens of each clip; the tokens after them are padding of the tensor alone.
        clip_grid: token grid (time, height, width) of the clips; a memory serves clips of one size.
        kind: which models it is for, as text (`memory_kind`); empty: nothing is known of that.
    """

    layers: dict[int, LayerMemory]
    box_layers: tuple[LayerMemory, ...]
    valid: Tensor
    filled: Tensor
    box_counts: Tensor
    clip_grid: Size3
    kind: str = ""

    def __len__(self) -> int:
        return self.valid.shape[0]

    @property
    def batch_size(self) -> int:
        """Number of streams, B."""
        return self.valid.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.valid.device

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values; float32 where there are none."""
        layers = [*self.layers.values(), *self.box_layers]
        return layers[0].waiting_k.dtype if layers else torch.float32

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def forget(self, streams: Tensor | Sequence[bool]) -> Memory:
        """The memory in which some streams remember nothing, because they start a new video.

        Args:
            streams: bool (B,), True where a stream starts a new video.

        Raises:
            ValueError: not one bool per stream.
        """
        streams = torch.as_tensor(streams, device=self.device)
        if streams.dtype != torch.bool or streams.shape != (self.batch_size,):
            raise ValueError(
                f"forget needs one bool per stream, shape ({self.batch_size},), not {streams.dtype} {tuple(streams.shape)}"
            )
        keep = ~streams
        forgotten = self._map(lambda t: torch.where(streams.view(-1, *[1] * (t.dim() - 1)), torch.zeros_like(t), t))
        return dataclasses.replace(
            forgotten, valid=self.valid & keep[:, None], filled=self.filled, box_counts=self.box_counts
        )

    def __getitem__(self, streams: int | slice | Sequence[int] | Tensor) -> Memory:
        """The memory of some streams, B' of them; an int gives B' = 1."""
        if isinstance(streams, tuple):  # to a tensor, which streams of which slots
            streams = list(streams)
        elif isinstance(streams, Integral):  # of NumPy, too
            streams = int(streams)
            if not -self.batch_size <= streams < self.batch_size:
                raise IndexError(f"stream {streams} of a memory of {self.batch_size}")
            streams = slice(streams, streams + 1 or None)
        elif isinstance(streams, Tensor) and streams.dim() == 0:
            streams = streams[None]
        return self._map(lambda t: t[streams])

    def __iter__(self) -> Iterator[Memory]:
        return (self[i] for i in range(self.batch_size))

    @staticmethod
    def cat(memories: Sequence[Memory]) -> Memory:
        """Joins memories of the same model along streams.

        Raises:
            ValueError: none given, or of different models or clip sizes.
        """
        if not memories:
            raise ValueError("Memory.cat needs at least one memory")
        first = memories[0]
        if len(memories) == 1:
            return dataclasses.replace(first)
        for other in memories[1:]:
            first._check_alike(other)
        num_boxes = max((m.num_box_tokens for m in memories), default=0)
        memories = [m.with_box_tokens(num_boxes) for m in memories]
        return Memory._join(torch.cat, memories)

    def to(self, *args: Any, **kwargs: Any) -> Memory:
        """Moves or casts as `Tensor.to` does; a dtype applies to keys and values alone."""
        target = torch.empty(0, dtype=self.dtype, device=self.device).to(
            *args, **kwargs
        )  # understands all of `to`'s forms
        return self._map(lambda t: t.to(target.device, target.dtype if t.is_floating_point() else t.dtype))

    def detach(self) -> Memory:
        """Without autograd history."""
        return self._map(Tensor.detach)

    def tensors(self) -> list[Tensor]:
        """All tensors, those of `state_dict` and what is kept projected, in an order that memories of a model share."""
        of_layers = [t for layer in (*self.layers.values(), *self.box_layers) for t in layer.tensors()]
        return [*of_layers, self.valid, self.filled, self.box_counts]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Memory:
        """The same with other tensors, in the order of `tensors`."""
        rest = iter(tensors)
        return Memory(
            layers={i: layer.with_tensors(rest) for i, layer in self.layers.items()},
            box_layers=tuple([layer.with_tensors(rest) for layer in self.box_layers]),
            valid=next(rest),
            filled=next(rest),
            box_counts=next(rest),
            clip_grid=self.clip_grid,
            kind=self.kind,
        )

    def clone(self) -> Memory:
        """A copy that shares no storage."""
        return self._map(Tensor.clone)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, for `torch.save` or safetensors: each has storage of its own size.

        Besides, as tensors on the CPU, `clip_grid` and the bytes of `kind`, by which `load_state_dict` knows what it is given.
        """
        tensors = {name: _compact(tensor) for name, tensor in self._named_tensors().items()}
        clip_grid = torch.tensor(self.clip_grid, device="cpu")
        kind = torch.tensor(list(self.kind.encode()), dtype=torch.uint8, device="cpu")
        return {**tensors, "clip_grid": clip_grid, "kind": kind}

    def _named_tensors(self) -> dict[str, Tensor]:
        """Those of `state_dict`, as they are."""
        plain = {i: layer.plain() for i, layer in self.layers.items()}
        tensors = {f"layers.{i}.{name}": getattr(layer, name) for i, layer in plain.items() for name in TENSORS}
        tensors |= {
            f"box_layers.{i}.{name}": getattr(layer, name)
            for i, layer in enumerate(self.box_layers)
            for name in TENSORS
        }
        return {**tensors, "valid": self.valid, "filled": self.filled, "box_counts": self.box_counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Memory:
        """Takes over a saved state, in place, keeping this memory's device and dtype, and returns itself.

        What was saved in training goes on in inference mode, which keeps no clips as they were, and the other way round. What was
        saved before states had `clip_grid` and `kind` is told by names and shapes alone.

        Raises:
            ValueError: of another model, clip size or number of streams; nothing is changed then.
        """
        own = self._named_tensors()
        self._check_state(state, set(own))
        widest = max(
            (t.shape[2] for name, t in state.items() if name.startswith("box_layers") and "waiting" in name), default=0
        )
        own = self.with_box_tokens(max(widest, self.num_box_tokens))._named_tensors() if self.box_layers else own
        loaded = {}
        for name, tensor in own.items():
            new = state[name]
            if not _holds_the_same(name, own, state):
                raise ValueError(
                    f"the saved memory has {name} of shape {tuple(new.shape)}, this one {tuple(tensor.shape)}; make this one by "
                    "new_memory of the same model, for as many streams and clips of the same size"
                )
            loaded[name] = new.to(tensor.device, tensor.dtype, copy=True)
        filled = self._with_tensors(loaded)
        self.__dict__.update(filled.__dict__)
        return self

    def _check_state(self, state: Mapping[str, Tensor], names: set[str]) -> None:
        """Refuses what says that it is of another model or clip size, or has other tensors than those named."""
        if "kind" in state:
            differing = differences(self.kind, bytes(state["kind"].tolist()).decode())
            if differing:
                raise ValueError(
                    f"the saved memory is of another model: {'; '.join(differing)}; load it into new_memory of that model, or "
                    "begin with new_memory alone"
                )
        odd = sorted((set(state) - {"clip_grid", "kind"}) ^ names)
        if odd:
            raise ValueError(
                f"the saved memory is of another model, for only one of both has {', '.join(odd[:4])}"
                f"{' ...' if len(odd) > 4 else ''}; begin with new_memory alone"
            )
        grid = tuple(state["clip_grid"].tolist()) if "clip_grid" in state else self.clip_grid
        if self.layers and grid != self.clip_grid:
            raise ValueError(
                f"the saved memory is of clips with token grid {grid} (time, height, width), this one of {self.clip_grid}; give "
                "new_memory the num_frames, height and width of those clips"
            )

    @property
    def num_box_tokens(self) -> int:
        """Box tokens per clip that the tensors have room for; 0 without box memory."""
        return self.box_layers[0].waiting_k.shape[2] if self.box_layers else 0

    def slot_masks(self, config: MemoryConfig) -> SlotMasks:
        """Which slots count, under the config's boundary mode."""
        seen = self.filled if config.boundary == "zero" else self.valid
        return SlotMasks(self.valid, seen[:, :: config.gap])

    def with_box_tokens(self, num: int) -> Memory:
        """The same memory with room for at least `num` box tokens per clip."""
        missing = num - self.num_box_tokens
        if missing <= 0 or not self.box_layers:
            return self
        grown = tuple(layer.map(lambda t: torch.nn.functional.pad(t, (0, 0, 0, missing))) for layer in self.box_layers)
        return dataclasses.replace(self, box_layers=grown)

    def advance(self, layers: dict[int, LayerMemory], box_layers: Sequence[LayerMemory], box_counts: Tensor) -> Memory:
        """The memory after a step: every stream's newest slot is now filled and valid."""
        new = self.valid.new_ones(self.batch_size, 1)
        return Memory(
            layers=layers,
            box_layers=tuple(box_layers),
            valid=append_slot(self.valid, new),
            filled=append_slot(self.filled, new),
            box_counts=append_slot(self.box_counts, box_counts[:, None]),
            clip_grid=self.clip_grid,
            kind=self.kind,
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Memory:
        return Memory._join(lambda tensors: function(tensors[0]), [self])

    @staticmethod
    def _join(function: Callable[[list[Tensor]], Tensor], memories: Sequence[Memory]) -> Memory:
        """Applies a function to each tensor of all memories."""
        first = memories[0]
        num_box_layers = range(len(first.box_layers))
        return Memory(
            layers={i: LayerMemory.join(function, [m.layers[i] for m in memories]) for i in first.layers},
            box_layers=tuple(LayerMemory.join(function, [m.box_layers[i] for m in memories]) for i in num_box_layers),
            valid=function([m.valid for m in memories]),
            filled=function([m.filled for m in memories]),
            box_counts=function([m.box_counts for m in memories]),
            clip_grid=first.clip_grid,
            kind=first.kind,
        )

    def _with_tensors(self, tensors: Mapping[str, Tensor]) -> Memory:
        def layer(prefix: str) -> LayerMemory:
            waiting_k, waiting_v, compressed_k, compressed_v = (tensors[f"{prefix}.{name}"] for name in TENSORS)
            return LayerMemory(waiting_k, waiting_v, compressed_k, compressed_v)

        return Memory(
            layers={i: layer(f"layers.{i}") for i in self.layers},
            box_layers=tuple(layer(f"box_layers.{i}") for i in range(len(self.box_layers))),
            valid=tensors["valid"],
            filled=tensors["filled"],
            box_counts=tensors["box_counts"],
            clip_grid=self.clip_grid,
            kind=self.kind,
        )

    def _check_alike(self, other: Memory) -> None:
        if differing := differences(self.kind, other.kind):
            raise ValueError(
                f"memories of different models cannot be joined: {'; '.join(differing)}; join those of one model"
            )
        if self.clip_grid != other.clip_grid:
            raise ValueError(
                "memories of clips of different sizes cannot be joined: "
                f"token grids {self.clip_grid} and {other.clip_grid}; join those of one size"
            )
        layers = zip(self.layers.values(), other.layers.values(), strict=False)
        if any(a.waiting_k.shape[1] != b.waiting_k.shape[1] for a, b in layers):
            raise ValueError(
                "a memory of inference mode, which keeps no clip as it was, cannot be joined with one of another mode: make them "
                "in the same mode"
            )


def _holds_the_same(name: str, own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether one of a memory's tensors holds as much in two memories; waiting and compressed slots count together."""
    partner = name
    if name.startswith("layers."):
        was, is_now = ("waiting", "compressed") if "waiting" in name else ("compressed", "waiting")
        partner = name.replace(was, is_now)

    def size(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
        num_slots = tensors[name].shape[1] + (tensors[partner].shape[1] if partner != name else 0)
        return tensors[name].shape[0], num_slots, *tensors[name].shape[2:]

    return own[name].dim() == other[name].dim() and size(own) == size(other)


def _compact(tensor: Tensor) -> Tensor:
    """The tensor with no more memory than it needs: files keep all that it is a part of."""
    num_bytes = tensor.numel() * tensor.element_size()
    return (
        tensor
        if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == num_bytes
        else tensor.contiguous().clone()
    )
