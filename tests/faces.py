"""Faces drawn for the tests, and data sets made of them."""

import csv
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

TINY = ["MODEL.ARCH", "timm/test_resnet", "MODEL.PRETRAINED", "none", "MODEL.IMG_SIZE", "32",
        "TRAIN.WORKERS", "0", "TEST.WORKERS", "0", "TRAIN.AMP", "off", "TRAIN.BATCH_SIZE", "4"]


def draw_face(age, size=96, seed=0):
    """(size, size, 3) uint8: a disc whose colour and wrinkles tell the age."""
    rng = np.random.default_rng((seed, age))
    picture = rng.integers(40, 80, (size, size, 3), np.uint8)
    centre, radius = (size // 2, size // 2), size // 3
    cv2.circle(picture, centre, radius, (230 - 2 * age, 120, 20 + 2 * age), -1)
    for side in (-1, 1):
        cv2.circle(picture, (centre[0] + side * radius // 2, centre[1] - radius // 3),
                   radius // 8, (20, 20, 20), -1)
    for line in range(age // 10):
        y = centre[1] + radius // 3 + 2 * line
        cv2.line(picture, (centre[0] - radius // 2, y), (centre[0] + radius // 2, y),
                 (60, 30, 30), 1)
    return picture


def write_dataset(folder, ages, name="drawn", splits=("train", "valid"), columns=None, seed=0):
    """Draw one photo an age, and write NAME_SPLIT_align.csv for each split.

    columns: further columns of the list, {name: one value a face}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, age in enumerate(ages):
        photo = f"{name}_{number}.png"
        Image.fromarray(draw_face(age, seed=seed + number)).save(folder / photo)
        row = {"photo": photo, "age": age, "deg": 3.5, "box1": 20.2, "box2": 18.0,
               "box3": 80.4, "box4": 82.0, "confidence": 0.99}
        rows.append(row | {key: values[number] for key, values in (columns or {}).items()})
    for split in splits:
        write_list(folder / f"{name}_{split}_align.csv", rows)
    return rows


def write_list(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_bomb(path):
    """Write a PNG whose header states so many pixels that PIL refuses it, not with an OSError."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT", b"IEND")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks))
