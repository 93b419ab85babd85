from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from commands.conftest import Run
from memvit.kernels.status import status
from memvit.online.results import read_summary
from tiny_models import small_model

GOLDEN = Path(__file__).parents[1] / "golden"


def test_info_shows_figures_with_overrides(run: Run) -> None:
    code, out, _ = run("info", "memvit_16x4", "--memory_length", "4", "--num_classes", "97", "300")
    assert code == 0
    assert "97 + 300 classes" in out
    assert "32 clips back, 70.4 s" in out


def test_info_as_json(run: Run) -> None:
    code, out, _ = run("info", "data/model", "--json", "--memory_layers", "1", "3")
    assert code == 0
    summary = json.loads(out)
    assert summary["memory_layers"] == [1, 3]
    assert summary["support_clips"] == 2 * 2


def test_info_says_which_kernels_run(run: Run) -> None:
    part = "attention, pooling and norms on CPUs"
    assert f"{part}: {status()[part]}" in run("info", "memvit_nano")[1]
    assert json.loads(run("info", "memvit_nano", "--json")[1])["kernels"] == status()


def test_info_says_what_a_model_anticipates(run: Run) -> None:
    heads = {"num_classes": (2, 3), "head_names": ("verb", "noun")}
    small_model(**heads, anticipation_s=1.0).save_pretrained("clips")
    small_model(**heads, anticipation_s=0.5, head_task="frames").save_pretrained("frames")
    _, out, _ = run("info", "clips")
    assert "verb, noun" in out
    assert "what goes on 1 s after the end of a clip" in out
    assert "what goes on 0.5 s after the last frame of a token time" in run("info", "frames")[1]
    assert "anticipates" not in run("info", "data/model")[1]
    summary = json.loads(run("info", "clips", "--json")[1])
    assert (summary["head_names"], summary["anticipation_s"]) == (["verb", "noun"], 1.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("memvit_huge",), "unknown model"),
        (("data/model", "--memory_layers", "late", "early"), "--memory_layers late early"),
        (("data/model", "--memory_gap", "0"), "memory.gap=0"),
        (("data/images",), "holds no config.json"),
    ],
)
def test_info_on_a_wrong_model_is_one_line(run: Run, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = run("info", *arguments)
    assert code == 1
    assert says in err
    assert err.count("\n") == 1


def test_cost_prints_and_draws(run: Run) -> None:
    code, out, _ = run("cost", "data/model", "--out", "costs")
    assert code == 0
    assert "M = 8" in out
    assert "60 × frames" in out
    assert {path.name for path in Path("costs").iterdir()} == {"cost.csv", "cost.json", "cost.png"}


def test_cost_as_json_is_all_that_is_printed(run: Run) -> None:
    code, out, err = run("cost", "data/model", "--out", "costs", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(Path("costs/cost.json").read_text())
    assert "M = 8" in err


def test_the_authors_files_predict_the_same_converted_or_not(run: Run) -> None:
    files = ("--config", str(GOLDEN / "cls_all.yaml"), "--checkpoint", str(GOLDEN / "cls_all.pyth"))
    code, out, _ = run("convert", "converted", *files)
    assert code == 0
    assert "parameters loaded" in out
    assert {"config.json", "model.safetensors"} <= {path.name for path in Path("converted").iterdir()}
    assert run("predict", "data/ok.mp4", *files, "--out", "a")[0] == 0
    assert run("predict", "data/ok.mp4", "--model", "converted", "--out", "b")[0] == 0
    assert Path("a/ok/predictions.jsonl").read_text() == Path("b/ok/predictions.jsonl").read_text()
    assert not read_summary("a/ok").untrained


def test_a_config_without_a_checkpoint_has_random_weights(run: Run) -> None:
    code, _, err = run("predict", "data/one.mp4", "--config", str(GOLDEN / "cls_all.yaml"), "--out", "out")
    assert code == 0
    assert "warning: cls_all: weights are random" in err
    assert read_summary("out/one").untrained


def test_a_checkpoint_of_another_model_is_one_line(run: Run) -> None:
    for arguments in (
        ("convert", "x", "--config", str(GOLDEN / "cls_all.yaml"), "--checkpoint", str(GOLDEN / "det_wide.pyth")),
        ("predict", "data/ok.mp4", "--model", "memvit_tiny", "--checkpoint", str(GOLDEN / "det_wide.pyth")),
    ):
        code, _, err = run(*arguments)
        assert code == 1
        assert "is of another model" in err
        assert err.count("\n") == 1
    assert not Path("x").exists()


def test_a_checkpoint_fills_a_preset(run: Run) -> None:
    from memvit import MeMViT
    from memvit.models.presets import PRESETS
    from memvit.models.slowfast import release_name

    model = MeMViT(PRESETS["memvit_tiny"].replace(num_classes=7, memory_length=1))
    torch.save({"model_state": {release_name(k): v for k, v in model.state_dict().items()}}, "tiny.pyth")
    out = ("--out", "out", "--topk", "9")
    code, _, err = run("predict", "data/one.mp4", "--model", "memvit_tiny", "--checkpoint", "tiny.pyth", *out)
    assert code == 0
    assert "random" not in err
    assert len(json.loads(Path("out/one/predictions.jsonl").read_text())["topk"][0]) == 7
