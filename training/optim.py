"""Optimiser, learning rate over time, and averaged weights."""

import math

import torch
from torch.optim.swa_utils import AveragedModel


def averaged_model(model, decay):
    """Exponential moving average of weights and buffers, with a short memory at the start.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the random first weights are
    soon forgotten.
    """
    def lerp(averaged, current, _):  # the number of steps given is on the GPU, to be waited for
        if torch.is_floating_point(averaged[0]):
            steps = int(ema.n_averaged)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + steps) / (10 + steps)))
        else:
            for mine, theirs in zip(averaged, current, strict=True):
                mine.copy_(theirs)  # counters

    ema = AveragedModel(model, multi_avg_fn=lerp, use_buffers=True)
    return ema


def lr_factor(step, steps_per_epoch, cfg):
    """Learning rate relative to TRAIN.LR at a step of the run.

    step: times LR_DECAY_RATE every LR_DECAY_STEP epochs. cosine: half a cosine to 0 at the last
    step. Either starts with a linear warm-up over WARMUP_EPOCHS.
    """
    epoch = step / steps_per_epoch
    warmup = min(1.0, (step + 1) / max(cfg.TRAIN.WARMUP_EPOCHS * steps_per_epoch, 1))
    if cfg.TRAIN.SCHEDULE == "step":
        return warmup * cfg.TRAIN.LR_DECAY_RATE ** (int(epoch) // cfg.TRAIN.LR_DECAY_STEP)
    length = max(cfg.TRAIN.EPOCHS - cfg.TRAIN.WARMUP_EPOCHS, 1e-9)
    done = min(max(epoch - cfg.TRAIN.WARMUP_EPOCHS, 0) / length, 1)
    return warmup * 0.5 * (1 + math.cos(math.pi * done))


def build_optimizer(model, cfg):
    """Adam, AdamW or SGD over the head and the backbone with their learning rates."""
    decays = cfg.TRAIN.WEIGHT_DECAY
    groups = []
    for parameters, scale in ((model.head_parameters(), 1.0),
                              (model.backbone_parameters(), cfg.TRAIN.BACKBONE_LR_SCALE)):
        parameters = list(parameters)
        if cfg.TRAIN.OPT != "adamw":
            groups.append({"params": parameters, "lr": scale * cfg.TRAIN.LR})
            continue
        for is_kernel in (True, False):  # no decay on biases and normalisation
            chosen = [p for p in parameters if (p.ndim > 1) == is_kernel]
            groups.append({"params": chosen, "lr": scale * cfg.TRAIN.LR,
                           "weight_decay": decays if is_kernel else 0.0})
    if cfg.TRAIN.OPT == "sgd":
        return torch.optim.SGD(groups, lr=cfg.TRAIN.LR, momentum=cfg.TRAIN.MOMENTUM,
                               weight_decay=decays)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.TRAIN.OPT]
    return optimizer(groups, lr=cfg.TRAIN.LR, weight_decay=decays)
