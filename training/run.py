"""A training run: what it trains, on what, and where it stands between two epochs or batches."""

import hashlib
import shlex
import time
import warnings
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import torch

import metrics
from defaults import age_bins
from engine import EpochProgress, Trainer, predict
from lists import PLACE, count_excluded, count_faces, list_file
from losses import age_share, target_builder
from training.folder import RunFolder
from training.monitor import Monitor
from training.teachers import find_teachers
from utils import distributed
from utils.cli import count_text
from utils.commit import current_commit


@dataclass(frozen=True)
class Job:
    """Which data a training reads, on which device it runs, where its files go.

    sources: list of Source, from lists.pair_folders().
    device: torch.device of this process.
    folder: Path of the run's files.
    data_words: flags that name data and device, for the commands that are printed.
    cache_dir: folder of the crop cache, or None for the user's.
    tensorboard: log folder of TensorBoard, or None.
    protocol: name of a split file, or None for the lists' own splits.
    resume: path of the checkpoint to continue, or None.
    is_part: True if the command runs several trainings, and this is one of them.
    """

    sources: list
    device: object
    folder: Path
    data_words: list
    cache_dir: str | None = None
    tensorboard: str | None = None
    protocol: str | None = None
    resume: str | None = None
    is_part: bool = False

    def part(self, name):
        """This job for one training in the sub-folder `name`; resumes its last.pth if it exists."""
        last = self.folder / name / "last.pth"
        return replace(self, folder=last.parent, is_part=True,
                       resume=str(last) if distributed.from_main(last.is_file()) else None)

    def command(self, script, *words):
        """The command line that runs a script on the same data."""
        torchrun = distributed.torchrun_words() if script == "train.py" else []
        line = [*(torchrun or ["python"]), script, *self.data_words]
        if self.protocol:
            line += ["--protocol", self.protocol]
        if self.tensorboard and script == "train.py":
            line += ["--tensorboard", self.tensorboard]
        return shlex.join([*line, *map(str, words)])


