from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import memvit
from memvit.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _accuracy(rows: list[dict[str, str]]) -> float:
    right = [row["label"] == row["predicted"] for row in rows if row["label"]]
    return sum(right) / len(right)


def test_the_general_help_names_training_without_waiting_for_pytorch() -> None:
    code = "import sys, memvit.cli\ntry: memvit.cli.main(['--help'])\nfinally: print({'lightning', 'torch'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "fit                 Train a model" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "set()"


def test_every_option_of_ours_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("fit", "validate", "test"):
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        out = capsys.readouterr().out
        for option in ("--model.weights", "--optimizer.layer_decay", "--run.ema_decay", "--trainer.max_epochs"):
            assert option in out
        assert "--ckpt_path" in out
    with pytest.raises(SystemExit):
        main(["fit", "--data.help", "SegmentsData"])
    out = capsys.readouterr().out
    for option in ("--data.anticipation_s", "--data.batch_size", "--data.augmentation.horizontal_flip"):
        assert option in out


def test_one_batch_is_not_all_of_them(config: Path, tmp_path: Path) -> None:
    """In a process of its own: what Lightning's annotations mean depends on what was imported before it."""
    path = tmp_path / "limits.yaml"
    path.write_text("trainer: {limit_train_batches: 1, limit_test_batches: 1.0}")
    options = [
        "--trainer.limit_val_batches",
        "1",
        "--trainer.limit_predict_batches=1.0",
        "--trainer.overfit_batches",
        "2",
    ]
    command = [sys.executable, "-m", "memvit", "fit", "--config", str(config), "--config", str(path), *options]
    done = subprocess.run([*command, "--print_config"], capture_output=True, text=True, check=True)
    trainer = yaml.safe_load(done.stdout)["trainer"]
    found = {
        name: repr(value) for name, value in trainer.items() if name.startswith("limit_") or name == "overfit_batches"
    }
    assert found == {
        "limit_train_batches": "1",
        "limit_val_batches": "1",
        "limit_test_batches": "1.0",
        "limit_predict_batches": "1.0",
        "overfit_batches": "2",
    }


