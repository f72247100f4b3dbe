"""How good ages and age distributions are: plain numpy functions, each with unit and source.

An error is predicted minus true age, in years. Ages are on the scale of the labels: most data
sets give whole numbers, some of them completed years (a face labelled 17 is 17.0 to 17.99 years
old), some rounded ones, and a model learns whichever it was shown, so nothing is added or taken
away. On that scale the bin of age `a` is [a - 0.5, a + 0.5); a label belongs to the bin it rounds
to, a label beyond the first or last bin to that bin, and a distribution spreads each bin's
probability evenly over it. Bins are consecutive whole years.
"""

import numpy as np

PROB_FLOOR = 1e-12  # least probability whose logarithm is taken
TEMPERATURES = (0.05, 20.0)  # range searched for the calibration temperature

# ---- Errors of predicted ages


def each_error(ages, pred_ages):
    """(B,) error of each image, predicted - true age, in years (arguments: see mae)."""
    pred_ages = filled(pred_ages, "predicted ages")
    return pred_ages - _same_length(ages, pred_ages, "ages")


def mae(ages, pred_ages):
    """Mean absolute error, mean |pred - true|, in years, >= 0.

    Args:
        ages: (B,) true ages in years.
        pred_ages: (B,) predicted ages in years, not rounded.
    Raises:
        ValueError: nothing to score, or the two differ in length (so do all functions below).
    """
    return float(np.abs(each_error(ages, pred_ages)).mean())


def bias(ages, pred_ages):
    """Mean signed error, mean (pred - true), in years; positive: estimated too old."""
    return float(each_error(ages, pred_ages).mean())


def rmse(ages, pred_ages):
    """Root mean square error in years, >= the MAE."""
    return float(np.sqrt(np.square(each_error(ages, pred_ages)).mean()))


def ca(ages, pred_ages, n):
    """Cumulative accuracy: percent of images with |error| < n years, strictly.

    As counted on MegaAge (Zhang et al., BMVC 2017); see cs for "at most n".
    """
    return 100 * float(each_ca(ages, pred_ages, n).mean())


def each_ca(ages, pred_ages, n):
    """(B,) bool: images with |error| < n years (see ca)."""
    return np.abs(each_error(ages, pred_ages)) < n


def cs(ages, pred_ages, n):
    """Cumulative score: percent of images with |error| <= n years (Geng et al., PAMI 2007)."""
    return 100 * float(each_cs(ages, pred_ages, n).mean())


def each_cs(ages, pred_ages, n):
    """(B,) bool: images with |error| <= n years (see cs)."""
    return np.abs(each_error(ages, pred_ages)) <= n


def cs_curve(ages, pred_ages, limits):
    """(len(limits),) cumulative score in percent at each limit in years; never falls."""
    sizes = np.sort(np.abs(each_error(ages, pred_ages)))
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
    return float(each_epsilon_error(pred_ages, means, stds, std_floor).mean())


def each_epsilon_error(pred_ages, means, stds, std_floor):
    """(B,) epsilon-error of each image (see epsilon_error)."""
    if not std_floor > 0:
        raise ValueError(f"std_floor must be positive, got {std_floor}")
    errors = each_error(means, pred_ages)
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
    return 100 * float((each_interval_distance(pred_ages, age_min, age_max, last_age) == 0).mean())


def interval_distance(pred_ages, age_min, age_max, last_age=np.inf):
    """Mean distance in years from predicted ages to their intervals, 0 inside.

    The interval is [age_min - 0.5, age_max + 0.5), whose ages round into it, so that the
    distance is zero exactly where interval_accuracy counts a hit (see there).
    """
    return float(each_interval_distance(pred_ages, age_min, age_max, last_age).mean())


