"""From predictions to every number of a report: errors, groups, uncertainty, decisions, gaps.

Works on Predictions, of any model. Rows whose age is known as an interval only never enter a
metric of exact ages.

A measured number is {"value", "low", "high"}: with the 95% bootstrap interval, of a share of hits
Wilson's, over subjects where all are known. What cannot be given is null; "why" says the reason.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

import metrics
from evaluation import bootstrap
from evaluation.predictions import Predictions, face_keys

METRICS = {  # key: (title, unit, decimals, what it is)
    "mae": ("MAE", "years", 2, "mean absolute error of pred_age"),
    "mae_median": ("MAE, median decode", "years", 2,
                   "the same with the distribution's median as the age"),
    "bias": ("Bias", "years", 2, "mean of predicted minus true age; positive: estimated too old"),
    "rmse": ("RMSE", "years", 2, "root mean square error"),
    "ca3": ("CA(3)", "%", 1, "share with an error < 3 years"),
    "ca5": ("CA(5)", "%", 1, "share with an error < 5 years"),
    "ca7": ("CA(7)", "%", 1, "share with an error < 7 years"),
    "cs5": ("CS(5)", "%", 1, "share with an error ≤ 5 years"),
    "epsilon_error": ("ε-error", "", 3, "mean of 1 − exp(−(ŷ−μ)²/2σ²), μ and σ those of the votes"),
    "nll": ("NLL", "nats", 3, "mean −log probability of the true age's bin"),
    "crps": ("CRPS", "years", 2, "continuous ranked probability score of the distribution"),
    "coverage_50": ("50% interval covers", "%", 1, "share of true ages in the central 50%"),
    "coverage_80": ("80% interval covers", "%", 1, "share of true ages in the central 80%"),
    "coverage_90": ("90% interval covers", "%", 1, "share of true ages in the central 90%"),
    "coverage_95": ("95% interval covers", "%", 1, "share of true ages in the central 95%"),
    "aurc": ("AURC", "years", 2, "mean MAE over all shares kept, least certain refused first"),
}
INTERVAL_METRICS = {  # of faces whose age is known as a range, like METRICS
    "interval_accuracy": ("In the right range", "%", 1, "share of predicted ages, rounded, that "
                          "lie in their range, both ends included"),
    "interval_distance": ("Distance from the range", "years", 2,
                          "mean distance of the predicted age from its range, 0 inside"),
}
COVERAGES = (50, 80, 90, 95)  # percent
BANDS = (("0-2", 0), ("3-9", 3), *((f"{a}-{a + 9}", a) for a in range(10, 80, 10)), ("80+", 80))
LEAST_IMAGES = 30  # of a gender x race x age cell, and of a group that enters a gap
LEAST_IN_BAND = 5  # faces, or persons, of each group in an age band compared at the same ages
LEAST_COMPARED = 0.5  # share of all faces that these bands must hold
EPSILON_STD_FLOOR = 0.5  # years; votes are whole years, so no spread below that is known
CS_LIMITS = np.arange(0, 15.5, 0.5)  # years
THRESHOLDS = (13, 16, 18, 21, 25)  # years
MARGINS = (0, 1, 2, 3, 5, 7, 10)  # years
SURETIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # probability of being old enough
CURVE_MARGINS = np.arange(0, 15.25, 0.25)
CURVE_SURETIES = np.linspace(0.5, 1, 101)
TOLERATED = (5, 1)  # percent of minors passed at which two rules are compared
CUTOFF_DIGITS = {"mean": 1, "mass": 3}  # decimals of the cutoffs found for that
CURVE_POINTS = 200  # of a risk-coverage curve
FAMILIES = {"age_band": "age band", "gender": "gender", "race": "race",
            "gender_race_age_band": "gender × race × age band"}
UNKNOWN = "unknown"  # group of the faces whose gender or race is not given

NO_DISTRIBUTION = "the predictions have no distribution (no columns p0, p1, ...)"
NO_EXACT_AGES = "no face with an exact age"
LEAST_UNITS = 10  # faces, or persons, of an interval: of fewer a bootstrap's is far too narrow
TOO_FEW = f"fewer than {LEAST_UNITS} images or persons, so no interval"


# ---- The whole evaluation


def evaluate(predictions, samples=1000, seed=0):
    """Every number about one model (see the top of this file for their form).

    Args:
        predictions: Predictions.
        samples: bootstrap samples.
        seed: of the bootstrap; the same seed pairs two models on the same faces.
    Returns:
        dict of plain Python values: the keys of METRICS, n, groups, gaps, and the parts of the
        page that are more than a number.
    """
    exact = predictions.exact
    results = {"n": len(predictions.faces), "n_exact": len(exact.faces),
               "n_interval": int(predictions.is_interval.sum()),
               "n_subjects": _count_subjects(predictions.faces)}
    results |= score(exact, samples, seed)
    results["groups"], results["gaps"] = score_groups(exact, samples, seed)
    results["cs_curve"] = _cs_curve(exact)
    results["calibration"] = _calibration(exact)
    results["risk_coverage"] = _risk_coverage(exact, results["aurc"], samples, seed)
    results["decisions"] = _decisions(exact)
    results["intervals"] = _score_intervals(predictions.rows(predictions.is_interval), samples,
                                            seed)
    return results


def score(exact, samples=1000, seed=0):
    """The metrics of METRICS on faces with an exact age: {key: measured number}."""
    if not len(exact.faces):
        return {key: unknown(NO_EXACT_AGES) for key in METRICS}
    values = contributions(exact)
    subjects = subject_codes(exact.faces)
    sums, numbers = bootstrap.bootstrap_sums(values.to_numpy(), np.zeros(len(values), dtype=int), 1,
                                           samples, subjects, seed)
    replicates = bootstrap.pooled_means(sums, numbers, [0])
    results = {}
    for column, key in enumerate(values):
        known = values[key].dropna()
        finish = np.sqrt if key == "rmse" else np.asarray  # its contributions are squares
        results[key] = (measured(finish(known.mean()), finish(replicates[:, column]),
                                 count_units(subjects, values[key].notna().to_numpy()))
                        if len(known) else unknown(_why_missing(key)))
    results["aurc"] = _aurc(exact, _uncertainty(exact), samples, seed)
    return {key: results[key] for key in METRICS}


def contributions(exact):
    """(B, M) DataFrame of what each face adds to a metric's mean; NaN where it has no part in it.

    The metric is the mean of its column, except `rmse`, the root of it.
    """
    faces, age_bins, probs = exact.faces, exact.age_bins, exact.probs
    ages, pred_ages = faces["age"].to_numpy(), faces["pred_age"].to_numpy()
    errors = metrics.each_error(ages, pred_ages)
    nothing = np.full(len(faces), np.nan)
    values = {"mae": np.abs(errors), "mae_median": nothing, "bias": errors,
              "rmse": np.square(errors)}
    values |= {f"ca{n}": 100 * metrics.each_ca(ages, pred_ages, n) for n in (3, 5, 7)}
    values["cs5"] = 100 * metrics.each_cs(ages, pred_ages, 5)
    values["epsilon_error"] = (nothing if "age_std" not in faces else
                               metrics.each_epsilon_error(pred_ages, ages, faces["age_std"],
                                                          EPSILON_STD_FLOOR))
    values |= dict.fromkeys(["nll", "crps", *(f"coverage_{q}" for q in COVERAGES)], nothing)
    if probs is not None:
        values["mae_median"] = np.abs(metrics.each_error(
            ages, metrics.distribution_median(probs, age_bins)))
        values["nll"] = metrics.each_nll(probs, ages, age_bins)
        values["crps"] = metrics.each_crps(probs, ages, age_bins)
        values |= {f"coverage_{q}": 100 * metrics.each_coverage(probs, ages, age_bins, q / 100)
                   for q in COVERAGES}
    return pd.DataFrame(values)


def measured(value, replicates, units):
    """{"value", "low", "high"} from a value and its bootstrap samples over `units` units."""
    if units < LEAST_UNITS:
        return {"value": float(value), "low": None, "high": None, "why": TOO_FEW}
    low, high = bootstrap.percentile_interval(replicates)
    return {"value": float(value), "low": float(low), "high": float(high)}


def unknown(why):
    return {"value": None, "low": None, "high": None, "why": why}


def subject_codes(faces):
    """(B,) int, equal for one person of one data set; None unless all are known."""
    if not len(faces) or "subject" not in faces or faces["subject"].isna().any():
        return None
    names = faces["subject"].astype(str)
    if "dataset" in faces:
        names = faces["dataset"].astype(str) + "/" + names
    return pd.factorize(names)[0]


def count_units(subjects, rows):
    """Independent units among rows: faces, or the persons where these are known.

    Args:
        subjects: of subject_codes.
        rows: (B,) bool.
    """
    return int(rows.sum()) if subjects is None else len(np.unique(subjects[rows]))


def _count_subjects(faces):
    subjects = subject_codes(faces)
    return None if subjects is None else int(subjects.max()) + 1


def _why_missing(key):
    if key == "epsilon_error":
        return "the data has no spread of votes (no column age_std)"
    return NO_DISTRIBUTION


def _uncertainty(exact):
    """(B,) years, the predicted standard deviation, or None."""
    known = "pred_std" in exact.faces and exact.faces["pred_std"].notna().all()
    return exact.faces["pred_std"].to_numpy() if known else None


def _aurc(exact, uncertainty, samples, seed):
    if uncertainty is None:
        return unknown("no predicted standard deviation is known (no columns pred_std or p0, ...)")
    sizes, subjects = _sizes(exact), subject_codes(exact.faces)
    return measured(metrics.aurc(sizes, uncertainty),
                    bootstrap.bootstrap_aurc(sizes, uncertainty, samples, subjects, seed),
                    count_units(subjects, np.ones(len(sizes), dtype=bool)))


def _sizes(exact):
    return np.abs(metrics.each_error(exact.faces["age"], exact.faces["pred_age"]))


# ---- Groups


def age_bands(ages):
    """(B,) index into BANDS of each age, rounded to whole years."""
    rounded = np.floor(np.asarray(ages, dtype=np.float64) + 0.5)
    return np.searchsorted([first for _, first in BANDS], rounded, side="right").clip(min=1) - 1


def score_groups(exact, samples=1000, seed=0):
    """MAE and bias by age band, gender, race and, from LEAST_IMAGES faces, their cells.

    Returns:
        groups: {family: {group: {"n", "mae", "bias"}}}; gender and race groups also have
            `mae_same_ages`, the MAE at the age bands' shares in the whole set, of the bands in
            which each group has LEAST_IN_BAND units and which hold LEAST_COMPARED of all faces.
            A family without its column is absent.
        gaps: {family: {"mae", "bias", "mae_same_ages": see bootstrap.largest_gap}} where two or
            more groups have LEAST_IMAGES faces of LEAST_UNITS persons; the last one with
            `bands`, and their `share_percent` of all faces.
    """
    if not len(exact.faces):
        return {}, {}
    errors = metrics.each_error(exact.faces["age"], exact.faces["pred_age"])
    labels = _group_labels(exact.faces)
    cells, cell_keys = _finest_cells(labels)
    values = np.column_stack([np.abs(errors), errors])
    subjects = subject_codes(exact.faces)
    sums, numbers = bootstrap.bootstrap_sums(values, cells, len(cell_keys), samples, subjects, seed)
    cell_sums = np.stack([np.bincount(cells, v, len(cell_keys)) for v in values.T], axis=1)
    cell_counts = np.bincount(cells, minlength=len(cell_keys))
    table = _CellTable(cell_keys, cell_sums, cell_counts, sums, numbers, cells, subjects)
    groups, gaps = {}, {}
    for family in _families(labels):
        groups[family], gap = _score_family(table, family)
        if gap:
            gaps[family] = gap
    return groups, gaps


@dataclass(frozen=True)
class _CellTable:
    """Sums over the finest cells, here and in each bootstrap sample.

    keys: DataFrame (C rows) of age_band, gender, race labels.
    sums: (C, 2) of |error| and error; counts: (C,) faces.
    boot_sums, boot_numbers: (R, C, 2).
    of_faces: (B,) index of each face's cell; subjects: of subject_codes.
    """

    keys: pd.DataFrame
    sums: np.ndarray
    counts: np.ndarray
    boot_sums: np.ndarray
    boot_numbers: np.ndarray
    of_faces: np.ndarray
    subjects: np.ndarray | None

    def units(self, cells):
        """Independent units in a union of cells, see count_units."""
        return count_units(self.subjects, np.isin(self.of_faces, cells))

    def means(self, cells):
        """(2,) MAE and bias of a union of cells, and (R, 2) its bootstrap samples."""
        return (self.sums[cells].sum(axis=0) / self.counts[cells].sum(),
                bootstrap.pooled_means(self.boot_sums, self.boot_numbers, cells))


def _group_labels(faces):
    labels = pd.DataFrame({"age_band": [BANDS[k][0] for k in age_bands(faces["age"])]})
    for column in ("gender", "race"):
        if column in faces and faces[column].notna().any():
            labels[column] = faces[column].astype("string").fillna(UNKNOWN).to_numpy()
    return labels


def _finest_cells(labels):
    grouped = labels.groupby(list(labels), sort=True)
    keys = pd.DataFrame(list(grouped.groups), columns=list(labels)) if labels.shape[1] > 1 else (
        pd.DataFrame({"age_band": list(grouped.groups)}))
    return grouped.ngroup().to_numpy(), keys.map(lambda k: k[0] if isinstance(k, tuple) else k)


def _families(labels):
    families = [family for family in ("age_band", "gender", "race") if family in labels]
    return [*families, "gender_race_age_band"] if len(families) == 3 else families


def _members(table, family):
    """{group: indices of its cells}, age bands in their order."""
    if family == "gender_race_age_band":
        names = table.keys["gender"] + ", " + table.keys["race"] + ", " + table.keys["age_band"]
        return {name: [k] for k, name in enumerate(names) if table.counts[k] >= LEAST_IMAGES
                and UNKNOWN not in (table.keys["gender"][k], table.keys["race"][k])}
    found = table.keys[family]
    names = [n for n, _ in BANDS if n in set(found)] if family == "age_band" else (
        sorted(found.unique()))
    return {name: np.flatnonzero(found == name).tolist() for name in names}


def _score_family(table, family):
    groups, large = {}, {}
    for name, cells in _members(table, family).items():
        (mae, bias), replicates = table.means(cells)
        n, units = int(table.counts[cells].sum()), table.units(cells)
        groups[name] = {"n": n, "mae": measured(mae, replicates[:, 0], units),
                        "bias": measured(bias, replicates[:, 1], units)}
        if n >= LEAST_IMAGES and units >= LEAST_UNITS and name != UNKNOWN:
            large[name] = cells
    gaps = {}
    if len(large) > 1:
        both = {name: table.means(cells) for name, cells in large.items()}
        gaps = {key: _gap({name: (means[column], replicates[:, column])
                           for name, (means, replicates) in both.items()})
                for column, key in enumerate(("mae", "bias"))}
    if family in ("gender", "race") and len(large) > 1:
        same_ages, bands, share = _at_same_ages(table, large)
        if same_ages:
            gaps["mae_same_ages"] = _gap(same_ages) | {"bands": bands, "share_percent": share}
        for name, (value, replicates) in same_ages.items():
            groups[name]["mae_same_ages"] = measured(value, replicates, table.units(large[name]))
    return groups, gaps


def _gap(groups):
    names = list(groups)
    gap = bootstrap.largest_gap([value for value, _ in groups.values()],
                              np.column_stack([replicates for _, replicates in groups.values()]))
    return gap | {"highest": names[gap["highest"]], "lowest": names[gap["lowest"]]}


def _at_same_ages(table, groups):
    """The groups' MAE at the whole set's age mix (direct standardisation).

    Returns:
        {group: (MAE, its samples)}, empty where too few faces can be compared.
        list of the age bands compared, and the percentage of all faces in them.
    """
    bands = table.keys["age_band"].to_numpy()
    cells_of = {band: {name: [k for k in cells if bands[k] == band]
                       for name, cells in groups.items()} for band in np.unique(bands)}
    common = [band for band, by_group in cells_of.items()
              if all(table.units(cells) >= LEAST_IN_BAND for cells in by_group.values())]
    share = table.counts[np.isin(bands, common)].sum() / table.counts.sum()
    if share < LEAST_COMPARED:
        return {}, [], 0.0
    weights = np.array([table.counts[bands == band].sum() for band in common], dtype=float)
    weights /= weights.sum()
    mixed = {}
    for name in groups:
        means = [table.means(cells_of[band][name]) for band in common]
        mixed[name] = (weights @ [value[0] for value, _ in means],
                       np.column_stack([replicates[:, 0] for _, replicates in means]) @ weights)
    return mixed, [name for name, _ in BANDS if name in common], 100 * float(share)


# ---- Uncertainty


def _cs_curve(exact):
    if not len(exact.faces):
        return None
    curve = metrics.cs_curve(exact.faces["age"], exact.faces["pred_age"], CS_LIMITS)
    return {"limits_years": CS_LIMITS.tolist(), "cs_percent": curve.tolist()}


def _calibration(exact):
    """PIT histogram and the coverage of every central interval, or None."""
    if exact.probs is None or not len(exact.faces):
        return None
    ages, shares = exact.faces["age"].to_numpy(), np.arange(5, 100, 5)
    return {"pit_histogram": metrics.pit_histogram(exact.probs, ages, exact.age_bins).tolist(),
            "nominal_percent": shares.tolist(),
            "coverage_percent": metrics.coverage_curve(exact.probs, ages, exact.age_bins,
                                                       shares / 100).tolist(),
            "width_80_years": float(np.subtract(*metrics.central_interval(
                exact.probs, exact.age_bins, 0.8)[::-1]).mean())}


def _risk_coverage(exact, aurc_by_std, samples, seed):
    """Curves by the predicted spread, by the detector's confidence and by the error itself."""
    if not len(exact.faces):
        return {}
    sizes = _sizes(exact)
    curves = {"error": _risk_curve(sizes, sizes) | {"aurc": {
        "value": metrics.aurc(sizes, sizes), "low": None, "high": None}}}
    if _uncertainty(exact) is not None:
        curves["std"] = _risk_curve(sizes, _uncertainty(exact)) | {"aurc": aurc_by_std}
    if "confidence" in exact.faces and exact.faces["confidence"].notna().all():
        doubt = -exact.faces["confidence"].to_numpy()
        curves["confidence"] = _risk_curve(sizes, doubt) | {
            "aurc": _aurc(exact, doubt, samples, seed)}
    return curves


