"""Train an age-distribution network on one or several data sets."""

import argparse
import shlex
import sys
import warnings
from functools import partial
from pathlib import Path

from defaults import ARCHS, FREE_OF_RESUME
from utils.cli import (
    HelpFormatter,
    add_data_flags,
    add_device_flag,
    data_words,
    parse_with_overrides,
    run_main,
)
from utils.files import check_folder


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=HelpFormatter,
        epilog="architectures for MODEL.ARCH, beside any timm model as timm/NAME:\n  "
               + "\n  ".join(ARCHS))
    add_data_flags(parser)
    parser.add_argument("--protocol", nargs="+", metavar="PROTOCOL",
                        help="use the splits of NAME_split_PROTOCOL.csv instead of the lists'. "
                        "Several protocols, or a quoted pattern such as 'rotation*', are trained "
                        "and tested one after the other, each in its own folder")
    parser.add_argument("--cfg", metavar="YAML", help="recipe over the defaults, see configs/")
    parser.add_argument("--checkpoint", metavar="DIR", help="folder of this run's files; default: "
                        "'checkpoint', or the folder of the run that --resume continues")
    parser.add_argument("--resume", metavar="PTH", help="last.pth of a run to continue. Its "
                        "config comes with it; TRAIN.* (except TRAIN.OPT), TEST.*, "
                        + ", ".join(FREE_OF_RESUME) + " (the same files) can be overridden")
    parser.add_argument("--tensorboard", metavar="DIR", help="log folder for TensorBoard")
    parser.add_argument("--multi_gpu", action="store_true",
                        help="only prints the torchrun command that uses several GPUs")
    add_device_flag(parser)
    return parse_with_overrides(parser, argv)


def main():
    args = parse_args()
    # Imported here because torch and the networks take seconds, which -h need not wait for.
    from training.loop import read_config, train, train_protocols
    from training.run import Job
    from utils import distributed

    if args.multi_gpu:
        raise ValueError(_torchrun_hint())
    folder = _run_folder(args)
    with distributed.processes(distributed.choose_device(args.device)) as device:
        cfg = read_config(args.cfg, args.resume, args.opts)
        distributed.call_in_main(partial(_check_folders, folder, args.tensorboard))
        sources, protocols = distributed.call_in_all(partial(_find_data, args))
        if len(protocols) > 1 and args.resume:
            raise ValueError("--resume continues one protocol; to continue several, start the "
                             "same command again")
        job = Job(sources, device, folder, data_words(args), args.cache_dir, args.tensorboard,
                  protocols[0] if len(protocols) == 1 else None, args.resume)
        if len(protocols) > 1:
            return train_protocols(job, cfg, protocols)
        return train(job, cfg)


def _run_folder(args):
    if args.checkpoint:
        return Path(args.checkpoint)
    return Path(args.resume).parent if args.resume else Path("checkpoint")


def _find_data(args):
    """(list of Source, names of protocols) that the flags name."""
    from lists import find_protocols, pair_folders

    sources = pair_folders(args.data_dir, args.dataset, args.list_dir)
    return sources, find_protocols(sources, args.protocol or [])


def _check_folders(folder, tensorboard):
    check_folder(folder, "--checkpoint")
    if tensorboard:
        check_folder(tensorboard, "--tensorboard")


def _torchrun_hint():
    import torch

    words, count = shlex.join(word for word in sys.argv if word != "--multi_gpu"), \
        torch.cuda.device_count()
    if not count:
        return ("--multi_gpu: PyTorch sees no GPU on this machine; leave it out, or train in two "
                f"processes on the CPU: torchrun --nproc_per_node=2 {words}")
    return (f"--multi_gpu: start one process for each GPU of this machine instead: torchrun "
            f"--nproc_per_node={count} {words}")


if __name__ == "__main__":
    # With fp16 the first steps may overflow and are skipped. torch then takes the step of the
    # schedule for one that came before the step of the optimiser.
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    run_main(main)
