"""From predictions to every number of a report: errors, uncertainty, decisions, comparisons.

`evaluate_all` takes the Predictions of any models and returns an Evaluation, which report.py
writes. Faces whose age is known only as an interval never enter a metric of exact ages.

A measured number is {"value", "low", "high"} with a 95% interval: Wilson's for the rates of
decisions, of photos without a face and of hits in an interval, and for a share of 0 or 100%, else
the bootstrap's. If all persons are known, both are over persons. A number that is not known has
None for the value, and "why" in words.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

import metrics
from evaluation import bootstrap
from evaluation.audit import audit
from evaluation.bootstrap import measured, measured_share, unknown
from evaluation.groups import UNKNOWN, score_groups
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
INTERVAL_METRICS = {  # like METRICS, for faces whose age is known as a range
    "interval_accuracy": ("In the right range", "%", 1, "share of predicted ages, rounded, that "
                          "lie in their range, both ends included"),
    "interval_distance": ("Distance from the range", "years", 2,
                          "mean distance of the predicted age from its range, 0 inside"),
}
COVERAGES = (50, 80, 90, 95)  # percent
SIGNIFICANT = 0.05  # a difference or a gap is called real below this p-value
MIN_EPSILON_STD = 0.5  # years; votes are whole years, so a smaller spread cannot be measured
CS_LIMITS = np.arange(0, 15.5, 0.5)  # years
THRESHOLDS = (13, 16, 18, 21, 25)  # years
MARGINS = (0, 1, 2, 3, 5, 7, 10)  # years
SURETIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # probability of being old enough
CURVE_MARGINS = np.arange(0, 15.25, 0.25)
CURVE_SURETIES = np.linspace(0.5, 1, 101)
TOLERATED = (5, 1)  # percent of minors passed at which the two rules are compared
CUTOFFS = {"mean": (1, np.inf), "mass": (3, 1)}  # decimals of the cutoffs found, and the largest
CURVE_POINTS = 200  # in a risk-coverage curve

NO_DISTRIBUTION = "the predictions have no distribution (no columns p0, p1, ...)"
NO_EXACT_AGES = "no face with an exact age"
NO_AGE_RANGES = "no face with an age range"


# ---- The whole evaluation


class Variants(NamedTuple):
    """The same model's predictions made in other ways, to compare with.

    tta: Predictions with test-time augmentation, or None.
    uncalibrated: Predictions before calibration; None if the model is not calibrated.
    temperature: one number or two (see metrics.face_temperatures) by which the model is
        calibrated; None if it is not.
    """

    tta: Predictions | None = None
    uncalibrated: Predictions | None = None
    temperature: float | tuple | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report states.

    models: {name: [Predictions, ...]}, as they were evaluated.
    results: dict of plain Python values, for metrics.json: `evaluate` of the first model, and the
        comparisons.
    runs: {name: `evaluate` of its first seed}.
    """

    models: dict
    results: dict
    runs: dict

    @property
    def described(self):
        """Predictions of the model that is described in detail."""
        return next(iter(self.models.values()))[0]


def evaluate_all(models, variants=None, photos=None, samples=1000, seed=0):
    """Every number about one or several models.

    Args:
        models: {name: [Predictions, ...]}: one for each seed of a recipe, or a single one. The
            first of the first name is described in detail.
        variants: Variants of that one, or None.
        photos: audit.Photos of the split, or None if unknown.
        samples: number of bootstrap samples.
        seed: number that starts the bootstrap; the same one pairs two models on the same faces.
    Returns:
        Evaluation.
    """
    variants = variants or Variants()
    runs = {name: [evaluate(one, samples, seed) for one in seeds]
            for name, seeds in models.items()}
    first = next(iter(models))
    described = models[first][0]
    results = dict(runs[first][0])
    ranged = described.rows(described.is_interval)
    results["bootstrap"] = {"samples": samples, "seed": seed,
                            "unit": _unit(described.exact if results["n_exact"] else ranged),
                            "unit_ranges": _unit(ranged) if results["n_interval"] else None}
    results["tta"] = results["uncalibrated"] = None
    if variants.tta is not None:
        results["tta"] = score(variants.tta.exact, samples, seed) | {
            "change": compare([described], [variants.tta], samples, seed)}
    if variants.uncalibrated is not None:
        results["uncalibrated"] = {"temperature": variants.temperature} | score(
            variants.uncalibrated.exact, samples, seed)
    results["audit"] = audit(described, photos, samples, seed)
    results["models"] = _side_by_side(runs)
    results["comparisons"] = [
        {"first": a, "second": b} | compare(models[a], models[b], samples, seed)
        for a, b in itertools.combinations(models, 2)]
    results["seeds"] = {name: seed_spread(seeds) for name, seeds in runs.items() if len(seeds) > 1}
    return Evaluation(models, results, {name: seeds[0] for name, seeds in runs.items()})


