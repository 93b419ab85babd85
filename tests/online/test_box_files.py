from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from memvit.online.box_files import BoxFile, GivenPersons
from memvit.online.persons import Moment
from memvit.video import VideoInfo


def info(path: str = "v.mp4", duration_s: float | None = None) -> VideoInfo:
    return VideoInfo(path, 200, 100, 25.0, duration_s, "h264")


def read(tmp_path: Path, text: str, **options: float) -> BoxFile:
    (tmp_path / "boxes.csv").write_text(text)
    return BoxFile(tmp_path / "boxes.csv", **options)


def given(tmp_path: Path, text: str, **options: float) -> GivenPersons:
    return read(tmp_path, text).persons(info(), **options)


def moments(persons: GivenPersons, start_s: float = 0.0, num: int = 8) -> list[tuple[float, bool]]:
    first = itertools.islice(persons.moments(start_s), num)
    return [(pytest.approx(moment.time_s), moment.is_keyframe) for moment in first]


def rows(*times_s: float, person: str = "1") -> str:
    return "".join(f"v,{time_s},0.1,0.2,0.3,0.4,,{person}\n" for time_s in times_s)


def test_what_ava_publishes_what_detectors_write_and_what_people_write_can_be_read(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        "v,0902,0.1,0.2,0.3,0.4,12,7\nv,0902,0.1,0.2,0.3,0.4,17,7\nv,0902,0.5,0.2,0.7,0.4,12,8\n"
        "w.mp4,902.5,0.1,0.2,0.3,0.4,,0.987\n\nw.mp4,903,0,0,1,1\nx,903,0.1,0.2,0.3,0.4,80,0.25\nx,903,0.1,0.2,0.3,0.4,-1,-1\n",
        first_second=902.0,
    )
    assert list(file.videos) == ["v", "w.mp4", "x"]
    assert [(box.person, box.score) for box in file.videos["v"][0.0]] == [(7, None), (8, None)]
    assert {time_s: (box.person, box.score) for time_s, (box,) in file.videos["w.mp4"].items()} == {
        0.5: (None, 0.987),
        1.0: (None, None),
    }
    assert [(box.person, box.score) for box in file.videos["x"][1.0]] == [
        (None, None)
    ]  # scores of actions are not of boxes


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("v,1,0.1,0.2,0.3", "5 cells, not 8"),
        ("v,1,0.1,0.2,0.3,0.4,1", "7 cells"),
        (",1,0.1,0.2,0.3,0.4,,", "names no video"),
        ("v,one,0.1,0.2,0.3,0.4,,", "second 'one' is not a number"),
        ("v,1,0.1,0.2,nan,0.4,,", "x2 'nan' is not a number"),
        ("v,-1,0.1,0.2,0.3,0.4,,", "second -1 comes before first_second=0"),
        ("v,1,10,20,30,40,,", "fractions of the frame's width and height, not pixels"),
        ("v,1,0.3,0.2,0.1,0.4,,", "give x1 < x2 and y1 < y2"),
        ("v,1,0.1,0.2,0.3,0.4,,anna", "'anna', is neither a person's id nor a detector's score"),
        ("v,1,0.1,0.2,0.3,0.4,,97.5", "score 97.5 is not within 0 and 1"),
        ("v,0,0.5,0.2,0.6,0.4,,1", "person 1 has another box at the same second"),
    ],
)
def test_a_row_that_makes_no_sense_is_named_with_its_line(tmp_path: Path, row: str, says: str) -> None:
    with pytest.raises(ValueError, match=rf"boxes\.csv:2: .*{says}"):
        read(tmp_path, f"v,0,0.1,0.2,0.3,0.4,,1\n{row}\n")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no line with column names"):
        read(tmp_path, "video,second,x1,y1,x2,y2,action_id,person_id\n" + rows(1))
    with pytest.raises(ValueError, match="empty"):
        read(tmp_path, "")
    with pytest.raises(FileNotFoundError, match="no such file"):
        BoxFile(tmp_path / "none.csv")