def _risk_curve(sizes, uncertainty):
    coverage, risk = metrics.risk_coverage(sizes, uncertainty)
    shown = np.unique(np.linspace(0, len(sizes) - 1, CURVE_POINTS).astype(int))
    return {"kept_percent": (100 * coverage[shown]).tolist(), "mae_years": risk[shown].tolist()}


# ---- Old enough?


def _decisions(exact):
    """{threshold: rates of minors passed and adults refused by both rules} (years as keys)."""
    return {str(threshold): _decide(exact, threshold) for threshold in THRESHOLDS
            if len(exact.faces)}


def _decide(exact, threshold):
    is_adult = (exact.faces["age"] >= threshold).to_numpy()
    result = {"n_minors": int((~is_adult).sum()), "n_adults": int(is_adult.sum())}
    scores = {"mean": exact.faces["pred_age"].to_numpy() - threshold}
    if exact.probs is not None:
        scores["mass"] = metrics.mass_above(exact.probs, exact.age_bins, threshold)
    cutoffs = {"mean": (MARGINS, CURVE_MARGINS), "mass": (SURETIES, CURVE_SURETIES)}
    subjects = subject_codes(exact.faces)
    for rule, score_of in scores.items():
        table, curve = cutoffs[rule]
        passed, refused = metrics.threshold_errors(is_adult, score_of, curve)
        result[rule] = {
            "table": [{"cutoff": cutoff,
                       "minors_passed": _rate(score_of >= cutoff, ~is_adult, subjects, "younger"),
                       "adults_refused": _rate(score_of < cutoff, is_adult, subjects, "older")}
                      for cutoff in table],
            "curve": {"cutoff": curve.tolist(), "minors_passed": _or_none(passed),
                      "adults_refused": _or_none(refused)},
            "at_tolerance": {str(percent): _cost_of_safety(is_adult, score_of, percent,
                                                           CUTOFF_DIGITS[rule])
                             for percent in TOLERATED}}
    return result


