"""A folder that only one process at a time may write to."""

import os
import socket
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from utils.files import named_full_disk, remove_leftovers


@contextmanager
def only_writer(folder, way_out):
    """Hold a folder for as long as the context lasts; an empty one is removed afterwards.

    What killed processes have left of files.replaced is removed at the start.

    The operating system releases the lock when the process ends in any way, so that a killed
    process does not block the next one.

    Args:
        folder: created if missing.
        way_out: what to do if another process holds the folder, for the message.
    Raises:
        ValueError: another process holds the folder; names the process.
    """
    folder = Path(folder)
    path, owner = folder / ".lock", folder / ".lock.owner"
    lock = FileLock(path, timeout=0)
    try:
        with named_full_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout:
        with suppress(OSError):
            way_out = f"{owner.read_text(encoding='utf-8')}; {way_out}"
        raise ValueError(f"another process writes to '{folder}': {way_out}") from None
    try:
        remove_leftovers(folder)
        with named_full_disk(folder):
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}, since "
                             f"{datetime.now():%Y-%m-%d %H:%M}", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        with suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
        lock.release()
        with suppress(OSError):  # not empty
            folder.rmdir()
