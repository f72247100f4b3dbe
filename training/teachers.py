"""Knowledge distillation: what other models predict for the training faces.

LOSS.TEACHER names either tables of predictions, written once, or models. Models predict what the
student sees, each face as it was augmented for it.

    python -m training.teachers OUT --data_dir DIR --dataset NAME

writes OUT/half_1.csv and OUT/half_2.csv, the two halves of the training photos, for DATA.EXCLUDE.
A teacher that was trained without one half cannot have memorised the labels of that half, so its
predictions for it are worth learning from.
"""

import argparse
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from checkpoint import load_checkpoint, temperature_of
from defaults import age_bins, load_cfg, value_of
from evaluation.predictions import face_keys, read_predictions
from lists import pair_folders, read_sources, shortest_name
from model import PixelsToProbs, restore_model
from utils.cli import HelpFormatter, add_data_flags, run_main
from utils.files import expand_glob, replaced, writable_folder

TABLE, MODEL = ".csv", ".pth"
SAME_AGE = 0.01  # years; the ages of tables are rounded
MIN_MASS = 1e-3  # of a teacher's distribution within the student's age bins


def find_teachers(pattern):
    """Paths of the teachers that LOSS.TEACHER names: one file, or those of a folder or a glob.

    Of a run's folder best.pth is taken, also beside tables; of another folder its tables, or its
    models if it has no tables.

    Args:
        pattern: the value of the key; empty for none.
    Returns:
        (tables, models): two lists, of which at least one is empty.
    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder without teachers, a glob of tables and models together.
    """
    if not pattern:
        return [], []
    folder = Path(pattern)
    if folder.is_dir():
        tables, models = (sorted(map(str, folder.glob(f"*{ending}"))) for ending in (TABLE, MODEL))
        if not tables and not models:
            raise ValueError(f"LOSS.TEACHER '{pattern}' is a folder without tables ({TABLE}) and "
                             f"models ({MODEL})")
        best = str(folder / "best.pth")
        if best in models:
            return [], [best]
        return tables, [] if tables else models
    paths = expand_glob(pattern)
    if not any(Path(path).exists() for path in paths):
        raise FileNotFoundError(f"LOSS.TEACHER '{pattern}': no such file or folder; give the path "
                                f"of models ({MODEL}) or tables ({TABLE}) as LOSS.TEACHER PATH")
    models = [path for path in paths if path.endswith(MODEL)]
    tables = [path for path in paths if not path.endswith(MODEL)]
    if tables and models:
        raise ValueError(f"LOSS.TEACHER '{pattern}' names tables ({tables[0]}) and models "
                         f"({models[0]}); name either, such as "
                         f"'{Path(models[0]).parent / f'*{MODEL}'}'")
    return tables, models


@contextmanager
def _errors_name_the_key():
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        if str(error).startswith("LOSS.TEACHER"):
            raise
        raise type(error)(f"LOSS.TEACHER: {error}") from error


class ModelTeachers(nn.Module):
    """The mean of what trained networks predict for the pixels that the student sees.

    A table holds one prediction for each face. Here the student is told what its teachers think
    of every change of the face, which teaches more in long trainings (Beyer et al., "Knowledge
    distillation: A good teacher is patient and consistent", CVPR 2022).

    Args:
        paths: list of checkpoint files.
        cfg: the student's config.
    Raises:
        FileNotFoundError: no such file.
        ValueError: a file is not a checkpoint, or its network takes other faces or predicts other
            ages.
    """

    def __init__(self, paths, cfg):
        super().__init__()
        with _errors_name_the_key():
            self.networks = nn.ModuleList(_teacher_network(path, cfg) for path in paths)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixels):
        """(B, 3, S, S) uint8 RGB -> (B, K) calibrated probabilities."""
        return torch.stack([network(pixels)[0] for network in self.networks]).mean(dim=0)


def _teacher_network(path, cfg):
    """The calibrated network of a checkpoint, if it can teach the network of a config."""
    checkpoint = load_checkpoint(path)
    model, own = restore_model(checkpoint)
    bins, wanted = age_bins(own), age_bins(cfg)
    if not bins[0] <= wanted[0] <= wanted[-1] <= bins[-1]:
        raise ValueError(f"LOSS.TEACHER '{path}' predicts the ages {bins[0]} to {bins[-1]}, not "
                         f"{wanted[0]} to {wanted[-1]}; choose another teacher, or set "
                         "DATA.AGE_MIN and DATA.AGE_MAX")
    for key in ("MODEL.IMG_SIZE", "DATA.MARGIN", "DATA.AGE_MIN", "DATA.AGE_MAX"):
        if value_of(own, key) != value_of(cfg, key):
            raise ValueError(f"LOSS.TEACHER '{path}' has {key} {value_of(own, key)}, not "
                             f"{value_of(cfg, key)}; let it write a table for this training with "
                             "test.py --split train --output")
    return PixelsToProbs(model, temperature_of(checkpoint), len(age_bins(own))).eval()


