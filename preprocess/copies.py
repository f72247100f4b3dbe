"""Photos that are in a data set twice, under two names: the same bytes, often with two ages."""

import warnings
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from preprocess.columns import SPLITS
from utils.files import file_sha256


def copies_in_training(rows, data_dir):
    """Training photos that are, byte for byte, photos of another list under another name.

    Only files are read that have the size of one in another list.

    Args:
        rows: list of dicts with photo and split; every photo exists.
        data_dir: folder of the photos.
    Returns:
        {training photo: (photo of the other list, its split)}, in the order of the rows.
    """
    splits = defaultdict(set)
    for row in rows:
        splits[row["photo"]].add(row["split"])
    sizes = defaultdict(list)
    for photo in splits:
        sizes[Path(data_dir, photo).stat().st_size].append(photo)
    similar = []
    for photos in sizes.values():
        is_trained = [splits[photo] == {"train"} for photo in photos]
        if any(is_trained) and not all(is_trained):
            similar += photos
    checksums = {photo: file_sha256(Path(data_dir, photo))
                 for photo in tqdm(similar, desc="comparing", unit=" photos", delay=1)}
    measured = {checksums[photo]: (photo, split) for photo in similar
                for split in SPLITS[1:] if split in splits[photo]}
    return {photo: measured[checksums[photo]] for photo in splits
            if splits[photo] == {"train"} and checksums.get(photo) in measured}


def warn_of_copies(copies, rows):
    """Warn of what copies_in_training() has found; rows: as for it."""
    if not copies:
        return
    ages = defaultdict(set)
    for row in rows:
        ages[row["photo"]].add(row["age"])
    others = sum(ages[photo] != ages[other] for photo, (other, _) in copies.items())
    photo, (other, split) = next(iter(copies.items()))
    warnings.warn(
        f"training photos that are the same files as photos of another list: {len(copies)}, "
        f"{others} of them with another age, such as '{photo}' and '{other}' ({split}). A model "
        "learns what it is measured on; --drop_copies leaves them out of the training",
        stacklevel=2)
