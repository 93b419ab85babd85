"""Online recognition: frames are pushed as they come, predictions come out per clip."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memvit.models.config import Size3
from memvit.models.memory import Memory
from memvit.models.memvit import MeMViT
from memvit.online.engine import StepEngine, evaluating
from memvit.online.prediction import ClipPrediction
from memvit.online.state_file import pack_frame, read_state, unpack_frame, write_state
from memvit.online.stream import ClipGrid, FrameClip, ReadyClip, StreamState
from memvit.video import ClipTransform, Frame, Prefetcher, TimeSampler, VideoReader

logger = logging.getLogger(__name__)

STATE_VERSION = 1


class OnlineRecognizer:
    """Runs a model over any number of streams, each with its own memory, in constant space.

        recognizer = OnlineRecognizer(model)
        for prediction in recognizer.run(open_video("kitchen.mp4")):
            print(prediction.start_s, prediction.topk(1))

    or frame by frame, `recognizer.push(frame, time_s)`, and `recognizer.finish()` at the end. Frames are chosen by their
    times: a clip shows the video at `num_frames` instants, `sampling_rate / fps` seconds apart, whatever the video's own
    frame rate. The streams of one `push_many` call go through the model as one batch.

    Args:
        model: put into eval mode. Its head's `class_names` name the classes. It recognises, or anticipates if its head has
            `anticipation_s`: see `ClipPrediction`.
        fps: frame rate that `sampling_rate` refers to, and the rate of frames pushed without a time.
        sampling_rate: a clip takes every so-many-th frame; the model's own where None.
        stride: sampled frames from the start of a clip to the start of the next. None: clips follow one another.
        keep_aspect: show the whole frame instead of its centre square.
        dtype: run under autocast in this dtype (torch.bfloat16, torch.float16); None or float32: as the model is.
        max_batch_size: clips per forward pass.
        max_gap_s: a live stream that was silent for longer starts its clip anew instead of repeating a frame; its memory
            stays. None: frames are repeated.
        compile: with `torch.compile`. What compiles takes from seconds to minutes, at `warm_up` or the first clip; nothing is
            compiled after it, however many streams come and go. Batches are filled up to 1, 2, 4, ..., `max_batch_size` clips,
            each of which is a graph: with one stream, `max_batch_size=1` saves the others. On a GPU the same holds for the
            CUDA graphs that steps are recorded as, compiled or not, which takes a second.
        engine: what runs the model, in place of an own one made of `dtype`, `max_batch_size` and `compile`. Recognizers in
            several threads share a `SharedEngine`, and their clips go through the model together.

    Raises:
        ValueError: a rate or stride below 1, a model that classifies boxes, or an engine of another model.
    """

    def __init__(
        self,
        model: MeMViT,
        fps: float | None = None,
        sampling_rate: int | None = None,
        stride: int | None = None,
        *,
        keep_aspect: bool = False,
        dtype: torch.dtype | None = None,
        max_batch_size: int = 8,
        max_gap_s: float | None = None,
        compile: bool = False,
        engine: StepEngine | None = None,
    ) -> None:
        config = model.config
        if config.head.task == "boxes":
            raise ValueError(
                "this model classifies boxes, which someone must find: use memvit detect, or memvit.online.BoxRecognizer"
            )
        fps = config.fps if fps is None else fps
        sampling_rate = config.sampling_rate if sampling_rate is None else sampling_rate
        stride = config.num_frames if stride is None else stride
        for name, value in (
            ("fps", fps),
            ("sampling_rate", sampling_rate),
            ("stride", stride),
            ("max_batch_size", max_batch_size),
        ):
            if not value > 0:
                raise ValueError(f"{name}={value} must be above 0")
        self.model = evaluating(model)
        self.fps = fps
        self.sampling_rate = sampling_rate
        self.grid = ClipGrid(config.num_frames, stride, sampling_rate / fps)
        self.max_gap_s = max_gap_s
        number_format = None if dtype in (None, torch.float32) else dtype
        if engine is None:
            engine = StepEngine(self.model, number_format, max_batch_size=max_batch_size, compile=compile)
        if engine.model is not self.model:
            raise ValueError("engine runs another model: make it of the one that is given")
        self.engine = engine
        self.max_batch_size = engine.max_batch_size
        channels = (tuple(config.mean), tuple(config.std))
        self.transform = ClipTransform(config.crop_size, *channels, keep_aspect=keep_aspect)  # type: ignore[arg-type]
        self._streams: dict[Hashable, StreamState] = {}
        self._samplers: dict[Hashable, TimeSampler[Frame]] = {}
        self._left: set[Hashable] = set()  # streams whose run was left before its end

    @property
    def streams(self) -> list[Hashable]:
        """The streams that have begun and not ended."""
        return list(self._streams)

    def warm_up(self, clip_size: Size3 | None = None) -> None:
        """Does ahead what would make the first clip slow: loads kernels, and with `compile` compiles.

        Args:
            clip_size: (frames, height, width) of the clips to come; the model's own where None. Clips of another size (with
                `keep_aspect`) compile at the first of them.

        Raises:
            ValueError: `compile` was asked for and there is no compiler on this machine.
        """
        side = self.transform.crop_size
        self.engine.warm_up(clip_size or (self.grid.num_frames, side, side))

    def push(
        self, frame: Frame | np.ndarray, time_s: float | None = None, stream: Hashable = 0
    ) -> list[ClipPrediction]:
        """Takes the next frame of a stream; gives the predictions of the clips that it completes, mostly none.

        Args:
            frame: a decoded frame, or (H, W, 3) uint8 RGB, which is copied.
            time_s: when it is shown; times of a stream increase. None: frames come `1 / fps` apart.
            stream: any name; a new one starts a stream.

        Raises:
            ValueError: a frame of another shape or type, or one that does not come after the one before it.
        """
        return self.push_many({stream: [(frame, time_s)]})

    def push_many(
        self, frames: Mapping[Hashable, Iterable[tuple[Frame | np.ndarray, float | None]]]
    ) -> list[ClipPrediction]:
        """Takes frames of several streams, `{stream: [(frame, time_s), ...]}`; complete clips go as one batch.

        Returns:
            Predictions; those of one stream in order of time.
        """
        stamped: dict[Hashable, list[Frame]] = {}
        for stream, pairs in frames.items():
            pending = self._sampler(stream).pending
            newest_s = -math.inf if pending is None else pending.time_s
            stamped[stream] = self._state(stream).stamp(stream, pairs, newest_s, self.fps)
        ready: list[ReadyClip] = []
        for stream, stream_frames in stamped.items():
            for frame in stream_frames:
                ready += self._take(stream, frame)
        return self.recognize(ready)

    def push_clip(self, clip: Tensor, stream: Hashable = 0, start_s: float | None = None) -> ClipPrediction:
        """Takes a whole clip of a stream instead of frames.

        Args:
            clip: (3, T, H, W), normalised.
            start_s: when it starts; None: clips follow one another.

        Raises:
            ValueError: a wrong shape, or values that are not finite.
        """
        state = self._state(stream)
        if state.frames:
            raise ValueError(
                f"stream {stream!r} has frames waiting for their clip; call finish({stream!r}) before push_clip"
            )
        if clip.dim() != 4 or not clip.is_floating_point():
            raise ValueError(f"a clip must be float (3, frames, height, width), not {clip.dtype} {tuple(clip.shape)}")
        start_s = state.time_of(state.next_index) if start_s is None else start_s
        if not torch.isfinite(clip).all():  # what frames make always is
            raise ValueError(
                f"stream {stream!r}: the clip at {start_s:.2f} s has NaN or infinite values; nothing was recognised and the "
                "memory is as it was; mend the frames and push them again"
            )
        end_s = start_s + clip.shape[1] * self.grid.period_s
        prediction = self.recognize([ReadyClip(stream, clip, start_s, end_s)])[0]
        state.next_index += clip.shape[1]
        return prediction

    def finish(self, stream: Hashable | None = None, end_s: float | None = None) -> list[ClipPrediction]:
        """Ends a stream, or all: the frames that wait make a last clip, filled up by repeating its last frame.

        Args:
            stream: which; None: all.
            end_s: when the stream ended, if later than its last frame.
        """
        ready: list[ReadyClip] = []
        streams = self.streams if stream is None else [stream]
        for name in streams:
            if name not in self._streams:
                raise ValueError(f"no stream {name!r}; there are {self.streams}")
            if name in self._samplers:
                for index, frame in self._samplers[name].finish(end_s):
                    ready += self._ready(name, self._streams[name].add(index, self.transform.frame(frame)))
            ready += self._ready(name, self._streams[name].flush())
        predictions = self.recognize(ready)
        for name in streams:
            self._end(name)
        return predictions

    def forget(self, stream: Hashable = 0) -> None:
        """Starts another video in a running stream: memory and waiting frames are dropped, time goes on."""
        state = self._state(stream)
        state.memory, state.frames, state.num_new = None, [], 0

    def run(
        self,
        frames: Iterable[Frame],
        stream: Hashable = 0,
        *,
        prefetch: int = 64,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> Iterator[ClipPrediction]:
        """Runs a whole source of frames as one stream; decoding and scaling run ahead in a thread.

        A run that is left before its end leaves its stream as it stands, to be saved; the next run of the same name begins
        anew, unless the stream was loaded.

        Args:
            frames: of `memvit.video.open_video`, or any iterable.
            prefetch: sampled frames that may wait for the model.
            start_s: when the first clip starts; None: where the source does (`open_video(path, start_s=20)`), else at 0.
            end_s: when the source ends, if later than its last frame.

        Yields:
            Predictions as they come, the last, partial clip included.
        """
        if stream in self._left:
            self._end(stream)
        if stream not in self._streams:
            start_s = getattr(frames, "start_s", 0.0) if start_s is None else start_s
            self._streams[stream] = StreamState(self.grid, start_s)
        state = self._state(stream)
        # The thread's sampler runs ahead of the state, so it is no part of it.
        sampler = self._samplers.pop(stream, None) or self._new_sampler(state)
        if isinstance(frames, VideoReader) and self.max_gap_s is None:
            frames = frames.read(sampler.shows)
        self._left.add(stream)  # as long as it has not come to its end
        with Prefetcher(self._sample(frames, sampler, end_s), prefetch) as sampled:
            for index, pixels, restart_s in sampled:
                clips = [] if restart_s is None else state.restart(restart_s)
                yield from self.recognize(self._ready(stream, clips + state.add(index, pixels)))
        yield from self.recognize(self._ready(stream, state.flush()))
        self._end(stream)

    def _end(self, stream: Hashable) -> None:
        self._streams.pop(stream, None)
        self._samplers.pop(stream, None)
        self._left.discard(stream)

    def recognize(self, ready: Sequence[ReadyClip]) -> list[ClipPrediction]:
        """Runs clips that have all their frames: those of different streams together, those of one stream one after another.

        Every clip comes through here, however its frames came: override it to see clips beside what is said of them.
        """
        predictions: list[ClipPrediction] = []
        waiting = list(ready)
        while waiting:
            batch: list[ReadyClip] = []
            later: list[ReadyClip] = []
            streams: set[Hashable] = set()
            for clip in waiting:
                fits = len(batch) < self.max_batch_size and (not batch or clip.clip.shape == batch[0].clip.shape)
                (batch if fits and clip.stream not in streams else later).append(clip)
                streams.add(clip.stream)  # whatever became of this clip, those after it wait for it
            predictions += self._forward(batch)
            waiting = later
        return predictions

    def position_s(self, stream: Hashable = 0) -> float:
        """The instant of the frame that a stream needs next; a resumed `run` may read from a little before it."""
        state = self._state(stream)
        return state.time_of(state.next_index)

    def state_dict(self) -> dict[str, Any]:
        """Everything that running streams need to go on elsewhere: tensors and plain data, for `torch.save`.

        Frames that a `run` in progress has decoded ahead are not in it; a stream resumed with `run` reads them again.
        """
        pending = {name: sampler.pending for name, sampler in self._samplers.items()}
        return {
            "version": STATE_VERSION,
            "grid": self._grid(),
            "streams": [
                {
                    "name": name,
                    "state": state.state_dict(),
                    "sampler": self._samplers[name].state_dict() if name in self._samplers else None,
                    "pending": pack_frame(pending.get(name), self.transform),
                }
                for name, state in self._streams.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the streams of `state_dict`, in place of its own.

        Raises:
            ValueError: a state of another model, clip length, rate or stride; nothing is changed then.
        """
        grid = self._grid()
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"this is no recognizer state of version {STATE_VERSION}")
        if list(state["grid"]) != grid:
            raise ValueError(
                f"the state was saved with fps, sampling_rate, stride, num_frames = {list(state['grid'])}, this recognizer "
                f"has {grid}; make it with the same"
            )
        streams: dict[Hashable, StreamState] = {}
        samplers: dict[Hashable, TimeSampler[Frame]] = {}
        for entry in state["streams"]:
            streams[entry["name"]] = StreamState.from_state_dict(entry["state"], self.grid, self.model)
            if entry["sampler"] is not None:
                sampler = self._new_sampler(streams[entry["name"]])
                sampler.load_state_dict(entry["sampler"])
                sampler.pending = unpack_frame(entry["pending"])
                samplers[entry["name"]] = sampler
        self._streams, self._samplers, self._left = streams, samplers, set()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state to a file, whole or not at all."""
        write_state(path, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Takes up the streams of a file written by `save`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, or a state of another model or recognizer.
        """
        self.load_state_dict(read_state(path))

    def _grid(self) -> list[float]:
        return [self.fps, self.sampling_rate, self.grid.stride, self.grid.num_frames]

    def _state(self, stream: Hashable) -> StreamState:
        return self._streams.setdefault(stream, StreamState(self.grid))

    def _sampler(self, stream: Hashable) -> TimeSampler[Frame]:
        if stream not in self._samplers:
            self._samplers[stream] = self._new_sampler(self._state(stream))
        return self._samplers[stream]

    def _new_sampler(self, state: StreamState) -> TimeSampler[Frame]:
        sampler: TimeSampler[Frame] = TimeSampler(self.grid.period_s, max_gap_s=self.max_gap_s)
        sampler.load_state_dict({"start_s": state.start_s, "next_index": state.next_index})
        return sampler

    def _take(self, stream: Hashable, frame: Frame) -> list[ReadyClip]:
        state, sampler = self._state(stream), self._sampler(stream)
        clips = [clip for index, shown in sampler.push(frame) for clip in state.add(index, self.transform.frame(shown))]
        return self._ready(stream, clips + (state.restart(sampler.start_s) if sampler.restarted else []))

    def _ready(self, stream: Hashable, clips: Sequence[FrameClip]) -> list[ReadyClip]:
        ready = []
        for clip in clips:
            num_repeated = self.grid.num_frames - len(clip.frames)
            padded = [*clip.frames, *[clip.frames[-1]] * num_repeated]
            ready.append(ReadyClip(stream, self.transform.clip(padded), clip.start_s, clip.end_s, num_repeated))
        return ready

    def _sample(
        self, frames: Iterable[Frame], sampler: TimeSampler[Frame], end_s: float | None
    ) -> Iterator[tuple[int, np.ndarray, float | None]]:
        """What the decoding thread does: chooses the grid's frames and scales them.

        Yields:
            Index on the grid, pixels, and, where the grid starts anew with this frame, when.
        """
        restart_s: float | None = None
        shown, pixels = None, np.empty(0)
        for frame in frames:
            sampled = sampler.push(frame)
            for index, chosen in sampled:
                if chosen is not shown:  # a slow video shows one frame at several instants
                    shown, pixels = chosen, self.transform.frame(chosen)
                yield index, pixels, restart_s
                restart_s = None
            if sampler.restarted:
                restart_s = sampler.start_s
        for index, chosen in sampler.finish(end_s):
            yield index, self.transform.frame(chosen), restart_s
            restart_s = None

    def _forward(self, batch: Sequence[ReadyClip]) -> list[ClipPrediction]:
        states = [self._state(clip.stream) for clip in batch]
        memories = [self._memory(state, clip.clip) for state, clip in zip(states, batch, strict=True)]
        logits, memories = self.engine.step([clip.clip for clip in batch], memories)
        predictions = []
        for b, (clip, state) in enumerate(zip(batch, states, strict=True)):
            state.memory = memories[b]
            outputs = tuple(head[b] for head in logits)
            predictions.append(clip.prediction(state.num_clips, outputs, self.model.config.head, self.grid.period_s))
            state.num_clips += 1
        return predictions

    @torch.inference_mode()
    def _memory(self, state: StreamState, clip: Tensor) -> Memory:
        """A stream's memory; empty if it has none, or one of clips of another size."""
        clip_size = tuple(clip.shape[1:])
        if state.memory is None or state.clip_size != clip_size:
            if state.memory is not None:
                logger.warning("clips of a stream changed their size to %s; its memory begins anew", clip_size)
            state.memory, state.clip_size = self.model.new_memory(1, *clip_size), clip_size
        return state.memory
