"""One small reader for each data set: from its released files to photos, ages and splits.

A reader is a generator function `read(data_dir, options)`. It yields rows, and `Skipped` for
photos that cannot be used. A row is a dict with `photo`, `age`, `split` (train, valid or test)
and any other of the COLUMNS that the data set knows. splits.by_hash gives the split if there is
no official one. To add a data set, write a reader and add a line to DATASETS.

The readers of APPA-REAL, FairFace and UTKFace were checked against released files. A reader that
does not find its files raises an error that names them.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from defaults import load_cfg
from preprocess.columns import COLUMNS, LOCATION, SPLITS, clean_path
from preprocess.face import IMAGE_ENDINGS
from preprocess.rows import ages_of, spread_problem, votes_problem
from preprocess.splits import by_hash, one_spelling, share_by_hash
from utils.files import files_below
from utils.tables import number_of, read_columns, read_rows

CROP_ENDING = "_face.jpg"  # which APPA-REAL appends to a photo's name for its face crop
APPA_REAL_LABELS = {"apparent": "apparent_age_avg", "real": "real_age"}  # columns by label
VALID_FROM_TRAIN = (("train", 0.9), ("valid", 0.1))  # if only a test part is published
MATLAB_EPOCH = 366  # days from Matlab's day 0 to Python's
INTERVAL = re.compile(r"\(?(?P<low>\d{1,3})(?:-|, ?)(?P<high>\d{1,3})\)?|"
                      r"more than (?P<least>\d{1,3})|(?P<only>\d{1,3})", re.ASCII)


class Skipped(NamedTuple):
    """A photo that cannot be used, with the reason."""

    photo: str
    reason: str


@dataclass(frozen=True)
class Options:
    """Choices that some readers offer.

    appa_real_label: "apparent" or "real", the age that is read from APPA-REAL.
    min_face_score: IMDB-WIKI, lowest accepted score of its own face detector.
    max_second_face_score: IMDB-WIKI, highest accepted score of a second face; None accepts no
        second face.
    max_age: years, the end of an open interval such as "more than 70".
    """

    appa_real_label: str = "apparent"
    min_face_score: float = 1.0
    max_second_face_score: float | None = None
    max_age: int = field(default_factory=lambda: load_cfg().DATA.AGE_MAX)


@dataclass(frozen=True)
class DataSet:
    """A line of DATASETS.

    read: the reader, a function of data_dir and Options.
    protocols: function of the rows and data_dir that returns {PROTOCOL: {photo: split}}:
        published alternatives to the split in the rows.
    """

    read: Callable
    protocols: Callable = field(default=lambda rows, data_dir: {})


# ------------------------------------------------------------------------- ages in tables


def read_appa_real(data_dir, options):
    """APPA-REAL: apparent ages with their spread and votes, official splits."""
    splits = [split for split in SPLITS if appa_real_table(data_dir, split).is_file()]
    if not splits:
        raise _not_found(data_dir, "gt_avg_train.csv, gt_avg_valid.csv or gt_avg_test.csv")
    for split in splits:
        yield from appa_real_rows(data_dir, split, options.appa_real_label, data_dir)


def appa_real_table(folder, split):
    """Path of APPA-REAL's released table of a split: one row for each photo."""
    return Path(folder, f"gt_avg_{split}.csv")


def appa_real_rows(label_dir, split, label, data_dir=None):
    """Rows, or Skipped, of one split of APPA-REAL: the released face crops and their labels.

    Args:
        label_dir: folder of gt_avg_SPLIT.csv (one row for each photo) and, if there, of
            gt_SPLIT.csv (one row for each vote).
        split: train, valid or test.
        label: "apparent" or "real", the age that is read.
        data_dir: folder of the photos. If it is given, a missing face crop is replaced by the
            whole photo, in which alignment can find the face.
    """
    column = APPA_REAL_LABELS[label]
    votes_path = Path(label_dir, f"gt_{split}.csv")
    votes = count_votes(votes_path) if label == "apparent" and votes_path.is_file() else {}
    table_path = appa_real_table(label_dir, split)
    for record in read_rows(table_path, ["file_name", "apparent_age_std", column]):
        name, age = record["file_name"], record[column]
        photo = f"{split}/{name}{CROP_ENDING}"  # if there are several faces, the labelled one
        if data_dir and not Path(data_dir, photo).is_file():
            whole = f"{split}/{name}"
            photo = whole if Path(data_dir, whole).is_file() else photo
        if number_of(age) is None:
            yield Skipped(photo, f"{column} '{age}' is not a number" if age else f"no {column}")
            continue
        row = {"photo": photo, "age": float(age), "split": split}
        if label == "apparent":
            row |= {"age_std": record["apparent_age_std"], "votes": votes.get(name, "")}
        yield row


