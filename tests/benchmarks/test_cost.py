"""What the models cost, against the paper's figures and against counting by hand."""

import csv
import io
import json

import pytest
import torch
from rich.console import Console

from memvit import MeMViT
from memvit.benchmarks.cost import (
    CostRow,
    cost_report,
    cost_table,
    count_macs,
    count_parameters,
    describe,
    draw_cost,
    format_summary,
    format_table,
    write_csv,
)
from memvit.models.config import HeadConfig, MemoryConfig, MViTConfig
from memvit.models.presets import PRESETS
from tiny_models import small_config

MEMVIT_16, MEMVIT_24 = PRESETS["memvit_16x4"], PRESETS["memvit_24_32x3"]


def one_block(**overrides) -> MViTConfig:
    """One block that widens 8 -> 16 channels, and pools 2 x 8 x 8 tokens to 2 x 4 x 4 queries and as many keys."""
    config = MViTConfig(
        num_frames=4,
        crop_size=32,
        depth=1,
        embed_dim=8,
        dim_mul=((0, 2.0),),
        head_mul=((0, 2.0),),
        q_strides=((0, 1, 2, 2),),
        kv_stride_adaptive=(1, 4, 4),
        memory=MemoryConfig(length=2, layers="all", kernel=(3, 3, 3), stride=(2, 2, 2)),
        head=HeadConfig(num_classes=(5,)),
    )
    return config.replace(**overrides)


@pytest.fixture(scope="module")
def rows() -> list[CostRow]:
    return cost_table(MEMVIT_16, lengths=(0, 1, 2, 4), clip_factors=(1, 2, 30))


def by_label(rows: list[CostRow]) -> dict[str, CostRow]:
    return {row.label: row for row in rows}


@pytest.mark.parametrize(
    ("overrides", "compressed_clips", "past_keys", "past_entries"),
    [
        # What memory adds: clips compressed in this step, keys attended (class tokens too), entries of their positions.
        ({}, 1, 2 * (1 * 2 * 2 + 1), 2 + 2 + 2 * 1),
        ({"memory_gap": 3}, 1, 2 * (1 * 2 * 2 + 1), 2 + 2 + 2 * 1),
        ({"memory_compression": "joint"}, 2, 2 * (1 * 2 * 2 + 1), 2 + 2 + 2 * 1),
        ({"memory_compression": "none"}, 0, 2 * (2 * 4 * 4 + 1), 4 + 4 + 2 * 2),
        ({"memory_length": 0}, 0, 0, 0),
    ],
    ids=["pipelined", "gap", "joint", "uncompressed", "no memory"],
)
def test_the_counter_equals_a_count_by_hand(overrides, compressed_clips, past_keys, past_entries):
    queries, keys = 2 * 4 * 4 + 1, 2 * 4 * 4 + 1 + past_keys
    patches = 2 * 8 * 8 * 8 * (3 * 3 * 7 * 7)
    pooling = 3 * (2 * 4 * 4) * 8 * 27  # depthwise: q, k and v
    compression = compressed_clips * 2 * (1 * 2 * 2) * 8 * 27
    projections = queries * 8 * 16 + 2 * keys * 8 * 16 + queries * 16 * 16
    shortcut = (2 * 8 * 8 + 1) * 8 * 16
    attention = 2 * queries * keys * 16  # logits and values, all heads
    positions = (2 * 4 * 4) * 16 * (4 + 4 + 2 + past_entries)  # height, width, time; none for the class token
    mlp = 2 * queries * 16 * 64
    classes = 16 * 5
    assert count_macs(one_block(**overrides)) == (
        patches + pooling + compression + projections + shortcut + attention + positions + mlp + classes
    )


def test_pooling_after_projection_counts_one_fused_linear():
    pooled_first, fused = (count_macs(one_block(memory_length=0, pool_first=first)) for first in (True, False))
    # All 129 tokens are projected, by one Linear, and pooled at 16 channels, not 8.
    assert fused - pooled_first == 3 * (129 - 33) * 8 * 16 + 3 * (2 * 4 * 4) * 8 * 27


def test_a_clip_of_another_size_can_be_counted():
    config = small_config()
    assert count_macs(config, num_frames=4, height=32, width=32) == count_macs(config)
    assert count_macs(config, height=32, width=64) > 1.9 * count_macs(config)
    with pytest.raises(ValueError, match="has no size"):
        count_macs(config, num_frames=0)
    with pytest.raises(ValueError, match="too small"):
        count_macs(config.replace(patch_kernel=(3, 16, 16), patch_padding=(0, 0, 0)), height=8)


@pytest.mark.parametrize("task", ["clip", "frames", "boxes"])
def test_every_task_can_be_counted(task):
    assert count_macs(small_config(task=task)) > 0


def test_counting_changes_nothing_outside():
    model = MeMViT(small_config())
    count_macs(model.config)
    assert torch.empty(0).device.type == "cpu"
    assert count_parameters(model) == count_parameters(model.config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "overrides", "gmacs"),
    [
        ("mvit_16x4", {}, 57.2),
        ("memvit_16x4", {}, 58.5),
        ("memvit_16x4", {"memory_length": 4}, 59.75),
        ("memvit_24_32x3", {}, 212.5),
    ],
)
def test_compute_is_the_papers(name, overrides, gmacs):
    counted = count_macs(PRESETS[name].replace(**overrides)) / 1e9
    assert 0.99 * gmacs <= counted <= 1.01 * gmacs


