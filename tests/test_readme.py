"""What the README shows works as shown."""

import re
import shlex
from pathlib import Path

import pytest

from memvit import cli
from memvit.cli import main
from memvit.models.zoo import list_models
from memvit.video.sample import make_sample_video

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = ("training.md", "ava.md", "epic.md", "kinetics.md", "results.md", "performance.md")
PAGES = README + "".join((ROOT / "docs" / name).read_text() for name in DOCS)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", PAGES, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith(("memvit ", "torchrun "))
]
# `torchrun ... -m memvit fit` is `memvit fit`, started otherwise.
COMMANDS = [command[command.index("memvit") :] for command in COMMANDS]
TRAINING = ("fit", "validate", "test")


@pytest.mark.parametrize("code", [code for code in PYTHON if "pretrained=True" not in code])
def test_python_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_sample_video("video.mp4", duration_s=3)
    exec(compile(code, "README.md", "exec"), {})


def test_examples_that_download_at_least_compile() -> None:
    (code,) = [code for code in PYTHON if "pretrained=True" in code]
    compile(code, "README.md", "exec")


GROUPS = [name for name, command in cli.COMMANDS.items() if isinstance(command, cli.Group)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[1])
def test_commands_have_the_options_shown(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if command[1] in TRAINING:  # these parse their options whatever follows
        with pytest.raises(SystemExit) as stopped:
            main([*command[1:], "--print_config"])
        assert stopped.value.code == 0
        return
    with pytest.raises(SystemExit) as stopped:
        main([*command[1 : 3 if command[1] in GROUPS else 2], "--help"])
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    for word in command[2:]:
        if word.startswith("--"):
            assert word in help_text


def test_the_training_that_is_shown_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's lines as they are, with fewer videos and steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shown = re.search(r"```sh\n(memvit data make.*?)```", README, re.DOTALL)
    assert shown is not None
    shorter = {
        "data": ["--videos", "40", "--eval_videos", "4"],
        "fit": ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3"],
    }
    for line in shown[1].splitlines():
        words = shlex.split(line, comments=True)[1:]
        assert main([*words, *shorter.get(words[0], [])]) == 0
    assert Path("predictions/test_00000/predictions.csv").is_file()
    assert Path("runs/recall/version_0/curves.png").is_file()


def test_every_model_is_named() -> None:
    missing = [name for name in list_models() if f"`{name}`" not in README and not name.startswith("mvit_")]
    assert missing == []


def test_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(pictures) == 3
    for picture in pictures:
        assert (ROOT / picture).is_file()
