"""Batches of clips from streams of videos, decoded ahead of the model."""

from __future__ import annotations

import itertools
import logging
import pickle
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from memvit.datasets.augmentation import Augmentation
from memvit.datasets.clips import Batch, VideoDataset
from memvit.datasets.reading import ClipSource, Part, Trouble, blank_annotation, check_sizes, read_parts
from memvit.datasets.streams import NOTHING, Stream, evaluation_streams, num_steps, training_streams
from memvit.datasets.views import scaled_size
from memvit.video.prefetch import Prefetcher

logger = logging.getLogger(__name__)

# The share of failed videos is that of this many at least (or of all), so that two unlucky ones in the first batch end
# no training; a wrong folder still shows after a few.
MIN_JUDGED_VIDEOS = 50
MIN_FAILED_VIDEOS = 2
NUM_NAMED_VIDEOS = 5


class StreamLoader:
    """Iterate over the batches of one pass (epoch): clip t of ``batch_size`` streams is batch t.

    Streams are planned by :mod:`memvit.datasets.streams`. Each is decoded from its beginning to its end, every frame
    once. Everything is decided by the seed, the epoch and the place in a stream, nothing by timing or the number of
    workers: going on from the middle of an epoch gives the same batches.

    When the batches of an epoch are used up, the next iteration gives the next epoch. An iteration that was left early
    counts for nothing: the next one begins the same epoch anew, unless :meth:`resume` tells where to go on.

    A video that cannot be read is skipped: its clips are filler (not ``present``), ``Batch.failures`` names it and a
    warning is logged.

    Args:
        dataset: the videos.
        batch_size: streams of this process.
        crop_size: of the clips, pixels. Without augmentation the short side of a frame is scaled to it and the centre
            cut out.
        training: shuffle videos and cut them into streams of equal length; otherwise every video stays whole and streams
            are the same in every epoch.
        seed: of the order and of the augmentation, 0 or more; the same in all processes.
        rank: which process this is, from 0. It reads streams ``rank * batch_size`` and following.
        world_size: how many processes there are. All get equally many batches.
        num_workers: processes that decode, each a share of the streams; 0 decodes in a thread.
        prefetch: batches prepared ahead.
        augmentation: what is drawn at random for training clips.
        keep_aspect: clips show the whole frame, the long side rounded to whole pixels. Videos of one shape are then read
            together, one shape after another.
        max_failed_share: end with an error when a larger share of videos cannot be read: of those met so far in the
            epoch, or of the first 50 (all, if there are fewer).

    Raises:
        ValueError: an option is impossible, the data set has no clips; while iterating: too many videos failed, or videos
            of different shapes meet in a batch.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        batch_size: int,
        crop_size: int,
        training: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch: int = 4,
        augmentation: Augmentation | None = None,
        keep_aspect: bool = False,
        max_failed_share: float = 0.1,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("crop_size", crop_size, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
            ("num_workers", num_workers, 0),
            ("prefetch", prefetch, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value} is too small: give {least} or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} is none of {world_size} processes: give 0 to {world_size - 1}")
        if not 0 <= max_failed_share <= 1:
            raise ValueError(f"max_failed_share={max_failed_share} is no share: give 0 to 1")
        if augmentation is not None:
            if not training:
                raise ValueError("augmentation is for training: leave it out for evaluation")
            if keep_aspect:
                raise ValueError("augmentation cuts out squares, keep_aspect keeps whole frames: choose one")
            augmentation.check(crop_size)
        self.dataset = dataset
        self.batch_size = batch_size
        self.crop_size = crop_size
        self.training = training
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = min(num_workers, batch_size)
        self.prefetch = prefetch
        self.augmentation = augmentation
        self.keep_aspect = keep_aspect
        self.max_failed_share = max_failed_share
        self._epoch = 0
        self._step = 0
        self._resume_at = 0
        self._logged: set[str] = set()
        self._starts_s = [np.asarray(dataset.clip_starts(video), np.float64) for video in dataset.videos]
        some = next((index for index, starts_s in enumerate(self._starts_s) if len(starts_s)), None)
        if some is None:
            raise ValueError(
                f"none of the {len(self._starts_s)} videos has a clip: check the annotations and the split"
            )
        annotation = dataset.annotate(dataset.videos[some], float(self._starts_s[some][0]))
        self._blank = blank_annotation(annotation)
        self._num_steps = num_steps(self._streams())

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next iteration gives, or that the running one is in."""
        return self._epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._num_steps

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: {"epoch", "step"}, with ``step`` batches of the epoch handed out."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from :meth:`state_dict`."""
        self.resume(state["epoch"], state["step"])

    def resume(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration begin with batch ``step`` of an epoch.

        Raises:
            ValueError: there is no such batch.
        """
        if epoch < 0 or not 0 <= step <= len(self):
            raise ValueError(
                f"no batch {step} in epoch {epoch}: an epoch has {len(self)} batches (another batch_size, world_size or "
                "data set than before changes that); begin with an epoch"
            )
        self._epoch, self._step, self._resume_at = epoch, step, step

    def __iter__(self) -> Iterator[Batch]:
        first_step, self._resume_at = self._resume_at, 0
        epoch, self._step = self._epoch, first_step
        streams = self._streams()
        num_videos = sum(segment.video != NOTHING for number in self._numbers for segment in streams[number])
        failures = _Failures(num_videos, self.max_failed_share)
        with closing(self._parts(streams, epoch, first_step)) as steps:
            for step, parts in enumerate(steps, first_step):
                troubles = failures.add(parts)
                self._log(troubles)
                batch = self._join(parts, epoch, step, troubles)
                self._step = step + 1
                yield batch
        self._epoch, self._step = epoch + 1, 0

    def _streams(self) -> list[Stream]:
        num_clips = [len(starts_s) for starts_s in self._starts_s]
        num_streams = self.batch_size * self.world_size
        if self.training:
            return training_streams(num_clips, num_streams, self.seed, self._epoch)
        return evaluation_streams(num_clips, num_streams, self._shapes() if self.keep_aspect else None)

    def _shapes(self) -> list[tuple[int, int]]:
        """The size of every video's clips; (0, 0) for what cannot be known before it is opened."""
        return [
            scaled_size(video.height, video.width, self.crop_size) if video.height and video.width else (0, 0)
            for video in self.dataset.videos
        ]

    def _parts(self, streams: Sequence[Stream], epoch: int, first_step: int) -> Generator[list[Part], None, None]:
        """The parts of every step, in the order of the streams."""
        source = ClipSource(
            dataset=self.dataset,
            starts_s=self._starts_s,
            blank=self._blank,
            crop_size=self.crop_size,
            keep_aspect=self.keep_aspect,
            augmentation=self.augmentation,
            seed=self.seed,
            epoch=epoch,
        )
        shares = _Shares(source, self._numbers, streams, first_step, len(self), max(1, self.num_workers))
        if not self.num_workers:
            with Prefetcher(shares, self.prefetch) as ahead:
                for part in ahead:
                    yield [part]
            return
        # The workers' seeds come from a generator of their own: otherwise their number would change what training draws.
        workers = DataLoader(
            _InWorker(shares),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch,
            generator=torch.Generator(),
        )
        turns = iter(workers)  # one part of each worker in turn
        try:
            while parts := list(itertools.islice(turns, self.num_workers)):
                for part in parts:
                    if isinstance(part, Exception):
                        raise part
                yield parts
        finally:
            del turns  # ends the processes

    @property
    def _numbers(self) -> range:
        """This process's streams among those of all."""
        return range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)

    def _join(self, parts: Sequence[Part], epoch: int, step: int, troubles: Sequence[Trouble]) -> Batch:
        clips = [clip for part in parts for clip in part.clips]
        present = torch.tensor([clip.present for clip in clips])
        labels = zip(*(clip.annotation.labels for clip in clips), strict=True)
        merge = np.stack if self._blank.boxes is None else np.concatenate
        boxes = frame_boxes = None
        if self._blank.boxes is not None:
            boxes = [torch.from_numpy(clip.annotation.boxes) for clip in clips]
            frame_boxes = [torch.from_numpy(clip.frame_boxes) for clip in clips]
        return Batch(
            clips=self._join_pixels(parts, present),
            starts=torch.tensor([clip.starts for clip in clips]),
            present=present,
            labels=tuple(torch.from_numpy(merge(label)) for label in labels),
            boxes=boxes,
            videos=[clip.video for clip in clips],
            start_s=[clip.start_s for clip in clips],
            epoch=epoch,
            step=step,
            failures=[(trouble.video, trouble.why) for trouble in troubles],
            frame_boxes=frame_boxes,
        )

    def _join_pixels(self, parts: Sequence[Part], present: Tensor) -> Tensor:
        """The clips of all streams, black where there is none."""
        shown = [part.pixels for part in parts if part.pixels is not None]
        if not shown:
            size = self.crop_size
            return torch.zeros(len(present), 3, self.dataset.timing.num_frames, size, size, dtype=torch.uint8)
        check_sizes([pixels[0] for pixels in shown])
        if present.all():
            return shown[0] if len(shown) == 1 else torch.cat(shown)
        joined = torch.zeros(len(present), *shown[0].shape[1:], dtype=torch.uint8)
        joined[present] = torch.cat(shown)
        return joined

    def _log(self, troubles: Sequence[Trouble]) -> None:
        for trouble in troubles:
            # What is only damaged was logged by its reader.
            if trouble.lost and trouble.video not in self._logged:
                self._logged.add(trouble.video)
                logger.warning("skipped clips of video %s: %s", trouble.video, trouble.why)


