"""metrics.py against values worked out by hand and against other libraries."""

import numpy as np
import properscoring
import pytest
import sklearn.metrics
import torch
from scipy import optimize, special, stats

import losses
import metrics
from evaluation import bootstrap

AGES = [20, 30, 40, 1, 17, 18]
PRED_AGES = [23, 27.5, 40, 1.4, 22, 11]  # errors 3, -2.5, 0, 0.4, 5, -7
BINS = np.arange(101)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def predictions(rng):
    """Calibrated by construction: each label is drawn from its own distribution."""
    logits = -np.square((BINS - rng.uniform(0, 100, (2500, 1))) / rng.uniform(1, 9, (2500, 1)))
    probs = special.softmax(logits, axis=1)
    ages = (probs.cumsum(axis=1) < rng.random((2500, 1))).sum(axis=1).clip(0, 100)
    return probs, ages


# ---- Errors of predicted ages


def test_point_errors_of_six_ages():
    assert metrics.mae(AGES, PRED_AGES) == pytest.approx(17.9 / 6)
    assert metrics.bias(AGES, PRED_AGES) == pytest.approx(-1.1 / 6)
    assert metrics.rmse(AGES, PRED_AGES) == pytest.approx(np.sqrt(89.41 / 6))


def test_ca_is_strict_and_cs_is_not():
    assert metrics.ca(AGES, PRED_AGES, 3) == pytest.approx(100 * 3 / 6)
    assert metrics.cs(AGES, PRED_AGES, 3) == pytest.approx(100 * 4 / 6)
    assert metrics.ca(AGES, PRED_AGES, 7) == pytest.approx(100 * 5 / 6)
    assert metrics.cs(AGES, PRED_AGES, 7) == pytest.approx(100)


def test_point_errors_agree_with_scikit_learn(rng):
    ages, pred_ages = rng.uniform(0, 100, (2, 500))
    assert metrics.mae(ages, pred_ages) == pytest.approx(
        sklearn.metrics.mean_absolute_error(ages, pred_ages))
    assert metrics.rmse(ages, pred_ages) == pytest.approx(
        sklearn.metrics.root_mean_squared_error(ages, pred_ages))


def test_cs_curve_is_cs_at_each_limit(rng):
    ages = rng.integers(0, 90, 300)
    pred_ages = ages + rng.integers(-9, 10, 300)  # whole errors hit the limits exactly
    limits = np.arange(0, 15.5, 0.5)
    curve = metrics.cs_curve(ages, pred_ages, limits)
    assert curve.tolist() == pytest.approx([metrics.cs(ages, pred_ages, n) for n in limits])
    assert (np.diff(curve) >= 0).all()
    assert all(metrics.ca(ages, pred_ages, n) <= metrics.cs(ages, pred_ages, n) for n in limits)


def test_epsilon_error_by_hand():
    errors = metrics.each_epsilon_error([30, 34, 30], [30, 30, 32], [5, 4, 0], std_floor=1)
    assert errors.tolist() == pytest.approx([0, 1 - np.exp(-0.5), 1 - np.exp(-2)])
    assert metrics.epsilon_error([30, 34, 30], [30, 30, 32], [5, 4, 0], 1) == pytest.approx(
        (2 - np.exp(-0.5) - np.exp(-2)) / 3)


def test_epsilon_error_refuses_a_floor_of_zero():
    with pytest.raises(ValueError, match="std_floor must be positive, got 0"):
        metrics.epsilon_error([30], [30], [0], 0)


def test_interval_accuracy_rounds_and_includes_both_ends():
    pred_ages = [19.5, 29.49, 29.5, 19.49]
    assert metrics.interval_accuracy(pred_ages, [20] * 4, [29] * 4) == 50
    assert metrics.each_interval_distance(pred_ages, [20] * 4, [29] * 4).tolist() == (
        pytest.approx([0, 0, 0, 0.01], abs=1e-9))


def test_interval_that_ends_at_the_last_bin_is_open():
    assert metrics.interval_accuracy([103], [70], [100], last_age=100) == 100
    assert metrics.interval_accuracy([103], [70], [100]) == 0
    assert metrics.interval_distance([103, 64], [70, 70], [100, 100], last_age=100) == (
        pytest.approx(5.5 / 2))