def count_votes(path):
    """The votes of APPA-REAL's gt_SPLIT.csv as {file_name: '23:3 24:7'}, ages in order.

    Raises:
        ValueError: the column apparent_age is missing, or a vote is not a number.
    """
    counts = defaultdict(Counter)
    for record in read_rows(path, ["file_name", "apparent_age"]):
        if record["apparent_age"].strip().lower() not in ("", "nan"):
            age = number_of(record["apparent_age"])
            if age is None:
                raise ValueError(f"{path}: apparent_age '{record['apparent_age']}' of "
                                 f"{record['file_name']} is not a number")
            counts[record["file_name"]][age] += 1
    return {name: " ".join(f"{age:g}:{count}" for age, count in sorted(ages.items()))
            for name, ages in counts.items()}


def read_megaage(data_dir, options):
    """MegaAge and MegaAge-Asian: the official test list becomes both valid and test."""
    for part, splits in (("train", ("train",)), ("test", ("valid", "test"))):
        names = _lines(data_dir, f"list/{part}_name.txt")
        ages = _lines(data_dir, f"list/{part}_age.txt")
        if len(names) != len(ages):
            raise ValueError(f"'{data_dir}': list/{part}_name.txt has {len(names)} lines but "
                             f"list/{part}_age.txt has {len(ages)}")
        votes = _megaage_votes(data_dir, part, ages)
        for split in splits:
            for name, age, histogram in zip(names, ages, votes, strict=True):
                if number_of(age) is None:
                    yield Skipped(f"{part}/{name}", f"age '{age}' is not a number")
                    continue
                yield {"photo": f"{part}/{name}", "age": float(age), "split": split,
                       "votes": histogram}


def _megaage_votes(data_dir, part, ages):
    """The age posterior of each photo as text, or empty texts if the release has none."""
    path = Path(data_dir, f"list/{part}_age_dis.txt")
    if not path.is_file():
        return [""] * len(ages)
    try:
        weights = np.loadtxt(_comma_free(path), ndmin=2)
    except ValueError as error:
        raise ValueError(f"'{path}': expected a line of numbers for each photo: {error}") from error
    if len(weights) != len(ages):
        raise ValueError(f"'{path}' has {len(weights)} lines for {len(ages)} photos")
    totals = weights.sum(1)
    if (weights < 0).any() or not (totals > 0).all():
        raise ValueError(f"'{path}': no line may hold a negative weight, or only zeros")
    means = weights @ np.arange(weights.shape[1]) / totals
    known = np.array([np.nan if number_of(age) is None else float(age) for age in ages])
    if np.isnan(known).all():
        return [""] * len(ages)
    gap = float(np.nanmedian(known - means))  # 0 or 1, the age of the first column
    if round(gap) not in (0, 1):
        raise ValueError(f"'{path}': the distributions are {gap:.1f} years off the ages of "
                         f"list/{part}_age.txt; expected columns for the ages from 0 or from 1")
    return [" ".join(f"{i + round(gap)}:{line[i]:g}" for i in np.flatnonzero(line))
            for line in weights]


def _comma_free(path):
    """Lines of a table of numbers; some releases separate them by commas, others by spaces."""
    return [line.replace(",", " ") for line in _read_text(path).splitlines()]