def test_videos_are_found_by_name_with_and_without_suffix_and_folders(tmp_path: Path) -> None:
    file = read(
        tmp_path, "".join(f"{name},1,0.1,0.2,0.3,0.4\n" for name in ("a", "b.mp4", "day 2/c", "both", "both.avi"))
    )
    assert file.name_of("videos/a.mp4") == "a"
    assert file.name_of("/x/b.mp4") == "b.mp4"
    assert file.name_of("/x/day 2/c.mkv") == "day 2/c"
    assert file.name_of("https://host/day%202/c.mp4?token=1") == "day 2/c"
    with pytest.raises(ValueError, match=r"no boxes of c\.mkv, only of 'a'; 'b\.mp4'; 'day 2/c'; 'both'; 'both\.avi'"):
        file.name_of("/day 1/c.mkv")
    with pytest.raises(ValueError, match=r"no boxes of b\.avi"):
        file.name_of("b.avi")
    with pytest.raises(ValueError, match=r"calls both\.avi both and both\.avi"):
        file.name_of("both.avi")


def test_boxes_after_the_end_point_to_the_first_second(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = read(tmp_path, rows(902, 903))
    with pytest.raises(ValueError, match=r"all boxes of v in .* after its end at 20\.00 s .* is first_second=0 right"):
        file.persons(info(duration_s=20.0))
    assert not caplog.text
    read(tmp_path, rows(20.4, 902)).persons(info(duration_s=20.0))  # times are rounded
    assert "boxes at 1 of 2 seconds of v" in caplog.text


def test_seconds_with_boxes_are_keyframes_and_gaps_are_filled(tmp_path: Path) -> None:
    persons = given(tmp_path, rows(2.5, 3.5, 6.4, 6.9))
    expected = [(0.5, True), (1.5, True), (2.5, True), (3.5, True), (4.5, True), (5.5, True), (6.4, True), (6.9, False)]
    assert moments(persons) == expected
    assert moments(persons, start_s=6.0, num=4) == [(6.4, True), (6.9, False), (7.4, True), (8.4, True)]
    assert moments(persons, start_s=8.0, num=2) == [(8.0, True), (9.0, True)]
    assert moments(given(tmp_path, rows(0, 0.25, 0.5, 0.75, 1)), num=5) == [
        (time_s, time_s in (0, 1)) for time_s in (0, 0.25, 0.5, 0.75, 1)
    ]


def test_whoever_has_boxes_around_a_gap_is_in_between(tmp_path: Path) -> None:
    persons = given(tmp_path, rows(0) + rows(0, person="2").replace("0.1", "0.2") + rows(4).replace("0.1", "0.2"))
    found = {moment.time_s: persons.find(moment) for moment in itertools.islice(persons.moments(0.0), 6)}
    assert {time_s: [person.track for person in at] for time_s, at in found.items()} == {
        0.0: [1, 2], 1.0: [1], 2.0: [1], 3.0: [1], 4.0: [1], 5.0: [],
    }  # fmt: skip
    assert found[3.0][0].corners == pytest.approx((0.175, 0.2, 0.3, 0.4))
    assert [at[0].interpolated for at in found.values() if at] == [False, True, True, True, False]
    assert persons.num_persons == 2


def test_boxes_without_ids_are_tracked(tmp_path: Path) -> None:
    text = "".join(
        f"v,{i},{0.1 + 0.05 * i:.2f},0.2,{0.3 + 0.05 * i:.2f},0.8\nv,{i},0.7,0.2,0.9,0.8\n" for i in range(4)
    )
    persons = given(tmp_path, text)
    people = [persons.find(Moment(float(i))) for i in range(4)]
    assert [[person.track for person in at] for at in people] == [[1, 2]] * 4
    assert people[3][0].corners[0] == pytest.approx(0.25)


def test_boxes_with_low_scores_can_be_left_out(tmp_path: Path) -> None:
    text = "v,0,0.1,0.2,0.3,0.4,,0.95\nv,0,0.5,0.2,0.7,0.4,,0.3\nv,1,0.1,0.2,0.3,0.4\n"
    persons = given(tmp_path, text, min_score=0.6)
    assert [[person.score for person in persons.find(Moment(time_s))] for time_s in (0.0, 1.0)] == [[0.95], [None]]
