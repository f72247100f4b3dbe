"""Aligned lists without the alignment: the same face boxes in photos that are not rotated."""

import csv
from pathlib import Path

from preprocess.columns import BOX, SPLITS
from preprocess.face import as_listed, photo_quad, upright_size
from utils.files import is_current, replaced, writable_folder
from utils.tables import read_rows


def upright_source(source, folder):
    """The data set with lists whose boxes have the same centre and size, and deg 0.

    Args:
        source: lists.Source with aligned lists and split files.
        folder: where the lists are written; those that are current are left as they are.
    Returns:
        lists.Source.
    """
    folder = writable_folder(folder, "--runs")
    for split in SPLITS:
        if source.file(f"{split}_align").is_file():
            _write(source, f"{split}_align", folder, lambda row: _without_roll(row, source))
    for path in sorted(Path(source.list_dir).glob(f"{source.dataset}_split_*.csv")):
        _write(source, path.stem.removeprefix(f"{source.dataset}_"), folder, lambda row: row)
    return source._replace(list_dir=folder)


def _write(source, part, folder, change):
    path, target = source.file(part), source._replace(list_dir=folder).file(part)
    if is_current(target, path):
        return
    rows = [change(row) for row in read_rows(path, ["photo"])]
    with replaced(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _without_roll(row, source):
    x1, y1, x2, y2 = box = [float(row[name]) for name in BOX]
    size = upright_size(source.data_dir / row["photo"])
    x, y = photo_quad(box, size, float(row["deg"])).mean(axis=0)
    half_w, half_h = (x2 - x1) / 2, (y2 - y1) / 2
    roll_deg, box = as_listed(0, (x - half_w, y - half_h, x + half_w, y + half_h))
    return row | {"deg": roll_deg} | dict(zip(BOX, box, strict=True))
