"""A trained model and a split of faces in, predictions out: what test.py does before it reports."""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import cv2
import numpy as np
import torch

import metrics
from batches import build_eval_loader
from checkpoint import load_checkpoint
from dataset import FaceDataset
from defaults import FREE_OF_CHECKPOINT, age_bins, override_cfg
from engine import mean_of_views, predict
from evaluation.predictions import Predictions
from evaluation.scores import Variants
from evaluation.wording import temperature_text
from lists import BOX, OPTIONAL, read_sources
from model import restore_model
from preprocess.boxes import warn_of_other_framing
from utils import distributed
from utils.download import find_model, learned_lists
from utils.files import file_sha256

CALIBRATED_SHARES = (0.8, 0.9)  # central intervals that the temperature is fitted to


@dataclass(frozen=True)
class SplitPredictions:
    """What one model predicts for the faces of one split.

    path: the checkpoint's file.
    checkpoint: its content.
    cfg: its config, with the overrides of the command line.
    data: FaceDataset of the N faces.
    log_probs: (N, K) float32, before calibration, with test-time augmentation if cfg.TEST.TTA.
    log_probs_tta: the same with test-time augmentation, or None if it was not asked for.
    """

    path: str
    checkpoint: dict
    cfg: object
    data: FaceDataset
    log_probs: torch.Tensor
    log_probs_tta: torch.Tensor | None = None

    @property
    def age_bins(self):
        """(K,) list of years."""
        return age_bins(self.cfg)

    @property
    def temperature(self):
        """The model's calibration temperature, one number or two; None: not calibrated."""
        return self.checkpoint.get("temperature")

    def calibrated(self, temperature):
        """The same model with another calibration temperature."""
        return replace(self, checkpoint=self.checkpoint | {"temperature": temperature})

    @cached_property
    def predictions(self):
        """Predictions at the model's own temperature."""
        return self._predictions(self.log_probs, self.temperature)

    @cached_property
    def with_quality(self):
        """The predictions with the columns face_px and sharpness of each face."""
        boxes = self.data.faces[BOX].to_numpy(float)
        sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
        faces = self.predictions.faces.assign(
            face_px=np.round(sides, 1),
            sharpness=[sharpness(self.data.face(index)) for index in range(len(self.data))])
        return replace(self.predictions, faces=faces)

    @cached_property
    def variants(self):
        """Variants of the predictions that a report compares them with."""
        return Variants(
            tta=None if self.log_probs_tta is None else
            self._predictions(self.log_probs_tta, self.temperature),
            uncalibrated=None if self.temperature is None else
            self._predictions(self.log_probs, None),
            temperature=self.temperature)

    def _predictions(self, log_probs, temperature):
        faces, bins = self.data.faces, np.array(self.age_bins)
        probs = metrics.calibrated_probs(log_probs, temperature)
        table = faces[["photo", "age"]].assign(
            pred_age=metrics.DECODES[self.cfg.TEST.DECODE](probs, bins),
            pred_std=metrics.distribution_std(probs, bins))
        known = ["dataset", *(name for name in OPTIONAL
                              if name != "votes" and faces[name].notna().any())]
        return Predictions(table.join(faces[known]), bins, probs)

    def scores(self):
        """MAE, CA(n) and the like: see metrics.point_scores."""
        return metrics.point_scores(self.data.labels, self.predictions.faces["pred_age"],
                                    self.cfg.DATA.AGE_MAX)

    def provenance(self):
        """{title: text} that says where the predictions come from."""
        return {"Checkpoint": f"{self.path}, sha256 {file_sha256(self.path)}",
                "Code that trained it": self.checkpoint.get("commit", "unknown"),
                "Temperature": temperature_text(self.temperature, self.age_bins),
                "Config": self.cfg.dump(),
                "Faces": {str(name): int(count) for name, count in
                          self.data.faces["dataset"].value_counts().items()}}


def predict_split(resume, sources, split, device, opts=(), protocol=None, cache_dir=None,
                  with_tta=False):
    """Predict a split with a trained model; several processes share the work.

    Args:
        resume: checkpoint, name or https URL, see download.find_model; None: the shipped model.
        sources: list of Source, from lists.pair_folders().
        split: train, valid or test.
        device: torch.device.
        opts: flat KEY VALUE pairs over the checkpoint's config: TEST.*, FREE_OF_CHECKPOINT.
        protocol: name of a split file, or None.
        cache_dir: folder of the crop cache, or None.
        with_tta: predict the mirror images too, unless TEST.TTA does so anyway.
    Returns:
        SplitPredictions.
    Raises:
        ValueError, FileNotFoundError, OSError: see load_checkpoint, read_faces, FaceDataset.
    """
    path, checkpoint = distributed.call_in_main(partial(_find_checkpoint, resume))
    model, cfg = restore_model(checkpoint, device)
    cfg = override_cfg(cfg, opts, "TEST", *FREE_OF_CHECKPOINT)
    faces = read_sources(sources, split, cfg, protocol)
    if distributed.is_main():
        warn_of_other_framing(faces)
    loader = build_eval_loader(faces, cfg, device, cache_dir)
    log_probs = predict(model, loader, device, cfg.TEST.TTA, "testing")
    log_probs_tta = None
    if with_tta and not cfg.TEST.TTA:
        mirrored = predict(_MirroredInput(model), loader, device, description="testing mirrored")
        log_probs_tta = mean_of_views(log_probs, mirrored)
    return SplitPredictions(str(path), checkpoint, cfg, loader.dataset, log_probs, log_probs_tta)


