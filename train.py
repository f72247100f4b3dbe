"""Train an age-distribution network on one or several data sets."""

import argparse
import os
import random
import shlex
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from batches import build_eval_loader
from checkpoint import load_checkpoint
from defaults import FREE_OF_CHECKPOINT, known_keys, load_cfg, override_cfg, parse_cfg
from engine import train_one_epoch
from evaluation.predict import predict_split
from lists import (
    SPLITS,
    find_protocols,
    pair_folders,
    read_sources,
    splits_of,
    warn_of_stale_lists,
)
from model import list_archs
from training.build import build_network, build_train_loader, build_trainer
from training.run import Job, Run, stop_on_interrupt
from utils import distributed
from utils.cli import (
    HelpFormatter,
    add_data_flags,
    add_device_flag,
    data_words,
    parse_with_overrides,
    run_main,
)
from utils.distributed import choose_device
from utils.files import check_folder

ROTATION_SCORES = {"interval_accuracy": "in the right interval, %",
                   "interval_distance": "distance to the interval, years", "mae": "test mae"}
# May differ where a command of several trainings is started again.
FREE_OF_A_PART = ("TRAIN.EPOCHS", "TRAIN.WORKERS", "TEST.WORKERS", "TEST.BATCH_SIZE",
                  "DATA.CACHE")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=HelpFormatter,
        epilog="architectures for MODEL.ARCH, beside any timm model as timm/NAME:\n  "
               + "\n  ".join(list_archs()))
    add_data_flags(parser)
    parser.add_argument("--protocol", nargs="+", metavar="PROTOCOL",
                        help="use the splits of NAME_split_PROTOCOL.csv instead of the lists'; "
                        "of several, a quoted pattern such as 'rotation*' included, each is "
                        "trained and tested in turn, in a folder of its own")
    parser.add_argument("--cfg", nargs="+", metavar="YAML", help="recipe over the defaults, as in "
                        "configs/; of several each is laid over those before it and trained in "
                        "turn, in a folder of its own, from the best model of the one before")
    parser.add_argument("--checkpoint", metavar="DIR", help="folder of this run's files; "
                        "'checkpoint', or that of the run that --resume continues")
    parser.add_argument("--resume", metavar="PTH", help="last.pth of a run to continue, with its "
                        "config; TRAIN.* (but for TRAIN.OPT), TEST.*, "
                        + " and ".join(FREE_OF_CHECKPOINT) + " can be overridden")
    parser.add_argument("--tensorboard", metavar="DIR", help="log folder for TensorBoard")
    parser.add_argument("--multi_gpu", action="store_true",
                        help="only names the torchrun command that uses several GPUs")
    add_device_flag(parser)
    return parse_with_overrides(parser, argv)


def main():
    args = parse_args()
    if args.multi_gpu:
        words = shlex.join(word for word in sys.argv if word != "--multi_gpu")
        raise ValueError("--multi_gpu: start one process a GPU instead, of which there are "
                         f"{torch.cuda.device_count()} here: torchrun --nproc_per_node=N {words}")
    if not args.data_dir:
        raise ValueError("no --data_dir: name the folder of the photos")
    stages = _stages(args)
    folder = _run_folder(args)
    check_folder(folder, "--checkpoint")
    if args.tensorboard:
        check_folder(args.tensorboard, "--tensorboard")
    sources = pair_folders(args.data_dir, args.dataset, args.list_dir)
    protocols = find_protocols(sources, args.protocol or [])
    if len(protocols) > 1 and args.resume:
        raise ValueError("--resume continues one protocol; several continue by themselves when "
                         "the same command is started again")
    with distributed.processes(choose_device(args.device)) as device:
        job = Job(sources, device, folder, data_words(args), args.cache_dir, args.tensorboard,
                  protocols[0] if len(protocols) == 1 else None, args.resume)
        if len(protocols) > 1:
            return train_rotations(job, stages, protocols)
        return train_stages(job, stages)


