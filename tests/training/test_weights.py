from __future__ import annotations

from pathlib import Path

import pytest
import torch

import memvit
from golden_cases import fill_golden
from memvit.training.weights import class_names_of, fit_weights, load_weights, read_weights
from tiny_models import small_config, small_model

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_directory_of_ours_is_taken_over_whole(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    model = memvit.MeMViT(small_config())
    report = load_weights(model, str(tmp_path))
    assert (len(report.loaded), report.resized, report.new, report.unused) == (len(model.state_dict()), (), (), ())
    assert load_weights(model, str(tmp_path / "model.safetensors")).loaded == report.loaded
    assert torch.equal(model.head.projection.weight, small_model().head.projection.weight)


def test_a_head_of_another_size_stays_new_and_the_rest_is_loaded(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    model = memvit.MeMViT(small_config(num_classes=7))
    before = model.head.projection.weight.clone()
    report = load_weights(model, str(tmp_path))
    assert report.new == ("head.projection.weight", "head.projection.bias")
    assert set(report.unused) == set(report.new)
    assert torch.equal(model.head.projection.weight, before)
    assert "2 new (head.projection.weight, head.projection.bias)" in str(report)
    assert "  head.projection.bias\n" in report.listing()


def test_weights_without_memory_leave_memory_new() -> None:
    plain = memvit.MeMViT(small_config(memory_length=0))
    report = fit_weights(memvit.MeMViT(small_config()), plain.state_dict(), "plain")
    assert report.new
    assert all("compress" in name or "rel_pos_mem" in name for name in report.new)
    assert report.unused == ()


def test_a_longer_memory_keeps_the_distances_it_knows() -> None:
    source = fill_golden(memvit.MeMViT(small_config())).state_dict()
    model = memvit.MeMViT(small_config(memory_length=4))
    report = fit_weights(model, source, "shorter")
    name = "blocks.0.attn.rel_pos_mem_t"
    old, new = source[name], model.state_dict()[name]
    assert name in report.resized
    assert torch.equal(new[: len(old)], old)
    assert torch.equal(new[len(old) :], old[-1:].expand(len(new) - len(old), -1))


def test_tables_of_positions_are_interpolated_to_another_clip_size() -> None:
    source = fill_golden(memvit.MeMViT(small_config(absolute_positions="separate"))).state_dict()
    model = memvit.MeMViT(small_config(absolute_positions="separate", crop_size=64, num_frames=8))
    report = fit_weights(model, source, "smaller")
    old, new = (state["blocks.0.attn.rel_pos_h"] for state in (source, model.state_dict()))
    assert len(new) == 2 * 16 - 1
    assert "blocks.0.attn.rel_pos_h" in report.resized
    assert torch.allclose(new[len(new) // 2], old[len(old) // 2])  # distance 0 stays in the middle
    assert "positions.pos_embed_spatial" in report.resized
    assert report.new == ()


def test_the_authors_checkpoints_are_read() -> None:
    state = read_weights(str(GOLDEN / "cls_all.pyth"))
    model = memvit.load_slowfast(GOLDEN / "cls_all.yaml")
    report = load_weights(model, str(GOLDEN / "cls_all.pyth"))
    assert report.new == ()
    assert torch.equal(model.state_dict()["head.projection.weight"], state["head.projection.weight"])


def test_weights_of_other_blocks_are_refused_and_change_nothing(tmp_path: Path) -> None:
    small_model(embed_dim=16).save_pretrained(tmp_path)
    model = memvit.MeMViT(small_config())
    before = model.patch_embed.proj.weight.clone()
    with pytest.raises(ValueError, match=r"of another model: \d+ parameters differ \(\w+"):
        load_weights(model, str(tmp_path))
    assert torch.equal(model.patch_embed.proj.weight, before)


@pytest.mark.parametrize("source", ["nowhere.safetensors", "nowhere.ckpt", "nowhere.pyth"])
def test_a_missing_file_is_named(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=source):
        load_weights(memvit.MeMViT(small_config()), source)


def test_class_names_come_with_weights(tmp_path: Path) -> None:
    small_model(num_classes=2, class_names=(("a", "b"),)).save_pretrained(tmp_path)
    assert class_names_of(str(tmp_path)) == (("a", "b"),)
    assert class_names_of("memvit_tiny") is None
