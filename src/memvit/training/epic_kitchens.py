"""EPIC-KITCHENS-100 as a data module."""

from __future__ import annotations

from typing import Any, Literal

from memvit.datasets.clips import ClipTiming, VideoDataset
from memvit.models.config import MViTConfig
from memvit.models.zoo import cache_dir
from memvit.training.data import AnnotatedData, Split
from memvit.training.opening import OpeningLog


class EpicKitchensData(AnnotatedData):
    """EPIC-KITCHENS-100: verb and noun of every segment, recognised or anticipated. More: `memvit.datasets.epic_kitchens`.

    Args:
        root: the folder that the other paths are relative to.
        train: CSV file with the segments to train on.
        val: the same to validate with; null: nothing is validated.
        test: the same for `memvit test`; may be the challenge's, without classes.
        videos: the folder with P01/rgb_frames/P01_01 (or P01_01.tar) and so on, or with P01/videos/P01_01.MP4.
        task: recognition, or anticipation.
        anticipation_s: how long before a segment starts it is anticipated, seconds.
        video_info: file with the lengths and frame rates of the videos. This and the following are looked for beside the
            segments, under their official names, where left out.
        verb_classes: file with the names of the verbs.
        noun_classes: the same of the nouns.
        tail_verbs: file with the verbs that are measured apart.
        tail_nouns: the same of the nouns.
        unseen_participants: file with the participants that are measured apart.
        image_fps: images per second of videos that are images; worked out for every video where left out.
        kwargs: as for `VideoData`.
    """

    def __init__(
        self,
        root: str = ".",
        train: str = "annotations/EPIC_100_train.csv",
        val: str | None = "annotations/EPIC_100_validation.csv",
        test: str | None = "annotations/EPIC_100_validation.csv",
        videos: str = ".",
        task: Literal["recognition", "anticipation"] = "recognition",
        anticipation_s: float = 1.0,
        video_info: str | None = None,
        verb_classes: str | None = None,
        noun_classes: str | None = None,
        tail_verbs: str | None = None,
        tail_nouns: str | None = None,
        unseen_participants: str | None = None,
        image_fps: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, train=train, val=val, test=test, videos=videos, **kwargs)
        self.task = task
        self.anticipation_s = anticipation_s
        self.tables = {
            "video_info": video_info,
            "verb_classes": verb_classes,
            "noun_classes": noun_classes,
            "tail_verbs": tail_verbs,
            "tail_nouns": tail_nouns,
            "unseen_participants": unseen_participants,
        }
        self.images_per_second = image_fps

    def connect(self, config: MViTConfig) -> None:
        """Says which clips the model takes; before anything else is asked for.

        Raises:
            ValueError: the model would see what it is to anticipate.
        """
        if self.task == "anticipation" and not config.causal:
            raise ValueError(
                "anticipation needs a model whose token times see nothing later in their clip: set model.options.causal to true"
            )
        super().connect(config)

    def open_dataset(
        self, split: Split, timing: ClipTiming, classes: tuple[tuple[str, ...], ...] | None
    ) -> VideoDataset:
        """The segments of a split."""
        from memvit.datasets.epic_kitchens import EpicKitchensDataset

        path = self.annotations(split)
        assert path is not None
        return EpicKitchensDataset(
            path,
            self.root / self.videos,
            timing,
            task=self.task,
            anticipation_s=self.anticipation_s,
            classes=classes,
            labelled=split != "test",
            skip_unreadable=self.skip_unreadable,
            image_fps=self.images_per_second,
            cache=cache_dir(),
            on_progress=OpeningLog(path),
            **{name: None if table is None else self.root / table for name, table in self.tables.items()},
        )

    def facts(self) -> dict[str, Any]:
        """What the labels depend on."""
        return {"task": self.task, "anticipation_s": self.anticipation_s}