def train_rotations(job, stages, protocols):
    """Train and test each protocol in turn; prints the mean and spread of the test scores.

    Started again after an interruption, it goes on with the protocol under way.
    """
    for protocol in protocols:  # before the first is trained, for hours
        for split in SPLITS:
            read_sources(job.sources, split, list(stages.values())[-1], protocol)
    scores = []
    for protocol in protocols:
        one = replace(job.part(protocol), protocol=protocol)
        code = train_stages(one, stages)
        if code:
            return code
        distributed.wait()  # for best.pth
        tested = predict_split(one.folder / list(stages)[-1] / "best.pth", job.sources, "test",
                               job.device, protocol=protocol, cache_dir=job.cache_dir)
        scores.append(tested.scores())
        if distributed.is_main():
            for name, title in ROTATION_SCORES.items():
                if name in scores[-1]:
                    print(f"{protocol}: {title}: {scores[-1][name]:.3f}")
    if distributed.is_main():
        for name, title in ROTATION_SCORES.items():
            values = [tested[name] for tested in scores if name in tested]
            if len(values) > 1:
                print(f"{title}: {np.mean(values):.3f} (sd {np.std(values, ddof=1):.3f} over "
                      f"{len(values)} protocols)")
    return 0


def train_stages(job, stages):
    """Train each recipe of --cfg in turn, from the second on from the one before's best.

    Started again after an interruption, it goes on with the stage under way.

    Args:
        job: training.Job.
        stages: of _stages.
    Returns:
        0, or 130 after an interruption.
    """
    if len(stages) == 1:
        return train(job, *stages.values())
    best = None
    for name, cfg in stages.items():
        stage = job.part(name)
        if best is not None:
            cfg = override_cfg(cfg, ["MODEL.PRETRAINED", str(best)], "MODEL")
        code = train(stage, cfg)
        if code:
            return code
        distributed.wait()  # for best.pth
        best = stage.folder / "best.pth"
    return 0


def train(job, cfg):
    """Train until the last epoch (returns 0) or an interruption (returns 130)."""
    resumed = load_checkpoint(job.resume) if job.resume else None
    if resumed is not None:
        _check_can_continue(job, cfg, resumed)
    _fix_seeds(cfg)
    faces = {split: read_sources(job.sources, split, cfg, job.protocol)
             for split in ("train", "valid")}
    if distributed.is_main():
        warn_of_stale_lists(job.sources)
        warn_of_shared_photos(faces)
    model = build_network(cfg, job.device, resumed)  # before the crops are cut, maybe for hours
    loaders = {"train": build_train_loader(faces["train"], cfg, job.device, job.cache_dir),
               "valid": build_eval_loader(faces["valid"], cfg, job.device, job.cache_dir)}
    trainer = build_trainer(cfg, job.device, model, loaders["train"], resumed)
    run = Run(job, cfg, trainer, loaders)
    if resumed is not None:
        run.restore(resumed)
    if distributed.is_main():
        run.start()
    batches = loaders["train"].batch_sampler
    with stop_on_interrupt() as should_stop:
        while run.epochs_done < cfg.TRAIN.EPOCHS:
            batches.epoch, batches.start = run.epochs_done, run.progress.steps
            complete = train_one_epoch(trainer, loaders["train"], run.progress, should_stop,
                                       f"epoch {run.epochs_done + 1:02d}")
            if complete:
                run.finish_epoch()
            is_over = run.epochs_done == cfg.TRAIN.EPOCHS and not job.is_part
            if not complete or (distributed.any_true(should_stop(), job.device) and not is_over):
                run.interrupt()
                return 130
    run.close()
    if distributed.is_main() and run.best:
        words = ["--resume", job.folder / "best.pth"]
        if not all("test" in splits_of(source, job.protocol) for source in job.sources):
            words += ["--split", "valid"]
        print(f"done: best {run.best['metric']} {run.best['value']:.2f} in epoch "
              f"{run.best['epoch']:02d}\ntest it with: {job.command('test.py', *words)}")
    return 0


