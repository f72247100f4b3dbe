"""Write the part of a checkpoint that using the model needs, to publish it.

    python -m training.release RUN/best.pth misc/model.pth              # one run
    python -m training.release RUN_1/best.pth RUN_2/best.pth mean.pth   # mean of the weights
    python -m training.release RUN/best.pth model.pth --age_power 0.2  # favour common ages
"""

import argparse
import math
import warnings
from pathlib import Path

import torch

from checkpoint import load_checkpoint, save_checkpoint
from defaults import age_bins, override_cfg, parse_cfg
from losses import ORDINAL
from utils.cli import HelpFormatter, run_main
from utils.files import file_sha256
from utils.locks import only_writer
from utils.precision import MIN_HALVED

RELEASED = ("cfg", "commit", "epochs_done", "best", "metrics", "datasets", "age_share",
            "temperature")
OF_ONE_RUN = ("epochs_done", "best", "metrics", "temperature")  # does not hold for changed weights
MIN_LIKENESS = 0.3  # see _likeness; below, two runs have no common start
MIN_SHARE = 0.15  # of the commonest age's share: how rare an age is taken to be, at most


def release_checkpoint(sources, target, age_power=0.0):
    """Write the part of a checkpoint that using it needs: half-precision weights, no optimiser.

    The mean of several runs that started from the same weights is often better than each of them
    (model soups, Wortsman et al., ICML 2022). It gets the config of the first, and the data sets
    and commits of all.

    Args:
        sources: checkpoints of training runs, one or more.
        target: file to write.
        age_power: how much common ages are favoured, see weigh_ages_by_share.
    Returns:
        sha256 of the target, 64 hexadecimal digits.
    Raises:
        ValueError: the checkpoints are not of the same network, age_power does not suit them, the
            target is of a training run, or another process writes to its folder.
    """
    checkpoints = [load_checkpoint(source) for source in sources]
    first = checkpoints[0]
    for source, other in zip(sources[1:], checkpoints[1:], strict=True):
        if _network(other) != _network(first):
            raise ValueError(f"'{source}' is of another network than '{sources[0]}'; the mean is "
                             "of runs of one architecture, input and range of ages")
        if _likeness(other["model"], first["model"]) < MIN_LIKENESS:
            warnings.warn(f"'{source}' and '{sources[0]}' did not start from the same weights, so "
                          "the mean of theirs is no network of either; measure it", stacklevel=2)
    kept = {key: first[key] for key in RELEASED if key in first}
    kept["model"] = {name: _mean([one["model"][name] for one in checkpoints])
                     for name in first["model"]}
    shares = [one.get("age_share") for one in checkpoints]
    kept["age_share"] = None if any(share is None for share in shares) else _mean(shares)
    if any("datasets" not in one for one in checkpoints):
        kept.pop("datasets", None)  # the terms of use depend on all of them
    else:
        kept["datasets"] = _once(name for one in checkpoints for name in one["datasets"])
    kept["commit"] = ", ".join(_once(commit for one in checkpoints for commit in
                                     one.get("commit", "unknown").split(", ")))
    if age_power:
        weigh_ages_by_share(kept, age_power, sources[0])
    if age_power or len(checkpoints) > 1:
        kept = {key: value for key, value in kept.items() if key not in OF_ONE_RUN}
    kept["model"] = {name: _halved(values) for name, values in kept["model"].items()}
    kept["cfg"] = _without_folders(parse_cfg(kept["cfg"])).dump()
    with only_writer(Path(target).parent, "write to another folder"):
        _refuse_training_run(target)
        save_checkpoint(target, kept)
        return file_sha256(target)


def weigh_ages_by_share(checkpoint, power, path):
    """Multiply the probabilities of a trained network by the ages' share in its training ** power.

    The logit adjustment of Menon et al. ("Long-tail learning via logit adjustment", ICLR 2021) the
    other way round, as a change of the last layer's bias: LOSS.RARE_AGE_POWER in the training moves
    estimates towards rare ages, and this moves some of them back. It begins at the commonest age:
    below it people would be estimated older, and more minors pass for adults. It ends where ages
    are rarer than MIN_SHARE: few faces tell how rare the oldest are.

    Args:
        checkpoint: dict; its `model` is replaced.
        power: finite; below 0 it favours the rare ages.
        path: file of the checkpoint, for messages.
    Raises:
        ValueError: the power is not finite, the checkpoint does not have the shares of ages, or
            the network has binary outputs.
    """
    cfg = parse_cfg(checkpoint["cfg"])
    if not math.isfinite(power):
        raise ValueError(f"--age_power must be a finite number, got {power}")
    if cfg.LOSS.NAME in ORDINAL:
        raise ValueError(f"--age_power: '{path}' has binary outputs (LOSS.NAME {cfg.LOSS.NAME}); "
                         "train again with another LOSS.RARE_AGE_POWER")
    if checkpoint.get("age_share") is None:
        raise ValueError(f"--age_power: '{path}' does not say which ages it was trained on, since "
                         "an earlier version wrote it; train another epoch (train.py --resume)")
    share = checkpoint["age_share"]
    rarity = (share / share.max()).clamp(min=MIN_SHARE)  # (K,), 1 at the commonest age
    rarity[:share.argmax()] = 1
    bias = checkpoint["model"]["head.bias"] + power * rarity.log()
    checkpoint["model"] = checkpoint["model"] | {"head.bias": bias}


def _refuse_training_run(target):
    """Refuse to write over what a training needs to go on: two names may lack the third."""
    if Path(target).is_file() and "optimizer" in load_checkpoint(target):
        raise ValueError(f"'{target}' is of a training run and would be overwritten; name the file "
                         "to write after the sources")


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


def _likeness(weights, others):
    """Median cosine similarity of the matrices and kernels of two networks, -1..1; 1 without any.

    Between runs from the same weights it stays high, between any others it is about 0.
    """
    pairs = [(values.double().flatten(), others[name].double().flatten())
             for name, values in weights.items() if values.ndim > 1]
    return float(torch.stack([torch.cosine_similarity(*pair, dim=0) for pair in pairs]).median()
                 ) if pairs else 1.0


def _once(names):
    """The names in their order, each once."""
    return list(dict.fromkeys(names))


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
    parser.add_argument("--age_power", type=float, default=0.0, metavar="POWER",
                        help="multiply the probabilities of the ages above the commonest one by "
                        "their share in the training to this power: common ages gain, rare ones "
                        "lose; calibrate again")
    args = parser.parse_args()
    digest = release_checkpoint(args.sources, args.target, args.age_power)
    print(f"{args.target}: sha256 {digest}")
    return 0


if __name__ == "__main__":
    run_main(main)
