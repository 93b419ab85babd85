"""MeMViT: a multiscale vision transformer that reads a video clip by clip and remembers (Wu et al., CVPR 2022)."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from memvit.kernels import cpu
from memvit.kernels.backend import compute_dtype, use_reference
from memvit.kernels.branches import Begin, beside, hand_over, has_branches
from memvit.kernels.frozen import thaw, thaw_rewritten
from memvit.kernels.norm import layer_norm
from memvit.kernels.recording import active_recorder
from memvit.kernels.status import status
from memvit.models.attention import LAYER_NORM_EPS
from memvit.models.blocks import Block, BoxBlock, PatchEmbed
from memvit.models.checkpointing import Recompute, parse_recompute, run_block
from memvit.models.config import MViTConfig, Size3
from memvit.models.heads import ClassHead, Logits, pad_boxes, pool_boxes, pool_clip, pool_frames
from memvit.models.hub import HubModel
from memvit.models.layer_memory import LayerMemory, SlotMasks, empty_layer
from memvit.models.memory import Memory
from memvit.models.memory_kind import differences, memory_kind
from memvit.models.plan import plan_blocks
from memvit.models.positions import AbsolutePositions

logger = logging.getLogger(__name__)


class _Trunk(NamedTuple):
    """What the trunk makes of a clip.

    Attributes:
        tokens: normed, (B, N, dim).
        grid: theirs.
        memory, slots: before the clip.
        after: the memory after the clip, but for box layers.
    """

    tokens: Tensor
    grid: Size3
    memory: Memory
    slots: SlotMasks
    after: Memory


class MeMViT(HubModel):
    """A video transformer that sees a clip and, through its memory, the clips before it.

        memory = None
        for clips in stream:                        # (B, 3, T, H, W)
            logits, memory = model(clips, memory)

    Memory is explicit: a value that goes in and comes out, one entry per stream of the batch. `memory.forget(...)` marks
    streams that start another video. `save_pretrained`, `from_pretrained` and `push_to_hub` come from huggingface_hub.

    Args:
        config: what the model is.
    """

    def __init__(self, config: MViTConfig) -> None:
        super().__init__(config)
        self._recompute: Recompute = "none"
        plans = plan_blocks(config)
        self._memory_kind = memory_kind(config, plans)
        dim = plans[-1].out_dim
        self.patch_embed = PatchEmbed(config)
        if config.class_token:
            self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, config.embed_dim), std=0.02))
        if config.absolute_positions != "none":
            grid = self.patch_embed.grid((config.num_frames, config.crop_size, config.crop_size))
            self.positions = AbsolutePositions(config.absolute_positions, grid, config.embed_dim, config.class_token)
        self.pos_drop = nn.Dropout(config.dropout)
        if config.norm_stem:
            self.norm_stem = nn.LayerNorm(config.embed_dim, LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(Block(plan, config) for plan in plans)
        self.norm = nn.LayerNorm(dim, LAYER_NORM_EPS)
        num_heads = plans[-1].num_heads
        self.box_blocks = nn.ModuleList(BoxBlock(dim, num_heads, config) for _ in range(config.head.box_depth))
        self.head = ClassHead(dim, config.head)
        self.apply(_init_linear)
        logger.debug("kernels: %s", "; ".join(f"{part}: {which}" for part, which in status().items()))

    def forward(
        self, clips: Tensor, memory: Memory | None = None, boxes: Sequence[Tensor] | None = None
    ) -> tuple[Logits, Memory]:
        """Recognises one clip of each stream and remembers it.

        Args:
            clips: (B, 3, frames, height, width), float, normalised with the config's mean and std.
            memory: what came out of the step before, for the same streams in the same order; None: nothing yet.
            boxes: for task "boxes", per clip (n_i, 4) x1, y1, x2, y2 in pixels of the clip; n_i may be 0.

        Returns:
            Logits, raw: (B, classes); task "frames" (B, T, classes); task "boxes" (sum n_i, classes), clips in order; a
            tuple in config order where there are several heads. And the memory after this clip.

        Raises:
            ValueError: wrong shapes, boxes missing or not finite, or a memory of another model, of other streams or another clip
                size.
        """
        is_boxes = self.config.head.task == "boxes"
        if is_boxes != (boxes is not None):
            raise ValueError(
                "this model classifies boxes: call model(clips, memory, boxes=[(n_i, 4) tensor per clip])"
                if is_boxes
                else f"this model's task is {self.config.head.task!r}; it takes no boxes"
            )
        only_class = self.config.head.task == "clip" and self._needs_only_class(clips)
        trunk = self._forward_trunk(clips, memory, only_class=only_class)
        tokens, grid, memory = trunk.tokens, trunk.grid, trunk.memory
        if boxes is None:
            if self.config.head.task == "frames":
                features = pool_frames(tokens, grid, self.config.class_token)
            else:
                features = pool_clip(tokens, self.config.class_token)
            return self.head(features), trunk.after
        _check_boxes(boxes, clips)
        features, box_layers, box_counts = self._forward_boxes(tokens, grid, boxes, memory, trunk.slots)
        return self.head(features), memory.advance(trunk.after.layers, box_layers, box_counts)

    @property
    def activation_checkpointing(self) -> Recompute:
        """What is computed again in the backward pass instead of being kept, with the same gradients.

        "none"; "mlp": what is inside the blocks' MLPs; "selective": all but the results of linear layers and attention;
        "blocks": everything inside the blocks. True means "blocks", False "none".
        """
        return self._recompute

    @activation_checkpointing.setter
    def activation_checkpointing(self, value: bool | Recompute) -> None:
        self._recompute = parse_recompute(value)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation, as for any module."""
        thaw(self.parameters())
        return super().train(mode)

    def forward_features(self, clips: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """The normed tokens of a clip, for feature extraction and new heads.

        Args:
            clips, memory: as for `forward`. Box layers remember this clip as one without boxes.

        Returns:
            (B, N, dim), class token first where there is one, then time, height, width (`token_grid`); and the memory.
        """
        trunk = self._forward_trunk(clips, memory)
        memory = trunk.memory
        box_layers = [layer.skip(self.config.memory, trunk.slots.valid) for layer in memory.box_layers]
        return trunk.tokens, dataclasses.replace(trunk.after, box_layers=tuple(box_layers))

    def token_grid(self, num_frames: int | None = None, height: int | None = None, width: int | None = None) -> Size3:
        """The grid (time, height, width) of `forward_features`' tokens for a clip of that size."""
        config = self.config
        grid = self.patch_embed.grid(
            (num_frames or config.num_frames, height or config.crop_size, width or config.crop_size)
        )
        for block in self._trunk():
            grid = block.attn.output_grid(grid)
        return grid

    def new_memory(
        self,
        batch_size: int,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Memory:
        """The memory of `batch_size` streams that have seen nothing.

        Args:
            num_frames, height, width: size of the clips to come; the config's where left out.
            dtype, device: the model's where left out; without gradients under autocast, autocast's dtype.
        """
        config = self.config
        size = num_frames or config.num_frames, height or config.crop_size, width or config.crop_size
        return self._new_memory(batch_size, self.patch_embed.grid(size), dtype, device)

    def _new_memory(
        self,
        batch_size: int,
        clip_grid: Size3,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Memory:
        config = self.config
        weight = self.norm.weight
        if dtype is None:  # at inference, what is computed in low precision is kept in it
            dtype = weight.dtype if torch.is_grad_enabled() else compute_dtype(weight)
        like = torch.empty(0, dtype=dtype, device=device or weight.device)
        num_slots, num_class = config.memory.num_slots, int(config.class_token)
        layers, grid = {}, clip_grid
        for block in self._trunk():
            if block.plan.has_memory:
                num_tokens, num_compressed = (
                    num_class + math.prod(g) for g in (block.attn.key_grid(grid), block.attn.memory_grid(grid))
                )
                plan = block.plan
                projected_dim = plan.attention_dim if block.attn.keeps_projections() else None
                layers[plan.index] = empty_layer(
                    config.memory, batch_size, num_tokens, num_compressed, plan.dim, like, projected_dim
                )
            grid = block.attn.output_grid(grid)
        max_boxes, dim = config.head.max_boxes, self.norm.weight.shape[0]
        num_box_layers = len(self.box_blocks) if num_slots else 0
        return Memory(
            layers=layers,
            box_layers=tuple(
                empty_layer(config.memory, batch_size, max_boxes, max_boxes, dim, like) for _ in range(num_box_layers)
            ),
            valid=torch.zeros(batch_size, num_slots, dtype=torch.bool, device=like.device),
            filled=torch.zeros(batch_size, num_slots, dtype=torch.bool, device=like.device),
            box_counts=torch.zeros(batch_size, num_slots, dtype=torch.long, device=like.device),
            clip_grid=clip_grid,
            kind=self._memory_kind,
        )

    def _trunk(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _needs_only_class(self, clips: Tensor) -> bool:
        """Whether the last block may leave out what the class token does not depend on: with kernels of ours.

        Not where gradients are wanted: parameters that take no part would get none instead of zeros. Nor where somebody looks
        at the last block, or counts what the paper counts.
        """
        has_kernels = clips.is_cuda or (clips.device.type == "cpu" and cpu.is_available())
        if not has_kernels or not self.config.class_token or torch.is_grad_enabled() or use_reference():
            return False
        looked_at = [self.norm, *self.blocks[-1].modules()]
        return not any(module._forward_hooks or module._forward_pre_hooks for module in looked_at)

    def _forward_trunk(self, clips: Tensor, memory: Memory | None, *, only_class: bool = False) -> _Trunk:
        """What the trunk makes of a clip.

        Args:
            only_class: of the tokens, only the class token is wanted.
        """
        grid = self._check_clips(clips)
        if memory is None:
            memory = self._new_memory(clips.shape[0], grid)
        self._check_memory(memory, clips, grid)
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled():
                thaw(self.parameters())  # an optimiser will change them
            elif clips.is_cpu:
                thaw_rewritten(list(self.parameters()))

        slots = memory.slot_masks(self.config.memory)
        layers: dict[int, LayerMemory] = {}

        def run(blocks: list[Block], x: Tensor, grid: Size3, begin: Begin | None = None) -> tuple[Tensor, Size3]:
            for block in blocks:
                index, attention_dropout = block.plan.index, block.attn.attention_dropout if self.training else 0.0
                inputs = x, grid, memory.layers.get(index), slots
                ends = only_class and block is self.blocks[-1]
                if ends or begin is not None:
                    x, grid, remembered = block(*inputs, begin=begin, only_class=ends)
                else:
                    x, grid, remembered = run_block(block, self._recompute, attention_dropout, *inputs)
                if remembered is not None:
                    layers[index] = remembered
            return x, grid

        def remember() -> Memory:
            after = memory.advance(layers, (), memory.box_counts.new_zeros(len(memory)))
            if self.config.head.task != "boxes":  # what boxes leave is known at the end
                hand_over(clips, after)
            return after

        def rest(x: Tensor, grid: Size3) -> tuple[Tensor, Size3]:
            tokens, grid = run(blocks[num_looking:], x, grid)
            return layer_norm(tokens, self.norm) if only_class else self.norm(tokens), grid

        blocks = self._trunk()
        num_looking = max([0, *[i + 1 for i, block in enumerate(blocks) if block.plan.has_memory]])
        if has_branches(clips) and not torch.is_grad_enabled():
            with beside(clips) as begin:
                x, last_grid = run(blocks[:num_looking], self._embed(clips, grid), grid, begin)
                after = begin(remember)  # behind what layers have begun; nobody reads the memory before it any more
                tokens, grid = rest(x, last_grid)
        else:
            tokens, grid = rest(*run(blocks[:num_looking], self._embed(clips, grid), grid))
            after = remember()
        return _Trunk(tokens, grid, memory, slots, after)

    def _embed(self, clips: Tensor, grid: Size3) -> Tensor:
        """The tokens of a clip, class token first."""
        x = self.patch_embed(clips, self.cls_token if self.config.class_token else None)
        if self.config.absolute_positions != "none":
            x = x + self.positions(grid)
        x = self.pos_drop(x)
        return self.norm_stem(x) if self.config.norm_stem else x

    def _forward_boxes(
        self, tokens: Tensor, grid: Size3, boxes: Sequence[Tensor], memory: Memory, slots: SlotMasks
    ) -> tuple[Tensor, list[LayerMemory], Tensor]:
        """Box vectors (sum n_i, dim), box layers' memory after this clip, and its box tokens per stream."""
        head = self.config.head
        features = pool_boxes(tokens, grid, self.config.class_token, boxes, head)
        counts = [len(b) for b in boxes]
        # Filled, not copied, because a copy from the host would wait for the device.
        box_counts = torch.stack([torch.full((), max(n, head.max_boxes), device=features.device) for n in counts])
        if not self.box_blocks:
            return features, [], box_counts

        num_tokens = max(memory.num_box_tokens, head.max_boxes, *counts)
        memory = memory.with_box_tokens(num_tokens)
        positions = torch.arange(num_tokens, device=features.device)
        present = positions < box_counts[:, None]
        past_present = positions < memory.box_counts[:, :: self.config.memory.gap, None] if memory.box_layers else None
        x = pad_boxes(features, counts, num_tokens)
        box_layers = []
        for i, block in enumerate(self.box_blocks):
            layer = memory.box_layers[i] if memory.box_layers else None
            x, remembered = block(x, present, layer, slots, past_present)
            if remembered is not None:
                box_layers.append(remembered)
        return torch.cat([x[b, :n] for b, n in enumerate(counts)]), box_layers, box_counts

    def _check_clips(self, clips: Tensor) -> Size3:
        config = self.config
        if clips.dim() != 5 or clips.shape[1] != config.in_channels or not clips.is_floating_point():
            raise ValueError(
                f"clips must be float of shape (B, {config.in_channels}, frames, height, width), "
                f"not {clips.dtype} {tuple(clips.shape)}"
            )
        grid = self.patch_embed.grid((clips.shape[2], clips.shape[3], clips.shape[4]))
        if clips.shape[0] == 0 or min(grid) < 1:
            raise ValueError(
                f"clips of shape {tuple(clips.shape)} are too small; the model was made for "
                f"{config.num_frames} frames of {config.crop_size} x {config.crop_size} pixels"
            )
        return grid

    def _check_memory(self, memory: Memory, clips: Tensor, grid: Size3) -> None:
        cure = "begin with memory=None or model.new_memory(batch_size)"
        if not isinstance(memory, Memory):
            raise ValueError(f"memory must be a memvit.Memory or None, not {type(memory).__name__}; {cure}")
        if memory.batch_size != clips.shape[0]:
            raise ValueError(
                f"memory of {memory.batch_size} streams with {clips.shape[0]} clips; pick streams with memory[...] or join "
                "them with Memory.cat"
            )
        if memory.kind != self._memory_kind:
            facts = differences(self._memory_kind, memory.kind) or ["it does not say of which"]
            raise ValueError(f"this memory is of another model: {'; '.join(facts)}; {cure}")
        # Clips wait to be compressed while a gap lasts, all of them if that is done anew at every step. States saved before
        # memories had a kind may differ in that.
        is_pipelined = self.config.memory.compression == "pipelined"
        most, least = (self.config.memory.gap, 0) if is_pipelined else (self.config.memory.num_slots,) * 2
        if not all(least <= layer.waiting_k.shape[1] <= most for layer in memory.layers.values()):
            raise ValueError(f"this memory is of another model, with another memory_gap or memory_compression; {cure}")
        if memory.layers and memory.clip_grid != grid:
            raise ValueError(
                f"memory of clips with token grid {memory.clip_grid} cannot serve clips of shape {tuple(clips.shape)} (grid "
                f"{grid}); keep one clip size per stream, or begin with memory=None"
            )

    def extra_repr(self) -> str:
        """The few facts that tell models apart."""
        memory = self.config.memory
        return f"memory_length={memory.length}, gap={memory.gap}, memory_layers={self.config.memory_layers}"


def _check_boxes(boxes: Sequence[Tensor], clips: Tensor) -> None:
    if len(boxes) != clips.shape[0]:
        raise ValueError(
            f"boxes for {len(boxes)} clips, but there are {clips.shape[0]}; give one (n_i, 4) tensor per clip"
        )
    for i, b in enumerate(boxes):
        if not isinstance(b, Tensor):
            raise ValueError(
                f"boxes of clip {i} must be a tensor (n, 4) of x1, y1, x2, y2 in pixels, not {type(b).__name__}; "
                "torch.tensor(...) makes one, torch.zeros(0, 4) where there are none"
            )
        if b.dim() != 2 or b.shape[1] != 4:
            raise ValueError(f"boxes of clip {i} must be (n, 4) x1, y1, x2, y2 in pixels, not {tuple(b.shape)}")
        # To look at numbers on a GPU would wait for it; a compiled or recorded step looks at none.
        is_readable = b.device.type == "cpu" and not torch.compiler.is_compiling() and active_recorder() is None
        if is_readable and not b.isfinite().all():
            raise ValueError(
                f"boxes of clip {i} must be finite numbers of pixels; leave out boxes with NaN or infinity in them"
            )


def _init_linear(module: nn.Module) -> Any:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
