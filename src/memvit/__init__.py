"""memvit: recognise what happens in long videos, online, with a memory of what came before.

    model = memvit.create_model("memvit_16x4", num_classes=400, memory_length=2)
    memory = None
    for clips in stream:                       # (B, 3, T, H, W), normalised
        logits, memory = model(clips, memory)

An implementation of MeMViT (Wu et al., CVPR 2022, arXiv 2201.08383).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memvit.models.memory import Memory
    from memvit.models.memvit import MeMViT
    from memvit.models.slowfast import load_slowfast
    from memvit.models.zoo import create_model, list_models
    from memvit.online import OnlineRecognizer

__version__ = "0.1.0"
__all__ = ["MeMViT", "Memory", "OnlineRecognizer", "create_model", "list_models", "load_slowfast"]

# Imported when asked for: `memvit --help` shall not wait for PyTorch.
_HOMES = {
    "MeMViT": "memvit.models.memvit",
    "Memory": "memvit.models.memory",
    "OnlineRecognizer": "memvit.online",
    "create_model": "memvit.models.zoo",
    "list_models": "memvit.models.zoo",
    "load_slowfast": "memvit.models.slowfast",
}
_PACKAGES = frozenset({"datasets", "kernels", "metrics", "models", "online", "training", "video"})


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_PACKAGES})