class _MirroredInput(torch.nn.Module):
    """A network that sees each image mirrored, so that TTA needs no third pass over the faces."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels.flip(-1))


def warn_of_learned_faces(predicted, sources, split, protocol=None):
    """Warn if the model was trained on faces that it is measured on.

    Args:
        predicted: SplitPredictions.
        sources, split, protocol: as for predict_split.
    """
    learned, checkpoint = learned_lists(predicted.path), predicted.checkpoint
    for name in (source.dataset for source in sources):
        if name in learned and (protocol or split in learned[name]):
            warnings.warn(
                f"the model in misc/ has learned {'most' if protocol else 'the'} faces of {name}'s "
                f"{protocol or split} list: its error there does not show how well it does on "
                "other faces; measure it with --split valid", stacklevel=2)
        elif name in checkpoint.get("datasets", ()) and \
                checkpoint.get("protocol", protocol) != protocol:
            trained, tested = (f"--protocol {one}" if one else "the lists' own splits"
                               for one in (checkpoint["protocol"], protocol))
            warnings.warn(f"{predicted.path} was trained on {trained} of {name}, and is measured "
                          f"on {tested}: it has learned some of these faces", stacklevel=2)


def _find_checkpoint(resume):
    """(path, content) of the checkpoint that --resume names."""
    path = find_model(resume)
    return path, load_checkpoint(path)


def sharpness(face):
    """Variance of the Laplacian of a face's gray values: high for sharp edges, 0 for none.

    The focus measure of Pech-Pacheco et al., ICPR 2000, of the face as the network gets it: a small
    face, scaled up, has few sharp edges as well.

    Args:
        face: (S, S, 3) uint8 RGB.
    Returns:
        float, >= 0; comparable at the same S only.
    """
    return float(cv2.Laplacian(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


class Calibration(NamedTuple):
    """A fitted calibration and what it changes.

    What holds after it is measured on each half of the faces with the temperatures fitted on the
    other half.

    temperature: (T at the first age bin, T at the last), see metrics.face_temperatures.
    count: faces with an exact age that it is fitted on.
    coverage: {share of a central interval: (percent of the ages in it before, after)}.
    mae: (years before, years after).
    """

    temperature: tuple
    count: int
    coverage: dict
    mae: tuple

    @property
    def is_at_end(self):
        """Whether a temperature is where the search ends, so that a further one may fit better."""
        return any(np.isclose(one, end, rtol=1e-3) for one in self.temperature
                   for end in metrics.TEMPERATURES)


def fit_calibration(predicted):
    """Fit the calibration temperatures to the faces of a split that have an exact age.

    Args:
        predicted: SplitPredictions.
    Returns:
        Calibration.
    Raises:
        ValueError: fewer than two faces have an exact age.
    """
    exact = ~metrics.is_interval(predicted.data.labels).numpy()
    if exact.sum() < 2:
        raise ValueError("--calibrate needs at least two faces with an exact age; this split has "
                         f"{exact.sum()}")
    ages = predicted.data.labels["age"].numpy()[exact].astype(float)
    log_probs = predicted.log_probs.numpy()[exact].astype(float)
    bins = np.array(predicted.age_bins)
    decode = metrics.DECODES[predicted.cfg.TEST.DECODE]

    temperature = metrics.fit_temperatures(log_probs, ages, bins, CALIBRATED_SHARES)
    before = metrics.calibrated_probs(log_probs)
    after = metrics.cross_calibrated(log_probs, ages, bins, CALIBRATED_SHARES)
    covered = zip(metrics.coverage_curve(before, ages, bins, CALIBRATED_SHARES),
                  metrics.coverage_curve(after, ages, bins, CALIBRATED_SHARES), strict=True)
    return Calibration(temperature, len(ages), dict(zip(CALIBRATED_SHARES, covered, strict=True)),
                       tuple(metrics.mae(ages, decode(probs, bins)) for probs in (before, after)))
