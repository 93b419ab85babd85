"""The benchmark of speed: what follows from times, what is counted, and that a run measures what it was told to."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.video.mvit import MSBlockConfig, MViT

from memvit.benchmarks import contenders, machine
from memvit.benchmarks.contenders import (
    Case,
    Stream,
    build_model,
    count_step,
    make_step,
    measure_memory_apart,
    usual_form,
)
from memvit.benchmarks.cost import count_macs
from memvit.benchmarks.machine import Rates, measure_rates
from memvit.benchmarks.roofline import OPTIMIZER_BYTES, Work, count_work
from memvit.benchmarks.speed import Plan, main, run, write_report
from memvit.benchmarks.speed_records import SpeedResult, VideoTimes
from memvit.benchmarks.speed_tables import speed_tables
from memvit.benchmarks.timing import Estimate, median_interval, paired_ratio, quartiles, take_turns
from tiny_models import ONE_BLOCK, small_config, small_model

CPU = torch.device("cpu")
NUM_RECORDED = 2 if usual_form(CPU) == "recorded" else 0  # contenders at a forward pass, with and without memory
PLAN = Plan(
    parts=("comparison", "memory", "streams", "video"),
    tasks=("forward", "training"),
    batch_sizes=(2,),
    measures_memory=False,
    memory_lengths=(0, 2),
    num_streams=(1, 3),
    video_sizes=((64, 48),),
    num_clips=3,
    num_rounds=2,
    num_pairs=6,
    num_videos=1,
    num_matmuls=1,
)


def small_torchvision_model(frames: int = 16) -> MViT:
    """torchvision's own class with two narrow blocks."""
    block = {"kernel_q": [3] * 3, "kernel_kv": [3] * 3, "stride_q": [1] * 3, "stride_kv": [1, 4, 4]}
    blocks = [MSBlockConfig(num_heads=1, input_channels=8, output_channels=8, **block) for _ in range(2)]
    embedding = {"patch_embed_kernel": (3, 17, 17), "patch_embed_stride": (2, 16, 16), "patch_embed_padding": (1, 8, 8)}
    return MViT((224, 224), frames, blocks, True, False, True, True, **embedding)


def make_small(patch: pytest.MonkeyPatch) -> None:
    """torchvision's model, and what the machine's own rates are taken from."""
    patch.setattr(contenders, "mvit_v2_s", small_torchvision_model)
    patch.setattr(machine, "_SQUARE", {"cpu": 128})
    patch.setattr(machine, "_ROWS", {"cpu": (8, 8)})
    patch.setattr(machine, "_COPY_BYTES", {"cpu": 2**20})
    count_step.cache_clear()  # it knows mvit_v2_s by name


@pytest.fixture(autouse=True)
def _forget_counts() -> None:
    count_step.cache_clear()  # it knows mvit_v2_s by name, which here is now one model and now another


@pytest.fixture(scope="module")
def result() -> SpeedResult:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        return run(small_config(), "small", PLAN, CPU)


def test_the_ends_of_the_interval_are_the_values_that_coin_tosses_give() -> None:
    # Of 30 tosses, fewer than 10 heads come up with probability 2.14 %, fewer than 11 with 4.94 %.
    assert median_interval([float(i) for i in range(30, 0, -1)]) == (10, 21)
    assert median_interval(range(1, 7)) == (1, 6)  # outside with probability 2 / 64
    assert median_interval(range(1, 6)) is None  # 2 / 32 is more than 5 %
    assert median_interval(range(1, 6), confidence=0.9) == (1, 5)
    assert median_interval([3.0]) is None


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    samples = torch.distributions.LogNormal(0.0, 2.0).sample((2000, 30)).tolist()  # far from symmetric; its median is 1
    held = [low <= 1 <= high for low, high in map(median_interval, samples)]
    assert 0.95 <= statistics.mean(held) <= 0.97  # 95.7 %, give or take half a point


