"""Numbered images inside a tar file, read where they are without unpacking it."""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import numpy as np

from memvit.video.errors import VideoError
from memvit.video.images import LISTED_SUFFIXES, NumberedImages, as_bytes, is_image, natural_order, order_by_number

logger = logging.getLogger(__name__)

# How files begin that hold no tar but something compressed, and what unpacks them.
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\x00": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}

INDEX_FOLDER = "tar-indices"
INDEX_FORMAT = 1  # another number makes those that are kept unknown


@dataclass(frozen=True, eq=False, kw_only=True)
class TarImages(NumberedImages):
    """The images inside an uncompressed tar file, whatever folder they are in there.

    An image is read by its place in the file, which is opened for every read: there is nothing to share, so copies may read
    in any thread and process at a time, and go to other processes.

    Finding the places reads the head of every member, a second for some 30,000. They are kept in the folder ``cache``, if it
    is given, until the size or the time of the tar file changes. A cache that is damaged or cannot be written is not used.

    Of a tar file that is cut off, the images before the cut are there and :attr:`warning` says so.

    Attributes:
        folder: the tar file.
        offsets: where the images begin in it, int (n,) bytes.
        sizes: of the images, int (n,) bytes.
    """

    offsets: np.ndarray
    sizes: np.ndarray

    def read(self, index: int) -> bytes:
        """The file of an image.

        Raises:
            OSError: it cannot be read.
        """
        size = int(self.sizes[index])
        with open(self.folder, "rb") as file:
            file.seek(int(self.offsets[index]))
            data = file.read(size)
        if len(data) < size:
            raise OSError(f"{self.folder} has become shorter")
        return data

    @classmethod
    def counted(cls, tar: str | os.PathLike[str], /, *, cache: Path | None = None) -> Self:
        """The images of a tar file in natural order, one frame each.

        Args:
            tar: the file.
            cache: the folder that keeps where they are.

        Raises:
            VideoError: the file is missing, compressed, no tar file or holds no image.
        """
        index = _find(os.fspath(tar), cache)
        order = natural_order(index.names)
        return cls._of(os.fspath(tar), index, order, np.arange(len(order)))

    @classmethod
    def numbered(cls, tar: str | os.PathLike[str], /, *, cache: Path | None = None) -> Self:
        """As :meth:`NumberedImages.numbered`.

        Args:
            tar: the file.
            cache: the folder that keeps where they are.

        Raises:
            VideoError: as :meth:`counted` does.
        """
        return cls.counted(tar, cache=cache).with_numbers_of_names()

    @classmethod
    def from_numbers(
        cls, tar: str | os.PathLike[str], /, first: int = 1, fps: float | None = None, *, cache: Path | None = None
    ) -> Self:
        """As :meth:`NumberedImages.from_numbers`.

        Args:
            tar: the file.
            first: the number of the image at time 0; where there is an image 0, it is that one.
            fps: images per second, if known.
            cache: the folder that keeps where they are.

        Raises:
            VideoError: as :meth:`counted` does, or the names do not number the images from ``first`` on.
        """
        index = _find(os.fspath(tar), cache)
        return cls._of(os.fspath(tar), index, *order_by_number(os.fspath(tar), index.names, first), fps)

    @classmethod
    def _of(cls, tar: str, index: _Index, order: np.ndarray, numbers: np.ndarray, fps: float | None = None) -> Self:
        warning = None
        if not index.whole:
            warning = (
                f"{tar} is cut off after {index.names[-1]}: what could be read was used, copy it again to get the rest"
            )
            logger.warning("%s", warning)
        return cls(
            folder=tar,
            names=as_bytes(index.names)[order],
            numbers=numbers,
            fps=fps,
            warning=warning,
            found=True,
            offsets=index.offsets[order],
            sizes=index.sizes[order],
        )


class _Index(NamedTuple):
    """The images of a tar file in the order of the file: names, where they begin, how large they are; is it whole?"""

    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    whole: bool


def _find(tar: str, cache: Path | None) -> _Index:
    """Where the images of a tar file are, from the cache if it knows.

    Raises:
        VideoError: the file is missing, compressed, no tar file or holds no image.
    """
    try:
        status = os.stat(tar)
        path = os.path.abspath(tar)
        version = _digest(INDEX_FORMAT, path, status.st_size, status.st_mtime_ns)
        kept = None if cache is None else Path(cache) / INDEX_FOLDER / f"{_digest(path)}.npz"
        index = None if kept is None else _load(kept, version)
        if index is None:
            index = _scan(tar)
            if kept is not None:
                _save(kept, version, index)
    except OSError as error:
        raise VideoError(f"cannot read {tar} ({error.strerror}): check the path and its permissions") from error
    if not index.names:
        raise VideoError(f"no image in {tar}: pass a tar file with {LISTED_SUFFIXES} files")
    return index


def _scan(tar: str) -> _Index:
    found: dict[str, tuple[int, int]] = {}
    with open(tar, "rb") as file:
        _refuse_compressed(tar, file)
        file_size = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep a record of every one
                    within = 0 <= member.size <= file_size - member.offset_data
                    if within and member.isreg() and not member.issparse() and is_image(member.name):
                        found.pop(member.name, None)  # a member of the same name replaces it
                        found[member.name] = member.offset_data, member.size
                file.seek(archive.offset)
                whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)  # the mark of the end
        except (tarfile.TarError, ValueError, OverflowError) as error:  # the latter two of sizes beyond all bounds
            if not found:
                raise VideoError(f"{tar} is no tar file, or cut off ({error}): copy it again") from error
            whole = False
    places = np.array(list(found.values()), np.int64).reshape(-1, 2)
    return _Index([name.removeprefix("./") for name in found], places[:, 0], places[:, 1], whole)


def _refuse_compressed(tar: str, file: BinaryIO) -> None:
    begin = file.read(max(map(len, COMPRESSED)))
    file.seek(0)
    for magic, command in COMPRESSED.items():
        if begin.startswith(magic):
            raise VideoError(
                f"{tar} is compressed, so images in it have no place to be read from: decompress it ({command} {tar})"
            )


def _load(kept: Path, version: str) -> _Index | None:
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            if str(arrays["version"]) != version:
                return None
            names = [os.fsdecode(name) for name in arrays["names"].tolist()]
            return _Index(names, arrays["offsets"], arrays["sizes"], bool(arrays["whole"]))
    except FileNotFoundError:
        return None
    except Exception as error:  # there is no end to what reading a damaged archive may raise
        logger.debug("did not use %s: %s", kept, error)
        return None


def _save(kept: Path, version: str, index: _Index) -> None:
    """Keep an index, whole or not at all: other processes may do the same."""
    part = kept.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as file:
                np.savez_compressed(
                    file,
                    version=np.array(version),
                    names=as_bytes(index.names),
                    offsets=index.offsets,
                    sizes=index.sizes,
                    whole=np.array(index.whole),
                )
            os.replace(part, kept)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("did not keep %s: %s", kept, error)


def _digest(*key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]
