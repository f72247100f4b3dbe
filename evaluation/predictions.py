"""The table of predictions of any model, one row for each face: the content of predictions.csv.

Columns: photo, age, pred_age; if the model knows them pred_std and the predicted distribution
p0 .. p100; if the data set knows them age_std, age_min, age_max, gender, race, subject, dataset,
confidence; face_px, the side of the face box in pixels of the photo, and sharpness, see
predict.sharpness. If age_min and age_max differ, only the interval of the age is known.
"""

import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

import metrics
from lists import listed
from preprocess.columns import clean_path
from utils.files import replaced
from utils.tables import table_format, with_decimal_points

PREDICTION_COLUMNS = ("photo", "age", "pred_age")
TEXTS = ("gender", "race", "subject", "dataset")
PREDICTION_NUMBERS = ("age_std", "age_min", "age_max", "pred_std", "confidence", "face_px",
                      "sharpness")
NOT_NEGATIVE = ("age_std", "pred_std", "face_px", "sharpness")  # an empty cell: not known
AGES = ("age", "pred_age", "age_min", "age_max")
MAX_YEARS = 1e6  # of an age, either way; the squares of larger ones need not be finite
PROB_DIGITS = 6  # significant digits of p0, p1, ... in predictions.csv


@dataclass(frozen=True)
class Predictions:
    """One model's checked predictions.

    faces: DataFrame, one row for each of the B faces, without the distributions.
    age_bins: (K,) int years, or None without distributions.
    probs: (B, K) float64, rows sum to 1, or None.
    """

    faces: pd.DataFrame
    age_bins: np.ndarray | None
    probs: np.ndarray | None

    @cached_property
    def labels(self):
        """{age, age_min, age_max: (B,) float64}; the last two equal age where it is exact."""
        age = self.faces["age"].to_numpy()
        return {"age": age} | {name: self.faces[name].fillna(self.faces["age"]).to_numpy()
                               if name in self.faces else age for name in ("age_min", "age_max")}

    @cached_property
    def is_interval(self):
        """(B,) bool: only an interval of ages is known."""
        return metrics.is_interval(self.labels)

    @cached_property
    def subjects(self):
        """(B,) int, equal for one person of one data set; None unless every person is known."""
        faces = self.faces
        if not len(faces) or "subject" not in faces or faces["subject"].isna().any():
            return None
        names = faces["subject"].astype(str)
        if "dataset" in faces:
            names = faces["dataset"].astype(str) + "/" + names
        return pd.factorize(names)[0]

    def count_units(self, chosen=None):
        """Number of independent units: of persons if these are known, else of faces.

        Args:
            chosen: (B,) bool, which rows count; None: all.
        """
        if self.subjects is None:
            return len(self.faces) if chosen is None else int(chosen.sum())
        return len(np.unique(self.subjects if chosen is None else self.subjects[chosen]))

    @cached_property
    def pred_std(self):
        """(B,) years, the standard deviation of each distribution; None unless all are known."""
        known = "pred_std" in self.faces and self.faces["pred_std"].notna().all()
        return self.faces["pred_std"].to_numpy() if known else None

    @cached_property
    def abs_errors(self):
        """(B,) absolute error in years, of the middle of an interval for a face with one."""
        return metrics.absolute_error(self.faces["age"], self.faces["pred_age"])

    @property
    def last_age(self):
        """Years, the last age bin; infinity without distributions."""
        return np.inf if self.age_bins is None else self.age_bins[-1]

    @cached_property
    def exact(self):
        """The faces with an exact age; the rows keep their index."""
        return self.rows(~self.is_interval)

    def rows(self, chosen):
        """The same with only the rows of a (B,) bool mask."""
        return Predictions(self.faces[chosen], self.age_bins,
                           None if self.probs is None else self.probs[chosen])