def _unit(predictions):
    """What a bootstrap sample of these faces draws."""
    return "face" if predictions.subjects is None else "subject"


def _side_by_side(runs):
    """{"model" or "recipe, seed k": its metrics}; empty for a single model."""
    named = {name if len(seeds) == 1 else f"{name}, seed {k}": results
             for name, seeds in runs.items() for k, results in enumerate(seeds, 1)}
    if len(named) == 1:
        return {}
    values = {name: _all_metrics(results) for name, results in named.items()}
    keys = [key for key in (*METRICS, *INTERVAL_METRICS)
            if any(key in known for known in values.values())]
    return {name: {"n_exact": results["n_exact"], "n_interval": results["n_interval"]}
            | {key: values[name].get(key, unknown(NO_AGE_RANGES)) for key in keys}
            for name, results in named.items()}


def _all_metrics(results):
    """{metric: measured number} of METRICS, and of INTERVAL_METRICS if faces have age ranges."""
    ranged = results["intervals"]["all"]["all"] if results["intervals"] else {}
    return {key: (results | ranged)[key] for key in (*METRICS, *INTERVAL_METRICS)
            if key in METRICS or key in ranged}


def evaluate(predictions, samples=1000, seed=0):
    """Every number about one model, as measured numbers (see the top of this file).

    Args:
        predictions: Predictions.
        samples, seed: see evaluate_all.
    Returns:
        dict of plain Python values: the keys of METRICS, n, groups, gaps, and the curves and
        tables of the page.
    """
    exact = predictions.exact
    results = {"n": len(predictions.faces), "n_exact": len(exact.faces),
               "n_interval": int(predictions.is_interval.sum()),
               "n_subjects": None if predictions.subjects is None else predictions.count_units()}
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
    sums, numbers = bootstrap.bootstrap_sums(values.to_numpy(), np.zeros(len(values), dtype=int), 1,
                                             samples, exact.subjects, seed)
    replicates = bootstrap.pooled_means(sums, numbers, [0])
    results = {}
    for column, key in enumerate(values):
        known = values[key].dropna()
        finish = np.sqrt if key == "rmse" else np.asarray  # its contributions are squares
        units = exact.count_units(values[key].notna().to_numpy())
        if not len(known):
            results[key] = unknown(_why_missing(key))
        elif METRICS[key][1] == "%" and known.mean() in (0, 100) and units >= bootstrap.MIN_UNITS:
            # All hit or none do, and so they do in each bootstrap sample.
            results[key] = measured_share((values[key] == 100).to_numpy(),
                                          values[key].notna().to_numpy(), exact.subjects)
        else:
            results[key] = measured(finish(known.mean()), finish(replicates[:, column]), units)
    results["aurc"] = _aurc(exact, exact.pred_std, samples, seed)
    return {key: results[key] for key in METRICS}


def contributions(exact):
    """(B, M) DataFrame of what each face adds to each metric; NaN if it does not count in it.

    A metric is the mean of its column; `rmse` is the root of that mean.
    """
    faces, age_bins, probs = exact.faces, exact.age_bins, exact.probs
    ages, pred_ages = faces["age"].to_numpy(), faces["pred_age"].to_numpy()
    errors = metrics.signed_error(ages, pred_ages)
    nothing = np.full(len(faces), np.nan)
    values = {"mae": exact.abs_errors, "mae_median": nothing, "bias": errors,
              "rmse": np.square(errors)}
    values |= {f"ca{n}": 100 * metrics.ca_hits(ages, pred_ages, n) for n in (3, 5, 7)}
    values["cs5"] = 100 * metrics.cs_hits(ages, pred_ages, 5)
    values["epsilon_error"] = (nothing if "age_std" not in faces else
                               metrics.epsilon_error(pred_ages, ages, faces["age_std"],
                                                          MIN_EPSILON_STD))
    values |= dict.fromkeys(["nll", "crps", *(f"coverage_{q}" for q in COVERAGES)], nothing)
    if probs is not None:
        values["mae_median"] = metrics.absolute_error(
            ages, metrics.distribution_median(probs, age_bins))
        values["nll"] = metrics.nll(probs, ages, age_bins)
        values["crps"] = metrics.crps(probs, ages, age_bins)
        values |= {f"coverage_{q}": 100 * metrics.coverage(probs, ages, age_bins, q / 100)
                   for q in COVERAGES}
    return pd.DataFrame(values)


