from __future__ import annotations

import struct
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from encode import barcode, indices, read_barcode, write_image, write_video

from memvit.video import ImageFolderReader, VideoError, open_video
from memvit.video.images import NumberedImages


def test_images_come_in_natural_order_at_their_times(tmp_path: Path) -> None:
    for index in range(12):
        write_image(tmp_path / f"frame_{index}.png", barcode(index))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    with ImageFolderReader(tmp_path, fps=4) as reader:
        frames = list(reader)
        assert indices(reader) == list(range(12))
    assert [frame.time_s for frame in frames] == [index / 4 for index in range(12)]
    assert reader.warning is None
    assert (reader.info.width, reader.info.height) == (72, 48)
    assert (reader.info.average_fps, reader.info.duration_s, reader.info.codec) == (4, 3.0, "png")


def test_every_format_is_read_by_its_content(tmp_path: Path) -> None:
    write_image(tmp_path / "0.JPG", barcode(10), "mjpeg", "yuvj444p")
    write_image(tmp_path / "1.jpeg", barcode(11), "mjpeg", "yuvj420p")
    write_image(tmp_path / "2.png", barcode(12), "png", "rgb24")
    write_image(tmp_path / "3.bmp", barcode(13), "bmp", "bgr24")
    write_image(tmp_path / "4.WebP", barcode(14), "libwebp", "yuv420p")
    write_image(tmp_path / "5 %d png inside.jpg", barcode(15, 31, 63), "png", "rgb24")
    assert indices(open_video(tmp_path)) == [10, 11, 12, 13, 14, 15]


def test_range(tmp_path: Path) -> None:
    for index in range(30):
        write_image(tmp_path / f"{index}.png", barcode(index))
    assert indices(open_video(tmp_path, fps=10, start_s=1.0, end_s=2.0)) == list(range(10, 20))
    with pytest.raises(VideoError, match=r"start_s=3 is beyond the end of .* \(its last frame is at 2.90 s\)"):
        list(open_video(tmp_path, fps=10, start_s=3.0))


def test_a_broken_image_is_skipped_and_named(tmp_path: Path) -> None:
    for index in range(4):
        write_image(tmp_path / f"{index}.png", barcode(index))
    (tmp_path / "0.png").write_text("not an image")
    (tmp_path / "2.png").write_bytes(b"")
    reader = ImageFolderReader(tmp_path, fps=1)
    assert [(frame.time_s, read_barcode(frame.rgb())) for frame in reader] == [(1.0, 1), (3.0, 3)]
    assert reader.warning == f"2 images of {tmp_path} could not be read (first 0.png): make them again"


def test_orientation_of_a_photo(tmp_path: Path) -> None:
    path = write_image(tmp_path / "photo.jpg", barcode(5, 48, 72), "mjpeg", "yuvj444p")
    turned_right = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + turned_right
    jpeg = path.read_bytes()
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    frame = next(iter(open_video(tmp_path)))
    assert (frame.height, frame.width, frame.rotation) == (72, 48, 90)
    assert read_barcode(frame.rgb().transpose(1, 0, 2)) == 5