class _Shares:
    """The parts that one of several workers reads: those of its share of a rank's streams."""

    def __init__(
        self,
        source: ClipSource,
        numbers: range,
        streams: Sequence[Stream],
        first_step: int,
        num_steps: int,
        num_shares: int,
    ) -> None:
        self.source = source
        self.numbers = numbers
        self.streams = [streams[number] for number in numbers]
        self.first_step = first_step
        self.num_steps = num_steps
        self.num_shares = num_shares

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        share = 0 if worker is None else worker.id
        first = len(self.numbers) * share // self.num_shares
        end = len(self.numbers) * (share + 1) // self.num_shares
        return read_parts(
            self.source, self.numbers[first:end], self.streams[first:end], self.first_step, self.num_steps
        )


class _InWorker(IterableDataset[Part | Exception]):
    """Gives the parts of a worker process, and what goes wrong there in place of one.

    PyTorch hands exceptions over too, but wrapped into another message, and in the main process their traceback keeps
    the workers alive.
    """

    def __init__(self, shares: _Shares) -> None:
        self.shares = shares

    def __iter__(self) -> Iterator[Part | Exception]:
        try:
            yield from self.shares
        except Exception as error:
            error.add_note(f"In a worker process:\n{traceback.format_exc()}")
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:  # not every exception can be sent
                yield RuntimeError(f"{type(error).__name__} in a worker process:\n{traceback.format_exc()}")
            else:
                yield error


