"""The data module of Kinetics: short videos of one label each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memvit.datasets.clips import ClipTiming, VideoDataset
from memvit.training.data import SPLITS, AnnotatedData, Split
from memvit.training.opening import OpeningLog


class KineticsData(AnnotatedData):
    """Kinetics, or other short videos of one label each. What files look like: `memvit.datasets.kinetics`.

    Training takes one clip of every video an epoch, from its middle, or with `augmentation.clip_jitter` of 1 from anywhere.

    Args:
        root: the folder that the other paths are relative to.
        train: the list of the videos to train on, a line `path label` each; or a folder with a folder of videos per class.
            Where there is no such file, `train.csv` stands for the folder `train` in `videos`.
        val: the same to validate with, one clip from the middle of every video; without it nothing is validated.
        test: the same for `memvit test`.
        videos: the folder that the paths in lists are relative to.
        classes: file with the names of the classes, a line each, or .json or .csv with their numbers; where left out the
            folders' names, or the numbers in the list to train on.
        test_clips: clips of every video that are tested, spread evenly from its beginning to its end; their scores are
            averaged. With `model.test_crops` 3 each of them is seen in three squares.
        max_missing_share: with `skip_unreadable`, how many of the videos may be missing or unreadable before it is an error.
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
        test_clips: int = 5,
        max_missing_share: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, train=train, val=val, test=test, videos=videos, **kwargs)
        if test_clips < 1:
            raise ValueError(f"data.test_clips={test_clips} must be 1 or more")
        self.classes = classes
        self.test_clips = test_clips
        self.max_missing_share = max_missing_share

    def annotations(self, split: Split) -> Path | None:
        """The list of a split, or its folder of folders."""
        path = super().annotations(split)
        if path is None:
            return None
        folder = self.root / self.videos / path.stem
        return folder if not path.exists() and folder.is_dir() else path

    def open_dataset(
        self, split: Split, timing: ClipTiming, classes: tuple[tuple[str, ...], ...] | None
    ) -> VideoDataset:
        """The videos of a split."""
        from memvit.datasets.kinetics import KineticsDataset

        path = self.annotations(split)
        assert path is not None
        dataset = KineticsDataset(
            path,
            self.root / self.videos,
            timing,
            classes=classes if self.classes is None else self.root / self.classes,
            num_clips=self.test_clips if split == "test" else 1,
            skip_unreadable=self.skip_unreadable,
            max_missing_share=self.max_missing_share,
            image_fps=self.image_fps,
            on_progress=OpeningLog(path),
        )
        if classes is not None and [len(names) for names in dataset.classes] != [len(names) for names in classes]:
            raise ValueError(
                f"data.classes={self.classes} names {len(dataset.classes[0])} classes, but the model was trained with "
                f"{' + '.join(str(len(names)) for names in classes)}: give the names that it was trained with"
            )
        return dataset

    def prepare_data(self) -> None:
        """Opens the videos to see how long they are, in one process of every machine; the others then need not.

        Lightning calls it and lets the others wait, however long it takes.
        """
        from memvit.datasets.kinetics import read_labelled_videos
        from memvit.datasets.measuring import measure_once

        assert self.trainer is not None
        if self.trainer.world_size == 1:
            return
        stages: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in stages.get(self.trainer.state.fn or "", SPLITS):
            path = self.annotations(split)
            if path is not None and path.exists():
                file = read_labelled_videos(path, self.root / self.videos)
                measure_once(file, image_fps=self.image_fps, on_progress=OpeningLog(path))

    def facts(self) -> dict[str, Any]:
        """Nothing: labels depend on the list and on the names of classes alone, which are known without."""
        return {}
