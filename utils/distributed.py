"""One process or many (torchrun): who this process is, and how results come together."""

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist


@contextmanager
def processes(device):
    """Join the processes that torchrun started; alone, nothing happens.

    Args:
        device: torch.device chosen for the run; a GPU becomes this process's own.
    Yields:
        torch.device of this process.
    Raises:
        ValueError: more processes than GPUs.
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
    # Cutting the crops of a large data set takes hours, in which the others wait.
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
    """CPU tensor of all processes' rows, in the order of their ranks."""
    if not dist.is_initialized():
        return tensor.cpu()
    shares = [None] * world_size()
    dist.all_gather_object(shares, tensor.cpu())
    return torch.cat(shares)


def share_buffers(model):
    """Give every process the main one's buffers, such as batch norm's running statistics."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def total(values):
    """Sum over all processes of each number of a dict; a key that one lacks counts as 0 there."""
    if not dist.is_initialized():
        return values
    shares = [None] * world_size()
    dist.all_gather_object(shares, values)
    names = dict.fromkeys(name for share in shares for name in share)
    return {name: sum(share.get(name, 0.0) for share in shares) for name in names}


def any_true(flag, device):
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    tensor = torch.tensor(float(flag), device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return bool(tensor.item())


def from_main(value):
    """The main process's value, in every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def wait():
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first():
    """Let the main process go first, so that only one downloads what all of them need."""
    if dist.is_initialized() and not is_main():
        dist.barrier()
    yield
    if dist.is_initialized() and is_main():
        dist.barrier()


def wrap(model, device):
    """The model, in DistributedDataParallel where there are several processes."""
    if not dist.is_initialized():
        return model
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None)


def unwrap(model):
    """The AgeModel inside a DistributedDataParallel."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def choose_device(name):
    """torch.device for 'auto', 'cpu' or 'cuda'.

    Raises:
        ValueError: cuda asked for where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device found; use --device cpu")
    return torch.device(name)
