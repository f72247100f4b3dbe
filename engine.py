"""The only loops over batches: training an epoch and predicting a data set."""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from batches import to_device
from losses import expected_age
from utils import distributed
from utils.precision import autocast, keep_freed_memory

STEPS_ASKED = 10  # after so many steps on GPUs, all processes are asked whether to stop


def train_one_epoch(trainer, loader, progress, should_stop, description):
    """Train on the batches of one epoch.

    Args:
        trainer: Trainer.
        loader: DataLoader over ShuffledBatches that start where progress stands.
        progress: EpochProgress, updated in place.
        should_stop: function () -> bool, called after each step; on GPUs after STEPS_ASKED.
        description: text before the progress bar.
    Returns:
        Whether the epoch is complete.
    """
    trainer.model.train()
    if progress.lr is None:
        progress.lr = trainer.optimizer.param_groups[0]["lr"]
    index, pred_ages, parts_seen = [progress.index], [progress.pred_ages], []
    started = time.perf_counter()
    stopped = False
    bar = tqdm(loader, desc=description, total=progress.steps + len(loader),
               initial=progress.steps, leave=False, unit="batch",
               disable=None if distributed.is_main() else True)
    for batch in bar:
        parts, ages = trainer.step(batch)
        parts_seen.append({name: part.sum() for name, part in parts.items()})
        index.append(batch["index"].clone())  # else the worker's shared memory stays open
        pred_ages.append(ages)  # stays on the device: copying would wait for the GPU each step
        progress.steps += 1
        if progress.steps % 20 == 0:
            bar.set_postfix(loss=f"{parts['loss'].mean().item():.3f}")
        # Asking all processes waits for the GPU.
        is_asked = trainer.device.type != "cuda" or progress.steps % STEPS_ASKED == 0
        if is_asked and distributed.any_true(should_stop(), trainer.device):
            stopped = progress.steps < bar.total
            break
    bar.close()
    progress.index = torch.cat(index)
    progress.pred_ages = torch.cat([ages.float().cpu() for ages in pred_ages])
    for parts in parts_seen:
        for name, value in parts.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value.item()
    progress.seconds += time.perf_counter() - started
    return not stopped


def predict(model, loader, device, tta=False, description="predicting"):
    """Predict every face of a data set once, over all processes.

    Args:
        model: module on the device, from uint8 pixels to logits, such as an unwrapped AgeModel.
        loader: DataLoader over OrderedBatches.
        device: torch.device.
        tta: average each face with its mirror image.
        description: text before the progress bar.
    Returns:
        (N, K) float32 log-probabilities on the CPU, in the data set's order.
    """
    keep_freed_memory(device)
    model.eval()
    log_probs, index = [], []
    for batch in tqdm(loader, desc=description, leave=False, unit="batch",
                      disable=None if distributed.is_main() else True):
        pixels = to_device({"pixels": batch["pixels"]}, device)["pixels"]
        log_probs.append(log_probs_of(model, pixels, tta).cpu())
        index.append(batch["index"].clone())  # else the worker's shared memory stays open
    rows = distributed.concatenate(torch.cat(log_probs))
    ordered = torch.empty_like(rows)
    ordered[distributed.concatenate(torch.cat(index))] = rows
    return ordered


@torch.inference_mode()
def log_probs_of(model, pixels, tta=False):
    """Predicted log-probabilities of a batch.

    Args:
        model: as for predict, in eval mode.
        pixels: (B, 3, S, S) uint8 on the model's device.
        tta: average with the distribution of the mirror image.
    Returns:
        (B, K) float32.
    """
    log_probs = model(pixels).float().log_softmax(dim=1)
    if not tta:
        return log_probs
    mirrored = model(pixels.flip(-1)).float().log_softmax(dim=1)
    return mean_of_views(log_probs, mirrored)


def mean_of_views(log_probs, mirrored):
    """(B, K) log of the mean of two distributions, each given as (B, K) log-probabilities."""
    return torch.logaddexp(log_probs, mirrored) - math.log(2)


