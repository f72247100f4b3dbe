"""How good ages and age distributions are: plain numpy functions, each with unit and source.

An error is predicted minus true age, in years. A label that is a whole number `a` stands for
the bin [a - 0.5, a + 0.5): the scale is that of the labels the model was trained on, whether
those are completed years or rounded ones, and no half year is added or taken away.
"""

import numpy as np


def mae(ages, pred_ages):
    """Mean absolute error, mean |pred - true|, in years, >= 0.

    Args:
        ages: (B,) true ages in years.
        pred_ages: (B,) predicted ages in years, not rounded.
    Raises:
        ValueError: nothing to score, or the two differ in length (so do all functions below).
    """
    return float(np.abs(_errors(ages, pred_ages)).mean())


def bias(ages, pred_ages):
    """Mean signed error, mean (pred - true), in years; positive: estimated too old."""
    return float(_errors(ages, pred_ages).mean())


def rmse(ages, pred_ages):
    """Root mean square error in years, >= the MAE."""
    return float(np.sqrt(np.square(_errors(ages, pred_ages)).mean()))


def ca(ages, pred_ages, n):
    """Cumulative accuracy: percent of images with |error| < n years, strictly.

    As counted on MegaAge (Zhang et al., BMVC 2017); see cs for "at most n".
    """
    return 100 * float((np.abs(_errors(ages, pred_ages)) < n).mean())


def cs(ages, pred_ages, n):
    """Cumulative score: percent of images with |error| <= n years (Geng et al., PAMI 2007)."""
    return 100 * float((np.abs(_errors(ages, pred_ages)) <= n).mean())


def cs_curve(ages, pred_ages, limits):
    """(len(limits),) cumulative score in percent at each limit in years; never falls."""
    sizes = np.sort(np.abs(_errors(ages, pred_ages)))
    return 100 * np.searchsorted(sizes, limits, side="right") / len(sizes)


def epsilon_error(pred_ages, means, stds, std_floor):
    """Mean of 1 - exp(-(pred - mean)^2 / (2 std^2)), in [0, 1] (ChaLearn LAP 2015).

    Escalera et al., ICCV Workshops 2015: an error counts by how much the voters disagree.

    Args:
        pred_ages: (B,) predicted apparent ages in years.
        means, stds: (B,) mean and standard deviation of each image's votes, in years.
        std_floor: years, > 0; smaller stds are raised to it, since at std 0 the formula has
            no value.
    """
    return float(epsilon_errors(pred_ages, means, stds, std_floor).mean())


def epsilon_errors(pred_ages, means, stds, std_floor):
    """(B,) epsilon-error of each image (see epsilon_error)."""
    if not std_floor > 0:
        raise ValueError(f"std_floor must be positive, got {std_floor}")
    errors = _errors(means, pred_ages)
    stds = np.maximum(_same_length(stds, errors, "vote spreads"), std_floor)
    return 1 - np.exp(-np.square(errors / stds) / 2)


def interval_accuracy(pred_ages, age_min, age_max, last_age=np.inf):
    """Percent of predicted ages that, rounded, lie in their interval, both ends inclusive.

    For data sets whose labels are age ranges (FairFace, Adience). Half a year rounds up.

    Args:
        pred_ages: (B,) predicted ages in years.
        age_min, age_max: (B,) first and last whole year of each interval.
        last_age: the last age bin; an interval that ends there has no upper end
            ("more than 70").
    """
    return 100 * float((_interval_distances(pred_ages, age_min, age_max, last_age) == 0).mean())


def interval_distance(pred_ages, age_min, age_max, last_age=np.inf):
    """Mean distance in years from predicted ages to their intervals, 0 inside.

    The interval is [age_min - 0.5, age_max + 0.5), whose ages round into it, so that the
    distance is zero exactly where interval_accuracy counts a hit (see there).
    """
    return float(_interval_distances(pred_ages, age_min, age_max, last_age).mean())


def _interval_distances(pred_ages, age_min, age_max, last_age):
    pred_ages = _filled(pred_ages, "predicted ages")
    low = _same_length(age_min, pred_ages, "age_min") - 0.5
    high = _same_length(age_max, pred_ages, "age_max") + 0.5
    high = np.where(high > last_age, np.inf, high)
    above = np.where(pred_ages >= high, np.nextafter(pred_ages - high, np.inf), 0)  # high is out
    return np.where(pred_ages < low, low - pred_ages, above)


def _errors(ages, pred_ages):
    pred_ages = _filled(pred_ages, "predicted ages")
    return pred_ages - _same_length(ages, pred_ages, "ages")


def _filled(values, name):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected a list of {name}, at least one, got shape {values.shape}")
    return values


def _same_length(values, others, name):
    values = np.asarray(values, dtype=np.float64)
    if values.shape != others.shape:
        raise ValueError(f"{len(others)} predicted ages for {name} of shape {values.shape}")
    return values
