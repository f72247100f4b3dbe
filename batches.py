"""Faces in batches: which faces form a batch, and who loads it."""

import atexit
import multiprocessing
import signal
import warnings

import torch
from torch.utils.data import DataLoader, Sampler

from dataset import FaceDataset
from utils import distributed
from utils.pipeline import STOP_SIGNALS, worker_count


class ShuffledBatches(Sampler):
    """Batches of (epoch, index) in random order, independent of the number of processes.

    Args:
        count: faces in the data set.
        batch_size: total over all processes; a short last batch is dropped, unless it is the
            only one.
        seed: number that decides the order of the faces.
        rank, world_size: number of this process, and of all; each process takes every
            world_size-th face of a batch.

    Before iterating, set `epoch`, and `start` to the number of batches to skip.
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
    """Every face once, in order; each of several processes takes every world_size-th face."""

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
        workers: maximum number of loader processes; at most one for each core is started.
        device: torch.device that the batches will go to.
    """
    workers = worker_count(workers)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_as_it_is, num_workers=workers,
                      pin_memory=device.type == "cuda", persistent_workers=workers > 0,
                      worker_init_fn=_start_worker,
                      # Its own generator: a loader must not draw from the random state of
                      # dropout, or a run resumed within an epoch would continue differently.
                      generator=torch.Generator())


def build_eval_loader(faces, cfg, device, cache_dir=None):
    """Loader of this process's share of a table of faces, in order and without augmentation."""
    data = FaceDataset(faces, cfg, train=False, cache_dir=cache_dir)
    batches = OrderedBatches(len(data), cfg.TEST.BATCH_SIZE, distributed.rank(),
                             distributed.world_size())
    return build_loader(data, batches, cfg.TEST.WORKERS, device)


def to_device(batch, device):
    """The batch's tensors on the device.

    Only CUDA's memory is pinned, see build_loader(); from other memory a copy that nobody waits
    for may read what the next batch has written there.
    """
    return {name: values.to(device, non_blocking=device.type == "cuda")
            for name, values in batch.items()}


def _as_it_is(batch):
    return batch


@atexit.register
def _end_workers():
    """End the loaders' processes that an error has left: they ignore what Python ends them with."""
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report a fault
    for process in workers:
        process.kill()


def _start_worker(_):
    import cv2
    cv2.setNumThreads(0)
    for number in STOP_SIGNALS:  # the main process handles them and ends its workers
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("once")
