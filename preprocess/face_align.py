"""Lists of photos -> NAME_{train,valid,test}_align.csv: find each face and how it is turned.

    python -m preprocess.face_align --dataset utkface --data_dir DIR

Works on every NAME_train.csv, NAME_valid.csv and NAME_test.csv with the columns photo and age,
written by preprocess.generate_csv or by hand. Adds the columns deg (degrees, the roll of the
first pass), box1..box4 (x1 y1 x2 y2, pixels of the photo turned by deg) and confidence (0.7..1).
Rows without a face go to NAME_rejected.csv with the reason. A run that was stopped continues
where it was when started again. Several processes, GPUs or machines share the work with
`torchrun --nproc_per_node=N -m preprocess.face_align ...`.
"""

import argparse
import contextlib
import csv
import functools
import itertools
import os
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from lists import SPLITS, is_current
from preprocess.detector import FaceDetector
from preprocess.face import load_photo
from preprocess.journal import (
    CHUNK,
    Journal,
    chunks,
    merge,
    read_rows,
)
from preprocess.readers import LOCATION, MISSING
from preprocess.workers import RESULT, UNREADABLE, worker_pool
from utils.cli import HelpFormatter, add_device_flag, run_main
from utils.distributed import choose_device
from utils.files import file_sha256, replaced, writable_folder
from utils.pipeline import available_cores, map_ahead

AHEAD = 3  # chunks a worker process finds waiting
REDONE = 64  # chunks that are aligned again before the journal is written anew


