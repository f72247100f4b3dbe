"""Lists of faces: which data sets a folder holds, and one checked table for each split.

A list is NAME_train_align.csv, NAME_valid_align.csv or NAME_test_align.csv, or a table of
APPA-REAL as released. preprocess/columns.py documents the columns.
"""

import fnmatch
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from metrics import label_bins
from preprocess.columns import BOX, SPLITS, clean_path
from preprocess.readers import (
    APPA_REAL_LABELS,
    CROP_ENDING,
    Skipped,
    appa_real_rows,
    appa_real_table,
)
from preprocess.repeats import describe_repeats
from preprocess.rows import NO_NUMBER, is_file, votes_of
from utils.files import is_current
from utils.tables import number_of, read_columns, table_format

PLACE = ["photo", "deg", *BOX]  # tells faces apart
REQUIRED = ["photo", "age", "deg", *BOX]
NUMBERS = ["age_std", "age_min", "age_max", "confidence"]
OPTIONAL = [*NUMBERS, "gender", "race", "subject", "votes"]
ABSOLUTE = re.compile("/|[A-Za-z]:/")  # how an absolute path begins, also one of Windows
MAX_LISTED = 20  # an error shows so many bad rows and counts the others


class Source(NamedTuple):
    """A data set on disk.

    data_dir: folder of the photos; the column photo is relative to it.
    dataset: the NAME in the file names of the lists.
    list_dir: folder of the lists.
    """

    data_dir: str | Path
    dataset: str
    list_dir: str | Path

    def file(self, part):
        """Path of NAME_part.csv in the folder of the lists."""
        return Path(self.list_dir, f"{self.dataset}_{part}.csv")


def pair_folders(data_dirs, datasets, list_dirs):
    """A list of Source, one for each data set, from the words after the flags.

    Args:
        data_dirs: folders after --data_dir. A single one is the folder of all data sets. None
            is refused.
        datasets: names after --dataset; None means the only data set in each folder.
        list_dirs: folders after --list_dir; None means data_dirs.
    Raises:
        ValueError: no folders, the counts do not match, a folder holds no data set or several, or
            a data set is named twice.
        FileNotFoundError: a folder does not exist.
    """
    if not data_dirs:
        raise ValueError("no --data_dir: name the folder of the photos")
    count = max(len(data_dirs), len(datasets or []))
    if len(data_dirs) not in (1, count) or (datasets and len(datasets) != count):
        raise ValueError(f"{len(data_dirs)} folders after --data_dir but {len(datasets)} names "
                         "after --dataset; give one name for each folder, or one folder for all")
    data_dirs = list(data_dirs) * (count if len(data_dirs) == 1 else 1)
    list_dirs = list(list_dirs or data_dirs)
    if len(list_dirs) not in (1, count):
        raise ValueError(f"{len(list_dirs)} folders after --list_dir for {count} data sets")
    list_dirs *= count if len(list_dirs) == 1 else 1
    for flag, folders in (("--data_dir", data_dirs), ("--list_dir", list_dirs)):
        for folder in folders:
            if not Path(folder).is_dir():
                raise FileNotFoundError(f"{flag}: folder '{folder}' not found")
    names = datasets or [_only_dataset(folder) for folder in list_dirs]
    sources = [Source(*words) for words in zip(data_dirs, names, list_dirs, strict=True)]
    places = [(Path(source.data_dir).resolve(), source.dataset) for source in sources]
    for place, source in zip(places, sources, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"data set '{source.dataset}' in '{source.data_dir}' is named "
                             f"{places.count(place)} times; its faces would count as often")
    return sources


def find_datasets(list_dir):
    """Names of the data sets in a folder: those with aligned lists, else APPA-REAL as released."""
    names = {path.name.removesuffix(f"_{split}_align.csv")
             for split in SPLITS for path in Path(list_dir).glob(f"*_{split}_align.csv")}
    if not names and any(appa_real_table(list_dir, split).is_file() for split in SPLITS):
        names = {"appa_real"}
    return sorted(names)


def _only_dataset(list_dir):
    names = find_datasets(list_dir)
    if not names:
        raise ValueError(f"'{list_dir}' holds no data set: no NAME_train_align.csv and no "
                         f"gt_avg_train.csv; {_how_to_align(list_dir)}")
    if len(names) > 1:
        raise ValueError(f"'{list_dir}' holds {len(names)} data sets; choose with --dataset: "
                         f"{', '.join(names)}")
    return names[0]


