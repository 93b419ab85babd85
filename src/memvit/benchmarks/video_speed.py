"""Frames per second from an encoded video to predictions, beside reading alone and the model alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import torch

from memvit.benchmarks.progress import OnProgress, counter
from memvit.benchmarks.speed_records import VideoTimes
from memvit.benchmarks.timing import take_turns
from memvit.models.config import MViTConfig
from memvit.models.memvit import MeMViT
from memvit.online import OnlineRecognizer
from memvit.online.predict import predict_video
from memvit.video import Frame, TimeSampler, open_video
from memvit.video.sample import make_sample_video

FPS = 30


def time_videos(
    config: MViTConfig,
    device: torch.device,
    *,
    dtypes: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    num_clips: int,
    num_rounds: int,
    on_progress: OnProgress,
) -> Iterator[VideoTimes]:
    """Times videos of several sizes, H.264 at 30 frames per second, drawn for the purpose.

    Args:
        config: the model, which recognises online, clip after clip.
        sizes: width and height of the videos, pixels.
        num_clips: their length in clips of the model.
        num_rounds: how often each is timed.

    Yields:
        The times of each size and number format.
    """
    model = MeMViT(config).to(device).eval()
    with tempfile.TemporaryDirectory() as folder:
        for width, height in sizes:
            tick = counter(on_progress, f"drawing a video of {width} x {height}", 1)
            path = Path(folder, f"{width}x{height}.mp4")
            # The last frame is shown for its whole duration, so the last clip begins early enough to be whole.
            num_frames = int(Fraction(config.clip_duration_s).limit_denominator(1000) * num_clips * FPS)
            make_sample_video(path, duration_s=num_frames / FPS, width=width, height=height, fps=FPS)
            tick()
            for dtype in dtypes:
                tick = counter(on_progress, f"video, {dtype}, {width} x {height}", num_rounds + 1)
                runs = _Runs(model, getattr(torch, dtype), path, Path(folder, "predictions"))
                runs.num_clips = runs.recognise()
                steps = {"reading": runs.read, "model": runs.recognise_clips, "recognizer": runs.recognise}
                seconds = take_turns({**steps, "predict": runs.predict}, num_rounds, device, on_round=tick)
                times = {name: tuple(values) for name, values in seconds.items()}
                yield VideoTimes(dtype, width, height, FPS, num_frames, runs.num_clips, **times)


class _Runs:
    """The ways through one video, each from its beginning."""

    def __init__(self, model: MeMViT, dtype: torch.dtype, path: Path, folder: Path) -> None:
        self.model = model
        self.dtype = dtype
        self.path = path
        self.folder = folder
        self.num_clips = 0

    def _recognizer(self) -> OnlineRecognizer:
        return OnlineRecognizer(self.model, dtype=self.dtype)

    def read(self) -> None:
        """What the thread that reads does when nobody waits for it, and the normalising of clips."""
        recognizer = self._recognizer()
        transform, num_frames = recognizer.transform, recognizer.grid.num_frames
        sampler: TimeSampler[Frame] = TimeSampler(recognizer.grid.period_s)
        pixels = []
        with open_video(self.path) as video:
            for frame in video:
                pixels += [transform.frame(shown) for _, shown in sampler.push(frame)]
                if len(pixels) >= num_frames:
                    transform.clip(pixels[:num_frames])
                    pixels = pixels[num_frames:]
        pixels += [transform.frame(shown) for _, shown in sampler.finish()]
        if pixels:
            transform.clip(pixels)

    def recognise_clips(self) -> None:
        """The model alone, on clips that are ready."""
        recognizer, config = self._recognizer(), self.model.config
        clip = torch.randn(config.in_channels, config.num_frames, config.crop_size, config.crop_size)
        for _ in range(self.num_clips):
            recognizer.push_clip(clip)

    def recognise(self) -> int:
        """Online recognition of the file; gives the number of clips."""
        with open_video(self.path) as video:
            return sum(1 for _ in self._recognizer().run(video))

    def predict(self) -> None:
        """The same with results in a folder."""
        predict_video(self._recognizer(), self.path, self.folder)
