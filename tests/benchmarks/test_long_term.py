"""The long-term evidence: what is trained, how it is measured by delay, and what becomes of the results."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import memvit
from memvit.benchmarks.delays import anticipation_by_delay, hits_by_delay, read_delays, summarise
from memvit.benchmarks.joint_cost import measure
from memvit.benchmarks.long_term import CONFIGS, TASKS, main, trainings
from memvit.benchmarks.long_term_report import ABLATIONS, BEGIN, CURVES, END, EPIC_ROWS, write_report
from memvit.datasets.scenes import RecallOptions
from memvit.datasets.synthetic import make_dataset
from memvit.models.presets import PRESETS

TABLES = ("gain", *ABLATIONS, "pretraining", "joint", "epic")


def test_every_training_has_its_own_name_a_config_and_options_that_make_a_model():
    known = {training.name: training for training in trainings()}
    assert len(known) == len(list(trainings()))
    for training in known.values():
        assert Path(__file__).parents[2].joinpath(CONFIGS, f"{training.task}.yaml").is_file()
        assert training.start is None or training.start in known
        PRESETS["memvit_nano"].replace(**training.options)
    shown = {name for _, runs in ABLATIONS.values() for _, name in runs} | {name for name, _, _ in CURVES}
    assert shown <= set(known)


def test_memory_and_no_memory_differ_in_nothing_else():
    of_group_a = [t for t in trainings() if "a" in t.groups]
    assert Counter(t.task for t in of_group_a) == dict.fromkeys(TASKS, 6)
    assert {json.dumps(dict(t.options)) for t in of_group_a} == {"{}", '{"memory_length": 0}'}


@pytest.mark.parametrize("task", ["recall", "shell_game", "recipe"])
def test_every_clip_of_the_test_is_counted_once_at_its_delay(task, tmp_path):
    root = make_dataset(task, tmp_path, videos=1, eval_videos=5, size=32)
    classes = {"recall": (("red", "green", "blue", "yellow"),), "shell_game": (("empty", "ball"),)}
    classes["recipe"] = (("cut", "stir", "take", "wash"), ("cucumber", "lemon", "plum", "tomato"))
    model = memvit.create_model(
        "memvit_nano",
        crop_size=32,
        num_classes=tuple(map(len, classes[task])),
        class_names=classes[task],
        task="boxes" if task == "shell_game" else "clip",
    )
    hits = hits_by_delay(model, task, root)
    expected = Counter(int(delay_s) for delay_s in read_delays(root / "test_delays.csv").values())
    assert {delay: len(rows) for delay, rows in hits.items()} == expected


def test_anticipation_is_asked_once_before_every_step_that_follows_from_what_was_taken(tmp_path):
    root = make_dataset("recipe", tmp_path, videos=1, eval_videos=4, size=32)
    names = (("cut", "stir", "take", "wash"), ("cucumber", "lemon", "plum", "tomato"))
    model = memvit.create_model(
        "memvit_nano", crop_size=32, num_classes=(4, 4), class_names=names, task="frames", causal=True
    )
    with torch.no_grad():
        for linear, best in zip(model.head.projection, (0, 3), strict=True):
            linear.weight.zero_()
            linear.bias.copy_(torch.eye(4)[best])
    rows = [row for hits in anticipation_by_delay(model, root).values() for row in hits]
    steps = [line.split(",")[1:] for line in (root / "test.csv").read_text().splitlines()[1:] if ",take," not in line]
    # A step that the end of the video cuts off may be over a second after the last token time (two frames) before it.
    asked = [(verb, noun) for start_s, end_s, verb, noun in steps if float(end_s) - float(start_s) >= 1]
    assert len(rows) == len(asked) < len(steps)
    assert sum(verb for verb, _ in rows) == sum(verb == "cut" for verb, _ in asked)
    assert sum(noun for _, noun in rows) == sum(noun == "tomato" for _, noun in asked)


def test_a_model_that_always_says_red_is_right_where_it_is_red(tmp_path):
    root = make_dataset("recall", tmp_path, videos=1, eval_videos=8, size=32, options=RecallOptions(3, 3))
    model = memvit.create_model(
        "memvit_nano", crop_size=32, num_classes=4, class_names=(("red", "green", "blue", "yellow"),)
    )
    with torch.no_grad():
        model.head.projection.weight.zero_()
        model.head.projection.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
    num_red = sum("red" in line for line in (root / "test.csv").read_text().splitlines())
    by_delay = summarise(hits_by_delay(model, "recall", root))
    assert {d: (v["clips"], v["accuracy"]) for d, v in by_delay.items()} == dict.fromkeys("012", (8, num_red / 8))


def result(name: str, remembered: float) -> dict:
    curve = {str(d): {"clips": 40, "accuracy": 1.0 if d <= 4 else 0.3, "heads": [1.0]} for d in range(8)}
    return {
        "name": name,
        "remembered": remembered,
        "training_s": 120.0,
        "parameters": 200_000,
        "support_clips": 8,
        "by_delay": curve,
        "by_long_delay": curve,
        "metrics": {metric: 100 * remembered for _, _, metric in EPIC_ROWS},
    }


def test_results_become_tables_between_their_marks_and_figures(tmp_path):
    folder = tmp_path / "docs" / "results" / "long_term"
    folder.mkdir(parents=True)
    for training in trainings():
        (folder / f"{training.name}.json").write_text(json.dumps(result(training.name, 0.5)))
    for name, remembered in (("recall-memory-1", 0.97), ("recall-memory-2", 0.95)):
        (folder / f"{name}.json").write_text(json.dumps(result(name, remembered)))
    row = {way: {"step_s": 0.5, "step_s_spread": [0.4, 0.6], "peak_mib": 100.0} for way in ("pipelined", "joint")}
    joint = {"model": "memvit_tiny", "batch_size": 2, "machine": "this one", "rows": [{"memory_length": 2, **row}]}
    (folder.parent / "joint_cost.json").write_text(json.dumps(joint))
    page = tmp_path / "docs" / "results.md"
    page.write_text("before\n" + "\n".join(f"{BEGIN.format(t)}\nold\n{END.format(t)}" for t in TABLES) + "\nafter\n")
    write_report(folder, tmp_path / "docs")
    write_report(folder, tmp_path / "docs")  # a second time changes nothing
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "80.7% (50.0% to 97.0%, 3 seeds)" in text
    assert "| 2 | 8 | 50.0% | 4 |" in text
    assert "| recognition, verb, top-1 | 50.0% (50.0% to 50.0%, 3 seeds) | 50.0% (50.0% to 50.0%, 3 seeds) |" in text
    assert {path.name for path in (tmp_path / "docs" / "figures").iterdir()} == {
        "long_term_gain.png",
        "long_term_delay.png",
        "long_term_ablations.png",
        "long_term_joint.png",
    }


def test_a_page_without_marks_and_a_folder_without_results_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no results"):
        write_report(tmp_path, tmp_path)
    (tmp_path / "recall-memory-0.json").write_text(json.dumps(result("recall-memory-0", 0.9)))
    (tmp_path / "results.md").write_text("nothing here")
    with pytest.raises(ValueError, match="has no place for the table"):
        write_report(tmp_path, tmp_path)


def test_the_trainings_can_be_listed(capsys):
    assert main(["run", "--list"]) == 0
    assert "recall-memory-0" in capsys.readouterr().out


def test_joint_compression_is_measured_on_full_memory():
    found = measure("memvit_nano", "joint", 4, 1, "cpu")
    assert found["step_s"] > 0
    assert found["peak_mib"] > 100
