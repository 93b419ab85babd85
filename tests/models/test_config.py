"""Models as plain data: JSON and back, changed fields, contradictions, placements of memory."""

import dataclasses
import json

import pytest
import torch

from memvit import MeMViT
from memvit.models.config import LAYER_PLACEMENTS, HeadConfig, MemoryConfig, MViTConfig, place_memory
from memvit.models.presets import PRESETS
from tiny_models import small_config, small_model


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_survives_json(name):
    config = PRESETS[name]
    assert MViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_class_names_and_layers_survive_json():
    config = MViTConfig().replace(
        num_classes=(2, 1), class_names=(("a", "b"), ("c",)), memory_length=2, memory_layers=(1, 5)
    )
    assert MViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_names_of_heads_and_anticipation_survive_json_and_saving(tmp_path):
    ours = {"num_classes": (2, 3), "head_names": ("verb", "noun"), "anticipation_s": 1.5}
    config = small_config(**ours)
    assert (config.head.names, config.head.anticipation_s) == (("verb", "noun"), 1.5)
    assert MViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    small_model(**ours).save_pretrained(tmp_path)
    assert MeMViT.from_pretrained(tmp_path).config == config


def test_a_config_file_from_before_they_were_there_loads(tmp_path):
    small_model(num_classes=(2, 3)).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    del data["head"]["names"], data["head"]["anticipation_s"]
    (tmp_path / "config.json").write_text(json.dumps(data))
    head = MeMViT.from_pretrained(tmp_path).config.head
    assert (head.names, head.anticipation_s) == ((), 0.0)


def test_names_of_heads_do_not_outlive_their_number():
    config = MViTConfig().replace(num_classes=(2, 3), head_names=["verb", "noun"], anticipation_s=1)
    assert config.replace(num_classes=(4, 5)).head.names == ("verb", "noun")
    assert config.replace(num_classes=7).head.names == ()
    assert config.replace(num_classes=(4, 5, 6)).head.names == ()
    assert config.replace(num_classes=7, head_names=("scene",)).head.names == ("scene",)
    assert config.replace(num_classes=7).head.anticipation_s == 1
    assert config.replace(head=config.head, num_classes=(1, 1)).head.names == ("verb", "noun")


def test_left_out_fields_take_their_defaults():
    assert MViTConfig.from_dict({}) == MViTConfig()
    assert MViTConfig.from_dict({"memory": {"length": 3}}).memory == MemoryConfig(length=3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"deepth": 3}, "unknown field deepth in the model config; MViTConfig has .*depth"),
        ({"memory": {"lenght": 3}}, "unknown field memory.lenght .*MemoryConfig has .*length"),
        ({"head": {"classes": 3, "labels": 1}}, "unknown fields head.classes, head.labels"),
        ({"head": [1]}, "head must be a mapping, not list"),
        ({"depth": "16"}, "depth='16'|wrong type"),
        ({"dim_mul": 5}, "wrong type"),
        ({"drop_path": None}, "wrong type"),
    ],
)
def test_data_of_another_form_is_named(data, reason):
    with pytest.raises(ValueError, match=reason):
        MViTConfig.from_dict(data)


def test_flat_names_reach_every_part():
    config = MViTConfig().replace(
        drop_path=0.2, memory_length=4, memory_kernel=[3, 3, 3], num_classes=97, head_dropout=0.1
    )
    assert config.drop_path == 0.2
    assert config.memory == MemoryConfig(length=4, kernel=(3, 3, 3))
    assert config.head == HeadConfig(num_classes=(97,), dropout=0.1)


def test_a_flat_name_beside_a_whole_part_changes_that_part():
    config = MViTConfig().replace(memory=MemoryConfig(length=2, gap=3), memory_length=5)
    assert config.memory == MemoryConfig(length=5, gap=3)


def test_a_whole_part_may_be_a_dict_of_its_fields():
    config = MViTConfig().replace(memory={"length": 1, "kernel": [3, 3, 3]}, memory_gap=3, head={"num_classes": [2, 3]})
    assert config.memory == MemoryConfig(length=1, gap=3, kernel=(3, 3, 3))
    assert config.head == HeadConfig(num_classes=(2, 3))


def test_even_kernels_are_for_memory_and_for_keys_beside_queries_that_are_not_pooled():
    for overrides in (
        {"memory_kernel": (2, 2, 2)},
        {"pool_kernel": (2, 2, 2), "q_strides": (), "kv_stride_adaptive": (1, 4, 4)},
    ):
        model, memory = small_model(**overrides), None
        for seed in range(3):
            logits, memory = model(torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(seed)), memory)
        assert logits.isfinite().all()


def test_dropout_is_the_trunks_and_head_dropout_the_heads():
    config = MViTConfig().replace(dropout=0.25, head_dropout=0.125)
    assert (config.dropout, config.head.dropout) == (0.25, 0.125)


def test_replace_leaves_the_original_alone():
    config = MViTConfig()
    config.replace(depth=20, memory_length=2)
    assert config == MViTConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3


def test_names_of_classes_do_not_outlive_their_number():
    config = MViTConfig().replace(num_classes=2, class_names=(("a", "b"),))
    assert config.replace(num_classes=3).head.class_names == ()
    with pytest.raises(ValueError, match="names do not match num_classes"):
        config.replace(class_names=(("a",),))


