"""How sure a measured number is: intervals, bootstrap samples, tests of a difference.

A measured number is a dict {"value", "low", "high"} with its 95% interval. A number without an
interval has None for both ends and a "why"; an unknown one has None for all three.
"""

import itertools
import warnings

import numpy as np
from scipy.special import stdtrit

import metrics

NORMAL_975 = 1.959964  # 97.5% quantile of the standard normal
MIN_UNITS = 10  # faces, or persons, for an interval: the bootstrap's is far too narrow below
TOO_FEW = f"fewer than {MIN_UNITS} images or persons, so no interval"


def measured(value, replicates, units):
    """A measured number from a value and its bootstrap samples.

    Args:
        value: number.
        replicates: (R,) the value in each bootstrap sample.
        units: how many independent faces or persons it comes from.
    """
    if units < MIN_UNITS:
        return {"value": float(value), "low": None, "high": None, "why": TOO_FEW}
    low, high = percentile_interval(replicates)
    return {"value": float(value), "low": float(low), "high": float(high)}


def unknown(why):
    """A measured number that cannot be given; `why` is the reason in words."""
    return {"value": None, "low": None, "high": None, "why": why}


def measured_share(hits, chosen, subjects):
    """A measured number: the percentage of hits among the chosen rows, with Wilson's interval.

    Wilson's holds for few faces too. How much persons differ cannot be told from few of them, so
    fewer than MIN_UNITS persons with several faces have no interval.

    Args:
        hits, chosen: (B,) bool.
        subjects: (B,) whole numbers, equal for one person, or None.
    """
    if subjects is not None:
        subjects = subjects[chosen]
        if len(np.unique(subjects)) < min(MIN_UNITS, len(subjects)):
            return {"value": 100 * float(hits[chosen].mean()), "low": None, "high": None,
                    "why": TOO_FEW}
    value, low, high = share_interval(hits[chosen], subjects)
    return {"value": value, "low": low, "high": high}


def share_interval(hits, subjects=None):
    """95% Wilson interval of a share in percent, also where nothing or everything hits.

    Wilson, JASA 1927. Images of one subject are not independent, so the number of images is divided
    by the design effect (Kish, 1965), and reduced further, as few subjects tell little of how much
    subjects differ: by the square of a quotient of quantiles of Student's t (Korn and Graubard,
    Survey Methodology 1998). If the share is 0 or 1, the number of subjects is taken.

    Args:
        hits: (B,) bool.
        subjects: (B,) whole numbers, equal for one person, or None.
    Returns:
        (value, low, high) in percent.
    """
    hits = np.asarray(hits, dtype=np.float64)
    n, share = len(metrics.filled(hits, "decisions")), hits.mean()
    if subjects is not None:
        n = _effective_number(hits, share, subjects)
    z2 = NORMAL_975 ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return 100 * share, 100 * max(middle - half, 0), 100 * min(middle + half, 1)


def _effective_number(hits, share, subjects):
    _, subjects = np.unique(subjects, return_inverse=True)
    surplus = np.bincount(subjects, hits - share)  # (S,) hits above expectation a subject
    n, num_subjects = len(hits), len(surplus)
    if share in (0, 1) or num_subjects < 2:
        return num_subjects
    variance = np.square(surplus).sum() * num_subjects / (num_subjects - 1)
    if variance == 0:
        return n
    fewer = stdtrit(n - 1, 0.975) / stdtrit(num_subjects - 1, 0.975)
    return min(n, n * share * (1 - share) * n / variance) * fewer ** 2


