from __future__ import annotations

import json

import pytest

from commands.conftest import Run
from memvit.benchmarks.cost import count_macs, count_parameters
from memvit.commands.list_models import MACS
from memvit.models.presets import PRESETS
from memvit.models.zoo import list_weights


@pytest.mark.parametrize("name", PRESETS)
def test_the_compute_in_the_list_is_what_is_counted(name: str) -> None:
    assert MACS[name] == count_macs(PRESETS[name])


def test_models_are_a_table(run: Run) -> None:
    code, out, err = run("models")
    assert (code, err) == (0, "")
    for name in PRESETS:
        assert f"\n{name} " in out
    (line,) = [line for line in out.splitlines() if line.startswith("memvit_16x4 ")]
    for figure in ("34.9 M", "58.5", "16 x 4, 2.1 s", "36.3 s"):
        assert figure in line
    assert "memvit_24_32x3_ava.k700  AVA 2.2, 34.4 mAP  CC BY-NC 4.0  no" in out


def test_models_as_json_say_what_is_cached(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MEMVIT_CACHE", str(cache))
    (cache / "memvit_24_32x3.k700").mkdir()
    (cache / "memvit_24_32x3.k700" / "model.safetensors").write_bytes(b"")
    code, out, _ = run("models", "memvit_*", "--json")
    assert code == 0
    found = {model["name"]: model for model in json.loads(out)}
    assert "mvit_16x4" not in found
    assert found["memvit_tiny"]["parameters"] == count_parameters(PRESETS["memvit_tiny"])
    weights = {weights["name"]: weights for model in found.values() for weights in model["weights"]}
    assert weights.keys() == {published.name for published in list_weights()}
    assert [name for name, entry in weights.items() if entry["cached"]] == ["memvit_24_32x3.k700"]


def test_a_pattern_that_matches_nothing_lists_what_there_is(run: Run) -> None:
    code, out, err = run("models", "resnet*")
    assert (code, out) == (1, "")
    assert "no model is called resnet*; there are mvit_16x4" in err
