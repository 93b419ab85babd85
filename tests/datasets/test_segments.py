from __future__ import annotations

import logging
import pickle
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from counted_videos import picture, write
from PIL import Image

from memvit.datasets.clips import IGNORED, ClipTiming
from memvit.datasets.loader import StreamLoader
from memvit.datasets.segments import SegmentsDataset, count_clips
from memvit.online.stream import ClipGrid, StreamState
from memvit.video.reader import VideoReader
from memvit.video.sampling import TimeSampler

TIMING = ClipTiming(num_frames=4, period_s=0.5, stride_s=2.0, num_times=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 and more/b.mp4 of 9 s, c.mp4 of 6 s, the images d of 3 s, and the broken e.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    (folder / "d").mkdir()
    for name, num_frames in (("a.mp4", 72), ("more/b.mp4", 72), ("c.mp4", 48)):
        write(folder / name, 0, num_frames, (16, 16), fps=8)
    for i in range(6):
        Image.fromarray(picture(0, i, 16, 16)).save(folder / "d" / f"{i}.png")
    (folder / "e.mp4").write_bytes(b"no video at all")
    return folder


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "train.csv"


def labels_of(dataset: SegmentsDataset, video: int = 0, head: int = 0) -> list[object]:
    """The labels of all clips of a video, as names where one class can be true at a time."""
    names = [*dataset.classes[head], None]
    shown = dataset.videos[video]
    labels = [dataset.annotate(shown, start_s).labels[head] for start_s in dataset.clip_starts(shown).tolist()]
    if dataset.multi_label:
        return [label.tolist() for label in labels]
    return [names[label] if label.ndim == 0 else [names[i] for i in label] for label in labels]


def test_videos_are_cut_from_beginning_to_end_and_labelled_where_segments_are(csv: Path, videos: Path) -> None:
    csv.write_text("video,start_s,end_s,label\na,0,4,walk\nc,2,4,sit\na,6,8,sit\n")
    dataset = SegmentsDataset(csv, videos, TIMING)
    assert dataset.classes == (("sit", "walk"),)
    assert (dataset.task, dataset.multi_label, dataset.timing) == ("clip", False, TIMING)
    assert [(video.name, video.path, video.duration_s) for video in dataset.videos] == [
        ("a", str(videos / "a.mp4"), 9.0),
        ("c", str(videos / "c.mp4"), 6.0),
    ]
    np.testing.assert_array_equal(dataset.clip_starts(dataset.videos[0]), [0.0, 2.0, 4.0, 6.0, 8.0])
    assert labels_of(dataset) == ["walk", "walk", None, "sit", None]
    label = dataset.annotate(dataset.videos[0], 4.0).labels[0]
    assert (label.dtype, label.shape, int(label)) == (np.int64, (), IGNORED)
    assert labels_of(pickle.loads(pickle.dumps(dataset)), 1) == [None, "sit", None]


def test_a_video_may_be_in_a_subfolder_or_a_folder_of_images_and_named_with_or_without_suffix(
    csv: Path, videos: Path
) -> None:
    csv.write_text("video,start_s,end_s,label\nmore/b,0,2,x\nmore/b.mp4,2,4,y\nd,0,1,x\n")
    dataset = SegmentsDataset(csv, videos, TIMING, image_fps=2)
    assert [(video.name, Path(video.path).name, video.duration_s) for video in dataset.videos] == [
        ("more/b", "b.mp4", 9.0),
        ("d", "d", 3.0),
    ]
    assert labels_of(dataset) == ["x", "y", None, None, None]


@pytest.mark.parametrize("stride", [1, 3, 4, 7])
@pytest.mark.parametrize("num_frames", [4, 8, 45, 48, 72])
def test_clips_are_those_of_the_online_recognizer(tmp_path: Path, num_frames: int, stride: int) -> None:
    video = write(tmp_path / "a.mp4", 0, num_frames, (16, 16), fps=8)
    state = StreamState(ClipGrid(num_frames=4, stride=stride, period_s=0.25))
    sampler: TimeSampler = TimeSampler(0.25)
    shown = []
    with VideoReader(video.path) as frames:
        sampled = [pair for frame in frames for pair in sampler.push(frame)]
        duration_s = frames.info.duration_s
    for index, _ in [*sampled, *sampler.finish()]:
        shown += state.add(index, np.zeros((1, 1, 3), np.uint8))
    shown += state.flush()
    starts_s = np.arange(count_clips(duration_s, ClipTiming(4, 0.25, stride * 0.25, 2))) * stride * 0.25
    if num_frames % 2 == 0:  # a last instant with half a period behind it is not worth a clip
        assert starts_s.tolist() == [clip.start_s for clip in shown]
    else:
        assert starts_s.tolist() == [clip.start_s for clip in shown][: len(starts_s)]


def test_a_video_shorter_than_a_period_has_a_clip() -> None:
    assert count_clips(0.1, TIMING) == 1


def test_durations_of_an_hour_do_not_lose_or_gain_clips_by_rounding() -> None:
    third = ClipTiming(16, 1 / 3, 16 / 3, 8)
    assert count_clips(3600.0, third) == 675
    assert count_clips(3600.0 - 1e-4, third) == 675
    assert count_clips(3600.5, third) == 676
    assert count_clips(3600.2, third) == 675


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ("a,0,0.9,x\na,0.9,2,y", "y"),  # the middle decides, not what there is more of
        ("a,0,1,x\na,1,2,y", "y"),  # the end does not belong to a segment
        ("a,0.1,0.4,x", "x"),  # short segments are not lost
        ("a,0.1,0.4,x\na,1.2,1.8,y", "y"),  # the longer one
        ("a,0.1,0.4,x\na,1.3,1.6,y", "x"),  # equally long: the earlier one
        ("a,1.2,1.7,x\na,1.8,8,y", "x"),  # y has more elsewhere
        ("a,1.1,8,x", None),  # neither half of the clip nor half of the segment
        ("a,1.1,2.9,x", "x"),
        ("a,1.1,3.1,x", None),
    ],
)
def test_which_segment_a_clip_is_labelled_with(csv: Path, videos: Path, segments: str, expected: str | None) -> None:
    csv.write_text(f"video,start_s,end_s,label\n{segments}\na,8.5,9,z\n")
    assert labels_of(SegmentsDataset(csv, videos, TIMING))[0] == expected


