"""The authors' configs and checkpoints: what is read, what is refused, and what the errors say."""

import argparse
import copy
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from memvit import load_slowfast
from memvit.models.memvit import MeMViT
from memvit.models.slowfast import load_release_state, read_checkpoint, read_config

GOLDEN = Path(__file__).parents[1] / "golden"
YAML, PYTH = GOLDEN / "cls_all.yaml", GOLDEN / "cls_all.pyth"


def config(**changes):
    """The golden config with SECTION__KEY changed."""
    values = copy.deepcopy(yaml.safe_load(YAML.read_text()))
    for path, value in changes.items():
        *sections, key = path.split("__")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return values


def state(**changes):
    """The golden weights; a name set to None is taken out."""
    tensors = dict(read_checkpoint(PYTH)) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


# Configs


def test_keys_are_translated_and_defaults_are_the_releases():
    ours, _ = read_config(YAML)
    assert (ours.depth, ours.embed_dim, ours.memory.length, ours.memory_layers) == (4, 16, 2, (0, 2))
    bare, ignored = read_config({})
    assert ignored == []
    assert (bare.pool_first, bare.residual_pooling, bare.absolute_positions) == (False, "none", "joint")
    assert (bare.patch_padding, bare.memory.length, bare.drop_path) == ((2, 4, 4), 0, 0.1)


def test_a_path_a_string_and_a_dict_say_the_same():
    assert read_config(YAML) == read_config(str(YAML)) == read_config(config())


@pytest.mark.parametrize(
    "key", ["MVIT__NOVELTY", "MEMVIT__SIZE", "MEMVIT__COMPRESS__SIZE", "MODEL__SIZE", "DETECTION__SIZE"]
)
def test_an_unknown_key_of_a_model_section_is_an_error(key):
    name = key.replace("__", r"\.")
    with pytest.raises(ValueError, match=f"the config: unknown key {name} in a model section; remove it or correct"):
        read_config(config(**{key: 1}))


