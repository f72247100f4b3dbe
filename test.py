"""Measure a trained network on a data set's test split; ends in the line `test mae: ...`."""

import argparse

import pandas as pd
import torch

from checkpoint import load_checkpoint
from cli import (
    HelpFormatter,
    add_data_flags,
    add_device_flag,
    choose_device,
    parse_with_overrides,
    run_main,
)
from dataset import FaceDataset, OrderedBatches, build_loader
from defaults import age_bins, override_cfg
from download import find_model
from engine import predict, predictions_table, score
from lists import SPLITS, pair_folders, read_faces
from losses import DECODES
from model import restore_model


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_data_flags(parser)
    parser.add_argument("--resume", metavar="MODEL", help="checkpoint, name of a released model, "
                        "or https URL; the model shipped in misc/ without it")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--output", metavar="CSV", help="write one row an image: photo, age, "
                        "pred_age, pred_std, and the probability of each age")
    add_device_flag(parser)
    return parse_with_overrides(parser, argv)


def main():
    args = parse_args()
    device = choose_device(args.device)
    checkpoint = load_checkpoint(find_model(args.resume))
    model, cfg = restore_model(checkpoint, device)
    cfg = override_cfg(cfg, args.opts, "TEST")
    sources = pair_folders(args.data_dir, args.dataset, args.list_dir)
    faces = pd.concat([read_faces(data_dir, name, args.split, cfg, list_dir, args.protocol)
                       for data_dir, name, list_dir in sources], ignore_index=True)
    data = FaceDataset(faces, cfg, train=False, cache_dir=args.cache_dir)
    loader = build_loader(data, OrderedBatches(len(data), cfg.TEST.BATCH_SIZE), cfg.TEST.WORKERS)
    log_probs = predict(model, loader, device, cfg.TEST.TTA, "testing")
    log_probs = (log_probs / checkpoint.get("temperature", 1.0)).log_softmax(dim=1)
    bins = torch.tensor(age_bins(cfg))
    pred_ages = DECODES[cfg.TEST.DECODE](log_probs, bins)
    if args.output:
        predictions_table(faces, log_probs, pred_ages, bins).to_csv(args.output, index=False)
    print_scores(score(data.labels, pred_ages, cfg.DATA.AGE_MAX), len(faces))


def print_scores(scores, count):
    """The metrics a line each, MAE last (the distance to the interval where no age is exact)."""
    print(f"{count} faces")
    if "interval_accuracy" in scores:
        print(f"in the right interval: {scores['interval_accuracy']:.2f} %")
        print(f"distance to the interval: {scores['interval_distance']:.3f} years")
    if "mae" in scores:
        for n in (3, 5, 7):
            print(f"CA({n}): {scores[f'ca{n}']:.2f} %  (error < {n} years)")
        print(f"test mae: {scores['mae']:.3f}")


if __name__ == "__main__":
    run_main(main)
