"""Speed of training: images/s of the full loop, and of the training step without loading.

    python -m benchmarks.train_speed --data_dir DIR MODEL.ARCH timm/regnety_008 MODEL.IMG_SIZE 128

The full loop reads, augments and trains, as train.py does. The bare loop runs the same forward
pass, backward pass and step on one batch in memory. Both loops run the models of LOSS.TEACHER. They
alternate in short stretches, so that other load on the machine affects both. The last line is
`ratio: 0.93`: the speed of the full loop divided by that of the bare one.
"""

import argparse
import itertools
import statistics
import time

import torch

from batches import to_device
from defaults import load_cfg
from lists import pair_folders, read_sources
from training.build import build_network, build_teachers, build_train_loader, build_trainer
from training.loop import fix_seeds
from utils.cli import (
    HelpFormatter,
    add_data_flags,
    add_device_flag,
    parse_with_overrides,
    run_main,
)
from utils.distributed import choose_device


def parse_args():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_speed",
                                     description=__doc__, formatter_class=HelpFormatter)
    add_data_flags(parser)
    parser.add_argument("--stretches", type=int, default=6, help="number of stretches of each loop")
    parser.add_argument("--steps", type=int, default=10, help="batches of a stretch")
    add_device_flag(parser)
    return parse_with_overrides(parser)


def main():
    args = parse_args()
    if not args.data_dir:
        raise ValueError("no --data_dir: name the folder of the photos")
    cfg, device = load_cfg(None, args.opts), choose_device(args.device)
    fix_seeds(cfg)
    sources = pair_folders(args.data_dir, args.dataset, args.list_dir)
    loader = build_train_loader(read_sources(sources, "train", cfg), cfg, device, args.cache_dir)
    trainer = build_trainer(cfg, device, build_network(cfg, device), loader,
                            build_teachers(cfg, device))
    trainer.model.train()
    batches = endless(loader)
    held = to_device(next(batches), device)
    print(f"{cfg.MODEL.ARCH} at {cfg.MODEL.IMG_SIZE} px, batch {trainer.batch_faces}, "
          f"{torch.get_num_threads()} threads, {device}, precision {trainer.amp}")
    for warm_up in (batches, itertools.repeat(held)):
        stretch(trainer, warm_up, 2)
    ratios, speeds = [], {"full": [], "bare": []}
    waiting = loader.num_workers * (loader.prefetch_factor or 0)
    for number in range(args.stretches):
        for _ in range(waiting):  # do not count what the workers made during the bare stretch
            next(batches)
        seconds = {"full": stretch(trainer, batches, args.steps),
                   "bare": stretch(trainer, itertools.repeat(held), args.steps)}
        for kind, value in seconds.items():
            speeds[kind].append(args.steps * trainer.batch_faces / value)
        ratios.append(seconds["bare"] / seconds["full"])
        print(f"stretch {number + 1}: full {speeds['full'][-1]:.1f} images/s, "
              f"bare {speeds['bare'][-1]:.1f} images/s, ratio {ratios[-1]:.3f}", flush=True)
    for kind, values in speeds.items():
        print(f"{kind}: median {statistics.median(values):.1f} images/s "
              f"({min(values):.1f} to {max(values):.1f})")
    print(f"ratio: {statistics.median(ratios):.2f}")


def endless(loader):
    """The loader's batches, epoch after epoch."""
    for epoch in itertools.count():
        loader.batch_sampler.epoch = epoch
        yield from loader


def stretch(trainer, batches, steps):
    """Seconds of some training steps."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for batch in itertools.islice(batches, steps):
        trainer.step(batch)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_main(main)