def test_training_ends_with_a_model_that_predicts(
    config: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    predictions = tmp_path / "deep" / "predictions.csv"
    assert main(["fit", "--config", str(config), "--model.predictions", str(predictions)]) == 0
    assert not predictions.parent.exists()
    report = capsys.readouterr().err
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert "5 videos to train on, 2 to validate with; 3 classes per clip" in report
    assert "best val/top1" in report
    assert "clips/s" in report
    assert str(run / "model") in report
    assert {path.name for path in run.iterdir()} >= {"checkpoints", "config.yaml", "curves.png", "metrics.csv", "model"}
    assert list(run.glob("events.out.tfevents.*"))
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["batch_size"] == 2
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    steps = [row for row in _rows(run / "metrics.csv") if row["train/loss"]]
    assert len(steps) == 32
    assert float(steps[-1]["train/lr"]) == pytest.approx(1e-6)

    model = memvit.create_model(run / "model")
    assert model.config.head.class_names == (("blue", "green", "red"),)
    assert main(["predict", str(dataset / "videos" / "test0.mp4"), "--model", str(run / "model")]) == 0
    assert "blue" in (tmp_path / "predictions" / "test0" / "predictions.jsonl").read_text()

    # What training validated is what `validate` measures, from the checkpoint and from the model.
    best = max(float(row["val/top1"]) for row in _rows(run / "metrics.csv") if row["val/top1"])
    measured = {"--ckpt_path best": run / "checkpoints" / "best.ckpt", f"--model.weights {run}/model": run / "model"}
    for source, told in measured.items():
        capsys.readouterr()
        validate = ["validate", "--config", str(config), *source.split()]
        assert main([*validate, "--model.predictions", str(predictions)]) == 0
        printed = capsys.readouterr()
        assert f"top1                │ {best:.4g} %" in printed.out
        assert f"measuring {told}\n" in printed.err
        rows = _rows(predictions)
        assert {row["video"] for row in rows} == {"val0.mp4", "val1.mp4"}
        assert 100 * _accuracy(rows) == pytest.approx(best, abs=0.01)

    saved = str(run / "config.yaml")
    arguments = ["test", "--config", saved, "--ckpt_path", "last", "--model.predictions", str(predictions)]
    assert main(arguments) == 0
    top1 = float(next(line for line in capsys.readouterr().out.splitlines() if "top1" in line).split("│")[2].split()[0])
    rows = _rows(predictions)
    assert [row["start_s"] for row in rows if row["video"] == "test0.mp4"] == ["0.0", "0.5", "1.0", "1.5"]
    assert 100 * _accuracy(rows) == pytest.approx(top1, abs=0.01)
    assert all(1 / 3 <= float(row["score"]) <= 1 for row in rows)


@pytest.mark.parametrize("lacks", [True, False])
def test_bfloat16_on_a_processor_without_it_is_warned_of(
    lacks: bool, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memvit.training.cli.lacks_bfloat16", lambda: lacks)
    fit = ["fit", "--config", str(config), "--trainer.fast_dev_run", "true", "--trainer.precision", "bf16-mixed"]
    assert main(fit) == 0
    said = capsys.readouterr().err
    assert ("no instructions for bfloat16" in said) == lacks
    assert lacks == ("--trainer.precision bf16-mixed as without it" in " ".join(said.split()))


def test_a_training_starts_from_a_model_with_other_classes(config: Path, tmp_path: Path) -> None:
    quick = ["fit", "--config", str(config), "--trainer.max_steps", "2", "--trainer.max_epochs", "-1"]
    assert main([*quick, "--optimizer.warmup_epochs", "0"]) == 0
    model = tmp_path / "runs" / "tiny" / "version_0" / "model"
    sides = ["--data.train", "train_sides.csv", "--data.val", "null", "--optimizer.warmup_epochs", "0"]
    assert main([*quick, *sides, "--model.weights", str(model)]) == 0
    listing = (tmp_path / "runs" / "tiny" / "version_1" / "weights.txt").read_text()
    assert "new: 4" in listing
    assert "head.projection.1.weight" in listing


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            "--trainer.check_val_every_n_epoch=2",
            "nothing was validated in 2 steps: --trainer.val_check_interval is 1.0, --trainer.check_val_every_n_epoch 2",
        ),
        ("--trainer.limit_val_batches=0", "nothing was validated: --trainer.limit_val_batches is 0"),
        ("--data.val=null", "there is nothing to validate with"),
    ],
)
def test_a_run_without_validation_says_that_it_has_no_best(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, why: str
) -> None:
    quick = ["--config", str(config), "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    assert main(["fit", *quick]) == 0
    assert "no best" not in capsys.readouterr().err
    assert main(["fit", *quick, options]) == 0
    assert f"no best checkpoint, as {why}; the model is the last state" in capsys.readouterr().err
    # The run before has one, which is another's.
    validate = ["validate", "--config", str(config), "--ckpt_path"]
    assert main([*validate, "best"]) == 1
    error = capsys.readouterr().err
    newest = tmp_path / "runs" / "tiny" / "version_1"
    assert f"error: --ckpt_path best: {newest} has none: it has not been validated yet" in error
    assert main([*validate, "last"]) == 0
    assert f"measuring {newest}/checkpoints/last.ckpt" in capsys.readouterr().err


def test_nothing_is_measured_where_nothing_is_labelled(
    config: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns, *segments, last = (dataset / "val.csv").read_text().splitlines()
    late = tmp_path / "late.csv"
    late.write_text("\n".join([columns, *(f"{segment.rpartition(',')[0]}," for segment in segments), last]))
    options = ["--config", str(config), "--data.val", str(late), "--trainer.limit_val_batches=0.5"]
    assert main(["fit", *options, "--trainer.max_epochs=1"]) == 0
    printed = capsys.readouterr()
    assert "nan" not in printed.err
    assert "no best checkpoint, as no validation gave a number" in printed.err
    assert main(["validate", *options, "--ckpt_path", "last"]) == 0
    printed = capsys.readouterr()
    assert "nothing is labelled, so nothing is measured" in printed.err
    assert printed.out == ""


def test_videos_that_cannot_be_read_are_counted(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.tiny_data import write_dataset

    root = write_dataset(tmp_path / "broken", {"train": (2, 2, 2), "val": (2,)})
    video = root / "videos" / "train1.mp4"
    video.write_bytes(b"no video")
    options = ["--data.root", str(root), "--data.max_failed_share", "1", "--data.skip_unreadable", "true"]
    assert main(["fit", "--config", str(config), *options, "--trainer.max_epochs", "2"]) == 0
    assert "train1.mp4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model.name", "memvit_huge"], "model.name='memvit_huge' is unknown; models are"),
        (["--model.options.depht", "3"], "unknown model option 'depht'"),
        (["--data.train", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--optimizer.lr", "-1"], "optimizer.lr=-1.0 must be more than 0"),
        (["--run.monitor", "val/nothing"], "run.monitor='val/nothing' is not measured; metrics are val/top1"),
        (["--model.weights", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["--ckpt_path", "nowhere.ckpt"], "--ckpt_path nowhere.ckpt: no such file"),
    ],
)
def test_mistakes_are_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["fit", "--config", str(config), *arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert says in lines[-1]
    assert lines[-1].startswith("error: ")


def test_unknown_options_are_exit_code_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(config), "--optimizer.learning_rate", "1"])
    assert stopped.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


def test_measuring_nothing_says_what_to_give(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--config", str(config)]) == 1
    assert "Give --ckpt_path" in capsys.readouterr().err
    assert main(["test", "--config", str(config), "--ckpt_path", "best"]) == 1
    assert "check --run.name" in capsys.readouterr().err


def test_the_configurations_that_come_along_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    names = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    assert names >= {"my_videos.yaml", "recall.yaml", "recipe.yaml", "shell_game.yaml", "ava/memvit_16x4_k400.yaml"}
    for name in names:
        with pytest.raises(SystemExit) as stopped:
            main(["fit", "--config", str(CONFIGS / name), "--print_config"])
        assert stopped.value.code == 0
        assert "class_path: memvit.training." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "says"),
    [(4, "--ckpt_path last goes on from the last checkpoint"), (1, "no checkpoint yet: start it anew")],
)
def test_ctrl_c_is_130_and_says_how_to_go_on(config: Path, step: int, says: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    callback = ["--trainer.callbacks+=training.tiny_data.InterruptAt", f"--trainer.callbacks.step={step}"]
    command = [sys.executable, "-m", "memvit", "fit", "--config", str(config), *callback]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 130, ended.stderr
    assert f"version_0: {says}\n" in ended.stderr
    assert ended.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in ended.stderr
