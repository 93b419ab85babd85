from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from commands.conftest import Run
from memvit.cli import COMMANDS, TRAINING_COMMANDS, Group

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from memvit.commands.completion import completion_script

    path = tmp_path_factory.mktemp("completion") / "memvit.bash"
    path.write_text(completion_script("bash"))
    return path


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word, as its completion function gives it."""
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"source {script}; COMP_WORDS=(memvit {quoted}); COMP_CWORD={len(words)}; COMP_TYPE=9; _shtab_memvit; "
    ended = subprocess.run(
        [str(BASH), "--norc", "-c", ask + 'printf "%s\\n" "${COMPREPLY[@]}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.split()


@pytest.mark.skipif(BASH is None, reason="there is no bash on this machine")
def test_bash_completes_commands_options_and_choices(script: Path) -> None:
    assert set(complete(script, "")) >= {*COMMANDS, *TRAINING_COMMANDS}
    assert complete(script, "pre") == ["predict"]
    assert complete(script, "predict", "a.mp4", "--max_") == ["--max_duration", "--max_attempts"]
    assert complete(script, "predict", "a.mp4", "--dtype", "") == ["float32", "bfloat16", "float16"]
    assert complete(script, "evaluate", "a") == ["ava"]
    assert complete(script, "evaluate", "ava", "--ex") == ["--excluded"]
    assert complete(script, "fit", "--ck") == ["--ckpt_path"]
    assert complete(script, "completion", "") == ["bash", "zsh", "fish"]


def test_every_command_and_option_is_in_every_script(run: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        code, out, err = run("completion", shell)
        assert (code, err) == (0, "")
        for name, command in COMMANDS.items():
            assert name in out
            assert not isinstance(command, Group) or all(inner in out for inner in command.commands)
        assert "max_attempts" in out
        if (program := shutil.which(shell)) and shell != "fish":
            subprocess.run([program, "-n"], input=out, text=True, check=True)


def test_another_shell_is_exit_code_2(run: Run) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("completion", "cmd")
    assert stopped.value.code == 2
