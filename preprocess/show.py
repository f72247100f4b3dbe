"""Check the alignment by eye: a contact sheet of random faces, and the ages of each split.

    python -m preprocess.show --dataset utkface --data_dir DIR

Writes two pictures. NAME_faces.png shows each photo with the box of its face, beside the crop
that training sees. NAME_ages.png shows how many faces of each age a split has.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from defaults import load_cfg
from preprocess.columns import BOX, SPLITS, age_label, clean_path
from preprocess.face import crop_face, crop_problem, load_photo, photo_quad, resize_face
from utils.cli import HelpFormatter, count_text, run_main
from utils.files import replaced, writable_folder
from utils.tables import number_of, read_rows

SIDE = 160  # pixels, side of a photo and of a crop on the sheet
CAPTION = 16  # pixels, height of the text below them
PAIRS_PER_ROW = 5


def parse_args():
    parser = argparse.ArgumentParser(prog="python -m preprocess.show", description=__doc__,
                                     formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="folder of the photos")
    parser.add_argument("--dataset", required=True, metavar="NAME",
                        help="the NAME in NAME_train_align.csv")
    parser.add_argument("--list_dir", metavar="DIR",
                        help="folder of the lists; without it --data_dir")
    parser.add_argument("--output_dir", metavar="DIR",
                        help="folder of the pictures; without it the folder of the lists")
    parser.add_argument("--count", type=int, default=40, help="faces on the sheet")
    parser.add_argument("--margin", type=float, default=0.0,
                        help="share of the box added on each side of the crop, as DATA.MARGIN")
    parser.add_argument("--seed", type=int, default=0, help="another number chooses other faces")
    return parser.parse_args()


def main():
    args = parse_args()
    if args.count < 1:
        raise ValueError(f"--count must be at least 1, got {args.count}")
    load_cfg(opts=("DATA.MARGIN", str(args.margin)))  # refuses what training refuses
    list_dir = Path(args.list_dir or args.data_dir)
    splits = {split: checked_rows(path) for split in SPLITS
              if (path := list_dir / f"{args.dataset}_{split}_align.csv").is_file()}
    faces = [row for rows in splits.values() for row in rows]
    if not faces:
        raise FileNotFoundError(f"no faces in {args.dataset}_train_align.csv, "
                                f"{args.dataset}_valid_align.csv or {args.dataset}_test_align.csv "
                                f"in '{list_dir}'; align them with python -m preprocess.face_align")
    output_dir = writable_folder(args.output_dir or list_dir, "--output_dir")
    order = np.random.default_rng(args.seed).permutation(len(faces))
    sheet_path = output_dir / f"{args.dataset}_faces.png"
    sheet = contact_sheet([faces[i] for i in order[:args.count]], args.data_dir, args.margin)
    with replaced(sheet_path) as temporary:
        sheet.save(temporary, "PNG")
    ages_path = output_dir / f"{args.dataset}_ages.png"
    figure = plot_ages({split: [float(row["age"]) for row in rows if row["age"].strip()]
                        for split, rows in splits.items()}, args.dataset)
    with replaced(ages_path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    print(f"{count_text(len(faces), 'face')} in {', '.join(splits)} -> {sheet_path}, {ages_path}")


def checked_rows(path):
    """The rows of an aligned list, which another program may have written, as dicts of text.

    Raises:
        ValueError: an age, an angle or a box is not a number, or a box is empty; names the photo.
    """
    from preprocess.workers import row_problem  # imported here: OpenCV takes longer than -h may

    rows = list(read_rows(path, ["photo", "age", "deg", *BOX]))
    for row in rows:
        [problem] = row_problem(row) or [None]
        values = {name: number_of(row[name]) for name in ("deg", *BOX)}
        wrong = [name for name, value in values.items() if value is None]
        if wrong:
            problem = f"{wrong[0]} '{row[wrong[0]]}' is not a number"
        elif values["box3"] <= values["box1"] or values["box4"] <= values["box2"]:
            problem = "the box is empty"
        if problem:
            raise ValueError(f"{path}: photo '{row['photo']}': {problem}")
    return rows


def contact_sheet(rows, data_dir, margin_ratio):
    """PIL.Image with the photo and the crop of each row of an aligned list."""
    across = 2 * SIDE + 8
    lines = -(-len(rows) // PAIRS_PER_ROW)
    sheet = Image.new("RGB", (across * min(len(rows), PAIRS_PER_ROW), (SIDE + CAPTION) * lines),
                      "white")
    pen = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        x, y = index % PAIRS_PER_ROW * across, index // PAIRS_PER_ROW * (SIDE + CAPTION)
        before, after = before_and_after(row, data_dir, margin_ratio)
        sheet.paste(before, (x, y))
        sheet.paste(after, (x + SIDE, y))
        pen.text((x + 2, y + SIDE + 2), f"{age_label(row)} years  {float(row['deg']):+.1f} deg"
                 f"  {row['photo'].rsplit('/', 1)[-1][:24]}", fill="black")
    return sheet


def before_and_after(row, data_dir, margin_ratio):
    """The photo with the face's box drawn, and the crop, each SIDE pixels square."""
    path = Path(data_dir, clean_path(row["photo"]))
    try:
        photo = load_photo(path)
    except OSError as error:
        raise OSError(f"'{path}': {error.strerror or error}") from error
    deg, *box = (float(row[name]) for name in ("deg", *BOX))
    if problem := crop_problem(box, photo.size, deg, margin_ratio):
        raise ValueError(f"'{path}': {problem}")
    crop = Image.fromarray(resize_face(crop_face(photo, box, deg, margin_ratio), SIDE))
    quad = photo_quad(box, photo.size, deg)
    low = np.minimum(quad.min(0), 0)  # a box may overhang the photo: show all of it
    high = np.maximum(quad.max(0), photo.size)
    scale = (SIDE - 2) / (high - low).max()
    before = Image.new("RGB", (SIDE, SIDE), "gray")
    size = [max(1, round(side * scale)) for side in photo.size]
    before.paste(photo.resize(size), tuple((-low * scale).round().astype(int).tolist()))
    corners = [tuple(corner) for corner in ((quad - low) * scale).tolist()]
    pen = ImageDraw.Draw(before)
    pen.line([*corners, corners[0]], fill="lime", width=2)
    pen.line(corners[:2], fill="red", width=2)  # the top of the face
    return before, crop


def plot_ages(split_ages, name):
    """matplotlib Figure: a histogram of the ages in years, one panel for each split."""
    from matplotlib.figure import Figure  # imported here, as it takes longer than -h may
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 2 * len(split_ages)), layout="constrained")
    panels = figure.subplots(len(split_ages), sharex=True, squeeze=False)[:, 0]
    for panel, (split, ages) in zip(panels, split_ages.items(), strict=True):
        years = np.arange(0, max([100, *map(max, filter(None, split_ages.values()))]) + 2)
        panel.hist(ages, bins=years)
        panel.set_ylabel("faces")
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_title(f"{name} {split}: {count_text(len(ages), 'face')}", fontsize=10, loc="left")
    panels[-1].set_xlabel("age (years)")
    return figure


if __name__ == "__main__":
    run_main(main)