def read_morph(data_dir, options):
    """MORPH II: split by person, so that nobody is in two splits."""
    path = Path(data_dir, "morph_2008_nonCommercial.csv")
    for record in read_rows(path, ["id_num", "photo", "age"]):
        age = number_of(record["age"])
        if age is None:
            yield Skipped(record["photo"], f"age '{record['age']}' is not a number")
            continue
        yield {"photo": clean_path(record["photo"]), "age": age,
               "gender": _gender(record.get("gender", "")),
               "race": record.get("race", "").lower(), "subject": record["id_num"],
               **by_hash(record["id_num"])}


def _morph_protocols(rows, data_dir):
    shares = (("train", 0.72), ("valid", 0.08), ("test", 0.2))
    return {"random": {row["photo"]: share_by_hash(row["photo"], shares) for row in rows},
            "subject": {row["photo"]: share_by_hash(row["subject"], shares) for row in rows}}


def read_fairface(data_dir, options):
    """FairFace: intervals of ages, official splits; the folder val is the split valid."""
    for part, split in (("train", "train"), ("val", "valid")):
        path = Path(data_dir, f"fairface_label_{part}.csv")
        for record in read_rows(path, ["file", "age", "gender", "race"]):
            interval = parse_interval(record["age"], options.max_age)
            if interval is None:
                yield Skipped(record["file"], f"age '{record['age']}' is not an interval")
                continue
            yield {"photo": record["file"], **interval, "gender": _gender(record["gender"]),
                   "race": record["race"].lower(), "split": split}


def read_adience(data_dir, options):
    """Adience: intervals of ages; fold 4 is the split test, fold 3 the split valid."""
    folders = {"faces": "coarse_tilt_aligned_face", "aligned": "landmark_aligned_face"}
    folder = next((name for name in folders if Path(data_dir, name).is_dir()), None)
    if folder is None:
        raise _not_found(data_dir, "a folder faces/ or aligned/")
    for fold in range(5):
        path = Path(data_dir, f"fold_{fold}_data.txt")
        if not path.is_file():
            raise _not_found(data_dir, path.name)
        for record in read_rows(path, ["user_id", "original_image", "face_id", "age"]):
            name = f"{folders[folder]}.{record['face_id']}.{record['original_image']}"
            photo = f"{folder}/{record['user_id']}/{name}"
            interval = parse_interval(record["age"], options.max_age)
            if interval is None:
                yield Skipped(photo, f"age '{record['age']}' is neither a number nor an interval")
                continue
            yield {"photo": photo, **interval, "gender": _gender(record.get("gender", "")),
                   "subject": record["user_id"], "fold": fold, "split": _fold_split(fold, 4)}


def _fold_split(fold, test_fold):
    return {test_fold: "test", (test_fold - 1) % 5: "valid"}.get(fold, "train")


def _adience_protocols(rows, data_dir):
    return {f"fold{test}": {row["photo"]: _fold_split(row["fold"], test) for row in rows}
            for test in range(5)}


def read_imdb(data_dir, options):
    yield from _read_imdb_wiki(data_dir, "imdb", "celeb_id", options)


def read_wiki(data_dir, options):
    yield from _read_imdb_wiki(data_dir, "wiki", "name", options)


def _read_imdb_wiki(data_dir, name, person_field, options):
    """IMDB-WIKI: the age on 1 July of the photo's year; options say which photos are kept."""
    folders = [folder for folder in (f"{name}_crop", name, ".") if Path(data_dir, folder).is_dir()]
    places = [Path(data_dir, folder, f"{name}.mat") for folder in [*folders, "."]]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise _not_found(data_dir, f"{name}.mat or {name}_crop/{name}.mat")
    faces = _load_mat(path, name)
    folder = folders[0]
    is_cropped = Path(data_dir, folder).absolute().name.endswith("_crop")
    for index, full_path in enumerate(faces["full_path"]):
        photo = f"{folder}/{full_path}".removeprefix("./")
        age = age_on_1_july(faces["dob"][index], faces["photo_taken"][index])
        reason = _imdb_wiki_reason(faces, index, options)
        if reason is None and (age is None or not 0 <= age <= options.max_age):
            reason = f"age outside 0..{options.max_age}"  # a date is wrong
        if reason is not None:
            yield Skipped(photo, reason)
            continue
        person = faces.get(person_field, faces["full_path"])[index]
        person = str(person if np.size(person) else full_path)  # an empty name is an empty array
        row = {"photo": photo, "age": age, "subject": person, **by_hash(person),
               "gender": {0: "female", 1: "male"}.get(faces["gender"][index], "")}
        if is_cropped:
            row["location_ratio"] = (0.4 / 1.8, 0.4 / 1.8, 1.4 / 1.8, 1.4 / 1.8)  # 40% margins
        else:
            row |= dict(zip(LOCATION, np.ravel(faces["face_location"][index]), strict=True))
        yield row


