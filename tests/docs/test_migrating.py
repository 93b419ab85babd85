"""The tables of docs/migrating.md agree with the code: keys of the release with what they become here."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import pytest
from lightning.pytorch import Trainer

from docs.blocks import ROOT
from memvit.datasets.augmentation import Augmentation
from memvit.models import slowfast
from memvit.models.config import MViTConfig
from memvit.models.slowfast import FIXED_KEYS, TRAINING_KEYS, read_config
from memvit.training.data import AvaData, SegmentsData, VideoData
from memvit.training.epic_kitchens import EpicKitchensData
from memvit.training.kinetics import KineticsData
from memvit.training.module import VideoClassifier
from memvit.training.optimization import OptimizerOptions
from memvit.training.runs import RunOptions

PAGE = (ROOT / "docs" / "migrating.md").read_text()
KEY = r"[A-Z_]+(?:\.[A-Z_0-9]+)*"
BASE = {
    "MVIT": {"DEPTH": 2, "EMBED_DIM": 8, "POOL_FIRST": True, "POOL_KVQ_KERNEL": [3, 3, 3], "USE_ABS_POS": False},
    "MEMVIT": {"ENABLE": True, "COMPRESS": {"ENABLE": True}},
    "DETECTION": {"ENABLE": True},
}
# A value of every key that is not its default; with what else, where the key alone says nothing.
CHANGES: dict[str, Any] = {
    "DATA.NUM_FRAMES": 4,
    "DATA.SAMPLING_RATE": 3,
    "DATA.TRAIN_CROP_SIZE": 64,
    "DATA.TEST_CROP_SIZE": 64,
    "DATA.INPUT_CHANNEL_NUM": [4],
    "DATA.MEAN": [0.1, 0.2, 0.3],
    "DATA.STD": [0.1, 0.2, 0.3],
    "MVIT.PATCH_KERNEL": [3, 3, 3],
    "MVIT.PATCH_STRIDE": [2, 8, 8],
    "MVIT.PATCH_PADDING": [1, 3, 3],
    "MVIT.EMBED_DIM": 16,
    "MVIT.NUM_HEADS": 2,
    "MVIT.DEPTH": (3, {"MEMVIT.EXCLUDE_LAYERS": [2]}),
    "MVIT.DIM_MUL": [[1, 2.0]],
    "MVIT.HEAD_MUL": [[1, 2.0]],
    "MVIT.DIM_MUL_IN_ATT": True,
    "MVIT.MLP_RATIO": 2.0,
    "MVIT.QKV_BIAS": False,
    "MVIT.SEPARATE_QKV": True,
    "MVIT.POOL_FIRST": (False, {"MEMVIT.ENABLE": False}),
    "MVIT.MODE": "conv_unshared",
    "MVIT.POOL_KVQ_KERNEL": [1, 3, 3],
    "MVIT.POOL_Q_STRIDE": [[1, 1, 2, 2]],
    "MVIT.POOL_KV_STRIDE": [[1, 1, 2, 2]],
    "MVIT.POOL_KV_STRIDE_ADAPTIVE": [1, 4, 4],
    "MVIT.CONV_Q": 1,
    "MVIT.CLS_EMBED_ON": False,
    "MVIT.USE_ABS_POS": True,
    "MVIT.SEP_POS_EMBED": (True, {"MVIT.USE_ABS_POS": True}),
    "MVIT.REL_POS_SPATIAL": True,
    "MVIT.REL_POS_TEMPORAL": True,
    "MVIT.NORM_STEM": True,
    "MVIT.DROPOUT_RATE": 0.2,
    "MVIT.DROP_ATTN_RATE": 0.2,
    "MVIT.DROPPATH_RATE": 0.2,
    "MVIT.CAUSAL": True,
    "MVIT.FRAME_LEVEL": (True, {"DETECTION.ENABLE": False}),
    "MVIT.BOX_DEPTH": 1,
    "MVIT.BOX_DROPOUT_RATE": 0.2,
    "MVIT.BOX_DROP_ATTN_RATE": 0.2,
    "MVIT.BOX_DROP_QKV_RATE": 0.2,
    "MVIT.BOX_DROPPATH_RATE": 0.2,
    "MEMVIT.ENABLE": False,
    "MEMVIT.ATTN_MAX_LEN": 5,
    "MEMVIT.SAMPLER": "gap2",
    "MEMVIT.EXCLUDE_LAYERS": [1],
    "MEMVIT.COMPRESS.ENABLE": False,
    "MEMVIT.COMPRESS.POOL_KERNEL": [7, 3, 3],
    "MEMVIT.COMPRESS.POOL_STRIDE": [4, 2, 2],
    "MODEL.NUM_CLASSES": 7,
    "MODEL.NUM_CLASSES_LIST": [3, 4],
    "MODEL.HEAD_ACT": "sigmoid",
    "MODEL.DROPOUT_RATE": 0.2,
    "DETECTION.ENABLE": (False, {"DETECTION.SPATIAL_SCALE_FACTOR": 32}),
    "DETECTION.SPATIAL_SCALE_FACTOR": 32,
    "DETECTION.ALIGNED": False,
}


def _rows(heading: str) -> dict[str, str]:
    """The table under a heading: their key -> what stands in the second column."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return dict(re.findall(rf"^\| `({KEY})` \|(.*?)\|", section, re.MULTILINE))


