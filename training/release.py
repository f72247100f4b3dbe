"""Write the part of a checkpoint that using the model needs, to publish it.

    python -m training.release RUN/best.pth misc/model.pth              # one run
    python -m training.release RUN_1/best.pth RUN_2/best.pth mean.pth   # mean of the weights
"""

import argparse
from pathlib import Path

import torch

from checkpoint import load_checkpoint, save_checkpoint
from defaults import age_bins, override_cfg, parse_cfg
from utils.cli import HelpFormatter, run_main
from utils.files import file_sha256
from utils.locks import only_writer
from utils.precision import MIN_HALVED

RELEASED = ("cfg", "commit", "epochs_done", "best", "metrics", "datasets", "temperature")


def release_checkpoint(sources, target):
    """Write the part of a checkpoint that using it needs: half-precision weights, no optimiser.

    The mean of several runs that started from the same weights is often better than each of them
    (model soups, Wortsman et al., ICML 2022). It gets the config of the first.

    Args:
        sources: checkpoints of training runs, one or more.
        target: file to write.
    Returns:
        sha256 of the target, 64 hexadecimal digits.
    Raises:
        ValueError: the checkpoints are not of the same network, or another process writes to the
            folder of the target.
    """
    checkpoints = [load_checkpoint(source) for source in sources]
    first = checkpoints[0]
    for source, other in zip(sources[1:], checkpoints[1:], strict=True):
        if _network(other) != _network(first):
            raise ValueError(f"'{source}' is of another network than '{sources[0]}'; the mean is "
                             "of runs of one architecture, input and range of ages")
    keys = RELEASED if len(checkpoints) == 1 else ("cfg", "commit", "datasets")
    kept = {key: first[key] for key in keys if key in first}
    kept["model"] = {name: _halved(_mean([one["model"][name] for one in checkpoints]))
                     for name in first["model"]}
    kept["cfg"] = _without_folders(parse_cfg(first["cfg"])).dump()
    with only_writer(Path(target).parent, "write to another folder"):
        save_checkpoint(target, kept)
        return file_sha256(target)


def _without_folders(cfg):
    """The config without what names a place on the machine that trained the model."""
    start = cfg.MODEL.PRETRAINED
    if not start.startswith("https:"):
        start = Path(start).name
    opts = ["DATA.EXCLUDE", "", "MODEL.PRETRAINED", start,
            "LOSS.TEACHER", Path(cfg.LOSS.TEACHER).name]
    return override_cfg(cfg, opts, *opts[::2])


def _network(checkpoint):
    """What must be equal in two checkpoints, so that the mean of their weights makes sense."""
    cfg = parse_cfg(checkpoint["cfg"])
    return (cfg.MODEL.ARCH, cfg.MODEL.IMG_SIZE, cfg.DATA.MARGIN, age_bins(cfg),
            {name: values.shape for name, values in checkpoint["model"].items()})


def _mean(tensors):
    """The mean of float tensors, in double precision; of integer tensors, the first."""
    if len(tensors) == 1 or not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(dim=0)


def _halved(values):
    """A large float tensor in half precision, unless it has values beyond the range of that."""
    if not values.is_floating_point():
        return values
    if values.numel() < MIN_HALVED:
        return values.float()
    half = values.half()
    return half if half.isfinite().all() else values.float()


def main():
    parser = argparse.ArgumentParser(prog="python -m training.release", description=__doc__,
                                     formatter_class=HelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="source", help="checkpoint of a training "
                        "run; several that started from the same one give the mean of their "
                        "weights")
    parser.add_argument("target", help="file to write")
    args = parser.parse_args()
    print(f"{args.target}: sha256 {release_checkpoint(args.sources, args.target)}")
    return 0


if __name__ == "__main__":
    run_main(main)
