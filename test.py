"""Measure trained networks on a data set's test split; ends in the line `test mae: ...`."""

import argparse
import glob
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np

import metrics
from checkpoint import save_checkpoint
from defaults import FREE_OF_CHECKPOINT, age_bins
from evaluation.predict import predict_split
from evaluation.predictions import read_predictions, write_predictions
from evaluation.report import write_report
from lists import (
    SPLITS,
    count_faces,
    count_rejected,
    list_file,
    pair_folders,
    warn_of_stale_lists,
)
from utils.cli import (
    HelpFormatter,
    add_data_flags,
    add_device_flag,
    parse_with_overrides,
    run_main,
)
from utils.distributed import choose_device
from utils.files import writable_folder

CALIBRATED_SHARES = (0.8, 0.9)  # central intervals that the temperature is fitted to
FEW_FACES = 30  # of a calibration, below which it warns


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_data_flags(parser)
    parser.add_argument("--protocol", metavar="PROTOCOL",
                        help="use the splits of NAME_split_PROTOCOL.csv instead of the lists'")
    parser.add_argument("--resume", nargs="+", metavar="MODEL",
                        help="checkpoint, name of a released model, or https URL; the model "
                        "shipped in misc/ without it. Several are compared; a quoted glob is "
                        "one recipe with several seeds")
    parser.add_argument("--split", choices=SPLITS,
                        help="split to measure on; test, or with --calibrate valid, without it")
    parser.add_argument("--output", metavar="CSV", help="write one row an image: photo, age, "
                        "pred_age, pred_std, and the probability of each age")
    parser.add_argument("--report", metavar="DIR", help="write report.html, metrics.json and "
                        "predictions.csv")
    parser.add_argument("--predictions", metavar="CSV", help="evaluate these predictions, of "
                        "any model, instead of predicting")
    parser.add_argument("--calibrate", action="store_true",
                        help="fit the temperature that makes the 80 and 90%% intervals true, and "
                        "store it in the checkpoint")
    add_device_flag(parser)
    return parse_with_overrides(parser, argv, f"TEST.*, {', '.join(FREE_OF_CHECKPOINT)} only, for "
                                "example TEST.TTA True")


def main():
    args = parse_args()
    if args.predictions:
        return report_predictions(args)
    if not args.data_dir:
        raise ValueError("no --data_dir: name the folder of the photos, or a table of "
                         "predictions with --predictions")
    models = _named_models(args.resume)
    paths = [path for seeds in models.values() for path in seeds]
    if args.calibrate or args.output:
        if len(paths) > 1:
            raise ValueError(f"--{'calibrate' if args.calibrate else 'output'} takes one model, "
                             f"--resume names {len(paths)}")
        if args.calibrate and not (args.resume and Path(paths[0]).is_file()):
            raise ValueError("--calibrate changes a checkpoint; name its file with --resume")
    if args.output and Path(args.output).is_dir():
        raise IsADirectoryError(f"--output '{args.output}' is a folder; name a CSV file in it")
    for folder in (args.report, args.output and Path(args.output).parent):
        if folder:
            writable_folder(folder, "--report" if folder == args.report else "--output")
    sources = pair_folders(args.data_dir, args.dataset, args.list_dir)
    warn_of_stale_lists(sources)
    if args.calibrate and args.split == "test":
        raise ValueError("--calibrate --split test: what is fitted on the test split is not "
                         "tested by it; leave --split out")
    split = args.split or ("valid" if args.calibrate else "test")
    device = choose_device(args.device)
    tested = {}
    for name, seeds in models.items():
        tested[name] = []
        for path in seeds:  # the first is reported with and without test-time augmentation
            both = bool(args.report) and path == paths[0]
            tested[name].append(predict_split(path, sources, split, device, args.opts,
                                              args.protocol, args.cache_dir, both))
    first = next(iter(tested.values()))[0]
    for source in sources:
        print(f"{source.dataset} ({list_file(source, split, args.protocol)}): "
              f"{count_faces(first.data.faces, source)} {split} faces")
    if args.calibrate:
        calibrate(first)
    if args.output:
        write_predictions(first.predictions(), args.output)
    if args.report:
        report_models(tested, args, sources, split)
    for name, seeds in tested.items():
        for one in seeds:
            if len(paths) > 1:
                print(f"{name}: {one.path}")
            print_scores(one.scores(), len(one.data))
    return 0


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


