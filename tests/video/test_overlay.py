import time

import numpy as np
import pytest

from memvit.video.overlay import OverlayRenderer, draw_predictions, format_percent, format_time

ENTRIES = [("cutting watermelon", 0.82), ("washing hands", 0.31), ("yoga", 0.02)]
ACTIONS = [("put-down chopping board", 0.4), ("take knife", 0.2), ("cut tomato", 0.1), ("open tap", 0.05)]
GROUPS = [("verb", [("put-down", 0.6), ("take", 0.3), ("cut", 0.1)]), ("noun", [("board", 0.7), ("knife", 0.2)])]


def _gray(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def _changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what differs."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_only_the_panel_changes_and_the_input_stays() -> None:
    frame = _gray(640, 360)
    drawn = OverlayRenderer(640, 360).draw(frame, ENTRIES)
    left, top, right, bottom = _changed(frame, drawn)
    assert 0 < left < right < 320
    assert 0 < top < bottom < 120
    assert (frame == 128).all()


def test_nothing_to_draw_changes_nothing() -> None:
    frame = _gray(640, 360)
    assert (OverlayRenderer(640, 360).draw(frame, []) == frame).all()


def test_the_bar_is_as_long_as_the_score() -> None:
    def num_blue(score: float) -> int:
        drawn = draw_predictions(_gray(640, 360), [("", score)]).astype(int)
        return int(((drawn[..., 2] > drawn[..., 0] + 60).sum(axis=0) > 5).sum())  # columns

    full = num_blue(1.0)
    assert num_blue(0.0) == 0
    assert num_blue(0.5) == pytest.approx(full / 2, abs=3)
    assert num_blue(7.0) == full


def test_the_footer_is_a_bright_banner_along_the_bottom() -> None:
    frame = _gray(640, 360)
    drawn = draw_predictions(frame, [], footer="untrained weights")
    left, top, right, bottom = _changed(frame, drawn)
    assert (left, right, bottom) == (0, 640, 360)
    assert 310 < top < 350
    red, green, blue = drawn[352, 4].tolist()
    assert red > 220
    assert green > 160
    assert blue < 80


def test_the_time_stands_in_the_upper_right() -> None:
    frame = _gray(640, 360)
    left, _, right, bottom = _changed(frame, draw_predictions(frame, [], time_s=75))
    assert 560 < left < right < 640
    assert bottom < 40


def test_the_progress_line_grows_with_time() -> None:
    renderer = OverlayRenderer(600, 400, duration_s=60)
    frame = _gray(600, 400)
    for time_s, width in ((0, 0), (15, 150), (60, 600), (90, 600)):
        assert int((renderer.draw(frame, [], time_s=time_s)[-1] != 128).any(axis=1).sum()) == width


def test_rendering_once_or_again_draws_the_same() -> None:
    renderer = OverlayRenderer(320, 240)
    frame = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    first = renderer.draw(frame, ENTRIES, "untrained", time_s=1)
    other = renderer.draw(frame, ENTRIES[:1], None, time_s=2)
    again = renderer.draw(frame, ENTRIES, "untrained", time_s=1)
    assert (first == again).all()
    assert (first != other).any()
    assert (first == draw_predictions(frame, ENTRIES, footer="untrained", time_s=1)).all()


@pytest.mark.parametrize("size", [(1, 1), (20, 10), (64, 48), (30, 300), (300, 20), (160, 90), (1920, 1080)])
def test_any_size_and_any_label_can_be_drawn(size: tuple[int, int]) -> None:
    entries = [("x" * 3000, 0.9), ("切る · قطع · резать 🍉", 0.5), ("two\nlines \ud800", 0.1), ("", 0.0)] * 5
    drawn = draw_predictions(_gray(*size), entries, time_s=4000, footer="long " * 100)
    assert drawn.shape == (size[1], size[0], 3)
    assert drawn.dtype == np.uint8


def test_a_small_frame_still_shows_its_best_entries() -> None:
    frame = _gray(160, 90)
    _, top, right, bottom = _changed(frame, draw_predictions(frame, ENTRIES))
    assert bottom - top >= 40
    assert right <= 120


def test_blending_is_exact_at_the_extremes() -> None:
    white = np.full((360, 640, 3), 255, np.uint8)
    drawn = OverlayRenderer(640, 360).draw(white, ENTRIES, "note", time_s=3)
    assert drawn[180:330, 400:].min() == 255
    assert drawn[30, 20].max() < 255


def test_a_repeated_panel_costs_little() -> None:
    renderer = OverlayRenderer(1280, 720)
    frame = _gray(1280, 720)
    renderer.draw(frame, ENTRIES, "note", time_s=3)
    start = time.perf_counter()
    for _ in range(10):
        renderer.draw(frame, ENTRIES, "note", time_s=3)
    assert (time.perf_counter() - start) / 10 < 0.05


def test_wrong_frames_and_scores_are_refused() -> None:
    renderer = OverlayRenderer(64, 48)
    with pytest.raises(ValueError, match="one OverlayRenderer per frame size"):
        renderer.draw(_gray(64, 50), ENTRIES)
    with pytest.raises(ValueError, match="float64"):
        renderer.draw(np.zeros((48, 64, 3)), ENTRIES)
    with pytest.raises(ValueError, match="'cut' is nan"):
        draw_predictions(_gray(320, 240), [("cut", float("nan"))])
    with pytest.raises(ValueError, match="0x48"):
        OverlayRenderer(0, 48)


def test_times_read_like_a_players() -> None:
    assert [format_time(s) for s in (0, 9.99, 75, 3600, 36_061, -0.4, -61)] == [
        *("0:00", "0:09", "1:15", "1:00:00", "10:01:01", "0:00", "-1:01")
    ]


def test_small_scores_keep_a_decimal() -> None:
    assert [format_percent(s) for s in (0, 0.004, 0.0996, 0.5, 1)] == ["0%", "0.4%", "10%", "50%", "100%"]


def _bars(drawn: np.ndarray) -> list[int]:
    """The heights of the rows of a panel on grey, from top to bottom: where its left part is no plain panel."""
    column = drawn[:, 200].astype(int)
    plain = np.abs(column - drawn[8, 200].astype(int)).sum(axis=1) < 2
    edges = np.flatnonzero(np.diff((~plain & (column.sum(axis=1) < 384)).astype(int)))
    return [int(last - first) for first, last in zip(edges[::2], edges[1::2], strict=False)]


def test_what_heads_say_together_is_larger_and_above_what_each_says() -> None:
    flat = [(label, 0.0) for label, _ in ACTIONS]
    groups = [(name, [("", 0.0) for _ in entries]) for name, entries in GROUPS]
    drawn = OverlayRenderer(640, 360).draw(_gray(640, 360), [("", 0.0) for _ in flat], groups=groups)
    heights = _bars(drawn)
    assert len(heights) == 3 + 2 + 2  # the three best together, the two best of each head
    assert heights[0] > 1.25 * heights[1]
    assert len(set(heights[1:])) == 1


def test_only_the_best_together_is_highlighted_and_without_it_the_best_of_each() -> None:
    def num_blue_rows(drawn: np.ndarray) -> int:
        blue = (drawn[..., 2].astype(int) > drawn[..., 0].astype(int) + 120).any(axis=1)
        return int((np.diff(blue.astype(int), prepend=0) == 1).sum())

    renderer, frame = OverlayRenderer(640, 360), _gray(640, 360)
    assert num_blue_rows(renderer.draw(frame, ACTIONS, groups=GROUPS)) == 1
    assert num_blue_rows(renderer.draw(frame, [], groups=GROUPS)) == 2


def test_a_heading_stands_above_and_changes_with_time() -> None:
    renderer, frame = OverlayRenderer(640, 360), _gray(640, 360)
    now = renderer.draw(frame, ENTRIES, heading="expected in 0.9 s")
    later = renderer.draw(frame, ENTRIES, heading="expected in 0.8 s")
    left, top, right, bottom = _changed(now, later)
    assert bottom - top < 16
    assert right - left < 16  # one digit
    assert (renderer.draw(frame, [], heading="expected") == frame).all()


def test_where_there_is_little_room_the_best_of_all_comes_first_and_below_the_clock() -> None:
    frame = _gray(128, 128)
    clock = _changed(frame, draw_predictions(frame, [], time_s=3))
    panel = _changed(frame, OverlayRenderer(128, 128).draw(frame, ACTIONS, groups=GROUPS))
    assert panel[1] >= clock[3]
    assert panel[2] - panel[0] >= 110  # the frame's width, so that names can be read
    low = _gray(160, 40)  # no room below the clock
    assert _changed(low, OverlayRenderer(160, 40).draw(low, ACTIONS, groups=GROUPS))[1] < clock[3]


@pytest.mark.parametrize("size", [(1, 1), (20, 10), (64, 48), (30, 300), (300, 20), (97, 61), (270, 480), (1280, 720)])
def test_several_heads_can_be_drawn_at_any_size(size: tuple[int, int]) -> None:
    entries = [("x" * 3000, 0.9), ("two\nlines \ud800", 0.1), ("", 0.0)]
    groups = [("name " * 40, entries), ("", []), ("noun", entries)]
    renderer = OverlayRenderer(*size, duration_s=9)
    drawn = renderer.draw(_gray(*size), entries, "long " * 100, groups=groups, heading="in " * 99, time_s=4000)
    assert drawn.shape == (size[1], size[0], 3)
    with pytest.raises(ValueError, match="'cut' is inf"):
        renderer.draw(_gray(*size), [], groups=[("verb", [("cut", float("inf"))])])