def resampled_counts(num_images, samples, subjects=None, seed=0):
    """How often each image is drawn in each bootstrap sample (Efron, 1979), block by block.

    The same seed draws the same images, which pairs the samples of two models. With subjects,
    whole persons are drawn (the cluster bootstrap; Davison and Hinkley, 1997, section 3.8).

    Args:
        num_images: number of images B.
        samples: number of bootstrap samples R.
        subjects: (B,) whole numbers, equal for one person, or None.
    Yields:
        (r, B) float counts, r adding up to R.
    """
    rng = np.random.default_rng(seed)
    units = num_images
    if subjects is not None:
        names, subjects = np.unique(subjects, return_inverse=True)
        units = len(names)
    block = max(1, 2 ** 21 // max(num_images, 1))  # 16 MB of counts at a time
    for start in range(0, samples, block):
        counts = np.empty((min(block, samples - start), units))
        for row in counts:
            row[:] = np.bincount(rng.integers(0, units, units, dtype=np.uint32), minlength=units)
        yield counts if subjects is None else counts[:, subjects]


def bootstrap_sums(values, cells, num_cells, samples=1000, subjects=None, seed=0):
    """Sums of per-image values over each cell of a partition, in each bootstrap sample.

    Each cell takes one matrix product. Any mean over any union of cells is a quotient of these
    sums (see pooled_means).

    Args:
        values: (B, M) per-image contributions, NaN where an image has none.
        cells: (B,) whole numbers in 0..num_cells - 1, the cell of each image.
        num_cells: number of cells C.
        samples: number of bootstrap samples R.
        subjects, seed: see resampled_counts.
    Returns:
        sums: (R, C, M) of the values.
        numbers: (R, C, M) of how many values each sum has.
    """
    order = np.argsort(cells, kind="stable")
    edges = np.searchsorted(np.asarray(cells)[order], np.arange(num_cells + 1))
    values = np.asarray(values, dtype=np.float64)[order]
    known = np.isfinite(values)
    columns = np.hstack([np.where(known, values, 0), known])  # (B, 2 M)
    blocks = []
    for counts in resampled_counts(len(values), samples, subjects, seed):
        counts = counts[:, order]
        blocks.append(np.stack([counts[:, start:end] @ columns[start:end]
                                for start, end in itertools.pairwise(edges)], axis=1))
    sums = np.concatenate(blocks)
    return sums[..., :values.shape[1]], sums[..., values.shape[1]:]


def pooled_means(sums, numbers, cells):
    """(R, M) means over the union of cells (a list of indices), NaN where it has no value."""
    total, number = sums[:, cells].sum(axis=1), numbers[:, cells].sum(axis=1)
    return np.divide(total, number, where=number > 0, out=np.full(total.shape, np.nan))


def bootstrap_aurc(abs_errors, uncertainty, samples=1000, subjects=None, seed=0,
                   num_stretches=2000):
    """(R,) area under the risk-coverage curve in each bootstrap sample (see aurc).

    To save time at most num_stretches groups of images enter, one after the other. Within a
    group, and among the copies of an image, each error counts as their mean, as among ties.
    """
    order, ties = metrics.certain_first(uncertainty)
    cells = np.empty(len(order), dtype=int)
    cells[order] = ties * min(num_stretches, ties[-1] + 1) // (ties[-1] + 1)
    sums, numbers = bootstrap_sums(np.asarray(abs_errors)[:, None], cells, cells.max() + 1,
                                   samples, subjects, seed)
    sums, numbers = sums[..., 0], numbers[..., 0]  # (R, C)
    mean = sums / np.maximum(numbers, 1)
    sums_before, before = np.cumsum(sums, axis=1) - sums, np.cumsum(numbers, axis=1) - numbers
    harmonic = np.log((before + numbers + 0.5) / (before + 0.5))  # sum of 1/(before + j)
    areas = numbers * mean + (sums_before - before * mean) * harmonic
    return areas.sum(axis=1) / numbers.sum(axis=1)


def percentile_interval(replicates):
    """95% percentile interval over the first axis (Efron, 1981): low and high.

    Samples without a value (NaN) are left out; if no sample has one, both ends are NaN.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered")
        return tuple(np.nanpercentile(replicates, [2.5, 97.5], axis=0))


def difference_p_value(replicates):
    """Two-sided bootstrap p-value of "no difference" from replicates of a difference.

    Twice the smaller share of samples on either side of zero, at least 2/(R + 1). It is the level
    at which a percentile interval just touches zero.
    """
    replicates = np.asarray(replicates)
    tail = min((replicates <= 0).sum(), (replicates >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(replicates) + 1)))


def largest_gap(values, replicates):
    """The largest difference between any two groups, and how often chance alone makes one so large.

    Among many groups some two always differ. So each group's bootstrap samples are moved to a
    common mean; their widest gaps are those of groups that do not differ (Hall and Wilson,
    Biometrics 1991).

    Args:
        values: (G,) a mean for each group, G >= 2.
        replicates: (R, G) its bootstrap samples.
    Returns:
        dict of `highest` and `lowest` (indices), `value` (their gap), `low`, `high` (its 95%
        interval) and `p_value` (share of samples without differences that show such a gap).
    """
    values, replicates = np.asarray(values), np.asarray(replicates)
    highest, lowest = int(np.argmax(values)), int(np.argmin(values))
    gap = float(values[highest] - values[lowest])
    low, high = percentile_interval(replicates[:, highest] - replicates[:, lowest])
    noise = np.nanmax(replicates - values, axis=1) - np.nanmin(replicates - values, axis=1)
    return {"highest": highest, "lowest": lowest, "value": gap, "low": float(low),
            "high": float(high), "p_value": float((1 + (noise >= gap).sum()) / (1 + len(noise)))}
