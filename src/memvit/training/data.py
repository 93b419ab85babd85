"""Data modules: which videos and annotations are trained on and validated with, and how they are fed."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule

from memvit.datasets.augmentation import Augmentation
from memvit.datasets.clips import Batch, ClipTiming, VideoDataset
from memvit.datasets.loader import StreamLoader
from memvit.models.config import MViTConfig

if TYPE_CHECKING:
    from memvit.training.module import VideoClassifier

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class TrainingBatches:
    """The training batches of one epoch after another, from wherever training stands.

    Lightning may ask for an iterator that it then does not use; what has been trained decides where the next one begins.
    """

    def __init__(self, loader: StreamLoader, data: VideoData) -> None:
        self.loader = loader
        self.data = data

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self.loader.resume(self.data.epoch, self.data.step)  # when the first batch is asked for, not before
        yield from self.loader

    def state_dict(self) -> dict[str, Any]:
        """Where training stands; the data module restores it as well, but Lightning asks a loader whether it can."""
        return self.data.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a checkpoint was written."""
        self.data.load_state_dict(state_dict)


class VideoData(LightningDataModule):
    """What all data modules have in common: how clips are made, grouped and fed.

    Args:
        batch_size: videos that every process trains at a time, one clip of each per step.
        val_batch_size: the same where nothing is trained; batch_size where left out.
        stride: from a clip to the next, in sampled frames; the clip's length where left out, so that clips follow one
            another without overlap or gap.
        seed: of the order of the videos, augmentation and dropout.
        num_workers: processes that read videos; 0: the training process itself.
        prefetch: batches that are read ahead.
        augmentation: random changes of the training clips, the same throughout a video.
        keep_aspect: whether clips that are not trained keep the whole picture; otherwise their centre is shown.
        max_failed_share: of the videos, how many may turn out to be unreadable before it is an error.
        skip_unreadable: leave out, with a warning, videos that cannot even be opened; otherwise they are an error.
        image_fps: images per second of videos that are folders of images.
    """

    def __init__(
        self,
        *,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        stride: int | None = None,
        seed: int = 0,
        num_workers: int = 2,
        prefetch: int = 4,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - frozen
        keep_aspect: bool = False,
        max_failed_share: float = 0.1,
        skip_unreadable: bool = False,
        image_fps: float = 30.0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("val_batch_size", val_batch_size), ("stride", stride)):
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be 1 or more")
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.stride = stride
        self.seed = seed
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.augmentation = augmentation
        self.keep_aspect = keep_aspect
        self.max_failed_share = max_failed_share
        self.skip_unreadable = skip_unreadable
        self.image_fps = image_fps
        self.epoch = 0  # where the next training batch is
        self.step = 0
        self.known_classes: tuple[tuple[str, ...], ...] | None = None
        self._timing: ClipTiming | None = None
        self._crop_size = 0
        self._whole_tests = False  # tests look at several squares of a picture
        self._datasets: dict[Split, VideoDataset | None] = {}

    @abstractmethod
    def annotations(self, split: Split) -> Path | None:
        """The file, or folder, with the annotations of a split; None where there is none."""

    @abstractmethod
    def open_dataset(
        self, split: Split, timing: ClipTiming, classes: tuple[tuple[str, ...], ...] | None
    ) -> VideoDataset:
        """The videos and annotations of a split, with those classes, or those found in it."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Options of the subclass that what is trained depends on."""

    def connect(self, config: MViTConfig) -> None:
        """Says which clips the model takes; before anything else is asked for.

        Args:
            config: of the model; its classes do not matter.
        """
        stride = self.stride or config.num_frames
        timing = ClipTiming(config.num_frames, config.frame_period_s, stride * config.frame_period_s, config.num_times)
        if timing != self._timing or config.crop_size != self._crop_size:
            self._timing, self._crop_size = timing, config.crop_size
            self._datasets.clear()

    def dataset(self, split: Split) -> VideoDataset | None:
        """The videos and annotations of a split; None where there are none to validate with.

        Raises:
            FileNotFoundError: there are no annotations to train on or test with.
            ValueError: annotations that cannot be used.
        """
        if split not in self._datasets:
            self._datasets[split] = self._open(split)
        return self._datasets[split]

    def _open(self, split: Split) -> VideoDataset | None:
        assert self._timing is not None, "connect comes first"
        path = self.annotations(split)
        if path is None or not path.exists():
            if split == "val" and (path is None or path.stem == "val"):
                return None  # by default there may be one or not
            where = "is not given" if path is None else f"{path}: no such file"
            raise FileNotFoundError(f"data.{split} {where}; it names the annotations to {split} with")
        classes = self.known_classes
        # A file that names the classes saves opening the training videos for their sake.
        if classes is None and split != "train" and getattr(self, "classes", None) is None:
            train = self.annotations("train")
            found = self.dataset("train") if train is not None and train.exists() else None
            classes = found.classes if found is not None else None
        return self.open_dataset(split, self._timing, classes)

    def setup(self, stage: str) -> None:
        """Opens what a stage needs; Lightning calls it."""
        assert self.trainer is not None
        module = cast("VideoClassifier", self.trainer.lightning_module)
        self._whole_tests = module.test_crops > 1
        self.connect(module.base_config)
        if stage == "fit":
            self.dataset("train")
        self.dataset("test" if stage == "test" else "val")

    def reference(self) -> VideoDataset:
        """A data set that tells task and classes: the one to train on where it is open, else any that is.

        Raises:
            FileNotFoundError: there is nothing to validate with.
        """
        for found in self._datasets.values():
            if found is not None:
                return found
        raise FileNotFoundError("data.val names no CSV file that exists; there is nothing to validate with")

    def identity(self) -> dict[str, Any]:
        """What a training must have in common with the one that it continues."""
        dataset = self.dataset("train")
        assert dataset is not None
        path = self.annotations("train")
        assert path is not None
        names = "\n".join(video.name for video in dataset.videos)
        return {
            "kind": type(self).__name__,
            # A folder's annotations are where its videos are, so their names say everything.
            "annotations_sha256": hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            "videos": len(dataset.videos),
            "videos_sha256": hashlib.sha256(names.encode()).hexdigest(),
            "batch_size": self.batch_size,
            "stride_s": dataset.timing.stride_s,
            "seed": self.seed,
            "augmentation": dataclasses.asdict(self.augmentation),
            **self.facts(),
        }

    def trained(self, batch: Batch, batches_per_epoch: int | float) -> None:
        """Notes that a batch has been trained; what comes next is where a resumed training begins."""
        done = batch.step + 1 >= batches_per_epoch
        self.epoch, self.step = (batch.epoch + 1, 0) if done else (batch.epoch, batch.step + 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the next training batch is, for a checkpoint."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a checkpoint was written."""
        self.epoch, self.step = state_dict["epoch"], state_dict["step"]

    def train_dataloader(self) -> TrainingBatches:
        """The training batches of this process."""
        return TrainingBatches(self._loader("train", self.batch_size), self)

    def val_dataloader(self) -> StreamLoader | list[Any]:
        """What to validate with; an empty list where there is nothing."""
        return self._loader("val", self.val_batch_size) if self.dataset("val") is not None else []

    def test_dataloader(self) -> StreamLoader:
        """What to test with."""
        return self._loader("test", self.val_batch_size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch without waiting for the copy, nor for what the GPU has to do before it."""
        if device.type == "cuda":
            batch = batch.pin_memory()
        return batch.to(device, non_blocking=True)

    def _loader(self, split: Split, batch_size: int) -> StreamLoader:
        assert self.trainer is not None
        dataset = self.dataset(split)
        assert dataset is not None
        return StreamLoader(
            dataset,
            batch_size=batch_size,
            crop_size=self._crop_size,
            training=split == "train",
            seed=self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            num_workers=self.num_workers,
            prefetch=self.prefetch,
            augmentation=self.augmentation if split == "train" else None,
            keep_aspect=(self.keep_aspect and split != "train") or (self._whole_tests and split == "test"),
            max_failed_share=self.max_failed_share,
        )


class AnnotatedData(VideoData):
    """A folder of videos, with a file of annotations for every split.

    Args:
        root: the folder that the other paths are relative to.
        train: file with what is trained on.
        val: the same to validate with; None: nothing is validated.
        test: the same for `memvit test`.
        videos: the folder with the videos.
        kwargs: as for `VideoData`.
    """

    def __init__(self, root: str, train: str, val: str | None, test: str | None, videos: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.files: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.videos = videos

    def annotations(self, split: Split) -> Path | None:
        """The file of a split."""
        name = self.files[split]
        return None if name is None else self.root / name


class SegmentsData(AnnotatedData):
    """Your own videos: CSV files that say what happens from when to when.

    Args:
        root: the folder that the other paths are relative to.
        train: CSV file with the segments to train on.
        val: the same to validate with; without such a file nothing is validated.
        test: the same for `memvit test`.
        videos: the folder with the videos.
        task: "clip" (one label a clip) or "frames" (one for every token time of a clip).
        multi_label: whether several classes can be true at a time.
        anticipation_s: seconds from the end of a clip to the moment whose label it is to predict; 0: recognise.
        kwargs: as for `VideoData`.
    """

    def __init__(
        self,
        root: str = ".",
        train: str = "train.csv",
        val: str | None = "val.csv",
        test: str | None = "test.csv",
        videos: str = "videos",
        task: Literal["clip", "frames"] = "clip",
        multi_label: bool = False,
        anticipation_s: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, train=train, val=val, test=test, videos=videos, **kwargs)
        self.task = task
        self.multi_label = multi_label
        self.anticipation_s = anticipation_s

    def open_dataset(self, split: Split, timing: ClipTiming, classes: Sequence[Sequence[str]] | None) -> VideoDataset:
        """The segments of a split."""
        from memvit.datasets.segments import SegmentsDataset

        path = self.annotations(split)
        assert path is not None
        return SegmentsDataset(
            path,
            self.root / self.videos,
            timing,
            classes=classes,
            task=self.task,
            multi_label=self.multi_label,
            anticipation_s=self.anticipation_s,
            skip_unreadable=self.skip_unreadable,
            image_fps=self.image_fps,
        )

    def facts(self) -> dict[str, Any]:
        """What the labels depend on."""
        return {"task": self.task, "multi_label": self.multi_label, "anticipation_s": self.anticipation_s}


class AvaData(AnnotatedData):
    """AVA: actions of people in boxes, one keyframe a second. What files look like: `memvit.datasets.ava_boxes`.

    Args:
        root: the folder that the other paths are relative to.
        train: CSV file with the annotated boxes to train on.
        val: the same to validate with; without such a file nothing is validated.
        test: the same for `memvit test`.
        videos: the folder with the videos, or with folders of their frames.
        classes: the label map, a CSV file label_id,label_name or AVA's .pbtxt; ava: AVA's 80 actions; the numbers in use
            where left out.
        first_second: the second at which the video files begin; 900 for AVA's own.
        seconds: the first and the last second that keyframes are at; 902 and 1798 for AVA.
        multi_label: whether several actions of a person can be true at a time, as in AVA.
        train_detections: CSV files with detected boxes that are trained on beside the annotated ones.
        val_detections: CSV files with the detected boxes that are validated with, in place of annotated ones.
        test_detections: the same for `memvit test`.
        min_score: detected boxes with a lower score are left out.
        train_excluded: CSV file with keyframes that are not trained on.
        val_excluded: CSV file with keyframes that are not measured.
        test_excluded: the same for `memvit test`.
        train_frames: list of the frames as images, in PySlowFast's form, with paths relative to `videos`.
        val_frames: the same for validation.
        test_frames: the same for `memvit test`.
        keep_aspect: whether clips that are not trained keep the whole picture; otherwise their centre is shown, and what
            lies beside it is missed.
        kwargs: as for `VideoData`.
    """

    def __init__(
        self,
        root: str = ".",
        train: str = "train.csv",
        val: str | None = "val.csv",
        test: str | None = "test.csv",
        videos: str = "videos",
        classes: str | None = None,
        first_second: float = 0.0,
        seconds: tuple[float, float] | None = None,
        multi_label: bool = True,
        train_detections: list[str] | None = None,
        val_detections: list[str] | None = None,
        test_detections: list[str] | None = None,
        min_score: float = 0.9,
        train_excluded: str | None = None,
        val_excluded: str | None = None,
        test_excluded: str | None = None,
        train_frames: str | None = None,
        val_frames: str | None = None,
        test_frames: str | None = None,
        keep_aspect: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, train=train, val=val, test=test, videos=videos, keep_aspect=keep_aspect, **kwargs)
        self.classes = classes
        self.first_second = first_second
        self.seconds = seconds
        self.multi_label = multi_label
        self.detections: dict[Split, list[Path]] = {
            split: [self.root / path for path in paths or ()]
            for split, paths in zip(SPLITS, (train_detections, val_detections, test_detections), strict=True)
        }
        self.min_score = min_score
        self.excluded: dict[Split, str | None] = dict(
            zip(SPLITS, (train_excluded, val_excluded, test_excluded), strict=True)
        )
        self.frames: dict[Split, str | None] = dict(zip(SPLITS, (train_frames, val_frames, test_frames), strict=True))

    def open_dataset(
        self, split: Split, timing: ClipTiming, classes: tuple[tuple[str, ...], ...] | None
    ) -> VideoDataset:
        """The boxes of a split."""
        from memvit.datasets.ava import AvaDataset
        from memvit.datasets.ava_boxes import Classes
        from memvit.datasets.label_maps import AVA

        path, excluded, frames = self.annotations(split), self.excluded[split], self.frames[split]
        assert path is not None
        named: Classes | None = classes
        if self.classes is not None:
            named = AVA if self.classes == AVA else self.root / self.classes
        return AvaDataset(
            path,
            self.root / self.videos,
            timing,
            classes=named,
            first_second=self.first_second,
            seconds=self.seconds,
            multi_label=self.multi_label,
            detections=self.detections[split],
            annotated=split == "train" or not self.detections[split],
            min_score=self.min_score,
            excluded=None if excluded is None else self.root / excluded,
            frame_lists=[] if frames is None else [self.root / frames],
            skip_unreadable=self.skip_unreadable,
            image_fps=self.image_fps,
        )

    def facts(self) -> dict[str, Any]:
        """What the labels depend on."""
        excluded = self.excluded["train"]
        others = [*self.detections["train"], *([] if excluded is None else [self.root / excluded])]
        return {
            "first_second": self.first_second,
            "multi_label": self.multi_label,
            "min_score": self.min_score,
            "other_files_sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in others],
        }