def _rate(hits, chosen, subjects, side):
    if not chosen.any():
        return unknown(f"no face {side} than the threshold")
    return _share(hits, chosen, subjects)


def _share(hits, chosen, subjects):
    """A measured number: the percentage of hits among the chosen rows, with Wilson's interval."""
    value, low, high = bootstrap.share_interval(hits[chosen],
                                              None if subjects is None else subjects[chosen])
    return {"value": value, "low": low, "high": high}


def _cost_of_safety(is_adult, scores, percent, digits):
    """The lowest cutoff at which at most `percent` of the minors pass, and adults it refuses.

    The cutoff has `digits` decimals, so that it holds as it is printed.
    """
    minors = np.sort(scores[~is_adult])
    if not len(minors) or not is_adult.any():
        return None
    allowed = int(np.floor(len(minors) * percent / 100))
    highest = minors[len(minors) - 1 - allowed]
    cutoff = np.ceil(highest * 10 ** digits) / 10 ** digits
    if cutoff <= highest:
        cutoff = round(cutoff + 10 ** -digits, digits)
    return {"cutoff": float(cutoff),
            "adults_refused": 100 * float((scores[is_adult] < cutoff).mean())}


def _or_none(values):
    return None if np.isnan(values).any() else values.tolist()


# ---- Ages known as intervals


