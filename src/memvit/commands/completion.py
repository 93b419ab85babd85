"""`memvit completion`: scripts that let shells complete our commands and options."""

from __future__ import annotations

import re
from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"]) -> int:
    """Print a script that lets a shell complete memvit's commands, options, choices and file names.

    Write it to a file once; it does not run memvit. For bash, to where bash-completion looks; for zsh, into a folder of its
    fpath; for fish, into its completions.

    Examples:
        memvit completion bash > ~/.local/share/bash-completion/completions/memvit
        memvit completion zsh > ~/.zfunc/_memvit    # with fpath+=~/.zfunc before compinit in ~/.zshrc
        memvit completion fish > ~/.config/fish/completions/memvit.fish

    Args:
        shell: which shell it is for.
    """
    print(completion_script(shell))
    return 0


def completion_script(shell: str) -> str:
    """The script for a shell.

    Raises:
        ValueError: it cannot be made here.
    """
    from memvit.cli import build_parser

    try:
        import shtab  # noqa: F401 - jsonargparse asks for it
    except ImportError as error:
        raise ValueError("completion needs the package shtab: pip install shtab") from error
    parser = build_parser()
    script: str = parser.get_completion_script(f"shtab-{shell}")
    return re.sub(r"[ \t]+$", "", script, flags=re.MULTILINE)
