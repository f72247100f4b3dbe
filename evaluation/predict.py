"""From a checkpoint and a split to predictions: what test.py does, but for the reporting."""

from dataclasses import dataclass

import numpy as np

import metrics
from batches import build_eval_loader
from checkpoint import load_checkpoint
from dataset import FaceDataset
from defaults import FREE_OF_CHECKPOINT, age_bins, override_cfg
from engine import predict, predict_both
from evaluation.predictions import Predictions
from lists import OPTIONAL, read_sources
from model import restore_model
from utils.download import find_model
from utils.files import file_sha256


@dataclass
class TestedSplit:
    """What one model predicts for one split.

    Args:
        path: of the checkpoint.
        checkpoint: its content.
        cfg: its config with the overrides.
        data: FaceDataset.
        log_probs: {tta: (N, K) float32} before calibration, by whether each image is averaged
            with its mirror image: cfg.TEST.TTA, and what else was asked for.
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

    def predictions(self, tta=None, temperature=None):
        """Predictions, by default as cfg.TEST.TTA says and at the model's own temperature."""
        faces, bins = self.data.faces, np.array(age_bins(self.cfg))
        log_probs = self.log_probs[self.cfg.TEST.TTA if tta is None else tta]
        probs = metrics.apply_temperature(log_probs.double().exp().numpy(),
                                          temperature or self.temperature or 1.0)
        table = faces[["photo", "age"]].assign(
            pred_age=metrics.DECODES[self.cfg.TEST.DECODE](probs, bins),
            pred_std=metrics.distribution_std(probs, bins))
        known = ["dataset", *(name for name in OPTIONAL
                              if name != "votes" and faces[name].notna().any())]
        return Predictions(table.join(faces[known]), bins, probs)

    def scores(self):
        """Point metrics, see metrics.point_scores."""
        return metrics.point_scores(self.data.labels, self.predictions().faces["pred_age"],
                                    self.cfg.DATA.AGE_MAX)

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
        sources: list of Source, from lists.pair_folders().
        split: train, valid or test.
        device: torch.device.
        opts: flat KEY VALUE pairs over the checkpoint's config: TEST.*, FREE_OF_CHECKPOINT.
        protocol: name of a split file, or None.
        cache_dir: folder of the crop cache, or None.
        both: predict with test-time augmentation too where TEST.TTA is off.
    Returns:
        TestedSplit.
    Raises:
        ValueError, FileNotFoundError, OSError: see load_checkpoint, read_faces, FaceDataset.
    """
    path = find_model(resume)
    checkpoint = load_checkpoint(path)
    model, cfg = restore_model(checkpoint, device)
    cfg = override_cfg(cfg, opts, "TEST", *FREE_OF_CHECKPOINT)
    faces = read_sources(sources, split, cfg, protocol)
    loader = build_eval_loader(faces, cfg, device, cache_dir)
    if both and not cfg.TEST.TTA:
        plain, averaged = predict_both(model, loader, device, "testing")
        log_probs = {False: plain, True: averaged}
    else:
        log_probs = {cfg.TEST.TTA: predict(model, loader, device, cfg.TEST.TTA, "testing")}
    return TestedSplit(str(path), checkpoint, cfg, loader.dataset, log_probs)
