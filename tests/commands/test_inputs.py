from __future__ import annotations

from pathlib import Path

import pytest

from memvit.commands.inputs import expand, result_names


def test_files_and_addresses_stand_for_themselves(data: Path) -> None:
    for source in (str(data / "ok.mp4"), "missing.mp4", "rtsp://camera/1", str(data / "images")):
        assert expand(source) == [source]


def test_a_folder_of_videos_stands_for_its_videos_in_order(data: Path) -> None:
    assert expand(str(data / "videos")) == [str(data / "videos" / name) for name in ("a.mp4", "b.mp4")]


def test_a_folder_of_both_or_neither_is_an_error(data: Path) -> None:
    with pytest.raises(ValueError, match="name the videos"):
        expand(str(data / "both"))
    with pytest.raises(ValueError, match="no image and no video"):
        expand(str(data / "no_images"))


def test_results_of_namesakes_go_apart() -> None:
    assert list(result_names(["a/x.mp4", "b/x.mkv", "x_2.avi", "X.mp4"])) == ["x", "x_2", "x_2_2", "X_3"]


def test_addresses_give_names_without_secrets() -> None:
    sources = ["rtsp://me:secret@camera:554/live/1?token=abc", "https://host/films/a%20b.mp4?key=1", "/dev/video0"]
    assert list(result_names(sources)) == ["camera_live_1", "a_b", "video0"]


def test_no_name_leads_out_of_the_folder() -> None:
    assert list(result_names(["...mp4", "file:///tmp/../..", "udp://@:1234"])) == ["video", "video_2", "video_3"]
