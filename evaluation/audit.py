"""What the audits of age estimation measure, each as a plain function with formula and source.

NIST: "Face Analysis Technology Evaluation: Age Estimation and Verification" (FATE AEV), IR 8525,
2024, and its results page, which is updated with each submission. ACCS: the Age Check Certification
Scheme, ACCS 1:2020, "Technical Requirements for Age Estimation Technologies".

The functions return measured numbers (see bootstrap.py) with `n`, how many faces, photos or persons
they come from. If the data lacks what a number needs, it is unknown and says why. Ages are in
completed years: "13 to 17" is 13 <= age < 18. `exact` is always Predictions of faces with an exact
age.
"""

from typing import NamedTuple

import numpy as np

import metrics
from evaluation import bootstrap
from evaluation.bootstrap import measured, measured_share, unknown

AUDIT = {  # key: (title, unit, decimals, what it is)
    "mae_18_30": ("MAE, ages 18 to 30", "years", 2, "mean of the MAEs of the 26 cells of gender "
                  "and year of age from 18 to 30: every cell counts the same (NIST)"),
    "challenge_25": ("Challenge 25", "%", 1, "share of faces aged 13 to 17 that are estimated at "
                     "25 or more (NIST, ACCS)"),
    "band_inside": ("Band 13 to 16: members found", "%", 1,
                    "share of faces aged 13 to 16 that are estimated at 13 to 16 (NIST)"),
    "band_younger": ("Band 13 to 16: younger let in", "%", 1,
                     "share of faces under 13 that are estimated at 13 to 16 (NIST)"),
    "band_older": ("Band 13 to 16: older let in", "%", 1,
                   "share of faces of 17 or more that are estimated at 13 to 16 (NIST)"),
    "not_processed": ("Not processed", "%", 1,
                      "share of all photos in which the preparation found no face (failure to "
                      "acquire, ACCS)"),
    "within_person_sd": ("Spread within a person", "years", 2,
                         "standard deviation of the errors of one person's photos, pooled over "
                         "persons (Bland and Altman, BMJ 1996)"),
}
MIN_IN_CELL = 5  # faces of one gender and year of age that count in mae_18_30
MIN_CELLS = 20  # of its 26 cells, which must have MIN_IN_CELL faces
# Bands of errors_by_face_size, as (name, first pixel), and groups of errors_by_sharpness.
FACE_SIZES = (("under 32", 0), ("32-63", 32), ("64-127", 64), ("128-255", 128), ("256+", 256))
FIFTHS = ("least sharp fifth", "second fifth", "third fifth", "fourth fifth", "sharpest fifth")


class Photos(NamedTuple):
    """What the preparation made of the photos of a split.

    processed: how many photos it found faces in.
    rejected: {list: how many photos it found no face in, or text if unknown}.
    """

    processed: int
    rejected: dict


def audit(predictions, photos=None, samples=1000, seed=0):
    """All numbers of AUDIT and the errors by face size and by sharpness.

    Args:
        predictions: Predictions.
        photos: Photos of the split; None: unknown.
        samples, seed: number of bootstrap samples, and the seed that draws them.
    Returns:
        dict of the keys of AUDIT, `face_size` and `sharpness`: {group: {"n", "mae", "bias"}},
        empty if the data does not have them.
    """
    exact = predictions.exact
    return {"mae_18_30": mean_mae_of_cells(exact, samples, seed),
            "challenge_25": challenge_25(exact),
            **band_rates(exact),
            "not_processed": not_processed(photos),
            "within_person_sd": within_person_sd(exact, samples, seed),
            "face_size": errors_by_face_size(exact, samples, seed),
            "sharpness": errors_by_sharpness(exact, samples, seed)}