@pytest.mark.parametrize("ages, pred_ages", [([], []), ([20], [20, 30]), (20, 30)])
def test_nothing_to_score_or_unequal_lengths_are_errors(ages, pred_ages):
    for metric in (metrics.mae, metrics.bias, metrics.rmse):
        with pytest.raises(ValueError, match="predicted ages"):
            metric(ages, pred_ages)


# ---- Predicted distributions


def test_moments_and_median_of_a_three_bin_distribution():
    probs, bins = [[0.2, 0.5, 0.3]], [10, 11, 12]
    assert metrics.distribution_mean(probs, bins) == pytest.approx([11.1])
    assert metrics.distribution_std(probs, bins) == pytest.approx([np.sqrt(0.49)])
    assert metrics.distribution_median(probs, bins) == pytest.approx([10.5 + 0.3 / 0.5])


def test_a_one_hot_is_its_own_mean_and_median_at_every_age():
    assert metrics.distribution_mean(np.eye(101), BINS) == pytest.approx(BINS)
    assert metrics.distribution_median(np.eye(101), BINS) == pytest.approx(BINS)
    assert metrics.distribution_std(np.eye(101), BINS) == pytest.approx(0, abs=1e-9)


def test_mean_and_median_agree_with_the_decodes_of_the_network(predictions):
    log_probs = torch.tensor(predictions[0]).log().clamp(min=-80).float()
    assert metrics.DECODES.keys() == losses.DECODES.keys()
    for name, decode in losses.DECODES.items():
        assert metrics.DECODES[name](log_probs.exp().numpy(), BINS) == pytest.approx(
            decode(log_probs, torch.arange(101)).numpy(), abs=1e-3)


def test_quantiles_agree_with_scipy(predictions):
    probs = predictions[0][:20]
    for level in (0.05, 0.5, 0.9):
        expected = [stats.rv_histogram((row, np.arange(102) - 0.5), density=False).ppf(level)
                    for row in probs]
        assert metrics.quantile(probs, BINS, level) == pytest.approx(expected)


def test_quantiles_of_level_zero_and_one_are_the_outer_edges():
    probs = [[0, 0.5, 0.5, 0]]
    assert metrics.quantile(probs, [0, 1, 2, 3], 0)[0] == -0.5
    assert metrics.quantile(probs, [0, 1, 2, 3], 1)[0] == pytest.approx(2.5)


def test_central_interval_holds_its_share_and_stays_inside_the_bins():
    low, high = metrics.central_interval([[0.25] * 4], [10, 11, 12, 13], 0.5)
    assert (low[0], high[0]) == pytest.approx((10.5, 12.5))
    low, high = metrics.central_interval(np.eye(101)[[0, 100]], BINS, 0.9)
    assert low.tolist() == pytest.approx([0, 99.55])
    assert high.tolist() == pytest.approx([0.45, 100])
    with pytest.raises(ValueError, match="got 80"):
        metrics.central_interval(np.eye(101), BINS, 80)


def test_nll_is_the_log_loss(predictions):
    probs, ages = predictions
    assert metrics.nll(probs, ages, BINS) == pytest.approx(
        sklearn.metrics.log_loss(ages, probs, labels=BINS))
    assert metrics.nll([[0.25, 0.75]], [1], [0, 1]) == pytest.approx(-np.log(0.75))
    assert metrics.nll([[0.0, 1.0]], [0], [0, 1]) == pytest.approx(-np.log(1e-12))


def test_crps_agrees_with_properscoring(predictions, rng):
    probs, ages = predictions[0][:200], rng.uniform(-5, 110, 200)
    expected = properscoring.crps_ensemble(ages, np.tile(BINS, (200, 1)), weights=probs)
    assert metrics.each_crps(probs, ages, BINS) == pytest.approx(expected)


def test_crps_without_spread_is_the_absolute_error():
    assert metrics.each_crps(np.eye(101)[[30, 30, 5]], [30, 33.5, 0], BINS).tolist() == (
        pytest.approx([0, 3.5, 5]))


