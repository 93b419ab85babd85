from __future__ import annotations

from pathlib import Path

from memvit.benchmarks.serve_load import load
from tiny_models import small_model


def test_many_visitors_half_of_them_with_broken_files_leave_the_server_as_it_was(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model")
    result = load(str(tmp_path / "model"), num_uploads=16, at_once=8, video_s=4.0, folder=tmp_path)
    assert result.unexpected == []
    assert result.ends == {
        "video": {"complete": 8},
        "text": {"refused": 2},
        "empty": {"refused": 2},
        "headless": {"refused": 2},
        "cut": {"partial": 2},
    }
    assert result.num_clips > 8 * 3
    assert result.leftover == []
    assert result.ended_well
    assert "Traceback" not in result.log
    assert result.memory_growth < 0.1
