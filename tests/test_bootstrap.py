"""evaluation/bootstrap.py against scipy, against drawing by hand, and against known truths."""

import numpy as np
import pytest
from scipy import stats

import metrics
from evaluation import bootstrap

# ---- Shares


def test_share_interval_agrees_with_scipy():
    for hits, n in ((0, 40), (3, 40), (40, 40)):
        interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
        value, low, high = bootstrap.share_interval(np.arange(n) < hits)
        assert (value, low, high) == pytest.approx(
            (100 * hits / n, 100 * interval.low, 100 * interval.high), abs=1e-4)


@pytest.mark.filterwarnings("error")
def test_share_interval_of_subjects_who_are_all_half_right():
    assert bootstrap.share_interval([1, 0, 1, 0], ["a", "a", "b", "b"]) == pytest.approx(
        bootstrap.share_interval([1, 0, 1, 0]))


def test_share_interval_of_repeated_subjects_is_that_of_the_subjects():
    hits = np.arange(40) < 10
    once, tenfold = bootstrap.share_interval(hits), bootstrap.share_interval(
        np.repeat(hits, 10), np.repeat(np.arange(40), 10))
    assert tenfold[0] == once[0]
    unsure = stats.t.ppf(0.975, 39) / stats.t.ppf(0.975, 399)  # of 40 subjects' differences
    assert tenfold[2] - tenfold[1] == pytest.approx((once[2] - once[1]) * unsure, rel=0.02)
    apart = bootstrap.share_interval(hits, np.arange(40))
    assert apart == pytest.approx(once, rel=0.02)
    none = bootstrap.share_interval(np.zeros(400), np.repeat(np.arange(40), 10))
    assert none == pytest.approx(bootstrap.share_interval(np.zeros(40)))


@pytest.mark.parametrize("alike", [0.1, 0.3, 0.6])
def test_share_interval_of_few_subjects_holds_the_share_in_95_of_100_samples(rng, alike):
    share, people, covered = 0.3, 10, 0
    for _ in range(1000):
        subjects = np.repeat(np.arange(people), 1 + rng.poisson(19, people))
        chances = rng.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), people)
        hits = rng.random(len(subjects)) < chances[subjects]
        _, low, high = bootstrap.share_interval(hits, subjects)
        covered += low <= 100 * share <= high
    assert 935 <= covered <= 965


def test_a_share_of_few_persons_with_many_faces_has_no_interval():
    hits = np.arange(400) % 5 == 0
    everyone = np.ones(400, dtype=bool)
    known = {}
    for people in (2, 9, 10, 400):
        number = bootstrap.measured_share(hits, everyone, np.arange(400) % people)
        assert number["value"] == 20
        known[people] = number["low"] is not None
        assert known[people] == ("why" not in number)
    assert known == {2: False, 9: False, 10: True, 400: True}
    some = np.arange(400) < 45  # of these persons the chosen rows hold nine
    assert bootstrap.measured_share(hits, some, np.arange(400) // 5)["low"] is None
    few = np.arange(400) < 5  # a face of each: Wilson's interval is for these too
    assert bootstrap.measured_share(hits, few, np.arange(400))["low"] > 0


# ---- Bootstrap samples


def group_replicates(values, groups, samples, seed=0):
    """(R, G) group means in each bootstrap sample."""
    num_groups = groups.max() + 1
    sums, numbers = bootstrap.bootstrap_sums(values[:, None], groups, num_groups, samples,
                                             seed=seed)
    return np.hstack([bootstrap.pooled_means(sums, numbers, [g]) for g in range(num_groups)])


def test_bootstrap_sums_are_those_of_the_drawn_images(rng):
    values, cells = rng.random((30, 2)), rng.permutation(np.arange(30) % 3)
    values[3, 1] = np.nan
    sums, numbers = bootstrap.bootstrap_sums(values, cells, 4, samples=5, seed=3)
    means = bootstrap.pooled_means(sums, numbers, [0, 2])
    counts = np.concatenate(list(bootstrap.resampled_counts(30, 5, seed=3))).astype(int)
    assert (counts.sum(axis=1) == 30).all()
    for r, count in enumerate(counts):
        drawn = np.repeat(np.arange(30), count)
        for cell in range(4):
            of_cell = values[drawn[cells[drawn] == cell]]
            assert sums[r, cell] == pytest.approx(np.nansum(of_cell, axis=0))
            assert numbers[r, cell].tolist() == np.isfinite(of_cell).sum(axis=0).tolist()
        expected = np.nanmean(values[drawn[cells[drawn] != 1]], axis=0)
        assert means[r] == pytest.approx(expected)


def test_bootstrap_interval_agrees_with_scipy(rng):
    errors = rng.gamma(2, 3, 400)
    replicates = group_replicates(errors, np.zeros(400, dtype=int), 4000)
    expected = stats.bootstrap((errors,), np.mean, n_resamples=4000, method="percentile",
                               rng=np.random.default_rng(1)).confidence_interval
    assert np.ravel(bootstrap.percentile_interval(replicates)) == pytest.approx(
        expected, abs=0.05)


def test_subjects_are_drawn_whole():
    subjects = np.array([5, 5, 5, 9, 9, 1])
    for counts in bootstrap.resampled_counts(6, 50, subjects):
        assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 0] == counts[:, 2]).all()
        assert (counts[:, 3] == counts[:, 4]).all()
        assert (counts[:, [0, 3, 5]].sum(axis=1) == 3).all()