def test_coverage_counts_the_share_of_the_labels_bin():
    probs, bins = [[0.25] * 4] * 4, [10, 11, 12, 13]
    # the central half is [10.5, 12.5): all of bins 11 and 12
    assert metrics.each_coverage(probs, [10, 11, 12, 13], bins, 0.5).tolist() == [0, 1, 1, 0]
    # the central 75% is [10, 13): half of bins 10 and 13 besides
    assert metrics.each_coverage(probs, [10, 11, 12, 13], bins, 0.75).tolist() == (
        pytest.approx([0.5, 1, 1, 0.5]))


@pytest.mark.parametrize("q", [0.5, 0.8, 0.9, 0.95])
def test_coverage_is_true_for_labels_drawn_from_the_predictions(predictions, q):
    assert metrics.coverage(*predictions, BINS, q) == pytest.approx(100 * q, abs=2)


def test_coverage_of_a_sharp_true_model_is_not_inflated():
    probs = np.tile([[0.05, 0.9, 0.05]], (1000, 1))
    ages = np.repeat([10, 11, 12], [50, 900, 50])
    assert metrics.coverage(probs, ages, [10, 11, 12], 0.8) == pytest.approx(80)


def test_coverage_equals_that_of_a_random_age_within_the_bin(predictions, rng):
    probs, ages = predictions
    low, high = metrics.quantile(probs, BINS, 0.1), metrics.quantile(probs, BINS, 0.9)
    spread = ages + rng.uniform(-0.5, 0.5, (200, len(ages)))
    assert metrics.coverage(probs, ages, BINS, 0.8) == pytest.approx(
        100 * ((spread >= low) & (spread < high)).mean(), abs=0.2)


def test_coverage_curve_is_the_coverage_of_each_share(predictions):
    probs, ages = predictions
    assert metrics.coverage_curve(probs, ages, BINS, [0.5, 0.9]).tolist() == pytest.approx(
        [metrics.coverage(probs, ages, BINS, q) for q in (0.5, 0.9)])


def test_coverage_where_the_label_has_no_mass_is_zero():
    assert metrics.coverage(np.eye(101)[[30, 30]], [20, 40], BINS, 0.9) == 0


def test_pit_histogram_is_flat_for_true_and_u_shaped_for_narrow_predictions(predictions):
    probs, ages = predictions
    flat = metrics.pit_histogram(probs, ages, BINS, 10)
    assert flat.sum() == pytest.approx(1)
    assert flat == pytest.approx(0.1, abs=0.02)
    narrow = metrics.pit_histogram(metrics.apply_temperature(probs, 0.3), ages, BINS, 10)
    assert narrow[0] > 0.15 and narrow[-1] > 0.15 > narrow[4]


def test_pit_histogram_by_hand():
    # label 1 of (0.25, 0.5, 0.25) covers the CDF from 0.25 to 0.75
    assert metrics.pit_histogram([[0.25, 0.5, 0.25]], [1], [0, 1, 2], 4).tolist() == (
        pytest.approx([0, 0.5, 0.5, 0]))


def test_labels_beyond_the_bins_belong_to_the_end_bins():
    assert metrics.label_bins([-3, 0.49, 0.5, 99.5, 116], BINS).tolist() == [0, 0, 1, 100, 100]


def test_mass_above_includes_the_threshold_age():
    assert metrics.mass_above([[0.2, 0.5, 0.3]], [17, 18, 19], 18) == pytest.approx([0.8])


def test_bad_distributions_are_refused():
    with pytest.raises(ValueError, match="3 age bins"):
        metrics.distribution_mean([[0.5, 0.5]], [0, 1, 2])
    with pytest.raises(ValueError, match="consecutive whole years"):
        metrics.distribution_mean([[0.5, 0.5]], [0, 5])
    with pytest.raises(ValueError, match="1 distributions for ages"):
        metrics.crps([[0.5, 0.5]], [0, 1], [0, 1])


# ---- Calibration


@pytest.mark.parametrize("wrong", [0.4, 1.0, 2.5])
def test_temperature_undoes_a_distortion(predictions, wrong):
    probs, ages = predictions
    distorted = metrics.apply_temperature(probs, wrong)
    temperature = metrics.fit_temperature(np.log(distorted + 1e-30), ages, BINS)
    assert temperature == pytest.approx(1 / wrong, rel=0.05)
    restored = metrics.apply_temperature(distorted, temperature)
    assert metrics.coverage(restored, ages, BINS, 0.8) == pytest.approx(80, abs=2)