def _score_intervals(faces_in, samples, seed):
    """Interval accuracy and distance, overall and by interval, gender and race, or None."""
    faces = faces_in.faces.reset_index(drop=True)
    if not len(faces):
        return None
    distances = metrics.each_interval_distance(faces["pred_age"], faces["age_min"],
                                               faces["age_max"], faces_in.last_age)
    families = {"all": pd.Series(["all"] * len(faces)),
                "interval": _interval_names(faces, faces_in.last_age)}
    families |= {c: faces[c].astype("string").fillna(UNKNOWN) for c in ("gender", "race")
                 if c in faces and faces[c].notna().any()}
    return {family: _score_partition(distances, names, subject_codes(faces), samples, seed)
            for family, names in families.items()}


def _interval_names(faces, last_age):
    names = [f"{low:.0f}+" if high >= last_age else f"{low:.0f}-{high:.0f}"
             for low, high in zip(faces["age_min"], faces["age_max"], strict=True)]
    order = faces[["age_min", "age_max"]].assign(name=names).sort_values(["age_min", "age_max"])
    return pd.Series(pd.Categorical(names, order["name"].unique()))


def _score_partition(distances, names, subjects, samples, seed):
    groups = names.groupby(names, observed=True).groups
    codes = np.zeros(len(distances), dtype=int)
    for code, rows in enumerate(groups.values()):
        codes[rows] = code
    sums, numbers = bootstrap.bootstrap_sums(distances[:, None], codes, len(groups), samples,
                                           subjects, seed)
    scored = {}
    for code, name in enumerate(groups):
        replicates = bootstrap.pooled_means(sums, numbers, [code])[:, 0]
        own = codes == code
        scored[str(name)] = {"n": int(own.sum()),
                             "interval_accuracy": _share(distances == 0, own, subjects),
                             "interval_distance": measured(distances[own].mean(), replicates,
                                                           count_units(subjects, own))}
    return scored