@dataclass
class Run:
    """A training run and where it stands.

    job, cfg: what it trains, and how.
    trainer: engine.Trainer.
    loaders: {"train", "valid": DataLoader}.
    teachers: SHA-256 of each file of LOSS.TEACHER.
    epochs_done, progress: whole epochs, and the EpochProgress of the one under way.
    best: {"metric", "value", "epoch"} of the best epoch, or {}.
    best_ca: {"ca3", "ca5", "ca7": percent}, the best of each so far.
    metrics: {name: value} of the last validation.
    name: the run's, also in TensorBoard.
    commit: hash of the commit that is running.
    monitor: Monitor, in the main process.
    """

    job: Job
    cfg: object
    trainer: Trainer
    loaders: dict
    teachers: list = field(default_factory=list)
    epochs_done: int = 0
    progress: EpochProgress = field(default_factory=EpochProgress)
    best: dict = field(default_factory=dict)
    best_ca: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    name: str = ""
    commit: str = field(default_factory=current_commit)
    monitor: Monitor | None = None

    def __post_init__(self):
        self.files = RunFolder(self.job.folder)
        self.saved_at = time.monotonic()

    def restore(self, checkpoint):
        """Continue from the checkpoint of job.resume, also in the middle of an epoch.

        Raises:
            ValueError: it was saved in the middle of an epoch over other faces.
        """
        path = Path(self.job.resume)
        for key in ("epochs_done", "best", "best_ca", "metrics"):
            setattr(self, key, checkpoint[key])
        self.name = checkpoint["run_name"]
        if checkpoint["progress"] is not None:
            if checkpoint.get("train_faces", self.digests["train"]) != self.digests["train"]:
                raise ValueError(f"{path} was saved in the middle of an epoch, and the training "
                                 "list has changed since; restore the list, or resume an "
                                 "epochNNN_*.pth")
            self.progress = EpochProgress.restore(checkpoint["progress"])
        if checkpoint.get("valid_faces", self.digests["valid"]) != self.digests["valid"]:
            if distributed.is_main():
                print("the validation faces are not those of the epochs before, so the next epoch "
                      "becomes the best")
            self.best, self.best_ca = {}, {}
        if not distributed.is_main():
            return
        if path.resolve().parent != self.files.path.resolve():
            self.files.set_aside_earlier_run()
        else:
            self.files.keep_further_state(path, checkpoint)
        if self.best and not self.files.restore_best(self.name, self.best["epoch"], path):
            print(f"best.pth of epoch {self.best['epoch']} is not in the folder of {path}, so the "
                  "next epoch becomes the best")
            self.best = {}

    @cached_property
    def digests(self):
        """{split: hash of its faces and their ages, in their order}."""
        texts = {split: loader.dataset.faces[["dataset", *PLACE, "age", "age_min", "age_max"]]
                 .to_csv(index=False) for split, loader in self.loaders.items()}
        return {split: hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
                for split, text in texts.items()}

    @cached_property
    def age_share(self):
        """(K,) share of each age in the training list, see losses.age_share."""
        return age_share(self.cfg, self.loaders["train"].dataset.labels,
                         torch.tensor(age_bins(self.cfg)))

    def start(self):
        """Print what is trained on what, write the config, open TensorBoard."""
        job, cfg = self.job, self.cfg
        if job.resume is None:
            self.name = f"{job.folder.name}-{datetime.now():%Y%m%d-%H%M%S}"
            self.files.set_aside_earlier_run()
        self.files.write_config(cfg)
        print(cfg.dump())
        for source in job.sources:
            counts = [f"{count_faces(loader.dataset.faces, source)} {split}"
                      for split, loader in self.loaders.items()]
            print(f"{source.dataset} ({list_file(source, 'train', job.protocol)}): "
                  f"{', '.join(counts)} faces")
        if cfg.DATA.EXCLUDE:
            excluded, total = count_excluded(job.sources, self.loaders, cfg, job.protocol)
            print(f"DATA.EXCLUDE leaves out {excluded} of {total} faces")
            if not excluded:
                warnings.warn(f"DATA.EXCLUDE '{cfg.DATA.EXCLUDE}' names no photo of these lists; "
                              "name a photo as the column photo does, or by its file name",
                              stacklevel=2)
        for split, loader in self.loaders.items():
            if loader.dataset.note:
                print(f"{split}: {loader.dataset.note}")
        if cfg.LOSS.TEACHER:
            tables, models = find_teachers(cfg.LOSS.TEACHER)
            print(f"teachers: {', '.join(tables or models)}")
        parameters = sum(p.numel() for p in self.trainer.evaluated_model().parameters())
        print(f"{cfg.MODEL.ARCH}, {parameters / 1e6:.2f} M parameters, on "
              f"{self.trainer.device} x {distributed.world_size()}, precision "
              f"{self.trainer.amp}, commit {self.commit}, files in {job.folder}/")
        if job.resume:
            print(f"resumed after {self.done_text()}")
        self.monitor = Monitor(job.folder, job.tensorboard, self.name, self.epochs_done + 1)
        self.monitor.augmented_faces(self.loaders["train"].dataset)

    def finish_epoch(self):
        """Save, validate, record, report.

        Raises:
            ValueError: the validation loss is not finite; last.pth is the best epoch's again.
        """
        progress = self.progress.gather()
        distributed.share_buffers(self.trainer.evaluated_model())
        self.save(progress)  # before validating, in case the run is killed during it
        log_probs, pred_ages, losses = self.validate()
        record = self.record(progress, pred_ages, losses)
        self.epochs_done += 1
        self.progress = EpochProgress()
        self.metrics = record["valid"]
        is_best, improved = self.note_best()
        if distributed.is_main():
            self.monitor.epoch(record, is_best)
        self.save(progress=None, is_improved=improved, is_best=is_best)
        if distributed.is_main():
            self.monitor.validation(
                self.epochs_done, self.loaders["valid"].dataset, log_probs, pred_ages,
                target_builder(self.cfg), age_bins(self.cfg))

    def validate(self):
        """Predict the validation faces, in all processes.

        Returns:
            log_probs: (N, K) float32.
            pred_ages: (N,) array, years.
            losses: {"loss", part: (N,) values}.
        Raises:
            ValueError: the loss is not finite; last.pth is the best epoch's again.
        """
        trainer = self.trainer
        log_probs = predict(trainer.evaluated_model(), self.loaders["valid"], trainer.device,
                            self.cfg.TEST.TTA, "validating")
        losses = trainer.criterion(log_probs, self.loaders["valid"].dataset.labels)
        loss = losses["loss"].mean()
        if not loss.isfinite():
            if distributed.is_main():
                self.files.go_back(to_best=bool(self.best))
            raise ValueError(
                f"the validation loss is {loss:.3g} after epoch {self.epochs_done + 1}: the "
                f"training has diverged; choose a lower TRAIN.LR than {self.cfg.TRAIN.LR:g}, or "
                "clip gradients with TRAIN.CLIP_NORM 1"
                + (f", from --resume {self.files.best}" if self.best else ""))
        pred_ages = metrics.DECODES[self.cfg.TEST.DECODE](
            metrics.calibrated_probs(log_probs), age_bins(self.cfg))
        return log_probs, pred_ages, losses

    def record(self, progress, pred_ages, losses):
        """The figures of the epoch under way, a line of log.jsonl.

        Args:
            progress: dict from EpochProgress.gather().
            pred_ages, losses: from validate().
        """
        age_max = self.cfg.DATA.AGE_MAX
        train, valid = (self.loaders[split].dataset.labels for split in ("train", "valid"))
        trained = {name: values[progress["index"]] for name, values in train.items()}
        faces = len(progress["index"])
        return {
            "epoch": self.epochs_done + 1, "lr": progress["lr"], "seconds": progress["seconds"],
            "images_per_s": faces / max(progress["seconds"], 1e-9),
            "train": {name: total / faces for name, total in progress["sums"].items()}
            | metrics.point_scores(trained, progress["pred_ages"], age_max),
            "valid": {name: values.mean().item() for name, values in losses.items()}
            | metrics.point_scores(valid, pred_ages, age_max)}

    @property
    def selection_metric(self):
        """Metric that picks the best epoch.

        MAE, or the distance to the interval if most validation faces have an interval of ages.
        """
        is_exact = ~metrics.is_interval(self.loaders["valid"].dataset.labels)
        return "mae" if is_exact.float().mean() >= 0.5 else "interval_distance"

    def note_best(self):
        """Compare the last validation with those before.

        Returns:
            is_best: it is the best by `selection_metric`.
            improved: it is the best by `selection_metric`, or by a CA, which papers on MegaAge
                compare.
        """
        metric, value = f"val_{self.selection_metric}", self.metrics[self.selection_metric]
        # Older checkpoints may have chosen by another metric.
        is_best = self.best.get("metric") != metric or value < self.best["value"]
        if is_best:
            self.best = {"metric": metric, "value": value, "epoch": self.epochs_done}
        better = {name: self.metrics[name] for name in ("ca3", "ca5", "ca7")
                  if self.metrics.get(name, -1) > self.best_ca.get(name, -1)}
        self.best_ca = self.best_ca | better
        return is_best, is_best or bool(better)

    def is_save_due(self):
        """Whether TRAIN.SAVE_MINUTES have passed since last.pth was written."""
        minutes = self.cfg.TRAIN.SAVE_MINUTES
        return 0 < minutes <= (time.monotonic() - self.saved_at) / 60

    def save(self, progress, is_improved=False, is_best=False):
        """Write last.pth, unless the weights are not finite: then the earlier one stays.

        All processes call it, since each has a share of the state.

        Args:
            progress: dict from EpochProgress.gather(), or None between two epochs.
            is_improved: keep it as the checkpoint of this epoch too.
            is_best: keep it as best.pth too.
        """
        state = self.trainer.state_dict()
        self.saved_at = time.monotonic()
        if not distributed.is_main():
            return
        if not self.trainer.is_finite():
            print("\nthe weights are not finite numbers any more: last.pth is left as it was")
            return
        checkpoint = {
            "cfg": self.cfg.dump(), "commit": self.commit, "run_name": self.name,
            "epochs_done": self.epochs_done, "progress": progress, "amp": self.trainer.amp,
            "device": self.trainer.device.type,
            "best": self.best, "best_ca": self.best_ca, "metrics": self.metrics,
            "datasets": [source.dataset for source in self.job.sources],
            "protocol": self.job.protocol, "age_share": self.age_share,
            **{f"{split}_faces": digest for split, digest in self.digests.items()},
            "teachers": self.teachers, **state}
        kept_as = f"epoch{self.epochs_done:03d}_{self.metrics['loss']:.4f}_" \
            f"{self.metrics[self.selection_metric]:.4f}.pth" if is_improved else None
        self.files.save(checkpoint, kept_as, is_best)

    def interrupt(self):
        """Save where the run stands and print how to continue."""
        self.close()
        self.save(self.progress.gather() if self.progress.steps else None)
        if distributed.is_main():
            how = "the same command" if self.job.is_part else self.job.command(
                "train.py", "--resume", self.files.last)
            where = " on every machine" if distributed.machine_count() > 1 else ""
            print(f"\ninterrupted after {self.done_text()}; continue{where} with: {how}")

    def done_text(self):
        """How much is trained, in words: "2 epochs and 1 step"."""
        epochs, steps = self.epochs_done, self.progress.steps
        return f"{count_text(epochs, 'epoch')} and {count_text(steps, 'step')}"

    def close(self):
        """Finish what is written for TensorBoard."""
        if self.monitor is not None:
            self.monitor.close()