def _why_missing(key):
    if key == "epsilon_error":
        return "the data has no spread of votes (no column age_std)"
    return NO_DISTRIBUTION


def _aurc(exact, uncertainty, samples, seed):
    if uncertainty is None:
        return unknown("no predicted standard deviation is known (no columns pred_std or p0, ...)")
    return measured(metrics.aurc(exact.abs_errors, uncertainty),
                    bootstrap.bootstrap_aurc(exact.abs_errors, uncertainty, samples,
                                             exact.subjects, seed),
                    exact.count_units())


# ---- Uncertainty


def _cs_curve(exact):
    if not len(exact.faces):
        return None
    curve = metrics.cs_curve(exact.faces["age"], exact.faces["pred_age"], CS_LIMITS)
    return {"limits_years": CS_LIMITS.tolist(), "cs_percent": curve.tolist()}


def _calibration(exact):
    """PIT histogram, coverage of central intervals and the mean width of the 80% one, or None."""
    if exact.probs is None or not len(exact.faces):
        return None
    ages, shares = exact.faces["age"].to_numpy(), np.arange(5, 100, 5)
    return {"pit_histogram": metrics.pit_histogram(exact.probs, ages, exact.age_bins).tolist(),
            "nominal_percent": shares.tolist(),
            "coverage_percent": metrics.coverage_curve(exact.probs, ages, exact.age_bins,
                                                       shares / 100).tolist(),
            "width_80_years": float(np.subtract(*metrics.central_interval(
                exact.probs, exact.age_bins, metrics.INTERVAL_SHARE)[::-1]).mean())}


def _risk_coverage(exact, aurc_by_std, samples, seed):
    """Curves by the predicted spread, by the detector's confidence and by the error itself."""
    if not len(exact.faces):
        return {}
    sizes = exact.abs_errors
    curves = {"error": _risk_curve(sizes, sizes) | {"aurc": {
        "value": metrics.aurc(sizes, sizes), "low": None, "high": None}}}
    if exact.pred_std is not None:
        curves["std"] = _risk_curve(sizes, exact.pred_std) | {"aurc": aurc_by_std}
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
    """{threshold in years as text: rates of minors passed and adults refused by both rules}."""
    return {str(threshold): _decide(exact, threshold) for threshold in THRESHOLDS
            if len(exact.faces)}


def _decide(exact, threshold):
    is_adult = (exact.faces["age"] >= threshold).to_numpy()
    result = {"n_minors": int((~is_adult).sum()), "n_adults": int(is_adult.sum())}
    scores = {"mean": exact.faces["pred_age"].to_numpy() - threshold}
    if exact.probs is not None:
        scores["mass"] = metrics.probability_of_at_least(exact.probs, exact.age_bins, threshold)
    cutoffs = {"mean": (MARGINS, CURVE_MARGINS), "mass": (SURETIES, CURVE_SURETIES)}
    for rule, score_of in scores.items():
        table, curve = cutoffs[rule]
        passed, refused = metrics.threshold_errors(is_adult, score_of, curve)
        result[rule] = {
            "table": [{"cutoff": cutoff,
                       "minors_passed": _share(score_of >= cutoff, ~is_adult, exact, "younger"),
                       "adults_refused": _share(score_of < cutoff, is_adult, exact, "older")}
                      for cutoff in table],
            "curve": {"cutoff": curve.tolist(), "minors_passed": _or_none(passed),
                      "adults_refused": _or_none(refused)},
            "at_tolerance": {str(percent): _cost_of_safety(is_adult, score_of, percent, rule)
                             for percent in TOLERATED}}
    return result


def _share(hits, chosen, exact, side):
    if not chosen.any():
        return unknown(f"no face {side} than the threshold")
    return measured_share(hits, chosen, exact.subjects)


