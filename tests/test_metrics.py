"""metrics.py against values worked out by hand and against other libraries."""

import numpy as np
import properscoring
import pytest
import sklearn.metrics
import torch
from scipy import optimize, special, stats

import losses
import metrics

AGES = [20, 30, 40, 1, 17, 18]
PRED_AGES = [23, 27.5, 40, 1.4, 22, 11]  # errors 3, -2.5, 0, 0.4, 5, -7
BINS = np.arange(101)


@pytest.fixture
def predictions(rng):
    """Calibrated by construction: each label is drawn from its own distribution."""
    logits = -np.square((BINS - rng.uniform(0, 100, (2500, 1))) / rng.uniform(1, 9, (2500, 1)))
    probs = special.softmax(logits, axis=1)
    ages = (probs.cumsum(axis=1) < rng.random((2500, 1))).sum(axis=1).clip(0, 100)
    return probs, ages


def at_temperature(probs, temperature):
    return metrics.calibrated_probs(np.log(probs + 1e-30), temperature)


# ---- Errors of predicted ages


def test_point_errors_of_six_ages():
    assert metrics.mae(AGES, PRED_AGES) == pytest.approx(17.9 / 6)
    assert metrics.signed_error(AGES, PRED_AGES).mean() == pytest.approx(-1.1 / 6)
    assert np.square(metrics.signed_error(AGES, PRED_AGES)).mean() == pytest.approx(89.41 / 6)


def test_ca_is_strict_and_cs_is_not():
    assert metrics.ca(AGES, PRED_AGES, 3) == pytest.approx(100 * 3 / 6)
    assert metrics.cs_hits(AGES, PRED_AGES, 3).mean() == pytest.approx(4 / 6)
    assert metrics.ca(AGES, PRED_AGES, 7) == pytest.approx(100 * 5 / 6)
    assert metrics.cs_hits(AGES, PRED_AGES, 7).all()
    assert metrics.ca_hits(AGES, PRED_AGES, 7).tolist() == [True] * 5 + [False]


def test_point_errors_agree_with_scikit_learn(rng):
    ages, pred_ages = rng.uniform(0, 100, (2, 500))
    assert metrics.mae(ages, pred_ages) == pytest.approx(
        sklearn.metrics.mean_absolute_error(ages, pred_ages))
    assert np.square(metrics.signed_error(ages, pred_ages)).mean() == pytest.approx(
        sklearn.metrics.mean_squared_error(ages, pred_ages))


def test_cs_curve_is_cs_at_each_limit(rng):
    ages = rng.integers(0, 90, 300)
    pred_ages = ages + rng.integers(-9, 10, 300)  # whole errors hit the limits exactly
    limits = np.arange(0, 15.5, 0.5)
    curve = metrics.cs_curve(ages, pred_ages, limits)
    shares = [metrics.cs_hits(ages, pred_ages, n).mean() for n in limits]
    assert curve.tolist() == pytest.approx([100 * share for share in shares])
    assert (np.diff(curve) >= 0).all()
    for n in limits:
        assert (metrics.ca_hits(ages, pred_ages, n) <= metrics.cs_hits(ages, pred_ages, n)).all()


def test_epsilon_error_by_hand():
    errors = metrics.epsilon_error([30, 34, 30], [30, 30, 32], [5, 4, 0], min_std=1)
    assert errors.tolist() == pytest.approx([0, 1 - np.exp(-0.5), 1 - np.exp(-2)])


def test_epsilon_error_refuses_a_floor_of_zero():
    with pytest.raises(ValueError, match="min_std must be positive, got 0"):
        metrics.epsilon_error([30], [30], [0], 0)


def test_interval_distance_rounds_and_includes_both_ends():
    pred_ages = [19.5, 29.49, 29.5, 19.49]
    distances = metrics.interval_distance(pred_ages, [20] * 4, [29] * 4)
    assert distances.tolist() == pytest.approx([0, 0, 0, 0.01], abs=1e-9)
    assert (distances == 0).tolist() == [True, True, False, False]  # 29.5 rounds to 30