def mean_mae_of_cells(exact, samples=1000, seed=0, first=18, last=30):
    """Mean over the cells of gender and year of age of each cell's MAE, in years.

    (1/C) sum over c of MAE_c. NIST FATE AEV averages 26 cells: two sexes and the ages 18 to 30. A
    cell counts the same whether it has many faces or few. Here cells with fewer than MIN_IN_CELL
    faces are left out, as long as MIN_CELLS remain.

    Args:
        first, last: years of age, both included.
    Returns:
        measured number with `n` faces and the number of `cells` that they are in.
    """
    if "gender" not in exact.faces or exact.faces["gender"].isna().all():
        return unknown("no face with an exact age has a gender (column gender)")
    years = np.floor(exact.faces["age"].to_numpy())
    chosen = (years >= first) & (years <= last) & exact.faces["gender"].notna().to_numpy()
    rows = exact.rows(chosen)
    genders = sorted(rows.faces["gender"].unique())
    if len(genders) != 2:
        return unknown(f"the faces aged {first} to {last} have {len(genders)} genders, not 2")
    cells = (np.searchsorted(genders, rows.faces["gender"].to_numpy(str)) * (last - first + 1)
             + (years[chosen] - first)).astype(int)
    counts = np.bincount(cells, minlength=2 * (last - first + 1))
    large = counts >= MIN_IN_CELL
    if large.sum() < MIN_CELLS:
        return unknown(f"{(~large).sum()} of {len(counts)} cells of gender and age have fewer than "
                       f"{MIN_IN_CELL} faces")
    rows, cells = rows.rows(large[cells]), (np.cumsum(large) - 1)[cells[large[cells]]]
    sums, numbers = bootstrap.bootstrap_sums(rows.abs_errors[:, None], cells, large.sum(), samples,
                                             rows.subjects, seed)
    # A bootstrap sample that misses a small cell averages over the others.
    replicates = np.nanmean(np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)[..., 0],
                            axis=1)
    value = (np.bincount(cells, rows.abs_errors) / counts[large]).mean()
    return measured(value, replicates, rows.count_units()) | {"n": len(cells),
                                                              "cells": int(large.sum())}


def challenge_25(exact, minor=13, adult=18, challenged=25):
    """Percent of faces with minor <= age < adult that are estimated at `challenged` or more.

    These pass without a check of documents in a shop that asks everyone who looks under 25. The
    false positive rate of "Challenge 25" of NIST FATE AEV and of the ACCS.
    """
    ages = exact.faces["age"].to_numpy()
    return _rate(exact, exact.faces["pred_age"].to_numpy() >= challenged,
                 (ages >= minor) & (ages < adult), f"aged {minor} to {adult - 1}")


def band_rates(exact, first=13, last=16):
    """How often faces inside and outside an age band are estimated to be in it, in percent.

    For services that only a band of ages may enter. NIST FATE AEV, "child online safety": the true
    positive rate of the faces aged 13 to 16, and the false positive rate of the others, here
    separately for younger and older faces.

    Args:
        first, last: years of age, both included; an estimate p is inside if
            first <= p < last + 1.
    Returns:
        dict of band_inside, band_younger and band_older.
    """
    ages, pred_ages = exact.faces["age"].to_numpy(), exact.faces["pred_age"].to_numpy()
    hits = (pred_ages >= first) & (pred_ages < last + 1)
    return {"band_inside": _rate(exact, hits, (ages >= first) & (ages < last + 1),
                                 f"aged {first} to {last}"),
            "band_younger": _rate(exact, hits, ages < first, f"under {first}"),
            "band_older": _rate(exact, hits, ages >= last + 1, f"of {last + 1} or more")}


def not_processed(photos):
    """Percent of all photos in which the preparation found no face (failure to acquire).

    rejected / (rejected + processed). It lowers a reported error if hard photos are among those
    left out.

    Args:
        photos: Photos; None: unknown.
    """
    if photos is None:
        return unknown("it is not recorded in which photos of this split no face was found")
    unclear = [name for name, count in photos.rejected.items() if not isinstance(count, int)]
    if unclear:
        return unknown(f"no list of rejected photos for {', '.join(unclear)}")
    rejected = sum(photos.rejected.values())
    hits = np.arange(photos.processed + rejected) >= photos.processed
    return measured_share(hits, np.ones(len(hits), dtype=bool), None) | {"n": len(hits)}


