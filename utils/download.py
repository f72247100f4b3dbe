"""Where a model comes from: the repository, a file, or a verified download kept in a cache."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import yaml

from utils.files import cache_dir

MISC = Path(__file__).parents[1] / "misc"
REGISTRY = MISC / "models.yaml"
DEFAULT = "default"
MODEL_ENDINGS = (".pth", ".onnx")
MAX_NAMED = 3  # models of a folder in an error
TIMEOUT_S = 30  # longest wait for the next byte from a server
LFS_POINTER = b"version https://git-lfs.github.com/spec"
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")  # how they start, in lower case


def find_model(source=None, prefer_onnx=False):
    """The file of a model.

    Args:
        source: None for the model in misc/, a path, a name from misc/models.yaml, or an https
            URL that ends in #sha256=HEX.
        prefer_onnx: take the .onnx file of a name, if it has one.
    Returns:
        Path of a file. A file from the network has the right sha256.
    Raises:
        FileNotFoundError: there is no such file or name.
        ValueError: a URL that is not https, or that has no sha256 or a wrong one; a source of
            another type.
        OSError: the download fails, or the path is a folder.
    """
    if not isinstance(source, (str, os.PathLike, type(None))):
        raise ValueError("expected a model as a path, a name or an https URL, got "
                         f"{type(source).__name__}")
    if source is not None and Path(source).is_file():
        return Path(source)
    if "://" in str(source):
        url, fragment = urldefrag(str(source))
        sha256 = fragment.removeprefix("sha256=").lower()
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"'{source}' has no checksum; end the URL in #sha256= and the 64 "
                             "hexadecimal digits that its publisher states")
        return fetch(url, sha256, cache_dir())
    return _registered(DEFAULT if source is None else str(source), prefer_onnx)


def learned_lists(path):
    """The lists that a model of misc/ was trained on.

    Args:
        path: file of a model, in misc/ or elsewhere.
    Returns:
        {data set: [split, ...]}; empty for any other model.
    """
    for entry in _registry().values():
        if "file" in entry and Path(path).resolve() == (MISC / entry["file"]).resolve():
            return entry.get("learned", {})
    return {}


def _registry():
    return yaml.safe_load(REGISTRY.read_text(encoding="utf-8")) or {}


def _registered(name, prefer_onnx):
    models = _registry()
    if name not in models:
        refuse_folder(name)
        if name.endswith(MODEL_ENDINGS) or Path(name).name != name:
            raise FileNotFoundError(f"no file '{name}'; give the path of a model (.pth or .onnx), "
                                    f"or one of the names {sorted(models)}")
        raise FileNotFoundError(f"model '{name}' not found; pass a .pth or .onnx file, an https "
                                "URL ending in #sha256=HEX, or one of the names "
                                f"{sorted(models)}")
    entry = models[name]
    if "url" in entry:
        return fetch(entry["url"], entry["sha256"], cache_dir())
    names = [entry.get("onnx"), entry.get("file")] if prefer_onnx else [entry.get("file")]
    paths = [MISC / file for file in names if file]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no model in {paths[0]}; train one with train.py and pass it "
                                "with --resume")
    return found


def fetch(url, sha256, folder):
    """Download a file once; the next call finds it.

    Args:
        url: https address.
        sha256: 64 hexadecimal digits, lower case.
        folder: where the file is kept; created if it is missing.
    Returns:
        Path of the file. It appears only when it is whole and its checksum is right.
    Raises:
        ValueError: the address is not https, or the file has another checksum.
        OSError: the server cannot be reached, or does not deliver the file.
    """
    if urlsplit(url).scheme != "https":
        raise ValueError(f"'{url}': models are downloaded over https only")
    import pooch  # here, since it takes a while and most runs download nothing
    pooch.get_logger().setLevel("WARNING")
    name = Path(unquote(urlsplit(url).path)).name or "model.pth"
    try:
        return Path(pooch.retrieve(
            url, f"sha256:{sha256}", f"{sha256[:12]}-{name}", folder,
            downloader=pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_S)))
    except ValueError as error:
        raise ValueError(f"'{url}' does not have sha256 {sha256}; the file was deleted, check the "
                         "address and the checksum") from error
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OSError(f"cannot download '{url}': {reason}; check the address and the connection, "
                      "or fetch the file elsewhere and pass its path") from error


def refuse_folder(path):
    """Refuse a folder in the place of a model, and name the models in it, best.pth first.

    Raises:
        IsADirectoryError: the path is a folder.
    """
    if Path(path).is_dir():
        files = sorted((file for file in Path(path).iterdir() if file.suffix in MODEL_ENDINGS),
                       key=lambda file: (file.name != "best.pth", file.name))
        raise IsADirectoryError(f"'{path}' is a folder; " + (
            f"name a file in it: {', '.join(file.name for file in files[:MAX_NAMED])}" if files
            else f"name a model's file; it holds no {' or '.join(MODEL_ENDINGS)} file"))


def refuse_failed_download(path):
    """Refuse what a failed download leaves in the place of a model.

    Raises:
        ValueError: the file is a pointer of Git LFS, or a web page.
    """
    with Path(path).open("rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith(LFS_POINTER):
        raise ValueError(f"'{path}' is a pointer of Git LFS, not the model itself; fetch the file "
                         "with: git lfs pull")
    if start.startswith(WEB_PAGES):
        raise ValueError(f"'{path}' is a web page, not a model; download the file itself, not the "
                         "page that shows it")
