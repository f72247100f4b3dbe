"""Checkpoints: tensors and plain Python values in one file, read without running any code.

    python -m checkpoint RUN/best.pth misc/model.pth              # the part that is released
    python -m checkpoint RUN_1/best.pth RUN_2/best.pth mean.pth   # the mean of their weights

What one holds (a released one has the first four and `temperature`, as far as they are known):

    version          of this format
    cfg              text, the config as YAML
    model            {name: tensor}, of the unwrapped network; with TRAIN.EMA_DECAY the averaged one
    commit, epochs_done, best {metric, value, epoch}, metrics {name: value of the last validation},
    datasets [name]  what trained it, how far, and how good it was
    temperature      of the calibration; absent before `test.py --calibrate`
    run_name, protocol, best_ca, device, amp, faces (hash of the training list)
                     which run it is, so that no other is continued with it
    progress         of the epoch under way (engine.EpochProgress), None between two
    optimizer, scheduler, scaler, ema, random_state
                     engine.Trainer's state
"""

import argparse
import pickle
import subprocess
from pathlib import Path

import torch

from defaults import age_bins, override_cfg, parse_cfg
from files import file_sha256, replaced

VERSION = 1
REQUIRED = ("version", "cfg", "model")
RELEASED = ("cfg", "commit", "epochs_done", "best", "metrics", "datasets", "temperature")


def save_checkpoint(path, checkpoint):
    """Write a checkpoint under a temporary name, then move it into place.

    Args:
        path: target file; its folder exists.
        checkpoint: dict, see above, without `version`.
    """
    with replaced(path) as temporary, temporary.open("wb") as file:
        # Into an open file: given a name, torch writes that into the file as well.
        torch.save({"version": VERSION, **checkpoint}, file)


def load_checkpoint(path):
    """Read a checkpoint of this project.

    Args:
        path: file written by save_checkpoint.
    Returns:
        dict, tensors on the CPU.
    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a truncated one, one that would run code when
            unpickled, or a newer version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint '{path}' not found; train.py writes best.pth and "
                                "last.pth into its --checkpoint folder")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"checkpoint '{path}' refused: not a file of plain tensors and values, "
                         "so loading it could run code; use one written by train.py") from error
    except (RuntimeError, EOFError, LookupError, ValueError) as error:
        raise ValueError(f"'{path}' is not a checkpoint, or is truncated; use a .pth file "
                         "written by train.py") from error
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in REQUIRED):
        raise ValueError(f"'{path}' is not a checkpoint of this project (it lacks one of "
                         f"{', '.join(REQUIRED)}); use a .pth file written by train.py")
    if checkpoint["version"] > VERSION:
        raise ValueError(f"checkpoint '{path}' has version {checkpoint['version']}, this code "
                         f"reads up to {VERSION}; update the code")
    return checkpoint


def release_checkpoint(sources, target):
    """Write the part of a checkpoint that using it needs: half-precision weights, no optimiser.

    Of several it is the mean of their weights, with the config of the first (model soups, Wortsman
    et al., ICML 2022): of runs that start from the same weights, often better than each.

    Args:
        sources: checkpoints of training runs, one or more.
        target: file to write.
    Returns:
        sha256 of the target, 64 hexadecimal digits.
    Raises:
        ValueError: two of them are not of the same network.
    """
    checkpoints = [load_checkpoint(source) for source in sources]
    first = checkpoints[0]
    for source, other in zip(sources[1:], checkpoints[1:], strict=True):
        if _network(other) != _network(first):
            raise ValueError(f"'{source}' is of another network than '{sources[0]}'; the mean is "
                             "of runs of one architecture, input and range of ages")
    of_all = RELEASED if len(checkpoints) == 1 else ("cfg", "commit", "datasets")
    kept = {key: first[key] for key in of_all if key in first}
    kept["model"] = {name: _halved(_mean([one["model"][name] for one in checkpoints]))
                     for name in first["model"]}
    cfg = parse_cfg(first["cfg"])
    if cfg.DATA.EXCLUDE:  # a file of the machine it was trained on
        kept["cfg"] = override_cfg(cfg, ["DATA.EXCLUDE", ""], "DATA.EXCLUDE").dump()
    save_checkpoint(target, kept)
    return file_sha256(target)


def _network(checkpoint):
    """What two checkpoints share whose weights mean the same."""
    cfg = parse_cfg(checkpoint["cfg"])
    return (cfg.MODEL.ARCH, cfg.MODEL.IMG_SIZE, cfg.DATA.MARGIN, age_bins(cfg),
            {name: values.shape for name, values in checkpoint["model"].items()})


def _mean(tensors):
    """The mean of floats, in double precision; of counters the first."""
    if len(tensors) == 1 or not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0)


def _halved(values):
    """Floats in half precision, but for a tensor that has some beyond its range."""
    if not values.is_floating_point():
        return values
    half = values.half()
    return half if half.isfinite().all() else values.float()


def current_commit():
    """Short hash of the code's git commit, '+' appended where files differ; else 'unknown'."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, check=True, text=True,
                              capture_output=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain",
                                                                 "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _main():
    parser = argparse.ArgumentParser(description="Write the part of a checkpoint that is released.")
    parser.add_argument("sources", nargs="+", metavar="source", help="checkpoint of a training "
                        "run; of several, started from the same one, the mean of their weights")
    parser.add_argument("target", help="file to write")
    args = parser.parse_args()
    print(f"{args.target}: sha256 {release_checkpoint(args.sources, args.target)}")


if __name__ == "__main__":
    from cli import run_main
    run_main(_main)