def test_of_the_last_clip_what_lies_within_the_video_counts(csv: Path, videos: Path) -> None:
    csv.write_text("video,start_s,end_s,label\na,0,8.4,x\na,8.4,9,y\n")
    assert labels_of(SegmentsDataset(csv, videos, TIMING))[-1] == "y"


def test_the_middle_of_a_clip_falls_where_it_should_despite_float_arithmetic(csv: Path, videos: Path) -> None:
    timing = ClipTiming(3, 0.1, 0.1 + 0.2, 1)  # middles at 0.15, 0.45, 0.75, ...
    middles = [0.15 + 0.3 * i for i in range(20)]
    rows = [f"a,{a:.2f},{b:.2f},{i:02d}" for i, (a, b) in enumerate(pairwise(middles))]
    csv.write_text("\n".join(["video,start_s,end_s,label", *rows]))
    assert labels_of(SegmentsDataset(csv, videos, timing))[:19] == [f"{i:02d}" for i in range(19)]


def test_every_token_time_has_the_label_of_its_last_frame(csv: Path, videos: Path) -> None:
    csv.write_text("video,start_s,end_s,label\na,0,1,x\na,1.5,3,y\na,3.75,9,x\n")
    dataset = SegmentsDataset(csv, videos, TIMING, task="frames")
    # Frames at 0, 0.5 | 1, 1.5; 2, 2.5 | 3, 3.5; ...; 8, 8.5 | (9, 9.5)
    assert labels_of(dataset) == [["x", "y"], ["y", None], ["x", "x"], ["x", "x"], ["x", None]]
    assert dataset.annotate(dataset.videos[0], 0.0).labels[0].dtype == np.int64


