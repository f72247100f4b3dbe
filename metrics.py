"""How good predicted ages and age distributions are: plain numpy functions, with unit and source.

Functions that are marked (B,) return one value for each image, so that a caller can take means over
groups; the others are over all images.

An error is the predicted minus the true age, in years. Ages are on the scale of the labels. Most
data sets give whole numbers: some are completed years (a face labelled 17 is 17.0 to 17.99 years
old), some are rounded. A model learns the scale that it was shown, so nothing is added or taken
away. On that scale the bin of age `a` is [a - 0.5, a + 0.5). A label belongs to the bin that it
rounds to; a label beyond the first or last bin belongs to that bin. A distribution spreads the
probability of each bin evenly over it. Bins are consecutive whole years.
"""

import numpy as np

INTERVAL_SHARE = 0.8  # of a distribution, within the interval that is shown of it
PROB_FLOOR = 1e-12  # smaller probabilities are raised to it before a logarithm
TEMPERATURES = (0.05, 20.0)  # range searched for the calibration temperature
# How surely faces tell how the temperature changes with the age, see fit_temperatures. At 10 the
# standard error of log T at the last age minus log T at the first is 0.3 (1.4 / sqrt(n) for one T).
MIN_AGE_EVIDENCE = 10

# ---- Errors of predicted ages


def signed_error(ages, pred_ages):
    """(B,) predicted minus true age in years; positive: estimated too old.

    Args:
        ages: (B,) true ages in years.
        pred_ages: (B,) predicted ages in years, not rounded.
    Raises:
        ValueError: there is nothing to score, or the two differ in length (all functions below
            raise it too).
    """
    pred_ages = filled(pred_ages, "predicted ages")
    return pred_ages - _same_length(ages, pred_ages, "ages")


def absolute_error(ages, pred_ages):
    """(B,) |predicted - true| age in years, >= 0."""
    return np.abs(signed_error(ages, pred_ages))


def mae(ages, pred_ages):
    """Mean absolute error in years, >= 0."""
    return float(absolute_error(ages, pred_ages).mean())


def ca_hits(ages, pred_ages, n):
    """(B,) bool: images with |error| < n years, strictly, which the cumulative accuracy counts."""
    return absolute_error(ages, pred_ages) < n


def ca(ages, pred_ages, n):
    """Cumulative accuracy CA(n): percent of images with |error| < n years, strictly.

    As counted on MegaAge (Zhang et al., BMVC 2017); cs_hits counts "at most n".
    """
    return 100 * float(ca_hits(ages, pred_ages, n).mean())


def cs_hits(ages, pred_ages, n):
    """(B,) bool: images with |error| <= n years, whose percentage is CS(n).

    The cumulative score of Geng et al., PAMI 2007.
    """
    return absolute_error(ages, pred_ages) <= n


def cs_curve(ages, pred_ages, limits):
    """(len(limits),) cumulative score in percent at each limit in years; never falls."""
    sizes = np.sort(absolute_error(ages, pred_ages))
    return 100 * np.searchsorted(sizes, limits, side="right") / len(sizes)


def epsilon_error(pred_ages, means, stds, min_std):
    """(B,) 1 - exp(-(pred - mean)^2 / (2 std^2)), in [0, 1]; the metric is its mean.

    ChaLearn LAP 2015 (Escalera et al., ICCV Workshops 2015): the more the voters disagree, the
    less an error counts.

    Args:
        pred_ages: (B,) predicted apparent ages in years.
        means, stds: (B,) mean and standard deviation of each image's votes, in years.
        min_std: years, > 0; smaller stds are raised to it, since the formula has no value at 0.
    """
    if not min_std > 0:
        raise ValueError(f"min_std must be positive, got {min_std}")
    errors = signed_error(means, pred_ages)
    stds = np.maximum(_same_length(stds, errors, "vote spreads"), min_std)
    return 1 - np.exp(-np.square(errors / stds) / 2)


def interval_distance(pred_ages, age_min, age_max, last_age=np.inf):
    """(B,) years from each predicted age to the interval of its label, 0 inside.

    For data sets whose labels are age ranges (FairFace, Adience). The interval is
    [age_min - 0.5, age_max + 0.5): all ages that round into it, half a year upwards. So the
    distance is zero exactly if the rounded age lies in the range, both ends included.

    Args:
        pred_ages: (B,) predicted ages in years.
        age_min, age_max: (B,) first and last whole year of each interval.
        last_age: the last age bin; an interval that ends there is open ("more than 70").
    """
    pred_ages = filled(pred_ages, "predicted ages")
    low = _same_length(age_min, pred_ages, "age_min") - 0.5
    high = _same_length(age_max, pred_ages, "age_max") + 0.5
    high = np.where(high > last_age, np.inf, high)
    # The upper end is exclusive.
    above = np.where(pred_ages >= high, np.nextafter(pred_ages - high, np.inf), 0)
    return np.where(pred_ages < low, low - pred_ages, above)


