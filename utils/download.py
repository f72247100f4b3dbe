"""Where a model comes from: the repository, a file, or a verified download kept in a cache."""

import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import yaml
from filelock import FileLock
from tqdm import tqdm

from utils.files import CHUNK, cache_dir, file_sha256

MISC = Path(__file__).parents[1] / "misc"
SHIPPED_MODEL = MISC / "model.pth"
REGISTRY = MISC / "models.yaml"
TIMEOUT_S = 30  # without a byte from the server
ATTEMPTS = 5  # in a row that bring nothing new


def find_model(source=None):
    """The file of a model.

    Args:
        source: None for the model in misc/, a path, a name from misc/models.yaml, or an https
            URL that ends in #sha256=HEX.
    Returns:
        Path of a file; what came from the network has the right sha256.
    Raises:
        FileNotFoundError: no such file or name, or the repository holds no model yet.
        ValueError: a URL that is not https, or that has no or a wrong sha256.
        OSError: the download fails.
    """
    if source is None:
        if not SHIPPED_MODEL.is_file():
            raise FileNotFoundError(f"no model in {SHIPPED_MODEL}; train one with train.py and "
                                    "pass it with --resume")
        return SHIPPED_MODEL
    if Path(source).is_file():
        return Path(source)
    if "://" in str(source):
        url, fragment = urldefrag(str(source))
        sha256 = fragment.removeprefix("sha256=").lower()
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"'{source}' names no checksum; end the URL in #sha256= and the "
                             "64 hexadecimal digits that its publisher states")
        return fetch(url, sha256, cache_dir())
    return _registered(str(source))


def fetch(url, sha256, folder):
    """Download a file once; the next call finds it.

    An interrupted download leaves NAME.part, from which the next one goes on. A file appears
    under its own name only when it is whole and its checksum right.

    Args:
        url: https address.
        sha256: 64 hexadecimal digits, lower case.
        folder: where the file is kept, created where needed.
    Returns:
        Path of the file.
    Raises:
        ValueError: the address is not https, or the file has another checksum (it is deleted).
        OSError: the server cannot be reached, refuses, or breaks off again and again.
    """
    if urlsplit(url).scheme != "https":
        raise ValueError(f"'{url}': models are downloaded over https only")
    name = Path(unquote(urlsplit(url).path)).name or "model.pth"
    target = folder / f"{sha256[:12]}-{name}"
    if not _is_there(target, sha256):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):  # of several, one downloads
            if not _is_there(target, sha256):
                _fetch_to(target, url, sha256)
    return target


def _is_there(path, sha256):
    return path.is_file() and file_sha256(path) == sha256


def _fetch_to(target, url, sha256):
    part = target.with_name(target.name + ".part")
    resumed = part.is_file()
    _download(url, part)
    found = file_sha256(part)
    if found != sha256 and resumed:  # the old part may be of another version: once more, whole
        part.unlink()
        _download(url, part)
        found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise ValueError(f"'{url}' has sha256 {found}, expected {sha256}; the file was deleted, "
                         "check the address and the checksum")
    part.replace(target)


def _registered(name):
    models = yaml.safe_load(REGISTRY.read_text(encoding="utf-8")) or {}
    if name not in models:
        raise FileNotFoundError(f"model '{name}' not found; pass a .pth file, an https URL ending "
                                f"in #sha256=HEX, or one of the names {sorted(models)}")
    if "file" in models[name]:
        return MISC / models[name]["file"]
    return fetch(models[name]["url"], models[name]["sha256"], cache_dir())


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only where it stays encrypted."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme != "https":
            raise ValueError(f"'{req.full_url}' redirects to '{newurl}', which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url, part):
    """Append to `part` until it is whole, going on where the connection breaks."""
    failures, most = 0, _size(part)
    while failures < ATTEMPTS:
        before = _size(part)
        try:
            if _download_rest(url, part):
                return
            problem = "the connection broke off"
        except urllib.error.HTTPError as error:
            raise OSError(f"cannot download '{url}': HTTP {error.code} {error.reason}; check the "
                          "address") from error
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", None) or error)
            if not before and not _size(part):
                failures = ATTEMPTS  # never reached: no use in insisting
        # Further than ever, since a server that cannot resume begins anew each time.
        failures = 0 if _size(part) > most else failures + 1
        most = max(most, _size(part))
    hint = ("run again to go on from there" if _size(part) else
            "check the connection, or fetch the file elsewhere and pass its path")
    raise OSError(f"cannot download '{url}': {problem} after {_size(part)} bytes; {hint}")


def _download_rest(url, part):
    """One request for what is missing; True when the file is whole by the server's count."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    opener = urllib.request.build_opener(_HttpsOnly)
    try:
        response = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # nothing is missing; the checksum tells whether that is so
        raise
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            have = 0  # the server sends the whole file again
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with part.open("ab" if have else "wb") as file, bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(part) >= total


def _size(path):
    return path.stat().st_size if path.is_file() else 0
