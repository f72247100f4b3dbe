"""Who may write: to a folder one process, or those that share its work; to the cache one maker."""

import errno
import os
import socket
import warnings
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from utils.files import named_full_disk, writable_folder

SHARER = ".lock-"  # begins the name of the file that a sharer locks
FOREVER = -1  # seconds, for filelock
MAX_ENTRY_SECONDS = 10  # sharers that start at the same time enter one after the other
MAX_ENTRY_TRIES = 100  # a process that ends removes an empty folder before the next has entered
MAX_EXIT_SECONDS = 0.2  # in which a process that is ending lets go of its lock


@contextmanager
def only_writer(folder, way_out):
    """Hold a folder for as long as the context lasts.

    The operating system releases the lock when the process ends in any way, so that a killed
    process does not block the next one.

    Args:
        folder: created if missing, and then removed afterwards if it is empty.
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
    with ExitStack() as held:
        with _entrance(folder, way_out, MAX_ENTRY_SECONDS):
            _refuse_sharers(folder, work, way_out)
            held.enter_context(_locked(folder / f"{SHARER}{work}-{uuid4().hex}"))
        yield


@contextmanager
def one_maker(path, work):
    """Hold the lock of a file of the cache, which one process makes; the others wait for it.

    Args:
        path: Path of the file, in the folder that --cache_dir names; created if missing.
        work: what the process that holds the lock does, for the warning of one that waits.
    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        writable_folder(path.parent, "--cache_dir")
    except OSError as error:
        raise OSError(f"{error}, or set DATA.CACHE False") from error
    lock = FileLock(path.with_suffix(".lock"))
    try:
        _acquire(lock, 0, " with --cache_dir")
    except Timeout:
        warnings.warn(f"another process {work}; waiting for it ({lock.lock_file})", stacklevel=3)
        _acquire(lock, FOREVER, " with --cache_dir")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def one_after_the_other(path):
    """Hold a file that several processes read and write anew; the others wait.

    A disk without file locks cannot make them wait.
    """
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(_locked(path.with_name(f".{path.name}.lock"), FOREVER))
        yield


@contextmanager
def _entrance(folder, way_out, seconds=MAX_EXIT_SECONDS):
    """Hold the lock that a process needs to enter the folder. A lone writer keeps it.

    The folder is created if it is missing, and then removed afterwards if it is empty.
    """
    is_new = not folder.is_dir()
    try:
        with ExitStack() as held:
            try:
                held.enter_context(_locked(folder / ".lock", seconds))
            except Timeout:
                with suppress(OSError):
                    way_out = f"{(folder / '.lock.owner').read_text(encoding='utf-8')}; {way_out}"
                raise ValueError(f"another process writes to '{folder}': {way_out}") from None
            yield
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def _locked(path, seconds=0):
    """Hold a lock file, which is removed in the end, so that the user's folder stays clean.

    It is removed while it is held. filelock, from version 3.24 on, lets no process hold a file
    whose name is gone; a process that had opened it before makes a new one. filelock does not
    remove it itself on all systems, and does not say who holds it: .lock.owner does.

    Raises:
        filelock.Timeout: another process has held it for so many seconds.
    """
    lock = FileLock(path)
    with named_full_disk(path.parent):
        for tries_left in reversed(range(MAX_ENTRY_TRIES)):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _acquire(lock, seconds)
                break
            except (FileNotFoundError, FileExistsError):  # the folder vanished in between
                if not tries_left:
                    raise
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
        lock.release()


def _acquire(lock, seconds, how=""):
    """Acquire a FileLock in so many seconds, with the folder and the way out in its errors."""
    try:
        lock.acquire(timeout=seconds)
    except OSError as error:
        folder = Path(lock.lock_file).parent
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise OSError(f"folder '{folder}' is on a disk that has no file locks "
                          f"({error.strerror}); choose one on a local disk{how}") from error
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise OSError(f"folder '{folder}' cannot be written to ({error.strerror}); choose another "
                      f"one{how}") from error


def _refuse_sharers(folder, work, way_out):
    """Refuse to enter while a process shares other work there; forget those that were killed."""
    for path in folder.glob(f"{SHARER}*"):
        shares_work = work is not None and path.name.startswith(f"{SHARER}{work}-")
        try:
            with _locked(path, 0 if shares_work else MAX_EXIT_SECONDS):
                pass
        except Timeout:
            if not shares_work:
                raise ValueError(f"processes that share their work write to '{folder}': "
                                 f"{way_out}") from None


def _this_process():
    return (f"process {os.getpid()} on {socket.gethostname()}, since "
            f"{datetime.now():%Y-%m-%d %H:%M}")
