"""Models by name."""

from __future__ import annotations

from typing import Any

from memvit.models.memvit import MeMViT
from memvit.models.presets import PRESETS


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(PRESETS)


def create_model(name: str, *, pretrained: bool | str = False, **overrides: Any) -> MeMViT:
    """A model by name, with any config field changed."""
    return MeMViT(PRESETS[name].replace(**overrides))