def test_anticipation_asks_for_what_comes_after_the_clip(csv: Path, videos: Path) -> None:
    csv.write_text("video,start_s,end_s,label\na,2,3,x\na,5,9,y\n")
    assert labels_of(SegmentsDataset(csv, videos, TIMING, anticipation_s=0.5)) == ["x", None, "y", "y", None]
    assert labels_of(SegmentsDataset(csv, videos, TIMING, anticipation_s=1)) == [None, "y", "y", None, None]
    frames = SegmentsDataset(csv, videos, TIMING, task="frames", anticipation_s=1)
    assert labels_of(frames)[:2] == [[None, "x"], [None, None]]  # at 1.5 and 2.5, 3.5 and 4.5
    assert labels_of(frames)[2] == ["y", "y"]


def test_several_labels_at_a_time(csv: Path, videos: Path) -> None:
    csv.write_text("video,start_s,end_s,label\na,0,4,x | y\na,3,9,y\na,2.2,2.6,z|z\n")
    dataset = SegmentsDataset(csv, videos, TIMING, multi_label=True)
    assert dataset.classes == (("x", "y", "z"),)
    assert labels_of(dataset)[:3] == [[1, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert dataset.annotate(dataset.videos[0], 0.0).labels[0].dtype == np.float32
    csv.write_text("video,start_s,end_s,label\na,0,2.2,x\na,2,2.4,y\n")
    frames = SegmentsDataset(csv, videos, TIMING, multi_label=True, task="frames")
    assert labels_of(frames)[:2] == [[[1, 0], [1, 0]], [[-1, -1], [-1, -1]]]


def test_every_column_of_labels_is_a_head_and_an_empty_cell_is_ignored(csv: Path, videos: Path) -> None:
    csv.write_text("video,start_s,end_s,verb,noun\na,0,4,cut,10\na,4,6,,9\na,6,8,peel,\n")
    dataset = SegmentsDataset(csv, videos, TIMING)
    assert dataset.classes == (("cut", "peel"), ("9", "10"))  # numbers in their own order
    assert labels_of(dataset, head=0) == ["cut", "cut", None, "peel", None]
    assert labels_of(dataset, head=1) == ["10", "10", "9", None, None]


def test_segments_that_overlap_without_a_head_in_common_are_fine(csv: Path, videos: Path) -> None:
    csv.write_text("video,start_s,end_s,verb,noun\na,0,4,cut,\na,0,4,,leek\n")
    dataset = SegmentsDataset(csv, videos, TIMING)
    assert [labels_of(dataset, head=head)[0] for head in (0, 1)] == ["cut", "leek"]


def test_given_classes_are_kept_in_their_order(csv: Path, videos: Path) -> None:
    csv.write_text("video,start_s,end_s,label\na,0,4,b\n")
    dataset = SegmentsDataset(csv, videos, TIMING, classes=[["c", "b", "a"]])
    assert dataset.classes == (("c", "b", "a"),)
    assert int(dataset.annotate(dataset.videos[0], 0.0).labels[0]) == 1


def test_a_byte_order_mark_spaces_quotes_and_blank_lines_are_fine(csv: Path, videos: Path) -> None:
    text = '\ufeffvideo , start_s, end_s,"label"\r\n\r\n a.mp4 , 0 , 4 , "cut, then peel" \r\n,,,\r\n'
    csv.write_bytes(text.encode())
    assert SegmentsDataset(csv, videos, TIMING).classes == (("cut, then peel",),)


HEADER = "video,start_s,end_s,label\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "train.csv: empty"),
        ("\n \n", "train.csv: empty"),
        (HEADER, "train.csv: no segments, only column names"),
        ("video,start_s,label\na,0,x\n", "train.csv:1: no column end_s; there are video, start_s, label."),
        ("video,label,start_s,end_s\na,x,0,1\n", "train.csv:1: no column of labels behind end_s"),
        ("video,start_s,end_s,label,\na,0,1,x,\n", "train.csv:1: column 5 has no name"),
        ("video,start_s,end_s,label,label\na,0,1,x,y\n", "train.csv:1: two columns are called 'label'"),
        ("video;start_s;end_s;label\na;0;1;x\n", "train.csv:1: columns are separated by semicolons: save the file with"),
        ("video\tstart_s\tend_s\tlabel\na\t0\t1\tx\n", "train.csv:1: columns are separated by tabs"),
        (HEADER + "a,0,1,x\na,1,2\n", "train.csv:3: 3 cells for 4 columns"),
        (HEADER + "a,0,1,x,y\n", "train.csv:2: 5 cells for 4 columns; put quotation marks"),
        (HEADER + ",0,1,x\n", "train.csv:2: the row names no video"),
        (HEADER + "a,0:01,2,x\n", "train.csv:2: start_s '0:01' is not a number: give seconds"),
        (HEADER + "a,0,,x\n", "train.csv:2: end_s '' is not a number"),
        (HEADER + "a,0,nan,x\n", "train.csv:2: end_s 'nan' is not a number"),
        (HEADER + "a,-1,2,x\n", "train.csv:2: start_s -1 is before the beginning"),
        (HEADER + "\na,3,2,x\n", "train.csv:3: end_s 2 does not come after start_s 3"),
        (HEADER + "a,2,2,x\n", "train.csv:2: end_s 2 does not come after start_s 2"),
        (HEADER + "a,0,1,x\na.mp4,0.0,1,x\n", "train.csv:3: the same as line 2: remove one of them"),
        (HEADER + "a,3,5,x\na,0,4,y\n", "train.csv:3: 'y' from 0 to 4 s overlaps 'x' from 3 to 5 s of the same video in line 2"),
        (HEADER + "a,0,8,x\na,1,2,y\na,7,9,z\n", "train.csv:3: 'y' from 1 to 2 s overlaps"),
        (HEADER + "a,0,1,\na,1,2,\n", "train.csv: no segment has a label in label"),
        ("video,start_s,end_s,verb,noun\na,0,1,x,\n", "train.csv: no segment has a label in the column 'noun'"),
        (HEADER + "a,9.5,12,x\n", "train.csv:2: 9.5 to 12 s lies outside video 'a', which lasts 9.00 s"),
        (HEADER + "nobody,0,1,x\n", "train.csv:2: there is no video 'nobody' in "),
        (HEADER + "a,x,1,x\na,y,2,x\na,z,2,x\n", "and 2 more errors; `memvit data check` lists them"),
        (HEADER + 'a,0,1,"x\n' + "a" * 140_000, "train.csv:2: not a CSV file"),
    ],
)  # fmt: skip
def test_bad_annotations_are_refused_with_file_and_line(csv: Path, videos: Path, text: str, says: str) -> None:
    csv.write_text(text)
    with pytest.raises(ValueError) as raised:
        SegmentsDataset(csv, videos, TIMING)
    assert says in str(raised.value)
    assert str(csv) in str(raised.value)