def test_a_misspelt_key_is_named_before_what_its_absence_contradicts():
    values = config()
    values["MVIT"]["POOL_FRIST"] = values["MVIT"].pop("POOL_FIRST")
    with pytest.raises(ValueError, match=r"unknown key MVIT.POOL_FRIST"):
        read_config(values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MVIT__DEPTH", "deep"),
        ("MVIT__DEPTH", 4.0),
        ("MVIT__DEPTH", True),
        ("MVIT__DEPTH", None),
        ("MVIT__DEPTH", "__import__('os').getpid()"),
        ("MVIT__MODE", 3),
        ("MVIT__POOL_FIRST", 1),
        ("MVIT__DROPPATH_RATE", [0.1]),
        ("MEMVIT__COMPRESS__POOL_KERNEL", 3),
        ("DETECTION__ENABLE", "maybe"),
        ("MODEL__NUM_CLASSES_LIST", 3),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key(key, value):
    with pytest.raises(
        ValueError, match=f"the config: {key.replace('__', '.')}: .*(should be|is not a value of the kind)"
    ):
        read_config(config(**{key: value}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"MEMVIT__SAMPLER": "gapx"}, "MEMVIT.SAMPLER: 'gapx' should be 'all' or 'gapN', as 'gap2'"),
        ({"MEMVIT__SAMPLER": "gap0"}, "MEMVIT.SAMPLER: 'gap0'"),
        ({"MEMVIT__SAMPLER": "2"}, "MEMVIT.SAMPLER: '2'"),
        ({"MEMVIT__ATTN_MAX_LEN": 1}, "MEMVIT.ATTN_MAX_LEN: 1 leaves no past clip"),
        ({"MVIT__POOL_FIRST": False}, "memory needs pool_first=True"),
        ({"MVIT__CAUSAL": True, "MVIT__MODE": "avg"}, "leak the future through pool_mode='avg'"),
        ({"MVIT__CAUSAL": True, "MVIT__MODE": "max"}, "leak the future through pool_mode='max'"),
        ({"MVIT__CAUSAL": True, "MVIT__CONV_Q": 2}, "leak the future .*residual_pooling='conv'"),
        ({"MVIT__POOL_FIRST": False, "MVIT__MODE": "conv_unshared", "MEMVIT__ENABLE": False}, "needs pool_first"),
        ({"DETECTION__ENABLE": True, "MVIT__FRAME_LEVEL": True}, "DETECTION.ENABLE and MVIT.FRAME_LEVEL contradict"),
        ({"MVIT__POOL_KV_STRIDE": [[0, 1, 2, 2]]}, "contradicts kv_stride_adaptive"),
        ({"MVIT__DIM_MUL": [[99, 2.0]]}, "names a block outside 0..3"),
        ({"MVIT__MODE": "sum"}, "must be one of conv, conv_unshared, avg, max"),
        ({"MVIT__PATCH_KERNEL": [3, 7]}, "needs three whole numbers"),
        ({"MVIT__PATCH_2D": True}, "MVIT.PATCH_2D: True is not implemented, only False"),
        ({"MODEL__ARCH": "slowfast"}, "MODEL.ARCH: 'slowfast' is not implemented, only 'mvit'"),
        ({"MODEL__NUM_CLASSES": 0}, "every head needs at least one class"),
        ({"MODEL__HEAD_ACT": "relu"}, "must be one of softmax, sigmoid"),
        ({"DATA__INPUT_CHANNEL_NUM": []}, "DATA.INPUT_CHANNEL_NUM: needs the number of channels"),
        ({"MVIT": None}, "not a config of the release's form"),
    ],
)
def test_contradictions_and_what_is_not_implemented_are_errors(changes, reason):
    with pytest.raises(ValueError, match=f"^the config.*{reason}"):
        read_config(config(**changes))


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "my.yaml"
    for text, reason in [
        ("MVIT:\n  NOVELTY: 1\n", "unknown key MVIT.NOVELTY"),
        ("MVIT:\n  MODE: sum\n", "pool_mode='sum'"),
        ("MVIT: [", "is not a YAML file"),
        ("just words", "is not a config of the release's form"),
        ("- 1\n- 2\n", "is not a config of the release's form"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{path}.*{reason}"):
            read_config(path)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=f"{path} is not a YAML file"):
        read_config(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml: no such config file"):
        read_config(tmp_path / "nothing.yaml")


def test_layers_beyond_the_depth_may_be_excluded():
    ours, _ = read_config(config(MEMVIT__EXCLUDE_LAYERS=[1, 3, 5, 99]))
    assert ours.memory_layers == (0, 2)


def test_strings_may_hold_python_literals():
    changes = {
        "MVIT__PATCH_KERNEL": "(3, 7, 7)",
        "MVIT__DEPTH": "4",
        "MVIT__POOL_Q_STRIDE": "[[0, 1, 1, 1], (1, 1, 2, 2), [2, 1, 1, 1], [3, 1, 2, 2]]",
        "MEMVIT__EXCLUDE_LAYERS": "[1, 3]",
        "MEMVIT__ENABLE": "True",
        "MVIT__MLP_RATIO": 4,
    }
    assert read_config(config(**changes)) == read_config(YAML)


def test_keys_of_training_and_data_are_ignored_and_listed(caplog):
    values = config(
        TRAIN__BATCH_SIZE=8, SOLVER__BASE_LR=0.1, DATA__PATH_PREFIX="videos", NUM_GPUS=8, MODEL__LOSS_FUNC="bce"
    )
    ours, ignored = read_config(values)
    assert ours == read_config(YAML)[0]
    assert {"TRAIN.BATCH_SIZE", "SOLVER.BASE_LR", "DATA.PATH_PREFIX", "NUM_GPUS", "MODEL.LOSS_FUNC"} <= set(ignored)
    assert not any(key.startswith("MEMVIT") for key in ignored)
    caplog.set_level(logging.INFO)
    load_slowfast(values)
    assert "keys outside the model are ignored" in caplog.text
    assert "SOLVER.BASE_LR" in caplog.text


def test_the_boundary_is_the_callers_choice():
    assert read_config(YAML)[0].memory.boundary == "mask"
    assert read_config(YAML, "zero")[0].memory.boundary == "zero"


# Checkpoints


def assert_loaded(model):
    own = model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in read_checkpoint(PYTH).items() if name in own)


def test_a_model_is_loaded_in_eval_mode():
    model = load_slowfast(YAML, PYTH)
    assert_loaded(model)
    assert not model.training


def test_any_usual_wrapping_of_the_weights_is_understood(tmp_path):
    weights = state()
    parallel = {f"module.{name}": tensor for name, tensor in weights.items()}
    for content in (
        weights,
        parallel,
        {"model_state": weights},
        {"model_state": parallel, "epoch": 3, "optimizer_state": {}},
    ):
        assert_loaded(load_slowfast(YAML, content))
        torch.save(content, tmp_path / "weights.pyth")
        assert_loaded(load_slowfast(YAML, tmp_path / "weights.pyth"))
    torch.save(weights, tmp_path / "old.pyth", _use_new_zipfile_serialization=False)
    assert_loaded(load_slowfast(YAML, str(tmp_path / "old.pyth")))


def test_numbers_of_numpy_beside_the_weights_do_no_harm(tmp_path):
    path = tmp_path / "weights.pyth"
    torch.save({"model_state": state(), "lr": np.float64(0.1), "epoch": np.int64(3), "best": np.float32(1)}, path)
    assert_loaded(load_slowfast(YAML, path))


def test_what_the_release_stores_and_never_uses_is_reported(caplog):
    model = MeMViT(read_config(YAML)[0])
    report = load_release_state(model, state())
    assert sorted(report.matched) == sorted(model.state_dict())
    assert {name.split(".")[1] for name in report.unused} == {"1", "3"}
    assert len(report.matched) + len(report.unused) == len(state())
    assert "blocks.1.attn.rel_pos_mem_h" in report.unused
    assert "entries for layers without memory left out" in str(report)
    caplog.set_level(logging.INFO)
    load_slowfast(YAML, PYTH)
    assert str(report) in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"norm__weight": None}, r"1 parameters missing \(norm.weight\)"),
        ({"extra": torch.ones(1)}, r"1 entries unknown \(extra\)"),
        ({"norm__weight": torch.ones(3)}, r"1 of another shape \(norm.weight is \(3,\), the model's \(64,\)\)"),
        ({"norm__weight": None, "norm__bias": torch.ones(2)}, "1 parameters missing .*; 1 of another shape"),
    ],
)
def test_weights_that_do_not_fit_are_an_error_and_change_nothing(changes, reason):
    model = MeMViT(read_config(YAML)[0])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=f"the checkpoint is of another model: {reason}.*; use the config that belongs to it"
    ):
        load_release_state(model, state(**changes))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_of_another_model_names_its_file():
    with pytest.raises(ValueError, match=r"det_wide.pyth is of another model: .*use the config that belongs to it"):
        load_slowfast(YAML, GOLDEN / "det_wide.pyth")


