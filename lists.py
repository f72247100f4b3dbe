"""Lists of faces: which data sets a folder holds, and one checked table a split.

A list is `NAME_{train,valid,test}_align.csv` with the columns photo, age, deg, box1..box4 (x1 y1
x2 y2 in the rotated, expanded photo), or an APPA-REAL folder as released. What else a data set
knows stands in OPTIONAL columns.
"""

import fnmatch
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

SPLITS = ("train", "valid", "test")
BOX = ["box1", "box2", "box3", "box4"]
REQUIRED = ["photo", "age", "deg", *BOX]
NUMBERS = ["age_std", "age_min", "age_max", "confidence"]
OPTIONAL = [*NUMBERS, "gender", "race", "subject", "votes"]
APPA_REAL_LABELS = {"apparent": "apparent_age_avg", "real": "real_age"}  # columns by label
LISTED = 20  # bad rows shown before the rest is only counted


class Source(NamedTuple):
    """A data set on disk.

    data_dir: folder that the photo column is relative to.
    dataset: the NAME in the names of its lists.
    list_dir: folder of the lists.
    """

    data_dir: str
    dataset: str
    list_dir: str


def pair_folders(data_dirs, datasets, list_dirs):
    """Match what the command line names: a list of Source, one for each data set.

    One folder serves several data sets; several folders need as many data sets, or none, which
    takes the only one in each.

    Raises:
        ValueError: the counts do not match, or a folder holds none or several data sets.
        FileNotFoundError: no such folder.
    """
    count = max(len(data_dirs), len(datasets or []))
    if len(data_dirs) not in (1, count) or (datasets and len(datasets) != count):
        raise ValueError(f"{len(data_dirs)} folders after --data_dir but {len(datasets)} names "
                         "after --dataset; give one name a folder, or one folder for all")
    data_dirs = list(data_dirs) * (count if len(data_dirs) == 1 else 1)
    list_dirs = list(list_dirs or data_dirs)
    if len(list_dirs) not in (1, count):
        raise ValueError(f"{len(list_dirs)} folders after --list_dir for {count} data sets")
    list_dirs *= count if len(list_dirs) == 1 else 1
    for folder in (*data_dirs, *list_dirs):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"folder '{folder}' not found")
    names = datasets or [_only_dataset(folder) for folder in list_dirs]
    return [Source(*words) for words in zip(data_dirs, names, list_dirs, strict=True)]


def find_datasets(list_dir):
    """Names of the data sets in a folder; aligned lists win over a raw APPA-REAL folder."""
    names = {path.name.removesuffix(f"_{split}_align.csv")
             for split in SPLITS for path in Path(list_dir).glob(f"*_{split}_align.csv")}
    if not names and any(Path(list_dir, f"gt_avg_{split}.csv").is_file() for split in SPLITS):
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
    """The way out where aligned lists are missing: the command, if there is what it takes."""
    for split in SPLITS:
        for path in sorted(Path(list_dir).glob(f"{dataset}_{split}.csv")):
            if _is_list(path):  # and no table of a data set's release
                name = path.name.removesuffix(f"_{split}.csv")
                return f"align '{path}' with {_align_command(list_dir, name)}"
    return "see the README, 'Prepare'"


def _align_command(list_dir, dataset):
    return (f"python -m preprocess.face_align --dataset {dataset} --list_dir {list_dir} "
            "--data_dir DIR, the folder of its photos")


def _is_list(path):
    try:
        read_csv(path, ["photo", "age"])
    except ValueError:
        return False
    return True


def is_current(target, source):
    """Whether a file is there and no older than the one it is made of."""
    return target.is_file() and target.stat().st_mtime >= source.stat().st_mtime


def warn_of_stale_lists(sources):
    """Warn where a list is newer than the aligned one made of it; sources: list of Source."""
    for _, dataset, list_dir in sources:
        for split in SPLITS:
            path = Path(list_dir, f"{dataset}_{split}.csv")
            aligned = path.with_name(f"{path.stem}_align.csv")
            if path.is_file() and aligned.is_file() and not is_current(aligned, path):
                warnings.warn(f"{path} is newer than what was aligned of it; if its faces changed, "
                              f"start {_align_command(list_dir, dataset)}", stacklevel=2)


def read_sources(sources, split, cfg, protocol=None):
    """One split of several data sets as one table; sources: list of Source."""
    return pd.concat([read_faces(data_dir, dataset, split, cfg, list_dir, protocol)
                      for data_dir, dataset, list_dir in sources], ignore_index=True)