@contextmanager
def small_batches_explained():
    """Context in which batch normalisation of a single value is refused with the way out."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError("a batch of one face is too small for the batch normalisation of this "
                         "network: TRAIN.BATCH_SIZE must give each process two faces, or "
                         "MODEL.IMG_SIZE be larger") from error


@dataclass
class EpochProgress:
    """What an epoch has done so far. It is saved with the run, so that the epoch can continue.

    steps: batches trained.
    seconds: time they took.
    lr: learning rate of the first step.
    sums: {part of the loss: sum over the faces}.
    index: (n,) place of each face in the data set.
    pred_ages: (n,) years that the network predicted when it was trained on the face.
    """

    steps: int = 0
    seconds: float = 0.0
    lr: float | None = None
    sums: dict = field(default_factory=dict)
    index: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    pred_ages: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def gather(self):
        """The progress of all processes together, as a dict of tensors and plain values."""
        return {"steps": self.steps, "seconds": self.seconds, "lr": self.lr,
                "sums": distributed.total(self.sums),
                "index": distributed.concatenate(self.index),
                "pred_ages": distributed.concatenate(self.pred_ages)}

    @classmethod
    def restore(cls, gathered):
        """The progress from a dict that gather() returned.

        Only the main process takes the figures, so that they are counted once.
        """
        return cls(**gathered) if distributed.is_main() else cls(steps=gathered["steps"])


@dataclass
class Trainer:
    """A network with everything that changes while it trains, and the training step.

    Args:
        model: AgeModel, in DistributedDataParallel if there are several processes.
        criterion: function from losses.build_criterion().
        age_bins: (K,) tensor of years on the device, for the training metrics.
        optimizer, scheduler: both take a step each batch.
        device: torch.device of the model.
        batch_faces: faces of a step, over all processes.
        amp: bf16 | fp16 | off.
        clip_norm: maximum norm of the gradient; 0 turns clipping off.
        teachers: function (B, 3, S, S) uint8 pixels -> (B, K) probabilities to learn from, or None.
        ema: AveragedModel, or None.
    """

    model: torch.nn.Module
    criterion: Callable
    age_bins: torch.Tensor
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    device: torch.device
    batch_faces: int
    amp: str = "off"
    clip_norm: float = 0.0
    teachers: Callable | None = None
    ema: AveragedModel | None = None
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self):
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")

    def step(self, batch):
        """Train on one batch.

        Args:
            batch: dict of (B, ...) tensors, see dataset.FaceDataset.batch().
        Returns:
            parts: dict of (B,) loss values, and pred_ages (B,), both detached.
        Raises:
            ValueError: batch normalisation sees a single value, of one face.
        """
        batch = to_device(batch, self.device)
        with autocast(self.device, self.amp), small_batches_explained():
            logits = self.model(batch["pixels"])
            if self.teachers is not None:
                batch["teacher"] = self.teachers(batch["pixels"])
        parts = self.criterion(logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages the gradients of the processes; the loss is the mean over all their faces.
        loss = parts["loss"].sum() * distributed.world_size() / self.batch_faces
        self.scaler.scale(loss).backward()
        if self.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(distributed.unwrap(self.model))
        with torch.no_grad():
            return ({name: part.detach() for name, part in parts.items()},
                    expected_age(logits, self.age_bins))

    def evaluated_model(self):
        """The model that is validated and saved: the averaged one if TRAIN.EMA_DECAY is on."""
        return distributed.unwrap(self.model) if self.ema is None else self.ema.module

    def is_finite(self):
        """Whether all weights, also the averaged ones, are finite numbers."""
        return all(tensor.isfinite().all().item()
                   for model in {distributed.unwrap(self.model), self.evaluated_model()}
                   for tensor in model.state_dict().values())

    def state_dict(self):
        """Everything that a continued run needs, as tensors and plain values.

        All processes call it: `random_state` has one row for each of them.
        """
        state = {
            "model": self.evaluated_model().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random_state": {name: distributed.concatenate(numbers[None])
                             for name, numbers in _random_state(self.device).items()},
        }
        if self.ema is not None:
            state["ema"] = {"steps": int(self.ema.n_averaged),
                            "trained_model": distributed.unwrap(self.model).state_dict()}
        return state

    def load_state_dict(self, state, steps):
        """Continue from a saved state.

        Learning rate, momentum and weight decay are not restored: this trainer's own stay.

        Args:
            state: dict from state_dict().
            steps: steps of the run so far, at this trainer's batch size.
        """
        self.evaluated_model().load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.n_averaged.fill_(state["ema"]["steps"])
            distributed.unwrap(self.model).load_state_dict(state["ema"]["trained_model"])
        base_lrs, options = self.scheduler.base_lrs, [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scheduler.base_lrs, self.scheduler.last_epoch = base_lrs, steps
        for group, own, base_lr, factor in zip(self.optimizer.param_groups, options, base_lrs,
                                               self.scheduler.lr_lambdas, strict=True):
            group.update(own | {"lr": base_lr * factor(steps)})
        if state["scaler"]:  # empty if the run so far was not in fp16
            self.scaler.load_state_dict(state["scaler"])
        _set_random_state(state["random_state"], self.device)


def _random_state(device):
    """{"cpu": state} of this process, with "cuda" too on a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(states, device):
    """Restore this process's row; a process without one keeps the state from its seed."""
    for name, rows in states.items():
        rows = torch.atleast_2d(rows)  # older checkpoints have the main process's only
        if distributed.rank() >= len(rows):
            continue
        numbers = rows[distributed.rank()].clone()  # torch crashes if given a view
        if name == "cpu":
            torch.set_rng_state(numbers)
        elif device.type == "cuda":
            torch.cuda.set_rng_state(numbers, device)
