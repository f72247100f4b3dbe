"""Lists of photos -> NAME_{train,valid,test}_align.csv: find each face and how it is turned.

    python -m preprocess.face_align --dataset utkface --data_dir DIR

Works on every NAME_train.csv, NAME_valid.csv and NAME_test.csv with the columns photo and age,
written by preprocess.generate_csv or by hand. Adds the columns deg (degrees, the roll angle from
the first pass), box1..box4 (x1 y1 x2 y2, pixels of the photo turned by deg) and confidence
(0.7..1). Rows without a face go to NAME_rejected.csv with the reason. If a run was stopped, start
it again and it continues. Several processes or machines share the work if each is started with its
own number: RANK=0 WORLD_SIZE=4 python -m preprocess.face_align ..., RANK=1 WORLD_SIZE=4 ...
"""

import argparse
import csv
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from preprocess.columns import ALIGNED, LOCATION, SPLITS, age_label
from preprocess.face import MIN_FACE
from preprocess.repeats import describe_repeats
from preprocess.rows import (
    MISSING,
    check_rows,
    is_readable_now,
    is_replaced,
    photo_sizes,
    read_list,
)
from preprocess.shards import CHUNK_ROWS, Shards, chunk_count, chunks
from utils.cli import HelpFormatter, add_device_flag, count_text, run_main
from utils.device import device_name
from utils.files import (
    file_sha256,
    is_current,
    read_source_record,
    replaced,
    source_record,
    writable_folder,
)
from utils.locks import one_after_the_other
from utils.pipeline import available_cores, map_ahead
from utils.share import process_share
from utils.tables import read_columns, read_rows

PHOTO_BYTES = "photo_bytes"  # in the record of an aligned list: the sizes of the list's photos
AHEAD = 3  # chunks that wait for each worker process


@dataclass(frozen=True)
class Work:
    """What to do with each list, and which share of it this process has.

    data_dir: folder of the photos.
    align: function of an iterable of chunks (lists of rows); yields their results in order, see
        workers.align_rows.
    settings: text that changes with every setting that changes results.
    restart: align every photo again, also of a list that is finished.
    rank, world_size: number of this process, and how many processes share the work.
    """

    data_dir: Path
    align: Callable
    settings: str = ""
    restart: bool = False
    rank: int = 0
    world_size: int = 1


