"""Writing a file whole or not at all, checksums, folders that can be written to."""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

CHUNK = 1 << 18  # bytes read at once


@contextmanager
def replaced(path):
    """Yield the path of a temporary file; at the end it is renamed to path.

    An error or an interruption leaves path as it was.
    """
    path = Path(path)
    # Not made from the name of path, which may have the maximum length already.
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path, flag):
    """Check early that a folder can be made and written to, without making it.

    Args:
        path: folder; it need not exist.
        flag: the flag that names it, for the message.
    Raises:
        OSError: as writable_folder().
    """
    place = Path(path)
    while not (place.exists() or place.is_symlink() or place == place.parent):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{flag} '{path}': '{place}' is no folder; name another one")
    if not os.access(place, os.W_OK):
        raise PermissionError(f"folder '{path}' cannot be written to; choose another one with "
                              f"{flag}")


def writable_folder(path, flag="--list_dir"):
    """The folder as a Path; it is made if it is missing.

    Args:
        path: folder.
        flag: the flag that names it, for the message.
    Raises:
        OSError: the path is a file, or the folder cannot be written to.
    """
    path = Path(path)
    if path.is_file():
        raise NotADirectoryError(f"{flag} '{path}' is a file; name a folder")
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have deleted it
    except OSError as error:
        raise OSError(f"folder '{path}' cannot be written to ({error.strerror}); choose another "
                      f"one with {flag}") from error
    return path


def cache_dir():
    """Folder of cached models and crops: age-estimation-ldl in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "age-estimation-ldl"


def file_sha256(path):
    """The SHA-256 checksum of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_current(target, source):
    """Whether `target` exists and is not older than `source`, the file it is made from."""
    return target.is_file() and target.stat().st_mtime >= source.stat().st_mtime
