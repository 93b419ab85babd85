import os
from pathlib import Path

import av
import numpy as np
import pytest

from memvit.video.sample import make_sample_video


def _read(path: Path) -> list[np.ndarray]:
    with av.open(os.fspath(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_acts_tile_the_video(tmp_path: Path) -> None:
    acts = make_sample_video(tmp_path / "a.mp4", duration_s=40, width=64, height=48, fps=10)
    assert acts[0][0] == 0
    assert acts[-1][1] == 40
    assert [end for _, end, _ in acts[:-1]] == [start for start, _, _ in acts[1:]]
    assert len(acts) == 5
    assert len({name for _, _, name in acts}) == 5
    for start_s, end_s, _ in acts:
        assert 5.5 < end_s - start_s < 11


def test_size_rate_and_length_are_as_asked(tmp_path: Path) -> None:
    make_sample_video(tmp_path / "a.mp4", duration_s=2.5, width=100, height=60, fps=12)
    with av.open(os.fspath(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (100, 60, 30)
        assert stream.average_rate == 12
        assert container.duration == pytest.approx(2.5 * av.time_base, rel=1e-3)


def test_every_act_moves(tmp_path: Path) -> None:
    acts = make_sample_video(tmp_path / "a.mp4", duration_s=64, width=80, height=60, fps=8)
    frames = _read(tmp_path / "a.mp4")
    assert len({name for _, _, name in acts}) == 8
    for start_s, end_s, name in acts:
        clip = np.stack(frames[round(start_s * 8) : round(end_s * 8)]).astype(int)
        assert (clip.std(axis=0) > 12).mean() > 0.02, name
        assert clip.std() > 8, name


def test_the_seed_decides(tmp_path: Path) -> None:
    videos = []
    for seed in (0, 0, 1):
        make_sample_video(tmp_path / "a.mp4", duration_s=1, seed=seed, width=64, height=48, fps=10)
        videos.append(np.stack(_read(tmp_path / "a.mp4")))
    assert (videos[0] == videos[1]).all()
    assert (videos[0] != videos[2]).any()


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no frame"):
        make_sample_video(tmp_path / "a.mp4", duration_s=0)
    assert os.listdir(tmp_path) == []