def _how_to_align(list_dir, dataset="*"):
    """What to do if aligned lists are missing: the command if there are lists to align."""
    for split in SPLITS:
        for path in sorted(Path(list_dir).glob(f"{dataset}_{split}.csv")):
            if _is_list(path):  # and not a table that a data set was released with
                name = path.name.removesuffix(f"_{split}.csv")
                return f"align '{path}' with {_align_command(list_dir, name)}"
    return "docs/data.md says how to prepare one"


def _align_command(list_dir, dataset):
    return (f"python -m preprocess.face_align --dataset {dataset} --list_dir {list_dir} "
            "--data_dir DIR, the folder of its photos")


def _is_list(path):
    try:
        read_csv(path, ["photo", "age"])
    except ValueError:
        return False
    return True


def warn_of_stale_lists(sources):
    """Warn if an aligned list was made from another list; sources: list of Source."""
    for source in sources:
        for split in SPLITS:
            path, aligned = source.file(split), source.file(f"{split}_align")
            if path.is_file() and aligned.is_file() and not is_current(aligned, path):
                warnings.warn(f"{path} has changed since it was aligned, so its new faces or ages "
                              "are not used; start "
                              f"{_align_command(source.list_dir, source.dataset)}", stacklevel=2)


def read_sources(sources, split, cfg, protocol=None):
    """One split of several data sets as one table; sources: list of Source."""
    return pd.concat([read_faces(source, split, cfg, protocol) for source in sources],
                     ignore_index=True)


def count_faces(faces, source):
    """How many faces of a table of read_sources come from one Source."""
    return int(((faces["root"] == str(source.data_dir))
                & (faces["dataset"] == source.dataset)).sum())


def read_faces(source, split, cfg, protocol=None):
    """One split of one data set as a checked table.

    Args:
        source: Source.
        split: train, valid or test.
        cfg: the config; only the section DATA matters.
        protocol: name of a split file NAME_split_PROTOCOL.csv, which replaces the lists' split.
    Returns:
        DataFrame with the columns root, dataset, REQUIRED and OPTIONAL. Missing optional values
        are NaN or None. deg and the box are NaN if the list has none. age_min and
        age_max equal age if the age is exact.
    Raises:
        FileNotFoundError: there is no such list; the message names the splits that exist.
        ValueError: a column is missing, or rows are bad; the message names the first rows.
    """
    faces = _exclude(_read_list(source, split, cfg, protocol), cfg.DATA.EXCLUDE)
    if faces.empty:
        problem = f"the {split} list of '{source.dataset}' in '{source.list_dir}' holds no faces"
        if cfg.DATA.EXCLUDE:
            problem += f"; DATA.EXCLUDE '{cfg.DATA.EXCLUDE}' leaves photos out"
        if count_rejected(source, split) not in ("unknown", 0):
            problem += f"; alignment left photos out, see {source.file('rejected')}"
        raise ValueError(problem)
    faces.insert(0, "root", str(source.data_dir))
    faces.insert(1, "dataset", source.dataset)
    _check_rows(faces, cfg)
    is_exact = faces["age_min"] == faces["age_max"]  # such as 29 to 29 of a person of 29.7 years
    faces.loc[is_exact, ["age_min", "age_max"]] = faces.loc[is_exact, ["age", "age"]].to_numpy()
    _warn_of_repeats(faces)
    return faces


def list_file(source, split, protocol=None):
    """Path of the file that decides which faces read_faces reads.

    It is the protocol's file, or the aligned list. For APPA-REAL it is the released table of
    labels if no split at all has an aligned list, so that all splits of a run are cut out in the
    same way.

    Raises:
        FileNotFoundError: the file does not exist; the message names the splits that do.
    """
    if protocol:
        return source.file(f"split_{protocol}")
    path = _list_path(source, split)
    if path.is_file():
        return path
    there = splits_of(source)
    if there:
        way_out = f"start {_align_command(source.list_dir, source.dataset)}" \
            if source.file(split).is_file() else \
            f"{path.name.replace('_align', '')} does not exist either: " \
            "preprocess.generate_csv writes it if there are photos for it"
        raise FileNotFoundError(f"data set '{source.dataset}' in '{source.list_dir}' has no "
                                f"{split} split; it has {', '.join(there)}; {way_out}")
    how = _how_to_align(source.list_dir, source.dataset)
    found = find_datasets(source.list_dir)
    if not found:
        raise FileNotFoundError(f"'{source.list_dir}' holds no data set; {how}")
    raise FileNotFoundError(f"'{source.list_dir}' holds no {path.name}; it holds "
                            f"{', '.join(found)}: choose with --dataset, or {how}")


