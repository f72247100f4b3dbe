"""From a row of a list to what the network gets: box -> crop -> augmentation -> pixels and labels.

FaceDataset.batch() is the whole way; FaceCrops cuts a face out of its photo.
"""

import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from augment import augment
from crop_cache import cached_crops, default_cache_dir, refuse_photos
from defaults import age_bins
from lists import BOX, parse_votes
from preprocess.boxes import find_boxes
from preprocess.face import (
    crop_face,
    crop_problem,
    has_exif_rotation,
    load_photo,
    resize_face,
    rotation_to_canvas,
    stop_unless_damaged,
    upright_size,
)
from utils.pipeline import worker_count

LABELS = ("age", "age_std", "age_min", "age_max")
EXIF_IGNORED = ("an EXIF rotation, which the scripts that wrote this list ignored; align again "
                "with python -m preprocess.face_align")
MAX_ROTATIONS_READ = 2000  # photos whose header is asked for an EXIF rotation, a second or less
MAX_NAMED = 5  # photos that a warning names
MAX_SIZES_READ = 64  # photos whose size is compared with the margin
MAX_BLACK = 0.05  # share of the box's side that may be black on one side without a warning


class FaceDataset(Dataset):
    """Batches of faces with their labels.

    A face is asked for by (epoch, index). Its augmentation depends only on the seed, the epoch and
    the face, so that a resumed run, and a run with other workers or processes, sees the same
    pictures.

    Args:
        faces: table from lists.read_faces(), of one or several data sets.
        cfg: the config.
        train: whether to augment.
        cache_dir: folder of the crop cache, or None for the user's.
    Attributes:
        faces: the table, with a box in every row, see preprocess.boxes.
        note: a sentence on the boxes that were found, or "".
        labels: dict of (N, ...) tensors in the order of faces: `age`, `age_std`, `age_min`,
            `age_max` (N,) float32 years, with LOSS.LABEL votes also `votes` (N, K). Further
            tensors may be added.
    """

    def __init__(self, faces, cfg, train, cache_dir=None):
        self.cfg, self.train = cfg, train
        self.size = cfg.MODEL.IMG_SIZE
        self.labels = {name: torch.tensor(faces[name].to_numpy(np.float32)) for name in LABELS}
        if cfg.LOSS.LABEL == "votes":  # checked before the crops are cut, which takes minutes
            self.labels["votes"] = torch.tensor(_histograms(faces, age_bins(cfg)))
        cache_dir = (cache_dir or default_cache_dir()) if cfg.DATA.CACHE else None
        self.faces, self.note = find_boxes(faces, cache_dir)
        # A training crop has a border at the same scale, so that rotated crops show real pixels.
        self.context = cfg.DATA.CONTEXT if train and cfg.AUG.STRENGTH > 0 else 0
        self.crops = FaceCrops(self.faces, *crop_frame(cfg, self.context))
        warn_of_ignored_rotations(self.faces)
        if cfg.DATA.MARGIN > 0:
            warn_of_narrow_photos(self.faces, cfg.DATA.MARGIN)
        if cfg.DATA.CACHE:
            self.crops = cached_crops(self.crops, cache_dir,
                                      worker_count((cfg.TRAIN if train else cfg.TEST).WORKERS))
        else:
            check_photos(self.crops)

    def __len__(self):
        return len(self.faces)

    def batch(self, keys):
        """A batch of faces with their labels.

        Args:
            keys: B pairs (epoch, index).
        Returns:
            dict of `pixels` (B, 3, S, S) uint8, `index` (B,), and the (B, ...) labels.
        """
        index = torch.tensor([index for _, index in keys])
        pixels = to_pixels(np.stack([self.face(index, epoch) for epoch, index in keys]))
        return {"pixels": pixels, "index": index,
                **{name: values[index] for name, values in self.labels.items()}}

    def __getitems__(self, keys):  # the name by which a DataLoader asks for a batch
        return self.batch(keys)

    def __getitem__(self, key):
        return {name: values[0] for name, values in self.batch([key]).items()}

    def face(self, index, epoch=0):
        """(S, S, 3) uint8 RGB, augmented if the data set is for training."""
        crop = self.crops[index]
        if not self.train or self.cfg.AUG.STRENGTH == 0:
            return crop
        rng = np.random.default_rng((self.cfg.TRAIN.SEED, epoch, index))
        return augment(crop, self.size, rng, self.cfg.AUG)


def crop_frame(cfg, context):
    """How a face is cut out with a border around what the network sees.

    Args:
        cfg: MODEL.IMG_SIZE and DATA.MARGIN are read.
        context: the border on each side, as a share of the network's input.
    Returns:
        margin: share of the face's box that is added on each side.
        side: pixels of the square crop.
    """
    size, margin = cfg.MODEL.IMG_SIZE, cfg.DATA.MARGIN
    border = round(size * context)
    return margin + (1 + 2 * margin) * border / size, size + 2 * border


