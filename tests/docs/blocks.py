"""Fenced blocks of the README and the documentation, and how each is checked.

Its language says how, or a comment on the line above:

- `python` runs, with `video.mp4` beside it; after `<!-- test: compile -->`, for what needs files or a network that tests lack,
  it is only compiled.
- `sh` is parsed line by line by the command's own parser.
- `<!-- test: run -->`: the page's blocks run in order, in one folder.
- `<!-- test: file PATH -->`: the block is written there, for those that run.
- `csv` and `yaml` are read; `text` shows a layout.

A block that fits none of these is an error, and so is a command, option or value that does not exist.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from memvit.cli import TRAINING_COMMANDS, build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:<!-- test: ([^\n]*?) -->\n)?^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPHINX = ("{toctree}", "{eval-rst}")
LANGUAGES = {None: {"python", "sh", "csv", "yaml", "text"}, "run": {"python", "sh"}, "compile": {"python"}}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, how it is tested (None: by its language), its language and text."""

    place: str
    rule: str | None
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a shell block, split into words."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in joined) if words]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, but for Sphinx's directives."""
    return find_blocks(page.read_text(), str(page.relative_to(ROOT)))


def find_blocks(text: str, name: str) -> list[Block]:
    """The blocks of a page's text.

    Raises:
        AssertionError: a fence that belongs to no block, which nobody would test.
    """
    found = list(FENCE.finditer(text))
    fences = len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE))
    assert fences == 2 * len(found), (
        f"{name}: {fences} fences and {len(found)} blocks: close them, and do not indent them"
    )
    return [
        Block(f"{name}:{text.count(chr(10), 0, match.start(2)) + 1}", *match.groups())
        for match in found
        if match[2] not in SPHINX
    ]


def check_rule(block: Block) -> None:
    """Checks that there is a test for a block.

    Raises:
        AssertionError: there is none.
    """
    if block.rule is not None and block.rule.startswith("file "):
        return
    assert block.rule in LANGUAGES, f"{block.place}: there is no rule {block.rule!r}"
    assert block.language in LANGUAGES[block.rule], f"{block.place}: no test for {block.language!r}"


def check_data(block: Block) -> None:
    """Reads a block of data.

    Raises:
        AssertionError: it cannot be read, or is empty.
    """
    try:
        content = pd.read_csv(io.StringIO(block.text)) if block.language == "csv" else yaml.safe_load(block.text)
    except (ValueError, yaml.YAMLError) as error:
        raise AssertionError(f"{block.place}: {error}") from error
    size = 0 if content is None else len(content)
    assert size > 0, f"{block.place}: there is nothing in it"


def check_command(words: list[str], place: str) -> None:
    """Has a command parsed by its own parser, in the project's folder.

    Raises:
        AssertionError: there is no such command, option or value.
    """
    if words[0] == "export":  # sets variables for the lines after it
        assert all(re.match(r"[A-Z_]+=", word) for word in words[1:]), f"{place}: {shlex.join(words)} sets no variable"
        return
    if words[0] == "torchrun":  # `torchrun ... -m memvit fit` is `memvit fit`, started otherwise
        words = words[words.index("memvit") :]
    if words[0] == "memvit":
        with contextlib.chdir(ROOT):
            why = _refusal(*words[1:])
        assert why is None, f"{place}: {shlex.join(words)}: {why}"
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None, f"{place}: there is no module {words[2]}"
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"{place}: there is no file {words[1]}"
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"{place}: make knows no {words[1]}"
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\[(\w+)\]", words[2])) <= set(extras), f"{place}: there is no extra of {words[2]}"
    else:
        raise AssertionError(f"{place}: no test for the command {words[0]!r}")


@functools.cache  # several pages show the same command
def _refusal(*arguments: str) -> str | None:
    """Why memvit's parsers do not take arguments; None where they do."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            if arguments[0] in TRAINING_COMMANDS:
                _training_parser().parse_args(list(arguments))
            else:
                build_parser(arguments[0]).parse_args(list(arguments))
    except SystemExit as stopped:
        return None if stopped.code == 0 else said.getvalue().strip()
    return None


@functools.cache
def _training_parser():
    """The parser of `memvit fit` and its like, without the training."""
    from rich.console import Console

    from memvit.training.cli import TrainingCLI

    class Parser(TrainingCLI):
        def __init__(self) -> None:
            with contextlib.suppress(_ParserReadyError):
                super().__init__(Console(), [])

        def parse_arguments(self, parser: object, args: object) -> None:
            raise _ParserReadyError

    return Parser().parser


class _ParserReadyError(Exception):
    """All options have been added."""
