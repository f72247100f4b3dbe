"""From a label to a target distribution, from a predicted distribution to a loss and an age.

A label is an age, an age with the spread of its votes, a histogram of votes, or an interval of
whole years; faces of all four kinds train together. A loss is a function
`(log_probs, target, age_bins) -> {part: (B,) values}`. To add one, write the function, add it to
LOSSES, and add its name to defaults.CHOICES. The losses use expected_age; metrics.DECODES holds the
ways to turn a distribution into the age that is reported.

The losses of ORDINAL take (B, K - 1) binary outputs in the place of log_probs. Only a network that
is training gives these (model.OrdinalHead); else it gives log-probabilities as all networks do.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from metrics import is_interval, nearest_years

TINY = 1e-30  # keeps a logarithm finite where float32 underflows to zero


def label_distribution(labels, age_bins, kind, sigma, std_floor):
    """The target distribution of faces with an exact age.

    Args:
        labels: dict of (B,) tensors, see dataset.FaceDataset; `votes` (B, K) may be absent.
        age_bins: (K,) years.
        kind: LOSS.LABEL: gaussian: a Gaussian of `sigma` around the age; vote_std: one of the
            votes' own spread; votes: the histogram of the votes.
        sigma: years, TRAIN.AGE_STDDEV; faces without spread or votes also get this Gaussian.
        std_floor: years, LOSS.STD_FLOOR, the smallest sigma of vote_std.
    Returns:
        (B, K) float32, rows sum to 1.
    """
    sigmas = torch.full_like(labels["age"], sigma)
    if kind == "vote_std":
        known = labels["age_std"].isfinite()
        sigmas = torch.where(known, labels["age_std"].clamp(min=std_floor), sigmas)
    target = gaussian_target(labels["age"], age_bins, sigmas)
    if kind == "votes" and "votes" in labels:
        total = labels["votes"].sum(dim=1, keepdim=True)
        target = torch.where(total > 0, labels["votes"] / total.clamp(min=TINY), target)
    return target


def gaussian_target(ages, age_bins, sigma):
    """Discretised Gaussian label distribution, normalised over the bins (DLDL, Gao et al. 2017).

    Normalised by its own sum, so that at ages 0 and 100 no mass is lost beyond the last bin.

    Args:
        ages: (B,) years, need not be whole.
        age_bins: (K,) years.
        sigma: years, a float or (B,).
    Returns:
        (B, K) float32, rows sum to 1.
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float32, device=ages.device).reshape(-1, 1)
    distance = (age_bins.float() - ages.float()[:, None]) / sigma
    return torch.softmax(-0.5 * distance.square(), dim=1)  # (B, K); softmax cannot underflow to 0/0


def interval_membership(age_min, age_max, age_bins, sigma):
    """How much each bin belongs to an interval of whole years, with edges softened by sigma.

    The interval covers [age_min - 0.5, age_max + 0.5); its indicator is convolved with a
    Gaussian. An end at the first or last bin is open, and so it is not softened.

    Args:
        age_min, age_max: (B,) years, both inclusive.
        age_bins: (K,) years.
        sigma: years.
    Returns:
        (B, K) float32 in [0, 1].
    """
    bins = age_bins.float()[None, :]
    above = torch.special.ndtr((bins - age_min.float()[:, None] + 0.5) / sigma)
    below = torch.special.ndtr((age_max.float()[:, None] + 0.5 - bins) / sigma)
    above = torch.where(age_min[:, None] <= age_bins[0], 1.0, above)
    below = torch.where(age_max[:, None] >= age_bins[-1], 1.0, below)
    return (above + below - 1).clamp(min=0)


