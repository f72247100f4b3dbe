"""The rows of a list before it is aligned: what is wrong with them, and how their photos are."""

import warnings
from pathlib import Path

from defaults import load_cfg
from preprocess.columns import clean_path
from preprocess.face import load_photo, stop_unless_damaged
from preprocess.readers import (
    MISSING,
    UNREADABLE,
    ages_of,
    number_of,
    spread_problem,
    votes_problem,
)
from utils.tables import read_rows

MAX_SHOWN = 5  # rows of a list that a message names


def read_list(list_path):
    """Yield the rows of a list as dicts of text."""
    for row in read_rows(list_path, ["photo", "age"]):
        yield row | {"photo": clean_path(row["photo"])}


def check_rows(list_path, data_dir):
    """Look at a list before its photos, as every correction of it aligns all of them again.

    Warns of labels that training refuses with the default config, or with LOSS.LABEL votes.

    Returns:
        number of rows.
    Raises:
        FileNotFoundError: none of the photos exists.
        ValueError: labels that training always refuses.
    """
    data = load_cfg().DATA
    count, found, refused, doubtful = 0, False, [], []
    for row in read_list(list_path):
        found = found or (row["photo"] and Path(data_dir, row["photo"]).is_file())
        count += 1
        if problem := spread_problem(row):
            refused.append(f"{problem} ({row['photo']})")
        if problem := votes_problem(row) or interval_problem(row) or range_problem(row, data):
            doubtful.append(f"{problem} ({row['photo']})")
    if count and not found:
        raise FileNotFoundError(f"none of the {count} photos of {list_path}, such as "
                                f"'{row['photo']}', is in '{data_dir}'; name their folder with "
                                "--data_dir")
    if refused:
        raise ValueError(f"{list_path}: training refuses {len(refused)} of {count} rows; correct "
                         f"them, or leave the column out: {'; '.join(refused[:MAX_SHOWN])}")
    if doubtful:
        warnings.warn(f"{list_path}: training may refuse {len(doubtful)} of {count} rows; correct "
                      "them now, as a change of the list aligns all its photos again: "
                      f"{'; '.join(doubtful[:MAX_SHOWN])}", stacklevel=2)
    return count


def interval_problem(row):
    """What is wrong with a row's age_min and age_max, or None; the row may have none."""
    if not (row.get("age_min") or row.get("age_max")):
        return None
    ages = ages_of(row)
    return ages if isinstance(ages, str) else None


def range_problem(row, data):
    """Text that names the age of a row if there is no bin for it, or None; data: cfg.DATA."""
    age = number_of(row["age"])
    if age is None or row.get("age_min") or data.AGE_MIN <= age <= data.AGE_MAX:
        return None
    return f"age {age:g} is outside DATA.AGE_MIN {data.AGE_MIN} to DATA.AGE_MAX {data.AGE_MAX}"


def photo_sizes(data_dir, rows):
    """Bytes of the photo of each row; None for one that is missing.

    They tell whether a photo was replaced. Unlike its time they are the same on all machines.
    """
    paths = [Path(data_dir, row["photo"]) for row in rows]
    return [path.stat().st_size if path.is_file() else None for path in paths]


def is_replaced(before, now):
    """Whether a photo has another size than before; None, for an unknown size, fits any."""
    return None not in (before, now) and before != now


def is_readable_now(data_dir, row, reason):
    """Whether the photo of a row that was rejected for `reason` can be read by now."""
    path = Path(data_dir, row["photo"])
    if reason == MISSING:
        return path.is_file()
    if reason != UNREADABLE:
        return False
    try:
        load_photo(path)
    except (OSError, MemoryError) as error:
        stop_unless_damaged(error, path)
        return False
    return True