@pytest.mark.parametrize("cut", [0, 10, 100, 5000, -1000, -10])
def test_a_checkpoint_cut_short_is_an_error(tmp_path, cut):
    path = tmp_path / "cut.pyth"
    path.write_bytes(PYTH.read_bytes()[:cut])
    with pytest.raises(ValueError, match=f"{path} is not a checkpoint, or is cut short"):
        load_slowfast(YAML, path)


@pytest.mark.parametrize("content", ["hello world\n" * 10, "<!DOCTYPE html><html>", YAML.read_text(), "\0" * 100])
def test_a_text_file_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "text.pyth"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} is not a checkpoint"):
        load_slowfast(YAML, path)


def test_a_missing_checkpoint_is_named(tmp_path):
    for path in ("nothing.pyth", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{path}: no such checkpoint file"):
            load_slowfast(YAML, path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model_state": {}}, torch.ones(2), {1: torch.ones(1)}, {"epoch": 3}])
def test_a_file_without_weights_says_so(tmp_path, content):
    path = tmp_path / "none.pyth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"{path} holds no weights: expected a state dict"):
        load_slowfast(YAML, path)


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, zipped):
    path, proof = tmp_path / "bad.pyth", tmp_path / "proof"
    torch.save({"model_state": state(), "x": Attack(proof)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"{path} is a pickle that asks for code to be run .*mkdir.* and is refused"):
        load_slowfast(YAML, path)
    assert not proof.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_of_code_is_not_run(tmp_path, protocol):
    path, proof = tmp_path / "bad.pyth", tmp_path / "proof"
    path.write_bytes(pickle.dumps(Attack(proof), protocol=protocol))
    with pytest.raises(ValueError, match=f"{path} is (not a checkpoint|a pickle that asks for code)"):
        load_slowfast(YAML, path)
    assert not proof.exists()


def test_objects_of_other_libraries_are_refused_by_name(tmp_path):
    path = tmp_path / "args.pyth"
    torch.save({"model_state": state(), "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(ValueError, match=r"\(argparse.Namespace\), and is refused.*save the state dict alone"):
        load_slowfast(YAML, path)