def _load_mat(path, name):
    from scipy.io import loadmat

    try:
        struct = loadmat(path, squeeze_me=True)[name]
        faces = {key: np.atleast_1d(struct[key].item()) for key in struct.dtype.names}
    except Exception as error:  # on broken files loadmat raises errors of any class
        raise ValueError(f"'{path}': expected a struct '{name}': {error}") from error
    needed = {"full_path", "dob", "photo_taken", "gender", "face_score", "second_face_score",
              "face_location"}
    if needed - set(faces):
        raise ValueError(f"'{path}': field {', '.join(sorted(needed - set(faces)))} missing; it "
                         f"has {', '.join(faces)}")
    return faces


def age_on_1_july(day_number, year):
    """Whole years on 1 July of `year` of a person born on a Matlab day number.

    Returns None if there is no such day or year.
    """
    try:
        born, year = date.fromordinal(int(day_number) - MATLAB_EPOCH), int(year)
    except (ValueError, OverflowError):
        return None
    return year - born.year - ((born.month, born.day) > (7, 1))


def _imdb_wiki_reason(faces, index, options):
    score, second = faces["face_score"][index], faces["second_face_score"][index]
    if not np.isfinite(score):
        return "no face by its own detector"
    if score < options.min_face_score:
        return f"face_score below {options.min_face_score:g}"
    if options.max_second_face_score is None and not np.isnan(second):
        return "a second face"
    if options.max_second_face_score is not None and second > options.max_second_face_score:
        return f"second_face_score above {options.max_second_face_score:g}"
    return None


# ---------------------------------------------------------------- ages in file names

UTKFACE_NAME = re.compile(r"(\d{1,3})_(\d_){0,2}\d{13,18}", re.ASCII)
UTKFACE_RACES = ("white", "black", "asian", "indian", "others")


def read_utkface(data_dir, options):
    """UTKFace: chips or photos in the wild; some file names lack a field or a dot.

    Some copies hold the faces in several folders; each face is taken once.
    """
    seen = set()
    for photo in _photos(data_dir):
        name = photo.rsplit("/", 1)[-1]
        match = UTKFACE_NAME.match(name)
        if match is None:
            yield Skipped(photo, "name is not age_gender_race_date")
            continue
        key = _utkface_key(photo)
        if key in seen:
            yield Skipped(photo, "the same face as an earlier photo")
            continue
        seen.add(key)
        age, *codes = match[0].split("_")[:-1]
        row = {"photo": photo, "age": int(age), **by_hash(key)}
        if codes and codes[0] in "01":
            row["gender"] = ("male", "female")[int(codes[0])]
        if len(codes) == 2 and int(codes[1]) < len(UTKFACE_RACES):
            row["race"] = UTKFACE_RACES[int(codes[1])]
        yield row


def _utkface_key(photo):
    """The same text for a chip and for the photo in the wild that it comes from."""
    return photo.rsplit("/", 1)[-1].split(".")[0].strip()


def _utkface_protocols(rows, data_dir):
    """All ages, 60/20/20, in five rotations of ten folds; and the ages 21 to 60."""
    tenths = [(fold, 0.1) for fold in range(10)]
    folds = {row["photo"]: share_by_hash("fold " + _utkface_key(row["photo"]), tenths)
             for row in rows}
    rotations = {f"rotation{i}": {photo: _rotated(fold, i) for photo, fold in folds.items()}
                 for i in range(5)}
    return rotations | {"21-60": _utkface_21_60(rows, data_dir)}


def _rotated(fold, rotation):
    place = (fold - 2 * rotation) % 10
    return "train" if place < 6 else "valid" if place < 8 else "test"