def each_interval_distance(pred_ages, age_min, age_max, last_age=np.inf):
    """(B,) years from each predicted age to its interval (see interval_distance)."""
    pred_ages = filled(pred_ages, "predicted ages")
    low = _same_length(age_min, pred_ages, "age_min") - 0.5
    high = _same_length(age_max, pred_ages, "age_max") + 0.5
    high = np.where(high > last_age, np.inf, high)
    above = np.where(pred_ages >= high, np.nextafter(pred_ages - high, np.inf), 0)  # high is out
    return np.where(pred_ages < low, low - pred_ages, above)


def is_interval(labels):
    """(B,) bool: True where only an interval of ages is known.

    Args:
        labels: mapping with `age_min` and `age_max`, (B,) arrays or tensors in years, both
            inclusive; equal where the age is exact.
    """
    return labels["age_max"] > labels["age_min"]


def point_scores(labels, pred_ages, last_age):
    """Point metrics of predicted ages, for exact ages and for intervals apart.

    Args:
        labels: dict of (B,) arrays or tensors `age`, `age_min`, `age_max`.
        pred_ages: (B,) years.
        last_age: years, the last bin; an interval that ends there is open.
    Returns:
        dict: mae (years), ca3, ca5, ca7 (%, error strictly below) where exact ages are known,
        interval_accuracy (%), interval_distance (years) where only intervals are.
    """
    labels = {name: np.asarray(labels[name], float) for name in ("age", "age_min", "age_max")}
    pred_ages = np.asarray(pred_ages, float)
    ranged = is_interval(labels)
    scores = {}
    if not ranged.all():
        exact = labels["age"][~ranged], pred_ages[~ranged]
        scores["mae"] = mae(*exact)
        scores |= {f"ca{n}": ca(*exact, n) for n in (3, 5, 7)}
    if ranged.any():
        interval = (pred_ages[ranged], labels["age_min"][ranged], labels["age_max"][ranged],
                    last_age)
        scores["interval_accuracy"] = interval_accuracy(*interval)
        scores["interval_distance"] = interval_distance(*interval)
    return scores


# ---- Predicted distributions


def distribution_mean(probs, age_bins):
    """(B,) expectation of each distribution in years (as losses.expected_age)."""
    probs, age_bins = _distributions(probs, age_bins)
    return probs @ age_bins


def distribution_std(probs, age_bins):
    """(B,) standard deviation of each distribution in years, >= 0."""
    probs, age_bins = _distributions(probs, age_bins)
    squares = probs @ np.square(age_bins) - np.square(probs @ age_bins)
    return np.sqrt(np.maximum(squares, 0))  # rounding leaves a one-hot slightly below 0


def distribution_median(probs, age_bins):
    """(B,) age at which the interpolated CDF reaches one half (as losses.median_age)."""
    return quantile(probs, age_bins, 0.5)


DECODES = {"mean": distribution_mean, "median": distribution_median}  # TEST.DECODE


def quantile(probs, age_bins, level):
    """(B,) age in years at which the CDF reaches a level, linear within each bin.

    Args:
        probs: (B, K), rows sum to 1.
        age_bins: (K,) consecutive whole years.
        level: in [0, 1].
    Returns:
        (B,) years in [age_bins[0] - 0.5, age_bins[-1] + 0.5].
    """
    probs, age_bins = _distributions(probs, age_bins)
    cdf = np.cumsum(probs, axis=1)  # (B, K), at the upper edge of each bin
    level = np.clip(level * cdf[:, -1], 0, cdf[:, -1])
    k = np.minimum((cdf < level[:, None]).sum(axis=1), len(age_bins) - 1)
    rows = np.arange(len(probs))
    mass = probs[rows, k]
    share = (level - (cdf[rows, k] - mass)) / np.where(mass > 0, mass, 1)
    return age_bins[k] - 0.5 + np.clip(share, 0, 1)