def test_ratios_are_taken_round_by_round() -> None:
    ratio = paired_ratio([2, 4, 60, 8, 10, 12], [1, 2, 30, 4, 10, 6])  # the third round was slow for both
    assert ratio == Estimate(2, (1, 2))
    with pytest.raises(ValueError, match=r"longer|shorter"):
        paired_ratio([1, 2], [1])


def test_quartiles_of_one_value_are_that_value() -> None:
    assert quartiles([3.0]) == (3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


def test_contenders_take_turns_in_alternating_order_and_warm_up_is_not_counted() -> None:
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = take_turns(steps, 2, CPU, num_warmup=1)
    assert "".join(order) == "cba" + "abc" + "cba"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2, "c": 2}
    assert min(min(times) for times in seconds.values()) > 0


def test_operations_and_bytes_equal_a_count_by_hand() -> None:
    with torch.device("meta"):
        linear, conv = nn.Linear(8, 16), nn.Conv3d(16, 16, 3, padding=1, groups=16, bias=False)
        tokens, volume = torch.empty(5, 8), torch.empty(2, 16, 4, 4, 4)
        q = torch.empty(2, 100, 8)

    def forward() -> None:
        linear(tokens)
        conv(volume)
        q @ q.transpose(1, 2)

    numbers = 5 * 8 + 8 * 16 + 16 + 5 * 16, 2 * (2 * 16 * 64) + 16 * 27, 2 * (2 * 100 * 8)  # logits stay where they are
    flops = 2 * 5 * 8 * 16, 2 * (2 * 16 * 64) * 27, 2 * 2 * 100 * 100 * 8
    with torch.no_grad():
        assert count_work(forward).products == tuple(zip(flops, numbers, strict=True))

    step = count_work(lambda: conv(volume.requires_grad_()).sum().backward(), conv)
    assert step.flops == 3 * flops[1]  # forward, gradient of the input, gradient of the filters
    assert step.fixed_bytes == 16 * 27 * OPTIMIZER_BYTES


def test_the_roofline_is_the_slower_of_computing_and_moving_for_each_product() -> None:
    work = Work(products=((1000, 10), (10, 1000)), fixed_bytes=600)
    assert work.num_bytes(itemsize=2) == 2 * 1010 + 600
    # The first product takes 1000 / 100 s, the second 2 * 1000 / 50 s.
    assert work.roofline_s(flops_per_s=100, bytes_per_s=50, itemsize=2) == 10 + 40 + 12


def test_operations_of_a_forward_pass_are_those_of_memvit_cost() -> None:
    config = small_config()
    assert count_step(Case("forward", "memory", "eager", "float32", 3), config).flops == 3 * 2 * count_macs(config)
    without = count_step(Case("forward", "no memory", "eager", "float32", 1), config)
    assert without.flops == 2 * count_macs(config.replace(memory_length=0))
    training = count_step(Case("training", "no memory", "eager", "float32", 1), config)
    assert 2.5 * without.flops < training.flops < 3 * without.flops  # clips need no gradient


def test_torchvisions_model_has_the_operations_that_torchvision_states() -> None:
    assert count_step(Case("forward", "mvit_v2_s", "eager", "float32", 1), small_config()).flops / 2e9 == pytest.approx(
        64.224, abs=1e-3
    )


def test_a_stream_carries_a_full_memory_from_step_to_step() -> None:
    model, clips = small_model(), torch.randn(1, 3, 4, 32, 32)
    stream = Stream(model)
    with torch.inference_mode():
        stream.fill_memory(clips)
        assert stream.memory is not None
        assert stream.memory.valid.all()
        before = stream.memory
        expected, _ = model(clips, before)
        (logits,) = stream(clips)
    assert torch.equal(logits, expected)
    assert stream.memory is not before