def count_faces(faces, source):
    """How many faces of a table of read_sources come from one Source."""
    return int(((faces["root"] == str(source.data_dir))
                & (faces["dataset"] == source.dataset)).sum())


def read_faces(data_dir, dataset, split, cfg, list_dir=None, protocol=None):
    """One split of one data set as a checked table.

    Args:
        data_dir: folder the photo column is relative to.
        dataset: the NAME in the list's file name.
        split: train, valid or test.
        cfg: the config; the DATA section is read.
        list_dir: folder of the lists, data_dir by default.
        protocol: name of a split file `NAME_split_PROTOCOL.csv` that overrides the lists' split.
    Returns:
        DataFrame with the columns root, dataset, REQUIRED and OPTIONAL; missing optional values
        are NaN or None; deg and box are NaN where the whole image is the crop; age_min and
        age_max equal age where the age is exact.
    Raises:
        FileNotFoundError: no such list; names the splits there are.
        ValueError: a missing column, or bad rows (all of them checked, twenty shown).
    """
    source = Source(data_dir, dataset, Path(list_dir or data_dir))
    if protocol:
        faces = _read_protocol(source, split, protocol, cfg)
    else:
        faces = _read_split(source, split, cfg)
    faces = _exclude(faces, cfg.DATA.EXCLUDE)
    if faces.empty:
        raise ValueError(f"the {split} list of '{dataset}' in '{source.list_dir}' holds no faces"
                         + (f" but those that DATA.EXCLUDE '{cfg.DATA.EXCLUDE}' leaves out"
                            if cfg.DATA.EXCLUDE else ""))
    faces.insert(0, "root", str(data_dir))
    faces.insert(1, "dataset", dataset)
    _check_rows(faces, cfg)
    return faces


def list_file(source, split, protocol=None):
    """Path of the file that says which faces read_faces reads.

    It is the protocol's or the aligned list or, where APPA-REAL has none of any split, its own
    labels: splits of one run are cut out the same way.

    Raises:
        FileNotFoundError: it does not exist; names the splits that do.
    """
    _, dataset, list_dir = source
    if protocol:
        return Path(list_dir, f"{dataset}_split_{protocol}.csv")
    path = _list_path(source, split)
    if path.is_file():
        return path
    there = splits_of(source)
    if there:
        raise FileNotFoundError(f"data set '{dataset}' in '{list_dir}' has no {split} split; "
                                f"it has {', '.join(there)}; align it with python -m "
                                "preprocess.face_align, or choose another with test.py --split")
    found = find_datasets(list_dir)
    raise FileNotFoundError(f"'{list_dir}' holds no {dataset}_{split}_align.csv; it holds "
                            f"{', '.join(found) or 'no data set'}: choose with --dataset, or "
                            f"{_how_to_align(list_dir, dataset)}")


def _list_path(source, split):
    _, dataset, list_dir = source
    aligned = [Path(list_dir, f"{dataset}_{name}_align.csv") for name in SPLITS]
    if dataset == "appa_real" and not any(path.is_file() for path in aligned):
        return Path(list_dir, f"gt_avg_{split}.csv")
    return aligned[SPLITS.index(split)]


def splits_of(source, protocol=None):
    """The splits that a data set has lists of, or those of a protocol, of train, valid, test."""
    if protocol:
        chosen = set(read_csv(list_file(source, None, protocol), ["split"])["split"])
        return [split for split in SPLITS if split in chosen]
    return [split for split in SPLITS if _list_path(source, split).is_file()]


def _read_split(source, split, cfg):
    path = list_file(source, split)
    if path.name.startswith("gt_avg_"):
        return read_appa_real(path, split, cfg)
    if source.dataset == "appa_real" and cfg.DATA.APPA_REAL_LABEL == "real":
        warnings.warn(f"{path} has the ages that preprocess.generate_csv --appa_real_label "
                      "chose; DATA.APPA_REAL_LABEL real counts for a folder without aligned lists",
                      stacklevel=2)
    return _read_align(path)


