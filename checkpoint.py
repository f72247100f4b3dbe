"""Checkpoints: tensors and plain Python values in one file, read without running any code.

Keys of a checkpoint:

    version          of this format
    cfg              text, the config as YAML
    model            {name: tensor} of the unwrapped network; with TRAIN.EMA_DECAY the averaged one
    commit           of the code that trained it
    epochs_done, best {metric, value, epoch}, metrics {name: value of the last validation}
                     how long it was trained, and how good it is
    datasets [name]  what it was trained on; absent if a run of a mean does not have it
    age_share        (K,) share of each age among the training faces; absent before it was kept
    temperature      [T at the first age, T at the last] of the calibration, or one number for
                     both; absent before `test.py --calibrate`
    run_name, protocol, best_ca, device, amp, train_faces, valid_faces (hash of the faces and
    their ages; absent before they were kept, as are:),
    teachers [hash of each file of LOSS.TEACHER]
                     identify the run, so that no other one is continued with it
    progress         of the epoch under way (engine.EpochProgress), None between two epochs
    optimizer, scheduler, scaler, ema, random_state
                     state of engine.Trainer

training.release keeps the keys down to `temperature`; of changed weights, as a mean's, without
epochs_done, best, metrics and temperature.
"""

import math
import pickle
import zipfile
from pathlib import Path

import torch

from utils.download import refuse_failed_download, refuse_folder
from utils.files import replaced

FORMAT_VERSION = 2  # 2: two temperatures


def _is_positive(value):
    return isinstance(value, float) and 0 < value < math.inf


CHECKS = {  # of a value; None if the key is missing
    "version": lambda value: isinstance(value, int),
    "cfg": lambda value: isinstance(value, str),
    "model": lambda value: isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in value.items()),
    "age_share": lambda value: value is None or isinstance(value, torch.Tensor),
    "temperature": lambda value: value is None or _is_positive(value) or (
        isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_positive, value))),
}
STARTS = (b"PK", b"\x80")  # of an archive, as torch writes since 1.6, and of a pickle before
WRAPPED = "module."  # what DataParallel puts before the names of weights


def save_checkpoint(path, checkpoint):
    """Write a checkpoint under a temporary name, then move it into place.

    Args:
        path: target file; its folder exists.
        checkpoint: dict with the keys above; `version` becomes this format's.
    """
    with replaced(path) as temporary, temporary.open("wb") as file:
        try:
            # Into an open file: if torch gets a name, it writes the name into the file as well.
            torch.save({**checkpoint, "version": FORMAT_VERSION}, file)
        except RuntimeError as error:  # torch's word for a write that failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def temperature_of(checkpoint):
    """The calibration temperature of a checkpoint, one number or two; 1.0 if there is none."""
    return checkpoint.get("temperature") or 1.0


def load_checkpoint(path):
    """Read a checkpoint of this project.

    Args:
        path: file written by save_checkpoint.
    Returns:
        dict, tensors on the CPU.
    Raises:
        FileNotFoundError: no such file. IsADirectoryError: a folder.
        ValueError: the file is of another kind, truncated, of a newer version, or would run code
            when it is unpickled.
    """
    refuse_folder(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint '{path}' not found; train.py writes best.pth and "
                                "last.pth into its --checkpoint folder")
    refuse_failed_download(path)
    not_one = f"'{path}' is not a checkpoint, or is truncated; use a .pth file written by train.py"
    if Path(path).suffix.lower() == ".onnx":
        not_one = (f"'{path}' is an ONNX model, which only demo.py and predictor.py run; use a "
                   ".pth file written by train.py, or measure it with export.py --verify")
    with Path(path).open("rb") as file:
        if not file.read(2).startswith(STARTS):  # so it is not even unpickled
            raise ValueError(not_one)
    _check_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"checkpoint '{path}' refused: not a file of plain tensors and values, "
                         "so loading it could run code; use one written by train.py") from error
    except (RuntimeError, EOFError, LookupError, ValueError) as error:
        raise ValueError(not_one) from error
    values = checkpoint if isinstance(checkpoint, dict) else {}
    wrong = [key for key, is_right in CHECKS.items() if not is_right(values.get(key))]
    if wrong:
        raise ValueError(f"'{path}' is not a checkpoint of this project ({', '.join(wrong)} is "
                         "missing or of another kind); use a .pth file written by train.py")
    if checkpoint["version"] > FORMAT_VERSION:
        raise ValueError(f"checkpoint '{path}' has version {checkpoint['version']}, this code "
                         f"reads up to {FORMAT_VERSION}; update the code")
    weights = checkpoint["model"]
    if all(name.startswith(WRAPPED) for name in weights):
        checkpoint["model"] = {name.removeprefix(WRAPPED): tensor
                               for name, tensor in weights.items()}
    return checkpoint


def _check_archive(path):
    """Refuse a checkpoint whose bytes have changed, by the checksums that its archive has."""
    if not zipfile.is_zipfile(path):
        return  # torch.load says what it is
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # of many kinds, by the byte that has changed
        damaged = error
    if damaged:
        raise ValueError(f"checkpoint '{path}' is damaged ({damaged}): bytes have changed since "
                         "it was written; copy or download it again")
