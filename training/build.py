"""The parts of a training run, made by the config: loaders, network, trainer, precision."""

import copy
import time

import numpy as np
import torch

from batches import ShuffledBatches, build_loader, to_device
from dataset import FaceDataset
from defaults import age_bins, parse_cfg
from engine import Trainer, small_batches_explained
from losses import age_share, build_criterion, rare_age_weights
from model import build_model, restore_model
from training.optim import averaged_model, build_optimizer, build_scheduler
from training.teachers import ModelTeachers, find_teachers, teacher_distributions
from utils import distributed
from utils.precision import arranged, autocast, keep_freed_memory

TRIAL_STEPS = 3  # timed training steps each way when TRAIN.AMP is auto on a CPU


def build_train_loader(faces, cfg, device, cache_dir=None):
    """Loader of this process's share of a table of faces, shuffled and augmented."""
    tables, _ = find_teachers(cfg.LOSS.TEACHER)
    teacher = teacher_distributions(tables, faces, age_bins(cfg)) if tables else None
    # The crops are cut after the tables are read: it takes minutes.
    data = FaceDataset(faces, cfg, train=True, cache_dir=cache_dir)
    if teacher is not None:
        data.labels["teacher"] = teacher
    batches = ShuffledBatches(len(data), cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.SEED,
                              distributed.rank(), distributed.world_size())
    return build_loader(data, batches, cfg.TRAIN.WORKERS, device)


def build_network(cfg, device, resumed=None):
    """The network to train, on its device: from a checkpoint, or a new one by the config."""
    if resumed is not None:
        return restore_model(resumed, device)[0]
    with distributed.one_first():
        return build_model(cfg).to(device)


def build_teachers(cfg, device):
    """The models of LOSS.TEACHER on the device; None if there are none."""
    _, models = find_teachers(cfg.LOSS.TEACHER)
    return ModelTeachers(models, cfg).to(device) if models else None


def build_trainer(cfg, device, model, loader, teachers=None, resumed=None):
    """The network with its loss, optimiser and schedule.

    Args:
        cfg: the config.
        device: torch.device of this process.
        model: AgeModel, from build_network().
        loader: DataLoader over ShuffledBatches of the training faces.
        teachers: from build_teachers(), or None.
        resumed: checkpoint to continue, or None.
    Returns:
        engine.Trainer.
    """
    keep_freed_memory(device)
    bins = torch.tensor(age_bins(cfg), device=device)
    data, age_weights = loader.dataset, None
    if cfg.LOSS.RARE_AGE_POWER > 0:
        age_weights = rare_age_weights(age_share(cfg, data.labels, bins.cpu()),
                                       cfg.LOSS.RARE_AGE_POWER, 1 / len(data))
    criterion = build_criterion(cfg, bins, age_weights)
    if device.type == "cpu" and resumed is not None and resumed.get("device", "cpu") == "cpu" and \
            parse_cfg(resumed["cfg"]).TRAIN.AMP == cfg.TRAIN.AMP:
        amp = resumed["amp"]  # it was timed
    else:
        amp = distributed.from_main(choose_amp(
            cfg.TRAIN.AMP, cfg.TRAIN.DETERMINISTIC, device, model, criterion,
            lambda: data.batch(next(iter(loader.batch_sampler))), teachers))
    model = arranged(model, amp)
    optimizer = build_optimizer(model, cfg)
    steps_per_epoch = len(loader.batch_sampler)
    trainer = Trainer(
        model=distributed.wrap(model, device),
        criterion=criterion,
        age_bins=bins,
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer, steps_per_epoch, cfg),
        device=device,
        batch_faces=loader.batch_sampler.batch_size,
        amp=amp,
        clip_norm=cfg.TRAIN.CLIP_NORM,
        teachers=arranged(teachers, amp) if teachers else None,
        ema=averaged_model(model, cfg.TRAIN.EMA_DECAY) if cfg.TRAIN.EMA_DECAY > 0 else None)
    if resumed is not None:
        progress = resumed["progress"] or {"steps": 0}
        trainer.load_state_dict(
            resumed, resumed["epochs_done"] * steps_per_epoch + progress["steps"])
    return trainer


def choose_amp(amp, deterministic, device, model, criterion, draw_batch, teachers=None):
    """Resolve TRAIN.AMP auto.

    A GPU that has bf16 (NVIDIA's from Ampere on) gets it, another one fp16, and Apple's off. On a
    CPU a few steps are timed both ways, since the gain of bf16 depends on the network and the CPU.

    Args:
        amp: auto | bf16 | fp16 | off.
        deterministic: True if the choice must not depend on a clock; a CPU then gets off.
        device, model, criterion: what the run uses; model and random state do not change.
        draw_batch: function () -> a training batch, called if steps are timed.
        teachers: ModelTeachers, or None.
    Returns:
        bf16 | fp16 | off.
    """
    if amp != "auto":
        return amp
    if device.type == "cuda":
        # Not is_bf16_supported(): it is also True on GPUs that emulate bf16, slowly or in part.
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if deterministic or device.type != "cpu":
        return "off"
    batch = draw_batch()
    with torch.random.fork_rng(devices=[]):
        seconds = {name: seconds_per_step(name, device, model, criterion, batch, teachers)
                   for name in ("off", "bf16")}
    return min(seconds, key=seconds.get)


def seconds_per_step(amp, device, model, criterion, batch, teachers=None):
    """Median time of a few training steps on a copy of the model."""
    trial = arranged(copy.deepcopy(model), amp).train()
    teach = teachers and arranged(copy.deepcopy(teachers), amp)
    batch = to_device(batch, device)
    times = []
    for _ in range(TRIAL_STEPS + 1):
        started = time.perf_counter()
        with autocast(device, amp), small_batches_explained():
            logits = trial(batch["pixels"])
            if teach:
                batch["teacher"] = teach(batch["pixels"])
        criterion(logits, batch)["loss"].mean().backward()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))  # the first also allocates the memory
