"""Training in one process or in several, on one machine or more (torchrun): ranks and results.

Machines need not see each other's files. Only the main process reads and writes those of a run.
"""

import os
import socket
import warnings
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from utils.device import device_name

PORT = 29500  # where the machines meet, in commands that are printed


@contextmanager
def processes(device):
    """Connect the processes that torchrun started; a single process needs nothing.

    Args:
        device: torch.device of the run. With cuda, each process gets a GPU of its own.
    Yields:
        torch.device of this process.
    Raises:
        ValueError: there are more processes than GPUs, or torchrun has not started this one.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield device
        return
    if "MASTER_ADDR" not in os.environ:
        raise ValueError("RANK and WORLD_SIZE are set, but not by torchrun: start the training "
                         "with torchrun, or unset them")
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
        with warnings.catch_warnings():
            if not is_main():  # every process reads the same lists; one warns of them
                warnings.simplefilter("ignore", UserWarning)
            yield device
    finally:
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    return rank() == 0


def machine_count():
    """Machines on which torchrun has started processes."""
    return int(os.environ.get("GROUP_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def torchrun_words():
    """The words of a command that start as many processes, with more than one of them.

    Returns:
        list of str, empty for a single process. With several machines the command has to be
        started on each.
    """
    if world_size() == 1:
        return []
    each = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if machine_count() == 1:
        return ["torchrun", f"--nproc_per_node={each}"]
    return ["torchrun", f"--nnodes={machine_count()}", f"--nproc_per_node={each}",
            "--rdzv_backend=c10d", f"--rdzv_endpoint={os.environ['MASTER_ADDR']}:{PORT}"]


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


def call_in_main(function):
    """The result of function(), which only the main process calls, in every process.

    It is for the files of a run: the other processes may be on a machine that does not have them.

    Args:
        function: () -> tensors and plain values.
    Raises:
        ValueError, OSError: in every process, what function() raises.
    """
    value, error = _outcome(function) if is_main() else (None, None)
    value, error = from_main((value, error))
    if error is not None:
        raise error
    return value


def call_in_all(function):
    """The result of function() in this process; if it fails in one process, all raise an error.

    Without this the other machines would only report a lost connection.

    Raises:
        ValueError, OSError: what function() raises here, or ValueError that names the machine.
    """
    value, error = _outcome(function)
    problems = [None] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(problems, error and f"on {socket.gethostname()}: {error}")
    if error is not None:
        raise error
    for problem in filter(None, problems):
        raise ValueError(problem)
    return value


def _outcome(function):
    """(result, None), or (None, error)."""
    try:
        return function(), None
    except (ValueError, OSError) as error:
        return None, error


def require_same(what, digest):
    """Refuse to go on if the processes do not have the same files.

    Args:
        what: words for these files in the message.
        digest: hash of what this process has read, or a list of hashes.
    Raises:
        ValueError: in every process, names the first process with others.
    """
    if not dist.is_initialized():
        return
    digests = [None] * world_size()
    dist.all_gather_object(digests, digest)
    for number, other in enumerate(digests):
        if other != digests[0]:
            raise ValueError(f"{what} of process {number} and of process 0 differ: copy the same "
                             "files to every machine")


@contextmanager
def one_first():
    """Context that one process runs before the others, so that only one downloads what all need.

    First the main process, then one process of each other machine, which may have a disk of its
    own, then all others.
    """
    if not dist.is_initialized():
        yield
        return
    turn = 0 if is_main() else 1 if int(os.environ.get("LOCAL_RANK", 1)) == 0 else 2
    for _ in range(turn):
        dist.barrier()
    yield
    for _ in range(turn, 2):
        dist.barrier()


def wrap(model, device):
    """The model; with several processes inside a DistributedDataParallel."""
    if not dist.is_initialized():
        return model
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None)


def unwrap(model):
    """The model without the DistributedDataParallel that wrap() may have put around it."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def choose_device(name):
    """torch.device that `--device` means; see device_name() for the names and errors."""
    return torch.device(device_name(name))