def central_interval(probs, age_bins, q):
    """Ages between which the central share q of each distribution lies.

    From the (1 - q)/2 to the (1 + q)/2 quantile, moved inside [age_bins[0], age_bins[-1]].

    Args:
        probs: (B, K), rows sum to 1.
        age_bins: (K,) consecutive whole years.
        q: share in (0, 1), 0.8 for the 80% interval.
    Returns:
        (low, high): (B,) years each, not rounded, low <= median <= high.
    """
    if not 0 < q < 1:
        raise ValueError(f"the share of a central interval must lie in 0..1, got {q}")
    ends = [quantile(probs, age_bins, level) for level in ((1 - q) / 2, (1 + q) / 2)]
    return tuple(np.clip(end, age_bins[0], age_bins[-1]) for end in ends)


def mass_above(probs, age_bins, threshold):
    """(B,) predicted probability of being at least `threshold` years old, in [0, 1].

    The sum over the bins of that age and above: whole-number labels say whether a birthday
    has been reached.
    """
    probs, age_bins = _distributions(probs, age_bins)
    return np.clip(probs[:, age_bins >= threshold].sum(axis=1), 0, 1)


def nll(probs, ages, age_bins):
    """Negative log-likelihood, mean -log(probability of the label's bin), in nats, >= 0.

    The logarithmic score (Good, 1952; Gneiting and Raftery, JASA 2007, section 4.1); one bin is
    one year, so this is the density's as well. Probabilities are raised to PROB_FLOOR.
    """
    return float(each_nll(probs, ages, age_bins).mean())


def each_nll(probs, ages, age_bins):
    """(B,) negative log-likelihood of each label in nats (see nll)."""
    probs, age_bins = _distributions(probs, age_bins)
    observed = probs[np.arange(len(probs)), label_bins(ages, age_bins)]
    return -np.log(np.maximum(observed, PROB_FLOOR))


def crps(probs, ages, age_bins):
    """Continuous ranked probability score in years, >= 0, 0 for all mass on the label.

    Mean of E|X - y| - E|X - X'|/2 with X, X' drawn from the prediction as point masses at the
    bins (Gneiting and Raftery, JASA 2007, eq. 21), the Brier score summed over all thresholds.
    A prediction without spread scores its absolute error, so it compares with the MAE.
    """
    return float(each_crps(probs, ages, age_bins).mean())


def each_crps(probs, ages, age_bins):
    """(B,) continuous ranked probability score of each label in years (see crps)."""
    probs, age_bins = _distributions(probs, age_bins)
    ages = _per_row(ages, probs)
    distance = (probs * np.abs(age_bins - ages[:, None])).sum(axis=1)
    cdf = np.cumsum(probs, axis=1)
    return distance - (cdf * (1 - cdf)).sum(axis=1)  # E|X - X'|/2 on bins one year apart


def coverage(probs, ages, age_bins, q):
    """Percent of labels inside the central interval of share q; 100 q where it is true.

    A whole-year label leaves open where in its bin the age is, so that it counts by the share of
    its bin's probability inside the interval: the expected coverage under the randomised
    probability integral transform (Smith, 1985; Czado, Gneiting and Held, Biometrics 2009).
    A count of whole labels between whole-year ends would exceed q for a perfect model, the
    more so the sharper it is.
    """
    return 100 * float(each_coverage(probs, ages, age_bins, q).mean())


def coverage_curve(probs, ages, age_bins, shares):
    """(len(shares),) coverage in percent of the central interval of each share (see coverage)."""
    bounds = pit_bounds(probs, ages, age_bins)
    return np.array([100 * _share_between(*bounds, q).mean() for q in shares])


def each_coverage(probs, ages, age_bins, q):
    """(B,) share of each label's bin, in [0, 1], inside the central interval (see coverage)."""
    return _share_between(*pit_bounds(probs, ages, age_bins), q)


def pit_bounds(probs, ages, age_bins):
    """The CDF at the lower and upper edge of each label's bin: (B,) and (B,) in [0, 1]."""
    probs, age_bins = _distributions(probs, age_bins)
    cdf = np.cumsum(probs, axis=1)
    cdf = np.pad(cdf / cdf[:, -1:], ((0, 0), (1, 0)))  # (B, K + 1), 0 to 1
    rows, k = np.arange(len(probs)), label_bins(ages, age_bins)
    return cdf[rows, k], cdf[rows, k + 1]