def _read_protocol(source, split, protocol, cfg):
    path = list_file(source, split, protocol)
    if not path.is_file():
        raise FileNotFoundError(f"protocol file '{path}' not found; protocols there: "
                                f"{', '.join(_protocols_of(source)) or 'none'}")
    chosen = read_csv(path, ["photo", "split"])
    unknown = sorted(set(chosen["split"]) - set(SPLITS))
    if unknown:
        raise ValueError(f"{path}: split '{unknown[0]}' is none of {', '.join(SPLITS)}")
    if split not in set(chosen["split"]):
        raise FileNotFoundError(f"protocol '{path}' has no {split} split; it has "
                                f"{', '.join(sorted(set(chosen['split'])))}: complete it, or "
                                "choose another with test.py --split")
    lists = [_read_split(source, there, cfg) for there in splits_of(source)]
    place = ["photo", "deg", *BOX]
    for faces in lists:  # a face may be in two lists, and be repeated in one
        faces["number"] = faces.groupby(place, dropna=False).cumcount()
    faces = pd.concat(lists, ignore_index=True).drop_duplicates([*place, "number"])
    faces = faces.drop(columns="number")
    faces = faces[faces["photo"].isin(chosen.loc[chosen["split"] == split, "photo"])]
    if faces.empty:
        raise ValueError(f"{path}: none of its {split} photos stands in the lists of "
                         f"'{source.dataset}'")
    return faces.reset_index(drop=True)


def _protocols_of(source):
    return sorted(path.stem.removeprefix(f"{source.dataset}_split_")
                  for path in Path(source.list_dir).glob(f"{source.dataset}_split_*.csv"))


def find_protocols(sources, patterns):
    """Names of the split files that names or patterns such as 'rotation*' stand for, sorted.

    Raises:
        FileNotFoundError: one of them stands for none of the data sets' split files.
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
    """A CSV as text columns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a CSV, or a required column is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"list '{path}' not found")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # fields beyond the header
            table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True,
                                index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV file: {' '.join(str(error).split())}") from error
    table.columns = [name.strip() for name in table.columns]
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: column {', '.join(missing)} missing; it has "
                         f"{', '.join(table.columns)}")
    return table


def _read_align(path):
    table = read_csv(path, REQUIRED)
    faces = pd.DataFrame({"photo": table["photo"]})
    for name in [*REQUIRED[1:], *NUMBERS]:
        faces[name] = _numbers(table, name, path)
    for name in OPTIONAL[len(NUMBERS):]:
        faces[name] = table[name].replace("", None) if name in table else None
    boxless = faces[["deg", *BOX]].isna().any(axis=1)
    bad = boxless | ~(faces["box3"] > faces["box1"]) | ~(faces["box4"] > faces["box2"])
    _refuse(faces, bad, f"{path}: deg is no number, or the box is empty",
            ["photo", "deg", *BOX])
    _refuse(faces, faces["age_min"].isna() != faces["age_max"].isna(),
            f"{path}: half an interval, age_min or age_max alone", ["photo", "age_min", "age_max"])
    return _complete_interval(faces)


def read_appa_real(path, split, cfg):
    """APPA-REAL's released face crops with the labels of gt_avg_{split}.csv.

    The votes of gt_{split}.csv, where it is there, become the votes column.
    """
    label = APPA_REAL_LABELS[cfg.DATA.APPA_REAL_LABEL]
    table = read_csv(path, ["file_name", label])
    faces = pd.DataFrame({"photo": split + "/" + table["file_name"] + "_face.jpg",
                          "age": _numbers(table, label, path)})
    if faces["age"].isna().all():
        raise ValueError(f"{path}: column {label} is empty; choose the other label with "
                         "DATA.APPA_REAL_LABEL apparent|real")
    for name in ["deg", *BOX, *NUMBERS]:
        faces[name] = np.nan
    if cfg.DATA.APPA_REAL_LABEL == "apparent":
        faces["age_std"] = _numbers(table, "apparent_age_std", path)
    for name in OPTIONAL[len(NUMBERS):]:
        faces[name] = None
    votes_path = path.with_name(f"gt_{split}.csv")
    if votes_path.is_file() and cfg.DATA.APPA_REAL_LABEL == "apparent":
        faces["votes"] = table["file_name"].map(count_votes(votes_path)).to_numpy()
    return _complete_interval(faces)


def count_votes(path):
    """APPA-REAL's gt_{split}.csv, one row a vote, as {file_name: '23:3 24:7'}.

    Raises:
        ValueError: no column apparent_age, a vote that is no number.
    """
    table = read_csv(path, ["file_name", "apparent_age"])
    votes = table.assign(age=_numbers(table, "apparent_age", path)).dropna(subset=["age"])
    counts = votes.groupby(["file_name", "age"]).size()
    return {name: " ".join(f"{age:g}:{count}" for (_, age), count in group.items())
            for name, group in counts.groupby(level=0)}


