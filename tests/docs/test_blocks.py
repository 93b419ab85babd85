"""The checks of the pages notice what is wrong."""

from __future__ import annotations

import shlex

import pytest

from docs.blocks import Block, check_command, check_data, check_rule, find_blocks


def _block(text: str) -> Block:
    (block,) = find_blocks(text, "page.md")
    return block


def _command(line: str) -> None:
    check_command(shlex.split(line), "page.md:7")


def test_a_block_knows_its_place_rule_and_commands() -> None:
    block = _block("# Title\n\n<!-- test: run -->\n```sh\nmemvit info A \\\n    --json  # says it\n\nmake demo\n```\n")
    assert (block.place, block.rule, block.language) == ("page.md:4", "run", "sh")
    assert block.commands == [["memvit", "info", "A", "--json"], ["make", "demo"]]


@pytest.mark.parametrize(
    "fence", ["```", "```bash", "```rust", "<!-- test: skip -->\n```python", "<!-- test: run -->\n```csv"]
)
def test_a_block_without_a_rule_is_an_error(fence: str) -> None:
    with pytest.raises(AssertionError, match=r"page.md:\d: (no test for|there is no rule)"):
        check_rule(_block(f"{fence}\nx\n```\n"))


@pytest.mark.parametrize(
    "text", ["```python\nx = 1\n", "- a list\n  ```python\n  x = 1\n  ```\n", "~~~python\nx = 1\n~~~\n"]
)
def test_a_block_that_would_be_overlooked_is_an_error(text: str) -> None:
    with pytest.raises(AssertionError, match=r"page.md: .* fences and 0 blocks"):
        find_blocks(text, "page.md")


@pytest.mark.parametrize(
    "line",
    [
        "memvit predict video.mp4 --model memvit_tiny --overlays",
        "memvit predict video.mp4 --drop newest",
        "memvit recognise video.mp4",
        "memvit evaluate kinetics a.csv b.csv",
        "memvit fit --config configs/my_videos.yaml --optimizer.learning_rate 0.1",
        "memvit fit --config configs/my_videos.yaml --model.nme memvit_tiny",
        "memvit fit --config configs/my_videos.yaml --data.batch_size many",
        "memvit fit --config configs/no_such.yaml",
        "torchrun --nproc_per_node 2 -m memvit fit --config configs/my_videos.yaml --trainer.device 2",
    ],
)
def test_a_command_option_or_value_that_does_not_exist_is_an_error(line: str) -> None:
    with pytest.raises(AssertionError, match=r"page.md:7: memvit .*: \S+"):
        _command(line)


@pytest.mark.parametrize(
    "line",
    [
        "python -m memvit.nothing",
        "python docs/no_such.py",
        "make coffee",
        "pip install '.[coffee]'",
        "export PATH",
        "rm -rf build",
    ],
)
def test_other_commands_have_to_exist_too(line: str) -> None:
    with pytest.raises(AssertionError, match=r"page.md:7: "):
        _command(line)


def test_a_command_as_it_should_be_passes() -> None:
    _command("memvit predict video.mp4 --model memvit_tiny --overlay")
    _command("torchrun --nproc_per_node 2 -m memvit fit --config configs/my_videos.yaml --trainer.devices 2")
    _command("python -m memvit.benchmarks.loading")
    _command("make demo")
    _command("pip install '.[rfdetr]'")


@pytest.mark.parametrize("fence", ["```yaml\na: [1\n```\n", "```yaml\n```\n", "```csv\na,b\n```\n", "```csv\n```\n"])
def test_data_that_cannot_be_read_is_an_error(fence: str) -> None:
    with pytest.raises(AssertionError, match=r"page.md:1: "):
        check_data(_block(fence))