def _utkface_21_60(rows, data_dir):
    """The published lists if utk_train.csv and utk_test.csv are there, else an 80/20 split.

    The lists are from Cao et al., "Rank consistent ordinal regression for neural networks",
    2020. In both cases a tenth of the training photos becomes valid.
    """
    def trained(row):
        return share_by_hash("21-60 " + _utkface_key(row["photo"]), VALID_FROM_TRAIN)

    paths = {part: Path(data_dir, f"utk_{part}.csv") for part in ("train", "test")}
    if all(path.is_file() for path in paths.values()):
        listed = {_utkface_key(name): part for part, path in paths.items()
                  for name in read_columns(path, ["file"])["file"]}
        parts = {row["photo"]: listed.get(_utkface_key(row["photo"])) for row in rows}
    else:
        parts = {row["photo"]: share_by_hash(_utkface_key(row["photo"]),
                                             (("train", 0.8), ("test", 0.2)))
                 for row in rows if 21 <= row["age"] <= 60}
    return {row["photo"]: "test" if parts[row["photo"]] == "test" else trained(row)
            for row in rows if parts.get(row["photo"])}


def read_fgnet(data_dir, options):
    """FG-NET: person and age in the file name; a tenth of the persons in valid and in test."""
    for photo, match in _matched(data_dir, r"(\d{3})A(\d{2})[A-Z]?\.\w+", "NNNAYY.JPG"):
        if match is None:
            yield Skipped(photo, "name is not NNNAYY.JPG")
            continue
        yield {"photo": photo, "age": int(match[2]), "subject": match[1],
               **by_hash(f"fgnet {match[1]}")}


def _fgnet_protocols(rows, data_dir):
    """Leave one person out for test; a tenth of the other persons is valid."""
    def split(subject, person):
        if subject == person:
            return "test"
        return share_by_hash(f"fgnet {subject}", VALID_FROM_TRAIN)

    return {f"without{person}": {row["photo"]: split(row["subject"], person) for row in rows}
            for person in sorted({row["subject"] for row in rows})}


def read_agedb(data_dir, options):
    """AgeDB: person, age and gender in the file name; split by person."""
    pattern = r"\d+_(.+)_(\d{1,3})_([mf])\.\w+"
    for photo, match in _matched(data_dir, pattern, "number_Name_age_m.jpg"):
        if match is None:
            yield Skipped(photo, "name is not number_Name_age_m.jpg")
            continue
        yield {"photo": photo, "age": int(match[2]), "gender": _gender(match[3]),
               "subject": match[1], **by_hash(match[1])}


def read_cacd(data_dir, options):
    """CACD: age and celebrity in the file name; split by celebrity."""
    for photo, match in _matched(data_dir, r"(\d{1,3})_(.+)_\d+\.\w+", "age_Name_number.jpg"):
        if match is None:
            yield Skipped(photo, "name is not age_Name_number.jpg")
            continue
        yield {"photo": photo, "age": int(match[1]), "subject": match[2],
               **by_hash(match[2])}


def read_afad(data_dir, options):
    """AFAD: age and gender as folders; split by file, as the persons are not known."""
    genders = {"111": "male", "112": "female"}
    known = False
    for photo in _photos(data_dir):
        *_, age, code, _ = ("", "", *photo.split("/"))
        if not age.isdecimal() or code not in genders:
            yield Skipped(photo, "not in a folder age/111 or age/112")
            continue
        known = True
        yield {"photo": photo, "age": int(age), "gender": genders[code],
               **by_hash(photo.rsplit("/", 1)[-1])}
    if not known:
        raise _not_found(data_dir, "folders such as 25/111/ (age, then 111 male or 112 female)")


DATASETS = {
    "adience": DataSet(read_adience, _adience_protocols),
    "afad": DataSet(read_afad),
    "agedb": DataSet(read_agedb),
    "appa_real": DataSet(read_appa_real),
    "cacd": DataSet(read_cacd),
    "fairface": DataSet(read_fairface),
    "fgnet": DataSet(read_fgnet, _fgnet_protocols),
    "imdb": DataSet(read_imdb),
    "megaage": DataSet(read_megaage),
    "megaage_asian": DataSet(read_megaage),
    "morph": DataSet(read_morph, _morph_protocols),
    "utkface": DataSet(read_utkface, _utkface_protocols),
    "wiki": DataSet(read_wiki),
}