@dataclass(frozen=True)
class Target:
    """The target of a batch: a distribution for an exact age, a set of bins for an interval.

    labels: dict of (B,) tensors, see dataset.FaceDataset.
    is_interval: (B,) bool, True for a face of which only an interval of ages is known.
    label_dist: (B, K) label distribution of an exact age, rows sum to 1.
    member: (B, K) in [0, 1], how much each bin belongs to the interval.
    """

    labels: dict
    is_interval: torch.Tensor
    label_dist: torch.Tensor
    member: torch.Tensor

    @property
    def target_dist(self):
        """(B, K) the label distribution, or the interval spread evenly; rows sum to 1."""
        member = self.member / self.member.sum(dim=1, keepdim=True)
        return torch.where(self.is_interval[:, None], member, self.label_dist)

    def with_intervals(self, exact, log_probs):
        """(B,) loss: `exact` for exact ages, -log(predicted mass in the interval) for the others.

        Args:
            exact: (B,) loss of each face, as if its age were exact.
            log_probs: (B, K) predicted log-probabilities.
        """
        log_mass = torch.logsumexp(log_probs + self.member.clamp(min=TINY).log(), dim=1)
        return torch.where(self.is_interval, -log_mass, exact)

    def distance(self, ages):
        """(B,) years from each age to its label: |error|, or the distance to the interval.

        Measured from the whole years of the interval, so that the loss still pulls 29.4 towards
        20 to 29; metrics.interval_distance counts ages that round into the interval as inside.
        """
        low, high = self.labels["age_min"], self.labels["age_max"]
        return (low - ages).clamp(min=0) + (ages - high).clamp(min=0)


def build_target(labels, age_bins, kind, sigma, std_floor):
    """Target of a batch's labels; arguments as in label_distribution."""
    return Target(
        labels=labels,
        is_interval=is_interval(labels),
        label_dist=label_distribution(labels, age_bins, kind, sigma, std_floor),
        member=interval_membership(labels["age_min"], labels["age_max"], age_bins, sigma))


def target_builder(cfg):
    """Function (labels, age_bins) -> Target, with the settings of the config."""
    return partial(build_target, kind=cfg.LOSS.LABEL, sigma=cfg.TRAIN.AGE_STDDEV,
                   std_floor=cfg.LOSS.STD_FLOOR)


def kl(log_probs, target, age_bins):
    """KL divergence from the label distribution (DLDL, Gao et al. 2017)."""
    return {"kl": target.with_intervals(kl_divergence(target.label_dist, log_probs), log_probs)}


def kl_divergence(target, log_probs):
    """(B,) KL divergence in nats from (B, K) target distributions to the predicted ones."""
    return (torch.xlogy(target, target) - target * log_probs).sum(dim=1)


def kl_l1(log_probs, target, age_bins, l1_weight):
    """KL plus lambda times |expectation - age| (DLDL-v2, Gao et al., IJCAI 2018, eq. 8)."""
    ages = expected_age(log_probs, age_bins)
    return kl(log_probs, target, age_bins) | {"l1": l1_weight * target.distance(ages)}


def ce(log_probs, target, age_bins):
    """Cross-entropy with the nearest age bin as the class (DEX, Rothe et al., IJCV 2018)."""
    nearest = nearest_years(target.labels["age"]) - age_bins[0]  # (B,)
    nearest = nearest.clamp(0, len(age_bins) - 1).long()
    exact = -log_probs.gather(1, nearest[:, None]).squeeze(1)
    return {"ce": target.with_intervals(exact, log_probs)}


def sord(log_probs, target, age_bins, scale):
    """Cross-entropy with soft labels by distance (SORD, Diaz and Marathe, CVPR 2019)."""
    soft = sord_target(target.labels["age"], age_bins, scale)
    return {"sord": target.with_intervals(-(soft * log_probs).sum(dim=1), log_probs)}


def sord_target(ages, age_bins, scale):
    """Soft labels softmax(-phi) with the metric phi = scale * |age - bin|.

    The paper leaves the metric open. With the squared difference the label would be a Gaussian, and
    the loss the one of `kl` up to a constant.

    Args:
        ages: (B,) years, need not be whole.
        age_bins: (K,) years.
        scale: 1/years, LOSS.SORD_SCALE.
    Returns:
        (B, K) float32, rows sum to 1.
    """
    return torch.softmax(-scale * (age_bins.float() - ages.float()[:, None]).abs(), dim=1)


