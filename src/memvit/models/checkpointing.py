"""Activation checkpointing: what a training computes again in the backward pass instead of keeping it.

Gradients stay the same, dropout and stochastic depth included. What every policy saves and costs is measured by
`python -m memvit.benchmarks.checkpointing`; docs/training.md says how to choose.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "mlp", "selective", "blocks"]

_LINEAR = ("aten::mm", "aten::addmm", "aten::_scaled_mm")


def parse_recompute(value: bool | str) -> Recompute:
    """The policy of a name; True means "blocks" and False "none".

    Raises:
        ValueError: there is no such policy.
    """
    if isinstance(value, bool):
        return "blocks" if value else "none"
    if value not in get_args(Recompute):
        raise ValueError(
            f"activation_checkpointing={value!r} is no policy; give one of {', '.join(get_args(Recompute))}"
        )
    return value  # type: ignore[return-value]


def recomputed(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), computed again in the backward pass, with the same random numbers."""
    return checkpoint(function, *args, use_reentrant=False)


def run_block(block: Callable[..., Any], recompute: Recompute, attention_dropout: float, *args: Any) -> Any:
    """Runs a block of the trunk under a policy.

    Args:
        block: takes the arguments and, as `recompute_mlp`, whether its MLP is computed again.
        recompute: "none": everything is kept that gradients need. "mlp": all but what is inside the MLPs. "selective": the
            results of linear layers and of attention alone. "blocks": what goes into the blocks alone.
        attention_dropout: rate on the softmax while this runs.
    """
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*args)
    if recompute == "mlp":
        return block(*args, recompute_mlp=True)
    if recompute == "blocks":
        return recomputed(block, *args)
    policy = _keep_linear_layers if attention_dropout else _keep_linear_layers_and_attention
    contexts = partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)


def _keep_linear_layers(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op.name() in _LINEAR else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_linear_layers_and_attention(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Only without dropout on the softmax: what is kept draws nothing anew, and all that draws after it would differ."""
    keeps = op.name() in _LINEAR or "attention" in op.name()
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE
