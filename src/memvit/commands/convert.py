"""`memvit convert`: the authors' checkpoints as directories that memvit loads."""

from __future__ import annotations

from typing import Literal

from memvit.commands.terminal import say, stdout_console


def convert(out: str, *, config: str, checkpoint: str, boundary: Literal["mask", "zero"] = "mask") -> int:
    """Convert a config and a checkpoint of the authors' release into a directory for --model and create_model.

    Examples:
        memvit convert OUT --config MeMViT_16_16x4.yaml --checkpoint checkpoint.pyth

    Args:
        out: the directory; gets config.json and model.safetensors.
        config: the YAML file.
        checkpoint: the .pyth file. Nothing in it is executed.
        boundary: what a clip sees of another video: nothing (mask), or zeros as in the release at batch sizes above 1.
    """
    from memvit.models.zoo import convert as convert_files

    report = convert_files(config, checkpoint, out, boundary)
    console = stdout_console()
    say(console, str(report))
    say(console, f"wrote config.json and model.safetensors to {out}; use it as: memvit predict VIDEO --model {out}")
    return 0