# ------------------------------------------------------------------------- your own photos


def table_reader(path):
    """The reader of a table of your own photos.

    Args:
        path: table with the columns photo and age, and any other of COLUMNS. An empty age beside
            age_min and age_max is their middle. A column split (train, valid or test) is
            optional. Where it is empty, the other rows of the same person tell, or if they are
            empty too, the hash of the person. Without a person it is the photo that counts.
    Returns:
        function for DataSet.read.
    Raises (that function):
        ValueError: a split has another name, or one person or a photo without one is given two.
    """
    def read(data_dir, options):
        given = _given_splits(path)
        for record in read_rows(path, ["photo", "age"]):
            photo, subject = clean_path(record["photo"]), _subject_of(record)
            ages = spread_problem(record) or votes_problem(record) or ages_of(record)
            if isinstance(ages, str):
                yield Skipped(photo, ages)
                continue
            key = subject or photo
            split = record.get("split", "").strip() or given.get(one_spelling(key))
            chosen = {"split": split} if split else by_hash(key)
            yield {name: record[name] for name in COLUMNS if name in record} | ages | {
                "photo": photo, "subject": subject, **chosen}
    return read


def _given_splits(path):
    """{person, or photo without one: split} of the rows of a table that name a split."""
    given = {}
    for record in read_rows(path, ["photo", "age"]):
        photo, subject = clean_path(record["photo"]), _subject_of(record)
        split = record.get("split", "").strip()
        if not split:
            continue
        if split not in SPLITS:
            raise ValueError(f"{path}: split '{split}' of '{photo}' is not one of "
                             f"{', '.join(SPLITS)}")
        known = given.setdefault(one_spelling(subject or photo), split)
        if subject and known != split:
            raise ValueError(f"{path}: the photos of the person '{subject}' are in {known} and in "
                             f"{split}; put all of them in one split")
        if known != split and "train" in (known, split):
            raise ValueError(f"{path}: the photo '{photo}' is in {known} and in {split}; one that "
                             "is trained on may be in no other split")
    return given


def _subject_of(record):
    return one_spelling(record.get("subject", "").strip())


# ------------------------------------------------------------------------- shared by readers


def _not_found(data_dir, what):
    return FileNotFoundError(f"'{data_dir}' holds no {what}; is --data_dir the data set's folder?")


def _lines(data_dir, name):
    path = Path(data_dir, name)
    if not path.is_file():
        raise _not_found(data_dir, name)
    return [line.strip() for line in _read_text(path).rstrip().split("\n")]


def _read_text(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8 text: {error}") from error


def _photos(data_dir):
    """Relative paths of all images below a folder, sorted."""
    photos = sorted(path.relative_to(data_dir).as_posix() for path in files_below(data_dir)
                    if path.suffix.lower() in IMAGE_ENDINGS)
    if not photos:
        raise _not_found(data_dir, f"image ({', '.join(IMAGE_ENDINGS)})")
    return photos


def _matched(data_dir, pattern, example):
    """(photo, match of its file name or None) for all images; an error if no name matches."""
    compiled = re.compile(pattern, re.IGNORECASE)
    matches = [(photo, compiled.fullmatch(photo.rsplit("/", 1)[-1]))
               for photo in _photos(data_dir)]
    if not any(match for _, match in matches):
        raise _not_found(data_dir, f"image named like {example}")
    return matches


def _gender(text):
    return {"m": "male", "male": "male", "f": "female", "female": "female"}.get(
        text.strip().lower(), "")


def parse_interval(text, max_age):
    """age, age_min and age_max of "3-9", "(4, 6)", "more than 70" or a single age, else None.

    max_age: years, where "more than 70" ends.
    """
    match = INTERVAL.fullmatch(text.strip())
    if match is None:
        return None
    low = int(match["low"] or match["least"] or match["only"])
    high = int(match["high"] or (max_age if match["least"] else low))
    if low > high:
        return None
    return {"age": low if low == high else (low + high) / 2, "age_min": low, "age_max": high}
