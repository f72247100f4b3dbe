"""Writing a file whole or not at all, checksums, folders that can be written to."""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

READ_BYTES = 1 << 18  # at once
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.tmp")


@contextmanager
def replaced(path):
    """Yield the path of a temporary file; at the end it is renamed to path.

    An error, an interruption or a power cut leaves path as it was. If path is a link, the file that
    it leads to is replaced, and the link stays. As with open(), that file must not be read-only.
    """
    path = Path(path)
    if path.is_symlink():
        path = Path(os.path.realpath(path))
        if path.is_file() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only, and a link leads to it",
                                  str(path))
    # Not made from the name of path, which may have the maximum length already.
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        with named_full_disk(path):
            yield temporary
            write_to_disk(temporary)
            temporary.replace(path)
    except OSError as error:
        if str(error.filename) == str(temporary):  # a name that the user never gave
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_to_disk(path):
    """Wait until a file is on the disk, so that a power cut cannot leave it empty once renamed."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def remove_leftovers(folder):
    """Remove the temporary files of replaced() that killed processes have left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        if TEMPORARY_NAME.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


@contextmanager
def named_full_disk(path):
    """Turn the error of a full disk into one that names the path and the free space.

    Other errors pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise
        raise _full_disk(path, free_space(path)) from error


def require_space(path, count):
    """Refuse to write to a disk that has less than `count` bytes free.

    Raises:
        OSError: names the path and the free space.
    """
    free = free_space(path)
    if free < count:
        raise _full_disk(path, free)


def free_space(path):
    """Free bytes on the disk of a file or folder, which may not exist yet."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _full_disk(path, free):
    return OSError(f"no space left to write '{path}': {size_text(free)} free there; make room and "
                   "start again")


def size_text(count):
    """A number of bytes in the unit that suits it, such as 1.2 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def expand_glob(word):
    """Sorted paths that a glob matches; may be empty.

    Any other word, and a glob that is also the name of a file or folder, stands for itself, whether
    it exists or not.
    """
    if Path(word).exists() or not glob.has_magic(word):
        return [word]
    return sorted(glob.glob(word))  # noqa: PTH207 (Path.glob takes no absolute pattern)


def refuse_overwriting(written, read, flag):
    """Refuse to write over a file that is also read.

    Args:
        written: paths that are about to be written.
        read: paths of the files that are read.
        flag: chooses where `written` lies, for the message.
    Raises:
        ValueError: names the first such file.
    """
    inputs = {_identity(path) for path in read if Path(path).exists()}
    for path in written:
        if Path(path).exists() and _identity(path) in inputs:
            raise ValueError(f"'{path}' would be overwritten; choose another {flag}")


def _identity(path):
    """Equal for two names of one file, also through a link."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino


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
        raise NotADirectoryError(f"{flag} '{path}': '{place}' is not a folder; name another one")
    if not os.access(place, os.W_OK):
        raise PermissionError(f"folder '{path}' cannot be written to; choose another one with "
                              f"{flag}")


def writable_folder(path, flag):
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
    probe = path / f".{uuid4().hex}.tmp"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have deleted it
    except OSError as error:
        raise OSError(f"folder '{path}' cannot be written to ({error.strerror}); choose another "
                      f"one with {flag}") from error
    return path


def cache_dir():
    """Folder of cached models and crops: age-estimation-ldl in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        OSError: the user has no home folder that is known, as some users of containers.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError("no home folder is known for the cache; name a folder in the environment "
                      "variable XDG_CACHE_HOME") from error
    return folder / "age-estimation-ldl"


def file_sha256(path):
    """The SHA-256 checksum of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def source_record(target):
    """Path of the record, in JSON, of what `target` was made from: `sha256` of its source."""
    return target.with_suffix(".source.json")


def read_source_record(target):
    """The record beside `target` as a dict; empty if there is none that can be read."""
    try:
        return json.loads(source_record(target).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def is_current(target, source):
    """Whether `target` exists and was made from `source` as it is now.

    Its record tells, see source_record(). Without one `target` must not be older than `source`; but
    a file that is moved or copied into its place may keep an older time.
    """
    if not target.is_file():
        return False
    if checksum := read_source_record(target).get("sha256"):
        return checksum == file_sha256(source)
    return target.stat().st_mtime >= source.stat().st_mtime


def files_below(folder, leave_out=None):
    """Yield the paths of all regular files in a folder and below it, folder by folder.

    Links to folders are followed. Every folder is visited once, under its own path if that is
    below `folder`, so a link to a folder above is no endless loop. What is neither a file nor a
    folder, such as a pipe, is left out.

    Args:
        folder: existing folder.
        leave_out: folder that is not visited, unless it is `folder` itself.
    """
    folders, links, visited = [Path(folder)], [], set()
    if leave_out is not None and Path(leave_out).exists():
        visited = {_identity(leave_out)} - {_identity(folder)}
    while folders:
        place = folders.pop()
        if (identity := _identity(place)) not in visited:
            visited.add(identity)
            deeper, linked, files = entries(place)
            folders += deeper
            links += linked
            yield from files
        if not folders:
            folders, links = links, []


def entries(folder):
    """(folders, links to folders, regular files) in a folder: lists of Path, each sorted.

    A folder that cannot be read ends in a warning and empty lists.
    """
    folders, links, files = [], [], []
    try:
        with os.scandir(folder) as found:
            for entry in sorted(found, key=lambda entry: entry.name):
                with suppress(OSError):  # a link to itself, or to where nobody may look
                    if entry.is_dir():
                        (links if entry.is_symlink() else folders).append(Path(entry.path))
                    elif entry.is_file():
                        files.append(Path(entry.path))
    except PermissionError:
        warnings.warn(f"folder '{folder}' cannot be read and is left out", stacklevel=2)
        return [], [], []
    return folders, links, files