def pit_histogram(probs, ages, age_bins, num_bars=20):
    """(num_bars,) shares of the probability integral transform, sum 1; flat when calibrated.

    Each label is spread over its bin's stretch of the CDF: the non-randomised histogram of
    Czado, Gneiting and Held, Biometrics 2009, eq. 2. A U says too narrow, a hump too wide, a
    slope biased.
    """
    low, high = pit_bounds(probs, ages, age_bins)
    return np.diff([_share_below(low, high, u).mean() for u in np.linspace(0, 1, num_bars + 1)])


def label_bins(ages, age_bins):
    """(B,) index of the bin each age rounds to, half a year up, ends beyond included."""
    nearest = np.floor(np.asarray(ages, dtype=np.float64) + 0.5) - age_bins[0]
    return np.clip(nearest, 0, len(age_bins) - 1).astype(int)


def _share_between(low, high, q):
    """(B,) share of each stretch [low, high] of the CDF inside the central q."""
    return _share_below(low, high, (1 + q) / 2) - _share_below(low, high, (1 - q) / 2)


def _share_below(low, high, level):
    """(B,) share of each stretch [low, high] below a level; an empty one is its point."""
    width = high - low
    share = np.clip((level - low) / np.where(width > 0, width, 1), 0, 1)
    point = np.where((level >= low) & (level > 0), 1.0, 0.0)
    return np.where(width > 0, share, point)


# ---- Calibration


def fit_temperature(log_probs, ages, age_bins, shares=()):
    """One calibration temperature T for softmax(log_probs / T); above 1 it widens.

    By default the most likely T (Guo et al., ICML 2017): the NLL is convex in 1/T, so its slope is
    bisected. With `shares` it is the T at which central intervals of these shares cover, on
    average over them, what they promise. The two differ where the shape of the distributions is
    wrong, which one number cannot mend: the first is best in bits, the second in intervals.
    Measure on other images than those of the fit.

    Args:
        log_probs: (B, K) logits or log-probabilities of faces with an exact age.
        ages: (B,) years.
        age_bins: (K,) consecutive whole years.
        shares: shares in (0, 1), such as (0.8, 0.9), or none for the likelihood.
    Returns:
        T, float within TEMPERATURES.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    _distributions(log_probs, age_bins)
    observed = log_probs[np.arange(len(log_probs)), label_bins(_per_row(ages, log_probs), age_bins)]

    def too_narrow(temperature):  # positive below the T sought, negative above
        probs = _softmax(log_probs / temperature)
        if not shares:
            return ((probs * log_probs).sum(axis=1) - observed).mean()  # slope of the NLL in 1/T
        return sum(shares) - coverage_curve(probs, ages, age_bins, shares).sum() / 100

    low, high = np.log(TEMPERATURES)
    for _ in range(20):  # to a relative 6e-6
        middle = (low + high) / 2
        low, high = (middle, high) if too_narrow(np.exp(middle)) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def cross_calibrated(log_probs, ages, age_bins, shares=()):
    """Distributions of each half of the faces at the temperature fitted on the other half.

    Args:
        log_probs, ages, age_bins, shares: as in fit_temperature; every second face is in a half.
    Returns:
        (B, K) probabilities.
    """
    log_probs, ages = np.asarray(log_probs, dtype=np.float64), np.asarray(ages)
    halves = np.arange(len(ages)) % 2 == 0
    probs = np.empty_like(log_probs)
    for half in (halves, ~halves):
        probs[half] = _softmax(log_probs[half] / fit_temperature(
            log_probs[~half], ages[~half], age_bins, shares))
    return probs


def apply_temperature(probs, temperature):
    """(B, K) softmax(log(probs) / T): the distributions at temperature T, rows sum to 1.

    The same as dividing the logits by T; T and then 1/T gives probs back.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature must be positive, got {temperature}")
    return _softmax(np.log(np.maximum(probs, np.finfo(np.float32).tiny)) / temperature)


