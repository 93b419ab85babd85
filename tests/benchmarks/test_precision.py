"""What number formats cost is measured against float32, on the same games and clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memvit.benchmarks.precision import FORMATS, GAME_FORMATS, Int8Linear, main, paired_interval, round_to_int8


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("precision") / "precision.json"
    options = ["--games", "1", "--duration", "16", "--model", "memvit_nano", "--clips", "4", "--out", str(out)]
    assert main(options) == 0
    return json.loads(Path(out).read_text())


def test_every_format_plays_the_same_turns(result: dict[str, Any]) -> None:
    game = result["shell_game"]
    assert game["hidden_turns"] > 5
    assert list(game["models"]) == ["with memory", "without memory"]
    for formats in game["models"].values():
        assert tuple(formats) == GAME_FORMATS
        for row in formats.values():
            assert row["accuracy"] == pytest.approx(100 * row["right"] / game["hidden_turns"])
            low, high = row["interval"]
            assert low <= row["difference"] <= high


def test_float32_differs_from_itself_in_nothing(result: dict[str, Any]) -> None:
    for formats in result["shell_game"]["models"].values():
        row = formats["float32"]
        assert (row["difference"], row["same_guess"], row["largest_error"], row["relative_error"]) == (0, 1, 0, 0)


@pytest.mark.parametrize("number_format", GAME_FORMATS[1:])
def test_fewer_bits_hardly_ever_change_a_guess(result: dict[str, Any], number_format: str) -> None:
    formats = result["shell_game"]["models"]["with memory"]
    assert formats[number_format]["same_guess"] >= 0.9
    assert 0 < formats[number_format]["relative_error"] < 0.1


def test_logits_are_compared_at_every_clip_of_the_stream(result: dict[str, Any]) -> None:
    errors = result["logits"]["relative_errors"]
    assert set(errors) == {*FORMATS[1:], "bfloat16, plain PyTorch", "float32 of rounded inputs"}
    assert all(len(values) == 4 and min(values) > 0 and max(values) < 0.1 for values in errors.values())


def test_int8_keeps_every_number_to_half_a_level() -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    level = x.abs().amax(dim=1, keepdim=True) / 127
    error = (round_to_int8(x) - x).abs()
    assert (error <= 0.501 * level).all()
    assert error.max() > 0.4 * level.min()
    assert round_to_int8(torch.zeros(2, 3)).equal(torch.zeros(2, 3))


def test_an_int8_layer_is_within_two_percent_of_its_own() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 384), torch.randn(10, 96)
    with torch.no_grad():
        exact, own = linear(x), Int8Linear(linear)(x)
    assert 1e-4 < (own - exact).norm() / exact.norm() < 0.02


def test_the_interval_of_a_difference_knows_how_little_was_asked() -> None:
    right = [True] * 1000
    low, high = paired_interval(right, right, range(1000))
    assert low == -high
    assert 0.1 < high < 0.3  # nothing differed in 1000 questions
    assert paired_interval(right[:10], right[:10], range(10))[1] > 10


def test_the_interval_is_wider_where_questions_depend_on_each_other() -> None:
    own = [i % 10 != 0 for i in range(1000)]
    base = [True] * 1000
    alone = paired_interval(own, base, range(1000))
    # The wrong answers all in the same ten groups of a hundred.
    gathered = paired_interval(sorted(own), base, [i // 10 for i in range(1000)])
    assert alone == pytest.approx((-10 - 1.86, -10 + 1.86), abs=0.05)
    assert gathered[1] - gathered[0] > 2 * (alone[1] - alone[0])