def parse_args():
    parser = argparse.ArgumentParser(prog="python -m preprocess.face_align",
                                     description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="folder of the photos")
    parser.add_argument("--dataset", required=True, metavar="NAME",
                        help="the NAME in NAME_train.csv")
    parser.add_argument("--list_dir", metavar="DIR",
                        help="folder of the lists, read and written; --data_dir without it")
    parser.add_argument("--min_face_size", type=int, default=20, help="pixels")
    parser.add_argument("--min_face_ratio", type=float, default=0.0,
                        help="smallest face as a share of the photo's shorter side; above 0 "
                        "large photos are faster and small faces are not found")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="processes, each on one CPU core; as many as there are cores")
    parser.add_argument("--restart", action="store_true",
                        help="begin again instead of continuing or keeping what is there")
    add_device_flag(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    data_dir, list_dir = Path(args.data_dir), Path(args.list_dir or args.data_dir)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"folder '{data_dir}' not found; --data_dir is the folder of the "
                                "photos")
    lists = {split: path for split in SPLITS
             if (path := list_dir / f"{args.dataset}_{split}.csv").is_file()}
    if not lists:
        raise FileNotFoundError(f"no list {args.dataset}_train.csv, {args.dataset}_valid.csv or "
                                f"{args.dataset}_test.csv in '{list_dir}'; write them with "
                                "python -m preprocess.generate_csv, or by hand with the columns "
                                "photo and age")
    writable_folder(list_dir)
    rank, world_size, local_size = (int(os.environ.get(name, default)) for name, default in (
        ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1)))
    workers = max(1, available_cores() // local_size) if args.workers is None else args.workers
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    settings = {"device": rank_device(args.device), "min_face_size": args.min_face_size,
                "min_face_ratio": args.min_face_ratio}
    FaceDetector(**settings)  # bad values end here, not in a worker
    with worker_pool(workers, data_dir, settings) as submit:
        for split, path in lists.items():
            align_list(path, split, args, settings, submit, workers, rank, world_size)


def rank_device(name):
    """Name of the device of this process: with torchrun, each one has a GPU of its own."""
    device = choose_device(name)
    if device.type == "cuda":
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return str(device)


def align_list(list_path, split, args, settings, submit, workers, rank, world_size):
    """Align one list, or this process's share of it, and merge when all shares are there."""
    target = list_path.with_name(f"{list_path.stem}_align.csv")
    if not args.restart and is_current(target, list_path):
        print(f"{target.name} is newer than its list: kept; --restart aligns it again")
        return
    row_count = _count_rows(list_path, args.data_dir)
    checksum = file_sha256(list_path)
    fingerprint = f"{checksum} {settings['min_face_size']} {settings['min_face_ratio']}"
    journal = Journal(target, fingerprint, row_count, rank, world_size)
    fill_journal(journal, list_path, args.data_dir, submit, workers, args.restart)
    if file_sha256(list_path) != checksum:
        raise ValueError(f"{list_path} was changed while it was aligned; start again")
    with contextlib.suppress(FileNotFoundError):  # another process has merged just now
        if all(each.is_complete() for each in journal.siblings()):
            write_results(journal, list_path, split, args.dataset)
        else:
            print(f"{journal.path.name} is complete; {target.name} is written when all parts are")


def _count_rows(list_path, data_dir):
    """Rows of a list of which some photo is there."""
    count, found = 0, False
    for row in read_rows(list_path, ["photo", "age"]):
        found = found or (row["photo"] and Path(data_dir, row["photo"]).is_file())
        count += 1
    if count and not found:
        raise FileNotFoundError(f"none of the {count} photos of {list_path}, such as "
                                f"'{row['photo']}', is in '{data_dir}'; name their folder with "
                                "--data_dir")
    return count


def fill_journal(journal, list_path, data_dir, submit, workers, restart):
    def my_chunks():
        return (rows for number, rows in chunks(read_rows(list_path, ["photo", "age"]))
                if journal.is_mine(number))

    done = journal.open(restart)
    counts = Counter()
    bar = tqdm(total=journal.expected, initial=done, unit=" photos", smoothing=0.05,
               desc=list_path.stem, disable=journal.rank > 0)
    with contextlib.closing(journal), bar:
        align_what_has_come(journal, my_chunks, data_dir, submit, workers)
        todo = itertools.islice(my_chunks(), -(-done // CHUNK), None)
        for results in map_ahead(submit, todo, workers * AHEAD):
            journal.write(results)
            counts.update("faces" if len(result) > 1 else "rejected" for result in results)
            bar.set_postfix(counts, refresh=False)
            bar.update(len(results))


def align_what_has_come(journal, my_chunks, data_dir, submit, workers):
    """Align the recorded chunks anew in which a photo was missing or broken and is there now."""
    stale, recorded = [], journal.reasons()
    for number, rows in enumerate(my_chunks()):
        reasons = list(itertools.islice(recorded, len(rows)))
        if len(reasons) < len(rows):
            break  # from here on nothing is recorded
        if any(map(functools.partial(has_come, data_dir), rows, reasons)):
            stale.append(number)
    if stale:
        print(f"{len(stale)} chunks of {CHUNK} photos are aligned again: photos in them have come "
              "since, or can be read by now")
    for start in range(0, len(stale), REDONE):
        some = stale[start:start + REDONE]
        rows = (rows for number, rows in enumerate(my_chunks()) if number in some)
        journal.replace_chunks(dict(zip(some, map_ahead(submit, rows, workers * AHEAD),
                                        strict=True)))


def has_come(data_dir, row, reason):
    """Whether a photo that was missing or broken in an earlier run can be read by now."""
    path = Path(data_dir, row["photo"])
    if reason == MISSING:
        return path.is_file()
    if reason != UNREADABLE:
        return False
    try:
        load_photo(path)
    except OSError:
        return False
    return True


def write_results(journal, list_path, split, dataset):
    """The aligned list and the list of rejected rows, from all processes' journals."""
    rows = read_rows(list_path, ["photo", "age"])
    reasons, faces = Counter(), 0
    rejected_path = list_path.with_name(f"{dataset}_rejected.csv")
    with replaced(journal.target) as target, replaced(rejected_path) as rejected_target, \
            target.open("w", encoding="utf-8", newline="") as file, \
            rejected_target.open("w", encoding="utf-8", newline="") as rejected_file:
        rejected = csv.writer(rejected_file, lineterminator="\n")
        rejected.writerow(["photo", "split", "reason"])
        rejected.writerows(rejected_elsewhere(rejected_path, split, list_path, dataset))
        aligned = None
        for row, (reason, *values) in merge(journal.siblings(), rows):
            row = {name: text for name, text in row.items() if name not in (*RESULT, *LOCATION)}
            if aligned is None:
                aligned = csv.writer(file, lineterminator="\n")
                aligned.writerow([*row, *RESULT])
            if reason:
                reasons[reason] += 1
                rejected.writerow([row["photo"], split, reason])
            else:
                faces += 1
                aligned.writerow([*row.values(), *values])
    for part in journal.target.parent.glob(f"{journal.target.stem}.part*of*"):
        part.unlink(missing_ok=True)
    total = faces + sum(reasons.values())
    print(f"{journal.target.name}: {faces:,} faces of {total:,} photos, "
          f"{sum(reasons.values())} rejected ({sum(reasons.values()) / max(total, 1):.2%})"
          + "".join(f"; {count} {reason}" for reason, count in reasons.most_common()))


def rejected_elsewhere(path, split, list_path, dataset):
    """Rows of the list of rejected photos that stem from the other lists there are."""
    if not path.is_file():
        return []
    others = {name for name in SPLITS
              if name != split and list_path.with_name(f"{dataset}_{name}.csv").is_file()}
    return [[row["photo"], row["split"], row["reason"]]
            for row in read_rows(path, ["photo", "split", "reason"]) if row["split"] in others]


if __name__ == "__main__":
    run_main(main)
