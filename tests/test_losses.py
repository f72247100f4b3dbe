"""Label distributions and losses, held against numbers worked out by hand."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from defaults import load_cfg
from losses import (
    LOSSES,
    age_share,
    build_criterion,
    expected_age,
    gaussian_target,
    interval_membership,
    label_distribution,
    older_logits,
    ordinal_log_probs,
    rare_age_weights,
    target_builder,
)

BINS = torch.arange(101)


def test_a_teacher_takes_its_share_of_the_loss():
    cfg = load_cfg(opts=["LOSS.TEACHER_WEIGHT", "0.25"])
    own = labels(30.0)
    logits = torch.randn(1, 101, generator=torch.Generator().manual_seed(0))
    teacher = gaussian_target(torch.tensor([40.0]), BINS, 3.0)
    plain = build_criterion(cfg, BINS)(logits, own)["loss"]
    parts = build_criterion(cfg, BINS)(logits, own | {"teacher": teacher})
    divergence = torch.nn.functional.kl_div(logits.log_softmax(1), teacher, reduction="sum")
    assert parts["teacher"].item() == pytest.approx(0.25 * divergence.item(), rel=1e-4)
    assert parts["loss"].item() == pytest.approx(
        0.75 * plain.item() + 0.25 * divergence.item(), rel=1e-4)


def labels(age, low=None, high=None, std=math.nan, votes=None):
    made = {"age": torch.tensor([age]), "age_std": torch.tensor([std]),
            "age_min": torch.tensor([age if low is None else low]),
            "age_max": torch.tensor([age if high is None else high])}
    return made | ({} if votes is None else {"votes": votes})


def near_one_hot(age):
    logits = torch.full((1, 101), -40.0)
    logits[0, age] = 40.0
    return logits


@pytest.mark.parametrize("age", [0.0, 0.4, 1.0, 50.0, 99.0, 100.0])
def test_the_gaussian_sums_to_one_at_every_age(age):
    target = gaussian_target(torch.tensor([age]), BINS, 2.0)
    assert target.sum().item() == pytest.approx(1, abs=1e-6)
    assert target.argmax().item() == round(age)


def test_the_gaussian_has_the_shape_of_its_sigma():
    target = gaussian_target(torch.tensor([50.0]), BINS, 2.0)[0]
    assert (target[52] / target[50]).item() == pytest.approx(math.exp(-0.5), rel=1e-5)
    mean = (target * BINS).sum()
    assert (target * (BINS - mean) ** 2).sum().sqrt().item() == pytest.approx(2.0, abs=1e-3)


def test_the_interval_is_one_inside_soft_at_its_edges_and_open_at_the_ends():
    member = interval_membership(torch.tensor([20.0, 70.0, 0.0]), torch.tensor([29.0, 100.0, 2.0]),
                                 BINS, 2.0)
    edge = 0.5 * (1 + math.erf(0.5 / 2 / math.sqrt(2)))  # half a year inside the edge
    assert member[0, 20].item() == pytest.approx(edge, abs=1e-5)
    assert member[0, 29].item() == pytest.approx(edge, abs=1e-5)
    assert member[0, 40].item() < 1e-6
    assert (member[1, 85:] == 1).all()
    assert member[2, 0].item() == pytest.approx(0.5 * (1 + math.erf(2.5 / 2 / math.sqrt(2))),
                                                abs=1e-5)


@pytest.mark.parametrize("age", [0, 1, 50, 100])
def test_the_expected_age_of_a_near_one_hot_is_its_bin(age):
    assert expected_age(near_one_hot(age), BINS).item() == pytest.approx(age, abs=1e-4)


def test_the_expected_age_refuses_other_bins():
    with pytest.raises(ValueError, match="101 logits for 5"):
        expected_age(torch.zeros(1, 101), torch.arange(5))


def test_kl_is_zero_at_the_label_and_worked_out_elsewhere():
    criterion = build_criterion(load_cfg(None, ["LOSS.NAME", "kl"]), BINS)
    target = gaussian_target(torch.tensor([30.0]), BINS, 2.0)
    at_label = criterion((target + 1e-30).log(), labels(30.0))
    assert at_label["loss"].item() == pytest.approx(0, abs=1e-5)
    entropy = -(target[target > 0] * target[target > 0].log()).sum().item()
    uniform = criterion(torch.zeros(1, 101), labels(30.0))["loss"].item()
    assert uniform == pytest.approx(math.log(101) - entropy, rel=1e-5)


def test_kl_l1_adds_lambda_times_the_error_of_the_expectation():
    criterion = build_criterion(load_cfg(None, ["LOSS.L1_WEIGHT", "0.5"]), BINS)
    parts = criterion(near_one_hot(40), labels(30.0))
    assert parts["l1"].item() == pytest.approx(5.0, abs=1e-4)
    assert parts["loss"].item() == pytest.approx(parts["kl"].item() + 5.0, rel=1e-6)


def test_ce_takes_the_nearest_bin():
    criterion = build_criterion(load_cfg(None, ["LOSS.NAME", "ce"]), BINS)
    logits = torch.randn(1, 101, generator=torch.Generator().manual_seed(0))
    for age, nearest in ((30.4, 30), (30.5, 31), (30.6, 31), (0, 0), (100, 100)):
        expected = -logits.log_softmax(1)[0, nearest].item()
        assert criterion(logits, labels(age))["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_mean_variance_by_hand():
    cfg = load_cfg(None, ["LOSS.NAME", "mean_variance"])
    probs = torch.full((1, 101), 1e-12)
    probs[0, [20, 40]] = 0.5
    parts = build_criterion(cfg, BINS)(probs.log(), labels(20.0))
    assert parts["ce"].item() == pytest.approx(math.log(2), rel=1e-4)
    assert parts["mean"].item() == pytest.approx(0.2 * 0.5 * 10 ** 2, rel=1e-4)
    assert parts["variance"].item() == pytest.approx(0.05 * 100, rel=1e-4)


def test_sord_by_hand():
    cfg = load_cfg(None, ["LOSS.NAME", "sord", "LOSS.SORD_SCALE", str(math.log(2))])
    criterion = build_criterion(cfg, torch.arange(3))
    probs = torch.tensor([[0.5, 0.3, 0.2]])
    loss = criterion(probs.log(), labels(1.0))["loss"].item()  # soft labels 1/4, 1/2, 1/4
    assert loss == pytest.approx(-(math.log(0.5) + 2 * math.log(0.3) + math.log(0.2)) / 4, rel=1e-5)


ORDINAL = build_criterion(load_cfg(None, ["LOSS.NAME", "or_cnn"]), torch.arange(4))
UNORDERED = [2.0, -1.0, 0.5]  # logits of P(age > 0), P(age > 1), P(age > 2)


def test_or_cnn_by_hand_with_its_gradient():
    outputs = torch.tensor([UNORDERED], requires_grad=True)
    loss = ORDINAL(outputs, labels(1.5))["loss"]  # half a year upwards: older than 0 and 1, not 2
    assert loss.item() == pytest.approx(sum(
        math.log1p(math.exp(logit)) for logit in (-2.0, 1.0, 0.5)), rel=1e-6)
    loss.sum().backward()  # each output learns its own answer, whatever their order
    torch.testing.assert_close(outputs.grad, torch.sigmoid(torch.tensor([UNORDERED]))
                               - torch.tensor([[1.0, 1.0, 0.0]]))


def test_binary_outputs_learn_the_answers_of_a_teacher_with_bounded_gradients():
    criterion = build_criterion(load_cfg(None, [
        "LOSS.NAME", "or_cnn", "LOSS.TEACHER_WEIGHT", "0.25"]), torch.arange(4))
    for outputs in (UNORDERED, [1.0, 1.0, 1.0 - 1e-6]):  # also where some tie
        outputs = torch.tensor([outputs], requires_grad=True)
        teacher = torch.tensor([[0.1, 0.2, 0.3, 0.4]])  # older than 0: 0.9, than 1: 0.7, than 2
        parts = criterion(outputs, labels(1.5) | {"teacher": teacher})
        [gradient] = torch.autograd.grad(parts["teacher"].sum(), outputs)
        torch.testing.assert_close(gradient, 0.25 * (
            outputs.detach().sigmoid() - torch.tensor([[0.9, 0.7, 0.4]])))
        torch.testing.assert_close(parts["or_cnn"], 0.75 * ORDINAL(outputs, labels(1.5))["loss"])
        torch.testing.assert_close(parts["loss"], parts["or_cnn"] + parts["teacher"])


def test_or_cnn_asks_nothing_inside_an_interval():
    outputs = torch.tensor([UNORDERED], requires_grad=True)
    loss = ORDINAL(outputs, labels(1.5, low=1.0, high=2.0))["loss"]
    assert loss.item() == pytest.approx(sum(
        math.log1p(math.exp(logit)) for logit in (-2.0, 0.5)), rel=1e-6)
    loss.sum().backward()
    assert outputs.grad[0, 1] == 0
    open_ended = ORDINAL(outputs, labels(2.5, low=2.0, high=3.0))["loss"].item()
    assert open_ended == pytest.approx(math.log1p(math.exp(-2)) + math.log1p(math.e), rel=1e-6)


def test_binary_outputs_become_a_distribution_that_keeps_their_mean_and_their_majority():
    older = torch.tensor([[0.9, 0.4, 0.7]])
    log_probs = ordinal_log_probs(torch.logit(older))
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    assert expected_age(torch.logit(older), torch.arange(4)).item() == pytest.approx(2.0, rel=1e-6)
    outputs = 3 * torch.randn(50, 100, generator=torch.Generator().manual_seed(0))
    probs = ordinal_log_probs(outputs).exp()
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(50))
    torch.testing.assert_close(probs @ BINS.float(), outputs.sigmoid().sum(dim=1))
    median = (probs.cumsum(dim=1) < 0.5).sum(dim=1)
    torch.testing.assert_close(median, (outputs > 0).sum(dim=1))


def test_binary_outputs_come_back_from_their_distribution():
    outputs = torch.tensor([[3.0, 1.0, -2.0], [60.0, 0.5, -60.0]])
    torch.testing.assert_close(older_logits(ordinal_log_probs(outputs), torch.arange(4)), outputs)


@pytest.mark.parametrize(("raw", "is_equal"), [([3.0, 1.0, -2.0], True), (UNORDERED, False)])
def test_or_cnn_is_no_larger_in_validation_than_in_training(raw, is_equal):
    outputs = torch.tensor([raw])
    trained = ORDINAL(outputs, labels(2.0))["loss"].item()
    validated = ORDINAL(ordinal_log_probs(outputs), labels(2.0))["loss"].item()
    assert validated < trained + 1e-5
    assert (validated == pytest.approx(trained, rel=1e-5)) == is_equal


def test_extreme_binary_outputs_have_finite_distributions_and_gradients():
    outputs = torch.tensor([[1e4] * 100, [-1e4] * 100, [0.0] * 100], requires_grad=True)
    log_probs = ordinal_log_probs(outputs)
    assert log_probs.isfinite().all()
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(3))
    log_probs.sum().backward()
    assert outputs.grad.isfinite().all()


def test_an_age_nine_times_rarer_weighs_three_times_as_much():
    cfg = load_cfg(None, ["LOSS.RARE_AGE_POWER", "0.5"])
    ages = torch.tensor([20.0] * 900 + [60.0] * 100)
    faces = {"age": ages, "age_min": ages, "age_max": ages,
             "age_std": torch.full_like(ages, math.nan)}
    weights = rare_age_weights(age_share(cfg, faces, BINS), 0.5, 1e-3)
    assert weights[60] / weights[20] == pytest.approx(3, rel=1e-4)
    criterion = build_criterion(cfg, BINS, weights)
    logits = torch.zeros(1000, 101)
    factors = criterion(logits, faces)["loss"] / build_criterion(cfg, BINS)(logits, faces)["loss"]
    assert factors.mean().item() == pytest.approx(1, rel=1e-4)
    assert factors[-1] / factors[0] == pytest.approx(3, rel=0.05)  # the far tails are capped


def test_a_face_with_an_interval_weighs_as_all_ages_of_the_interval():
    weights = torch.where((BINS >= 40) & (BINS < 50), 7.0, 1.0)
    interval, logits = labels(49.5, 20.0, 79.0), torch.zeros(1, 101)
    factor = build_criterion(load_cfg(), BINS, weights)(logits, interval)["loss"] / \
        build_criterion(load_cfg(), BINS)(logits, interval)["loss"]
    assert factor.item() == pytest.approx(2, rel=1e-3)  # 10 of the 60 years weigh 7


@pytest.mark.parametrize("name", LOSSES)
def test_intervals_ask_for_mass_inside_and_distance_outside(name):
    criterion = build_criterion(load_cfg(None, ["LOSS.NAME", name]), BINS)
    interval = labels(24.5, low=20.0, high=29.0)
    inside = criterion(near_one_hot(25), interval)
    outside = criterion(near_one_hot(50), interval)
    assert inside["loss"].item() == pytest.approx(0, abs=0.02)
    assert outside["loss"].item() > 10
    if name == "kl_l1":
        assert inside["l1"].item() == 0
        assert outside["l1"].item() == pytest.approx(21.0, abs=1e-3)


def test_interval_weight_weighs_intervals_only():
    weighted = build_criterion(load_cfg(None, ["LOSS.INTERVAL_WEIGHT", "0.25"]), BINS)
    plain = build_criterion(load_cfg(), BINS)
    logits = torch.randn(1, 101, generator=torch.Generator().manual_seed(0))
    for label, factor in ((labels(24.5, 20.0, 29.0), 0.25), (labels(24.0), 1.0)):
        assert weighted(logits, label)["loss"].item() == pytest.approx(
            factor * plain(logits, label)["loss"].item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_mixed_batches_have_finite_gradients_and_reach_the_labels(name):
    criterion = build_criterion(load_cfg(None, ["LOSS.NAME", name]), BINS)
    mixed = {key: torch.cat([labels(3.0)[key], labels(100.0)[key],
                             labels(85.0, 70.0, 100.0)[key]]) for key in labels(0.0)}
    logits = torch.zeros(3, 101, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        criterion(logits, mixed)["loss"].sum().backward()
        assert logits.grad.isfinite().all()
        optimizer.step()
    ages = expected_age(logits, BINS)
    assert ages[0].item() == pytest.approx(3, abs=0.8)
    assert ages[1].item() == pytest.approx(100, abs=2)
    assert ages[2].item() > 68


def test_losses_stay_finite_for_extreme_logits():
    for name in LOSSES:
        parts = build_criterion(load_cfg(None, ["LOSS.NAME", name]), BINS)(
            1e4 * near_one_hot(90), labels(24.5, 20.0, 29.0))
        assert parts["loss"].isfinite().all()


def test_vote_spread_and_votes_become_the_label():
    by_spread = partial(label_distribution, age_bins=BINS, kind="vote_std", sigma=2.0,
                        std_floor=1.5)
    target = by_spread(labels(30.0, std=4.0))
    torch.testing.assert_close(target, gaussian_target(torch.tensor([30.0]), BINS, 4.0))
    floored = by_spread(labels(30.0, std=0.2))
    torch.testing.assert_close(floored, gaussian_target(torch.tensor([30.0]), BINS, 1.5))
    unknown = by_spread(labels(30.0))
    torch.testing.assert_close(unknown, gaussian_target(torch.tensor([30.0]), BINS, 2.0))
    votes = torch.zeros(1, 101)
    votes[0, [28, 31]] = torch.tensor([1.0, 3.0])
    by_votes = partial(label_distribution, age_bins=BINS, kind="votes", sigma=2.0, std_floor=1.5)
    assert by_votes(labels(30.0, votes=votes))[0, 31].item() == 0.75
    none = by_votes(labels(30.0, votes=torch.zeros(1, 101)))
    torch.testing.assert_close(none, unknown)


def test_labels_are_made_as_the_config_says():
    bins = torch.arange(101)
    votes = torch.zeros(1, 101)
    votes[0, [28, 32]] = 0.5
    labels = {"age": torch.tensor([30.0]), "age_std": torch.tensor([0.5]),
              "age_min": torch.tensor([30.0]), "age_max": torch.tensor([30.0]), "votes": votes}
    for opts, expected in (
            (["TRAIN.AGE_STDDEV", "5"], gaussian_target(labels["age"], bins, 5.0)),
            (["LOSS.LABEL", "vote_std", "LOSS.STD_FLOOR", "3"],
             gaussian_target(labels["age"], bins, 3.0)),
            (["LOSS.LABEL", "votes"], votes)):
        target = target_builder(load_cfg(None, opts))(labels, bins)
        torch.testing.assert_close(target.target_dist, expected)


def test_the_first_and_last_ages_of_a_config_are_those_of_every_loss():
    bins = torch.arange(10, 21)
    for name in ("kl", "kl_l1", "ce", "sord", "mean_variance"):
        criterion = build_criterion(load_cfg(None, ["LOSS.NAME", name]), bins)
        ages = torch.tensor([13.0])
        labels = {"age": ages, "age_min": ages, "age_max": ages,
                  "age_std": torch.tensor([math.nan])}
        losses = [criterion(8 * torch.eye(11)[[k]], labels)["loss"].item() for k in range(11)]
        assert np.argmin(losses) == 3, name