def or_cnn(older, target, age_bins):
    """Binary cross-entropy of "older than this bin?", summed (OR-CNN, Niu et al., CVPR 2016).

    Every question counts the same. The authors weigh each by the square root of how many training
    faces have its age. An interval answers only the questions about the bins outside it; the others
    do not count.

    Args:
        older: (B, K - 1) logits, see older_logits.
        target: Target.
        age_bins: (K,) years.
    """
    # Both ends are the age itself if it is exact.
    low, high = (nearest_years(target.labels[name])[:, None] for name in ("age_min", "age_max"))
    is_older, is_not = age_bins[:-1] < low, age_bins[:-1] >= high  # (B, K - 1)
    questions = functional.binary_cross_entropy_with_logits(older, is_older.to(older),
                                                            reduction="none")
    return {"or_cnn": (questions * (is_older | is_not)).sum(dim=1)}


def older_cross_entropy(target, older):
    """(B,) cross-entropy in nats of "older than this bin?", summed over all bins but the last.

    Args:
        target: (B, K) target distributions, which answer with their P(age > bin).
        older: (B, K - 1) logits, see older_logits.
    """
    is_older = target.flip(1).cumsum(dim=1).flip(1)[:, 1:]  # (B, K - 1) P(age > bin)
    return functional.binary_cross_entropy_with_logits(
        older, is_older.to(older), reduction="none").sum(dim=1)


def mean_variance(log_probs, target, age_bins, mean_weight, variance_weight):
    """Cross-entropy, squared error of the mean and variance (Pan et al., CVPR 2018, eq. 7)."""
    ages = expected_age(log_probs, age_bins)
    distances = age_bins.to(log_probs) - ages[:, None]  # (B, K)
    variance = (log_probs.exp() * distances.square()).sum(dim=1)
    return ce(log_probs, target, age_bins) | {
        "mean": mean_weight * 0.5 * target.distance(ages).square(),
        "variance": variance_weight * variance}


LOSSES = {
    "kl": lambda cfg: kl,
    "kl_l1": lambda cfg: partial(kl_l1, l1_weight=cfg.LOSS.L1_WEIGHT),
    "ce": lambda cfg: ce,
    "sord": lambda cfg: partial(sord, scale=cfg.LOSS.SORD_SCALE),
    "or_cnn": lambda cfg: or_cnn,
    "mean_variance": lambda cfg: partial(mean_variance, mean_weight=cfg.LOSS.MEAN_WEIGHT,
                                         variance_weight=cfg.LOSS.VARIANCE_WEIGHT)}
ORDINAL = frozenset({"or_cnn"})  # those that take binary outputs, see older_logits


def build_criterion(cfg, age_bins, age_weights=None):
    """The loss of LOSS.NAME.

    Args:
        cfg: the config.
        age_bins: (K,) tensor of years on the model's device.
        age_weights: (K,) weight of a face of each age, see rare_age_weights; None: all 1.
    Returns:
        Function (outputs of the network, labels) -> {"loss": (B,), part: (B,), ...}; the parts add
        up to the loss. The outputs are those that age_logits takes. Faces with an interval count
        LOSS.INTERVAL_WEIGHT times. If labels contain `teacher` (B, K), a teacher's distributions,
        LOSS.TEACHER_WEIGHT of the loss is the KL divergence from these (knowledge distillation,
        Hinton et al., 2015). For a loss of ORDINAL it is older_cross_entropy.
    """
    loss, is_ordinal = LOSSES[cfg.LOSS.NAME](cfg), cfg.LOSS.NAME in ORDINAL
    target_of = target_builder(cfg)
    # Not the divergence for binary outputs: a probability is the difference between two of them,
    # so its logarithm has a gradient without bound where they are close, and none where they tie.
    teacher_loss = older_cross_entropy if is_ordinal else kl_divergence

    def criterion(outputs, labels):
        bins = age_bins.to(outputs.device)
        predicted = older_logits(outputs, bins) if is_ordinal else \
            age_logits(outputs, bins).log_softmax(dim=1)
        target = target_of(labels, bins)
        parts = loss(predicted, target, bins)
        if "teacher" in labels:
            share = cfg.LOSS.TEACHER_WEIGHT
            parts = {name: (1 - share) * part for name, part in parts.items()}
            parts["teacher"] = share * teacher_loss(labels["teacher"], predicted)
        weight = torch.where(target.is_interval, cfg.LOSS.INTERVAL_WEIGHT, 1.0)
        if age_weights is not None:
            weight = weight * (target.target_dist @ age_weights.to(bins.device))
        parts = {name: weight * part for name, part in parts.items()}
        return {"loss": sum(parts.values()), **parts}

    return criterion