# ---- Comparing models


def compare(first, second, samples=1000, seed=0):
    """Paired bootstrap of second minus first, on the photos both have.

    Args:
        first, second: lists of Predictions, the seeds of one recipe (or one model); a face's
            contribution is the mean over them.
    Returns:
        {"n", "n_other_age", "differences": {metric: measured number with "p_value" and
        "significant"}}, metrics that either lacks left out; "n_other_age": faces left out since
        the tables do not agree on their true age; "n" 0 where no face is left.
    """
    with_dataset = all("dataset" in one.faces for one in (*first, *second))
    sides = [[_by_photo(one.exact, with_dataset) for one in side] for side in (first, second)]
    photos = _common_photos([*sides[0], *sides[1]])
    sides = [[_in_order(one, photos) for one in side] for side in sides]
    ages = np.stack([one.faces["age"] for side in sides for one in side])
    agreed = (ages == ages[0]).all(axis=0)
    if not agreed.any():
        return {"n": 0, "n_other_age": len(photos), "differences": {}}
    photos, sides = photos[agreed], [[one.rows(agreed) for one in side] for side in sides]
    subjects = subject_codes(sides[0][0].faces)
    means = [sum(contributions(one) for one in side) / len(side) for side in sides]
    sums, numbers = bootstrap.bootstrap_sums(np.hstack(means), np.zeros(len(photos), dtype=int), 1,
                                           samples, subjects, seed)
    replicates = bootstrap.pooled_means(sums, numbers, [0])
    replicates = np.split(replicates, 2, axis=1)  # of the first and of the second
    differences = {}
    for column, key in enumerate(means[0]):
        if not any(side[key].isna().all() for side in means):
            finish = np.sqrt if key == "rmse" else np.asarray
            values = [finish(side[key].mean()) for side in means]
            drawn = [finish(side[:, column]) for side in replicates]
            known = means[0][key].notna() & means[1][key].notna()
            differences[key] = _difference(values, drawn,
                                           count_units(subjects, known.to_numpy()))
    uncertain = [[_uncertainty(one) for one in side] for side in sides]
    if all(one is not None for side in uncertain for one in side):
        areas = [[(metrics.aurc(_sizes(one), spread),
                   bootstrap.bootstrap_aurc(_sizes(one), spread, samples, subjects, seed))
                  for one, spread in zip(*pair, strict=True)]
                 for pair in zip(sides, uncertain, strict=True)]
        differences["aurc"] = _difference(
            [np.mean([value for value, _ in side]) for side in areas],
            [np.mean([drawn for _, drawn in side], axis=0) for side in areas],
            count_units(subjects, np.ones(len(photos), dtype=bool)))
    return {"n": len(photos), "n_other_age": int((~agreed).sum()), "differences": differences}


