from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.test_speed import make_small
from commands.conftest import Run
from memvit.benchmarks.speed_records import SpeedResult

FILES = {"benchmark.json", "benchmark.md", "benchmark.png"}


@pytest.fixture(autouse=True)
def _small_opponent(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def test_benchmark_prints_and_writes_what_was_asked_for(run: Run) -> None:
    threads = torch.get_num_threads()
    options = ("--dtypes", "bfloat16", "--memory_lengths", "1", "--pairs", "3", "--batch_sizes", "2", "--training")
    code, out, err = run("benchmark", "data/model", "--quick", "--threads", "2", *options, "--out", "speed")
    assert code == 0
    assert "model, no memory" in out
    assert "One training step" in out
    assert "M = 1" in out
    assert "timing training, bfloat16, batch 2" in err
    assert {path.name for path in Path("speed").iterdir()} == FILES
    result = SpeedResult.load("speed/benchmark.json")
    assert (result.model, result.machine["threads"]) == ("model", 2)
    assert {c.case.batch_size for c in result.cases} == {2}
    assert [(m.dtype, m.length, len(m.seconds)) for m in result.memory] == [("bfloat16", 1, 3)]
    assert result.streams == result.videos == []
    assert torch.get_num_threads() == threads


def test_parts_can_be_chosen(run: Run) -> None:
    code, out, _ = run("benchmark", "data/model", "--full", "--quick", "--parts", "streams", "--dtypes", "float32")
    assert code == 0
    assert "of one stream alone" in out
    result = SpeedResult.load("benchmark-output/benchmark.json")
    assert [s.num_streams for s in result.streams] == [1, 2, 4, 8]
    assert result.cases == result.memory == result.videos == []


def test_what_was_measured_before_an_interruption_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memvit.benchmarks.speed.time_streams", interrupt)
    options = ("--quick", "--parts", "memory", "streams", "--dtypes", "float32", "--memory_lengths", "1", "2")
    code, _, err = run("benchmark", "data/model", *options)
    assert code == 130
    assert err.endswith("interrupted\n")
    assert [m.length for m in SpeedResult.load("benchmark-output/benchmark.json").memory] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("memvit_huge",), "unknown model"),
        (("data/model", "--parts", "sound"), "there is no sound"),
        (("data/model", "--threads", "0"), "--threads 0"),
        (("data/model", "--rounds", "0"), "num_rounds: 0"),
        (("memvit_16x4_ava",), "classifies boxes"),
    ],
)
def test_a_wrong_request_is_one_line(run: Run, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = run("benchmark", *arguments)
    assert code == 1
    assert says in err
    assert err.count("\n") == 1