@pytest.mark.parametrize("name", ["lenght", "memory_lenght", "memory_", "mvit_depth", "length"])
def test_an_unknown_option_is_answered_with_the_known(name):
    with pytest.raises(
        ValueError, match=f"unknown model option '{name}'; options are (?=.*depth)(?=.*memory_length).*num_classes"
    ):
        MViTConfig().replace(**{name: 1})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pool_first": False, "memory_length": 2}, "memory needs pool_first=True"),
        ({"pool_first": False, "pool_mode": "conv_unshared"}, "conv_unshared' needs pool_first"),
        ({"causal": True, "pool_mode": "avg"}, "leak the future through pool_mode='avg'"),
        ({"causal": True, "pool_mode": "max"}, "leak the future through pool_mode='max'"),
        ({"causal": True, "residual_pooling": "conv"}, "leak the future .*residual_pooling='conv'"),
        ({"causal": True, "q_strides": ((0, 2, 1, 1),)}, "leak the future through the shortcut"),
        ({"kv_strides": ((0, 1, 2, 2),)}, "contradicts kv_stride_adaptive"),
        ({"widen_in_attention": False, "dim_mul": ((0, 2.0),)}, "dim_mul names block 0"),
        ({"depth": 8}, "names a block outside 0..7"),
        ({"memory_length": 2, "memory_layers": (3, 16)}, r"names blocks outside 0..15: \[16\]"),
        ({"memory_layers": "often"}, "must be one of all, early, middle, late, uniform"),
        ({"memory_boundary": "zero", "memory_compression": "joint", "memory_length": 2}, "use boundary='mask'"),
        ({"memory_length": -1}, "memory.length=-1: must be"),
        ({"memory_gap": 0}, "memory.gap=0: must be"),
        ({"memory_stride": (4, 2)}, "needs three whole numbers"),
        ({"patch_kernel": (3, 7, 0)}, "needs three whole numbers"),
        ({"num_frames": 0}, "num_frames=0: must be"),
        ({"drop_path": 1.0}, "a rate must be at least 0 and below 1"),
        ({"head_dropout": -0.1}, "head.dropout=-0.1: a rate"),
        ({"num_classes": ()}, "needs at least one head"),
        ({"num_classes": (4, 0)}, "every head needs at least one class"),
        ({"box_depth": 1}, "needs task='boxes'"),
        ({"task": "video"}, "must be one of clip, frames, boxes"),
        ({"num_classes": (2, 3), "head_names": ("verb",)}, r"2 heads \(num_classes=\(2, 3\)\) need a name each"),
        ({"num_classes": (2, 3), "head_names": ("verb", "")}, "need a name each"),
        ({"num_classes": (2, 3), "head_names": ("a", "a")}, "two heads have one name"),
        ({"num_classes": (2, 3), "head_names": ("verb", "action")}, "'action' is what the heads say together"),
        ({"anticipation_s": -1.0}, "head.anticipation_s=-1.0: must be seconds, 0 or more"),
        ({"anticipation_s": float("inf")}, "must be seconds, 0 or more"),
        ({"anticipation_s": "1"}, "must be seconds, 0 or more"),
        ({"anticipation_s": 1.0, "task": "boxes"}, "needs task 'clip' or 'frames'"),
        ({"activation": "relu"}, "must be one of softmax, sigmoid"),
        ({"pool_mode": "sum"}, "must be one of conv, conv_unshared, avg, max"),
        ({"mean": (0.5,)}, "needs one value per channel"),
        ({"mean": 0.5}, "mean=0.5: needs one value per channel, 3 in all"),
        ({"std": ("1", "1", "1")}, "needs one value per channel"),
        ({"fps": "30"}, "a model option has a value of the wrong type"),
        ({"num_classes": 5.0}, "wrong type"),
        ({"pool_kernel": (2, 2, 2)}, r"pool_kernel=\(2, 2, 2\): needs odd numbers where queries are pooled"),
        ({"pool_kernel": (3, 3, 4)}, "needs odd numbers"),
        ({"memory": 2}, "memory must be a mapping, not int"),
        ({"memory": {"lenght": 2}}, "unknown field memory.lenght .*MemoryConfig has .*length"),
        ({"head": None}, "head must be a mapping"),
        ({"std": (0.1, 0.0, 0.1)}, "must be positive"),
        ({"num_heads": 5}, "not divisible by 5 heads"),
        ({"fps": 0}, "fps=0: must be positive"),
        ({"mlp_ratio": 0}, "mlp_ratio=0: must be positive"),
    ],
)
def test_contradictions_and_impossible_values_are_found_at_the_door(changes, reason):
    with pytest.raises(ValueError, match=reason):
        MViTConfig().replace(**changes)


@pytest.mark.parametrize(
    ("placement", "layers"),
    [
        ("all", tuple(range(16))),
        ("early", tuple(range(8))),
        ("middle", tuple(range(4, 12))),
        ("late", tuple(range(8, 16))),
        ("uniform", (0, 2, 4, 6, 8, 10, 12, 14)),
        ((5, 1, 5), (1, 5)),
    ],
)
def test_memory_is_placed_by_name_or_by_hand(placement, layers):
    config = MViTConfig().replace(memory_length=2, memory_layers=placement)
    assert config.memory_layers == layers
    assert config.replace(memory_length=0).memory_layers == ()


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 24])
def test_placements_stay_within_the_model(depth):
    for placement in LAYER_PLACEMENTS:
        layers = place_memory(placement, depth)
        assert set(layers) <= set(range(depth))
        if placement in ("early", "middle", "late"):
            assert len(layers) == depth // 2


@pytest.mark.parametrize(("length", "seconds"), [(0, 2.1333), (2, 36.2667), (4, 70.4)])
def test_temporal_support_is_the_papers(length, seconds):
    assert PRESETS["memvit_16x4"].replace(memory_length=length).support_s == pytest.approx(seconds, abs=1e-3)


def test_box_layers_and_gaps_add_to_support():
    config = PRESETS["memvit_16x4_ava"]
    assert config.support_clips == (8 + 1) * 2 * 2