MODEL_ROWS, TRAINING_ROWS = _rows("Keys that make the model"), _rows("Keys that train it")


def _with(changes: dict[str, Any]) -> MViTConfig:
    values = copy.deepcopy(BASE)
    for key, value in changes.items():
        *sections, name = key.split(".")
        target: dict[str, Any] = values
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    config, ignored = read_config(values)
    assert ignored == []
    return config


def _options(config: MViTConfig) -> dict[str, Any]:
    """A config as the options of `create_model`."""
    fields = config.to_dict()
    memory, head = fields.pop("memory"), fields.pop("head")
    head["head_dropout"] = head.pop("dropout")  # the trunk's has the short name
    return {**fields, **{f"memory_{name}": value for name, value in memory.items()}, **head}


def test_the_page_names_every_key_that_the_loader_reads() -> None:
    read = set(re.findall(r'keys\("([A-Z_.]+)"', inspect.getsource(slowfast)))
    assert set(MODEL_ROWS) == read == set(CHANGES)
    others = {".".join(key) for key in FIXED_KEYS}
    others |= {f"{section}.{name}" for section, names in TRAINING_KEYS.items() for name in names}
    assert {key for key in others if f"`{key}`" not in PAGE} == set()


@pytest.mark.parametrize("key", sorted(MODEL_ROWS))
def test_a_key_changes_what_the_page_says_and_nothing_else(key: str) -> None:
    value, context = CHANGES[key] if isinstance(CHANGES[key], tuple) else (CHANGES[key], {})
    before, after = _options(_with(context)), _options(_with({**context, key: value}))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == set(re.findall(r"`(\w+)`", MODEL_ROWS[key]))


def test_every_option_that_stands_for_a_key_of_training_exists() -> None:
    homes = {
        "optimizer": (OptimizerOptions,),
        "run": (RunOptions,),
        "trainer": (Trainer,),
        "model": (VideoClassifier,),
        "data": (VideoData, SegmentsData, AvaData, EpicKitchensData, KineticsData),
        "data.augmentation": (Augmentation,),
    }
    options = {"ckpt_path", "seed_everything"}
    for section, kinds in homes.items():
        options |= {f"{section}.{name}" for kind in kinds for name in inspect.signature(kind).parameters}
    named = {option for cell in TRAINING_ROWS.values() for option in re.findall(r"`([\w.]+)`", cell)}
    assert len(named) > 40
    assert named - options == set()
