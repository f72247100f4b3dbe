"""Write the part of a checkpoint that using the model needs, to publish it.

    python -m training.release RUN/best.pth misc/model.pth              # one run
    python -m training.release RUN_1/best.pth RUN_2/best.pth mean.pth   # mean of the weights
    python -m training.release RUN/best.pth model.pth --rare_age_power 0.1  # rare ages weigh less
"""

import argparse
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
MIN_SHARE = 0.15  # of the commonest age's share: how rare an age is taken to be, at most


def release_checkpoint(sources, target, rare_age_power=None):
    """Write the part of a checkpoint that using it needs: half-precision weights, no optimiser.

    The mean of several runs that started from the same weights is often better than each of them
    (model soups, Wortsman et al., ICML 2022). It gets the config of the first.

    Args:
        sources: checkpoints of training runs, one or more.
        target: file to write.
        rare_age_power: LOSS.RARE_AGE_POWER that the model is to have after all, see
            weigh_rare_ages_less; None: as trained.
    Returns:
        sha256 of the target, 64 hexadecimal digits.
    Raises:
        ValueError: the checkpoints are not of the same network, rare_age_power does not suit them,
            or another process writes to the folder of the target.
    """
    checkpoints = [load_checkpoint(source) for source in sources]
    first = checkpoints[0]
    for source, other in zip(sources[1:], checkpoints[1:], strict=True):
        if _network(other) != _network(first):
            raise ValueError(f"'{source}' is of another network than '{sources[0]}'; the mean is "
                             "of runs of one architecture, input and range of ages")
    kept = {key: first[key] for key in RELEASED if key in first}
    kept["model"] = {name: _mean([one["model"][name] for one in checkpoints])
                     for name in first["model"]}
    if rare_age_power is not None:
        weigh_rare_ages_less(kept, rare_age_power, sources[0])
    if rare_age_power is not None or len(checkpoints) > 1:
        kept = {key: value for key, value in kept.items() if key not in OF_ONE_RUN}
    kept["model"] = {name: _halved(values) for name, values in kept["model"].items()}
    kept["cfg"] = _without_folders(parse_cfg(kept["cfg"])).dump()
    with only_writer(Path(target).parent, "write to another folder"):
        save_checkpoint(target, kept)
        return file_sha256(target)


def weigh_rare_ages_less(checkpoint, power, path):
    """Give a trained network the probabilities of a training with a lower LOSS.RARE_AGE_POWER.

    A loss that is weighted by age teaches the probabilities times these weights. Here they are
    divided by the weights that are too much: post-hoc logit adjustment (Menon et al., "Long-tail
    learning via logit adjustment", ICLR 2021), as a change of the last layer's bias. It begins at
    the commonest age: younger people would be estimated older, and more minors pass for adults.
    It ends where ages are rarer than MIN_SHARE: few faces tell how rare the oldest are.

    Args:
        checkpoint: dict; its `model` and `cfg` are changed.
        power: LOSS.RARE_AGE_POWER from now on, from 0 to that of the training.
        path: file of the checkpoint, for messages.
    Raises:
        ValueError: the power is higher than the training's or negative, the checkpoint does not
            have the shares of ages, or the network has binary outputs.
    """
    cfg = parse_cfg(checkpoint["cfg"])
    trained = cfg.LOSS.RARE_AGE_POWER
    if not 0 <= power <= trained:
        raise ValueError(f"--rare_age_power must be from 0 to {trained:g}, with which '{path}' was "
                         f"trained (LOSS.RARE_AGE_POWER); got {power:g}")
    if cfg.LOSS.NAME in ORDINAL:
        raise ValueError(f"--rare_age_power: '{path}' has binary outputs (LOSS.NAME "
                         f"{cfg.LOSS.NAME}); train again with another LOSS.RARE_AGE_POWER")
    if checkpoint.get("age_share") is None:
        raise ValueError(f"--rare_age_power: '{path}' does not say which ages it was trained on; "
                         "train.py writes that since this flag exists")
    share = checkpoint["age_share"]
    rarity = (share / share.max()).clamp(min=MIN_SHARE)  # (K,), 1 at the commonest age
    rarity[:share.argmax()] = 1
    bias = checkpoint["model"]["head.bias"] + (trained - power) * rarity.log()
    checkpoint["model"] = checkpoint["model"] | {"head.bias": bias}
    checkpoint["cfg"] = override_cfg(cfg, ["LOSS.RARE_AGE_POWER", str(power)],
                                     "LOSS.RARE_AGE_POWER").dump()


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
    parser.add_argument("--rare_age_power", type=float, metavar="POWER",
                        help="lower LOSS.RARE_AGE_POWER after the training: common ages gain, rare "
                        "ones lose; calibrate again")
    args = parser.parse_args()
    digest = release_checkpoint(args.sources, args.target, args.rare_age_power)
    print(f"{args.target}: sha256 {digest}")
    return 0


if __name__ == "__main__":
    run_main(main)
