"""Memory: what B streams remember, as a value that goes into the model and comes out (paper section 4).

Per memory layer it holds keys and values of past clips, before projection, in a fixed number of slots, oldest first. With
pipelined compression the newest `gap` clips wait uncompressed; an entry is compressed when it is first attended, inside
that step's graph, so that the compression learns, and the result replaces it for good. So a step compresses one past clip,
whatever the memory length. Where no gradients are wanted, the older clips are kept projected as well (`Projected`), and a step
projects one past clip too: what is remembered costs its attention and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memvit.kernels.frozen import Stamp
from memvit.models.config import MemoryConfig, Size3

Compress = Callable[[Tensor], Tensor]

TENSORS = ("waiting_k", "waiting_v", "compressed_k", "compressed_v")


def _identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Projected:
    """Older clips of one layer as attention takes them, kept beside what they follow from: at inference, weights stay.

    Attributes:
        k, v: (B, slots - gap, N', attention_dim), compressed and projected, oldest first.
        stamp: of the weights that made them; None: they serve whatever the weights are (empty slots, compiled models).
    """

    k: Tensor
    v: Tensor
    stamp: Stamp | None


@dataclass(frozen=True)
class LayerMemory:
    """What one layer remembers of B streams; slots run from the oldest clip to the newest.

    Attributes:
        waiting_k, waiting_v: (B, slots, N, dim), the newest clips, as they were.
        compressed_k, compressed_v: (B, slots, N', dim), the older clips; no slots unless compression is pipelined.
        projected: the clips but the newest `gap` ones, projected; None where they have to be projected when they are attended.
    """

    waiting_k: Tensor
    waiting_v: Tensor
    compressed_k: Tensor
    compressed_v: Tensor
    projected: Projected | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> LayerMemory:
        """Applies a function to all tensors."""
        return LayerMemory.join(lambda tensors: function(tensors[0]), [self])

    def __getstate__(self) -> dict[str, Any]:
        # Stamps mean nothing in another process: there, or in a copy, what is projected is worked out anew.
        return {**{name: getattr(self, name) for name in TENSORS}, "projected": None}

    @staticmethod
    def join(function: Callable[[list[Tensor]], Tensor], layers: Sequence[LayerMemory]) -> LayerMemory:
        """Applies a function to each of the tensors that the layers have in common."""
        waiting_k, waiting_v, compressed_k, compressed_v = (
            function([getattr(layer, name) for layer in layers]) for name in TENSORS
        )
        projected = [layer.projected for layer in layers if layer.projected is not None]
        joined = None
        if len(projected) == len(layers) and len({p.stamp for p in projected if p.stamp is not None}) <= 1:
            stamp = next((p.stamp for p in projected if p.stamp is not None), None)
            joined = Projected(function([p.k for p in projected]), function([p.v for p in projected]), stamp)
        return LayerMemory(waiting_k, waiting_v, compressed_k, compressed_v, joined)

    def attend(
        self,
        config: MemoryConfig,
        valid: Tensor,
        compress_k: Compress = _identity,
        compress_v: Compress = _identity,
    ) -> Attended:
        """The keys and values that this step looks back at, and what is kept of them.

        Args:
            valid: bool (B, M x gap), which slots hold a clip of the stream's own video.
            compress_k, compress_v: (n, N, dim) -> (n, N', dim); left out where nothing is compressed.
        """
        gap = config.gap
        if config.compression != "pipelined":
            k, v = self.waiting_k[:, ::gap], self.waiting_v[:, ::gap]  # ages M*gap, ..., 2*gap, gap
            if config.compression == "joint":
                k, v = _per_clip(compress_k, k), _per_clip(compress_v, v)
            return Attended(k, v, self.compressed_k, self.compressed_v)
        first_k, first_v = compress_k(self.waiting_k[:, 0])[:, None], compress_v(self.waiting_v[:, 0])[:, None]
        # A forgotten clip is zeros before compression, which the compression turns into its bias: that is what the
        # release attends one step later, and zeros after that. Under boundary="mask" neither is seen.
        is_valid = valid[:, -gap, None, None, None]
        kept_k, kept_v = first_k * is_valid, first_v * is_valid
        if gap > 1:
            first_k, first_v = kept_k, kept_v
        return Attended(
            torch.cat([self.compressed_k[:, ::gap].to(first_k.dtype), first_k], dim=1),
            torch.cat([self.compressed_v[:, ::gap].to(first_v.dtype), first_v], dim=1),
            _append(self.compressed_k, kept_k),
            _append(self.compressed_v, kept_v),
        )

    def attend_projected(
        self,
        config: MemoryConfig,
        valid: Tensor,
        compress_k: Compress,
        compress_v: Compress,
        project_k: Compress,
        project_v: Compress,
        stamp: Stamp | None,
    ) -> Attended:
        """What `attend` gives, projected, where the weights stay as they are and boundaries are masked.

        Args:
            project_k, project_v: (n, N', dim) -> (n, N', attention_dim).
            stamp: of the weights; what other weights have projected is projected anew.
        """
        gap, pipelined = config.gap, config.compression == "pipelined"
        older = self.projected
        if older is None or (older.stamp is not None and older.stamp != stamp):
            older_k = self.compressed_k if pipelined else _per_clip(compress_k, self.waiting_k[:, :-gap])
            older_v = self.compressed_v if pipelined else _per_clip(compress_v, self.waiting_v[:, :-gap])
            older = Projected(_per_clip(project_k, older_k), _per_clip(project_v, older_v), stamp)
        first_k, first_v = compress_k(self.waiting_k[:, -gap]), compress_v(self.waiting_v[:, -gap])
        new_k, new_v = project_k(first_k)[:, None], project_v(first_v)[:, None]
        k = torch.cat([older.k.to(new_k.dtype), new_k], dim=1)
        v = torch.cat([older.v.to(new_v.dtype), new_v], dim=1)
        kept_k, kept_v = self.compressed_k, self.compressed_v
        if pipelined:
            is_valid = valid[:, -gap, None, None]
            kept_k, kept_v = (
                _append(kept_k, (first_k * is_valid)[:, None]),
                _append(kept_v, (first_v * is_valid)[:, None]),
            )
        kept = [_as_before(new[:, 1:], old) for new, old in ((k, older.k), (v, older.v))]
        projected = Projected(kept[0], kept[1], stamp)
        return Attended(k[:, ::gap], v[:, ::gap], kept_k, kept_v, projected)

    def append(self, k: Tensor, v: Tensor, attended: Attended) -> LayerMemory:
        """The memory after this clip, whose keys and values (B, N, dim) enter the newest slot, detached."""
        return LayerMemory(
            _append(self.waiting_k, k[:, None]),
            _append(self.waiting_v, v[:, None]),
            attended.kept_compressed_k,
            attended.kept_compressed_v,
            attended.projected,
        )

    def skip(self, config: MemoryConfig, valid: Tensor) -> LayerMemory:
        """The memory of an uncompressed layer after a clip of which there is nothing to remember."""
        nothing = torch.zeros_like(self.waiting_k[:, 0])
        return self.append(nothing, nothing, self.attend(config, valid))


@dataclass(frozen=True)
class Attended:
    """One layer's view of the past in one step.

    Attributes:
        k, v: (B, M, N', dim), oldest first, in this step's graph; (B, M, N', attention_dim) where they are projected.
        kept_compressed_k, kept_compressed_v: the compressed slots after this step, detached.
        projected: the projected slots after this step, if they are kept.
    """

    k: Tensor
    v: Tensor
    kept_compressed_k: Tensor
    kept_compressed_v: Tensor
    projected: Projected | None = None


@dataclass(frozen=True)
class SlotMasks:
    """Which slots count in one step, for all layers.

    Attributes:
        valid: bool (B, slots), oldest first: slots with a clip of the stream's own video.
        seen: bool (B, M), the attended clips that take part in the softmax.
    """

    valid: Tensor
    seen: Tensor


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
    """

    layers: dict[int, LayerMemory]
    box_layers: tuple[LayerMemory, ...]
    valid: Tensor
    filled: Tensor
    box_counts: Tensor
    clip_grid: Size3

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
        sizes: list[int] = []

        def count(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        self._map(count)
        return sum(sizes)

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
        if isinstance(streams, int):
            if not -self.batch_size <= streams < self.batch_size:
                raise IndexError(f"stream {streams} of a memory of {self.batch_size}")
            streams = slice(streams, streams + 1 or None)
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

    def clone(self) -> Memory:
        """A copy that shares no storage."""
        return self._map(Tensor.clone)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, for `torch.save` or safetensors."""
        tensors = {f"layers.{i}.{name}": getattr(layer, name) for i, layer in self.layers.items() for name in TENSORS}
        tensors |= {
            f"box_layers.{i}.{name}": getattr(layer, name)
            for i, layer in enumerate(self.box_layers)
            for name in TENSORS
        }
        return {**tensors, "valid": self.valid, "filled": self.filled, "box_counts": self.box_counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Memory:
        """Takes over a saved state, in place, keeping this memory's device and dtype, and returns itself.

        Raises:
            ValueError: names or shapes of another model, clip size or number of streams; nothing is changed then.
        """
        own = self.state_dict()
        if set(state) != set(own):
            odd = sorted(set(state) ^ set(own))
            raise ValueError(
                f"the saved memory is of another model: {', '.join(odd[:4])} {'...' if len(odd) > 4 else ''}"
            )
        widest = max(
            (t.shape[2] for name, t in state.items() if name.startswith("box_layers") and "waiting" in name), default=0
        )
        own = self.with_box_tokens(max(widest, self.num_box_tokens)).state_dict() if self.box_layers else own
        loaded = {}
        for name, tensor in own.items():
            new = state[name]
            if new.shape != tensor.shape:
                raise ValueError(
                    f"the saved memory has {name} of shape {tuple(new.shape)}, this one {tuple(tensor.shape)}"
                )
            loaded[name] = new.to(tensor.device, tensor.dtype, copy=True)
        filled = self._with_tensors(loaded)
        self.__dict__.update(filled.__dict__)
        return self

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
            valid=_append(self.valid, new),
            filled=_append(self.filled, new),
            box_counts=_append(self.box_counts, box_counts[:, None]),
            clip_grid=self.clip_grid,
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
        )

    def _check_alike(self, other: Memory) -> None:
        ours, theirs = self.state_dict(), other.state_dict()
        alike = self.clip_grid == other.clip_grid and set(ours) == set(theirs)
        for name, tensor in ours.items():
            is_box = name.startswith("box_layers")
            alike = alike and tensor.dim() == theirs[name].dim() and tensor.shape[1] == theirs[name].shape[1]
            alike = alike and (is_box or tensor.shape[1:] == theirs[name].shape[1:])
        if not alike:
            raise ValueError(
                "memories of different models or clip sizes cannot be joined "
                f"(token grids {self.clip_grid} and {other.clip_grid})"
            )


def empty_layer(
    config: MemoryConfig,
    batch_size: int,
    num_tokens: int,
    num_compressed_tokens: int,
    dim: int,
    like: Tensor,
    projected_dim: int | None = None,
) -> LayerMemory:
    """The memory of one layer that has seen nothing: zeros in every slot.

    Args:
        num_tokens, num_compressed_tokens: tokens that one clip leaves, before and after compression.
        like: a tensor with the wanted dtype and device.
        projected_dim: width of projected keys and values; None: they are not kept.
    """
    pipelined = config.compression == "pipelined"
    num_waiting = min(config.gap, config.num_slots) if pipelined else config.num_slots
    waiting = like.new_zeros(batch_size, num_waiting, num_tokens, dim)
    compressed = like.new_zeros(batch_size, config.num_slots - num_waiting, num_compressed_tokens, dim)
    projected = None
    if projected_dim is not None:
        slots = like.new_zeros(batch_size, config.num_slots - config.gap, num_compressed_tokens, projected_dim)
        projected = Projected(slots, slots.clone(), None)
    return LayerMemory(waiting, waiting.clone(), compressed, compressed.clone(), projected)


def _append(slots: Tensor, new: Tensor) -> Tensor:
    """Drops the oldest slot and puts `new`, (B, 1, ...), behind the newest; no slots stay no slots."""
    if slots.shape[1] == 0:
        return slots
    if slots.shape[1] == 1:
        return new.detach().to(slots.dtype)
    return torch.cat([slots[:, 1:], new.detach().to(slots.dtype)], dim=1)


def _as_before(new: Tensor, old: Tensor) -> Tensor:
    """A compiled step is compiled again if what it returns to itself has another layout; a plain one spares the copy."""
    return new.to(old.dtype).contiguous() if torch.compiler.is_compiling() else new


def _per_clip(compress: Compress, entries: Tensor) -> Tensor:
    return compress(entries.flatten(0, 1)).unflatten(0, entries.shape[:2])
