"""Several independent processes share the work; RANK and WORLD_SIZE say which part is whose."""

import hashlib
import os


def process_share():
    """(number of this process, number of processes), from RANK and WORLD_SIZE.

    torchrun sets both, as do most job systems: `RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=8`,
    `RANK=$JOB_COMPLETION_INDEX WORLD_SIZE=8`. The processes never talk to each other.

    Raises:
        ValueError: one of the two is missing, or is not a number, or RANK is not below WORLD_SIZE.
    """
    texts = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    if texts == [None, None]:
        return 0, 1
    try:
        rank, count = (int(text or "") for text in texts)
    except ValueError:
        rank, count = 0, 0
    if not 0 <= rank < count:
        raise ValueError(f"RANK={texts[0]} WORLD_SIZE={texts[1]}: set both, RANK to 0, 1, ... in "
                         "each process, and WORLD_SIZE to the number of processes; or neither")
    return rank, count


def share_of(name, process_count):
    """Number of the process whose share a thing of this name is, the same on every machine.

    It depends on nothing else: a file more or less in one machine's copy moves no other file.
    """
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") % process_count
