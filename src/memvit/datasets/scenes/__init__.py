"""What happens in the generated long videos: three games that only someone who remembers can follow.

A scene is drawn at any size and rate, and knows the truth about itself. Everything that does not matter varies (colours,
places, speeds, backgrounds, noise), so that there is nothing to learn by heart.
"""

from __future__ import annotations

from memvit.datasets.scenes.recall import RecallOptions, recall
from memvit.datasets.scenes.recipe import RecipeOptions, recipe
from memvit.datasets.scenes.scene import Box, Scene, Segment
from memvit.datasets.scenes.shell_game import ShellGameOptions, shell_game

__all__ = [
    "Box",
    "RecallOptions",
    "RecipeOptions",
    "Scene",
    "Segment",
    "ShellGameOptions",
    "recall",
    "recipe",
    "shell_game",
]
