"""A training run: its loaders, its network and optimiser, its folder, and where it stands."""

import hashlib
import shlex
import shutil
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

import metrics
from checkpoint import current_commit, load_checkpoint, save_checkpoint
from defaults import age_bins
from engine import EpochProgress, Trainer, predict
from lists import count_faces, list_file
from losses import build_target
from training.monitor import SHOWN_FACES, Monitor, draw_distributions, draw_scatter
from training.teachers import find_teachers
from utils import distributed
from utils.files import replaced

AUGMENTED_SHOWN = 16  # faces in TensorBoard's picture of the augmentation


@dataclass(frozen=True)
class Job:
    """What a training works on and where, apart from its config.

    sources: list of Source, from lists.pair_folders().
    device: torch.device of this process.
    folder: Path of the run's files.
    data_words: flags that name data and device, for the commands that are printed.
    cache_dir, tensorboard: folders, or None.
    protocol: name of a split file, or None.
    resume: path of the checkpoint to continue, or None.
    is_part: one of several trainings that the command runs.
    """

    sources: list
    device: torch.device
    folder: Path
    data_words: list
    cache_dir: str | None = None
    tensorboard: str | None = None
    protocol: str | None = None
    resume: str | None = None
    is_part: bool = False

    def part(self, name):
        """A part of it, in a folder of its own, from where it stands now."""
        last = self.folder / name / "last.pth"
        return replace(self, folder=last.parent, is_part=True,
                       resume=str(last) if last.is_file() else None)

    def command(self, script, *words):
        """The command line that runs a script on the same data."""
        processes = distributed.world_size() if script == "train.py" else 1
        python = ["torchrun", f"--nproc_per_node={processes}"] if processes > 1 else ["python"]
        line = [*python, script, *self.data_words]
        if self.protocol:
            line += ["--protocol", self.protocol]
        if self.tensorboard and script == "train.py":
            line += ["--tensorboard", self.tensorboard]
        return shlex.join([*line, *map(str, words)])