def _softmax(logits):
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


# ---- Refusing the uncertain, passing the old enough


def risk_coverage(abs_errors, uncertainty):
    """MAE of the most certain images, as more of them are taken in.

    El-Yaniv and Wiener, JMLR 2010, with the absolute error as the risk. Equally uncertain images
    enter in no order: each counts with the mean of them all.

    Args:
        abs_errors: (B,) years.
        uncertainty: (B,) any scale, larger: refused earlier.
    Returns:
        coverage: (B,) shares 1/B .. 1 of the images kept.
        risk: (B,) their MAE in years; the last is the MAE of all.
    """
    order, ties = certain_first(uncertainty)
    abs_errors = np.asarray(abs_errors, dtype=np.float64)[order]
    abs_errors = (np.bincount(ties, abs_errors) / np.bincount(ties))[ties]
    numbers = np.arange(1, len(order) + 1)
    return numbers / len(order), np.cumsum(abs_errors) / numbers


def aurc(abs_errors, uncertainty):
    """Area under the risk-coverage curve in years (Geifman, Uziel and El-Yaniv, ICLR 2019).

    The mean MAE over all shares kept: equal to the MAE where the uncertainty says nothing,
    below it where it points at the errors.
    """
    return float(risk_coverage(abs_errors, uncertainty)[1].mean())


def threshold_errors(is_adult, scores, cutoffs):
    """How often a rule "let pass when score >= cutoff" errs on either side of an age threshold.

    The two error rates of age verification (NIST IR 8525, 2024). With a safety margin m the score
    is the predicted age and the cutoff threshold + m ("Challenge 25" is 18 + 7), or the score
    is the probability of being old enough (see mass_above) and the cutoff how sure to be.

    Args:
        is_adult: (B,) bool, true age at or above the threshold.
        scores: (B,).
        cutoffs: (C,).
    Returns:
        minors_passed: (C,) percent of those below the threshold whose score reaches the cutoff.
        adults_refused: (C,) percent of the others whose score does not. NaN on an empty side.
    """
    is_adult, scores = np.asarray(is_adult, dtype=bool), np.asarray(scores, dtype=np.float64)
    passed = [100 * (1 - np.searchsorted(side, cutoffs, side="left") / len(side)) if len(side)
              else np.full(len(cutoffs), np.nan)
              for side in (np.sort(scores[~is_adult]), np.sort(scores[is_adult]))]
    return passed[0], 100 - passed[1]


# ---- Helpers


def certain_first(uncertainty):
    """Order by rising uncertainty, and for each place the number of its tied stretch."""
    uncertainty = filled(uncertainty, "uncertainties")
    order = np.argsort(uncertainty, kind="stable")
    return order, np.cumsum(np.diff(uncertainty[order], prepend=uncertainty[order[0]]) > 0)


def _distributions(probs, age_bins):
    probs = np.asarray(probs, dtype=np.float64)
    age_bins = np.asarray(age_bins, dtype=np.float64)
    if probs.ndim != 2 or probs.shape[1] != len(age_bins) or not len(probs):
        raise ValueError(f"expected (B, {len(age_bins)}) probabilities for {len(age_bins)} "
                         f"age bins, at least one row, got shape {probs.shape}")
    if not (np.diff(age_bins) == 1).all():
        raise ValueError(f"age bins must be consecutive whole years, got {age_bins}")
    return probs, age_bins


def _per_row(ages, probs):
    ages = np.asarray(ages, dtype=np.float64)
    if ages.shape != probs.shape[:1]:
        raise ValueError(f"{len(probs)} distributions for ages of shape {ages.shape}")
    return ages


def filled(values, name):
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected a list of {name}, at least one, got shape {values.shape}")
    return values


def _same_length(values, others, name):
    values = np.asarray(values, dtype=np.float64)
    if values.shape != others.shape:
        raise ValueError(f"{len(others)} predicted ages for {name} of shape {values.shape}")
    return values
