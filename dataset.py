"""From a row of a list to what the network gets: box -> crop -> augmentation -> pixels and labels.

`FaceCrops` cuts a face out of its photo; `FaceDataset` augments it and adds its labels.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from augment import augment
from crop_cache import cached_crops, default_cache_dir, refuse_photos
from defaults import age_bins
from lists import BOX, parse_votes
from preprocess.face import (
    crop_face,
    crop_pixels,
    has_exif_rotation,
    load_photo,
    resize_face,
    rotation_to_canvas,
    upright_size,
)
from utils.pipeline import worker_count

LABELS = ("age", "age_std", "age_min", "age_max")
EXIF_IGNORED = ("the photo has an EXIF rotation, which the scripts that wrote this list ignored; "
                "align again with python -m preprocess.face_align")

LARGEST_CROP = 89_000_000  # pixels: a larger box is in other units, and would take the memory


class FaceCrops(Dataset):
    """Crops cut from their photos on access: crops[i] is (size, size, 3) uint8 RGB.

    Args:
        faces: table of lists.read_faces.
        margin: share of the box's width and height added on each side.
        size: pixels, side of the result.
    """

    def __init__(self, faces, margin, size):
        self.margin, self.size = margin, size
        self.roots, self.photos = faces["root"].to_numpy(), faces["photo"].to_numpy()
        self.roll_degs = faces["deg"].to_numpy(float)
        self.bboxes = faces[BOX].to_numpy(float)
        self.has_no_confidence = faces["confidence"].isna().to_numpy()

    def __len__(self):
        return len(self.photos)

    def path(self, index):
        return Path(self.roots[index], self.photos[index])

    def __getitem__(self, index):
        path = self.path(index)
        try:
            photo = load_photo(path)
        except OSError as error:
            raise ValueError(f"{path}: {error}") from error
        if np.isnan(self.roll_degs[index]):  # no list: the image is the crop
            return resize_face(crop_face(photo, (0, 0, *photo.size), 0, self.margin), self.size)
        problem = self.check_box(index, photo.size)
        if problem:
            raise ValueError(problem)
        if self._ignores_rotation(index):
            warnings.warn(f"{path}: {EXIF_IGNORED}", stacklevel=2)
        crop = crop_face(photo, self.bboxes[index], self.roll_degs[index], self.margin)
        return resize_face(crop, self.size)

    def check_box(self, index, photo_size):
        """What is wrong with a box in a photo of (width, height), or ''."""
        (width, height), _ = rotation_to_canvas(photo_size, self.roll_degs[index])
        x1, y1, x2, y2 = self.bboxes[index]
        left, top, right, bottom = crop_pixels(self.bboxes[index], self.margin)
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            problem = f"lies outside the {width}x{height} image"
        elif right <= left or bottom <= top:
            problem = "is smaller than a pixel"
        elif (right - left) * (bottom - top) > LARGEST_CROP:
            problem = f"of the {width}x{height} image is far too large"
        else:
            return ""
        if self._ignores_rotation(index):
            problem += f", {EXIF_IGNORED}"
        return f"{self.path(index)}: box {x1:g} {y1:g} {x2:g} {y2:g} {problem}"

    def _ignores_rotation(self, index):
        """Whether the list is one of the original scripts, and the photo one to be turned."""
        return self.has_no_confidence[index] and has_exif_rotation(self.path(index))


def check_photos(crops):
    """Open every photo's header and hold its box against it, without decoding.

    Raises:
        ValueError: photos that cannot be read and boxes outside; twenty are named.
    """
    problems = []
    for index in tqdm(range(len(crops)), desc="checking photos", leave=False):
        try:
            size = upright_size(crops.path(index))
            if not np.isnan(crops.roll_degs[index]):
                problems.append(crops.check_box(index, size))
        except OSError as error:
            problems.append(f"{crops.path(index)}: {error}")
    refuse_photos([p for p in problems if p], len(crops))


class FaceDataset(Dataset):
    """Batches of faces with their labels.

    Indexed by the loader with a list of (epoch, index): the augmentation of a face depends on
    the seed, the epoch and the face alone, so that a resumed run, and a run with another number
    of workers or processes, sees the same pictures.

    Args:
        faces: table of lists.read_faces, of one or several data sets.
        cfg: the config.
        train: augment.
        cache_dir: folder of the crop cache, the user's by default.

    A batch is a dict of `pixels` (B, 3, S, S) uint8, `index` (B,), and the labels `age`,
    `age_std`, `age_min`, `age_max` (B,) float32 years, with LOSS.LABEL votes also `votes` (B, K).
    What is added to `labels`, (N, ...) tensors in the order of faces, comes in the batches too.
    """

    def __init__(self, faces, cfg, train, cache_dir=None):
        self.faces, self.cfg, self.train = faces, cfg, train
        self.size = cfg.MODEL.IMG_SIZE
        self.labels = {name: torch.tensor(faces[name].to_numpy(np.float32)) for name in LABELS}
        if cfg.LOSS.LABEL == "votes":  # before the crops are cut, which takes minutes
            self.labels["votes"] = torch.tensor(_histograms(faces, age_bins(cfg)))
        # A training crop keeps its surroundings at the same scale, for rotations to turn in.
        self.context = cfg.DATA.CONTEXT if train and cfg.AUG.STRENGTH > 0 else 0
        border = round(self.size * self.context)
        margin = cfg.DATA.MARGIN + (1 + 2 * cfg.DATA.MARGIN) * border / self.size
        self.crops = FaceCrops(faces, margin, self.size + 2 * border)
        if cfg.DATA.CACHE:
            self.crops = cached_crops(self.crops, cache_dir or default_cache_dir(),
                                      worker_count((cfg.TRAIN if train else cfg.TEST).WORKERS))
        else:
            check_photos(self.crops)

    def __len__(self):
        return len(self.faces)

    def face(self, index, epoch=0):
        """(S, S, 3) uint8 RGB, augmented when training."""
        crop = self.crops[index]
        if not self.train or self.cfg.AUG.STRENGTH == 0:
            return crop
        rng = np.random.default_rng((self.cfg.TRAIN.SEED, epoch, index))
        return augment(crop, self.size, rng, self.cfg.AUG)

    def __getitems__(self, keys):
        index = torch.tensor([index for _, index in keys])
        pixels = to_pixels(np.stack([self.face(index, epoch) for epoch, index in keys]))
        return {"pixels": pixels, "index": index,
                **{name: values[index] for name, values in self.labels.items()}}

    def __getitem__(self, key):
        return {name: values[0] for name, values in self.__getitems__([key]).items()}


def to_pixels(face):
    """A face as the network takes it, everywhere: train, test and demo.

    Args:
        face: (S, S, 3) or (B, S, S, 3) uint8 RGB array.
    Returns:
        (3, S, S) or (B, 3, S, S) uint8 tensor, 0..255, channels-last in memory; the model
        itself normalises.
    """
    return torch.from_numpy(np.ascontiguousarray(face)).movedim(-1, -3)


def _histograms(faces, bins):
    """(N, K) float32 votes of each face, zero where it has none.

    Raises:
        ValueError: votes that are none; names the photo.
    """
    histograms = []
    for photo, text in zip(faces["photo"], faces["votes"].fillna(""), strict=True):
        try:
            histograms.append(parse_votes(text, bins))
        except ValueError as error:
            raise ValueError(f"{photo}: {error}") from error
    return np.stack(histograms)
