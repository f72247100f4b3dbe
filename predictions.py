"""From a checkpoint and a split to a table of predictions, one row a face."""

import glob
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import distributed
import metrics
from checkpoint import load_checkpoint
from dataset import FaceDataset, OrderedBatches, build_loader
from defaults import FREE_OF_CHECKPOINT, age_bins, override_cfg
from download import file_sha256, find_model
from engine import predict, score
from evaluation import face_keys, load_predictions
from lists import OPTIONAL, read_sources
from losses import DECODES
from model import restore_model

LEAST_MASS = 1e-3  # of a teacher's distribution within the student's age bins


@dataclass
class Predicted:
    """One model's predictions of one split.

    Args:
        path: of the checkpoint.
        checkpoint: its content.
        cfg: its config with the overrides.
        data: FaceDataset.
        log_probs: {False: (N, K), True: (N, K)} float32 before calibration, by whether each
            image is averaged with its mirror image; only what was asked for.
    """

    path: str
    checkpoint: dict
    cfg: object
    data: FaceDataset
    log_probs: dict

    @property
    def temperature(self):
        """Of the calibration; None where the model has none."""
        return self.checkpoint.get("temperature")

    def ages(self, tta, temperature=None):
        """(N,) predicted years, and the (N, K) log-probabilities they come from."""
        log_probs = self.log_probs[tta] / (temperature or self.temperature or 1.0)
        log_probs = log_probs.log_softmax(dim=1)
        return DECODES[self.cfg.TEST.DECODE](log_probs, torch.tensor(age_bins(self.cfg))), log_probs

    def table(self, tta=None):
        """The predictions as predictions.csv has them, see predictions_table."""
        ages, log_probs = self.ages(self.cfg.TEST.TTA if tta is None else tta)
        return predictions_table(self.data.faces, log_probs, ages, age_bins(self.cfg))

    def scores(self):
        """Point metrics, see engine.score."""
        return score(self.data.labels, self.ages(self.cfg.TEST.TTA)[0], self.cfg.DATA.AGE_MAX)

    def provenance(self):
        """{title: text} of where the predictions come from."""
        return {"Checkpoint": f"{self.path}, sha256 {file_sha256(self.path)}",
                "Code that trained it": self.checkpoint.get("commit", "unknown"),
                "Temperature": self.temperature or "none: not calibrated",
                "Config": self.cfg.dump(),
                "Faces": {str(name): int(count) for name, count in
                          self.data.faces["dataset"].value_counts().items()}}


def predict_split(resume, sources, split, device, opts=(), protocol=None, cache_dir=None,
                  both=False):
    """Predict a split with a trained model; several processes share the work.

    Args:
        resume: checkpoint, name or https URL, see download.find_model; None: the shipped model.
        sources: of lists.pair_folders.
        split: train, valid or test.
        device: torch.device.
        opts: flat KEY VALUE pairs over the checkpoint's config: TEST.*, FREE_OF_CHECKPOINT.
        protocol: name of a split file, or None.
        cache_dir: folder of the crop cache, or None.
        both: predict with and without test-time augmentation.
    Returns:
        Predicted.
    Raises:
        ValueError, FileNotFoundError, OSError: see load_checkpoint, read_faces, FaceDataset.
    """
    path = find_model(resume)
    checkpoint = load_checkpoint(path)
    model, cfg = restore_model(checkpoint, device)
    cfg = override_cfg(cfg, opts, "TEST", *FREE_OF_CHECKPOINT)
    faces = read_sources(sources, split, cfg, protocol)
    data = FaceDataset(faces, cfg, train=False, cache_dir=cache_dir)
    loader = build_loader(data, OrderedBatches(
        len(data), cfg.TEST.BATCH_SIZE, distributed.rank(), distributed.world_size()),
        cfg.TEST.WORKERS, device)
    log_probs = {tta: predict(model, loader, device, tta, "testing, mirrored" if tta else "testing")
                 for tta in ((False, True) if both else (cfg.TEST.TTA,))}
    return Predicted(str(path), checkpoint, cfg, data, log_probs)


def predictions_table(faces, log_probs, pred_ages, bins):
    """Predictions as a table, one row a face, as evaluation.py and predictions.csv have it.

    Args:
        faces: table of lists.read_faces.
        log_probs: (N, K) float32.
        pred_ages: (N,) years.
        bins: (K,) whole years.
    Returns:
        DataFrame: photo, age, pred_age, pred_std (years), a column pAGE for each bin, and what
        else the data set knows.
    """
    probs = log_probs.double().softmax(dim=1).numpy()
    table = faces[["photo", "age"]].assign(
        pred_age=pred_ages.numpy(), pred_std=metrics.distribution_std(probs, bins))
    columns = pd.DataFrame(probs, columns=[f"p{age}" for age in bins], index=faces.index)
    known = ["dataset", *(name for name in OPTIONAL
                          if name != "votes" and faces[name].notna().any())]
    return pd.concat([table, columns, faces[known]], axis=1)


def find_teachers(pattern):
    """Paths of the tables that LOSS.TEACHER names: one, those of a folder, or a glob's."""
    if Path(pattern).is_dir():
        return sorted(map(str, Path(pattern).glob("*.csv"))) or [pattern]
    return sorted(glob.glob(pattern)) or [pattern]  # noqa: PTH207 (an absolute pattern)


def teacher_distributions(paths, faces, bins):
    """What other models predict for training faces, averaged, for a network to learn from.

    Args:
        paths: of tables written by `test.py --split train --output`, see find_teachers.
        faces: table of lists.read_faces.
        bins: (K,) whole years.
    Returns:
        (N, K) float32, rows sum to 1.
    Raises:
        FileNotFoundError: no such table.
        ValueError: a table that cannot be read, holds no distributions over these bins, lacks
            faces, or does not tell which data set's they are.
    """
    return sum(_distributions_of(path, faces, bins) for path in paths) / len(paths)


def _distributions_of(path, faces, bins):
    table, columns = load_predictions(path), [f"p{age}" for age in bins]
    if not set(columns) <= set(table):
        raise ValueError(f"LOSS.TEACHER '{path}' has no distributions over the ages {bins[0]} to "
                         f"{bins[-1]}; write it with test.py --split train --output")
    keys = [name for name in ("dataset", "photo") if name in table]
    if "dataset" not in table:
        owners = faces.groupby("photo")["dataset"].nunique()
        if (owners > 1).any():
            raise ValueError(f"LOSS.TEACHER '{path}' has no column dataset, and "
                             f"'{owners.idxmax()}' is in two of the data sets trained on; add "
                             "that column")
    rows = face_keys(table, keys).get_indexer(face_keys(faces, keys))
    probs = torch.tensor(table[columns].to_numpy(np.float32)[rows])
    mass = probs.sum(dim=1, keepdim=True)
    unknown = (rows < 0) | (mass[:, 0] < LEAST_MASS).numpy()
    if unknown.any():
        raise ValueError(f"LOSS.TEACHER '{path}' has no distribution over the ages {bins[0]} to "
                         f"{bins[-1]} for {unknown.sum()} of {len(faces)} training faces, such as "
                         f"'{faces['photo'][unknown.argmax()]}'; write it with test.py --split "
                         "train --output from the same lists")
    return probs / mass