def test_interval_that_ends_at_the_last_bin_is_open():
    ends = [70, 70], [100, 100]
    assert metrics.interval_distance([103, 64], *ends, last_age=100).tolist() == (
        pytest.approx([0, 5.5]))
    assert metrics.interval_distance([103, 64], *ends).tolist() == pytest.approx([2.5, 5.5])


def test_point_scores_keep_exact_ages_and_intervals_apart():
    labels = {"age": [30, 40, 24.5, 24.5], "age_min": [30, 40, 20, 20], "age_max": [30, 40, 29, 29]}
    assert metrics.point_scores(labels, [33, 42, 29.4, 32.5], 100) == pytest.approx(
        {"mae": 2.5, "ca3": 50, "ca5": 100, "ca7": 100, "interval_accuracy": 50,
         "interval_distance": 1.5})


@pytest.mark.parametrize("ages, pred_ages", [([], []), ([20], [20, 30]), (20, 30)])
def test_nothing_to_score_or_unequal_lengths_are_errors(ages, pred_ages):
    for metric in (metrics.mae, metrics.signed_error, metrics.absolute_error):
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


def test_the_mean_is_the_expected_age_of_the_losses(predictions):
    log_probs = torch.tensor(predictions[0]).log().clamp(min=-80).float()
    assert metrics.distribution_mean(log_probs.exp().numpy(), BINS) == pytest.approx(
        losses.expected_age(log_probs, torch.arange(101)).numpy(), abs=1e-3)


def test_the_mean_and_the_median_of_a_lopsided_distribution():
    probs = np.zeros((1, 101))
    probs[0, [20, 30, 60]] = 0.4, 0.4, 0.2
    assert metrics.DECODES["mean"](probs, BINS)[0] == pytest.approx(32)
    assert metrics.DECODES["median"](probs, BINS)[0] == pytest.approx(29.75)


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
    assert metrics.nll(probs, ages, BINS).mean() == pytest.approx(
        sklearn.metrics.log_loss(ages, probs, labels=BINS))
    assert metrics.nll([[0.25, 0.75], [0.0, 1.0]], [1, 0], [0, 1]).tolist() == pytest.approx(
        [-np.log(0.75), -np.log(1e-12)])


def test_crps_agrees_with_properscoring(predictions, rng):
    probs, ages = predictions[0][:200], rng.uniform(-5, 110, 200)
    expected = properscoring.crps_ensemble(ages, np.tile(BINS, (200, 1)), weights=probs)
    assert metrics.crps(probs, ages, BINS) == pytest.approx(expected)


def test_crps_without_spread_is_the_absolute_error():
    assert metrics.crps(np.eye(101)[[30, 30, 5]], [30, 33.5, 0], BINS).tolist() == (
        pytest.approx([0, 3.5, 5]))


def test_coverage_counts_the_share_of_the_labels_bin():
    probs, bins = [[0.25] * 4] * 4, [10, 11, 12, 13]
    # the central half is [10.5, 12.5): all of bins 11 and 12
    assert metrics.coverage(probs, [10, 11, 12, 13], bins, 0.5).tolist() == [0, 1, 1, 0]
    # the central 75% is [10, 13): half of bins 10 and 13 besides
    assert metrics.coverage(probs, [10, 11, 12, 13], bins, 0.75).tolist() == (
        pytest.approx([0.5, 1, 1, 0.5]))


@pytest.mark.parametrize("q", [0.5, 0.8, 0.9, 0.95])
def test_coverage_is_true_for_labels_drawn_from_the_predictions(predictions, q):
    assert metrics.coverage(*predictions, BINS, q).mean() == pytest.approx(q, abs=0.02)


def test_coverage_of_a_sharp_true_model_is_not_inflated():
    probs = np.tile([[0.05, 0.9, 0.05]], (1000, 1))
    ages = np.repeat([10, 11, 12], [50, 900, 50])
    assert metrics.coverage(probs, ages, [10, 11, 12], 0.8).mean() == pytest.approx(0.8)


def test_coverage_equals_that_of_a_random_age_within_the_bin(predictions, rng):
    probs, ages = predictions
    low, high = metrics.quantile(probs, BINS, 0.1), metrics.quantile(probs, BINS, 0.9)
    spread = ages + rng.uniform(-0.5, 0.5, (200, len(ages)))
    assert metrics.coverage(probs, ages, BINS, 0.8).mean() == pytest.approx(
        ((spread >= low) & (spread < high)).mean(), abs=0.002)