def _stages(args):
    """{folder within the run's: config} of each recipe of --cfg; a single one has none, ''."""
    if not args.resume:
        paths = args.cfg or [None]
        if len(paths) == 1:
            return {"": load_cfg(paths[0], args.opts)}
        stages, cfg = {}, load_cfg()
        for path in paths:
            name = Path(path).stem
            if name in stages:
                raise ValueError(f"--cfg {' '.join(paths)}: two recipes have the same name, after "
                                 "which their folders are named; rename one")
            stages[name] = cfg = load_cfg(path, args.opts, base=cfg)
        return stages
    resumed = load_checkpoint(args.resume)
    if args.cfg:
        raise ValueError("--cfg: the config of a resumed run comes from its checkpoint; override "
                         "single keys with TRAIN.KEY VALUE")
    if "optimizer" not in resumed:
        raise ValueError(f"--resume {args.resume}: holds weights without the state of a run; "
                         f"start a new run from it with MODEL.PRETRAINED {args.resume}")
    return {"": override_cfg(parse_cfg(resumed["cfg"]), args.opts, "TRAIN", "TEST",
                             *FREE_OF_CHECKPOINT)}


def _check_can_continue(job, cfg, resumed):
    """Refuse to go on with a checkpoint of another network, optimiser, data set or half epoch."""
    before, names = parse_cfg(resumed["cfg"]), [source.dataset for source in job.sources]
    if job.is_part:
        _check_same_run(job, cfg, before)
    for flag, then, now in (("--dataset", resumed["datasets"], names),
                            ("--protocol", resumed.get("protocol", job.protocol), job.protocol)):
        if then != now:
            way_out = "name another folder with --checkpoint" if job.is_part else \
                "leave --resume out"
            raise ValueError(f"{job.resume} is of a run with {flag} {then}, not {now}; give the "
                             f"same, or {way_out} for a new run")
    if before.TRAIN.OPT != cfg.TRAIN.OPT or \
            (before.TRAIN.EMA_DECAY > 0) != (cfg.TRAIN.EMA_DECAY > 0):
        raise ValueError(
            f"TRAIN.OPT, and whether TRAIN.EMA_DECAY is 0, cannot change in {job.resume}; start "
            f"a new run from its weights with MODEL.PRETRAINED {job.resume}")
    if resumed["progress"] is None:
        return
    for key in ("BATCH_SIZE", "SEED"):
        if cfg.TRAIN[key] != before.TRAIN[key]:
            raise ValueError(
                f"TRAIN.{key} cannot change in the middle of an epoch, where {job.resume} "
                f"stands; keep {before.TRAIN[key]}, or resume an epochNNN_*.pth")


def _check_same_run(job, cfg, before):
    """Refuse to take another run's checkpoint for that of this part of a command."""
    facts = {}
    for name in known_keys():
        section, key = name.split(".")
        facts[name] = before[section][key], cfg[section][key]
    # Of a later stage the best model of the one before, whose folder may have moved.
    facts["MODEL.PRETRAINED"] = tuple(Path(start).name for start in facts["MODEL.PRETRAINED"])
    for name, (then, now) in facts.items():
        if then != now and name not in FREE_OF_A_PART:
            raise ValueError(f"{job.resume} is of a run with {name} {then}, not {now}; name "
                             "another folder with --checkpoint, or move that run away")


def _run_folder(args):
    if args.checkpoint:
        return Path(args.checkpoint)
    return Path(args.resume).parent if args.resume else Path("checkpoint")


def warn_of_shared_photos(faces):
    """Warn where photos are both trained on and validated on, which tells nothing of others.

    faces: {split: table of lists.read_faces}.
    """
    trained, valid = (faces[split]["root"] + "/" + faces[split]["photo"]
                      for split in ("train", "valid"))
    shared = valid[valid.isin(trained)]
    if len(shared):
        warnings.warn(f"{len(shared)} of {len(valid)} validation faces are of photos that are "
                      f"trained on too, such as {shared.iloc[0]}: their error is no measure for "
                      "other photos", stacklevel=2)


def _fix_seeds(cfg):
    random.seed(cfg.TRAIN.SEED)
    np.random.seed(cfg.TRAIN.SEED)  # noqa: NPY002 (libraries draw from it)
    torch.manual_seed(cfg.TRAIN.SEED + distributed.rank())
    if cfg.TRAIN.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    else:
        torch.backends.cudnn.benchmark = True


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    run_main(main)
