"""From a label to a target distribution, from a predicted distribution to a loss and an age.

A label is an age, an age with the spread of its votes, a histogram of votes, or an interval of
whole years; all of them train together. A loss is a function
`(log_probs, target, age_bins) -> {part: (B,) per-face values}`; a new one is an entry of LOSSES,
which makes it of the config, and its name one of defaults.CHOICES. How a distribution becomes an
age that is reported stands in metrics.DECODES; `expected_age` serves the losses.
"""

from dataclasses import dataclass
from functools import partial

import torch

from metrics import is_interval

TINY = 1e-30  # keeps a logarithm finite where float32 underflows to zero


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
    """How much each bin belongs to an interval of whole years, edges softened by sigma.

    The interval covers [age_min - 0.5, age_max + 0.5); its indicator is convolved with a
    Gaussian. An end at the first or last bin is open, so it is not softened.

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


def expected_age(logits, age_bins):
    """Mean of the predicted age distribution (DEX, Rothe et al., IJCV 2018).

    Args:
        logits: (B, K) float, unnormalised (or log-probabilities).
        age_bins: (K,) years, increasing.
    Returns:
        (B,) years, within [age_bins[0], age_bins[-1]].
    Raises:
        ValueError: K differs between the two.
    """
    if logits.shape[1] != len(age_bins):
        raise ValueError(f"{logits.shape[1]} logits for {len(age_bins)} age bins")
    probs = logits.float().softmax(dim=1)  # (B, K); fp16 steps are 0.06 years near 100
    return probs @ age_bins.to(probs)  # (B,)


def label_distribution(labels, age_bins, cfg):
    """The target distribution of faces with an exact age, by LOSS.LABEL.

    Args:
        labels: dict of (B,) tensors, see dataset.FaceDataset; `votes` is (B, K) or absent.
        age_bins: (K,) years.
        cfg: the config; LOSS.LABEL, LOSS.STD_FLOOR and TRAIN.AGE_STDDEV are read.
    Returns:
        (B, K) float32, rows sum to 1. A face without votes or spread gets the Gaussian of
        TRAIN.AGE_STDDEV.
    """
    sigma = torch.full_like(labels["age"], cfg.TRAIN.AGE_STDDEV)
    if cfg.LOSS.LABEL == "vote_std":
        known = labels["age_std"].isfinite()
        sigma = torch.where(known, labels["age_std"].clamp(min=cfg.LOSS.STD_FLOOR), sigma)
    target = gaussian_target(labels["age"], age_bins, sigma)
    if cfg.LOSS.LABEL == "votes" and "votes" in labels:
        total = labels["votes"].sum(dim=1, keepdim=True)
        target = torch.where(total > 0, labels["votes"] / total.clamp(min=TINY), target)
    return target


@dataclass(frozen=True)
class Target:
    """What a batch's faces should be predicted as.

    labels: dict of (B,) tensors, see dataset.FaceDataset.
    is_interval: (B,) bool, True where only an interval of ages is known.
    label_dist: (B, K) label distribution, of an exact age.
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

    def or_interval(self, exact, log_probs):
        """(B,) of the exact ages' loss; of an interval minus the log of its soft mass."""
        log_mass = torch.logsumexp(log_probs + self.member.clamp(min=TINY).log(), dim=1)
        return torch.where(self.is_interval, -log_mass, exact)

    def distance(self, ages):
        """(B,) years from the age to the label: |error|, or the way to the interval, 0 inside.

        From the interval's whole years themselves, so that 29.4 is still pulled into 20 to 29;
        metrics.interval_distance counts what rounds into it as inside.
        """
        low, high = self.labels["age_min"], self.labels["age_max"]
        return (low - ages).clamp(min=0) + (ages - high).clamp(min=0)


def build_target(labels, age_bins, cfg):
    """Target of a batch's labels, over (K,) age_bins; see label_distribution for cfg."""
    member = interval_membership(labels["age_min"], labels["age_max"], age_bins,
                                 cfg.TRAIN.AGE_STDDEV)
    return Target(labels, is_interval(labels), label_distribution(labels, age_bins, cfg), member)


