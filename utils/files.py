"""Files that are written whole or not at all, their checksums, folders that can be written to."""

import hashlib
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

CHUNK = 1 << 18  # bytes read at once


@contextmanager
def replaced(path):
    """Yield the name of a temporary file beside path, which takes its place at the end.

    After an error, or an interruption, path is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid4().hex}.tmp")  # path's name may have the longest length
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path, flag):
    """Refuse early a folder that cannot be made or written to, without making it.

    Raises:
        OSError: see writable_folder.
    """
    place = Path(path)
    while not (place.exists() or place.is_symlink() or place == place.parent):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{flag} '{path}': '{place}' is no folder; name another")
    if not os.access(place, os.W_OK):
        raise PermissionError(f"folder '{path}' cannot be written to; choose another one with "
                              f"{flag}")


def writable_folder(path, flag="--list_dir"):
    """The folder, created where it is missing.

    Raises:
        OSError: it is a file, or cannot be written to; names the flag that chooses another.
    """
    path = Path(path)
    if path.is_file():
        raise NotADirectoryError(f"{flag} '{path}' is a file; name a folder")
    probe = path / ".writable"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another process's probe has the same name
    except OSError as error:
        raise OSError(f"folder '{path}' cannot be written to ({error.strerror}); choose another "
                      f"one with {flag}") from error
    return path


def cache_dir():
    """The user's cache of models and crops: age-estimation-ldl in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "age-estimation-ldl"


def file_sha256(path):
    """Checksum of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_current(target, source):
    """Whether `target` exists and is not older than `source`, the file it is made from."""
    return target.is_file() and target.stat().st_mtime >= source.stat().st_mtime


def files_below(folder):
    """Yield the paths of all files in a folder and below it, in no particular order.

    Links to folders are followed. Every folder is visited once, under its own path if that is
    below `folder`, so a link to a folder above is no endless loop.
    """
    folders, links, visited = [Path(folder)], [], set()
    while folders:
        place = folders.pop()
        identity = place.stat().st_dev, place.stat().st_ino
        if identity not in visited:
            visited.add(identity)
            for path in _entries(place):
                if path.is_dir():
                    (links if path.is_symlink() else folders).append(path)
                elif path.is_file():
                    yield path
        if not folders:
            folders, links = links, []


def _entries(folder):
    try:
        return sorted(folder.iterdir())
    except PermissionError:
        warnings.warn(f"folder '{folder}' cannot be read and is left out", stacklevel=2)
        return []
