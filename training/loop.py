"""Trains epoch after epoch, and protocol after protocol."""

import hashlib
import os
import random
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from batches import build_eval_loader
from checkpoint import load_checkpoint
from defaults import (
    FREE_OF_RESUME,
    OF_MACHINE,
    known_keys,
    load_cfg,
    override_cfg,
    parse_cfg,
    value_of,
)
from engine import train_one_epoch
from evaluation.predict import predict_split
from lists import SPLITS, read_sources, splits_of, warn_of_stale_lists
from preprocess.boxes import warn_of_other_framing
from training.build import build_network, build_teachers, build_train_loader, build_trainer
from training.folder import RunFolder
from training.run import Run
from training.teachers import find_teachers
from utils import distributed
from utils.files import file_sha256
from utils.pipeline import stop_on_interrupt

PROTOCOL_SCORES = {"interval_accuracy": "in the right interval, %",
                   "interval_distance": "distance to the interval, years", "mae": "test mae"}
# May change when a command over several protocols is started again. The teachers' files may not.
FREE_OF_RESTART = (*OF_MACHINE, "TRAIN.EPOCHS", "LOSS.TEACHER")


def train(job, cfg):
    """Train until the last epoch or until someone interrupts the run.

    Args:
        job: training.run.Job.
        cfg: the config.
    Returns:
        Exit code: 0 after the last epoch, 130 after an interruption.
    """
    with RunFolder(job.folder).locked():
        run = _prepare(job, cfg)
        complete = _run_epochs(run)
        run.close()
    if not complete:
        return 130
    if distributed.is_main() and run.best:
        words = ["--resume", job.folder / "best.pth"]
        if not all("test" in splits_of(source, job.protocol) for source in job.sources):
            words += ["--split", "valid"]
        print(f"done: best {run.best['metric']} {run.best['value']:.2f} in epoch "
              f"{run.best['epoch']:02d}\ntest it with: {job.command('test.py', *words)}")
    return 0


def _prepare(job, cfg):
    """The Run of a job, new or continued, with its data, network and optimiser."""
    resumed = distributed.call_in_main(partial(load_checkpoint, job.resume)) if job.resume \
        else None
    digests = _teacher_digests(job, cfg)
    if resumed is not None:
        _check_can_continue(job, cfg, resumed)
        _check_same_teachers(job, cfg, resumed, digests)
    fix_seeds(cfg)
    faces = {split: _read_list(job, cfg, split, job.protocol) for split in ("train", "valid")}
    if distributed.is_main():
        warn_of_stale_lists(job.sources)
        warn_of_shared_photos(faces)
        warn_of_missing_votes(faces["train"], cfg)
        warn_of_other_framing(pd.concat(faces.values(), ignore_index=True))
    model = build_network(cfg, job.device, resumed)  # before the crops, which may take hours
    teachers = distributed.call_in_all(partial(build_teachers, cfg, job.device))
    loaders = {"train": build_train_loader(faces["train"], cfg, job.device, job.cache_dir),
               "valid": build_eval_loader(faces["valid"], cfg, job.device, job.cache_dir)}
    trainer = build_trainer(cfg, job.device, model, loaders["train"], teachers, resumed)
    run = Run(job, cfg, trainer, loaders, digests)
    if resumed is not None:
        run.restore(resumed)
    if distributed.is_main():
        run.start()
        if run.epochs_done >= cfg.TRAIN.EPOCHS and not job.is_part:
            print(f"nothing to train: {job.resume} is at the end of TRAIN.EPOCHS "
                  f"{cfg.TRAIN.EPOCHS}; raise it to train further")
    return run


def _run_epochs(run):
    """Train epoch after epoch; False if an interruption came before the end."""
    cfg, device, loader = run.cfg, run.job.device, run.loaders["train"]
    batches = loader.batch_sampler
    with stop_on_interrupt() as should_stop:
        while run.epochs_done < cfg.TRAIN.EPOCHS:
            batches.epoch, batches.start = run.epochs_done, run.progress.steps
            is_complete = train_one_epoch(
                run.trainer, loader, run.progress, lambda: should_stop() or run.is_save_due(),
                f"epoch {run.epochs_done + 1:02d}")
            if is_complete:
                run.finish_epoch()
            is_over = run.epochs_done == cfg.TRAIN.EPOCHS and not run.job.is_part
            if distributed.any_true(should_stop(), device) and not is_over:
                run.interrupt()
                return False
            if not is_complete:
                run.save(run.progress.gather())
    return True


def train_protocols(job, cfg, protocols):
    """Train and test each protocol in turn, then print the mean and spread of the test scores.

    When the same command is started again after an interruption, it continues with the protocol
    that was interrupted. Arguments and result as in train; protocols: names of split files.
    """
    for protocol in protocols:  # all lists are read before hours of training begin
        for split in SPLITS:
            _read_list(job, cfg, split, protocol)
    scores = []
    for protocol in protocols:
        part = replace(job.part(protocol), protocol=protocol)
        code = train(part, cfg)
        if code:
            return code
        tested = predict_split(part.folder / "best.pth", job.sources, "test", job.device,
                               protocol=protocol, cache_dir=job.cache_dir)
        scores.append(tested.scores())
        if distributed.is_main():
            for name, title in PROTOCOL_SCORES.items():
                if name in scores[-1]:
                    print(f"{protocol}: {title}: {scores[-1][name]:.3f}")
    if distributed.is_main():
        for name, title in PROTOCOL_SCORES.items():
            values = [tested[name] for tested in scores if name in tested]
            if len(values) > 1:
                print(f"{title}: {np.mean(values):.3f} (sd {np.std(values, ddof=1):.3f} over "
                      f"{len(values)} protocols)")
    return 0