def parse_votes(text, age_bins):
    """A histogram of votes on the bins.

    Args:
        text: '23:3 24:7', age:weight pairs in any order.
        age_bins: (K,) whole years, step 1; ages outside count for the nearest end.
    Returns:
        (K,) float32 weights, not normalised.
    Raises:
        ValueError: a pair is malformed or a weight negative.
    """
    histogram = np.zeros(len(age_bins), np.float32)
    for pair in text.split():
        try:
            age, weight = (float(number) for number in pair.split(":"))
        except ValueError as error:
            raise ValueError(f"'{pair}' in votes '{text}' is not age:weight") from error
        if not (np.isfinite(age) and np.isfinite(weight)):
            raise ValueError(f"'{pair}' in votes '{text}' is not finite")
        position = np.clip(round(age) - age_bins[0], 0, len(age_bins) - 1)
        histogram[position] += weight
    if (histogram < 0).any():
        raise ValueError(f"negative weight in votes '{text}'")
    return histogram


def _numbers(table, name, path):
    """A text column as floats; empty or absent is NaN, anything else must be a finite number."""
    if name not in table:
        return np.full(len(table), np.nan)
    text = table[name].str.strip()
    values = pd.to_numeric(text, errors="coerce")
    bad = ~np.isfinite(values.to_numpy(float)) & ~text.isin(["", "nan", "NaN"])
    _refuse(table, bad, f"{path}: {name} is no number", [table.columns[0], name])
    return values.to_numpy(float)


def _complete_interval(faces):
    """Exact ages are intervals of one point; an interval without an age gets its middle."""
    for name in ("age_min", "age_max"):
        faces[name] = faces[name].fillna(faces["age"])
    faces["age"] = faces["age"].fillna((faces["age_min"] + faces["age_max"]) / 2)
    return faces


def _exclude(faces, path):
    """Drop the photos named in the first column of an exclusion list, by path or file name."""
    if not path:
        return faces
    table = read_csv(path, [])
    names = {*table.iloc[:, 0], table.columns[0]}  # a list without a header row loses no photo
    file_names = faces["photo"].str.rsplit("/", n=1).str[-1]
    dropped = (faces["photo"].isin(names) | file_names.isin(names)
               | file_names.str.removesuffix("_face.jpg").isin(names))
    return faces[~dropped].reset_index(drop=True)


def _check_rows(faces, cfg):
    name = faces["dataset"].iloc[0]
    low, high = cfg.DATA.AGE_MIN, cfg.DATA.AGE_MAX
    _refuse(faces, faces["age"].isna(), f"{name}: age is no number", ["photo", "age"])
    # The middle of an interval such as "more than 70" may lie beyond the bins that it begins in.
    outside = ~faces["age"].between(low, high) & ~(
        (faces["age_min"] < faces["age_max"])
        & (faces["age_min"] <= high) & (faces["age_max"] >= low))
    _refuse(faces, outside, f"{name}: age outside the bins {low}..{high} "
            "(DATA.AGE_MIN, DATA.AGE_MAX)", ["photo", "age"])
    _refuse(faces, faces["age_min"] > faces["age_max"], f"{name}: age_min exceeds age_max",
            ["photo", "age_min", "age_max"])
    # An interval's ages are in whole completed years.
    beside = (faces["age"] < faces["age_min"]) | (faces["age"] >= faces["age_max"] + 1)
    _refuse(faces, beside, f"{name}: age outside age_min to age_max",
            ["photo", "age", "age_min", "age_max"])
    missing = [not Path(root, photo).is_file()
               for root, photo in zip(faces["root"], faces["photo"], strict=True)]
    _refuse(faces, pd.Series(missing, index=faces.index), f"{name}: image not found in "
            f"'{faces['root'].iloc[0]}' (DATA.EXCLUDE leaves photos out)", ["photo"])


def _refuse(table, bad, problem, columns):
    """Raise a ValueError that lists the bad rows."""
    if not bad.any():
        return
    rows = [" ".join(map(str, row)) for row in
            table.loc[bad, columns].itertuples(index=False)]
    raise ValueError(f"{problem}: {len(rows)} of {len(table)} rows: {listed(rows)}")


def listed(problems):
    """The first LISTED of some texts, and how many more there are."""
    rest = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    return "; ".join([*problems[:LISTED], *rest])


def count_rejected(source, split=None):
    """Photos in which the preparation found no face, or 'unknown' where it was not ours.

    split: of the lists; None counts all of them.
    """
    path = Path(source.list_dir, f"{source.dataset}_rejected.csv")
    if not path.is_file():
        return "unknown"
    splits = read_csv(path, ["split"])["split"]
    return len(splits) if split is None else int((splits == split).sum())
