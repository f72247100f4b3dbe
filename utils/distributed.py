"""Training in one process or in several (torchrun): ranks, results of all, and devices."""

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist


@contextmanager
def processes(device):
    """Connect the processes that torchrun started; a single process needs nothing.

    Args:
        device: torch.device of the run. With cuda, each process gets a GPU of its own.
    Yields:
        torch.device of this process.
    Raises:
        ValueError: there are more processes than GPUs.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number >= count:
            raise ValueError(f"more processes than GPUs on this machine: use torchrun "
                             f"--nproc_per_node={count}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    # To cut the crops of a large data set takes hours, and the other processes wait.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo",
                            timeout=timedelta(hours=6))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    return rank() == 0


def concatenate(tensor):
    """The rows of all processes as one CPU tensor, in the order of the ranks."""
    if not dist.is_initialized():
        return tensor.cpu()
    shares = [None] * world_size()
    dist.all_gather_object(shares, tensor.cpu())
    return torch.cat(shares)


def share_buffers(model):
    """Copy the main process's buffers, such as the statistics of batch norms, to all others."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def total(values):
    """{name: sum over all processes} of a {name: number}; a missing name counts as 0."""
    if not dist.is_initialized():
        return values
    shares = [None] * world_size()
    dist.all_gather_object(shares, values)
    names = dict.fromkeys(name for share in shares for name in share)
    return {name: sum(share.get(name, 0.0) for share in shares) for name in names}


def any_true(flag, device):
    """True if the flag is True in at least one process."""
    if not dist.is_initialized():
        return flag
    tensor = torch.tensor(float(flag), device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return bool(tensor.item())


def from_main(value):
    """The value that the main process has, in every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def wait():
    """Wait until all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first():
    """Context that the main process runs first, so that only one downloads what all need."""
    if dist.is_initialized() and not is_main():
        dist.barrier()
    yield
    if dist.is_initialized() and is_main():
        dist.barrier()


def wrap(model, device):
    """The model; with several processes inside a DistributedDataParallel."""
    if not dist.is_initialized():
        return model
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None)


def unwrap(model):
    """The AgeModel, taken out of a DistributedDataParallel."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def choose_device(name):
    """torch.device for 'auto', 'cpu' or 'cuda'.

    Raises:
        ValueError: 'cuda', but no such device was found.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device found; use --device cpu")
    return torch.device(name)
