"""The annotated picture: box, age and interval, and the predicted distribution of every face.

All sizes follow the picture and the face, so that a thumbnail and a large photo look alike.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# One colour for each face, light enough for dark text (Okabe and Ito's palette, brightened).
COLOURS = ((255, 200, 60), (95, 205, 255), (110, 225, 150), (255, 150, 190), (255, 155, 95),
           (190, 170, 255))
INK = (18, 20, 26)
PANEL = (18, 20, 26, 205)
SMOOTH = 3  # panels are drawn this many times larger, then shrunk
# Share of a panel that may cover other faces; otherwise it is left out, as where it does not fit.
MAX_COVERED = 0.1


class Rect(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float

    def overlap(self, other):
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(width, 0) * max(height, 0)


def draw_faces(photo, faces, plot=True, numbers=None, threshold=None):
    """A copy of the picture with its faces marked.

    Args:
        photo: PIL.Image, RGB.
        faces: list of Face, in the photo's pixels.
        plot: draw the distribution beside each face.
        numbers: one whole number for each face, which is drawn before its age and chooses its
            colour. By default no number is drawn, and colours follow the order of the faces.
        threshold: years; the probability of being at least so old is drawn too. None: it is not.
    """
    picture = photo.copy()
    draw = ImageDraw.Draw(picture)
    boxes = [Rect(face.x1, face.y1, face.x2, face.y2) for face in faces]
    sizes = [_text_size(box, photo.size) for box in boxes]
    colours = [COLOURS[i % len(COLOURS)] for i in numbers or range(len(faces))]
    for box, size, colour in zip(boxes, sizes, colours, strict=True):
        _draw_box(draw, box, max(1, round(size / 9)), colour)
    taken = []
    for i, face in enumerate(faces):
        text = age_text(face, threshold)
        if numbers:
            text = f"#{numbers[i]}  {text}"
        plate = label_plate(text, sizes[i], colours[i])
        spot = place(plate.size, _label_spots(boxes[i], plate.size), photo.size, taken)
        _paste(picture, plate, spot)
        taken.append(spot)
    for i, face in enumerate(faces if plot else ()):
        panel_size = _panel_size(boxes[i], sizes[i])
        others = boxes[:i] + boxes[i + 1:] + taken
        spot = place(panel_size, _panel_spots(boxes[i], panel_size, sizes[i] / 3), photo.size,
                     others, boxes[i])
        fits = panel_size[0] <= photo.width and panel_size[1] <= photo.height
        if fits and sum(spot.overlap(box) for box in others) <= MAX_COVERED * panel_size[0] * \
                panel_size[1]:
            _paste(picture, plot_panel(face, panel_size, sizes[i], colours[i]), spot)
            taken.append(spot)
    return picture


def age_text(face, threshold=None):
    """Age and central 80% interval, "34, 29-40"; with a threshold "34, 29-40, 18+: 99.6%"."""
    text = f"{face.age:.0f}, {face.low:.0f}-{face.high:.0f}"
    if threshold is None:
        return text
    return f"{text}, {threshold}+: {face.probability_of_at_least(threshold):.1%}"


def draw_corner_text(picture, text):
    """Write a short text into the picture's top left corner, in place."""
    size = max(10, round(min(picture.size) / 32))
    _paste(picture, label_plate(text, size, (225, 225, 225)), Rect(size // 2, size // 2, 0, 0))


def place(size, spots, canvas_size, obstacles, own_box=None):
    """The spot that covers least of the obstacles; the first one if several are equal.

    A spot that overhangs the picture is moved into it first.

    Args:
        size: (width, height) of the label or panel.
        spots: list of (x, y), places for its top left corner, best first.
        canvas_size: (width, height) of the picture.
        obstacles: Rects to keep clear of.
        own_box: Rect that counts half.
    Returns:
        Rect.
    """
    def cost(rect):
        covered = sum(rect.overlap(other) for other in obstacles)
        return covered + (0.5 * rect.overlap(own_box) if own_box else 0)

    rects = []
    for x, y in spots:
        x = max(0, min(round(x), canvas_size[0] - size[0]))
        y = max(0, min(round(y), canvas_size[1] - size[1]))
        rects.append(Rect(x, y, x + size[0], y + size[1]))
    return min(rects, key=cost)  # min keeps the first of equals


def label_plate(text, size, colour):
    """RGBA picture of dark text on a rounded plate of the given colour."""
    font = _font(size * SMOOTH)
    left, _, right, _ = font.getbbox(text)
    ascent, _ = font.getmetrics()
    pad_x, pad_y = round(size * SMOOTH * 0.4), round(size * SMOOTH * 0.22)
    plate = Image.new("RGBA", (right - left + 2 * pad_x, ascent + 2 * pad_y), (*colour, 0))
    draw = ImageDraw.Draw(plate)
    draw.rounded_rectangle((0, 0, plate.width - 1, plate.height - 1), size * SMOOTH * 0.25,
                           fill=(*colour, 255))
    weight = round(size * SMOOTH / 40)  # the built-in font is thin
    draw.text((pad_x - left, pad_y + ascent * 0.97), text, font=font, fill=INK, anchor="ls",
              stroke_width=weight, stroke_fill=INK)
    return _shrunk(plate)


def plot_panel(face, size, text_size, colour):
    """RGBA picture of the distribution: its central interval is bright, its age a white line."""
    width, height = size[0] * SMOOTH, size[1] * SMOOTH
    font = _font(text_size * SMOOTH * 0.65)
    panel = Image.new("RGBA", (width, height), (*PANEL[:3], 0))
    draw = ImageDraw.Draw(panel)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), text_size * SMOOTH * 0.25, fill=PANEL)
    pad, side = text_size * SMOOTH * 0.4, font.getlength("000") * 0.75
    base = height - pad - font.size
    ages = face.age_bins
    first, last = ages[0], ages[-1]

    def across(age):
        return side + (age - first) / (last - first) * (width - 2 * side)

    heights = base - np.asarray(face.probs) / max(face.probs) * (base - pad)
    _fill_under(draw, across(ages), heights, base, (*colour, 110))
    inside = np.linspace(face.low, face.high, 64)
    _fill_under(draw, across(inside), np.interp(inside, ages, heights), base, (*colour, 255))
    line = max(1, round(text_size * SMOOTH / 14))
    draw.line((across(first), base, across(last), base), fill=(255, 255, 255, 160), width=line)
    draw.line((across(face.age), pad * 0.6, across(face.age), base), fill="white", width=line)
    for age in _ticks(first, last, width / font.getlength("0000")):
        draw.text((across(age), height - pad * 0.8), str(age), font=font, anchor="ms",
                  fill=(255, 255, 255, 220))
    return _shrunk(panel)