def _cost_of_safety(is_adult, scores, percent, rule):
    """The lowest cutoff at which at most `percent` of the minors pass, and the adults it refuses.

    The cutoff is rounded up to the decimals of the rule, so that the printed one keeps the promise
    too. Both are None, with "why", if the rule has no such cutoff; all is None without faces on
    both sides.
    """
    minors = np.sort(scores[~is_adult])
    if not len(minors) or not is_adult.any():
        return None
    digits, largest = CUTOFFS[rule]
    allowed = int(np.floor(len(minors) * percent / 100))
    highest = minors[len(minors) - 1 - allowed]
    cutoff = np.ceil(highest * 10 ** digits) / 10 ** digits
    if cutoff <= highest:
        cutoff = round(cutoff + 10 ** -digits, digits)
    if cutoff > largest:
        return {"cutoff": None, "adults_refused": None, "why": "no probability keeps this promise"}
    return {"cutoff": float(cutoff),
            "adults_refused": 100 * float((scores[is_adult] < cutoff).mean())}


def _or_none(values):
    return None if np.isnan(values).any() else values.tolist()


# ---- Ages known as intervals


def _score_intervals(ranged, samples, seed):
    """Interval accuracy and distance, overall and by interval, gender and race, or None."""
    faces = ranged.faces.reset_index(drop=True)
    if not len(faces):
        return None
    distances = _interval_distances(ranged)
    families = {"all": pd.Series(["all"] * len(faces)),
                "interval": _interval_names(faces, ranged.last_age)}
    families |= {c: faces[c].astype("string").fillna(UNKNOWN) for c in ("gender", "race")
                 if c in faces and faces[c].notna().any()}
    return {family: _score_partition(ranged, distances, names, samples, seed)
            for family, names in families.items()}


def _interval_distances(ranged):
    """(B,) years from each predicted age to the range of its label, 0 inside."""
    return metrics.interval_distance(ranged.faces["pred_age"], ranged.labels["age_min"],
                                     ranged.labels["age_max"], ranged.last_age)


def _interval_contributions(ranged):
    """Like contributions, of faces with an age range to INTERVAL_METRICS."""
    distances = _interval_distances(ranged)
    return pd.DataFrame({"interval_accuracy": 100.0 * (distances == 0),
                         "interval_distance": distances})


def _interval_names(faces, last_age):
    names = [f"{low:.0f}+" if high >= last_age else f"{low:.0f}-{high:.0f}"
             for low, high in zip(faces["age_min"], faces["age_max"], strict=True)]
    order = faces[["age_min", "age_max"]].assign(name=names).sort_values(["age_min", "age_max"])
    return pd.Series(pd.Categorical(names, order["name"].unique()))


def _score_partition(ranged, distances, names, samples, seed):
    groups = names.groupby(names, observed=True).groups
    codes = np.zeros(len(distances), dtype=int)
    for code, rows in enumerate(groups.values()):
        codes[rows] = code
    sums, numbers = bootstrap.bootstrap_sums(distances[:, None], codes, len(groups), samples,
                                             ranged.subjects, seed)
    scored = {}
    for code, name in enumerate(groups):
        replicates = bootstrap.pooled_means(sums, numbers, [code])[:, 0]
        own = codes == code
        scored[str(name)] = {"n": int(own.sum()),
                             "interval_accuracy": measured_share(distances == 0, own,
                                                                 ranged.subjects),
                             "interval_distance": measured(distances[own].mean(), replicates,
                                                           ranged.count_units(own))}
    return scored


# ---- Comparing models


def compare(first, second, samples=1000, seed=0):
    """Paired bootstrap of second minus first, on the faces that both have.

    Args:
        first, second: lists of Predictions, one for each seed of a recipe; a face counts with the
            mean over them.
        samples, seed: see evaluate_all.
    Returns:
        {"n", "n_interval", "n_other_age", "differences": {metric: measured number with "p_value"
        and "significant"}}. n, n_interval: faces compared, with an exact age and with an age range.
        n_other_age: faces left out because the tables give them different true ages or ranges.
        Metrics that either side lacks are left out.
    """
    exact, n_other_age = _same_faces(first, second, is_interval=False)
    ranged, n_other_range = _same_faces(first, second, is_interval=True)
    return {"n": len(exact[0][0].faces), "n_interval": len(ranged[0][0].faces),
            "n_other_age": n_other_age + n_other_range,
            "differences": _mean_differences(exact, contributions, samples, seed)
            | _aurc_difference(exact, samples, seed)
            | _mean_differences(ranged, _interval_contributions, samples, seed)}