def age_share(cfg, labels, age_bins):
    """The share that each age has among faces: the mean of their target distributions.

    Args:
        cfg: the config; the keys of target_builder.
        labels: dict of (N,) tensors, see dataset.FaceDataset.
        age_bins: (K,) years.
    Returns:
        (K,) float32, sums to 1.
    """
    return target_builder(cfg)(labels, age_bins).target_dist.mean(dim=0)


def rare_age_weights(share, power, floor):
    """Weight of a face of each age: its smoothed frequency to the power -`power`.

    Label distribution smoothing (Yang et al., "Delving into Deep Imbalanced Regression", ICML
    2021); the power 0.5 is their square-root weighting.

    Args:
        share: (K,) of the training faces, from age_share().
        power: LOSS.RARE_AGE_POWER.
        floor: share below which an age weighs no more, in (0, 1].
    Returns:
        (K,) float32; its mean over the training faces is 1.
    """
    weights = share.clamp(min=floor) ** -power
    return weights / (share @ weights)


def expected_age(logits, age_bins):
    """Mean of the predicted age distribution (DEX, Rothe et al., IJCV 2018).

    Args:
        logits: (B, K) float, unnormalised, or other outputs that age_logits takes.
        age_bins: (K,) years, increasing.
    Returns:
        (B,) years, within [age_bins[0], age_bins[-1]].
    Raises:
        ValueError: neither K outputs nor K - 1.
    """
    probs = age_logits(logits, age_bins).softmax(dim=1)  # (B, K); fp16: 0.06 years near 100
    return probs @ age_bins.to(probs)  # (B,)


# ---- Binary outputs: is the face older than this bin?


def age_logits(outputs, age_bins):
    """The outputs of a network as logits of the ages; the number of outputs tells their kind.

    Args:
        outputs: (B, K) logits of the ages (or log-probabilities), or (B, K - 1) binary outputs.
        age_bins: (K,) years.
    Returns:
        (B, K) float32.
    Raises:
        ValueError: another number of outputs.
    """
    if outputs.shape[1] == len(age_bins) - 1:
        return ordinal_log_probs(outputs.float())
    if outputs.shape[1] != len(age_bins):
        raise ValueError(f"{outputs.shape[1]} logits for {len(age_bins)} age bins")
    return outputs.float()


def older_logits(outputs, age_bins):
    """(B, K - 1) logits of P(age > bin) for each bin but the last; arguments as of age_logits.

    Binary outputs stay as they are.
    """
    if outputs.shape[1] == len(age_bins) - 1:
        return outputs.float()
    log_probs = age_logits(outputs, age_bins).log_softmax(dim=1)
    older = log_probs.flip(1).logcumsumexp(dim=1).flip(1)  # log P(age >= bin)
    return older[:, 1:] - log_probs.logcumsumexp(dim=1)[:, :-1]


def ordinal_log_probs(older):
    """The distribution of binary outputs P(age > bin): P at the bin before minus P at the bin.

    Independent outputs may rise from one bin to the next, and a difference would be negative. So
    they are sorted, which never moves them further from the true, falling ones (rearrangement,
    Chernozhukov et al., Biometrika 2009). Sorting keeps their sum, which gives the mean age, and
    how many exceed 0.5, by which Niu et al. (CVPR 2016) predict the age.

    Args:
        older: (B, K - 1) float32 logits of P(age > bin).
    Returns:
        (B, K) log-probabilities.
    """
    older = older.sort(dim=1, descending=True).values
    inside = functional.logsigmoid(older), functional.logsigmoid(-older)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), without cancellation
    steps = -torch.expm1(older[:, 1:] - older[:, :-1])
    between = inside[0][:, :-1] + inside[1][:, 1:] + steps.clamp(min=TINY).log()
    return torch.cat([inside[1][:, :1], between, inside[0][:, -1:]], dim=1)
