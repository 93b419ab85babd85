import itertools

import numpy as np
import pytest

from memvit.video.box_overlay import BoxOverlayRenderer, PersonBox, Rect, enlargement

SIT = (("sit", 0.9), ("listen to (a person)", 0.42))


def gray(width: int = 640, height: int = 360) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what differs."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def places(renderer: BoxOverlayRenderer, persons: list[PersonBox], taken: list[Rect] | None = None) -> list[Rect]:
    """Where the labels go."""
    boxes = [renderer._rect(person.corners) for person in persons]
    layers = renderer._place(persons, boxes, taken or [])
    return [Rect(a.left, a.top, a.left + a.width, a.top + a.height) for a in layers]


def test_a_box_is_a_line_along_its_inside_and_the_input_stays() -> None:
    frame = gray()
    drawn = BoxOverlayRenderer(640, 360).draw(frame, [PersonBox(1, (0.25, 0.5, 0.5, 0.9))])
    assert (frame == 128).all()
    assert (drawn[200:320, 160:163] == (255, 196, 0)).all()
    assert (drawn[321:323, 160:320] == (255, 196, 0)).all()
    assert (drawn[220:300, 170:310] == 128).all()
    left, top, right, bottom = changed(frame, drawn)
    assert (left, right, bottom) == (160, 320, 324)
    assert 150 < top < 180  # the number stands above


def test_people_keep_their_colours_and_neighbours_differ() -> None:
    renderer = BoxOverlayRenderer(640, 360)

    def color(track: int, x: float) -> tuple[int, ...]:
        drawn = renderer.draw(gray(), [PersonBox(track, (x, 0.5, x + 0.2, 0.9))])
        return tuple(drawn[250, round(x * 640) + 1].tolist())

    assert color(3, 0.1) == color(3, 0.6)
    assert len({color(track, 0.2) for track in range(12)}) == 12


def test_labels_stay_inside_the_frame() -> None:
    for x, y in itertools.product((0.0, 0.45, 0.9), repeat=2):
        renderer = BoxOverlayRenderer(640, 360)
        (place,) = places(renderer, [PersonBox(1, (x, y, x + 0.1, y + 0.1), SIT)])
        assert place.left >= 0
        assert place.top >= 0
        assert place.right <= 640
        assert place.bottom <= 360
    (place,) = places(BoxOverlayRenderer(640, 360), [PersonBox(1, (0.0, 0.0, 1.0, 1.0), SIT)])
    assert 0 <= place.top < place.bottom <= 360


def test_labels_do_not_hide_one_another() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = [(x, y, x + 0.12, y + 0.4) for x, y in rng.uniform((0, 0), (0.88, 0.6), (6, 2)).tolist()]
        persons = [PersonBox(i, box, SIT) for i, box in enumerate(corners)]
        taken = [Rect(1180, 10, 1270, 50), Rect(0, 670, 1280, 720)]
        found = places(BoxOverlayRenderer(1280, 720), persons, taken)
        assert not any(a.shared(b) for a, b in itertools.combinations([*found, *taken], 2))


def test_a_label_keeps_its_side_while_its_person_moves() -> None:
    renderer = BoxOverlayRenderer(640, 360)
    for i in range(30):
        y = 0.3 - 0.004 * i + 0.02 * (i % 2)
        (place,) = places(renderer, [PersonBox(1, (0.4, y, 0.5, 0.8), SIT)])
        box = renderer._rect((0.4, y, 0.5, 0.8))
        assert (place.left, place.bottom) == (box.left, box.top - 1)


def test_labels_are_rendered_once() -> None:
    renderer = BoxOverlayRenderer(640, 360)
    renderer.draw(gray(), [PersonBox(1, (0.1, 0.2, 0.3, 0.9), SIT)])
    (layer,) = renderer._labels.values()
    renderer.draw(gray(), [PersonBox(1, (0.2, 0.2, 0.4, 0.9), SIT)])
    assert next(iter(renderer._labels.values())) is layer
    renderer.draw(gray(), [])
    assert not renderer._labels


@pytest.mark.parametrize("size", [(1, 1), (20, 10), (64, 48), (30, 300), (1920, 1080)])
def test_any_size_any_label_and_any_number_can_be_drawn(size: tuple[int, int]) -> None:
    entries = (("x" * 3000, 0.9), ("切る · قطع 🍉", 0.5), ("two\nlines \ud800", 0.1), ("", 0.0), ("e", 0.0))
    persons = [PersonBox(10**i, (0.1 * i, 0.0, 0.1 * i + 0.3, 1.0), entries) for i in range(8)]
    drawn = BoxOverlayRenderer(*size, duration_s=9).draw(gray(*size), persons, "footer " * 30, time_s=4000)
    assert drawn.shape == (size[1], size[0], 3)
    assert drawn.dtype == np.uint8


def test_clock_and_banner_come_as_in_other_overlays() -> None:
    drawn = BoxOverlayRenderer(640, 360).draw(gray(), [], "weights are random", time_s=3)
    red, _, blue = drawn[350, 4].tolist()
    assert red > blue + 80
    assert (drawn[10:20, 600:630] != 128).any()
    with pytest.raises(ValueError, match="one OverlayRenderer per frame size"):
        BoxOverlayRenderer(64, 48).draw(gray(), [])


def test_small_videos_are_enlarged_until_labels_can_be_read() -> None:
    assert [enlargement(*size) for size in ((1920, 1080), (640, 360), (320, 240), (64, 64), (240, 135))] == [
        1,
        1,
        2,
        6,
        3,
    ]
