"""A folder that one process, or processes that share one piece of work, may write to."""

import os
import socket
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from utils.files import named_full_disk

SHARER = ".lock-"  # begins the name of the file that a sharer locks
MAX_ENTRY_SECONDS = 10  # sharers that start at the same time enter one after the other


@contextmanager
def only_writer(folder, way_out):
    """Hold a folder for as long as the context lasts; an empty one is removed afterwards.

    The operating system releases the lock when the process ends in any way, so that a killed
    process does not block the next one.

    Args:
        folder: created if missing.
        way_out: what to do if another process holds the folder, for the message.
    Raises:
        ValueError: another process holds the folder, alone or with others; names the process.
    """
    folder = Path(folder)
    owner = folder / ".lock.owner"
    with _entrance(folder, way_out):
        _refuse_sharers(folder, None, way_out)
        try:
            with named_full_disk(folder):
                owner.write_text(_this_process(), encoding="utf-8")
            yield
        finally:
            owner.unlink(missing_ok=True)


@contextmanager
def one_of_writers(folder, work, way_out):
    """Hold a folder together with the other processes that share the same work.

    Args:
        folder: created if missing.
        work: text that is equal in all processes that share the work, fit to be in a file name.
        way_out: as in only_writer().
    Raises:
        ValueError: a process that holds the folder alone, or one that does other work, is there.
    """
    folder = Path(folder)
    path = folder / f"{SHARER}{work}-{uuid4().hex}"
    lock = FileLock(path)
    with _entrance(folder, way_out, MAX_ENTRY_SECONDS):
        _refuse_sharers(folder, work, way_out)
        with named_full_disk(folder):
            lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
        lock.release()


@contextmanager
def _entrance(folder, way_out, timeout=0):
    """Hold the lock that a process needs to enter the folder. A lone writer keeps it.

    The folder is created if it is missing, and removed afterwards if it is empty.
    """
    path = folder / ".lock"
    lock = FileLock(path, timeout=timeout)
    try:
        with named_full_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout:
        with suppress(OSError):
            way_out = f"{(folder / '.lock.owner').read_text(encoding='utf-8')}; {way_out}"
        raise ValueError(f"another process writes to '{folder}': {way_out}") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
        lock.release()
        with suppress(OSError):  # not empty
            folder.rmdir()


def _refuse_sharers(folder, work, way_out):
    """Refuse to enter while a process shares other work there; forget those that were killed."""
    for path in folder.glob(f"{SHARER}*"):
        try:
            with FileLock(path, timeout=0), suppress(OSError):  # Windows keeps an open file
                path.unlink()
        except Timeout:
            if work is None or not path.name.startswith(f"{SHARER}{work}-"):
                raise ValueError(f"processes that share their work write to '{folder}': "
                                 f"{way_out}") from None


def _this_process():
    return (f"process {os.getpid()} on {socket.gethostname()}, since "
            f"{datetime.now():%Y-%m-%d %H:%M}")
