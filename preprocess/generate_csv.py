"""A data set as released -> NAME_train.csv, NAME_valid.csv, NAME_test.csv.

    python -m preprocess.generate_csv --dataset utkface --data_dir DIR
    python -m preprocess.generate_csv --dataset my_photos --data_dir DIR --table DIR/ages.csv

Each list has the columns photo and age and what else the data set knows.
NAME_split_PROTOCOL.csv, with the columns photo and split, holds a published alternative to the
split. NAME_skipped.csv holds the photos that cannot be used, with the reason.
"""

import argparse
import csv
import io
import re
from collections import Counter
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from preprocess.columns import COLUMNS, LOCATION, SPLITS, path_problem
from preprocess.copies import copies_in_training, warn_of_copies
from preprocess.face import stop_unless_damaged, upright_size
from preprocess.readers import DATASETS, DataSet, Options, Skipped, table_reader
from preprocess.rows import MISSING, location_problem
from preprocess.splits import fill_empty_splits, warn_of_shared_photos
from utils.cli import HelpFormatter, run_main
from utils.files import refuse_overwriting, replaced, writable_folder

READ_BY = {"appa_real_label": ("appa_real",), "min_face_score": ("imdb", "wiki"),
           "max_second_face_score": ("imdb", "wiki")}  # flag -> data sets that read it
MAX_AGE = 122  # years, of the oldest person known; a year of birth, for example, is no age


def parse_args():
    parser = argparse.ArgumentParser(prog="python -m preprocess.generate_csv",
                                     description=__doc__, formatter_class=HelpFormatter,
                                     epilog="\n".join(["columns of a list or of --table:"] + [
                                         f"  {name:<9} {text}" for name, text in COLUMNS.items()]))
    parser.add_argument("--dataset", required=True, metavar="NAME",
                        help=f"one of {', '.join(sorted(DATASETS))}, or with --table any other")
    parser.add_argument("--data_dir", required=True, metavar="DIR",
                        help="folder of the data set as released, or of your photos")
    parser.add_argument("--table", metavar="CSV",
                        help="table of your own photos with the columns photo (relative to "
                        "--data_dir) and age, and any other column of the lists; an optional "
                        "column split holds train, valid or test, otherwise a hash chooses")
    parser.add_argument("--list_dir", metavar="DIR",
                        help="folder of the lists that are written; without it --data_dir")
    parser.add_argument("--drop_older", action="store_true",
                        help="leave out faces that are older than the last age bin; without it "
                        "they get that age")
    parser.add_argument("--train_on_test", action="store_true",
                        help="add the test photos to the training list, for a model that is "
                        "measured on another data set")
    parser.add_argument("--drop_copies", action="store_true",
                        help="leave out training photos that are, byte for byte, photos of the "
                        "valid or test list under another name")
    parser.add_argument("--appa_real_label", default=Options.appa_real_label,
                        choices=("apparent", "real"), help="appa_real: which age")
    parser.add_argument("--min_face_score", type=float, default=Options.min_face_score,
                        help="imdb, wiki: lowest accepted face_score")
    parser.add_argument("--max_second_face_score", type=float,
                        help="imdb, wiki: highest accepted second_face_score; without it a photo "
                        "with a second face is left out")
    return parser.parse_args()


def main():
    args = parse_args()
    dataset = choose_dataset(args)
    data_dir = Path(args.data_dir)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"folder '{data_dir}' not found; --data_dir is the folder of the "
                                "photos")
    list_dir = writable_folder(args.list_dir or data_dir, "--list_dir")
    if args.table:
        written = [list_dir / f"{args.dataset}_{part}.csv" for part in (*SPLITS, "skipped")]
        refuse_overwriting(written, [args.table], "--list_dir, or rename the table")
    options = options_of(args)
    rows, skipped, clipped = sort_records(dataset.read(data_dir, options), data_dir,
                                          options.max_age, args.drop_older)
    if not rows:
        raise ValueError(f"no usable photo of {args.dataset} in '{data_dir}'{why_skipped(skipped)}")
    filled = fill_empty_splits(rows)
    warn_of_shared_photos(rows)
    if args.train_on_test:
        train_on_test(rows, args.dataset)
    copies = copies_in_training(rows, data_dir)
    if args.drop_copies:
        rows = [row for row in rows if row["photo"] not in copies]
        skipped += [Skipped(photo, f"a copy of a {split} photo")
                    for photo, (_, split) in copies.items()]
    else:
        warn_of_copies(copies, rows)
    refuse_earlier_lists(rows, list_dir, args.dataset)
    write_lists(rows, list_dir, args.dataset)
    protocols = dataset.protocols(rows, data_dir)
    for name, splits in protocols.items():
        write_csv(list_dir / f"{args.dataset}_split_{name}.csv", ["photo", "split"],
                  splits.items())
    report(args.dataset, list_dir, rows, skipped, clipped, filled, protocols, bool(args.table))