def within_person_sd(exact, samples=1000, seed=0):
    """Standard deviation in years of the errors of one person's photos, pooled over persons.

    sqrt(sum over persons and photos of (e - mean e of the person)^2 / sum over persons of
    (photos - 1)), with e the predicted minus the true age: the within-subject standard deviation
    (Bland and Altman, BMJ 1996;313:744). Errors in the place of estimates, since a person's photos
    may be years apart. The bootstrap draws persons.
    """
    if "subject" not in exact.faces or exact.faces["subject"].isna().all():
        return unknown("of no face with an exact age is the person known (column subject)")
    rows = exact.rows(exact.faces["subject"].notna().to_numpy())
    errors = metrics.signed_error(rows.faces["age"], rows.faces["pred_age"])
    photos = np.bincount(rows.subjects)
    means = np.bincount(rows.subjects, errors) / photos
    squares = np.bincount(rows.subjects, np.square(errors - means[rows.subjects]))
    repeated = photos > 1
    if not repeated.any():
        return unknown("no person has two photos")
    parts = np.column_stack([squares, photos - 1.0])[repeated]  # (P, 2), of each person
    sums, _ = bootstrap.bootstrap_sums(parts, np.zeros(len(parts), dtype=int), 1, samples,
                                       seed=seed)
    return measured(np.sqrt(parts[:, 0].sum() / parts[:, 1].sum()),
                    np.sqrt(sums[:, 0, 0] / sums[:, 0, 1]), len(parts)) | {"n": len(parts)}


def errors_by_face_size(exact, samples=1000, seed=0):
    """MAE and bias by the side of the face box in pixels of the photo (column face_px).

    Returns:
        {band of FACE_SIZES: {"n", "mae", "bias"}}, empty if no size is known.
    """
    rows = _known(exact, "face_px")
    if rows is None:
        return {}
    names, starts = zip(*FACE_SIZES, strict=True)
    return _error_groups(rows, np.searchsorted(starts, rows.faces["face_px"], side="right") - 1,
                         names, samples, seed)


def errors_by_sharpness(exact, samples=1000, seed=0):
    """MAE and bias of each fifth of the faces by sharpness (column sharpness).

    The sharpness is the variance of the Laplacian, see predict.sharpness. Its scale depends on the
    size of the crops, so that only its order is used.

    Returns:
        {one of FIFTHS: {"n", "mae", "bias"}}, empty if no sharpness is known, or if the values are
        too few or too equal to tell fifths apart.
    """
    rows = _known(exact, "sharpness")
    if rows is None:
        return {}
    values = rows.faces["sharpness"].to_numpy()
    starts = np.quantile(values, [0, 0.2, 0.4, 0.6, 0.8])
    if len(values) < len(FIFTHS) or len(np.unique(starts)) < len(FIFTHS):
        return {}
    return _error_groups(rows, np.searchsorted(starts, values, side="right") - 1, FIFTHS, samples,
                         seed)


def _rate(exact, hits, chosen, who):
    if not chosen.any():
        return unknown(f"no face {who}")
    return measured_share(hits, chosen, exact.subjects) | {"n": int(chosen.sum())}


def _known(exact, column):
    """The rows whose value in a column is known; None if there is none."""
    if column not in exact.faces or exact.faces[column].isna().all():
        return None
    return exact.rows(exact.faces[column].notna().to_numpy())


def _error_groups(rows, codes, names, samples, seed):
    """{name: {"n", "mae", "bias"}} of the groups that have faces.

    Args:
        rows: Predictions of B faces.
        codes: (B,) index of each face's group.
        names: list of the groups' names.
    """
    errors = metrics.signed_error(rows.faces["age"], rows.faces["pred_age"])
    values = np.column_stack([np.abs(errors), errors])
    sums, numbers = bootstrap.bootstrap_sums(values, codes, len(names), samples, rows.subjects,
                                             seed)
    groups = {}
    for code, name in enumerate(names):
        own = codes == code
        if own.any():
            replicates = bootstrap.pooled_means(sums, numbers, [code])
            units = rows.count_units(own)
            mae, bias = values[own].mean(axis=0)
            groups[name] = {"n": int(own.sum()), "mae": measured(mae, replicates[:, 0], units),
                            "bias": measured(bias, replicates[:, 1], units)}
    return groups
