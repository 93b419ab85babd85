"""The demo: a new game, two models of the package, and what they leave behind."""

import json
from pathlib import Path

import numpy as np
import pytest

from memvit.cli import main
from memvit.demo.pack import pack
from memvit.demo.shell_game import MODELS, accuracy, load_models, record_game, watch
from memvit.video import VideoReader


def test_memory_follows_the_ball_and_without_it_the_models_guess(tmp_path):
    models = load_models()
    right, total = dict.fromkeys(models, 0), 0
    for seed in (1001, 1002, 1003):
        _, scene = record_game(tmp_path / str(seed), seed=seed, duration_s=40, size=64, fps=8)
        turns = watch(tmp_path / str(seed), scene, models)
        assert len(turns) == 39
        for name in models:
            score, hidden = accuracy(turns, name)
            right[name] += score
        total += hidden
    assert total > 60
    assert right["with memory"] / total > 0.85
    assert 0.15 < right["without memory"] / total < 0.55  # chance is a third


def test_both_models_know_where_a_ball_is_that_is_shown(tmp_path):
    _, scene = record_game(tmp_path, seed=7, duration_s=30, size=64, fps=8)
    models = load_models()
    shown = [turn for turn in watch(tmp_path, scene, models) if turn.hidden_s == 0]
    for name in models:
        assert np.mean([turn.guess(name) == turn.holder for turn in shown]) > 0.95


def test_the_models_are_small():
    files = list(MODELS.rglob("*.safetensors"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < 4e6


def test_the_demo_ends_with_all_its_results(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "demo", "--duration", "6", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    for name in ("videos/game.mp4", "overlay.mp4", "timeline.png", "picture.png"):
        assert Path("demo", name).stat().st_size > 0
        assert f"demo/{name}" in out
    game, overlay = VideoReader("demo/videos/game.mp4"), VideoReader("demo/overlay.mp4")
    assert len(list(game)) == len(list(overlay)) == 6 * 24
    assert overlay.info.height > game.info.height
    summary = json.loads(Path("demo/summary.json").read_text())
    assert summary["seed"] == 5
    assert set(summary["accuracy"]) == {"with memory", "without memory"}
    assert main(["demo", "--out", "demo/overlay.mp4"]) == 1


def test_every_demo_is_another_game_unless_a_seed_is_given(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seeds = []
    for folder in ("a", "b"):
        assert main(["demo", "--out", folder, "--duration", "4"]) == 0
        seeds.append(json.loads(Path(folder, "summary.json").read_text())["seed"])
    assert seeds[0] != seeds[1]
    assert main(["demo", "--duration", "2"]) == 1
    assert "4 seconds or more" in capsys.readouterr().err


def test_a_run_without_a_model_cannot_be_packed(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no model"):
        pack(tmp_path, tmp_path / "out")