def teacher_distributions(paths, faces, bins):
    """The mean of what other models predicted for the training faces.

    Args:
        paths: list of tables written by `test.py --split train --output`, from find_teachers().
        faces: table from lists.read_faces().
        bins: (K,) whole years.
    Returns:
        (N, K) float32, rows sum to 1.
    Raises:
        FileNotFoundError: no such table.
        ValueError: a table cannot be read, has no distributions over these bins, lacks faces,
            lacks the data sets' names although two have a photo of the same name, or has other
            faces of a photo, or in another order.
    """
    with _errors_name_the_key():
        return sum(_distributions_of(path, faces, bins) for path in paths) / len(paths)


def _distributions_of(path, faces, bins):
    table = read_predictions(path)
    first, last = (-1, -1) if table.probs is None else table.age_bins[[0, -1]]
    if not first <= bins[0] <= bins[-1] <= last:
        raise ValueError(f"LOSS.TEACHER '{path}' has no distributions over the ages {bins[0]} to "
                         f"{bins[-1]}; write it with test.py --split train --output")
    keys = [name for name in ("dataset", "photo") if name in table.faces]
    if "dataset" not in table.faces:
        owners = faces.groupby("photo")["dataset"].nunique()
        if (owners > 1).any():
            raise ValueError(f"LOSS.TEACHER '{path}' has no column dataset, and "
                             f"'{owners.idxmax()}' is in two of the data sets trained on; add "
                             "that column")
    rows = face_keys(table.faces, keys).get_indexer(face_keys(faces, keys))
    probs = torch.tensor(table.probs[rows, bins[0] - first:bins[-1] - first + 1]).float()
    mass = probs.sum(dim=1, keepdim=True)
    unknown = (rows < 0) | (mass[:, 0] < MIN_MASS).numpy()
    if unknown.any():
        raise ValueError(f"LOSS.TEACHER '{path}' has no distribution over the ages {bins[0]} to "
                         f"{bins[-1]} for {unknown.sum()} of {len(faces)} training faces, such as "
                         f"'{faces['photo'][unknown.argmax()]}'; write it with test.py --split "
                         "train --output from the same lists")
    _check_shared_photos(path, table.faces, rows, faces, keys)
    return probs / mass


def _check_shared_photos(path, table, rows, faces, keys):
    """Refuse a table whose rows for the faces of one photo are not those of the list, in its order.

    Nothing but their order tells them apart.

    Args:
        path: file of the table, for the message.
        table: its faces.
        rows: (N,) place there of each of the N faces.
        faces: table of the N faces.
        keys: names of the columns that name a photo.
    """
    in_list, in_table = (one.groupby(keys, dropna=False)["photo"].transform("size").to_numpy()
                         for one in (faces, table))
    in_table = in_table[rows]
    ages_apart = np.abs(table["age"].to_numpy(float)[rows] - faces["age"].to_numpy(float))
    wrong = (np.maximum(in_list, in_table) > 1) & (
        (in_list != in_table) | (ages_apart > SAME_AGE))
    if wrong.any():
        raise ValueError(f"LOSS.TEACHER '{path}' has other faces of "
                         f"'{faces['photo'][wrong.argmax()]}' than the lists, or in another order, "
                         "and would teach a face the age of another one; write it with test.py "
                         "--split train --output from the same lists")


def halve(photos):
    """(N,) bool, whether each photo is in the first half: decided by a checksum of its name.

    Photos of one name fall together, whatever their folders and data sets. Else DATA.EXCLUDE, which
    matches names, would leave them out with either half.
    """
    return np.array([zlib.crc32(shortest_name(photo).encode("utf-8", "surrogatepass")) % 2 == 0
                     for photo in photos])


def main():
    parser = argparse.ArgumentParser(prog="python -m training.teachers", description=__doc__,
                                     formatter_class=HelpFormatter)
    parser.add_argument("output_dir", metavar="OUT", help="folder to write")
    add_data_flags(parser)
    args = parser.parse_args()
    sources = pair_folders(args.data_dir, args.dataset, args.list_dir)
    faces = read_sources(sources, "train", load_cfg())
    is_first = halve(faces["photo"])
    folder = writable_folder(args.output_dir, "OUT")
    for number, half in enumerate((faces[is_first], faces[~is_first]), start=1):
        path = folder / f"half_{number}.csv"
        with replaced(path) as temporary:  # configs/teachers.sh takes a table there as complete
            half[["photo"]].to_csv(temporary, index=False)
        print(f"{path}: {len(half):,} faces")


if __name__ == "__main__":
    run_main(main)