def _mean_differences(sides, contributions_of, samples, seed):
    """Differences of the metrics that are means over the faces; empty without faces.

    Args:
        sides: from _same_faces.
        contributions_of: function like contributions.
        samples, seed: see evaluate_all.
    """
    paired, differences = sides[0][0], {}
    n = len(paired.faces)
    if not n:
        return differences
    means = [sum(contributions_of(one) for one in side) / len(side) for side in sides]
    known = means[0].notna() & means[1].notna()
    means = [side.where(known) for side in means]
    sums, numbers = bootstrap.bootstrap_sums(np.hstack(means), np.zeros(n, dtype=int), 1,
                                             samples, paired.subjects, seed)
    replicates = bootstrap.pooled_means(sums, numbers, [0])
    replicates = np.split(replicates, 2, axis=1)  # of the first and of the second
    for column, key in enumerate(means[0]):
        if known[key].any():
            finish = np.sqrt if key == "rmse" else np.asarray
            values = [finish(side[key].mean()) for side in means]
            drawn = [finish(side[:, column]) for side in replicates]
            differences[key] = _difference(values, drawn,
                                           paired.count_units(known[key].to_numpy()))
    return differences


def _aurc_difference(sides, samples, seed):
    """Like _mean_differences, of the AURC; empty unless all tables have spreads."""
    paired = sides[0][0]
    if not len(paired.faces) or any(one.pred_std is None for side in sides for one in side):
        return {}
    values = [np.mean([metrics.aurc(one.abs_errors, one.pred_std) for one in side])
              for side in sides]
    drawn = [np.mean([bootstrap.bootstrap_aurc(one.abs_errors, one.pred_std, samples,
                                               paired.subjects, seed) for one in side], axis=0)
             for side in sides]
    return {"aurc": _difference(values, drawn, paired.count_units())}


def _same_faces(first, second, is_interval):
    """The faces that all tables have and give the same true age or range, in one order.

    Args:
        first, second: see compare.
        is_interval: whether the faces with an age range are meant, or those with an exact age.
    Returns:
        [first, second] as lists of Predictions; how many faces have different ages or ranges.
    """
    with_dataset = all("dataset" in one.faces for one in (*first, *second))
    sides = [[_by_photo(one.rows(one.is_interval == is_interval), with_dataset) for one in side]
             for side in (first, second)]
    photos = _common_photos([*sides[0], *sides[1]])
    sides = [[_in_order(one, photos) for one in side] for side in sides]
    names = ("age_min", "age_max") if is_interval else ("age",)
    labels = np.stack([[one.labels[name] for name in names] for side in sides for one in side])
    agreed = (labels == labels[0]).all(axis=(0, 1))  # of (tables, names, faces)
    return [[one.rows(agreed) for one in side] for side in sides], int((~agreed).sum())


def _by_photo(predictions, with_dataset):
    """The same with face_keys as index: of the photo, and of its data set if that is wanted."""
    keys = face_keys(predictions.faces, ["dataset", "photo"] if with_dataset else ["photo"])
    return Predictions(predictions.faces.set_axis(keys, axis=0), predictions.age_bins,
                       predictions.probs)


def _common_photos(tables):
    photos = tables[0].faces.index
    for other in tables[1:]:
        photos = photos.intersection(other.faces.index, sort=False)
    return photos


def _in_order(predictions, photos):
    places, probs = predictions.faces.index.get_indexer(photos), predictions.probs
    return Predictions(predictions.faces.iloc[places], predictions.age_bins,
                       None if probs is None else probs[places])


def _difference(values, replicates, units):
    samples = replicates[1] - replicates[0]
    result = measured(values[1] - values[0], samples, units)
    known = result["low"] is not None
    result["p_value"] = bootstrap.difference_p_value(samples) if known else None
    # With a p-value of just above 0.05 the interval may end just beside 0.
    result["significant"] = bool(known and result["p_value"] < SIGNIFICANT and
                                 (result["low"] > 0 or result["high"] < 0))
    return result


def seed_spread(evaluations):
    """{metric: {"mean", "sd", "n"}} over the seeds of one recipe; sd of the sample (n - 1).

    Of METRICS and INTERVAL_METRICS those that every seed has.
    """
    spread = {}
    runs = [_all_metrics(results) for results in evaluations]
    for key in (*METRICS, *INTERVAL_METRICS):
        values = [run[key]["value"] if key in run else None for run in runs]
        if None not in values:
            spread[key] = {"mean": float(np.mean(values)), "n": len(values),
                           "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}
    return spread