def _list_path(source, split):
    aligned = {name: source.file(f"{name}_align") for name in SPLITS}
    if source.dataset == "appa_real" and not any(path.is_file() for path in aligned.values()):
        return appa_real_table(source.list_dir, split)
    return aligned[split]


def splits_of(source, protocol=None):
    """The splits, of train, valid and test, that a data set's lists or a protocol's file hold."""
    if protocol:
        chosen = set(read_columns(source.file(f"split_{protocol}"), ["split"])["split"])
        return [split for split in SPLITS if split in chosen]
    return [split for split in SPLITS if _list_path(source, split).is_file()]


def _read_list(source, split, cfg, protocol):
    if protocol:
        return _read_protocol(source, split, protocol, cfg)
    return _read_split(source, split, cfg)


def _read_split(source, split, cfg):
    path = list_file(source, split)
    if path == appa_real_table(source.list_dir, split):
        return _read_appa_real(path, split, cfg.DATA.APPA_REAL_LABEL)
    if source.dataset == "appa_real" and cfg.DATA.APPA_REAL_LABEL == "real":
        warnings.warn(f"{path} holds the ages that preprocess.generate_csv --appa_real_label "
                      "chose; DATA.APPA_REAL_LABEL only matters for a folder without aligned lists",
                      stacklevel=2)
    return _read_align(path)


def _read_protocol(source, split, protocol, cfg):
    path = source.file(f"split_{protocol}")
    if not path.is_file():
        raise FileNotFoundError(f"protocol file '{path}' not found; protocols there: "
                                f"{', '.join(_protocols_of(source)) or 'none'}")
    chosen = read_csv(path, ["photo", "split"])
    chosen["photo"] = chosen["photo"].map(clean_path)
    unknown = sorted(set(chosen["split"]) - set(SPLITS))
    if unknown:
        raise ValueError(f"{path}: split '{unknown[0]}' is not one of {', '.join(SPLITS)}")
    is_trained = chosen["split"] == "train"
    both = sorted({*chosen.loc[is_trained, "photo"]} & {*chosen.loc[~is_trained, "photo"]})
    if both:
        raise ValueError(f"{path}: a photo that is trained on may be in no other split: "
                         f"{listed(both)}")
    if split not in set(chosen["split"]):
        raise FileNotFoundError(f"protocol '{path}' has no {split} split; it has "
                                f"{', '.join(sorted(set(chosen['split'])))}: complete it")
    lists = [_read_split(source, there, cfg) for there in splits_of(source)]
    for faces in lists:  # a face may be in two lists, or twice in one
        faces["number"] = faces.groupby(PLACE, dropna=False).cumcount()
    faces = pd.concat(lists, ignore_index=True).drop_duplicates([*PLACE, "number"])
    faces = faces.drop(columns="number")
    wanted = set(chosen.loc[chosen["split"] == split, "photo"])
    faces = faces[faces["photo"].isin(wanted)]
    if faces.empty:
        raise ValueError(f"{path}: none of its {split} photos is in the lists of "
                         f"'{source.dataset}'")
    rejected = _read_rejected(source)
    lost = sorted(wanted - set(faces["photo"]) - set(() if rejected is None else rejected["photo"]))
    if lost:
        warnings.warn(f"{path}: {len(lost)} of its {len(wanted)} {split} photos, such as "
                      f"'{lost[0]}', are neither in the lists of '{source.dataset}' nor rejected "
                      "by its alignment: the figures are of a part of the protocol", stacklevel=2)
    return faces.reset_index(drop=True)


def _protocols_of(source):
    return sorted(path.stem.removeprefix(f"{source.dataset}_split_")
                  for path in Path(source.list_dir).glob(f"{source.dataset}_split_*.csv"))


def find_protocols(sources, patterns):
    """Sorted names of the protocols that match any of the patterns.

    Args:
        sources: list of Source.
        patterns: names, or patterns such as 'rotation*'.
    Raises:
        FileNotFoundError: a pattern matches no protocol of any data set.
    """
    known = sorted({protocol for source in sources for protocol in _protocols_of(source)})
    chosen = []
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise FileNotFoundError(f"protocol '{pattern}' not found; protocols there: "
                                    f"{', '.join(known) or 'none'}")
        chosen += found
    return sorted(set(chosen))


