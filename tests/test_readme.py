"""What the README shows works as shown."""

import re
import shlex
from pathlib import Path

import pytest

from memvit.cli import main
from memvit.models.zoo import list_models
from memvit.video.sample import make_sample_video

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("memvit ")
]


@pytest.mark.parametrize("code", [code for code in PYTHON if "pretrained=True" not in code])
def test_python_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo-output").mkdir()
    make_sample_video("demo-output/sample.mp4", duration_s=3)
    exec(compile(code, "README.md", "exec"), {})


def test_examples_that_download_at_least_compile() -> None:
    (code,) = [code for code in PYTHON if "pretrained=True" in code]
    compile(code, "README.md", "exec")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[1])
def test_commands_have_the_options_shown(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command[1], "--help"])
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    for word in command[2:]:
        if word.startswith("--"):
            assert word in help_text


def test_every_model_is_named() -> None:
    missing = [name for name in list_models() if f"`{name}`" not in README and not name.startswith("mvit_")]
    assert missing == []


def test_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(pictures) == 2
    for picture in pictures:
        assert (Path(__file__).parent.parent / picture).is_file()
