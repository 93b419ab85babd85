"""What README and documentation show works as shown: every block is run, or at least parsed (`blocks.py` says how)."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from docs.blocks import PAGES, ROOT, Block, blocks_of, check_command, check_data, check_rule
from memvit.cli import main
from memvit.models.zoo import list_models
from memvit.video.sample import make_sample_video

README = (ROOT / "README.md").read_text()
ALL = [block for page in PAGES for block in blocks_of(page)]
# What is appended to the lines of pages that run, so that they take seconds.
SHORT_TEST = ["--data.num_workers", "0", "--data.batch_size", "2"]
SHORT_TRAINING = {"fit": ["--trainer.max_epochs", "1", *SHORT_TEST], "test": SHORT_TEST}
SHORT_RECALL = {
    "data": ["--videos", "40", "--eval_videos", "4"],
    "fit": ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3"],
}


def _of(language: str, *rules: str | None) -> list[object]:
    chosen = [block for block in ALL if block.language == language and block.rule in rules]
    return [pytest.param(block, id=block.place) for block in chosen]


def test_every_block_is_tested() -> None:
    for block in ALL:
        check_rule(block)


@pytest.mark.parametrize("block", _of("python", None))
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_sample_video("video.mp4", duration_s=3)
    exec(compile(block.text, block.place, "exec"), {})


@pytest.mark.parametrize("block", _of("python", "compile"))
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec")


def test_commands_are_understood() -> None:
    blocks = [block for block in ALL if block.language == "sh"]
    for block in blocks:
        for words in block.commands:
            check_command(words, block.place)
    assert len(blocks) > 30


@pytest.mark.parametrize("block", [*_of("csv", None), *_of("yaml", None)])
def test_data_can_be_read(block: Block) -> None:
    check_data(block)


def test_from_a_folder_of_videos_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole page, in order: nothing but the videos is there before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    videos = tmp_path / "my_videos" / "videos"
    videos.mkdir(parents=True)
    for number in range(1, 5):
        make_sample_video(videos / f"kitchen_{number:02d}.mp4", duration_s=5)
    make_sample_video("new_video.mp4", duration_s=5)

    for block in blocks_of(ROOT / "docs" / "your-data.md"):
        assert block.rule is not None, block.place
        if block.rule.startswith("file "):
            Path(block.rule.removeprefix("file ")).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, block.place, "exec"), {})
        else:
            for words in block.commands:
                assert main([*words[1:], *SHORT_TRAINING.get(words[1], [])]) == 0, words

    assert not pd.read_csv("predictions/new_video/predictions.csv").empty
    assert Path("predictions/new_video/overlay.mp4").is_file()
    assert Path("predictions/new_video/report.html").is_file()


def test_the_training_that_the_readme_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines as they are, with fewer videos and steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (block,) = [b for b in blocks_of(ROOT / "README.md") if b.text.startswith("memvit data make")]
    for words in block.commands:
        assert main([*words[1:], *SHORT_RECALL.get(words[1], [])]) == 0, words
    assert Path("predictions/test_00000/predictions.csv").is_file()
    assert Path("runs/recall/version_0/curves.png").is_file()


def test_the_readme_names_every_model() -> None:
    missing = [name for name in list_models() if f"`{name}`" not in README and not name.startswith("mvit_")]
    assert missing == []


def test_what_the_readme_links_to_is_there() -> None:
    """Sphinx checks the links of the other pages."""
    targets = [target for target in re.findall(r"\]\(([^)#]+)", README) if "://" not in target]
    assert [target for target in targets if not (ROOT / target).exists()] == []
    assert len(targets) > 10
