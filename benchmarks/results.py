"""What the benchmark's runs gave: kept without their folders, small enough for the repository.

FOLDER/results.json    {name of the run: record}, one record a line
FOLDER/faces/NAME.npz  age, pred_age, nll, crps of each test face, in the order of the photos; none
                       of runs whose learning rate was not chosen

A record has the config's keys that are not the defaults, valid_mae and best_epoch, the test metrics
below "test", how many faces there were, a digest of the test faces and their ages, the minutes of
the training steps, the machine and the commit. A run that diverged has "error" instead.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from evaluation.scores import contributions
from utils.files import replaced, writable_folder

PER_FACE = ("age", "pred_age", "nll", "crps")
# Years and nats to which values are rounded, too fine to show in a mean over faces. A file of 3,800
# faces then takes 20 kB. Shares of errors do not survive it: CA(5) is up to 0.3 points lower by
# these files, as many an error is 5 years after the rounding.
STEPS = {"pred_age": 0.05, "nll": 0.02, "crps": 0.02}
# Of evaluation.scores. Records before 2026-11-28 lack mae_median.
SCORES = ("mae", "mae_median", "ca5", "nll", "crps", "coverage_80", "coverage_90")


class Results(dict):
    """The records of a folder, by the name of the run.

    Args:
        folder: see above; may be missing.
    Raises:
        ValueError: results.json is damaged.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.path = self.folder / "results.json"
        super().__init__(self._read())

    def _read(self):
        try:
            return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        except ValueError as error:
            raise ValueError(f"'{self.path}' is damaged ({error}); restore it from git") from error

    def add(self, name, record, faces=None):
        """Keep a record and what belongs to each face (see face_scores), on the disk at once.

        What has changed in results.json meanwhile stays, such as the lines of another machine.
        """
        records = self._read()
        self.clear()
        self.update(records)
        if faces is not None:
            with replaced(writable_folder(self.folder / "faces", "--results")
                          / f"{name}.npz") as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **faces)
        self[name] = record
        writable_folder(self.folder, "--results")
        lines = [f"{json.dumps(key)}: {json.dumps(self[key])}" for key in sorted(self)]
        with replaced(self.path) as temporary:
            temporary.write_text("\n".join(["{", ",\n".join(lines), "}", ""]), encoding="utf-8")

    def faces(self, name):
        """{name of PER_FACE: (B,) float64} of a run's test faces.

        Raises:
            FileNotFoundError: the run's file is missing.
        """
        path = self.folder / "faces" / f"{name}.npz"
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' not found; restore it from git, or remove the line "
                                    f"of '{name}' from {self.path} to run it again")
        with np.load(path) as arrays:
            return {key: arrays[key].astype(np.float64) for key in PER_FACE}

    def drop_faces(self, name):
        """Remove the file of a run that the page does not need; its record stays."""
        (self.folder / "faces" / f"{name}.npz").unlink(missing_ok=True)


def face_scores(predictions):
    """What is kept of each test face.

    Args:
        predictions: evaluation.predictions.Predictions with exact ages and distributions.
    Returns:
        ({name of PER_FACE: (B,) float16 array}, digest of the photos and ages as text).
    """
    faces = predictions.faces
    order = np.argsort(faces["photo"].to_numpy(str), kind="stable")
    ages, added = faces["age"].to_numpy(), contributions(predictions)
    values = {"age": ages, "pred_age": faces["pred_age"].to_numpy(),
              "nll": added["nll"].to_numpy(), "crps": added["crps"].to_numpy()}
    rows = "\n".join(f"{faces['photo'].iloc[at]} {ages[at]:g}" for at in order)
    digest = hashlib.sha256(rows.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    for name, step in STEPS.items():
        values[name] = np.round(values[name] / step) * step
    return {name: values[name][order].astype(np.float16) for name in PER_FACE}, digest


def scores_of(predictions):
    """{metric: value} over the test faces: MAE and CRPS in years, NLL in nats, shares in percent.

    Args:
        predictions: as for face_scores.
    """
    means = contributions(predictions).mean()
    return {name: round(float(means[name]), 4) for name in SCORES}