def kl(log_probs, target, age_bins):
    """KL divergence from the label distribution, or minus the log of the mass in the interval."""
    return {"kl": target.or_interval(kl_divergence(target.label_dist, log_probs), log_probs)}


def kl_divergence(target, log_probs):
    """(B,) KL divergence in nats from (B, K) target distributions to the predicted ones."""
    return (torch.xlogy(target, target) - target * log_probs).sum(dim=1)


def kl_l1(log_probs, target, age_bins, l1_weight):
    """KL plus lambda times |expectation - age| (DLDL-v2, Gao et al., IJCAI 2018, eq. 8)."""
    ages = expected_age(log_probs, age_bins)
    return kl(log_probs, target, age_bins) | {"l1": l1_weight * target.distance(ages)}


def ce(log_probs, target, age_bins):
    """Cross-entropy with the nearest age bin as the class (DEX, Rothe et al., IJCV 2018)."""
    # Halves upwards, as in metrics.py.
    nearest = (target.labels["age"] + 0.5).floor() - age_bins[0]  # (B,)
    nearest = nearest.clamp(0, len(age_bins) - 1).long()
    exact = -log_probs.gather(1, nearest[:, None]).squeeze(1)
    return {"ce": target.or_interval(exact, log_probs)}


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
    "mean_variance": lambda cfg: partial(mean_variance, mean_weight=cfg.LOSS.MEAN_WEIGHT,
                                         variance_weight=cfg.LOSS.VARIANCE_WEIGHT)}


def rare_age_weights(labels, age_bins, cfg):
    """Weight of a face of each age: its smoothed frequency to the power -LOSS.RARE_AGE_POWER.

    Label distribution smoothing (Yang et al., "Delving into Deep Imbalanced Regression", ICML
    2021); the power 0.5 is their square-root weighting.

    Args:
        labels: dict of (N,) tensors of the training faces.
        age_bins: (K,) years.
        cfg: the config; TRAIN.AGE_STDDEV is the sigma of the smoothing.
    Returns:
        (K,) float32; its mean over the training faces is 1.
    """
    share = build_target(labels, age_bins, cfg).target_dist.mean(dim=0)  # (K,)
    weights = share.clamp(min=1 / len(labels["age"])) ** -cfg.LOSS.RARE_AGE_POWER
    return weights / (share @ weights)


def build_criterion(cfg, age_bins, age_weights=None):
    """The loss of LOSS.NAME.

    Args:
        cfg: the config.
        age_bins: (K,) tensor of years on the model's device.
        age_weights: (K,) weight of a face of each age, see rare_age_weights; None: 1.
    Returns:
        Function (logits (B, K), labels) -> {"loss": (B,), part: (B,), ...}; the parts add up to
        the loss. Faces with an interval count LOSS.INTERVAL_WEIGHT times. Where labels hold
        `teacher` (B, K), a teacher's distributions, LOSS.TEACHER_WEIGHT of the loss is the KL
        divergence from these (knowledge distillation, Hinton et al., 2015).
    """
    loss = LOSSES[cfg.LOSS.NAME](cfg)

    def criterion(logits, labels):
        log_probs = logits.float().log_softmax(dim=1)
        bins = age_bins.to(log_probs.device)
        target = build_target(labels, bins, cfg)
        parts = loss(log_probs, target, bins)
        if "teacher" in labels:
            share = cfg.LOSS.TEACHER_WEIGHT
            parts = {name: (1 - share) * part for name, part in parts.items()}
            parts["teacher"] = share * kl_divergence(labels["teacher"], log_probs)
        weight = torch.where(target.is_interval, cfg.LOSS.INTERVAL_WEIGHT, 1.0)
        if age_weights is not None:
            weight = weight * (target.target_dist @ age_weights.to(bins.device))
        parts = {name: weight * part for name, part in parts.items()}
        return {"loss": sum(parts.values()), **parts}

    return criterion