def test_bootstrap_aurc_is_the_aurc_of_the_drawn_images(rng):
    errors, uncertainty = rng.random(40), rng.integers(0, 15, 40).astype(float)
    areas = bootstrap.bootstrap_aurc(errors, uncertainty, samples=6, seed=2)
    counts = np.concatenate(list(bootstrap.resampled_counts(40, 6, seed=2))).astype(int)
    for area, count in zip(areas, counts, strict=True):
        drawn = metrics.aurc(np.repeat(errors, count), np.repeat(uncertainty, count))
        assert area == pytest.approx(drawn, rel=2e-3)


def test_bootstrap_aurc_in_few_stretches_is_close_to_the_exact_one(rng):
    uncertainty = rng.random(5000)
    errors = rng.gamma(2, 3, 5000) * uncertainty
    assert bootstrap.bootstrap_aurc(errors, uncertainty, 20, num_stretches=500) == pytest.approx(
        bootstrap.bootstrap_aurc(errors, uncertainty, 20, num_stretches=5000), rel=1e-3)
    assert bootstrap.bootstrap_aurc(errors, np.ones(5000), 20) == pytest.approx(
        group_replicates(errors, np.zeros(5000, dtype=int), 20)[:, 0])


def test_bootstrap_of_an_empty_group_is_nan_without_a_warning(recwarn):
    sums, numbers = bootstrap.bootstrap_sums(np.ones((3, 1)), [0, 0, 2], 3, samples=10)
    means = bootstrap.pooled_means(sums, numbers, [1])
    assert np.isnan(means).all() and np.isnan(bootstrap.percentile_interval(means)).all()
    assert not recwarn


def test_one_image_bootstraps_to_itself():
    sums, numbers = bootstrap.bootstrap_sums([[4.0]], [0], 1, samples=10)
    assert (bootstrap.pooled_means(sums, numbers, [0]) == 4).all()
    assert bootstrap.bootstrap_aurc([4.0], [1.0], samples=10) == pytest.approx(4)


def test_p_value_of_a_difference():
    assert bootstrap.difference_p_value(np.full(999, 0.3)) == pytest.approx(0.002)
    assert bootstrap.difference_p_value(np.zeros(999)) == 1
    assert bootstrap.difference_p_value(np.arange(-10, 990)) == pytest.approx(24 / 1001)


def test_largest_gap_finds_a_real_one_and_not_chance(rng):
    errors, groups = np.tile(rng.gamma(2, 3, 100), 9), np.split(np.arange(900), 9)

    def gap(errors):
        replicates = group_replicates(errors, np.arange(900) // 100, 500)
        return bootstrap.largest_gap([errors[idx].mean() for idx in groups], replicates)

    assert gap(errors)["p_value"] > 0.05
    errors[groups[4]] += 4
    found = gap(errors)
    assert (found["highest"], found["p_value"] < 0.01) == (4, True)
    assert found["low"] < found["value"] < found["high"]


def test_chance_gaps_are_called_real_about_one_time_in_twenty(rng):
    groups = np.split(np.arange(300), 5)
    p_values = []
    for seed in range(200):
        errors = rng.gamma(2, 3, 300)
        replicates = group_replicates(errors, np.arange(300) // 60, 200, seed)
        p_values.append(bootstrap.largest_gap([errors[idx].mean() for idx in groups],
                                              replicates)["p_value"])
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.12