def _fill_under(draw, xs, ys, base, fill):
    draw.polygon([(xs[0], base), *zip(xs, ys, strict=True), (xs[-1], base)], fill=fill)


def _ticks(first, last, room):
    """Round ages from first to last for the axis, at most `room` of them."""
    step = next((s for s in (10, 20, 25, 50) if (last - first) / s + 1 <= room), last - first)
    return [age for age in range(first, last + 1) if (age - first) % step == 0]


def _text_size(box, photo_size):
    """Height of text in pixels: it grows with the face, but stays legible in the picture."""
    short = min(photo_size)
    return round(np.clip((box.y2 - box.y1) * 0.13, max(10, short / 65), max(11, short / 20)))


def _panel_size(box, text_size):
    width = np.clip((box.x2 - box.x1) * 0.9, 6.5 * text_size, 11 * text_size)
    return round(width), round(width * 0.62)


def _label_spots(box, size):
    width, height = size
    middle = (box.x1 + box.x2 - width) / 2
    return [(middle, box.y1 - height), (middle, box.y2),
            (box.x1 - width, box.y1), (box.x2, box.y1), (middle, box.y1), (middle, box.y2 - height)]


def _panel_spots(box, size, gap):
    width, height = size
    middle = (box.x1 + box.x2 - width) / 2
    return [(box.x2 + gap, box.y1), (box.x1 - gap - width, box.y1),
            (box.x2 + gap, box.y2 - height), (box.x1 - gap - width, box.y2 - height),
            (middle, box.y2 + gap), (middle, box.y1 - gap - height),
            (box.x2 - width, box.y2 - height), (box.x1, box.y2 - height)]


def _draw_box(draw, box, width, colour):
    """A coloured line with thin dark edges, visible on any background."""
    x1, y1, x2, y2 = (round(value) for value in box)
    edge = max(1, width // 3)
    draw.rectangle((x1 - edge, y1 - edge, x2 + edge, y2 + edge), outline=INK,
                   width=width + 2 * edge)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=width)


def _paste(picture, panel, rect):
    picture.paste(panel, (int(rect.x1), int(rect.y1)), panel)


def _shrunk(panel):
    return panel.resize((max(1, round(panel.width / SMOOTH)), max(1, round(panel.height / SMOOTH))),
                        Image.Resampling.BOX)


@lru_cache(maxsize=64)
def _font(size):
    return ImageFont.load_default(size)
