"""The optimiser, its schedule, and which parameters it touches and how."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.graph import increment_version
from torch.optim.lr_scheduler import LambdaLR

logger = logging.getLogger(__name__)

# Parameters that say where something is or stand for the whole clip: pulling them to zero would erase what they say.
_NO_DECAY = re.compile(r"(^|\.)(rel_pos\w*|positions\.\w+|cls_token)$")

# Where PyTorch has fused AdamW and SGD in every version that we support.
_FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class OptimizerOptions:
    """How the weights are trained.

    Attributes:
        name: "adamw" or "sgd".
        lr: the highest learning rate, reached after the warm-up.
        min_lr: the learning rate that the cosine ends at.
        warmup_epochs: epochs over which the learning rate rises linearly; a part of one is fine.
        weight_decay: of matrices; biases, norms, positions and the class token are left alone.
        layer_decay: the learning rate of a block is this times the one of the block after it; 1: all the same.
        betas: of AdamW.
        momentum: of SGD.
        nesterov: whether SGD looks ahead.
        freeze: regular expressions; parameters in whose name one is found are not trained. "^(patch_embed|cls_token|blocks)"
            leaves the last norm and the head.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    nesterov: bool = True
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, good, need in (
            ("name", self.name in ("adamw", "sgd"), "adamw or sgd"),
            ("lr", self.lr > 0, "more than 0"),
            ("min_lr", 0 <= self.min_lr <= self.lr, f"between 0 and optimizer.lr={self.lr}"),
            ("warmup_epochs", self.warmup_epochs >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("layer_decay", 0 < self.layer_decay <= 1, "more than 0 and at most 1"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and below 1"),
        ):
            if not good:
                raise ValueError(f"optimizer.{name}={getattr(self, name)!r} must be {need}")


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Switches off the training of parameters in whose name one of the patterns is found.

    Returns:
        Their names.

    Raises:
        ValueError: a pattern is no regular expression or fits nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        try:
            found = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise ValueError(f"optimizer.freeze: {pattern!r} is no regular expression: {error}") from error
        if not found:
            raise ValueError(
                f"optimizer.freeze: {pattern!r} fits no parameter; names are such as {names[0]}, {names[-1]}"
            )
        frozen.update(found)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if len(frozen) == len(names):
        raise ValueError("optimizer.freeze leaves nothing to train; take patterns away")
    return [name for name in names if name in frozen]


def build_optimizer(model: nn.Module, options: OptimizerOptions, *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimiser of a model's trainable parameters, one group per depth and kind.

    Args:
        model: where it will be trained: on its device.
        fused: update all parameters of a group in one kernel where PyTorch has one for their device, otherwise several
            parameters at a time or one by one, as PyTorch sees fit. A checkpoint of either goes on with the other.
    """
    groups = parameter_groups(model, options)
    fused = fused and all(p.device.type in _FUSED_DEVICES for group in groups for p in group["params"])
    how = {"fused": True} if fused else {}
    optimizer: torch.optim.Optimizer
    if options.name == "sgd":
        nesterov = options.nesterov and options.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov, **how)
    else:
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, **how)
    optimizer.register_load_state_dict_pre_hook(_keep_implementation)
    if fused:
        optimizer.register_step_post_hook(_note_change)
    return optimizer


def _keep_implementation(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """How a step is computed is this training's matter, not the checkpoint's."""
    own = {name: optimizer.defaults[name] for name in ("fused", "foreach")}
    return {**state, "param_groups": [{**group, **own} for group in state["param_groups"]]}


def _note_change(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Tells PyTorch that the parameters have changed, which its fused kernels do not.

    What is kept as long as parameters do not change (`memvit.kernels.frozen`) would outlive them otherwise.
    """
    increment_version([p for group in optimizer.param_groups for p in group["params"]])


def parameter_groups(model: nn.Module, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay, in a fixed order.

    Returns:
        Groups with `params`, `names`, `lr` and `weight_decay`.
    """
    blocks = getattr(model, "blocks", None)
    num_blocks = len(blocks) if isinstance(blocks, nn.ModuleList) else 0
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = _depth_of(name, num_blocks)
        decays = parameter.ndim > 1 and not name.endswith(".bias") and not _NO_DECAY.search(name)
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "names": [],
                "lr": options.lr * options.layer_decay ** (num_blocks + 1 - depth),
                "weight_decay": options.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def _depth_of(name: str, num_blocks: int) -> int:
    """0 for what comes before the blocks, i + 1 for block i, and one more for what comes after them."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    before = name.startswith(("patch_embed.", "positions.", "norm_stem.")) or name == "cls_token"
    return 0 if before else num_blocks + 1


def learning_rate_factor(options: OptimizerOptions, warmup_steps: float, total_steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by at each step: a linear rise, then a half cosine down to `min_lr`.

    Args:
        warmup_steps: steps of the rise; the first step after them has the full rate.
        total_steps: steps of the whole training; the last one has `min_lr`.
    """
    floor = options.min_lr / options.lr

    def factor(step: int) -> float:
        if step < warmup_steps:
            return max((step + 1) / (warmup_steps + 1), floor)
        progress = min((step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1), 1.0)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def build_schedule(
    optimizer: torch.optim.Optimizer, options: OptimizerOptions, steps_per_epoch: float, total_steps: int
) -> LambdaLR:
    """The schedule of an optimiser, to be advanced every step.

    Args:
        steps_per_epoch: optimiser steps of one pass over the data.
        total_steps: of the whole training.

    A warm-up that takes more than half of the training is cut to a tenth of it, with a warning: a short trial shall not
    need other options.
    """
    warmup_steps = options.warmup_epochs * steps_per_epoch
    if warmup_steps > total_steps / 2:
        cut = total_steps / 10
        logger.warning(
            "optimizer.warmup_epochs=%g is %.0f steps, and the training has %d: the learning rate rises over %.0f",
            *(options.warmup_epochs, warmup_steps, total_steps, cut),
        )
        warmup_steps = cut
    return LambdaLR(optimizer, learning_rate_factor(options, warmup_steps, total_steps))