@pytest.mark.parametrize("wrong", [0.4, 2.5])
def test_temperature_by_coverage_undoes_a_distortion_as_well(predictions, wrong):
    probs, ages = predictions
    distorted = metrics.apply_temperature(probs, wrong)
    temperature = metrics.fit_temperature(np.log(distorted + 1e-30), ages, BINS, (0.8, 0.9))
    assert temperature == pytest.approx(1 / wrong, rel=0.1)
    restored = metrics.apply_temperature(distorted, temperature)
    covered = [metrics.coverage(restored, ages, BINS, q) for q in (0.8, 0.9)]
    assert sum(covered) == pytest.approx(170, abs=0.01)


def test_temperature_agrees_with_scipy(predictions):
    probs, ages = predictions
    logits = np.log(probs + 1e-30) * 3 + 17  # a constant in the logits changes nothing

    def loss(log_temperature):
        return -(special.log_softmax(logits / np.exp(log_temperature), axis=1)
                 [np.arange(len(ages)), ages]).mean()

    best = np.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    assert metrics.fit_temperature(logits, ages, BINS) == pytest.approx(best, rel=1e-3)


def test_temperature_one_changes_nothing_and_its_inverse_undoes_it(predictions):
    probs = predictions[0]
    assert metrics.apply_temperature(probs, 1) == pytest.approx(probs, abs=1e-12)
    assert metrics.apply_temperature(metrics.apply_temperature(probs, 2), 0.5) == (
        pytest.approx(probs, abs=1e-12))
    with pytest.raises(ValueError, match="positive, got 0"):
        metrics.apply_temperature(probs, 0)


def test_temperature_of_perfect_and_constant_predictions_is_finite():
    perfect = np.log(np.eye(101) * (1 - 1e-6) + 1e-8)
    assert metrics.fit_temperature(perfect, BINS, BINS) == pytest.approx(0.05, rel=1e-4)
    constant = np.zeros((101, 101))
    assert 0.05 <= metrics.fit_temperature(constant, BINS, BINS) <= 20


# ---- Refusing the uncertain, passing the old enough


def test_risk_coverage_by_hand():
    coverage, risk = metrics.risk_coverage([4.0, 1.0, 3.0], [0.9, 0.1, 0.5])
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk.tolist() == pytest.approx([1, 2, 8 / 3])
    assert metrics.aurc([4.0, 1.0, 3.0], [0.9, 0.1, 0.5]) == pytest.approx((1 + 2 + 8 / 3) / 3)


def test_constant_uncertainty_gives_the_mae_at_every_coverage(rng):
    errors = rng.random(50)
    assert metrics.risk_coverage(errors, np.ones(50))[1] == pytest.approx(errors.mean())
    assert metrics.aurc(errors, np.ones(50)) == pytest.approx(errors.mean())


def test_risk_coverage_does_not_depend_on_the_order_of_ties(rng):
    errors, uncertainty = rng.random(200), rng.integers(0, 5, 200)
    mixed = rng.permutation(200)
    assert metrics.aurc(errors, uncertainty) == pytest.approx(
        metrics.aurc(errors[mixed], uncertainty[mixed]))


def test_threshold_errors_by_hand():
    is_adult = [False, False, False, True, True]
    passed, refused = metrics.threshold_errors(is_adult, [17, 18, 25, 18, 30], [18, 25, 40])
    assert passed.tolist() == pytest.approx([200 / 3, 100 / 3, 0])
    assert refused.tolist() == pytest.approx([0, 50, 100])


def test_threshold_errors_without_minors_are_nan_on_that_side():
    passed, refused = metrics.threshold_errors([True], [20], [18])
    assert np.isnan(passed).all() and refused.tolist() == [0]


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
    assert tenfold[2] - tenfold[1] == pytest.approx(once[2] - once[1], rel=0.02)
    none = bootstrap.share_interval(np.zeros(400), np.repeat(np.arange(40), 10))
    assert none == pytest.approx(bootstrap.share_interval(np.zeros(40)))


# ---- Bootstrap


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