def test_files_that_are_no_csv_are_refused(csv: Path, videos: Path, tmp_path: Path) -> None:
    for content in ("video,start_s".encode("utf-16"), b"caf\xe9,1", b"video\0"):
        csv.write_bytes(content)
        with pytest.raises(ValueError, match=r"train\.csv: not a CSV file, or not in UTF-8; save it as CSV"):
            SegmentsDataset(csv, videos, TIMING)
    with pytest.raises(FileNotFoundError, match=r"other\.csv: no such file"):
        SegmentsDataset(tmp_path / "other.csv", videos, TIMING)
    with pytest.raises(ValueError, match="cannot be read"):
        SegmentsDataset(tmp_path, videos, TIMING)
    csv.write_text(HEADER + "a,0,1,x\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; give the folder with the videos"):
        SegmentsDataset(csv, tmp_path / "nowhere", TIMING)


def test_missing_videos_are_named_up_to_five(csv: Path, videos: Path) -> None:
    csv.write_text(HEADER + "a,0,1,x\n" + "".join(f"v{i},0,1,x\n" for i in range(7)))
    with pytest.raises(ValueError) as raised:
        SegmentsDataset(csv, videos, TIMING)
    assert f"train.csv:3: 7 of 8 videos are not in {videos}: 'v0'; 'v1'; 'v2'; 'v3'; 'v4'; 2 more" in str(raised.value)