def test_coverage_curve_is_the_coverage_of_each_share(predictions):
    probs, ages = predictions
    assert metrics.coverage_curve(probs, ages, BINS, [0.5, 0.9]).tolist() == pytest.approx(
        [100 * metrics.coverage(probs, ages, BINS, q).mean() for q in (0.5, 0.9)])


def test_coverage_where_the_label_has_no_mass_is_zero():
    assert metrics.coverage(np.eye(101)[[30, 30]], [20, 40], BINS, 0.9).tolist() == [0, 0]


def test_pit_histogram_is_flat_for_true_and_u_shaped_for_narrow_predictions(predictions):
    probs, ages = predictions
    flat = metrics.pit_histogram(probs, ages, BINS, 10)
    assert flat.sum() == pytest.approx(1)
    assert flat == pytest.approx(0.1, abs=0.02)
    narrow = metrics.pit_histogram(at_temperature(probs, 0.3), ages, BINS, 10)
    assert narrow[0] > 0.15 and narrow[-1] > 0.15 > narrow[4]


def test_pit_histogram_by_hand():
    # label 1 of (0.25, 0.5, 0.25) covers the CDF from 0.25 to 0.75
    assert metrics.pit_histogram([[0.25, 0.5, 0.25]], [1], [0, 1, 2], 4).tolist() == (
        pytest.approx([0, 0.5, 0.5, 0]))


def test_labels_beyond_the_bins_belong_to_the_end_bins():
    assert metrics.label_bins([-3, 0.49, 0.5, 99.5, 116], BINS).tolist() == [0, 0, 1, 100, 100]


def test_probability_of_at_least_includes_the_threshold_age():
    probs = metrics.probability_of_at_least([[0.2, 0.5, 0.3]], [17, 18, 19], 18)
    assert probs == pytest.approx([0.8])


def test_bad_distributions_are_refused():
    with pytest.raises(ValueError, match="3 age bins"):
        metrics.distribution_mean([[0.5, 0.5]], [0, 1, 2])
    with pytest.raises(ValueError, match="consecutive whole years"):
        metrics.distribution_mean([[0.5, 0.5]], [0, 5])
    with pytest.raises(ValueError, match="1 distributions for ages"):
        metrics.crps([[0.5, 0.5]], [0, 1], [0, 1])


# ---- Calibration


SHARES = (0.8, 0.9)


@pytest.mark.parametrize("wrong", [0.4, 1.0, 2.5])
def test_temperature_undoes_a_distortion(predictions, wrong):
    probs, ages = predictions
    distorted = np.log(at_temperature(probs, wrong) + 1e-30)
    temperature = metrics.fit_temperature(distorted, ages, BINS, SHARES)
    assert temperature == pytest.approx(1 / wrong, rel=0.1)
    restored = metrics.calibrated_probs(distorted, temperature)
    covered = metrics.coverage_curve(restored, ages, BINS, SHARES)
    assert covered.sum() == pytest.approx(170, abs=0.01)


def test_the_temperature_of_a_face_depends_on_its_predicted_age():
    probs = np.array([[1, 0, 0], [0, 0, 1], [0.5, 0, 0.5], [0, 1, 0], [0.5, 0.5, 0]])
    log_probs = np.log(probs + 1e-30)
    assert metrics.face_temperatures(log_probs, (0.5, 2)) == pytest.approx(
        [0.5, 2, 1, 1, 0.5 ** 0.5])
    assert metrics.face_temperatures(log_probs + 7, 3) == pytest.approx([3] * 5)
    with pytest.raises(ValueError, match=r"must be positive, got \(1, 0\)"):
        metrics.face_temperatures(log_probs, (1, 0))