@pytest.mark.parametrize("overrides", [{}, {"head_task": "frames"}, {"num_classes": (3, 2)}])
def test_a_training_step_changes_the_weights(overrides: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def keep(*arguments: object) -> nn.Module:
        built.append(build_model(*arguments))  # type: ignore[arg-type]
        return built[0]

    monkeypatch.setattr(contenders, "build_model", keep)
    step = make_step(Case("training", "memory", "eager", "bfloat16", 2), small_config(**overrides), CPU)
    weight = built[0].blocks[0].attn.q.weight
    before = weight.detach().clone()
    step()
    assert not torch.equal(weight, before)
    assert weight.grad is None


def test_rates_are_the_best_of_the_products_tried() -> None:
    rates = measure_rates(CPU, ("float32",), num_runs=1)
    assert rates.flops_per_s["float32"] == max(rates.matmuls["float32"].values())
    assert len(rates.matmuls["float32"]) == 4
    assert rates.bytes_per_s > 1e6
    first = Rates({"float32": 3.0}, {"float32": {"a": 3.0, "b": 1.0}}, 7.0)
    second = Rates({"float32": 2.0}, {"float32": {"a": 1.0, "b": 2.0}}, 9.0)
    assert first.best(second) == Rates({"float32": 3.0}, {"float32": {"a": 3.0, "b": 2.0}}, 9.0)


def test_memory_of_a_step_is_measured_in_a_process_of_its_own() -> None:
    config = small_config()
    found = measure_memory_apart(Case("forward", "memory", "eager", "float32", 1), config, CPU)
    parameters = sum(p.numel() for p in build_model(config, "memory").parameters())
    assert found.peak_bytes - found.base_bytes > 4 * parameters


def test_a_run_measures_every_case(result: SpeedResult) -> None:
    assert len({c.case for c in result.cases}) == len(result.cases) == 2 * (3 + NUM_RECORDED + 3)
    for c in result.cases:
        assert c.error is None
        assert len(c.seconds) == PLAN.num_rounds
        assert c.clips_per_s == c.case.batch_size / statistics.median(c.seconds)
        work, itemsize = count_step(c.case, small_config()), getattr(torch, c.case.dtype).itemsize
        rates = result.rates.flops_per_s[c.case.dtype], result.rates.bytes_per_s
        if c.case.contender != "mvit_v2_s":
            assert c.roofline_s == work.roofline_s(*rates, itemsize) > 0
        assert c.own_bytes is None
    assert [(m.dtype, m.length) for m in result.memory] == [
        (dtype, length) for dtype in ("float32", "bfloat16") for length in (0, 2)
    ]
    assert [s.num_streams for s in result.streams] == [1, 3, 1, 3]
    assert result.plan["num_pairs"] == 6
    assert result.machine["threads"] == torch.get_num_threads()


def test_bfloat16_moves_half_the_bytes(result: SpeedResult) -> None:
    case = Case("forward", "memory", "eager", "float32", 2)
    by_case = {c.case: c for c in result.cases}
    full, half = by_case[case], by_case[dataclasses.replace(case, dtype="bfloat16")]
    assert full.num_bytes == 2 * half.num_bytes
    assert full.flops == half.flops


def test_ratios_follow_from_the_times(result: SpeedResult) -> None:
    ours, _, theirs = result.group(Case("training", "memory", "eager", "bfloat16", 2))
    ratio = result.over_torchvision(ours)
    assert ratio is not None
    assert ratio.median == statistics.median([a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True)])
    assert result.over_torchvision(theirs) == Estimate(1, None)
    assert result.over_torchvision(ours, "compiled") is None
    memory = result.memory[1]
    pairs = [a / b for a, b in zip(memory.seconds, memory.seconds_without, strict=True)]
    assert memory.ratio == Estimate(statistics.median(pairs), (min(pairs), max(pairs)))


def test_videos_are_read_to_their_end(result: SpeedResult) -> None:
    for video in result.videos:
        assert video.num_clips == PLAN.num_clips
        assert video.num_frames == round(PLAN.num_clips * small_config().clip_duration_s * 30)
        assert video.frames_per_s("recognizer") == video.num_frames / statistics.median(video.recognizer)


def test_end_to_end_is_compared_with_the_slower_part() -> None:
    video = VideoTimes("float32", 64, 48, 30, 60, 2, reading=(1.0,), model=(4.0,), recognizer=(5.0,), predict=(6.0,))
    assert math.isclose(video.over_slower("recognizer"), 5 / 4)
    assert math.isclose(video.over_slower("predict"), 6 / 4)


