"""How a run reports: a line an epoch, log.jsonl, curves and pictures in TensorBoard.

TensorBoard and matplotlib are imported only by a run that asks for their pictures.
"""

import json
import math
from pathlib import Path

import numpy as np

from metrics import is_interval
from utils.files import named_full_disk, replaced, require_space

SHOWN_FACES = 8  # validation faces drawn with their distributions
AUGMENTED_SHOWN = 16  # training faces in the picture of the augmentation
MIN_FREE = 5_000_000  # bytes on TensorBoard's disk; on a full one its thread prints a traceback


class Monitor:
    """Writes one run's progress, in the main process.

    Args:
        folder: the run's; log.jsonl is appended there.
        tensorboard: log folder of TensorBoard, or None.
        name: the run's, and of its sub-folder of the log folder.
        first_epoch: the epoch that the run starts with; records of it and of later epochs, from
            an earlier part of the run, are dropped.
    """

    def __init__(self, folder, tensorboard, name, first_epoch):
        self.log = Path(folder, "log.jsonl")
        _drop_lines_from(self.log, first_epoch)
        self.writers = {}
        self.tensorboard = tensorboard
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            require_space(tensorboard, MIN_FREE)
            self.writers = {part: SummaryWriter(str(Path(tensorboard, name, part)),
                                                purge_step=first_epoch)
                            for part in ("train", "valid")}

    def epoch(self, record, is_best):
        """Print the epoch's line, append it to log.jsonl, draw the curves.

        Args:
            record: dict with epoch, lr, seconds, images_per_s, and the dicts train and valid
                of metric names to numbers.
            is_best: marks the line.
        """
        print(_epoch_line(record, is_best), flush=True)
        with named_full_disk(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.writers:
            require_space(self.tensorboard, MIN_FREE)
        for part, writer in self.writers.items():
            for name, value in record[part].items():
                writer.add_scalar(name, value, record["epoch"])
            if part == "train":
                writer.add_scalar("lr", record["lr"], record["epoch"])
                writer.add_scalar("images_per_s", record["images_per_s"], record["epoch"])
            writer.flush()

    def augmented_faces(self, data):
        """Show what the network trains on: some faces of a FaceDataset in a grid."""
        if self.writers:
            faces = np.stack([data.face(index)
                              for index in evenly_spaced(len(data), AUGMENTED_SHOWN)])
            self.writers["train"].add_image("augmented_faces", face_grid(faces), 0,
                                            dataformats="HWC")

    def validation(self, epoch, data, log_probs, pred_ages, target_of, age_bins):
        """Show predicted against true ages, and some faces beside their distributions.

        Args:
            epoch: number of the epoch.
            data: FaceDataset of the N validation faces.
            log_probs: (N, K) predicted log-probabilities.
            pred_ages: (N,) array, years.
            target_of: function (labels, (K,) bins) -> losses.Target.
            age_bins: (K,) years.
        """
        if not self.writers:
            return
        exact = ~is_interval(data.labels)
        if exact.any():
            self._figure("predicted_against_true", draw_scatter(
                data.labels["age"][exact].numpy(), pred_ages[exact.numpy()]), epoch)
        shown = evenly_spaced(len(data), SHOWN_FACES)
        labels = {name: values[shown] for name, values in data.labels.items()}
        target = target_of(labels, labels["age"].new_tensor(age_bins))
        self._figure("distributions", draw_distributions(
            np.stack([data.face(index) for index in shown]), target.target_dist.numpy(),
            log_probs[shown].exp().numpy(), age_bins, pred_ages[shown]), epoch)

    def _figure(self, name, figure, epoch):
        self.writers["valid"].add_figure(name, figure, epoch)
        self.writers["valid"].flush()

    def close(self):
        for writer in self.writers.values():
            writer.close()


def _drop_lines_from(log, first_epoch):
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    kept = [line for line in lines if _epoch_of(line) < first_epoch]
    if len(kept) < len(lines):
        with replaced(log) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _epoch_of(line):
    try:
        return json.loads(line)["epoch"]
    except ValueError:  # a line that a kill cut off
        return math.inf


def _epoch_line(record, is_best):
    train, valid = record["train"], record["valid"]
    parts = [f"epoch {record['epoch']:02d}", f"train loss {train['loss']:.3f}"]
    if "mae" in valid:
        parts += [f"val MAE {valid['mae']:.2f}", f"CA(5) {valid['ca5']:.1f}"]
    if "interval_accuracy" in valid:
        parts += [f"in interval {valid['interval_accuracy']:.1f}%",
                  f"distance {valid['interval_distance']:.2f}"]
    parts += [f"lr {record['lr']:.1e}", f"{record['images_per_s']:.0f} images/s",
              f"{record['seconds']:.0f} s"]
    return "  ".join(parts) + ("  *best" if is_best else "")


def face_grid(faces, columns=4):
    """(n, S, S, 3) faces as one (rows * S, columns * S, 3) uint8 picture, black in empty cells."""
    count, size = len(faces), faces.shape[1]
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, size, size, 3), np.uint8)
    cells[:count] = faces
    return cells.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(
        rows * size, columns * size, 3)


def draw_scatter(ages, pred_ages):
    """Figure of predicted against true age with the line of no error and the 5-year band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    top = max(np.max(ages), np.max(pred_ages)) + 3
    axes.plot([0, top], [0, top], color="black", linewidth=1)
    axes.fill_between([0, top], [-5, top - 5], [5, top + 5], color="black", alpha=0.08,
                      label="within 5 years", linewidth=0)
    axes.scatter(ages, pred_ages, s=6, alpha=0.35, linewidths=0)
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="true age (years)",
             ylabel="predicted age (years)", aspect="equal")
    axes.legend(loc="upper left", frameon=False)
    return figure


def draw_distributions(faces, target_dist, probs, age_bins, pred_ages):
    """Figure of faces beside their label and predicted distributions.

    Args:
        faces: (n, S, S, 3) uint8.
        target_dist, probs: (n, K), rows sum to 1.
        age_bins: (K,) years.
        pred_ages: (n,) years.
    """
    from matplotlib.figure import Figure

    rows = -(-len(faces) // 2)
    figure = Figure(figsize=(10, 2 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False, width_ratios=(1, 2.4, 1, 2.4))
    for cell in axes.flat:
        cell.set_axis_off()
    for number, face in enumerate(faces):
        picture, plot = axes[number // 2, 2 * (number % 2):2 * (number % 2) + 2]
        picture.imshow(face)
        plot.set_axis_on()
        plot.fill_between(age_bins, target_dist[number], alpha=0.35, linewidth=0, label="label")
        plot.plot(age_bins, probs[number], color="tab:orange", label="predicted")
        plot.axvline(pred_ages[number], color="tab:orange", linestyle=":", linewidth=1)
        plot.set(yticks=[], xlim=(age_bins[0], age_bins[-1]))
        plot.set_title(f"predicted {pred_ages[number]:.1f} years", fontsize=9)
    axes[0, 1].legend(fontsize=8, frameon=False)
    return figure


def evenly_spaced(count, shown):
    """At most `shown` indices, evenly spaced over range(count)."""
    return np.linspace(0, count - 1, min(shown, count)).round().astype(int)
