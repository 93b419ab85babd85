"""What one layer remembers: keys and values of past clips, before projection, in a fixed number of slots, oldest first.

With pipelined compression the newest `gap` clips wait uncompressed; an entry is compressed when it is first attended, inside
that step's graph, so that the compression learns, and the result replaces it for good. So a step compresses one past clip,
whatever the memory length. Where no gradients are wanted, a clip is compressed and projected in its own step, while its keys and
values are in the cache, and kept so (`Projected`): what is remembered costs its attention and nothing else. Clips are kept as
they were besides, for training may go on from there, but not in inference mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from memvit.kernels.attention import KeyMask
from memvit.kernels.backend import compute_dtype
from memvit.kernels.frozen import ANY_WEIGHTS, Stamp
from memvit.models.config import MemoryConfig
from memvit.models.slots import append_slot, append_together

Compress = Callable[[Tensor], Tensor]

TENSORS = ("waiting_k", "waiting_v", "compressed_k", "compressed_v")


def _identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Projected:
    """The clips of one layer as attention takes them, kept beside what they follow from: at inference, weights stay.

    Attributes:
        k, v: (B, slots, N', attention_dim), compressed and projected, oldest first.
        stamp: of the weights that made them; `ANY_WEIGHTS`: they serve whatever the weights are (empty slots, compiled models);
            None: it is not known which these were, so that they serve nobody.
    """

    k: Tensor
    v: Tensor
    stamp: Stamp | None


@dataclass(frozen=True)
class LayerMemory:
    """What one layer remembers of B streams; slots run from the oldest clip to the newest.

    Attributes:
        waiting_k, waiting_v: (B, slots, N, dim), the newest clips, as they were; in inference mode none, unless compression
            is not pipelined.
        compressed_k, compressed_v: (B, slots, N', dim), the older clips, and with `projected` those that wait as well; no
            slots unless compression is pipelined.
        projected: all clips projected; None where they have to be projected when they are attended.
    """

    waiting_k: Tensor
    waiting_v: Tensor
    compressed_k: Tensor
    compressed_v: Tensor
    projected: Projected | None = None

    @property
    def num_slots(self) -> int:
        """How many clips it has room for."""
        if self.projected is not None:
            return self.projected.k.shape[1]
        return self.waiting_k.shape[1] + self.compressed_k.shape[1]

    def plain(self) -> LayerMemory:
        """Without what follows from the rest and the weights: what is projected, and what waiting clips are compressed to."""
        if self.projected is None:
            return self
        num = self.num_slots - self.waiting_k.shape[1]
        return LayerMemory(self.waiting_k, self.waiting_v, self.compressed_k[:, :num], self.compressed_v[:, :num])

    def map(self, function: Callable[[Tensor], Tensor]) -> LayerMemory:
        """Applies a function to all tensors."""
        return LayerMemory.join(lambda tensors: function(tensors[0]), [self])

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the attributes."""
        own = [self.waiting_k, self.waiting_v, self.compressed_k, self.compressed_v]
        return own if self.projected is None else [*own, self.projected.k, self.projected.v]

    def with_tensors(self, tensors: Iterator[Tensor]) -> LayerMemory:
        """The same with other tensors, the next ones, in the order of `tensors`."""
        waiting_k, waiting_v, compressed_k, compressed_v = (next(tensors) for _ in TENSORS)
        projected = self.projected
        if projected is not None:
            projected = Projected(next(tensors), next(tensors), projected.stamp)
        return LayerMemory(waiting_k, waiting_v, compressed_k, compressed_v, projected)

    def __getstate__(self) -> dict[str, Any]:
        # Stamps mean nothing in another process: there, or in a copy, what is projected is worked out anew.
        plain = self.plain()
        return {**{name: getattr(plain, name) for name in TENSORS}, "projected": None}

    @staticmethod
    def join(function: Callable[[list[Tensor]], Tensor], layers: Sequence[LayerMemory]) -> LayerMemory:
        """Applies a function to each of the tensors that the layers have in common."""
        projected = [layer.projected for layer in layers if layer.projected is not None]
        joined = None
        stamps = {p.stamp for p in projected} - {ANY_WEIGHTS}
        if len(projected) == len(layers) and len(stamps) <= 1:
            stamp = stamps.pop() if stamps else ANY_WEIGHTS
            joined = Projected(function([p.k for p in projected]), function([p.v for p in projected]), stamp)
        else:
            layers = [layer.plain() for layer in layers]
        waiting_k, waiting_v, compressed_k, compressed_v = (
            function([getattr(layer, name) for layer in layers]) for name in TENSORS
        )
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
        plain = self.plain()
        older_k, older_v = plain.compressed_k, plain.compressed_v
        if self.waiting_k.shape[1] < gap:  # inference mode has compressed the others
            return Attended(older_k[:, ::gap], older_v[:, ::gap], older_k[:, 1:], older_v[:, 1:])
        first_k, first_v = compress_k(self.waiting_k[:, 0])[:, None], compress_v(self.waiting_v[:, 0])[:, None]
        # A forgotten clip is zeros before compression, which the compression turns into its bias: that is what the
        # release attends one step later, and zeros after that. Under boundary="mask" neither is seen.
        is_valid = valid[:, -gap, None, None, None]
        kept_k, kept_v = first_k * is_valid, first_v * is_valid
        if gap > 1:
            first_k, first_v = kept_k, kept_v
        return Attended(
            torch.cat([older_k[:, ::gap].to(first_k.dtype), first_k], dim=1),
            torch.cat([older_v[:, ::gap].to(first_v.dtype), first_v], dim=1),
            append_slot(older_k, kept_k),
            append_slot(older_v, kept_v),
        )

    def all_projected(
        self,
        config: MemoryConfig,
        compress: tuple[Compress, Compress],
        project: tuple[Compress, Compress],
        stamp: Stamp | None,
    ) -> LayerMemory:
        """The memory with all clips projected, where the weights stay as they are and boundaries are masked.

        Args:
            compress, project: for keys and values: (n, N, dim) -> (n, N', dim), and (n, N, dim) -> (n, N, attention_dim).
            stamp: of the weights, None if they cannot be told; what other weights have projected is projected anew.
        """
        projected = self.projected
        if projected is not None and stamp is not None and projected.stamp in (stamp, ANY_WEIGHTS):
            return self if projected.stamp == stamp else replace(self, projected=replace(projected, stamp=stamp))
        plain, entries = self.plain(), []
        waiting, older = (plain.waiting_k, plain.waiting_v), (plain.compressed_k, plain.compressed_v)
        for compress_one, own, before in zip(compress, waiting, older, strict=True):
            if own.shape[1]:
                compressed = _per_clip(compress_one, own)
                entries.append(torch.cat([before.to(compressed.dtype), compressed], dim=1))
            else:
                entries.append(before)
        k, v = (_per_clip(project_one, slots) for project_one, slots in zip(project, entries, strict=True))
        if compute_dtype(plain.waiting_k) == plain.waiting_k.dtype:  # else autocast's is kept
            k, v, *entries = (t.to(plain.waiting_k.dtype) for t in (k, v, *entries))
        if config.compression == "pipelined":
            older = entries[0], entries[1]
            waiting = waiting if keeps_waiting() else (waiting[0][:, :0], waiting[1][:, :0])
        return LayerMemory(*waiting, *older, Projected(k, v, stamp))

    def append_projected(
        self,
        present: tuple[Tensor, Tensor],
        compressed: tuple[Tensor, Tensor],
        projected: tuple[Tensor, Tensor],
    ) -> LayerMemory:
        """The memory after this clip, of one that is `all_projected`.

        Args:
            present, compressed, projected: this clip's keys and values, (B, N, dim), (B, N', dim), (B, N', attention_dim).
        """
        older = self.projected
        assert older is not None
        slots = self.compressed_k, self.compressed_v, older.k, older.v
        new = [t[:, None] for t in (*compressed, *projected)]
        compressed_k, compressed_v, projected_k, projected_v = append_together(slots, new)
        return LayerMemory(
            append_slot(self.waiting_k, present[0][:, None]),
            append_slot(self.waiting_v, present[1][:, None]),
            compressed_k,
            compressed_v,
            Projected(projected_k, projected_v, older.stamp),
        )

    def append(self, k: Tensor, v: Tensor, attended: Attended) -> LayerMemory:
        """The memory after this clip, whose keys and values (B, N, dim) enter the newest slot, detached."""
        # Where clips were compressed ahead, one less is compressed now, and one more waits.
        is_one_less = attended.kept_compressed_k.shape[1] < self.plain().compressed_k.shape[1]
        keep = _and_one_more if is_one_less else append_slot
        return LayerMemory(
            keep(self.waiting_k, k[:, None]),
            keep(self.waiting_v, v[:, None]),
            attended.kept_compressed_k,
            attended.kept_compressed_v,
        )

    def skip(self, config: MemoryConfig, valid: Tensor) -> LayerMemory:
        """The memory of an uncompressed layer after a clip of which there is nothing to remember."""
        nothing = torch.zeros_like(self.waiting_k[:, 0])
        return self.append(nothing, nothing, self.attend(config, valid))


@dataclass(frozen=True)
class Attended:
    """One layer's view of the past in one step.

    Attributes:
        k, v: (B, M, N', dim), oldest first, in this step's graph.
        kept_compressed_k, kept_compressed_v: the compressed slots after this step, detached.
    """

    k: Tensor
    v: Tensor
    kept_compressed_k: Tensor
    kept_compressed_v: Tensor


@dataclass(frozen=True)
class SlotMasks:
    """Which slots count in one step, for all layers.

    Attributes:
        valid: bool (B, slots), oldest first: slots with a clip of the stream's own video.
        seen: bool (B, M), the attended clips that take part in the softmax.
    """

    valid: Tensor
    seen: Tensor
    _keys: dict[tuple[int, int], KeyMask] = field(default_factory=dict, repr=False, compare=False)

    def keys(self, num_past: int, num_present: int) -> KeyMask:
        """Which of M x num_past + num_present keys take part; the same for all layers with as many keys."""
        mask = self._keys.get((num_past, num_present))
        if mask is None:
            mask = KeyMask.of_clips(self.seen, num_past, num_present)
            if not torch.compiler.is_compiling():  # a compiler sees for itself what is the same
                self._keys[num_past, num_present] = mask
        return mask


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
    num_waiting, num_compressed = config.num_slots, 0
    if config.compression == "pipelined":
        num_waiting = min(config.gap, config.num_slots)
        num_compressed = config.num_slots - num_waiting
        if projected_dim is not None:
            num_waiting, num_compressed = num_waiting if keeps_waiting() else 0, config.num_slots
    waiting = like.new_zeros(batch_size, num_waiting, num_tokens, dim)
    compressed = like.new_zeros(batch_size, num_compressed, num_compressed_tokens, dim)
    projected = None
    if projected_dim is not None:
        slots = like.new_zeros(batch_size, config.num_slots, num_compressed_tokens, projected_dim)
        projected = Projected(slots, slots.clone(), ANY_WEIGHTS)
    return LayerMemory(waiting, waiting.clone(), compressed, compressed.clone(), projected)


def keeps_waiting() -> bool:
    """Whether clips are kept as they were, though they are compressed already: not in inference mode, from which no training can
    go on. (A compiler does not know of that mode.)
    """
    return torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()


def _and_one_more(slots: Tensor, new: Tensor) -> Tensor:
    return torch.cat([slots, new.detach().to(slots.dtype)], dim=1)


def _per_clip(compress: Compress, entries: Tensor) -> Tensor:
    return compress(entries.flatten(0, 1)).unflatten(0, entries.shape[:2])
