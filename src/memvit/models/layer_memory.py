"""What one layer remembers: keys and values of past clips, before projection, in a fixed number of slots, oldest first.

With pipelined compression the newest `gap` clips wait uncompressed; an entry is compressed when it is first attended, inside
that step's graph, so that the compression learns, and the result replaces it for good. So a step compresses one past clip,
whatever the memory length. Where no gradients are wanted, the older clips are kept projected as well (`Projected`), and a step
projects one past clip too: what is remembered costs its attention and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memvit.kernels.frozen import Stamp
from memvit.models.config import MemoryConfig

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
            append_slot(self.compressed_k, kept_k),
            append_slot(self.compressed_v, kept_v),
        )

    def attend_projected(
        self,
        config: MemoryConfig,
        present: tuple[Tensor, Tensor],
        compress: tuple[Compress, Compress],
        project: tuple[Compress, Compress],
        stamp: Stamp | None,
    ) -> tuple[Attended, Tensor, Tensor]:
        """What `attend` gives, projected, where the weights stay as they are and boundaries are masked.

        Args:
            present: keys and values of the clip itself, (B, N, dim) each.
            compress, project: for keys and values: (n, N, dim) -> (n, N', dim), and (n, N, dim) -> (n, N, attention_dim).
            stamp: of the weights; what other weights have projected is projected anew.

        Returns:
            The past, and the present keys and values, projected.
        """
        gap, pipelined = config.gap, config.compression == "pipelined"
        waiting, compressed = (self.waiting_k, self.waiting_v), (self.compressed_k, self.compressed_v)
        older = self.projected
        if older is None or (older.stamp is not None and older.stamp != stamp):
            k, v = (
                _per_clip(project[i], compressed[i] if pipelined else _per_clip(compress[i], waiting[i][:, :-gap]))
                for i in range(2)
            )
            older = Projected(k, v, stamp)
        first = [compress[i](waiting[i][:, -gap]) for i in range(2)]
        # The present and the past clip together: one multiplication, and the weights are read once.
        num_first = first[0].shape[1]
        joint = [project[i](torch.cat([first[i].to(present[i].dtype), present[i]], dim=1)) for i in range(2)]
        k, v = (
            torch.cat([slots.to(both.dtype), both[:, None, :num_first]], dim=1)
            for slots, both in zip((older.k, older.v), joint, strict=True)
        )
        kept_k, kept_v = compressed
        if pipelined:
            kept_k, kept_v = (append_slot(compressed[i], first[i][:, None]) for i in range(2))
        projected = Projected(_as_before(k[:, 1:], older.k), _as_before(v[:, 1:], older.v), stamp)
        past = Attended(k[:, ::gap], v[:, ::gap], kept_k, kept_v, projected)
        return past, joint[0][:, num_first:], joint[1][:, num_first:]

    def append(self, k: Tensor, v: Tensor, attended: Attended) -> LayerMemory:
        """The memory after this clip, whose keys and values (B, N, dim) enter the newest slot, detached."""
        return LayerMemory(
            append_slot(self.waiting_k, k[:, None]),
            append_slot(self.waiting_v, v[:, None]),
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


def append_slot(slots: Tensor, new: Tensor) -> Tensor:
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