def is_interval(labels):
    """(B,) bool: True if only an interval of ages is known.

    Args:
        labels: mapping with `age_min` and `age_max`, (B,) arrays or tensors in years, both
            inclusive; equal if the age is exact.
    """
    return labels["age_max"] > labels["age_min"]


def point_scores(labels, pred_ages, last_age):
    """Mean scores of predicted ages, separately for exact ages and for intervals.

    Args:
        labels: dict of (B,) arrays or tensors `age`, `age_min`, `age_max`.
        pred_ages: (B,) years.
        last_age: years, the last bin; an interval that ends there is open.
    Returns:
        dict: mae (years), ca3, ca5, ca7 (%, error strictly below) if there are exact ages;
        interval_accuracy (%, in the interval) and interval_distance (years) if there are intervals.
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
        distances = interval_distance(pred_ages[ranged], labels["age_min"][ranged],
                                      labels["age_max"][ranged], last_age)
        scores["interval_accuracy"] = 100 * float((distances == 0).mean())
        scores["interval_distance"] = float(distances.mean())
    return scores


# ---- Predicted distributions


def distribution_mean(probs, age_bins):
    """(B,) expectation of each distribution in years, as losses.expected_age."""
    probs, age_bins = _checked_probs(probs, age_bins)
    return probs @ age_bins


def distribution_std(probs, age_bins):
    """(B,) standard deviation of each distribution in years, >= 0."""
    probs, age_bins = _checked_probs(probs, age_bins)
    squares = probs @ np.square(age_bins) - np.square(probs @ age_bins)
    return np.sqrt(np.maximum(squares, 0))  # rounding leaves a one-hot slightly below 0


def distribution_median(probs, age_bins):
    """(B,) age at which the interpolated CDF reaches one half."""
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
    probs, age_bins = _checked_probs(probs, age_bins)
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


def probability_of_at_least(probs, age_bins, threshold):
    """(B,) predicted probability of being at least `threshold` years old, in [0, 1].

    The sum over the bins of that age and above, since a label in completed years reaches the
    threshold on the birthday.
    """
    probs, age_bins = _checked_probs(probs, age_bins)
    return np.clip(probs[:, age_bins >= threshold].sum(axis=1), 0, 1)


def nll(probs, ages, age_bins):
    """(B,) negative log-likelihood, -log(probability of the label's bin), in nats, >= 0.

    The logarithmic score (Good, 1952; Gneiting and Raftery, JASA 2007, section 4.1). One bin is
    one year, so it is also that of the density. Probabilities are raised to PROB_FLOOR.
    """
    probs, age_bins = _checked_probs(probs, age_bins)
    observed = probs[np.arange(len(probs)), label_bins(ages, age_bins)]
    return -np.log(np.maximum(observed, PROB_FLOOR))


def crps(probs, ages, age_bins):
    """(B,) continuous ranked probability score in years, >= 0; 0 if all mass is on the label.

    E|X - y| - E|X - X'|/2 with X, X' drawn from the prediction as point masses at the bins
    (Gneiting and Raftery, JASA 2007, eq. 21): the Brier score summed over all thresholds. A
    prediction without spread scores its absolute error, so its mean compares with the MAE.
    """
    probs, age_bins = _checked_probs(probs, age_bins)
    ages = _per_row(ages, probs)
    distance = (probs * np.abs(age_bins - ages[:, None])).sum(axis=1)
    cdf = np.cumsum(probs, axis=1)
    return distance - (cdf * (1 - cdf)).sum(axis=1)  # E|X - X'|/2 on bins one year apart


def coverage(probs, ages, age_bins, q):
    """(B,) share of each label's bin, in [0, 1], inside the central interval of share q.

    Its mean is q for a true model. A whole-year label leaves open where in its bin the age is.
    So it counts by the share of its bin's probability inside the interval: the expected coverage
    under the randomised probability integral transform (Smith, 1985; Czado, Gneiting and Held,
    Biometrics 2009). To count whole labels between whole-year ends would exceed q for a perfect
    model, the more so the sharper it is.
    """
    return _share_between(*pit_bounds(probs, ages, age_bins), q)


def coverage_curve(probs, ages, age_bins, shares):
    """(len(shares),) coverage in percent: the mean of `coverage` at each share q."""
    bounds = pit_bounds(probs, ages, age_bins)
    return np.array([100 * _share_between(*bounds, q).mean() for q in shares])


def pit_bounds(probs, ages, age_bins):
    """The CDF at the lower and upper edge of each label's bin: (B,) and (B,) in [0, 1]."""
    probs, age_bins = _checked_probs(probs, age_bins)
    cdf = np.cumsum(probs, axis=1)
    cdf = np.pad(cdf / cdf[:, -1:], ((0, 0), (1, 0)))  # (B, K + 1), 0 to 1
    rows, k = np.arange(len(probs)), label_bins(ages, age_bins)
    return cdf[rows, k], cdf[rows, k + 1]


def pit_histogram(probs, ages, age_bins, num_bars=20):
    """(num_bars,) shares of the probability integral transform, sum 1; flat when calibrated.

    Each label is spread over its bin's stretch of the CDF: the non-randomised histogram of
    Czado, Gneiting and Held, Biometrics 2009, eq. 2. A U shape means too narrow, a hump too wide,
    a slope biased.
    """
    low, high = pit_bounds(probs, ages, age_bins)
    return np.diff([_share_below(low, high, u).mean() for u in np.linspace(0, 1, num_bars + 1)])


def nearest_years(ages):
    """Ages rounded to whole years, half a year upwards: an array, a tensor or a pandas column."""
    return (ages + 0.5) // 1


def label_bins(ages, age_bins):
    """(B,) index of the bin that each age rounds to, half a year up; ages beyond: the end bin."""
    nearest = nearest_years(np.asarray(ages, dtype=np.float64)) - age_bins[0]
    return np.clip(nearest, 0, len(age_bins) - 1).astype(int)


def _share_between(low, high, q):
    """(B,) share of each stretch [low, high] of the CDF inside the central q."""
    return _share_below(low, high, (1 + q) / 2) - _share_below(low, high, (1 - q) / 2)


def _share_below(low, high, level):
    """(B,) share of each stretch [low, high] below a level; an empty one counts as a point."""
    width = high - low
    share = np.clip((level - low) / np.where(width > 0, width, 1), 0, 1)
    point = np.where((level >= low) & (level > 0), 1.0, 0.0)
    return np.where(width > 0, share, point)


# ---- Calibration


def calibrated_probs(log_probs, temperature=None):
    """Probabilities at a calibration temperature T: softmax(log_probs / T); T above 1 widens.

    Args:
        log_probs: (B, K) logits or log-probabilities, an array or a tensor on the CPU.
        temperature: T > 0, or two of them, see face_temperatures; None for a model that is not
            calibrated, whose T is 1.
    Returns:
        (B, K) float64, rows sum to 1.
    Raises:
        ValueError: T is not positive.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    return _softmax(log_probs / face_temperatures(
        log_probs, 1.0 if temperature is None else temperature)[:, None])


def face_temperatures(log_probs, temperature):
    """The temperature of each face, by the age predicted for it before calibration.

    A network knows some ages better than others, above all those of which it saw many faces. So
    log T runs in a straight line from the first age bin to the last.

    Args:
        log_probs: (B, K) logits or log-probabilities.
        temperature: T for all faces, or (T at the first bin, T at the last bin); each > 0.
    Returns:
        (B,) T > 0.
    Raises:
        ValueError: a T is not positive.
    """
    if not np.all(np.asarray(temperature) > 0):
        raise ValueError(f"a temperature must be positive, got {temperature}")
    first, last = np.broadcast_to(np.log(temperature), 2)
    return np.exp(first + (last - first) * _mean_positions(log_probs))


def _mean_positions(log_probs):
    """(B,) mean of the distributions, 0 at the first bin and 1 at the last."""
    log_probs = np.asarray(log_probs, dtype=np.float64)
    return _softmax(log_probs) @ np.linspace(0, 1, log_probs.shape[1])


def fit_temperature(log_probs, ages, age_bins, shares):
    """One calibration temperature T for softmax(log_probs / T); above 1 it widens.

    At T central intervals of the given shares cover, on average over them, what they promise. It is
    found by bisection. This is not the most likely T (Guo et al., ICML 2017) if the shape of the
    distributions is wrong, which one number cannot mend: that one has the best NLL, this one the
    best intervals. Measure on other images than those of the fit.

    Args:
        log_probs: (B, K) logits or log-probabilities of faces with an exact age.
        ages: (B,) years.
        age_bins: (K,) consecutive whole years.
        shares: shares in (0, 1), such as (0.8, 0.9).
    Returns:
        T, float within TEMPERATURES.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    ages = _per_row(ages, log_probs)

    def too_narrow(temperature):  # positive below the T sought, negative above
        covered = coverage_curve(_softmax(log_probs / temperature), ages, age_bins, shares)
        return sum(shares) - covered.sum() / 100

    low, high = np.log(TEMPERATURES)
    for _ in range(20):  # to a relative 6e-6
        middle = (low + high) / 2
        low, high = (middle, high) if too_narrow(np.exp(middle)) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def fit_temperatures(log_probs, ages, age_bins, shares):
    """The calibration temperatures at the first and the last age bin, see face_temperatures.

    One temperature is fitted to the half of the faces that is predicted younger, and one to the
    older half. The line goes through both, each at its half's mean, and is then scaled so that it
    fits all faces. Few faces, or faces of similar ages, cannot tell the slope: at the ends of the
    line its error would grow without limit. Below MIN_AGE_EVIDENCE, the distance of the two means
    (as a share of all ages) times the root of the number of faces, both temperatures are the one
    that fits all faces.

    Args:
        log_probs, ages, age_bins, shares: as in fit_temperature.
    Returns:
        (T at the first bin, T at the last bin), floats within TEMPERATURES.
    """
    log_probs, ages = np.asarray(log_probs, dtype=np.float64), np.asarray(ages)
    positions = _mean_positions(log_probs)
    younger, older = np.array_split(np.argsort(positions, kind="stable"), 2)
    evidence = 0.0
    if len(ages) > 1:
        apart = positions[older].mean() - positions[younger].mean()
        evidence = apart * np.sqrt(len(ages))
    if evidence < MIN_AGE_EVIDENCE:
        return (fit_temperature(log_probs, ages, age_bins, shares),) * 2
    logs = [np.log(fit_temperature(log_probs[half], ages[half], age_bins, shares))
            for half in (younger, older)]
    slope = (logs[1] - logs[0]) / apart
    start = logs[0] - slope * positions[younger].mean()
    line = np.exp([start, start + slope])
    scale = fit_temperature(log_probs / face_temperatures(log_probs, line)[:, None], ages,
                            age_bins, shares)
    first, last = np.clip(line * scale, *TEMPERATURES)
    return float(first), float(last)


def cross_calibrated(log_probs, ages, age_bins, shares):
    """Distributions of each half of the faces at the temperatures fitted on the other half.

    The first half is every second face.

    Args:
        log_probs, ages, age_bins, shares: as in fit_temperatures.
    Returns:
        (B, K) probabilities.
    """
    log_probs, ages = np.asarray(log_probs, dtype=np.float64), np.asarray(ages)
    halves = np.arange(len(ages)) % 2 == 0
    probs = np.empty_like(log_probs)
    for half in (halves, ~halves):
        probs[half] = calibrated_probs(log_probs[half], fit_temperatures(
            log_probs[~half], ages[~half], age_bins, shares))
    return probs


def _softmax(logits):
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


# ---- Refusing the uncertain, passing the old enough


def risk_coverage(abs_errors, uncertainty):
    """MAE of the most certain images, for every number of images kept.

    El-Yaniv and Wiener, JMLR 2010, with the absolute error as the risk. Equally uncertain images
    enter in no order: each counts as the mean of them all.

    Args:
        abs_errors: (B,) years.
        uncertainty: (B,) on any scale; the largest is refused first.
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

    The mean MAE over all shares kept. It equals the MAE if the uncertainty knows nothing, and is
    below it if large uncertainty goes with large errors.
    """
    return float(risk_coverage(abs_errors, uncertainty)[1].mean())


def threshold_errors(is_adult, scores, cutoffs):
    """How often a rule "let pass when score >= cutoff" errs on either side of an age threshold.

    The two error rates of age verification (NIST IR 8525, 2024). Either the score is the predicted
    age and the cutoff is the threshold plus a safety margin ("Challenge 25" is 18 + 7), or the
    score is the probability of being old enough (see probability_of_at_least) and the cutoff how
    sure to be.

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
    """Order of rising uncertainty, and for each place the number of its group of ties.

    Returns:
        order: (B,) indices.
        ties: (B,) whole numbers from 0, equal for places of the same uncertainty, never falling.
    """
    uncertainty = filled(uncertainty, "uncertainties")
    order = np.argsort(uncertainty, kind="stable")
    return order, np.cumsum(np.diff(uncertainty[order], prepend=uncertainty[order[0]]) > 0)


def _checked_probs(probs, age_bins):
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
    """Values as a (B,) float64 array with B >= 1; `name` is what an error calls them."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected a list of {name}, at least one, got shape {values.shape}")
    return values


def _same_length(values, others, name):
    values = np.asarray(values, dtype=np.float64)
    if values.shape != others.shape:
        raise ValueError(f"{len(others)} predicted ages for {name} of shape {values.shape}")
    return values
