from __future__ import annotations

import json
import shutil
from collections import namedtuple

import pytest
import torch._inductor.config

from commands.conftest import Run
from memvit.commands import doctor


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SELF_TEST_MODEL", "memvit_nano")
    monkeypatch.setattr(doctor, "SELF_TEST_S", 2)


def test_a_sound_installation_passes(run: Run) -> None:
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    for line in (
        "ok      packages: torch ",
        "ok      decoders: h264, hevc, vp9, av1",
        "ok      video: 60 of 60 frames",
    ):
        assert line in out
    assert "memvit_nano, 2 clips" in out
    assert out.endswith("all is well\n")


def test_the_report_as_json_is_all_that_is_printed(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["ok"]
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["model"]["status"] == "ok"
    assert checks["torch.compile"]["status"] in ("ok", "missing")
    assert {check["status"] for check in checks.values()} <= {"ok", "missing", "info"}


def test_a_missing_decoder_and_a_full_disk_fail(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DECODERS", ("h264", "no_such_codec"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    code, out, _ = run("doctor")
    assert code == 1
    assert "FAILED  decoders: not in this FFmpeg: no_such_codec" in out
    assert "has only 0.00 GB free" in out
    assert out.splitlines()[-1].startswith("failed: decoders, disk of the Hub cache")


def test_a_check_that_breaks_is_a_failure_and_stops_no_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SELF_TEST_MODEL", "memvit_huge")
    code, out, _ = run("doctor")
    assert code == 1
    assert "FAILED  self-test: unknown model 'memvit_huge'" in out


def test_a_missing_compiler_is_said_and_is_no_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        code, out, _ = run("doctor")
    assert code == 0
    assert "absent  torch.compile: no C++ compiler" in out
