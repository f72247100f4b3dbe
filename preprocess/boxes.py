"""Boxes for faces whose list has none, and a check of those that another program found.

A network knows faces at the framing that preprocess.face_align gives them. The crops that APPA-REAL
is released with show more around the face, so that the same network errs by years on them. Here
their faces are found as face_align finds them.
"""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from preprocess.columns import ALIGNED, BOX
from preprocess.face import load_photo, photo_quad, upright_size
from preprocess.rows import MISSING
from preprocess.shards import Shards, chunks
from utils.files import replaced
from utils.locks import one_maker

BOXES_VERSION = 1  # raise when the boxes change
MIDDLE = 1 / 1.5  # side of the box of a photo in which no face is found, as a share of its sides
MAX_COMPARED = 32  # faces of a data set whose boxes are compared with the detector's
MAX_FRAMING = 1.2  # ratio of the boxes' sides to the detector's, or its inverse; see docs/data.md


def find_boxes(faces, folder=None):
    """Give an angle and a box to each row that has none.

    Args:
        faces: table from lists.read_faces(), with NaN in `deg` if a row has no box.
        folder: where the boxes are kept for the next time, or None.
    Returns:
        The table with the columns ALIGNED filled, and a sentence on what was done; or the table
        itself and "" if all rows have a box. In a photo without a face the box is its middle,
        confidence 0.
    """
    without = faces.index[faces["deg"].isna()]
    if without.empty:
        return faces, ""
    paths = [Path(root, photo) for root, photo in
             zip(faces.loc[without, "root"], faces.loc[without, "photo"], strict=True)]
    boxes = _kept_boxes(paths, Path(folder)) if folder else _search(paths)
    faces = faces.copy()
    faces.loc[without, list(ALIGNED)] = boxes.to_numpy()
    missed = int((boxes["confidence"] == 0).sum())
    return faces, (f"{len(without)} faces have no box in their list: found as "
                   f"preprocess.face_align does, {missed} of them not found and cut from the "
                   "middle of their photo")


def warn_of_other_framing(faces):
    """Warn once of each data set whose boxes frame faces otherwise than face_align does.

    Only lists of other programs are checked: these have no confidence. The detector looks for at
    most MAX_COMPARED of their faces, near their boxes.

    Args:
        faces: table from lists.read_faces(), of all splits that are used.
    """
    foreign = faces[faces["deg"].notna() & faces["confidence"].isna()]
    for name, rows in foreign.groupby("dataset", sort=False):
        chosen = rows.iloc[np.linspace(0, len(rows) - 1, min(len(rows), MAX_COMPARED)).astype(int)]
        ratios = _box_ratios(chosen)
        if len(ratios) < len(chosen) / 2:  # the median would be chance
            continue
        ratio = float(np.median(ratios))
        if not 1 / MAX_FRAMING <= ratio <= MAX_FRAMING:
            warnings.warn(f"the boxes of '{name}' are {ratio:.2f} times as wide and high as those "
                          f"that preprocess.face_align finds ({len(ratios)} faces were compared); "
                          "a network errs more on faces that are framed otherwise than those it "
                          "learned from: align them with python -m preprocess.face_align",
                          stacklevel=2)


def _box_ratios(rows):
    """Sides of the boxes of a list, divided by those of the faces that are found near them."""
    from preprocess.detector import FaceDetector

    detector, ratios = FaceDetector(), []
    for root, photo, deg, *box in rows[["root", "photo", "deg", *BOX]].itertuples(index=False):
        try:
            photo = load_photo(Path(root, photo))
        except OSError:
            continue  # reported where the face is cut
        centre = photo_quad(box, photo.size, deg).mean(axis=0)
        half = np.subtract(box[2:], box[:2]) / 2
        upright = np.concatenate([centre - half, centre + half])  # where the first pass looks
        [found] = detector.align([photo], locations=[upright])
        if found and found[0].found_twice:
            sides = found[0].aligned_bbox[2:] - found[0].aligned_bbox[:2]
            ratios.append(np.sqrt(np.prod(2 * half) / np.prod(sides)))
    return ratios


def _kept_boxes(paths, folder):
    """The boxes from the folder; a search that is stopped goes on where it stopped."""
    key = _photos_key(paths)
    path = folder / f"{key}.boxes.csv"
    if not path.is_file():
        with one_maker(path, "searches the same photos for faces"):
            if not path.is_file():
                parts = Shards(path, key)
                parts.folder.mkdir(exist_ok=True)
                boxes = _search(paths, parts)
                with replaced(path) as temporary:
                    boxes.to_csv(temporary, index=False)
                parts.remove_all()
    return pd.read_csv(path)


def _photos_key(paths):
    digest = hashlib.sha256(str(BOXES_VERSION).encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _search(paths, parts=None):
    """Table of the columns ALIGNED, a row for each photo.

    Args:
        parts: Shards that keep what is found, chunk by chunk, or None.
    Raises:
        OSError: a photo cannot be read for a reason that says nothing about it, or has gone.
    """
    from preprocess.detector import FaceDetector
    from preprocess.workers import align_rows

    detector, rows = FaceDetector(), []
    with tqdm(total=len(paths), desc="finding faces", unit="face", leave=False) as bar:
        for number, chunk in chunks(paths):
            if parts and parts.is_done(number):
                results = [result for result, _ in parts.read(number)]
            else:
                results = align_rows(detector, Path(),
                                     [{"photo": path, "age": "0"} for path in chunk])
                if [MISSING] in results:  # the lists name photos that are there
                    raise FileNotFoundError(f"'{chunk[results.index([MISSING])]}' has gone; put "
                                            "it back and start again")
                if parts:
                    parts.write(number, results, [None] * len(chunk))
            rows += [[float(value) for value in values] if not problem else _middle(path)
                     for path, (problem, *values) in zip(chunk, results, strict=True)]
            bar.update(len(chunk))
    return pd.DataFrame(rows, columns=list(ALIGNED))


def _middle(path):
    """Angle, box and confidence of a photo without a face; cutting it reports an unreadable one."""
    try:
        width, height = upright_size(path)
    except OSError:
        width, height = 1, 1
    x, y = width * (1 - MIDDLE) / 2, height * (1 - MIDDLE) / 2
    return [0.0, x, y, width - x, height - y, 0.0]
