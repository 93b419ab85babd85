"""The figures of docs/how-memory-works.md show what is so: their data, measured on small models, against the rules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from docs.blocks import ROOT


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_memory", ROOT / "docs" / "figures" / "draw_memory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_memory"] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("length", "gap"), [(1, 1), (2, 1), (2, 2)])
def test_every_memory_layer_reaches_m_clips_further(figures: ModuleType, length: int, gap: int) -> None:
    model = figures.make_model(depth=4, crop_size=32, memory_layers=(0, 2), memory_length=length, memory_gap=gap)
    reach = figures.measure_reach(model, furthest=2 * length * gap + 1)
    first = tuple(range(0, length * gap + 1, gap))
    both = tuple(range(0, 2 * length * gap + 1, gap))
    assert reach.layers == (first, first, both, both)
    assert reach.prediction == both
    assert reach.reads == {0: first[1:], 2: first[1:]}


def test_nothing_before_the_boundary_of_a_video_is_reached(figures: ModuleType) -> None:
    model = figures.make_model(depth=4, crop_size=32, memory_layers=(0, 2), memory_length=2)
    reach = figures.measure_reach(model, furthest=5, new_video_at=1)
    assert reach.prediction == (0, 1)


def test_without_memory_a_clip_sees_itself(figures: ModuleType) -> None:
    model = figures.make_model(depth=4, crop_size=32, memory_length=0)
    reach = figures.measure_reach(model, furthest=2)
    assert reach.layers == ((0,),) * 4
    assert reach.reads == {}


def test_sizes_are_those_that_the_page_names(figures: ModuleType) -> None:
    sizes = figures.layer_sizes("memvit_16x4")
    assert [size.layer for size in sizes] == list(range(0, 16, 2))
    assert [(size.keys, size.remembered_keys) for size in sizes] == [(393, 33)] * 7 + [(1569, 99)]

    waiting, compressed = (sum(getattr(s, name) for s in sizes) for name in ("bytes", "remembered_bytes"))
    masks = figures.bytes_by_length("memvit_16x4", "pipelined", (1,))[0] - waiting
    assert 0 < masks < 100
    lengths = (0, 1, 2, 8)
    pipelined, uncompressed = (figures.bytes_by_length("memvit_16x4", how, lengths) for how in ("pipelined", "none"))
    assert pipelined == [m * masks + (waiting + (m - 1) * compressed if m else 0) for m in lengths]
    assert uncompressed == [m * (masks + waiting) for m in lengths]

    text, answers = (" ".join((ROOT / "docs" / name).read_text().split()) for name in ("how-memory-works.md", "faq.md"))
    assert f"in training {pipelined[2] / 1e6:.1f} MB a stream for `memvit_16x4` with M = 2" in answers
    assert f"{compressed / 1e6:.1f} MB for each clip more" in answers
    assert f"{compressed / 1e6:.1f} MB" in text
    with torch.inference_mode():
        one, projected = figures.bytes_by_length("memvit_16x4", "pipelined", (1, 2))
    assert f"M = 2 takes {projected / 1e6:.1f} MB instead of {pipelined[2] / 1e6:.1f}" in text
    assert f"in inference mode {projected / 1e6:.1f} MB, {one / 1e6:.1f} for each clip" in answers
    assert f"takes {pipelined[3] / 1e6:.0f} MB in place of {uncompressed[3] / 1e6:.0f}" in text


def test_the_figures_are_drawn_and_small(figures: ModuleType, tmp_path: Path) -> None:
    model = figures.make_model(depth=4, crop_size=32, memory_layers=(0, 2), memory_length=1)
    figures.draw_reach(figures.measure_reach(model, furthest=3), tmp_path / "reach.png")
    figures.draw_sizes("memvit_nano", tmp_path / "sizes.png")
    shown = sorted((ROOT / "docs" / "figures").glob("memory*.png"))
    assert len(shown) == 3
    for picture in (*tmp_path.glob("*.png"), *shown):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert 10_000 < picture.stat().st_size < 150_000, picture.name