def test_temperatures_undo_a_distortion_that_grows_with_the_age(predictions):
    probs, ages = predictions
    logits = np.log(probs + 1e-30)
    distorted = logits / metrics.face_temperatures(logits, (0.5, 2))[:, None]
    found = metrics.fit_temperatures(distorted, ages, BINS, SHARES)
    assert found == pytest.approx((2, 0.5), rel=0.15)
    single = metrics.fit_temperature(distorted, ages, BINS, SHARES)
    one = metrics.calibrated_probs(distorted, single)
    two = metrics.calibrated_probs(distorted, found)
    unseen = metrics.cross_calibrated(distorted, ages, BINS, SHARES)
    for part in (ages < 40, ages > 60):
        def error(result, part=part):
            return abs(metrics.coverage(result[part], ages[part], BINS, 0.8).mean() - 0.8)
        assert error(two) < 0.03 and error(unseen) < 0.04 and error(one) > 0.06
    assert metrics.coverage_curve(two, ages, BINS, SHARES).sum() == pytest.approx(170, abs=0.3)


def test_too_few_or_equal_faces_get_one_temperature(predictions):
    probs, ages = predictions
    logits = np.log(probs + 1e-30)
    few = logits[:150], ages[:150]
    narrow = np.argsort(np.abs(ages - 40), kind="stable")[:1000]  # of 20 to 60, at most
    narrow = logits[narrow] * 1.5, ages[narrow]
    same = np.tile(logits[:1], (300, 1)), ages[:300]
    for faces in (narrow, few, same):
        one = metrics.fit_temperature(*faces, BINS, SHARES)
        assert metrics.fit_temperatures(*faces, BINS, SHARES) == (one, one)


def test_temperature_agrees_with_scipy(predictions):
    probs, ages = predictions
    logits = np.log(probs + 1e-30) * 3 + 17  # a constant in the logits changes nothing

    def surplus(log_temperature):
        probs = special.softmax(logits / np.exp(log_temperature), axis=1)
        return sum(metrics.coverage(probs, ages, BINS, share).mean() - share for share in SHARES)

    best = np.exp(optimize.brentq(surplus, -3, 3))
    assert metrics.fit_temperature(logits, ages, BINS, SHARES) == pytest.approx(best, rel=1e-3)


def test_an_age_without_any_probability_changes_no_temperature(predictions):
    probs, ages = predictions
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.where(probs < 1e-9, 0, probs))  # -inf, as calibrated_probs takes
    assert np.isneginf(log_probs).any()
    assert metrics.fit_temperature(log_probs, ages, BINS, SHARES) == pytest.approx(
        metrics.fit_temperature(np.log(probs + 1e-30), ages, BINS, SHARES), rel=1e-3)


def test_temperature_divides_the_logits(predictions):
    logits = np.log(predictions[0] + 1e-30) + 17
    for temperature in (0.5, 2):
        assert metrics.calibrated_probs(logits, temperature) == pytest.approx(
            special.softmax(logits / temperature, axis=1), abs=1e-12)
    with pytest.raises(ValueError, match="positive, got 0"):
        metrics.calibrated_probs(logits, 0)


def test_without_a_temperature_and_at_one_nothing_changes(predictions):
    probs = predictions[0]
    log_probs = np.log(np.maximum(probs, 1e-300))
    assert metrics.calibrated_probs(log_probs) == pytest.approx(probs, abs=1e-12)
    assert metrics.calibrated_probs(log_probs, 1).tolist() == (
        metrics.calibrated_probs(log_probs, None).tolist())
    warmed = metrics.calibrated_probs(log_probs, 2)
    assert metrics.calibrated_probs(np.log(warmed), 0.5) == pytest.approx(probs, abs=1e-12)


def test_log_probs_of_a_network_are_taken_as_they_are(predictions):
    log_probs = torch.tensor(predictions[0]).log().float()  # -inf where a probability is 0
    assert metrics.calibrated_probs(log_probs, 1.5) == pytest.approx(
        (log_probs.double() / 1.5).softmax(1).numpy(), abs=1e-12)


def test_temperature_of_perfect_and_constant_predictions_is_finite():
    perfect = np.log(np.eye(101) * (1 - 1e-6) + 1e-8)
    constant = np.zeros((101, 101))
    for log_probs in (perfect, constant):
        assert 0.05 <= metrics.fit_temperature(log_probs, BINS, BINS, SHARES) <= 20


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
