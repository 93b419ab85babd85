"""What README and documentation show works as shown.

Every fenced block is run or at least parsed. Its language says how, or a comment on the line above:

- `python` runs, with `video.mp4` beside it; after `<!-- test: compile -->`, for what needs files or a network that tests lack,
  it is only compiled.
- `sh` is parsed line by line by the command's own parser.
- `<!-- test: run -->`: the page's blocks run in order, in one folder. Training gets fewer steps.
- `<!-- test: file PATH -->`: the block is written there, for those that run.
- `csv` and `yaml` are read; `text` shows a layout.
"""

from __future__ import annotations

import importlib.util
import io
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml

from memvit.cli import TRAINING_COMMANDS, build_parser, main
from memvit.video.sample import make_sample_video

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:<!-- test: ([^\n]*?) -->\n)?^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPHINX = ("{toctree}", "{eval-rst}")
# What is appended to the lines of a page that runs, so that it takes seconds.
SHORTER = {"fit": ["--trainer.max_epochs", "1", "--data.num_workers", "0", "--data.batch_size", "2"]}
SHORTER["test"] = SHORTER["fit"][2:]


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, how it is tested (None: by its language), its language and text."""

    place: str
    rule: str | None
    language: str
    text: str

    @property
    def lines(self) -> list[list[str]]:
        """The commands of a shell block, split into words."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in joined) if words]


def _blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start(2)) + 1}", *match.groups())
        for match in FENCE.finditer(text)
        if match[2] not in SPHINX
    ]


ALL = [block for page in PAGES for block in _blocks(page)]


def _of(language: str, *rules: str | None) -> list[object]:
    chosen = [block for block in ALL if block.language == language and block.rule in rules]
    return [pytest.param(block, id=block.place) for block in chosen]


def test_every_block_is_tested() -> None:
    languages = {None: {"python", "sh", "csv", "yaml", "text"}, "run": {"python", "sh"}, "compile": {"python"}}
    for block in ALL:
        if block.rule is not None and block.rule.startswith("file "):
            continue
        assert block.rule in languages, f"{block.place}: there is no rule {block.rule!r}"
        assert block.language in languages[block.rule], f"{block.place}: no test for {block.language!r}"


@pytest.mark.parametrize("block", _of("python", None))
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_sample_video("video.mp4", duration_s=3)
    exec(compile(block.text, block.place, "exec"), {})


@pytest.mark.parametrize("block", _of("python", "compile"))
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec")


@pytest.mark.parametrize("block", [*_of("sh", None), *_of("sh", "run")])
def test_commands_are_understood(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in block.lines:
        _understand(words, block.place)


def _understand(words: list[str], place: str) -> None:
    if words[0] == "torchrun":  # `torchrun ... -m memvit fit` is `memvit fit`, started otherwise
        words = words[words.index("memvit") :]
    if words[0] == "memvit" and words[1] in TRAINING_COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([*words[1:], "--print_config"])
        assert stopped.value.code == 0, place
    elif words[0] == "memvit":
        build_parser().parse_args(words[1:])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None, place
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), place
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(\w+)\]", words[2])) <= set(extras), place
    else:
        pytest.fail(f"{place}: no test for the command {words[0]!r}")


@pytest.mark.parametrize("block", [*_of("csv", None), *_of("yaml", None)])
def test_data_can_be_read(block: Block) -> None:
    if block.language == "csv":
        assert not pd.read_csv(io.StringIO(block.text)).empty
    else:
        assert yaml.safe_load(block.text) is not None


def test_from_a_folder_of_videos_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole page, in order: nothing but the videos is there before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    videos = tmp_path / "my_videos" / "videos"
    videos.mkdir(parents=True)
    for number in range(1, 5):
        make_sample_video(videos / f"kitchen_{number:02d}.mp4", duration_s=5)
    make_sample_video("new_video.mp4", duration_s=5)

    for block in _blocks(ROOT / "docs" / "your-data.md"):
        assert block.rule is not None, block.place
        if block.rule.startswith("file "):
            Path(block.rule.removeprefix("file ")).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, block.place, "exec"), {})
        else:
            for words in block.lines:
                assert main([*words[1:], *SHORTER.get(words[1], [])]) == 0, words

    assert not pd.read_csv("predictions/new_video/predictions.csv").empty
    assert Path("predictions/new_video/overlay.mp4").is_file()
