"""Face crops that are cut once and kept in a memory-mapped file.

Each combination of a list, a margin and a size has a file of its own; the border of training crops
is a part of both.
"""

import hashlib
import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lists import listed
from preprocess.face import crop_fingerprint
from utils.files import cache_dir, named_full_disk, size_text, write_to_disk
from utils.locks import one_maker

# Faces that a loader process sends at once. One by one, at most 1,200 of them reach the main
# process in a second, however many cores cut them.
SENT_TOGETHER = 16


def default_cache_dir():
    """Folder `crops` in the user's cache folder, see utils.files.cache_dir."""
    return cache_dir() / "crops"


def cached_crops(crops, folder, workers):
    """The crops as a memory-mapped array. If the file does not exist yet, it is made now.

    An interrupted build continues where it stopped. Processes that need the same file wait for
    the one that makes it.

    Args:
        crops: dataset.FaceCrops.
        folder: folder of the cache, created if missing.
        workers: loader processes for the build.
    Returns:
        MappedCrops.
    Raises:
        ValueError: photos that cannot be read, boxes outside; the message names up to twenty.
        OSError: the folder cannot be written to, the disk is too small, or what
            face.stop_unless_damaged raises; then the crops that are cut already are kept.
    """
    shape = (len(crops), crops.size, crops.size, 3)
    path = Path(folder, f"{_crops_key(crops)}.u8")
    if not _is_whole(path, shape):
        with one_maker(path, "cuts the same faces"):
            if not _is_whole(path, shape):
                _cut_crops(crops, path, shape, workers)
    return MappedCrops(path, shape)


class MappedCrops:
    """Crops in a file: crops[i] is (size, size, 3) uint8, read-only.

    Each process maps the file itself: a numpy.memmap would be copied to every loader process on
    systems that do not fork.

    Args:
        path: the file of the crops.
        shape: (N, size, size, 3).
    """

    def __init__(self, path, shape):
        self.path, self.shape = path, shape

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return self._pixels[index]

    def __getstate__(self):
        return {"path": self.path, "shape": self.shape}

    @cached_property
    def _pixels(self):
        return np.memmap(self.path, np.uint8, mode="r", shape=self.shape)


def _crops_key(crops):
    """Hash of everything that the pixels depend on: photo files, boxes, angles, settings."""
    digest = hashlib.sha256(repr((crop_fingerprint(), crops.margin, crops.size)).encode())
    for array in (crops.roll_degs, crops.bboxes):
        digest.update(array.tobytes())
    for index in range(len(crops)):
        stat = crops.path(index).stat()
        digest.update(f"{crops.path(index).resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0"
                      .encode())
    return digest.hexdigest()[:32]


def _is_whole(path, shape):
    """Whether the file of the crops is there, and not cut short, as by a copy that was stopped."""
    return path.is_file() and path.stat().st_size == np.prod(shape, dtype=np.int64)


def _cut_crops(crops, path, shape, workers):
    partial = path.with_suffix(".partial")
    face_bytes = int(np.prod(shape[1:]))
    done = partial.stat().st_size // face_bytes if partial.is_file() else 0
    needed = (len(crops) - done) * face_bytes
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"the crops need {size_text(needed)}, '{path.parent}' has "
                      f"{size_text(free)} free; name another folder with --cache_dir, or set "
                      "DATA.CACHE False")
    loader = torch.utils.data.DataLoader(
        _CropOrError(crops), batch_size=SENT_TOGETHER, collate_fn=_joined, num_workers=workers,
        sampler=range(done, len(crops)), generator=torch.Generator())  # not the run's own
    problems = []
    with named_full_disk(partial), \
            partial.open("r+b" if done else "wb") as file, \
            tqdm(desc="cutting faces", total=len(crops), initial=done, unit="face",
                 leave=False) as bar:
        file.seek(done * face_bytes)
        file.truncate()
        for faces, pixels, found in loader:
            problems += found
            if not problems:
                file.write(pixels.numpy().data)
            bar.update(faces)
    if problems:
        partial.unlink()  # a list without the bad photos, or with repaired ones, has another key
    refuse_photos(problems, len(crops))
    write_to_disk(partial)
    partial.replace(path)


class _CropOrError(torch.utils.data.Dataset):
    """Pairs (crop, "") or (empty tensor, error text), so that all bad photos are reported."""

    def __init__(self, crops):
        self.crops = crops

    def __getitem__(self, index):
        try:
            return torch.from_numpy(self.crops[index].copy()), ""
        except ValueError as error:
            return torch.empty(0, dtype=torch.uint8), str(error)


def _joined(pairs):
    """(number of pairs, their crops in one tensor, their error texts) of _CropOrError's pairs."""
    problems = [problem for _, problem in pairs if problem]
    crops = [crop for crop, problem in pairs if not problem]
    return len(pairs), torch.stack(crops) if crops else torch.empty(0), problems


def refuse_photos(problems, count):
    """Raise a ValueError that lists the problems, if there are any, of `count` photos."""
    if problems:
        raise ValueError(f"{len(problems)} of {count} photos cannot be used (DATA.EXCLUDE leaves "
                         f"photos out): {listed(problems)}")
