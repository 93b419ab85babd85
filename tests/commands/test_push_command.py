from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import memvit
from commands.conftest import Run
from memvit.training.checkpoints import SECTION
from models.test_hub import TWO_HEADS, running_hub, use
from tiny_models import small_model


def write_run(run: Path, **overrides: object) -> memvit.MeMViT:
    """What a training leaves behind: best at step 8, last at step 12."""
    model = small_model(**overrides)
    model.save_pretrained(run / "model")
    (run / "checkpoints").mkdir()
    config, head = model.config.to_dict(), model.config.head
    for name in ("names", "anticipation_s"):
        del config["head"][name]
    own = {
        "identity": {"model": config},
        "head": {"head_names": head.names, "anticipation_s": head.anticipation_s},
    }
    for name, step in (("best", 8), ("last", 12)):
        content = {
            "state_dict": {f"network.{key}": tensor for key, tensor in model.state_dict().items()},
            "global_step": step,
            SECTION: own,
        }
        torch.save(content, run / "checkpoints" / f"{name}.ckpt")
    with (run / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "epoch", "batch", "train/loss", "val/top1"])
        rows.writerows([[8, 0, 7, 0.5, ""], [8, 0, "", "", 0.75], [12, 1, "", "", 0.5]])
    return model


def test_a_run_is_pushed_and_predicts_from_the_hub(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_run(tmp_path / "run", **TWO_HEADS)
    with running_hub() as hub:
        use(hub.url, monkeypatch, tmp_path)
        code, out, err = run("push", "run/model", "me/kitchen", "--license", "mit", "--private")
        assert (code, err) == (0, "")
        assert f"uploaded: {hub.url}/me/kitchen/commit/" in out
        assert "| val/top1 | 0.75 |" in hub.repos["me/kitchen"]["README.md"].decode()
        code, out, _ = run("predict", "data/one.mp4", "--model", "me/kitchen")
        assert code == 0
        assert "verb: verb" in out


def test_a_checkpoint_needs_nothing_else(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run", **TWO_HEADS, anticipation_s=1.0)
    code, out, err = run("predict", "data/ok.mp4", "--model", "run/checkpoints/best.ckpt", "--out", "a")
    assert (code, err) == (0, "")
    assert "noun: " in out
    assert run("predict", "data/ok.mp4", "--checkpoint", "run/checkpoints/best.ckpt", "--out", "b")[0] == 0
    assert run("predict", "data/ok.mp4", "--model", "run/model", "--out", "c")[0] == 0
    written = [Path(folder, "ok", "predictions.jsonl").read_text() for folder in "abc"]
    assert written[0] == written[1] == written[2]


def test_a_dry_run_prints_the_card_alone(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run", num_classes=2, class_names=(("a", "b"),))
    given = ("--license", "mit", "--dry_run")
    code, out, err = run("push", "run/checkpoints/last.ckpt", "me/kitchen", *given)
    assert (code, err) == (0, "")
    assert out.startswith("---\n")
    assert "| val/top1 | 0.5 |" in out
    _, out, _ = run("push", "run/model", "me/kitchen", *given, "--metrics", "top1=0.9", "--dataset", "My test")
    assert "On My test:" in out
    assert "| top1 | 0.9 |" in out
    assert "val/top1" not in out


def test_what_was_trained_from_the_authors_weights_keeps_their_licence(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "weights.txt").write_text("weights: memvit_16x4\n\nloaded: 3\n")
    code, out, _ = run("push", "run/model", "me/kitchen", "--dry_run")
    assert code == 0
    assert "license: cc-by-nc-4.0" in out
    assert "fine-tuned from those of MeMViT's authors" in out
    code, _, err = run("push", "run/model", "me/kitchen", "--dry_run", "--license", "mit")
    assert code == 1
    assert "CC BY-NC 4.0" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("data/model", "kitchen", "--license", "mit"), "OWNER/NAME"),
        (("data/model", "me/kitchen"), "under which licence is data/model? Give --license"),
        (("nowhere", "me/kitchen", "--license", "mit"), "nowhere: no such model"),
        (("none.ckpt", "me/kitchen", "--license", "mit"), "none.ckpt: no such checkpoint"),
        (("data/images", "me/kitchen", "--license", "mit"), "holds no config.json"),
        (("data/model", "me/kitchen", "--license", "mit", "--metrics", "top1"), "--metrics top1: give NAME=NUMBER"),
        (("data/model", "me/kitchen", "--license", "mit", "--card", "none.md"), "--card none.md cannot be read"),
        (("data/model", "me/kitchen", "--license", "mit"), "offline mode is on"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    run: Run, arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = run("push", *arguments)
    assert (code, out) == (1, "")
    assert says in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1


def test_a_checkpoint_beside_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    checkpoint = "run/checkpoints/best.ckpt"
    for arguments in (
        ("--model", "data/model", "--checkpoint", checkpoint),
        ("--model", checkpoint, "--checkpoint", checkpoint),
    ):
        code, _, err = run("predict", "data/one.mp4", *arguments)
        assert code == 1
        assert "leave --model" in err or "name two models" in err