def parse_args():
    parser = argparse.ArgumentParser(prog="python -m preprocess.face_align",
                                     description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="folder of the photos")
    parser.add_argument("--dataset", required=True, metavar="NAME",
                        help="the NAME in NAME_train.csv")
    parser.add_argument("--list_dir", metavar="DIR",
                        help="folder of the lists, read and written; without it --data_dir")
    parser.add_argument("--min_face_size", type=int, default=MIN_FACE, help="pixels")
    parser.add_argument("--min_face_ratio", type=float, default=0.0,
                        help="smallest face as a share of the photo's shorter side; a larger "
                        "value is faster on large photos and misses small faces")
    parser.add_argument("--any_rotation", action="store_true",
                        help="find faces that lie on their side or upside down too; three to "
                             "five times as slow")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="processes, each on one CPU core; without it one for each core")
    parser.add_argument("--restart", action="store_true",
                        help="align every photo again, even if a list is aligned already; if "
                             "stopped, it goes on when the same command is started again")
    add_device_flag(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    data_dir, list_dir = Path(args.data_dir), Path(args.list_dir or args.data_dir)
    lists = find_lists(data_dir, list_dir, args.dataset)
    writable_folder(list_dir, "--list_dir")
    rank, world_size = process_share()
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    workers = max(1, available_cores() // processes_here) if args.workers is None else args.workers
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")

    from preprocess.detector import FaceDetector  # imported here: OpenCV takes longer than -h may
    from preprocess.workers import worker_pool

    settings = {"device": device_of_process(args.device), "min_face_size": args.min_face_size,
                "min_face_ratio": args.min_face_ratio, "any_rotation": args.any_rotation}
    FaceDetector(**settings)  # raises for bad values, before the workers start
    with worker_pool(workers, data_dir, settings) as submit:
        work = Work(data_dir, align=partial(map_ahead, submit, ahead=workers * AHEAD),
                    settings=settings_text(args), restart=args.restart, rank=rank,
                    world_size=world_size)
        align_lists(lists, work)


def settings_text(args):
    """Text that changes with every flag that changes results.

    Flags that were added later count only if they are set, so that a run that an earlier version
    began goes on.
    """
    return f"{args.min_face_size} {args.min_face_ratio}{' any_rotation' * args.any_rotation}"


def find_lists(data_dir, list_dir, dataset):
    """Paths of the lists of a data set, one for each split that has one.

    Raises:
        FileNotFoundError: there is no list, or no folder of photos.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"folder '{data_dir}' not found; --data_dir is the folder of the "
                                "photos")
    lists = [path for split in SPLITS if (path := list_dir / f"{dataset}_{split}.csv").is_file()]
    if not lists:
        raise FileNotFoundError(f"no list {dataset}_train.csv, {dataset}_valid.csv or "
                                f"{dataset}_test.csv in '{list_dir}'; write them with "
                                "python -m preprocess.generate_csv, or by hand with the columns "
                                "photo and age")
    return lists


def device_of_process(name):
    """Name of the device of this process; with torchrun each process has its own GPU."""
    device = device_name(name)
    if device != "cuda":
        return device
    import torch  # on a CPU nothing needs it
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


def align_lists(lists, work):
    """Align the lists in turn; a restart that was stopped goes on at the list that it had reached.

    lists: paths, in the order in which the stopped run went through them.
    """
    reached = [place for place, path in enumerate(lists)
               if shards_of(path, file_sha256(path), work).folder.is_dir()]
    first = reached[0] if work.restart and reached else 0
    for path in lists[:first]:
        align_list(path, replace(work, restart=False))
    for path in lists[first:]:
        align_list(path, work)


def shards_of(list_path, checksum, work):
    """The Shards of a list; a restart has its own, which are new unless it was stopped."""
    return Shards(aligned_path(list_path),
                  f"{checksum} {work.settings}{' restart' * work.restart}")


def aligned_path(list_path):
    return list_path.with_name(f"{list_path.stem}_align.csv")


def align_list(list_path, work):
    """Align NAME_SPLIT.csv, or this process's share of it; write the result if all is done."""
    target = aligned_path(list_path)
    if not work.restart and is_aligned(target, list_path, work.data_dir):
        print(f"{target.name} is aligned already: kept, with the settings that it was aligned "
              "with; --restart aligns it again")
        return
    row_count = check_rows(list_path, work.data_dir)
    checksum = file_sha256(list_path)
    shards = shards_of(list_path, checksum, work)
    others = shards.count_others()
    if others and not shards.folder.is_dir():
        print(f"{target.name} begins again: {others} chunks of {CHUNK_ROWS} photos were aligned "
              "with other settings, for an earlier list or before --restart, and are not used")
    elif work.restart and shards.folder.is_dir():
        print(f"{target.name}: a --restart that was stopped, or that other processes share, goes "
              f"on; to begin again, delete '{shards.folder}'")
    if not work.restart and is_current(target, list_path):
        other = count_replaced(target, list_path, work.data_dir)
        found = count_found(list_path, work.data_dir)
        reasons = [f"{count_text(count, 'photo')} of '{work.data_dir}' {reason} when it was aligned"
                   for count, reason in (
                       (other, "had another size"),
                       (found, "was not there" if found == 1 else "were not there")) if count]
        print(f"{target.name} is aligned again: {', '.join(reasons)}")
    shards.folder.mkdir(exist_ok=True)
    # Perhaps another process has finished since the first look, and its chunks are gone.
    if not work.restart and is_aligned(target, list_path, work.data_dir):
        shards.remove_all()
        print(f"{target.name} was finished by another process")
        return
    try:
        fill_shards(shards, list_path, row_count, work)
        if file_sha256(list_path) != checksum:
            raise ValueError(f"{list_path} was changed while it was aligned; start again")
        if all(shards.is_done(number) for number in range(chunk_count(row_count))):
            write_results(shards, list_path, checksum)
        else:
            print(f"the share of process {work.rank} is done; the last process to finish writes "
                  f"{target.name}")
    except FileNotFoundError:
        if not is_aligned(target, list_path, work.data_dir):
            raise
        print(f"{target.name} was finished by another process")


def is_aligned(target, list_path, data_dir):
    """Whether an aligned list was made from the list and the photos as they are."""
    return is_current(target, list_path) and not (
        count_replaced(target, list_path, data_dir) or count_found(list_path, data_dir))


def count_replaced(target, list_path, data_dir):
    """How many photos of a list have another size than those that its aligned list was made from.

    It is 0 if an earlier version aligned the list, which kept no sizes.
    """
    before = read_source_record(target).get(PHOTO_BYTES, [])
    now = photo_sizes(data_dir, read_list(list_path)) if before else []
    return sum(map(is_replaced, before, now))


def count_found(list_path, data_dir):
    """How many photos of a list were rejected as missing, and are there by now."""
    path, split = rejected_path(list_path), list_path.stem.rsplit("_", 1)[1]
    rows = read_rows(path, ["photo", "split", "reason"]) if path.is_file() else []
    return sum(row["split"] == split and row["reason"] == MISSING and
               is_readable_now(data_dir, row, MISSING) for row in rows)


def rejected_path(list_path):
    """The list of rejected rows of all splits of a data set."""
    return list_path.with_name(f"{list_path.stem.rsplit('_', 1)[0]}_rejected.csv")


def fill_shards(shards, list_path, row_count, work):
    """Align the chunks of this process that are not done yet."""
    def my_chunks(is_wanted):
        return ((number, rows) for number, rows in chunks(read_list(list_path))
                if number % work.world_size == work.rank and is_wanted(number))

    forget_outdated(shards, my_chunks(shards.is_done), work)
    sizes = {number: min(CHUNK_ROWS, row_count - number * CHUNK_ROWS)
             for number in range(work.rank, chunk_count(row_count), work.world_size)}
    done = sum(size for number, size in sizes.items() if shards.is_done(number))
    # The sizes are read before the photos: of one that is replaced between the two, the size does
    # not fit, and it is aligned again.
    todo, sent = itertools.tee((number, rows, photo_sizes(work.data_dir, rows)) for number, rows
                               in my_chunks(lambda number: not shards.is_done(number)))
    counts = Counter()
    with tqdm(total=sum(sizes.values()), initial=done, unit=" photos", smoothing=0.05,
              desc=list_path.stem, disable=work.rank > 0) as bar:
        aligned = work.align(rows for _, rows, _ in sent)
        for (number, _, sizes), results in zip(todo, aligned, strict=False):
            shards.write(number, results, sizes)
            counts.update("faces" if len(result) > 1 else "rejected" for result in results)
            bar.set_postfix(counts, refresh=False)
            bar.update(len(results))


def forget_outdated(shards, done_chunks, work):
    """Forget finished chunks with photos that were replaced, or that could not be read and can now.

    done_chunks: iterable of (number, rows).
    """
    outdated = 0
    for number, rows in done_chunks:
        if any(is_replaced(before, now) or is_readable_now(work.data_dir, row, result[0])
               for row, now, (result, before) in zip(rows, photo_sizes(work.data_dir, rows),
                                                     shards.read(number), strict=False)):
            shards.forget(number)
            outdated += 1
    if outdated:
        print(f"chunks of {CHUNK_ROWS} photos that are aligned again: {outdated}, as photos in "
              "them were replaced, or could not be read and can be read now")


def write_results(shards, list_path, checksum):
    """Write the aligned list and the list of rejected rows from the results of all processes.

    checksum: SHA-256 of the list, for the record of what the aligned list was made from.
    """
    dataset, split = list_path.stem.rsplit("_", 1)
    rejected_list = rejected_path(list_path)
    reasons, faces, sizes = Counter(), [], []
    columns = [name for name in read_columns(list_path, ["photo", "age"])
               if name not in (*ALIGNED, *LOCATION)]
    # The record is put in its place last. If it is not any more, the aligned list does not fit the
    # record that is there, and is made again.
    with one_after_the_other(rejected_list), \
            replaced(source_record(shards.target)) as record, replaced(shards.target) as target, \
            replaced(rejected_list) as rejected_target, \
            target.open("w", encoding="utf-8", newline="") as file, \
            rejected_target.open("w", encoding="utf-8", newline="") as rejected_file:
        rejected = csv.writer(rejected_file, lineterminator="\n")
        rejected.writerow(["photo", "split", "reason"])
        rejected.writerows(rejected_elsewhere(rejected_list, split, list_path, dataset))
        aligned = csv.writer(file, lineterminator="\n")
        aligned.writerow([*columns, *ALIGNED])
        for row, ((reason, *values), size) in shards.merge(read_list(list_path)):
            sizes.append(size)
            if reason:
                reasons[reason] += 1
                rejected.writerow([row["photo"], split, reason])
            else:
                faces.append(((row["photo"], *values[:-1]), age_label(row)))
                aligned.writerow([*(row[name] for name in columns), *values])
        record.write_text(json.dumps({"sha256": checksum, PHOTO_BYTES: sizes}), encoding="utf-8")
    shards.remove_all()
    total = len(faces) + sum(reasons.values())
    print(f"{shards.target.name}: {count_text(len(faces), 'face')} of "
          f"{count_text(total, 'photo')}, {sum(reasons.values())} rejected "
          f"({sum(reasons.values()) / max(total, 1):.2%})"
          + "".join(f"; {count} {reason}" for reason, count in reasons.most_common()))
    repeats = describe_repeats(faces)
    if repeats:
        print(f"{list_path.name}: {repeats}. A row without face_x1, face_y1, face_x2 and face_y2 "
              "is about the largest face of its photo")


def rejected_elsewhere(path, split, list_path, dataset):
    """Rows of the existing list of rejected photos that belong to other splits' lists."""
    if not path.is_file():
        return []
    others = {name for name in SPLITS
              if name != split and list_path.with_name(f"{dataset}_{name}.csv").is_file()}
    return [[row["photo"], row["split"], row["reason"]]
            for row in read_rows(path, ["photo", "split", "reason"]) if row["split"] in others]


if __name__ == "__main__":
    run_main(main)