def test_a_result_is_kept_whole(result: SpeedResult, tmp_path: Path) -> None:
    result.save(tmp_path / "a.json")
    assert SpeedResult.load(tmp_path / "a.json").cases == result.cases
    SpeedResult.load(tmp_path / "a.json").save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_tables_and_figure_come_from_a_kept_result(
    result: SpeedResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result.save(tmp_path / "kept.json")
    assert main(["report", str(tmp_path / "kept.json"), "--out", str(tmp_path / "report")]) == 0
    assert "small, no memory" in capsys.readouterr().out
    text = (tmp_path / "report" / "benchmark.md").read_text()
    assert (tmp_path / "report" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    for table in speed_tables(result):
        assert f"| {' | '.join(table.headings)} |" in text
        assert {len(row) for row in table.rows} == {len(table.headings)}
    assert "mvit_v2_s takes 16 × 224 × 224 (frames, height, width) only, the model 4 × 32 × 32" in text
    assert "the error of the measurement" in text


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        SpeedResult.load(tmp_path / "none.json")
    for text in ("[]", "{}", "nothing", json.dumps({"version": 0})):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match="is no result of memvit benchmark"):
            SpeedResult.load(tmp_path / "x.json")


def test_a_contender_that_fails_is_reported_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(contenders, "mvit_v2_s", lambda: small_torchvision_model(frames=8))  # not the frames it gets
    monkeypatch.setattr("memvit.benchmarks.comparison.count_step", lambda *_: Work(((1, 1),)))  # counting runs it too
    plan = dataclasses.replace(PLAN, parts=("comparison",), tasks=("forward",), dtypes=("float32",), batch_sizes=(1,))
    found = run(small_config(), "small", plan, CPU)
    *ours, theirs = found.cases
    assert all(len(c.seconds) == PLAN.num_rounds for c in ours)
    assert theirs.error is not None
    assert theirs.error.startswith("RuntimeError: shape ")
    assert theirs.seconds == ()
    assert found.over_torchvision(ours[0]) is None
    table, _ = write_report(found, tmp_path)
    assert f"torchvision mvit_v2_s, float32, batch 1 did not run: {theirs.error}." in table.read_text()


def test_compiled_forms_are_contenders_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    modes, compile_model = [], torch.compile

    def without_backend(model: nn.Module, mode: str) -> object:  # which takes minutes
        modes.append(mode)
        return compile_model(model, backend="eager")

    make_small(monkeypatch)
    monkeypatch.setattr(torch, "compile", without_backend)
    plan = dataclasses.replace(
        PLAN,
        parts=("comparison",),
        tasks=("forward",),
        dtypes=("float32",),
        batch_sizes=(1,),
        compile_mode="max-autotune-no-cudagraphs",
    )
    found = run(small_config(**ONE_BLOCK), "small", plan, CPU)
    assert [c.name for c in found.cases][-2:] == ["small, M = 2, compiled", "torchvision mvit_v2_s, compiled"]
    assert [c.error for c in found.cases] == [None] * (5 + NUM_RECORDED)
    assert modes == ["max-autotune-no-cudagraphs"] * 2
    assert found.over_torchvision(found.cases[-1], "compiled") == Estimate(1, None)
    (table,) = speed_tables(found)
    assert "time / compiled" in table.headings
    write_report(found, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"parts": ("speed",)}, "there is no speed"),
        ({"dtypes": ("int8",)}, "int8 is no number format"),
        ({"num_rounds": 0}, "num_rounds: 0"),
        ({"batch_sizes": (4, 0)}, "batch_sizes: 0"),
        ({"memory_lengths": (2, -1)}, "memory_lengths: -1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Plan(**wrong)  # type: ignore[arg-type]


def test_models_of_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match="classifies boxes"):
        run(small_config(head_task="boxes"), "small", PLAN, CPU)