def test_parameters_are_the_papers_less_those_that_nothing_uses():
    # The paper counts what the release builds, for Kinetics-400: memory weights in layers without memory included.
    for config, paper_millions in ((MEMVIT_16, 35.4), (MEMVIT_24.replace(num_classes=400), 52.6)):
        release = count_parameters(config.replace(memory_layers="all")) / 1e6
        assert release == pytest.approx(paper_millions, abs=0.05)
        assert 0.9 * paper_millions <= count_parameters(config) / 1e6 < paper_millions


def test_memory_reaches_as_far_as_the_paper_says(rows):
    assert by_label(rows)["M = 2"].support_s == pytest.approx(36.3, abs=0.1)
    assert by_label(rows)["M = 4"].support_s == pytest.approx(70.4, abs=0.1)


def test_thirty_times_the_support_costs_a_few_percent_in_memory_and_thousands_in_frames(rows):
    memory, frames = by_label(rows)["M = 4"], by_label(rows)["30 × frames"]
    assert memory.clips_seen >= frames.clips_seen == 30
    assert frames.num_frames == 480
    assert memory.more_percent == pytest.approx(4.5, abs=0.1)
    assert frames.more_percent > 3000


def test_what_sees_further_costs_more(rows):
    for way in ("memory", "frames"):
        points = [(row.support_s, row.macs) for row in rows if row.way == way]
        assert points == sorted(points)
        assert len({macs for _, macs in points}) == len(points)


def test_both_ways_begin_at_one_clip_without_memory(rows):
    base = count_macs(PRESETS["mvit_16x4"])
    for row in (by_label(rows)["M = 0"], by_label(rows)["1 × frames"]):
        assert (row.macs, row.more_percent, row.clips_seen) == (base, 0, 1)
        assert row.support_s == pytest.approx(2.13, abs=0.01)


def test_the_gap_stretches_support_and_costs_nothing():
    near, far = (cost_table(small_config(memory_gap=gap), (2,), ()) for gap in (1, 3))
    assert (near[0].clips_seen, far[0].clips_seen) == (4 * 2 + 1, 4 * 2 * 3 + 1)
    assert near[0].macs == far[0].macs


def test_impossible_rows_are_refused():
    with pytest.raises(ValueError, match="clip_factors"):
        cost_table(small_config(), (0,), (0,))
    with pytest.raises(ValueError, match=r"memory\.length"):
        cost_table(small_config(), (-1,), (1,))


def test_a_summary_says_what_the_model_is():
    summary = describe(small_config(memory_layers=(0, 2), memory_gap=2), "small")
    model = MeMViT(small_config(memory_layers=(0, 2), memory_gap=2))
    assert json.loads(json.dumps(summary.to_dict()))["memory_layers"] == [0, 2]
    assert (summary.memory_length, summary.gap, summary.support_clips) == (2, 2, 2 * 2 * 2)
    assert summary.training_memory_bytes == model.new_memory(1).nbytes
    with torch.inference_mode():
        assert summary.memory_bytes == model.new_memory(1).nbytes
    assert summary.macs > summary.macs_without_memory > 0
    text = render(format_summary(summary))
    assert "small" in text
    assert "M = 2 past clips a layer, 2 clips apart" in text
    assert "which nothing uses" in text


def test_a_summary_tells_the_papers_parameters_apart_from_ours():
    summary = describe(MEMVIT_16, "memvit_16x4")
    assert summary.parameters == count_parameters(MEMVIT_16)
    assert round(summary.parameters / 1e6, 2) == 34.94
    assert summary.release_parameters == 35_388_832


def test_a_model_without_memory_says_so():
    summary = describe(small_config(memory_length=0))
    assert (summary.memory_bytes, summary.support_clips, summary.memory_layers) == (0, 0, ())
    assert summary.macs == summary.macs_without_memory
    assert summary.parameters == summary.release_parameters
    assert "none" in render(format_summary(summary))


def test_a_report_prints_the_table_and_writes_its_files(tmp_path):
    console = Console(file=io.StringIO(), width=120)
    rows = cost_report(small_config(), tmp_path / "new" / "folder", console, "small")
    folder = tmp_path / "new" / "folder"
    assert "M = 8" in console.file.getvalue()
    assert "30 × frames" in console.file.getvalue()
    report = json.loads((folder / "cost.json").read_text())
    assert [row["macs"] for row in report["rows"]] == [row.macs for row in rows]
    assert MViTConfig.from_dict(report["config"]) == small_config()
    assert (folder / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_a_csv_has_a_column_per_field(rows, tmp_path):
    write_csv(rows, tmp_path / "cost.csv")
    with open(tmp_path / "cost.csv", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [(r["way"], int(r["amount"]), int(r["macs"])) for r in read] == [(r.way, r.amount, r.macs) for r in rows]


def test_the_figure_and_table_show_both_ways(rows, tmp_path):
    draw_cost(rows, tmp_path / "cost.png", "memvit_16x4")
    assert (tmp_path / "cost.png").stat().st_size > 20_000
    with pytest.raises(ValueError, match="rows of both"):
        draw_cost([row for row in rows if row.way == "memory"], tmp_path / "half.png")
    text = render(format_table(rows))
    assert "+4.5 %" in text
    assert "59.74" in text


def render(table) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()
