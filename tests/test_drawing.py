"""The annotated picture: everything inside it, legible, beside the face."""

import numpy as np
import pytest
from demo_inputs import ASTRONAUT, face_at
from PIL import Image

from media.drawing import COLOURS, Rect, age_text, draw_corner_text, draw_faces, place, plot_panel


def changed(before, after):
    """Rect around the pixels that differ."""
    ys, xs = np.nonzero((np.asarray(before) != np.asarray(after)).any(axis=2))
    return Rect(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_text_is_age_and_interval():
    face = face_at((0, 0, 10, 10))
    assert age_text(face) == "34, 30-38"


def test_photo_itself_stays_as_it_was():
    photo = Image.open(ASTRONAUT).convert("RGB")
    before = photo.copy()
    annotated = draw_faces(photo, [face_at((181, 62, 268, 172))])
    assert photo == before and annotated != before
    assert draw_faces(photo, []) == before


@pytest.mark.parametrize("side", [60, 300, 1000, 4900])
def test_drawing_scales_with_the_picture(side):
    photo = Image.new("RGB", (side, side), "gray")
    face = face_at([side * share for share in (0.35, 0.3, 0.55, 0.6)])
    plain = draw_faces(photo, [face], plot=False)
    marked = changed(photo, plain)
    label_height = 0.3 * side - marked.y1
    assert label_height >= max(10, 0.02 * side)  # legible on a screen that shows all of it
    assert label_height <= max(18, 0.1 * side)
    drawn = draw_faces(photo, [face])
    if side < 300:
        assert drawn == plain  # a panel would be larger than the picture
    else:
        with_plot = changed(plain, drawn)
        assert with_plot.overlap(Rect(0.35 * side, 0.3 * side, 0.55 * side, 0.6 * side)) == 0
        shape = (with_plot.y2 - with_plot.y1) / (with_plot.x2 - with_plot.x1)
        assert shape == pytest.approx(0.62, abs=0.03)  # whole: nothing is cut off at the edge


@pytest.mark.parametrize("box", [(-20, -20, 90, 100), (330, -10, 420, 90), (-30, 220, 60, 320),
                                 (340, 200, 420, 310), (-5, -5, 405, 305)])
def test_label_at_the_border_is_whole(box):
    """As many pixels of its text as in the middle of the picture."""
    def text_pixels(face_box):
        photo = Image.new("RGB", (400, 300), "gray")
        drawn = draw_faces(photo, [face_at(face_box)], plot=False)
        return (np.asarray(drawn) == COLOURS[0]).all(axis=2).sum()

    width, height = box[2] - box[0], box[3] - box[1]
    middle = (200 - width / 2, 150 - height / 2, 200 + width / 2, 150 + height / 2)
    if height < 300:
        plate = text_pixels(middle) - outline_pixels(middle)
        assert text_pixels(box) >= plate * 0.95
    else:
        assert text_pixels(box) > 300


def outline_pixels(box):
    return 2 * (box[2] - box[0] + box[3] - box[1])


def test_labels_of_neighbours_do_not_cover_each_other():
    photo = Image.new("RGB", (640, 480), "gray")
    faces = [face_at((100 + 62 * i, 200, 160 + 62 * i, 280), 10 + 10 * i) for i in range(6)]
    drawn = np.asarray(draw_faces(photo, faces, plot=False))
    areas = [(drawn == colour).all(axis=2).sum() for colour in COLOURS]
    assert min(areas) > 0.75 * max(areas)


def test_plot_is_left_out_where_it_would_hide_faces():
    photo = Image.new("RGB", (300, 300), "gray")
    crowd = [face_at((1 + 50 * i, 1 + 50 * j, 49 + 50 * i, 49 + 50 * j))
             for i in range(6) for j in range(6)]
    assert draw_faces(photo, crowd) == draw_faces(photo, crowd, plot=False)


def test_place_prefers_the_first_free_spot():
    spot = place((20, 10), [(0, 0), (50, 0), (200, 200)], (100, 100), [Rect(0, 0, 30, 30)])
    assert spot == (50, 0, 70, 10)
    assert place((20, 10), [(200, 200)], (100, 100), []) == (80, 90, 100, 100)


def test_plot_peaks_at_the_age():
    panel = np.asarray(plot_panel(face_at((0, 0, 1, 1), age=70), (200, 120), 20,
                                  (255, 0, 0))).astype(int)
    red = (panel[..., 0] > 150) & (panel[..., 1] < 90)
    columns = np.nonzero(red.any(axis=0))[0]
    assert columns.mean() / 200 == pytest.approx(0.66, abs=0.05)


def test_corner_text_is_drawn_in_the_corner():
    picture = Image.new("RGB", (640, 480), "gray")
    before = picture.copy()
    draw_corner_text(picture, "30 frames/s")
    marked = changed(before, picture)
    assert marked.x2 < 200 and marked.y2 < 60
