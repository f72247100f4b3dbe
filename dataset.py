"""Faces as training and evaluation batches."""

import warnings

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from augment import augment
from crop_cache import FaceCrops, cached_crops, check_photos, default_cache_dir
from defaults import age_bins
from distributed import available_cores
from lists import parse_votes

LABELS = ("age", "age_std", "age_min", "age_max")


def to_pixels(face):
    """A face as the network takes it, everywhere: train, test and demo.

    Args:
        face: (S, S, 3) or (B, S, S, 3) uint8 RGB array.
    Returns:
        (3, S, S) or (B, 3, S, S) uint8 tensor, 0..255, channels-last in memory; the model
        itself normalises.
    """
    return torch.from_numpy(np.ascontiguousarray(face)).movedim(-1, -3)


def to_device(batch, device):
    """The batch's tensors on the device."""
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


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
                                      loader_workers((cfg.TRAIN if train else cfg.TEST).WORKERS))
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


class ShuffledBatches(Sampler):
    """Batches of (epoch, index), the same global batches however many processes share them.

    Args:
        count: faces in the data set.
        batch_size: total over all processes; a short last batch is dropped, unless it is the
            only one.
        seed: of the order.
        rank, world_size: this process and their number; each takes every world_size-th face of
            a batch.

    Set `epoch`, and `start` to skip batches already trained, before iterating.
    """

    def __init__(self, count, batch_size, seed, rank=0, world_size=1):
        if min(count, batch_size) < world_size:
            raise ValueError(f"a batch of {min(count, batch_size)} training faces cannot be shared "
                             f"by {world_size} processes (TRAIN.BATCH_SIZE {batch_size}, "
                             f"{count} faces)")
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0

    def __len__(self):
        return self.count // self.batch_size - self.start

    def __iter__(self):
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        for batch in range(self.start, self.count // self.batch_size):
            indices = order[batch * self.batch_size:(batch + 1) * self.batch_size]
            yield [(self.epoch, index) for index in indices[self.rank::self.world_size]]


class OrderedBatches(Sampler):
    """Every face once, in order; of several processes each takes every world_size-th face."""

    def __init__(self, count, batch_size, rank=0, world_size=1):
        if count < world_size:
            raise ValueError(f"{count} faces cannot be shared by {world_size} processes")
        self.indices = range(rank, count, world_size)
        self.batch_size = batch_size

    def __len__(self):
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start:start + self.batch_size]]


def build_loader(dataset, batches, workers, device):
    """DataLoader over whole batches.

    Args:
        dataset: FaceDataset.
        batches: ShuffledBatches or OrderedBatches.
        workers: loader processes asked for; at most one a core is started.
        device: torch.device that the batches will go to.
    """
    workers = loader_workers(workers)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_it_is, num_workers=workers,
                      pin_memory=device.type == "cuda", persistent_workers=workers > 0,
                      worker_init_fn=_start_worker,
                      # Its own: starting an epoch must not draw from the state that dropout has,
                      # or a run resumed within an epoch would go on differently.
                      generator=torch.Generator())


def loader_workers(workers):
    """Loader processes to start: at most one a core this process may use."""
    return min(workers, available_cores())


def _as_it_is(batch):
    return batch


def _start_worker(_):
    import signal

    import cv2
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process handles them, and ends
        signal.signal(number, signal.SIG_IGN)       # its workers itself
    warnings.simplefilter("once")