def test_folders_without_readable_images(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no image in .*: pass a folder with .bmp, .jpeg"):
        open_video(tmp_path)
    with pytest.raises(VideoError, match=r"cannot list the images of .*missing"):
        ImageFolderReader(tmp_path / "missing")
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(VideoError, match="none of the 1 images"):
        open_video(tmp_path)
    with pytest.raises(VideoError, match="no frame rate"):
        ImageFolderReader(tmp_path, fps=0)


def test_open_video_tells_files_from_folders(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 3)
    assert indices(open_video(path)) == indices(open_video(path.as_uri())) == [0, 1, 2]
    with pytest.raises(VideoError, match="is live and has no range of time"):
        open_video("rtsp://user:secret@camera/1", start_s=5.0)


def test_numbers_in_names_say_which_frame_an_image_is(tmp_path: Path) -> None:
    for number in (3, 4, 6, 12):
        write_image(tmp_path / f"v2_frame_{number:010d}.png", barcode(number))
    images = NumberedImages.from_numbers(tmp_path, fps=2.0)
    assert images.numbers.tolist() == [2, 3, 5, 11]  # frames 0 and 1 are missing, which shifts no time
    assert (images.num_frames, images.num_missing, images.fps) == (12, 8, 2.0)
    assert images.path(2) == tmp_path / "v2_frame_0000000006.png"
    frames = list(ImageFolderReader(tmp_path, fps=2.0, images=images))
    assert [(frame.time_s, read_barcode(frame.rgb())) for frame in frames] == [(1.0, 3), (1.5, 4), (2.5, 6), (5.5, 12)]
    assert NumberedImages.from_numbers(tmp_path, first=3).numbers.tolist() == [0, 1, 3, 9]
    write_image(tmp_path / "v2_frame_0000000000.png", barcode(0))
    assert NumberedImages.from_numbers(tmp_path).numbers.tolist() == [0, 3, 4, 6, 12]
    assert NumberedImages.numbered(tmp_path).numbers.tolist() == [0, 1, 2, 3, 4]  # gaps are not the exception there


def test_images_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    for name in ("b1.png", "a10.png", "c2.png"):
        (tmp_path / name).touch()
    images = NumberedImages.from_numbers(tmp_path)
    assert [images.path(index).name for index in range(3)] == ["b1.png", "c2.png", "a10.png"]


def test_names_that_number_no_images_are_refused(tmp_path: Path) -> None:
    assert len(NumberedImages.from_numbers(tmp_path)) == 0
    (tmp_path / "frame_5.png").touch()
    with pytest.raises(VideoError, match=r"frame_5.png comes before number 6, the first"):
        NumberedImages.from_numbers(tmp_path, first=6)
    (tmp_path / "frame_05.jpg").touch()
    with pytest.raises(VideoError, match=r"frame_05.jpg and frame_5.png have the same number"):
        NumberedImages.from_numbers(tmp_path)
    for name in ("cover.png", "20240101000000000000001.png"):
        (tmp_path / name).touch()
    with pytest.raises(VideoError, match=r"20240101000000000000001.png has no number"):
        NumberedImages.from_numbers(tmp_path)
    assert NumberedImages.numbered(tmp_path).numbers.tolist() == [0, 1, 2, 3]
    with pytest.raises(VideoError, match=r"cannot list the images of .*missing"):
        NumberedImages.from_numbers(tmp_path / "missing")


def test_listing_a_folder_asks_for_names_only(tmp_path: Path) -> None:
    for number in range(1, 4):
        (tmp_path / f"{number}.jpg").touch()
    with patch("os.stat", side_effect=AssertionError), patch("os.lstat", side_effect=AssertionError):
        assert len(NumberedImages.from_numbers(tmp_path)) == 3
        assert len(NumberedImages.counted(tmp_path)) == 3


def wanted(folder: Path, numbers: list[int], start_s: float = 0.0) -> tuple[list[int], str | None]:
    """What a reader gives of wanted images, and its warning."""
    images = NumberedImages.counted(folder)
    reader = ImageFolderReader(folder, 1.0, start_s, images=images, wanted=np.array(numbers, np.intp))
    frames = list(reader)
    assert [frame.time_s for frame in frames] == indices(frames)
    return indices(frames), reader.warning


def test_wanted_images_are_read_and_the_one_after_them(tmp_path: Path) -> None:
    for index in range(10):
        write_image(tmp_path / f"{index}.png", barcode(index))
    assert wanted(tmp_path, [2, 5, 6]) == ([2, 5, 6, 7], None)
    assert wanted(tmp_path, [2, 9]) == ([2, 9], None)
    assert wanted(tmp_path, [2, 5, 8], start_s=3.0) == ([5, 8, 9], None)
    assert wanted(tmp_path, []) == ([0], None)


def test_in_the_place_of_a_wanted_image_that_is_broken_comes_the_one_before(tmp_path: Path) -> None:
    for index in range(12):
        write_image(tmp_path / f"{index:02d}.png", barcode(index))
    for index in (0, 1, 5, 6, 8, 9):
        (tmp_path / f"{index:02d}.png").write_text("not an image")
    text = f"of {tmp_path} could not be read (first"
    assert wanted(tmp_path, [4, 6, 8]) == ([4, 7, 10], f"4 images {text} 05.png): make them again")
    assert wanted(tmp_path, [2, 6, 10]) == ([2, 4, 10, 11], f"2 images {text} 05.png): make them again")
    assert wanted(tmp_path, [4, 5, 6, 8]) == ([4, 7, 10], f"4 images {text} 05.png): make them again")
    # Before the first image that can be read, that one is shown.
    assert wanted(tmp_path, [0, 1]) == ([2, 3], f"2 images {text} 00.png): make them again")
    assert wanted(tmp_path, [1, 3]) == ([2, 3, 4], f"2 images {text} 00.png): make them again")


def test_images_that_are_only_listed_are_looked_for(tmp_path: Path) -> None:
    for index in (0, 1, 3, 4, 5):
        write_image(tmp_path / f"{index}.png", barcode(index))
    names = np.array([f"{index}.png".encode() for index in range(6)], np.bytes_)
    images = NumberedImages(str(tmp_path), names, np.arange(6))
    reader = ImageFolderReader(tmp_path, 1.0, images=images, wanted=np.array([1, 4]))
    assert indices(reader) == [1, 4, 5]
    assert reader.warning == f"1 image of {tmp_path} could not be read (first 2.png): make them again"
