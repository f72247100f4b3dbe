"""The rows of a list before it is aligned: what is wrong with them, and how their photos are."""

import warnings
from contextlib import suppress
from pathlib import Path

from defaults import MAX_NUMBER, load_cfg
from preprocess.columns import LOCATION, clean_path
from preprocess.face import box_problem, load_photo, stop_unless_damaged
from utils.tables import number_of, read_rows

MISSING, UNREADABLE = "file missing", "unreadable image"  # reasons to leave a photo out
NO_NUMBER = ("", "nan", "NaN")  # empty, as pandas may write it
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
        found = found or (row["photo"] and is_file(Path(data_dir, row["photo"])))
        count += 1
        if problem := spread_problem(row):
            refused.append(f"{problem} ({row['photo']})")
        if problem := votes_problem(row) or interval_problem(row) or range_problem(row, data):
            doubtful.append(f"{problem} ({row['photo']})")
    if count and not found:
        raise FileNotFoundError(f"none of the {count} photos of {list_path}, such as "
                                f"'{row['photo']}', is in '{data_dir}'; put them there, name "
                                "another folder with --data_dir, or remove the list")
    if refused:
        raise ValueError(f"{list_path}: training refuses {len(refused)} of {count} rows; correct "
                         f"them, or leave the column out: {'; '.join(refused[:MAX_SHOWN])}")
    if doubtful:
        warnings.warn(f"{list_path}: training may refuse {len(doubtful)} of {count} rows; correct "
                      "them now, as a change of the list aligns all its photos again: "
                      f"{'; '.join(doubtful[:MAX_SHOWN])}", stacklevel=2)
    return count


def ages_of(record):
    """The age and, if given, the interval of a table's row; or text that says what is wrong."""
    ages = {}
    for name in ("age", "age_min", "age_max"):
        text = record.get(name, "").strip()
        ages[name] = "" if text in NO_NUMBER else number_of(text)
        if ages[name] is None:
            return f"{name} '{text}' is not a number"
    age, low, high = ages.values()
    if low == high == "":
        return ages if age != "" else "no age"
    if "" in (low, high) or low > high:
        low, high = (record.get(name, "").strip() for name in ("age_min", "age_max"))
        return f"age_min '{low}' to age_max '{high}' is not an interval"
    if low != int(low) or high != int(high):
        return f"age_min {low:g} to age_max {high:g} are not whole years"
    if age == "":
        return ages | {"age": (low + high) / 2}
    return ages if low <= age < high + 1 else f"age {age:g} is outside age_min to age_max"


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


def location_problem(row, size=None):
    """What is wrong with the box of the face that a row is about, or None; it may have no box.

    Args:
        row: dict with perhaps the columns LOCATION, text or numbers.
        size: (width, height) of the photo, if known.
    """
    texts = [str(row.get(name, "")).strip() for name in LOCATION]
    if not any(texts):
        return None
    box = list(map(number_of, texts))
    if None in box:
        return f"{', '.join(LOCATION)} are not four numbers"
    return box_problem(box, size, LOCATION)


def spread_problem(row):
    """What is wrong with a row's age_std, text that may be missing; or None."""
    spread = _in_one_line(row.get("age_std", ""))
    if spread in NO_NUMBER:
        return None
    number = number_of(spread)
    if number is None:
        return f"age_std '{spread}' is not a number"
    return f"age_std '{spread}' is negative" if number < 0 else None


def votes_problem(row):
    """What is wrong with a row's votes, text that may be missing; or None."""
    try:
        votes_of(row.get("votes", ""))
    except ValueError as error:
        return str(error)
    return None


def votes_of(text):
    """[(age, weight), ...] of votes such as '23:3 24:7'.

    Raises:
        ValueError: a pair is not two finite numbers, or a weight is negative or more than
            MAX_NUMBER; names the pair.
    """
    votes = []
    for pair in text.split():
        numbers = tuple(map(number_of, pair.split(":")))
        if len(numbers) != 2 or None in numbers or not 0 <= numbers[1] <= MAX_NUMBER:
            raise ValueError(f"'{pair}' in votes '{_in_one_line(text)}' is not age:weight")
        votes.append(numbers)
    return votes


def _in_one_line(text):
    return " ".join(text.split())


def photo_sizes(data_dir, rows):
    """Bytes of the photo of each row; None for one that is missing.

    They tell whether a photo was replaced. Unlike its time they are the same on all machines.
    """
    paths = [Path(data_dir, row["photo"]) for row in rows]
    return [path.stat().st_size if is_file(path) else None for path in paths]


def is_file(path):
    """Whether there is a file, at a Path that may be too long for one."""
    with suppress(OSError):
        return path.is_file()
    return False


def is_replaced(before, now):
    """Whether a photo has another size than before; None, for an unknown size, fits any."""
    return None not in (before, now) and before != now


def is_readable_now(data_dir, row, reason):
    """Whether the photo of a row that was rejected for `reason` can be read by now."""
    path = Path(data_dir, row["photo"])
    if reason == MISSING:
        return is_file(path)
    if reason != UNREADABLE:
        return False
    try:
        load_photo(path)
    except (OSError, MemoryError) as error:
        stop_unless_damaged(error, path, data_dir)
        return False
    return True