def read_csv(path, required):
    """A table as a DataFrame of text columns; see utils.tables.read_rows."""
    return pd.DataFrame(read_columns(path, required), dtype=str)


def _read_align(path):
    faces = _typed(read_csv(path, REQUIRED), path)
    no_box = faces[["deg", *BOX]].isna().any(axis=1)
    bad = no_box | ~(faces["box3"] > faces["box1"]) | ~(faces["box4"] > faces["box2"])
    _refuse_rows(faces, bad, f"{path}: deg is not a number, or the box is empty",
                 ["photo", "deg", *BOX])
    return faces


def _read_appa_real(path, split, label):
    """APPA-REAL's released face crops, which have no box, with the labels of gt_avg_SPLIT.csv."""
    rows = [{"photo": row.photo, "age": ""} if isinstance(row, Skipped) else row
            for row in appa_real_rows(path.parent, split, label)]
    if rows and all(row["age"] == "" for row in rows):
        raise ValueError(f"{path}: the column {APPA_REAL_LABELS[label]} is empty; choose the other "
                         "label with DATA.APPA_REAL_LABEL apparent|real")
    table = pd.DataFrame(rows, columns=["photo", "age", "age_std", "votes"])
    return _typed(table.fillna("").astype(str), path)


def _typed(table, path):
    """The columns of read_faces, with their types, from a table of text columns."""
    faces = pd.DataFrame({"photo": table["photo"].map(clean_path)})
    for name in [*REQUIRED[1:], *NUMBERS]:
        faces[name] = _to_numbers(table, name, path)
    for name in OPTIONAL[len(NUMBERS):]:
        faces[name] = table[name].replace("", None) if name in table else None
    _refuse_rows(faces, faces["age_min"].isna() != faces["age_max"].isna(),
                 f"{path}: age_min or age_max alone is not an interval",
                 ["photo", "age_min", "age_max"])
    for name in ("age_min", "age_max"):
        faces[name] = faces[name].fillna(faces["age"])
    faces["age"] = faces["age"].fillna((faces["age_min"] + faces["age_max"]) / 2)
    return faces


def _to_numbers(table, name, path):
    """A text column as float64. Empty text and a missing column are NaN."""
    if name not in table:
        return np.full(len(table), np.nan)
    text = table[name].str.strip()
    values = text.map(number_of).to_numpy(float)  # NaN for None
    bad = np.isnan(values) & ~text.isin(NO_NUMBER)
    _refuse_rows(table, bad, f"{path}: {name} is not a number", ["photo", name])
    return values


def parse_votes(text, age_bins):
    """The votes as a histogram over the age bins.

    Args:
        text: '23:3 24:7', age:weight pairs in any order.
        age_bins: (K,) whole years, step 1; an age counts for the bin that it rounds to, one
            outside of them for the nearest.
    Returns:
        (K,) float32 weights, not normalised.
    Raises:
        ValueError: a pair is malformed, or a weight is negative.
    """
    histogram = np.zeros(len(age_bins), np.float32)
    for age, weight in votes_of(text):
        histogram[label_bins(age, age_bins)] += weight
    return histogram


def count_excluded(sources, splits, cfg, protocol=None):
    """(faces that DATA.EXCLUDE leaves out, faces without it) of some splits of the data sets."""
    before = after = 0
    for source in sources:
        for split in splits:
            faces = _read_list(source, split, cfg, protocol)
            before += len(faces)
            after += len(_exclude(faces, cfg.DATA.EXCLUDE))
    return before - after, before


def _exclude(faces, path):
    """Drop the photos that a line of an exclusion list names, or its first column.

    A name is a path as in the list of faces, a file name, or an absolute path, which may begin with
    the folders of another machine.
    """
    if not path or faces.empty:
        return faces
    if Path(path).is_file() and not Path(path).read_bytes().strip():
        return faces  # a script that found nothing to exclude wrote it
    table = read_csv(path, [])
    encoding, _ = table_format(Path(path), [])
    lines = Path(path).read_text(encoding=encoding).splitlines()  # of names that hold a comma
    names = {*table.iloc[:, 0], table.columns[0], *lines}  # the list may have no header row
    names = {clean_path(name) for name in names}
    paths = names | {name[place.end():] for name in names if ABSOLUTE.match(name)
                     for place in re.finditer("/", name)}
    file_names = faces["photo"].str.rsplit("/", n=1).str[-1]
    dropped = (faces["photo"].isin(paths) | file_names.isin(names)
               | faces["photo"].map(shortest_name).isin(names))
    return faces[~dropped].reset_index(drop=True)


