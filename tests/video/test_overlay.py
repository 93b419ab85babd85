import time

import numpy as np
import pytest

from memvit.video.overlay import OverlayRenderer, draw_predictions, format_percent, format_time

ENTRIES = [("cutting watermelon", 0.82), ("washing hands", 0.31), ("yoga", 0.02)]


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