def read_predictions(path):
    """Read and check a predictions.csv, ours or another model's.

    Args:
        path: CSV with at least photo, age, pred_age (see the top of this file), in any of the
            formats that utils.tables.read_rows() reads.
    Returns:
        Predictions with float ages, and pred_std where there are distributions.
    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a CSV, a column is missing, or rows are not usable (the first
            twenty are listed).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"predictions '{path}' not found; test.py --output writes them")
    try:
        encoding, separator = table_format(path, PREDICTION_COLUMNS)
        # Not utils.tables.read_columns(), which takes long for a hundred columns of numbers.
        frame = pd.read_csv(path, sep=separator, encoding=encoding, skipinitialspace=True,
                            dtype=dict.fromkeys(("photo", *TEXTS), "string"))
    except (ValueError, pd.errors.ParserError) as error:  # an empty file is a ValueError as well
        raise ValueError(f"predictions '{path}': not a CSV: {' '.join(str(error).split())}"
                         ) from error
    frame.columns = frame.columns.str.strip()
    for column in frame.columns.difference(["photo", *TEXTS]):
        if not pd.api.types.is_numeric_dtype(frame[column]):
            frame[column] = [with_decimal_points(value, separator) if isinstance(value, str)
                             else value for value in frame[column]]
    if "photo" in frame:
        frame["photo"] = frame["photo"].map(clean_path, na_action="ignore")
    return check_predictions(frame, f"'{path}'")


def check_predictions(frame, name):
    """Predictions from a table, checked.

    Args:
        frame: DataFrame with the columns of a predictions.csv.
        name: what an error calls the table.

    Raises:
        ValueError: see read_predictions.
    """
    missing = [column for column in PREDICTION_COLUMNS if column not in frame]
    if missing:
        raise ValueError(f"predictions {name}: no column {', '.join(missing)}; a table needs "
                         "photo, age and pred_age")
    if not len(frame):
        raise ValueError(f"predictions {name}: no rows")
    frame = frame.reset_index(drop=True)
    bins = [column for column in frame if re.fullmatch(r"p\d+", column)]
    numbered = frame[bins].rename(columns=lambda column: f"p{int(column[1:])}")  # p00 is p0
    if numbered.columns.has_duplicates:
        raise ValueError(f"predictions {name}: two columns for "
                         f"{numbered.columns[numbered.columns.duplicated()][0]}")
    faces = frame.drop(columns=bins).assign(photo=frame["photo"].astype(str))
    bad = {}
    for column in ("age", "pred_age", *(c for c in PREDICTION_NUMBERS if c in faces)):
        faces[column] = _number_column(faces[column], column in PREDICTION_NUMBERS, bad)
    _check_intervals(faces, bad)
    age_bins, probs = _read_distributions(numbered, bad, name)
    if bad:
        raise ValueError(f"predictions {name}: " + listed(
            [f"row {row + 2}: {what}" for row, what in sorted(bad.items())]))
    if probs is not None:
        stds = pd.Series(metrics.distribution_std(probs, age_bins), faces.index)
        if "pred_std" in faces:
            faces["pred_std"] = faces["pred_std"].fillna(stds)
        else:
            faces.insert(faces.columns.get_loc("pred_age") + 1, "pred_std", stds)
    return Predictions(faces, age_bins, probs)


def _check_intervals(faces, bad):
    """Note the rows with only one end of an interval, or with age_min > age_max."""
    ends = [faces[name] if name in faces else pd.Series(np.nan, faces.index)
            for name in ("age_min", "age_max")]
    wrong = (ends[0].isna() != ends[1].isna()) | (ends[0] > ends[1])
    for row in np.flatnonzero(wrong):
        low, high = ("" if np.isnan(end[row]) else f"{end[row]:g}" for end in ends)
        bad.setdefault(row, f"age_min '{low}' and age_max '{high}' are not an interval")


def _number_column(column, may_be_empty, bad):
    values = _floats(column).astype(np.float64)
    wrong = ~np.isfinite(values) & (column.notna() if may_be_empty else True)
    for row in np.flatnonzero(wrong):
        bad.setdefault(row, f"{column.name} '{column.iloc[row]}' is not a number")
    if column.name in NOT_NEGATIVE:
        for row in np.flatnonzero(values < 0):
            bad.setdefault(row, f"{column.name} '{column.iloc[row]}' is negative")
    if column.name in AGES:
        for row in np.flatnonzero(values.abs() > MAX_YEARS):
            bad.setdefault(row, f"{column.name} '{column.iloc[row]}' is not an age")
    return values


def _floats(column):
    """The numbers of a column; other text is NaN, a number of hundreds of digits infinity."""
    if column.dtype == object:  # pandas reads such digits as int, and no float holds them
        column = column.map(str, na_action="ignore")
    return pd.to_numeric(column, errors="coerce")


def _read_distributions(columns, bad, name):
    if not len(columns.columns):
        return None, None
    age_bins = np.sort([int(column[1:]) for column in columns])
    if not (np.diff(age_bins) == 1).all() or len(age_bins) < 2:
        raise ValueError(f"predictions {name}: the columns p{age_bins[0]} .. p{age_bins[-1]} must "
                         "be one a year, without gaps")
    probs = columns[[f"p{age}" for age in age_bins]].apply(_floats)
    probs = probs.to_numpy(np.float64)
    totals = probs.sum(axis=1)
    wrong = ~((probs >= 0).all(axis=1) & (np.abs(totals - 1) < 0.01))
    for row in np.flatnonzero(wrong):
        bad.setdefault(row, f"p{age_bins[0]} .. p{age_bins[-1]} are not a distribution "
                            f"(sum {totals[row]:.4g})")
    return age_bins, probs / np.where(wrong, 1, totals)[:, None]


def warn_of_equal_rows(predictions):
    """Warn if rows are equal: each counts, so that intervals get too narrow.

    Two faces of one photo have other predictions.
    """
    keys = [name for name in ("dataset", "photo", "age", "pred_age") if name in predictions.faces]
    repeats = predictions.faces.duplicated(keys)
    if repeats.any():
        warnings.warn(f"{repeats.sum()} of {len(repeats)} rows repeat another one, such as "
                      f"'{predictions.faces['photo'][repeats.idxmax()]}': they count as further "
                      "faces, and the intervals are too narrow", stacklevel=2)


def write_predictions(predictions, path):
    """Write Predictions as CSV: photo, age, pred_age, pred_std, p0, ..., then the other columns.

    Probabilities get PROB_DIGITS significant digits; those below metrics.PROB_FLOOR become 0.
    """
    faces = predictions.faces.round({"pred_age": 4, "pred_std": 4})
    first = [name for name in ("photo", "age", "pred_age", "pred_std") if name in faces]
    parts = [faces[first], faces.drop(columns=first)]
    if predictions.probs is not None:
        columns = [f"p{age}" for age in predictions.age_bins]
        parts.insert(1, pd.DataFrame(_significant(predictions.probs), faces.index, columns))
    table = pd.concat(parts, axis=1)
    with replaced(path) as temporary:  # so that half a table is never taken for a whole one
        table.to_csv(temporary, index=False)


def _significant(values):
    """Values rounded to PROB_DIGITS significant digits (to_csv's float_format takes minutes)."""
    values = np.where(values < metrics.PROB_FLOOR, 0, values)
    scale = 10.0 ** (PROB_DIGITS - 1 - np.floor(np.log10(np.maximum(values, metrics.PROB_FLOOR))))
    return np.round(values * scale) / scale


def face_keys(faces, columns):
    """MultiIndex of (B,) rows: the columns, and a running number that tells equal rows apart.

    Equal rows are the faces of one photo.
    """
    texts = faces[columns].astype(str)
    return pd.MultiIndex.from_frame(texts.assign(number=texts.groupby(columns).cumcount()))