def choose_dataset(args):
    """The DataSet of --dataset or of --table."""
    if not args.table:
        if args.dataset not in DATASETS:
            raise ValueError(f"--dataset '{args.dataset}' is not one of {', '.join(DATASETS)}; "
                             "for your own photos name the table of their ages with --table")
        return DATASETS[args.dataset]
    if args.dataset in DATASETS or not re.fullmatch(r"[\w-]+", args.dataset) \
            or "_split_" in args.dataset:  # NAME_split_PROTOCOL.csv is of NAME
        raise ValueError(f"--dataset '{args.dataset}': with --table choose a name of your own. "
                         "It may hold letters, digits, - and _, not '_split_', and is not one of "
                         f"{', '.join(DATASETS)}")
    return DataSet(table_reader(args.table))


def options_of(args):
    """The Options of the flags; one that the data set does not have is refused."""
    options = Options(args.appa_real_label, args.min_face_score, args.max_second_face_score)
    for flag, datasets in READ_BY.items():
        if args.dataset not in datasets and getattr(options, flag) != getattr(Options, flag):
            raise ValueError(f"--{flag} is for --dataset {' or '.join(datasets)}; '{args.dataset}' "
                             "does not read it")
    return options


def sort_records(records, data_dir, max_age, drop_older):
    """Sort the records of a reader into rows that can be used and photos that are skipped.

    Args:
        records: iterable of dict and Skipped (see readers.py).
        data_dir: folder of the photos.
        max_age: years, the last age bin.
        drop_older: skip older faces; otherwise they get max_age.
    Returns:
        rows: list of dicts.
        skipped: list of Skipped.
        clipped: number of ages that were above max_age.
    """
    rows, skipped, clipped, checked = [], [], 0, {}
    for record in tqdm(records, unit=" photos", delay=1):
        if isinstance(record, Skipped):
            skipped.append(record)
            continue
        photo = record["photo"]
        if photo not in checked:  # MegaAge's test photos are in two lists
            checked[photo] = _image_size(Path(data_dir, photo), data_dir)
        size = checked[photo]
        if problem := path_problem(photo):
            skipped.append(Skipped(photo, problem))
        elif photo != printable(photo):
            skipped.append(Skipped(printable(photo), "file name is not UTF-8"))
        elif isinstance(size, str):
            skipped.append(Skipped(photo, size))
        elif problem := location_problem(_located(record, size), size):
            skipped.append(Skipped(photo, problem))
        elif record["age"] < 0:
            skipped.append(Skipped(photo, "negative age"))
        elif record["age"] > MAX_AGE:
            skipped.append(Skipped(photo, f"age above {MAX_AGE}"))
        elif record["age"] > max_age and drop_older:
            skipped.append(Skipped(photo, f"older than {max_age}"))
        else:
            clipped += record["age"] > max_age
            for name in ("age", "age_min", "age_max"):
                if record.get(name, "") != "":
                    record[name] = min(record[name], max_age)
            rows.append(record)
    return rows, skipped, clipped


def why_skipped(skipped):
    """The commonest reason of a list of Skipped with a photo as an example, as part of an error."""
    if not skipped:
        return ""
    [(reason, _)] = Counter(reason for _, reason in skipped).most_common(1)
    example = next(photo for photo, why in skipped if why == reason)
    return (f": {len(skipped)} skipped, most often because: {reason}, such as "
            f"'{printable(example)}'")


def printable(name):
    """A file name with every byte escaped that is not UTF-8, or would end a line of a list."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\r", "\\r")


def _image_size(path, data_dir):
    """(width, height) of the upright photo, or the reason why it cannot be used."""
    try:
        return upright_size(path)  # the detector gets the upright photo
    except (OSError, MemoryError) as error:
        stop_unless_damaged(error, path, data_dir)
        if isinstance(error, FileNotFoundError):
            return MISSING
        is_too_large = isinstance(error.__cause__, Image.DecompressionBombError)
        return "more pixels than PIL reads" if is_too_large else "not an image"


def _located(row, size):
    """The row with a location in pixels if it was given in shares of the photo's sides."""
    if "location_ratio" in row:
        shares = row.pop("location_ratio")
        pixels = [round(share * size[i % 2], 1) for i, share in enumerate(shares)]
        row |= dict(zip(LOCATION, pixels, strict=True))
    return row