class _Failures:
    """Counts videos of which clips are lost, and ends the pass when they are too many."""

    def __init__(self, num_videos: int, max_share: float) -> None:
        self.num_judged = min(num_videos, MIN_JUDGED_VIDEOS)
        self.max_share = max_share
        self.num_met = 0
        self.failed: list[Trouble] = []

    def add(self, parts: Sequence[Part]) -> list[Trouble]:
        """What went wrong in a step.

        Raises:
            ValueError: too many videos have failed.
        """
        clips = [clip for part in parts for clip in part.clips]
        troubles = [trouble for clip in clips for trouble in clip.troubles]
        self.num_met += sum(clip.opened for clip in clips)
        self.failed += [trouble for trouble in troubles if trouble.lost]
        num_failed = len(self.failed)
        if num_failed < MIN_FAILED_VIDEOS or num_failed <= self.max_share * max(self.num_met, self.num_judged):
            return troubles
        named = "; ".join(f"{trouble.video} ({trouble.why})" for trouble in self.failed[:NUM_NAMED_VIDEOS])
        more = f"; and {num_failed - NUM_NAMED_VIDEOS} more" if num_failed > NUM_NAMED_VIDEOS else ""
        raise ValueError(
            f"{num_failed} of {self.num_met} videos could not be read, more than max_failed_share={self.max_share:g} "
            f"allows: {named}{more}. Check the folder of the videos, mend them, or allow a larger share"
        )
