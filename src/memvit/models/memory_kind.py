"""What models have in common that take each other's memories, as text: it is compared at every step, and saved with memories."""

from __future__ import annotations

from collections.abc import Sequence

from memvit.models.config import MViTConfig
from memvit.models.plan import BlockPlan


def memory_kind(config: MViTConfig, plans: Sequence[BlockPlan]) -> str:
    """Which models a memory of this one is for: "name=value; ...". Weights play no part, nor does what is made of the tokens.

    One text is compared faster than many numbers, and a compiler needs one guard for it.
    """
    memory = config.memory
    if not memory.length:
        return "memory_length=0"
    facts: dict[str, object] = {
        "memory_length": memory.length,
        "memory_gap": memory.gap,
        "memory_layers": config.memory_layers,
        "memory_compression": memory.compression,
    }
    if memory.compresses:
        facts |= {"memory_kernel": memory.kernel, "memory_stride": memory.stride}
    facts |= {
        "class_token": config.class_token,
        "patch_stride": config.patch_stride,
        "width": [*(plan.dim for plan in plans), plans[-1].out_dim],
        "attention_width": [plan.attention_dim for plan in plans],
        "num_heads": [plan.num_heads for plan in plans],
        "query_stride": [plan.q_stride for plan in plans],
        "key_kernel": [plan.kv_kernel for plan in plans],
        "key_stride": [plan.kv_stride for plan in plans],
        "box_depth": config.head.box_depth,
    }
    return "; ".join(f"{name}={value}" for name, value in facts.items())


def differences(ours: str, theirs: str) -> list[str]:
    """What tells two kinds apart, as "name=theirs, not ours"; what one of them does not speak of is no difference."""
    own, other = (dict(fact.split("=", 1) for fact in kind.split("; ") if fact) for kind in (ours, theirs))
    return [f"{name}={other[name]}, not {value}" for name, value in own.items() if other.get(name, value) != value]
