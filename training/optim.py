"""Optimiser, learning rate over time, and averaged weights."""

import math

import torch
from torch.optim.swa_utils import AveragedModel


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


def build_scheduler(optimizer, steps_per_epoch, cfg):
    """Learning rate over time, by TRAIN.SCHEDULE; it takes a step each batch."""
    train = cfg.TRAIN
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(
        step, steps_per_epoch, train.SCHEDULE, epochs=train.EPOCHS,
        warmup_epochs=train.WARMUP_EPOCHS, decay_step=train.LR_DECAY_STEP,
        decay_rate=train.LR_DECAY_RATE))


def lr_factor(step, steps_per_epoch, schedule, epochs, warmup_epochs, decay_step, decay_rate):
    """Learning rate relative to TRAIN.LR at a step of the run.

    Both schedules begin with a linear warm-up.

    Args:
        step: number of the step in the run, from 0.
        steps_per_epoch: batches of an epoch.
        schedule: step: times decay_rate every decay_step epochs; cosine: half a cosine from the
            end of the warm-up to 0 at the last step.
        epochs: how many the run has.
        warmup_epochs: need not be whole.
        decay_step, decay_rate: epochs between two decays of the step schedule, and their factor.
    """
    epoch = step / steps_per_epoch
    warmup = min(1.0, (step + 1) / max(warmup_epochs * steps_per_epoch, 1))
    if schedule == "step":
        return warmup * decay_rate ** (int(epoch) // decay_step)
    length = max(epochs - warmup_epochs, 1e-9)
    done = min(max(epoch - warmup_epochs, 0) / length, 1)
    return warmup * 0.5 * (1 + math.cos(math.pi * done))


def averaged_model(model, decay):
    """Exponential moving average of weights and buffers, with a short memory at the start.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the average soon forgets the
    random first weights.
    """
    def lerp(averaged, current, _):  # not the given number of steps: reading it waits for the GPU
        if torch.is_floating_point(averaged[0]):
            steps = int(ema.n_averaged)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + steps) / (10 + steps)))
        else:
            for mine, theirs in zip(averaged, current, strict=True):
                mine.copy_(theirs)  # counters

    ema = AveragedModel(model, multi_avg_fn=lerp, use_buffers=True)
    return ema
