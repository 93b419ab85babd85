from __future__ import annotations

import io
import logging
import multiprocessing
import os
import pickle
import tarfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from encode import barcode, indices, read_barcode, write_image

from memvit.video import ImageFolderReader, VideoError, open_video
from memvit.video.images import NumberedImages
from memvit.video.tar_images import TarImages

NUMBERS = (1, 2, 4, 5, 6, 9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 1, 2, 4, 5, 6 and 9, which show their numbers."""
    path = tmp_path / "P01_01"
    path.mkdir()
    for number in NUMBERS:
        write_image(path / f"frame_{number:010d}.png", barcode(number))
    return path


def pack(folder: Path, path: Path, prefix: str = "./", *, mode: str = "w", form: int = tarfile.GNU_FORMAT) -> Path:
    """Packs the files of a folder, the last first."""
    with tarfile.open(path, mode, format=form) as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            archive.add(file, prefix + file.name)
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes = b"x", **attributes: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    archive.addfile(member, io.BytesIO(data) if member.isreg() else None)


def read_all(images: NumberedImages) -> list[bytes]:
    return [images.read(index) for index in range(len(images))]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./", "P01_01/", "./rgb_frames/P01/"])
def test_images_in_a_tar_file_are_those_of_the_folder(folder: Path, tmp_path: Path, prefix: str, form: int) -> None:
    images = TarImages.from_numbers(pack(folder, tmp_path / "P01_01.tar", prefix, form=form), fps=4.0)
    unpacked = NumberedImages.from_numbers(folder)
    assert images.numbers.tolist() == unpacked.numbers.tolist() == [0, 1, 3, 4, 5, 8]
    assert read_all(images) == read_all(unpacked)
    assert (images.fps, images.num_frames, images.num_missing, images.warning) == (4.0, 9, 3, None)
    assert images.path(1).name == "frame_0000000002.png"
    reader = ImageFolderReader(tmp_path / "P01_01.tar", 4.0, images=images)
    assert [(frame.time_s, read_barcode(frame.rgb())) for frame in reader] == [((n - 1) / 4, n) for n in NUMBERS]
    assert (reader.info.width, reader.info.duration_s, reader.warning) == (72, 2.25, None)


def test_a_tar_file_is_opened_as_a_folder_is(folder: Path, tmp_path: Path) -> None:
    with open_video(pack(folder, tmp_path / "P01_01.tar"), fps=2.0, start_s=0.5) as packed:
        found = [(frame.time_s, read_barcode(frame.rgb())) for frame in packed]
    with open_video(folder, fps=2.0, start_s=0.5) as unpacked:
        assert found == [(frame.time_s, read_barcode(frame.rgb())) for frame in unpacked]
    assert [number for _, number in found] == [2, 4, 5, 6, 9]


def test_long_names_shift_no_image(folder: Path, tmp_path: Path) -> None:
    prefix = "/".join(["a" * 90] * 4) + "/ü/"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        images = TarImages.counted(pack(folder, tmp_path / "long.tar", prefix, form=form))
        assert indices(ImageFolderReader(images.folder, images=images)) == list(NUMBERS)


def test_images_are_counted_or_numbered_as_those_of_a_folder(folder: Path, tmp_path: Path) -> None:
    path = pack(folder, tmp_path / "a.tar")
    assert TarImages.counted(path).numbers.tolist() == [0, 1, 2, 3, 4, 5]
    assert TarImages.numbered(path).numbers.tolist() == NumberedImages.numbered(folder).numbers.tolist()
    assert read_all(TarImages.numbered(path)) == read_all(NumberedImages.numbered(folder))
    with pytest.raises(VideoError, match=r"a.tar: image frame_0000000001.png comes before number 2"):
        TarImages.from_numbers(path, first=2)


def test_what_is_no_image_is_passed_over_and_the_last_of_a_name_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "frames", b"", type=tarfile.DIRTYPE)
        add(archive, "frames/1.jpg", b"old")
        add(archive, "frames/notes.txt")
        add(archive, "frames/._2.jpg")
        add(archive, "frames/3.jpg", b"", type=tarfile.SYMTYPE, linkname="1.jpg")
        add(archive, "frames/2.JPG", b"two")
        add(archive, "frames/1.jpg", b"new")
    images = TarImages.from_numbers(path)
    assert [images.path(index) for index in range(2)] == [path / "frames/1.jpg", path / "frames/2.JPG"]
    assert read_all(images) == [b"new", b"two"]


def read_one(images: TarImages, index: int) -> bytes:
    return images.read(index)


def test_copies_in_other_threads_and_processes_read_at_a_time(folder: Path, tmp_path: Path) -> None:
    images = TarImages.counted(pack(folder, tmp_path / "a.tar"))
    copy = pickle.loads(pickle.dumps(images))
    expected = read_all(images)
    assert read_all(copy) == expected
    turns = [index % len(images) for index in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.read, turns)) == [expected[index] for index in turns]
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        futures = [pool.submit(read_one, copy, index) for index in turns[:20]]
        assert [future.result() for future in futures] == [expected[index] for index in turns[:20]]


def test_places_are_kept_until_the_file_changes(folder: Path, tmp_path: Path) -> None:
    path, cache = pack(folder, tmp_path / "a.tar"), tmp_path / "cache"
    first = TarImages.from_numbers(path, cache=cache)
    assert len(list(cache.rglob("*"))) == 2  # a folder and a file in it, nothing half-written
    with patch("tarfile.open", side_effect=AssertionError):
        kept = TarImages.from_numbers(path, cache=cache)
    assert read_all(kept) == read_all(first)
    assert kept.names.tolist() == first.names.tolist()
    assert kept.numbers.tolist() == first.numbers.tolist()
    write_image(folder / "frame_0000000010.png", barcode(10))
    pack(folder, path)
    assert len(TarImages.from_numbers(path, cache=cache)) == 7
    data = path.read_bytes().replace(b"frame_0000000010", b"frame_0000000011")
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    with pytest.raises(AssertionError), patch("tarfile.open", side_effect=AssertionError):
        TarImages.from_numbers(path, cache=cache)
    other = pack(folder, tmp_path / "b.tar")
    assert len(TarImages.counted(other, cache=cache)) == 7
    assert len(list(cache.rglob("*.npz"))) == 2


@pytest.mark.parametrize("damaged", [b"", b"not an archive", None])
def test_a_damaged_cache_is_made_again(
    folder: Path, tmp_path: Path, damaged: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path, cache = pack(folder, tmp_path / "a.tar"), tmp_path / "cache"
    expected = read_all(TarImages.counted(path, cache=cache))
    kept = next(cache.rglob("*.npz"))
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2] if damaged is None else damaged)
    with caplog.at_level(logging.DEBUG, logger="memvit"):
        assert read_all(TarImages.counted(path, cache=cache)) == expected
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert f"did not use {kept}" in caplog.text
    with patch("tarfile.open", side_effect=AssertionError):
        assert read_all(TarImages.counted(path, cache=cache)) == expected


def test_every_flipped_byte_of_a_cache_is_found_or_harmless(folder: Path, tmp_path: Path) -> None:
    path, cache = pack(folder, tmp_path / "a.tar"), tmp_path / "cache"
    expected = TarImages.counted(path, cache=cache)
    kept = next(cache.rglob("*.npz"))
    whole = kept.read_bytes()
    for at in range(0, len(whole), 7):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        images = TarImages.counted(path, cache=cache)
        assert images.offsets.tolist() == expected.offsets.tolist()
        assert images.names.tolist() == expected.names.tolist()


def test_a_cache_that_cannot_be_written_is_no_error(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, cache = pack(folder, tmp_path / "a.tar"), tmp_path / "cache"
    cache.write_text("a file where a folder should be")
    with caplog.at_level(logging.DEBUG, logger="memvit"):
        assert len(TarImages.counted(path, cache=cache)) == 6
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "did not keep" in caplog.text


@pytest.mark.parametrize("where", ["in an image", "in a head", "between images"])
def test_of_a_file_that_is_cut_off_the_whole_images_are_used(
    folder: Path, tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = pack(folder, tmp_path / "a.tar")
    whole = TarImages.counted(path)
    begin = int(np.sort(whole.offsets)[3])  # the last image comes first in there
    cut = {"in an image": begin + 20, "in a head": begin - 100, "between images": begin - 512}[where]
    path.write_bytes(path.read_bytes()[:cut])
    for _ in range(2):  # also from the cache
        caplog.clear()
        images = TarImages.from_numbers(path, cache=tmp_path / "cache")
        assert images.numbers.tolist() == [4, 5, 8]
        says = (
            f"{path} is cut off after frame_0000000005.png: what could be read was used, copy it again to get the rest"
        )
        assert images.warning == says
        assert [record.message for record in caplog.records] == [says]
    reader = ImageFolderReader(path, images=images)
    assert indices(reader) == [5, 6, 9]
    assert reader.warning == says


def test_a_file_that_became_shorter_has_images_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    path = pack(folder, tmp_path / "a.tar")
    images = TarImages.counted(path)
    data = bytearray(path.read_bytes()[: int(images.offsets[1]) + 10])
    path.write_bytes(data)
    with pytest.raises(OSError, match="has become shorter"):
        images.read(1)
    reader = ImageFolderReader(path, images=images)
    assert indices(reader) == [4, 5, 6, 9]
    assert reader.warning == f"2 images of {path} could not be read (first frame_0000000001.png): make them again"


@pytest.mark.parametrize(("mode", "command"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_compressed_files_are_refused(folder: Path, tmp_path: Path, mode: str, command: str) -> None:
    path = pack(folder, tmp_path / "a.tar.z", mode=mode)
    with pytest.raises(VideoError, match=rf"a.tar.z is compressed.*decompress it \({command} .*a.tar.z\)"):
        TarImages.from_numbers(path)


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"cannot read .*missing.tar \(No such file"):
        TarImages.counted(tmp_path / "missing.tar")
    with pytest.raises(VideoError, match=r"cannot read .* \(Is a directory"):
        TarImages.counted(tmp_path)
    for data in (b"", b"hello" * 300):
        (tmp_path / "no.tar").write_bytes(data)
        with pytest.raises(VideoError, match=r"no.tar is no tar file, or cut off \(.*\): copy it again"):
            TarImages.counted(tmp_path / "no.tar")
    with tarfile.open(tmp_path / "none.tar", "w") as archive:
        add(archive, "notes.txt")
    with pytest.raises(VideoError, match=r"no image in .*none.tar: pass a tar file with .bmp, .jpeg"):
        TarImages.counted(tmp_path / "none.tar")