def test_a_name_that_could_be_two_videos_is_refused(csv: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        write(tmp_path / name, 0, 4, (16, 16))
    csv.write_text(HEADER + "a,0,0.2,x\n")
    with pytest.raises(ValueError, match=r"train\.csv:2: video 'a' could be any of a\.mkv, a\.mp4"):
        SegmentsDataset(csv, tmp_path, TIMING)
    csv.write_text(HEADER + "a.mp4,0,0.2,x\n")
    assert len(SegmentsDataset(csv, tmp_path, TIMING).videos) == 1


def test_labels_that_training_does_not_know_are_refused(csv: Path, videos: Path) -> None:
    csv.write_text(HEADER + "a,0,1,x\na,1,2,new\n")
    with pytest.raises(ValueError, match=r"train\.csv:3: label 'new' is no class of training: correct it"):
        SegmentsDataset(csv, videos, TIMING, classes=[["x"]])
    with pytest.raises(ValueError, match=r"train\.csv: 1 label columns \(label\), but training has 2"):
        SegmentsDataset(csv, videos, TIMING, classes=[["x"], ["y"]])


def test_options_that_make_no_sense_are_refused(csv: Path, videos: Path) -> None:
    csv.write_text(HEADER + "a,0,1,x\n")
    with pytest.raises(ValueError, match="task='boxes' cannot be learnt from segments"):
        SegmentsDataset(csv, videos, TIMING, task="boxes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="anticipation_s=-1 is no time ahead"):
        SegmentsDataset(csv, videos, TIMING, anticipation_s=-1)


def test_unreadable_videos_are_an_error_or_left_out(csv: Path, videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv.write_text(HEADER + "e,0,1,y\na,0,1,x\n")
    with pytest.raises(ValueError) as raised:
        SegmentsDataset(csv, videos, TIMING)
    assert "train.csv: 1 of 2 videos cannot be read: " in str(raised.value)
    assert "e.mp4" in str(raised.value)
    with caplog.at_level(logging.WARNING):
        dataset = SegmentsDataset(csv, videos, TIMING, skip_unreadable=True)
    assert [video.name for video in dataset.videos] == ["a"]
    assert "They are left out" in caplog.text
    csv.write_text(HEADER + "e,0,1,x\n")
    with pytest.raises(ValueError, match="1 of 1 videos cannot be read"):
        SegmentsDataset(csv, videos, TIMING, skip_unreadable=True)


def test_what_reaches_beyond_the_video_is_cut_off_with_a_warning(
    csv: Path, videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    csv.write_text(HEADER + "a,5,9.4,x\nc,5,60,x\nmore/b,8,10,x\n")
    with caplog.at_level(logging.WARNING):
        dataset = SegmentsDataset(csv, videos, TIMING)
    assert labels_of(dataset)[-1] == "x"
    assert len(caplog.records) == 1
    assert "train.csv:3: 5 to 60 s reaches beyond the end of video 'c', which lasts 6.00 s" in caplog.text
    assert "and so do 1 more segments" in caplog.text


def test_a_duration_that_no_header_tells_is_found_by_decoding(tmp_path: Path, videos: Path) -> None:
    raw = tmp_path / "raw.h264"
    with av.open(str(videos / "c.mp4")) as source, av.open(str(raw), "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    csv = tmp_path / "train.csv"
    csv.write_text(HEADER + "raw.h264,0,1,x\n")
    (video,) = SegmentsDataset(csv, tmp_path, TIMING).videos
    assert video.duration_s == pytest.approx(48 / 25, abs=0.1)  # such a file tells no rate: 25 a second


def test_the_loader_feeds_what_the_data_set_says(csv: Path, videos: Path) -> None:
    csv.write_text(HEADER + "a,0,4,walk\nc,2,4,sit\n")
    dataset = SegmentsDataset(csv, videos, TIMING)
    batches = list(StreamLoader(dataset, batch_size=2, crop_size=16, training=False, num_workers=0))
    seen = {
        (name, start_s): int(label)
        for batch in batches
        for name, start_s, label, present in zip(
            batch.videos, batch.start_s, batch.labels[0], batch.present.tolist(), strict=True
        )
        if present
    }
    assert len(seen) == 8
    assert (seen["a", 0.0], seen["c", 2.0], seen["c", 0.0]) == (1, 0, IGNORED)
