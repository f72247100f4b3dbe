"""Write golden.json: what Pillow and preprocess.face compute, for face.test.js.

    python web/test/golden.py

The file is kept in the repository, so that these tests need no Python.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from preprocess import face  # noqa: E402


def main():
    rng = np.random.default_rng(0)
    tall, wide = (Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
                  for size in ((29, 13), (12, 21)))
    boxes = {"wide": [([2, -3, 14, 11], 21.3), ([3, 2, 11, 17], 90)],
             "tall": [([1, 4, 9, 16], -8.1), ([0, 0, 13, 29], 0), ([2, 2, 10, 12], -180)]}
    cases = {
        "pictures": {"tall": as_lists(tall), "wide": as_lists(wide)},
        "resized": [resized("tall", tall, (8, 8)), resized("wide", wide, (8, 8)),
                    resized("wide", wide, (25, 25))],
        "crops": [crop(name, picture, box, roll_deg)
                  for name, picture in (("wide", wide), ("tall", tall))
                  for box, roll_deg in boxes[name]],
        "canvases": [canvas(size, roll_deg) for size in ((640, 480), (21, 12))
                     for roll_deg in (0, 12.3456, -77.7, 90, 180, -90)],
        "rounded": [[value, decimals, round(value, decimals)] for value, decimals in (
            (0.125, 2), (0.375, 2), (-0.125, 2), (2.5, 0), (3.5, 0), (-2.5, 0), (2.675, 2),
            (1.005, 2), (123.456789, 4), (0.00005, 4), (99.995, 2), (7, 2))],
    }
    (HERE / "golden.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


def resized(name, picture, size):
    # In two calls: all rows first, then all columns, whatever the version of Pillow.
    rows = picture.resize((size[0], picture.height), Image.Resampling.BICUBIC)
    return {"picture": name, "size": size,
            "pixels": as_lists(rows.resize(size, Image.Resampling.BICUBIC))["pixels"]}


def crop(name, picture, box, roll_deg):
    cut = face.crop_face(picture, box, roll_deg, 0)
    return {"picture": name, "box": box, "rollDeg": roll_deg, **as_lists(cut)}


def canvas(size, roll_deg):
    canvas_size, inverse = face.rotation_to_canvas(size, roll_deg)
    return {"size": size, "rollDeg": roll_deg, "canvasSize": canvas_size,
            "inverse": inverse.ravel().tolist(),
            "turnedBox": face.turned_bbox([100, 50, 180, 170], size, roll_deg).tolist()}


def as_lists(picture):
    return {"width": picture.width, "height": picture.height,
            "pixels": np.asarray(picture).ravel().tolist()}


if __name__ == "__main__":
    main()
