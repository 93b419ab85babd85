"""The videos of EPIC-KITCHENS-100 on disk: frames as images, in folders or tar files, or the videos themselves.

The published frames are not at the videos' own rates: before they were extracted, all videos of 2018 (`P01_01`, two digits)
were brought to 60 frames per second and all later ones (`P01_101`, three digits) to 50 (Damen et al., IJCV 2022, appendix B).
A video at 29.97 or 90 frames per second has frames at 60 all the same, and image 60,000 of a video at 59.94 is a second away
from where its own rate would put it. So the rate is worked out from how many images there are.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from memvit.datasets.annotations import VideoFolder
from memvit.datasets.epic_annotations import EpicVideo
from memvit.video import VideoError
from memvit.video.images import IMAGE_SUFFIXES, NumberedImages
from memvit.video.tar_images import TarImages

# Images that an extraction may give more or less than the video's length and rate say.
SLACK_IMAGES = 3
# Published frames are a dozen more than the videos' lengths say; a whole folder at another rate is something else.
MAX_SURPLUS = 0.02
MAX_MISSING_SHARE = 0.1


class EpicFolder(VideoFolder):
    """Finds the videos as the data set's download scripts lay them out, or all in one folder.

    Video ``P01_11`` is the first of these that is there, below the folder: ``P01/rgb_frames/P01_11/`` with
    ``frame_0000000001.jpg`` and so on, ``P01/rgb_frames/P01_11.tar`` with the same images, ``P01/videos/P01_11.MP4`` (any kind of
    video file); then the same three in ``P01/`` and in the folder itself.

    Args:
        path: of the folder.
        infos: of the videos.
        image_fps: images per second; None: worked out for every video.
        cache: a folder for what is known about tar files, so that each is gone through once.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    naming = "video P01_11 is P01/rgb_frames/P01_11 (a folder, or a .tar) or P01/videos/P01_11.MP4 there"

    def __init__(
        self,
        path: str | os.PathLike[str],
        infos: Mapping[str, EpicVideo],
        *,
        image_fps: float | None = None,
        cache: Path | None = None,
    ) -> None:
        super().__init__(path)
        self.infos = infos
        self.image_fps = image_fps
        self.cache = cache
        self._missing: dict[str, tuple[int, int]] = {}
        self._images: dict[Path, NumberedImages] = {}

    def find(self, name: str) -> Path | None:
        """The folder of images, tar file or video file of a video; ``None`` if there is none.

        Raises:
            ValueError: several video files could be meant.
        """
        person = self.path / name.partition("_")[0]
        for folder in (person / "rgb_frames", person / "videos", person, self.path):
            frames = folder / name
            if frames.is_dir() and any(
                os.path.splitext(entry)[1].lower() in IMAGE_SUFFIXES for entry in os.listdir(frames)
            ):
                return frames
            tar = folder / f"{name}.tar"
            if tar.is_file():
                return tar
            files = self._listing(folder).get(name, [])
            if len(files) > 1:
                names = ", ".join(sorted(path.name for path in files))
                raise ValueError(f"video {name!r} could be any of {names} in {folder}: keep one of them")
            if files:
                return files[0]
        return None

    def images(self, path: Path) -> NumberedImages | None:
        """The images of a video that was found, with their rate; ``None`` for a video file.

        Raises:
            VideoError: there are no images, far too few, or more than the video has frames.
        """
        is_tar = path.suffix == ".tar"
        if not is_tar and not path.is_dir():
            return None
        if path not in self._images:
            name = path.stem if is_tar else path.name
            found = TarImages.from_numbers(path, cache=self.cache) if is_tar else NumberedImages.from_numbers(path)
            self._images[path] = self._timed(name, path, found)
        return self._images[path]

    def incomplete(self) -> list[str]:
        """Of the videos whose images were asked for, those that lack some, a phrase each."""
        return [
            f"{name} lacks {missing:,} of {total:,} images" for name, (missing, total) in sorted(self._missing.items())
        ]

    def _timed(self, name: str, path: Path, images: NumberedImages) -> NumberedImages:
        """The images with the rate that they must have."""
        info = self.infos[name]
        if not len(images):
            raise VideoError(f"no image in {path}: it should hold frame_0000000001.jpg and so on; get it again")
        fps = self.image_fps or image_rate(name, images.num_frames, info)
        expected = round(info.duration_s * fps)
        surplus = images.num_frames - expected
        missing = images.num_missing + max(0, -surplus - SLACK_IMAGES)
        if surplus > MAX_SURPLUS * expected + SLACK_IMAGES or missing > MAX_MISSING_SHARE * expected:
            raise VideoError(
                f"{path} has {len(images):,} images, the last is number {images.num_frames:,}; at {fps:g} images per second the "
                f"{info.duration_s:.1f} s of video {name} are {expected:,}: get the rest, or give image_fps if they were "
                "extracted at another rate"
            )
        if missing:
            self._missing[name] = (missing, expected)
        return dataclasses.replace(images, fps=fps)


def published_rate(video: str) -> float:
    """Images per second of the published frames of a video."""
    return 50.0 if len(video.partition("_")[2]) == 3 else 60.0


def image_rate(video: str, num_frames: int, info: EpicVideo) -> float:
    """Images per second of so many frames: the video's own rate if they are as many as it has, else the published one."""
    own, published = (abs(num_frames - info.duration_s * fps) for fps in (info.fps, published_rate(video)))
    return info.fps if own <= SLACK_IMAGES and own < published else published_rate(video)