@dataclass
class Run:
    """A training run, and where it stands between two epochs or batches."""

    job: Job
    cfg: object
    trainer: Trainer
    loaders: dict
    epochs_done: int = 0
    progress: EpochProgress = field(default_factory=EpochProgress)
    best: dict = field(default_factory=dict)
    best_ca: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    name: str = ""
    commit: str = field(default_factory=current_commit)  # of the code that is running
    monitor: Monitor | None = None  # of the main process

    @property
    def folder(self):
        return self.job.folder

    def restore(self, checkpoint):
        """Continue where the checkpoint of job.resume stands, also in the middle of an epoch.

        Raises:
            ValueError: it stands in the middle of an epoch over other faces.
        """
        path = Path(self.job.resume)
        for key in ("epochs_done", "best", "best_ca", "metrics"):
            setattr(self, key, checkpoint[key])
        self.name = checkpoint["run_name"]
        if checkpoint["progress"] is not None:
            if checkpoint.get("faces", self.faces_digest()) != self.faces_digest():
                raise ValueError(f"{path} stands in the middle of an epoch, and the training list "
                                 "has changed since; bring it back, or resume an epochNNN_*.pth")
            self.progress = EpochProgress.restore(checkpoint["progress"])
        if distributed.is_main():
            if path.resolve().parent != self.folder.resolve():
                _set_aside_earlier_run(self.folder)
            self._restore_best(path)

    def faces_digest(self):
        """Hash of which faces are trained on, and in which order the list has them."""
        faces = self.loaders["train"].dataset.faces
        names = "\n".join(faces["dataset"] + "/" + faces["photo"])
        return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()

    def _restore_best(self, path):
        """Let best.pth be this run's best so far, also in a new folder or after going back."""
        if not self.best:
            return  # interrupted in its first epoch
        target = self.folder / "best.pth"
        kept = f"epoch{self.best['epoch']:03d}_*.pth"
        for candidate in (target, path, path.with_name("best.pth"), *path.parent.glob(kept)):
            if not candidate.is_file():
                continue
            found = load_checkpoint(candidate)
            if (found.get("run_name"), found.get("epochs_done"), found.get("progress")) == (
                    self.name, self.best["epoch"], None):
                if candidate != target:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    _copy(candidate, target)
                return
        print(f"the best model so far, of epoch {self.best['epoch']}, is not beside {path}: "
              "the next epoch counts as the best")
        self.best = {}

    def start(self):
        """Make the folder, say what is trained on what, open TensorBoard."""
        job, cfg, data = self.job, self.cfg, self.loaders["train"].dataset
        if job.resume is None:
            self.name = f"{self.folder.name}-{datetime.now():%Y%m%d-%H%M%S}"
            _set_aside_earlier_run(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
        print(cfg.dump())
        for source in job.sources:
            counts = [f"{count_faces(loader.dataset.faces, source)} {split}"
                      for split, loader in self.loaders.items()]
            print(f"{source.dataset} ({list_file(source, 'train', job.protocol)}): "
                  f"{', '.join(counts)} faces")
        if cfg.LOSS.TEACHER:
            print(f"teachers: {', '.join(find_teachers(cfg.LOSS.TEACHER))}")
        parameters = sum(p.numel() for p in self.trainer.evaluated_model().parameters())
        print(f"{cfg.MODEL.ARCH}, {parameters / 1e6:.2f} M parameters, on "
              f"{self.trainer.device} x {distributed.world_size()}, precision "
              f"{self.trainer.amp}, commit {self.commit}, files in {self.folder}/")
        if job.resume:
            print(f"resumed after {self.epochs_done} epochs and {self.progress.steps} batches")
        self.monitor = Monitor(self.folder, job.tensorboard, self.name, self.epochs_done + 1)
        self.monitor.augmented_faces(np.stack([
            data.face(index) for index in _spread(len(data), AUGMENTED_SHOWN)]))

    def finish_epoch(self):
        """Validate, save, report.

        Raises:
            ValueError: the validation loss is not finite; last.pth is the best epoch's again.
        """
        trainer, progress = self.trainer, self.progress.gather()
        valid = self.loaders["valid"].dataset
        distributed.share_buffers(trainer.evaluated_model())
        checkpoint = self._checkpoint(progress)
        if distributed.is_main():  # whoever stops the run may not wait until it is validated
            self._save_last(checkpoint)
        log_probs = predict(trainer.evaluated_model(), self.loaders["valid"], trainer.device,
                            self.cfg.TEST.TTA, "validating")
        losses = trainer.criterion(log_probs, valid.labels)
        if not losses["loss"].mean().isfinite():
            if distributed.is_main():
                self._go_back()
            raise ValueError(
                f"the validation loss is {losses['loss'].mean():.3g} after epoch "
                f"{self.epochs_done + 1}: the training has diverged; choose a lower TRAIN.LR than "
                f"{self.cfg.TRAIN.LR:g}, or clip gradients with TRAIN.CLIP_NORM 1"
                + (f", from --resume {self.folder / 'best.pth'}" if self.best else ""))
        pred_ages = metrics.DECODES[self.cfg.TEST.DECODE](
            metrics.calibrated_probs(log_probs), age_bins(self.cfg))
        faces = len(progress["index"])
        train_labels = {name: values[progress["index"]] for name, values in
                        self.loaders["train"].dataset.labels.items()}
        record = {
            "epoch": self.epochs_done + 1, "lr": progress["lr"], "seconds": progress["seconds"],
            "images_per_s": faces / max(progress["seconds"], 1e-9),
            "train": {name: total / faces for name, total in progress["sums"].items()}
            | metrics.point_scores(train_labels, progress["pred_ages"], self.cfg.DATA.AGE_MAX),
            "valid": {name: values.mean().item() for name, values in losses.items()}
            | metrics.point_scores(valid.labels, pred_ages, self.cfg.DATA.AGE_MAX)}
        self.epochs_done += 1
        self.progress = EpochProgress()
        self.metrics = record["valid"]
        is_best, improved = self._note_best()
        checkpoint = self._checkpoint(progress=None)
        if distributed.is_main():
            self._save(checkpoint, is_best, improved)
            self.monitor.epoch(record, is_best)
            if self.monitor.writers:
                self._draw(log_probs, pred_ages)

    @property
    def metric(self):
        """What the best epoch is chosen by: the one that most validation faces have a part in."""
        labels = self.loaders["valid"].dataset.labels
        is_exact = ~metrics.is_interval(labels)
        return "mae" if is_exact.float().mean() >= 0.5 else "interval_distance"

    def _note_best(self):
        """Whether the validation is the best so far, and whether it improved in any metric kept.

        MegaAge is compared by CA as well.
        """
        metric, value = f"val_{self.metric}", self.metrics[self.metric]
        # Older checkpoints may have chosen by another metric.
        is_best = self.best.get("metric") != metric or value < self.best["value"]
        if is_best:
            self.best = {"metric": metric, "value": value, "epoch": self.epochs_done}
        improved = is_best
        if any(source.dataset.startswith("megaage") for source in self.job.sources):
            for name in ("ca3", "ca5", "ca7"):
                if self.metrics[name] > self.best_ca.get(name, -1):
                    self.best_ca[name] = self.metrics[name]
                    improved = True
        return is_best, improved

    def _save(self, checkpoint, is_best, improved):
        last = self.folder / "last.pth"
        self._save_last(checkpoint)
        if improved:
            value = self.metrics[self.metric]
            kept = f"epoch{self.epochs_done:03d}_{self.metrics['loss']:.4f}_{value:.4f}.pth"
            _copy(last, self.folder / kept)
        if is_best:
            _copy(last, self.folder / "best.pth")

    def _save_last(self, checkpoint):
        """Write last.pth, unless there is nothing to go on from: a good one stays."""
        if self.trainer.is_finite():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(self.folder / "last.pth", checkpoint)
        else:
            print("\nthe weights are no finite numbers any more: last.pth is left as it was")

    def _go_back(self):
        """Let last.pth be the best epoch's, for a run that has diverged."""
        if self.best:
            _copy(self.folder / "best.pth", self.folder / "last.pth")
        else:
            (self.folder / "last.pth").unlink(missing_ok=True)

    def _checkpoint(self, progress):
        """Where the run stands; all processes call it."""
        return {"cfg": self.cfg.dump(), "commit": self.commit, "run_name": self.name,
                "epochs_done": self.epochs_done, "progress": progress, "amp": self.trainer.amp,
                "device": self.trainer.device.type,
                "best": self.best, "best_ca": self.best_ca, "metrics": self.metrics,
                "datasets": [source.dataset for source in self.job.sources],
                "protocol": self.job.protocol,
                "faces": self.faces_digest(), **self.trainer.state_dict()}

    def _draw(self, log_probs, pred_ages):
        valid = self.loaders["valid"].dataset
        exact = ~metrics.is_interval(valid.labels)
        shown = _spread(len(valid), SHOWN_FACES)
        labels = {name: values[shown] for name, values in valid.labels.items()}
        bins = torch.tensor(age_bins(self.cfg))
        if exact.any():
            self.monitor.figure("predicted_against_true", draw_scatter(
                valid.labels["age"][exact].numpy(), pred_ages[exact.numpy()]), self.epochs_done)
        self.monitor.figure("distributions", draw_distributions(
            np.stack([valid.face(index) for index in shown]),
            build_target(labels, bins, self.cfg).target_dist.numpy(),
            log_probs[shown].exp().numpy(), bins.numpy(), pred_ages[shown]),
            self.epochs_done)

    def close(self):
        """Finish what is written for TensorBoard."""
        if self.monitor is not None:
            self.monitor.close()

    def interrupt(self):
        """Save where the run stands and say how to go on."""
        self.close()
        checkpoint = self._checkpoint(self.progress.gather() if self.progress.steps else None)
        if distributed.is_main():
            self._save_last(checkpoint)
            how = "the same command" if self.job.is_part else self.job.command(
                "train.py", "--resume", self.folder / "last.pth")
            print(f"\ninterrupted after {self.epochs_done} epochs and {self.progress.steps} "
                  f"batches; continue with: {how}")


@contextmanager
def stop_on_interrupt():
    """Yield a function that tells whether Ctrl-C or a termination asked to stop.

    The step under way is finished, so that what is saved is whole; a second Ctrl-C ends at once.
    """
    asked = []

    def handle(number, _):
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _set_aside_earlier_run(folder):
    """Move the files of an earlier run in this folder to earlier-N, so that none is lost."""
    files = [*folder.glob("*.pth"), *folder.glob("log.jsonl"), *folder.glob("config.yaml")]
    if not files:
        return
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    earlier = folder / f"earlier-{number}"
    earlier.mkdir()
    for path in files:
        path.rename(earlier / path.name)
    print(f"{folder}/ held an earlier run; its files are now in {earlier}/")


def _spread(count, shown):
    """Up to `shown` places evenly spread over `count`."""
    return np.linspace(0, count - 1, min(shown, count)).round().astype(int)


def _copy(source, target):
    with replaced(target) as temporary:
        shutil.copyfile(source, temporary)