class FaceCrops(Dataset):
    """Crops cut from their photos on access: crops[i] is (size, size, 3) uint8 RGB.

    Access raises a ValueError for a photo that cannot be read or a box outside of it, an OSError
    for what says nothing about the photo (face.stop_unless_damaged).

    Args:
        faces: table from lists.read_faces(), with a box in every row.
        margin: share of the box's width and height added on each side.
        size: pixels, side of the square crop.
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
        except (OSError, MemoryError) as error:
            stop_unless_damaged(error, path, self.roots[index])
            raise ValueError(f"{path}: {error}") from error
        problem = self.check_box(index, photo.size)
        if problem:
            raise ValueError(problem)
        crop = crop_face(photo, self.bboxes[index], self.roll_degs[index], self.margin)
        return resize_face(crop, self.size)

    def check_box(self, index, photo_size):
        """What is wrong with a box in a photo of photo_size (width, height); "" if nothing is."""
        problem = crop_problem(self.bboxes[index], photo_size, self.roll_degs[index], self.margin)
        if not problem:
            return ""
        if self.has_no_confidence[index] and has_exif_rotation(self.path(index)):
            problem += f", the photo has {EXIF_IGNORED}"
        return f"{self.path(index)}: {problem}"


def to_pixels(face):
    """A face as the network takes it, in train, test and demo alike.

    Args:
        face: (S, S, 3) or (B, S, S, 3) uint8 RGB array.
    Returns:
        (3, S, S) or (B, 3, S, S) uint8 tensor, 0..255, channels-last in memory; the model
        normalises it.
    """
    return torch.from_numpy(np.ascontiguousarray(face)).movedim(-1, -3)


def check_photos(crops):
    """Read the header of every photo and compare the box with the photo's size.

    Raises:
        ValueError: photos that cannot be read, boxes outside; the message names up to twenty.
        OSError: see face.stop_unless_damaged.
    """
    problems = []
    for index in tqdm(range(len(crops)), desc="checking photos", leave=False):
        try:
            problems.append(crops.check_box(index, upright_size(crops.path(index))))
        except (OSError, MemoryError) as error:
            stop_unless_damaged(error, crops.path(index), crops.roots[index])
            problems.append(f"{crops.path(index)}: {error}")
    refuse_photos([p for p in problems if p], len(crops))


def warn_of_ignored_rotations(faces):
    """Warn if photos have an EXIF rotation that the original scripts ignored.

    Their lists have no confidence. The headers of at most MAX_ROTATIONS_READ photos are read.

    Args:
        faces: table from lists.read_faces(), with a box in every row.
    """
    photos = faces.loc[faces["confidence"].isna(), ["root", "photo"]].drop_duplicates()
    chosen = _spread(photos, MAX_ROTATIONS_READ)
    rotated = []
    for row in chosen.itertuples():
        with suppress(OSError):  # reported where the face is cut
            if has_exif_rotation(Path(row.root, row.photo)):
                rotated.append(row.photo)
    if rotated:
        names = ", ".join(rotated[:MAX_NAMED]) + ", ..." * (len(rotated) > MAX_NAMED)
        seen = "" if len(chosen) == len(photos) else " that were looked at"
        warnings.warn(f"{len(rotated)} of {len(chosen)} photos{seen} ({names}) have {EXIF_IGNORED}",
                      stacklevel=2)


def _spread(table, count):
    """At most `count` rows of a table, at equal distances."""
    return table.iloc[np.linspace(0, len(table) - 1, min(len(table), count)).astype(int)]


def warn_of_narrow_photos(faces, margin):
    """Warn if most photos end before the margin does, as those of training.pack do.

    The network then sees black instead of the surroundings of the face. Only the headers of
    MAX_SIZES_READ photos are read.

    Args:
        faces: table from lists.read_faces(), with a box in every row.
        margin: share of the box's width and height added on each side.
    """
    chosen = _spread(faces, MAX_SIZES_READ)
    count = 0
    for row in chosen.itertuples():
        try:
            (width, height), _ = rotation_to_canvas(upright_size(Path(row.root, row.photo)),
                                                    row.deg)
        except OSError:
            continue  # reported where the face is cut
        side = max(row.box3 - row.box1, row.box4 - row.box2)
        room = min(row.box1, row.box2, width - row.box3, height - row.box4)
        count += room < margin * side - MAX_BLACK * side
    if count > len(chosen) / 2:
        warnings.warn(f"most photos end before DATA.MARGIN {margin:g} does ({count} of "
                      f"{len(chosen)} that were looked at), as packed faces do: the network sees "
                      "black there; use the whole photos, or a model with DATA.MARGIN 0",
                      stacklevel=2)


def _histograms(faces, bins):
    """(N, K) float32 votes of each face, zeros for a face without votes.

    Raises:
        ValueError: votes that cannot be read; names the photo.
    """
    histograms = []
    for photo, text in zip(faces["photo"], faces["votes"].fillna(""), strict=True):
        try:
            histograms.append(parse_votes(text, bins))
        except ValueError as error:
            raise ValueError(f"{photo}: {error}") from error
    return np.stack(histograms)