def calibrate(tested):
    """Fit the temperature to a split's faces with an exact age, store it, say what it changes.

    What the intervals cover is measured on each half of the faces with the temperature fitted
    on the other.
    """
    labels = tested.data.labels
    exact = ~metrics.is_interval(labels).numpy()
    if exact.sum() < 2:
        raise ValueError("--calibrate needs faces with an exact age; this split has none")
    if exact.sum() < FEW_FACES:
        warnings.warn(f"the temperature is fitted to {exact.sum()} faces only; with fewer than "
                      f"{FEW_FACES} it is mostly chance", stacklevel=2)
    ages = labels["age"].numpy()[exact].astype(float)
    log_probs = tested.log_probs[tested.cfg.TEST.TTA].numpy()[exact].astype(float)
    bins = np.array(age_bins(tested.cfg))

    temperature = metrics.fit_temperature(log_probs, ages, bins, CALIBRATED_SHARES)
    probs = np.exp(log_probs)
    unseen = metrics.cross_calibrated(log_probs, ages, bins, CALIBRATED_SHARES)
    print(f"temperature {temperature:.3f}, fitted on {len(ages)} faces")
    for share in CALIBRATED_SHARES:
        print(f"the central {share:.0%} interval covers "
              f"{metrics.coverage(probs, ages, bins, share):.1f} % before, "
              f"{metrics.coverage(unseen, ages, bins, share):.1f} % after, on faces not fitted")
    mae = {t: metrics.mae(ages, tested.predictions(temperature=t).faces["pred_age"][exact])
           for t in (1.0, temperature)}
    print(f"MAE {mae[1.0]:.3f} before, {mae[temperature]:.3f} after")
    tested.checkpoint["temperature"] = temperature
    save_checkpoint(tested.path, tested.checkpoint)


def report_models(tested, args, sources, split):
    """Write the report of one or several models."""
    first = next(iter(tested.values()))[0]
    names = ", ".join(source.dataset for source in sources)
    write_report(
        {name: [one.predictions() for one in seeds] for name, seeds in tested.items()},
        args.report,
        provenance={"Command": shlex.join(["python", *sys.argv]), "Split": split,
                    "Protocol": args.protocol or "the lists' own split",
                    **first.provenance(),
                    "Photos without a face": {
                        source.dataset: count_rejected(source, None if args.protocol else split)
                        for source in sources}},
        tta=None if first.cfg.TEST.TTA else first.predictions(tta=True),
        uncalibrated=first.predictions(temperature=1.0) if first.temperature else None,
        temperature=first.temperature, photo_of=first.data.face, title=f"{names}, {split}")
    print(f"report in {Path(args.report, 'report.html')}")


def report_predictions(args):
    """Evaluate a table of predictions, of any model."""
    useless = [f"--{flag}" for flag in ("data_dir", "dataset", "list_dir", "cache_dir", "protocol",
                                        "resume", "split", "output", "calibrate")
               if getattr(args, flag)] + args.opts[::2]
    if useless:
        raise ValueError(f"--predictions evaluates a table; leave out {', '.join(useless)}")
    predictions = read_predictions(args.predictions)
    if args.report and _would_overwrite(args.report, args.predictions):
        raise ValueError(f"'{args.predictions}' would be overwritten; choose another --report")
    if args.report:
        write_report({"model": [predictions]}, args.report, provenance={
            "Command": shlex.join(["python", *sys.argv]), "Predictions": args.predictions})
        print(f"report in {Path(args.report, 'report.html')}")
    pred_ages = predictions.faces["pred_age"]
    print_scores(metrics.point_scores(predictions.labels, pred_ages, predictions.last_age),
                 len(pred_ages))
    return 0


def _would_overwrite(report, predictions):
    written = Path(report, "predictions.csv")
    return written.exists() and written.samefile(predictions)


def _named_models(resume):
    """{name: [path, ...]}: a glob is one recipe with a path a seed."""
    if resume is None:
        return {"default": [None]}
    models = {}
    for word in resume:
        found = [word]
        if glob.has_magic(word) and "://" not in word and not Path(word).exists():
            found = sorted(glob.glob(word))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not found:
            raise FileNotFoundError(f"--resume '{word}' matches no file")
        models[word] = found
    return models


if __name__ == "__main__":
    run_main(main)