def train_on_test(rows, name):
    """Move the test photos to the training list.

    Raises:
        ValueError: a test photo is also in another list (MegaAge): the model would be measured
            on photos that it was trained on.
    """
    elsewhere = {row["photo"] for row in rows if row["split"] != "test"}
    for row in rows:
        if row["split"] == "test":
            if row["photo"] in elsewhere:
                raise ValueError(f"--train_on_test: '{row['photo']}' of {name} is also in the "
                                 "train or valid list; leave --train_on_test out")
            row["split"] = "train"


def refuse_earlier_lists(rows, list_dir, name):
    """Refuse to leave the list of an earlier run beside the new ones, for a split without rows.

    Its photos may be in another list now, so that a model would be measured on photos that it was
    trained on. It is not deleted, as somebody may have written it by hand.

    Raises:
        ValueError: names the lists, also those that face_align made of them.
    """
    used = {row["split"] for row in rows}
    for split in (split for split in SPLITS if split not in used):
        left = [f"'{path}'" for path in (list_dir / f"{name}_{split}.csv",
                                         list_dir / f"{name}_{split}_align.csv") if path.exists()]
        if left:
            raise ValueError(f"no photo goes to {split}, but {' and '.join(left)} would stay; "
                             "delete what an earlier run left, or choose another --list_dir")


def write_lists(rows, list_dir, name):
    """Write NAME_SPLIT.csv for each split that has rows, with the columns that are not empty."""
    used = [column for column in COLUMNS
            if any(row.get(column) not in (None, "") for row in rows)]
    for split in SPLITS:
        members = [[row.get(column) for column in used] for row in rows if row["split"] == split]
        if members:
            write_csv(list_dir / f"{name}_{split}.csv", used, members)


def write_csv(path, header, rows):
    """Write a CSV file whole or not at all; floats get six significant digits, None is empty.

    A file that holds the same already is left alone, with its time: it would seem newer than what
    was made from it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:g}" if isinstance(value, float) else value for value in row]
                     for row in rows)
    content = text.getvalue().encode()
    if path.is_file() and path.read_bytes() == content:
        return
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def report(name, list_dir, rows, skipped, clipped, filled, protocols, is_table):
    counts = Counter(row["split"] for row in rows)
    print(f"{name}: " + ", ".join(f"{counts[split]:,} {split}" for split in SPLITS
                                  if counts[split]) + f" -> {list_dir}")
    if filled and counts[filled[0]] == len(rows):
        print(f"few photos: all are in the {filled[0]} list, as they are one, or of one person")
    elif filled:
        print(f"few photos: the hash left {' and '.join(filled)} empty; "
              f"{'it' if len(filled) == 1 else 'each'} got one photo, and all others of the same "
              "person. They may be trained on when photos are added: name their splits in a column "
              "split of --table to keep them")
    if is_table and (count := sum(row.get(LOCATION[0]) in (None, "") for row in rows)):
        print(f"rows that name no face ({LOCATION[0]} to {LOCATION[-1]}): {count} of {len(rows)}; "
              "preprocess.face_align will take the largest one of the photo")
    if not counts["valid"]:
        print("no valid list, which training and calibration need: add photos (of other persons), "
              "or choose with a column split in --table")
    ages = [row["age"] for row in rows]
    print(f"ages {min(ages):g} to {max(ages):g} years"
          + (f"; {clipped} older than the last bin were clipped to it" if clipped else ""))
    if protocols:
        print(f"protocols: {', '.join(protocols)}")
    path = list_dir / f"{name}_skipped.csv"
    path.unlink(missing_ok=True)
    if skipped:
        write_csv(path, ["photo", "reason"],
                  [(printable(photo), reason) for photo, reason in skipped])
        reasons = Counter(reason for _, reason in skipped).most_common()
        print(f"{len(skipped)} skipped, listed in {path}: "
              + ", ".join(f"{count} {reason}" for reason, count in reasons))


if __name__ == "__main__":
    run_main(main)