def shortest_name(photo):
    """The shortest name by which an exclusion list may call a photo, also one of another folder."""
    return photo.rsplit("/", 1)[-1].removesuffix(CROP_ENDING)


def _check_rows(faces, cfg):
    name = faces["dataset"].iloc[0]
    first, last = cfg.DATA.AGE_MIN, cfg.DATA.AGE_MAX
    age, age_min, age_max = faces["age"], faces["age_min"], faces["age_max"]
    _refuse_rows(faces, age.isna(), f"{name}: age is missing or not a number", ["photo", "age"])
    is_range = age_min < age_max
    # The middle of an interval such as "more than 70" may be above the last bin.
    overlaps = is_range & (age_min <= last) & (age_max >= first)
    _refuse_rows(faces, ~age.between(first, last) & ~overlaps, f"{name}: age outside the bins "
                 f"{first}..{last} (DATA.AGE_MIN, DATA.AGE_MAX)", ["photo", "age"])
    _refuse_rows(faces, faces["age_std"] < 0, f"{name}: age_std is negative; leave it empty where "
                 "it is not known", ["photo", "age_std"])
    _refuse_rows(faces, age_min > age_max, f"{name}: age_min exceeds age_max",
                 ["photo", "age_min", "age_max"])
    _refuse_rows(faces, is_range & ((age_min % 1 != 0) | (age_max % 1 != 0)),
                 f"{name}: age_min and age_max are not whole years",
                 ["photo", "age_min", "age_max"])
    # A row's age is in completed years, so 29.5 fits 20 to 29. Training uses the interval instead.
    _refuse_rows(faces, (age < age_min) | (age >= age_max + 1),
                 f"{name}: age outside age_min to age_max", ["photo", "age", "age_min", "age_max"])
    missing = [not is_file(Path(root, photo))
               for root, photo in zip(faces["root"], faces["photo"], strict=True)]
    _refuse_rows(faces, missing, f"{name}: image not found in '{faces['root'].iloc[0]}' "
                 "(DATA.EXCLUDE leaves photos out)", ["photo"])


def _warn_of_repeats(faces):
    repeated = faces[faces.duplicated(PLACE, keep=False)]
    is_exact = repeated["age_min"] == repeated["age_max"]
    ages = [f"{row.age:g}" if exact else f"{row.age_min:g}-{row.age_max:g}"
            for row, exact in zip(repeated.itertuples(), is_exact, strict=True)]
    places = repeated[PLACE].astype(str).itertuples(index=False, name=None)
    repeats = describe_repeats(zip(places, ages, strict=True))
    if repeats:
        warnings.warn(f"{faces['dataset'].iloc[0]}: {repeats}", stacklevel=2)


def _refuse_rows(table, is_bad, problem, columns):
    """Raise a ValueError that shows the given columns of the bad rows, if there are any."""
    bad = [" ".join(map(str, row))
           for row in table.loc[is_bad, columns].itertuples(index=False)]
    if bad:
        raise ValueError(f"{problem}: {len(bad)} of {len(table)} rows: {listed(bad)}")


def listed(problems):
    """The first MAX_LISTED of some texts, and how many more there are."""
    rest = len(problems) - MAX_LISTED
    return "; ".join([*problems[:MAX_LISTED], *([f"and {rest} more"] if rest > 0 else [])])


def count_photos(faces):
    """How many photos a table of read_sources is of; two folders may have photos of one name."""
    return len(faces[["root", "photo"]].drop_duplicates())


def count_rejected(source, split=None, exclude=""):
    """How many photos alignment rejected, or 'unknown' if another program aligned the lists.

    split: train, valid or test; None counts all three.
    exclude: DATA.EXCLUDE; its photos do not count.
    """
    rejected = _read_rejected(source)
    if rejected is None:
        return "unknown"
    if split is not None:
        rejected = rejected[rejected["split"] == split]
    return len(_exclude(rejected, exclude))


def _read_rejected(source):
    """Table of the photos that alignment rejected, or None if another program aligned the lists."""
    path = source.file("rejected")
    if not path.is_file():
        return None
    rejected = read_csv(path, ["photo", "split"])
    return rejected.assign(photo=rejected["photo"].map(clean_path))