def read_config(recipe, resume, opts):
    """The config of a run, from a recipe or from the checkpoint that the run continues.

    Args:
        recipe: path of a YAML file over the defaults, or None.
        resume: path of a checkpoint, or None.
        opts: KEY VALUE pairs, flat.
    Raises:
        ValueError: both a recipe and a checkpoint; a checkpoint without the state of a run; what
            load_cfg and override_cfg refuse.
    """
    if not resume:
        return load_cfg(recipe, opts)
    text, has_state = distributed.call_in_main(partial(_cfg_of_run, resume))
    if recipe:
        raise ValueError("--cfg: the config of a resumed run comes from its checkpoint; override "
                         "single keys with TRAIN.KEY VALUE")
    if not has_state:
        raise ValueError(f"--resume {resume}: the file contains weights without the state of a "
                         f"run; start a new run from it with MODEL.PRETRAINED {resume}")
    return override_cfg(parse_cfg(text), opts, "TRAIN", "TEST", *FREE_OF_RESUME)


def _cfg_of_run(path):
    """(config as YAML, whether it has the state of a run) of a checkpoint."""
    checkpoint = load_checkpoint(path)
    return checkpoint["cfg"], "optimizer" in checkpoint


def _check_can_continue(job, cfg, resumed):
    """Refuse a checkpoint whose network, optimiser, data set or half epoch does not fit."""
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
                f"TRAIN.{key} cannot change in the middle of an epoch, and {job.resume} was "
                f"saved there; keep {before.TRAIN[key]}, or resume an epochNNN_*.pth")


def _check_same_run(job, cfg, before):
    """Refuse to continue another run's checkpoint as one of this command's protocols."""
    for key in known_keys():
        then, now = value_of(before, key), value_of(cfg, key)
        if then != now and key not in FREE_OF_RESTART:
            raise ValueError(f"{job.resume} is of a run with {key} {then}, not {now}; name "
                             "another folder with --checkpoint, or move that run away")


def _teacher_digests(job, cfg):
    """SHA-256 of each file of LOSS.TEACHER.

    Raises:
        ValueError: this run would move a teacher away, or the processes do not have the same ones.
    """
    tables, models = distributed.call_in_all(partial(find_teachers, cfg.LOSS.TEACHER))
    for path in models:
        if Path(path).resolve().parent == job.folder.resolve():
            raise ValueError(f"LOSS.TEACHER '{path}' lies in the folder of this run, which moves "
                             "the files of the run before; name another folder with --checkpoint")
    digests = distributed.call_in_all(lambda: [
        file_sha256(path) for path in tables + models
        if Path(path).is_file()])  # a folder that a glob matches is reported where it is read
    distributed.require_same("the files of LOSS.TEACHER", digests)
    return digests


def _check_same_teachers(job, cfg, resumed, digests):
    """Refuse to continue a run with other teachers; they may lie elsewhere now."""
    before, now = parse_cfg(resumed["cfg"]).LOSS.TEACHER, cfg.LOSS.TEACHER
    if "teachers" not in resumed:  # it was written before they were kept
        if before != now:
            raise ValueError(f"{job.resume} does not say which files its LOSS.TEACHER '{before}' "
                             f"named, so '{now}' cannot take its place; move them back there")
    elif resumed["teachers"] != digests:
        way_out = "name another folder with --checkpoint" if job.is_part else \
            f"start a new run from its weights with MODEL.PRETRAINED {job.resume}"
        raise ValueError(f"LOSS.TEACHER '{now}' names other files, or in another order, than those "
                         f"that the run of {job.resume} has learned from; give it the same, or "
                         f"{way_out}")


def _read_list(job, cfg, split, protocol):
    """The table of one split; every process reads the list, and all lists must be the same."""
    faces = distributed.call_in_all(partial(read_sources, job.sources, split, cfg, protocol))
    # Without the folder, which may have another name on another machine.
    rows = pd.util.hash_pandas_object(faces.drop(columns="root"), index=False)
    digest = hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()
    distributed.require_same(f"the {split} list", digest)
    return faces


def warn_of_shared_photos(faces):
    """Warn if photos are both trained on and validated on.

    faces: {split: table from lists.read_faces()}.
    """
    trained, valid = (faces[split]["root"] + "/" + faces[split]["photo"]
                      for split in ("train", "valid"))
    shared = valid[valid.isin(trained)]
    if len(shared):
        warnings.warn(f"{len(shared)} of {len(valid)} validation faces are of photos that are "
                      f"trained on too, such as {shared.iloc[0]}: their error does not "
                      "show how well the network does on other photos", stacklevel=2)


def warn_of_missing_votes(faces, cfg):
    """Warn if LOSS.LABEL asks for votes that no training face has.

    faces: table from lists.read_faces().
    """
    column = {"vote_std": "age_std", "votes": "votes"}.get(cfg.LOSS.LABEL)
    if column and faces[column].isna().all():
        warnings.warn(f"LOSS.LABEL {cfg.LOSS.LABEL}: no training face has {column}, so all labels "
                      f"are Gaussians of TRAIN.AGE_STDDEV {cfg.TRAIN.AGE_STDDEV:g} years; add the "
                      "column to the lists, or set LOSS.LABEL gaussian", stacklevel=2)


def fix_seeds(cfg):
    """Seed every source of random numbers, and set cuDNN, as a config asks for."""
    random.seed(cfg.TRAIN.SEED)
    np.random.seed(cfg.TRAIN.SEED)  # noqa: NPY002 (libraries draw from it)
    torch.manual_seed(cfg.TRAIN.SEED + distributed.rank())
    if cfg.TRAIN.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses without it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    else:
        torch.backends.cudnn.benchmark = True
