from __future__ import annotations

import struct
from pathlib import Path

import pytest
from encode import barcode, indices, read_barcode, write_image, write_video

from memvit.video import ImageFolderReader, VideoError, open_video


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