def _by_photo(exact, with_dataset):
    """The same with face_keys as index: of the photo, and where wanted of its data set."""
    keys = face_keys(exact.faces, ["dataset", "photo"] if with_dataset else ["photo"])
    return Predictions(exact.faces.set_axis(keys, axis=0), exact.age_bins, exact.probs)


def _common_photos(tables):
    photos = tables[0].faces.index
    for other in tables[1:]:
        photos = photos.intersection(other.faces.index, sort=False)
    return photos


def _in_order(exact, photos):
    places = exact.faces.index.get_indexer(photos)
    return Predictions(exact.faces.iloc[places], exact.age_bins,
                       None if exact.probs is None else exact.probs[places])


def _difference(values, replicates, units):
    samples = replicates[1] - replicates[0]
    result = measured(values[1] - values[0], samples, units)
    known = result["low"] is not None
    result["p_value"] = bootstrap.difference_p_value(samples) if known else None
    result["significant"] = bool(known and (result["low"] > 0 or result["high"] < 0))
    return result


def seed_spread(evaluations):
    """{metric: {"mean", "sd", "n"}} over the seeds of one recipe; sd of the sample (n - 1).

    Metrics of METRICS and INTERVAL_METRICS, those that every seed has.
    """
    spread = {}
    runs = [results | (results["intervals"]["all"]["all"] if results["intervals"] else {})
            for results in evaluations]
    for key in (*METRICS, *INTERVAL_METRICS):
        values = [run[key]["value"] if key in run else None for run in runs]
        if None not in values:
            spread[key] = {"mean": float(np.mean(values)), "n": len(values),
                           "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}
    return spread
