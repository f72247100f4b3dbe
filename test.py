"""Measure trained networks on a split of a data set; ends in the line `test mae: ...`."""

import argparse
import shlex
import sys
import warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path

from defaults import FREE_OF_CHECKPOINT
from preprocess.columns import SPLITS
from utils.cli import (
    HelpFormatter,
    add_data_flags,
    add_device_flag,
    count_text,
    parse_with_overrides,
    run_main,
)
from utils.files import expand_glob, refuse_overwriting, writable_folder
from utils.locks import only_writer

# The libraries are imported in the functions that use them: torch, pandas and matplotlib take
# seconds, which -h and a wrong argument need not wait for.

MIN_CALIBRATION_FACES = 30  # below, a calibration warns
OTHER_REPORT = "choose another --report"
CALIBRATION_FACES = ("--calibrate needs faces that the network was not trained on: make a valid "
                     "list, or name a data set that has one with --data_dir; --split train serves "
                     "only if the network has not seen those faces")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_data_flags(parser)
    parser.add_argument("--protocol", metavar="PROTOCOL",
                        help="use the splits of NAME_split_PROTOCOL.csv instead of the lists'")
    parser.add_argument("--resume", nargs="+", metavar="MODEL",
                        help="checkpoint, name of a released model, or https URL; the model "
                        "shipped in misc/ without it. Several are compared; a quoted glob is "
                        "one recipe with several seeds")
    parser.add_argument("--split", choices=SPLITS, help="the split to measure on; without it "
                        "test, or with --calibrate valid")
    parser.add_argument("--output", metavar="CSV", help="write a row for each face: photo, age, "
                        "pred_age, pred_std, and the probability of each age")
    parser.add_argument("--report", metavar="DIR", help="write report.html, metrics.json and "
                        "predictions.csv")
    parser.add_argument("--predictions", metavar="CSV", help="evaluate these predictions of "
                        "any model instead of predicting")
    parser.add_argument("--calibrate", action="store_true",
                        help="fit the temperatures that make the 80 and 90%% intervals true, and "
                        "store them in the checkpoint")
    add_device_flag(parser)
    return parse_with_overrides(parser, argv, f"TEST.*, {', '.join(FREE_OF_CHECKPOINT)} only, for "
                                "example TEST.TTA True")


def main():
    args = parse_args()
    if args.predictions:
        check_predictions_args(args)
        with only_writer(args.report, OTHER_REPORT) if args.report else nullcontext():
            report_predictions(args)
    else:
        models = named_models(args.resume)
        check_args(args, models)
        folders = {}  # held until all is written
        if args.report:
            folders[Path(args.report).resolve()] = OTHER_REPORT
        if args.calibrate:
            folders[Path(models[args.resume[0]][0]).resolve().parent] = \
                "calibrate when that process has ended"
        with ExitStack() as held:
            for folder, way_out in folders.items():
                held.enter_context(only_writer(folder, way_out))
            measure(args, models)
    return 0


def named_models(resume):
    """{name: [path, ...]}: a glob names one recipe, with a path for each seed."""
    if resume is None:
        return {"default": [None]}
    models = {}
    for word in resume:
        found = [word] if "://" in word else expand_glob(word)
        if not found:
            raise FileNotFoundError(f"--resume '{word}' matches no file")
        models[word] = found
    return models


def check_args(args, models):
    """Refuse arguments that cannot work before the network runs, which takes minutes.

    Raises:
        ValueError, OSError: they contradict each other, or a file cannot be written.
    """
    if not args.data_dir:
        raise ValueError("no --data_dir: name the folder of the photos, or a table of "
                         "predictions with --predictions")
    paths = [path for seeds in models.values() for path in seeds]
    for flag in ("calibrate", "output"):
        if getattr(args, flag) and len(paths) > 1:
            raise ValueError(f"--{flag} takes one model, --resume names {len(paths)}")
    if args.calibrate and not (args.resume and Path(paths[0]).is_file()):
        raise ValueError("--calibrate changes a checkpoint; name its file with --resume")
    if args.calibrate and args.split == "test":
        raise ValueError("--calibrate --split test: a temperature fitted on the test split cannot "
                         "be tested on it; leave --split out")
    if args.calibrate and "TEST.TTA" in args.opts[::2]:
        check_views(paths[0], args.opts)
    if args.output and Path(args.output).is_dir():
        raise IsADirectoryError(f"--output '{args.output}' is a folder; name a CSV file in it")
    for flag, folder in (("--report", args.report),
                         ("--output", args.output and Path(args.output).parent)):
        if folder:
            writable_folder(folder, flag)


def check_views(path, opts):
    """Refuse to calibrate a model with another TEST.TTA than its own config has.

    The average with the mirror image is wider, so that its temperature does not suit the model.
    """
    from checkpoint import load_checkpoint
    from defaults import override_cfg, parse_cfg

    own = parse_cfg(load_checkpoint(path)["cfg"])
    wanted = override_cfg(own, opts, "TEST", *FREE_OF_CHECKPOINT).TEST.TTA
    if wanted != own.TEST.TTA:
        raise ValueError(f"--calibrate with TEST.TTA {wanted}: '{path}' is used with TEST.TTA "
                         f"{own.TEST.TTA}, which needs another temperature; leave TEST.TTA out")


def check_predictions_args(args):
    """Refuse flags that --predictions has no use for."""
    useless = [f"--{flag}" for flag in ("data_dir", "dataset", "list_dir", "cache_dir", "protocol",
                                        "resume", "split", "output", "calibrate")
               if getattr(args, flag)] + args.opts[::2]
    if useless:
        raise ValueError(f"--predictions evaluates a table; leave out {', '.join(useless)}")


def measure(args, models):
    """Predict a split with every model, then write and print what was asked for."""
    from evaluation.predict import predict_split, warn_of_learned_faces
    from evaluation.predictions import write_predictions
    from lists import (
        count_excluded,
        count_faces,
        list_file,
        pair_folders,
        splits_of,
        warn_of_stale_lists,
    )
    from utils.distributed import choose_device

    split = args.split or ("valid" if args.calibrate else "test")
    sources = pair_folders(args.data_dir, args.dataset, args.list_dir)
    try:
        lists = [list_file(source, split, args.protocol) for source in sources]
    except FileNotFoundError as error:
        if not all(map(splits_of, sources)):
            raise
        way_out = CALIBRATION_FACES if args.calibrate else "or measure another split with --split"
        raise FileNotFoundError(f"{error}; {way_out}") from error
    if args.output:
        refuse_overwriting([args.output], lists, "--output")
    warn_of_stale_lists(sources)
    device = choose_device(args.device)
    tested = {}
    for name, seeds in models.items():
        # The report states the first model with and without test-time augmentation.
        tested[name] = [predict_split(path, sources, split, device, args.opts, args.protocol,
                                      args.cache_dir,
                                      with_tta=bool(args.report) and not tested and k == 0)
                        for k, path in enumerate(seeds)]
        for one in tested[name]:
            warn_of_learned_faces(one, sources, split, args.protocol)
    first = next(iter(tested.values()))[0]
    for source, path in zip(sources, lists, strict=True):
        count = count_faces(first.data.faces, source)
        print(f"{source.dataset} ({path}): {count_text(count, f'{split} face')}")
    if first.cfg.DATA.EXCLUDE:
        excluded, total = count_excluded(sources, [split], first.cfg, args.protocol)
        print(f"DATA.EXCLUDE leaves out {excluded} of {total} faces")
    if first.data.note:
        print(first.data.note)
    if args.calibrate:
        if split == "train":
            warnings.warn("--calibrate --split train: if the model was trained on these faces it "
                          "knows their ages too well, and its intervals become too narrow for "
                          "other faces", stacklevel=2)
        first = calibrated(first)
        tested = {name: [first] for name in tested}
    if args.output:
        write_predictions(first.predictions, args.output)
        print(f"predictions in {args.output}")
    if args.report:
        report_models(tested, args, sources, split)
    for name, seeds in tested.items():
        for one in seeds:
            if len(seeds) > 1 or len(tested) > 1:
                print(one.path if Path(name) == Path(one.path) else f"{name}: {one.path}")
            print_scores(one.scores(), len(one.data))


def print_scores(scores, count):
    """One metric a line, the MAE last (without exact ages the distance to the interval)."""
    print(count_text(count, "face"))
    if "interval_accuracy" in scores:
        print(f"in the right interval: {scores['interval_accuracy']:.2f} %")
        print(f"distance to the interval: {scores['interval_distance']:.3f} years")
    if "mae" in scores:
        for n in (3, 5, 7):
            print(f"CA({n}): {scores[f'ca{n}']:.2f} %  (error < {n} years)")
        print(f"test mae: {scores['mae']:.3f}")


def calibrated(predicted):
    """Fit the temperatures, store them in the checkpoint and print what they change.

    Args:
        predicted: SplitPredictions.
    Returns:
        SplitPredictions with the new temperatures.
    """
    from checkpoint import save_checkpoint
    from evaluation.predict import fit_calibration
    from evaluation.wording import temperature_text
    from metrics import TEMPERATURES

    fitted = fit_calibration(predicted)
    if fitted.count < MIN_CALIBRATION_FACES:
        warnings.warn(f"the calibration is fitted to {fitted.count} faces only; with fewer than "
                      f"{MIN_CALIBRATION_FACES} it is mostly chance", stacklevel=2)
    if fitted.is_at_end:
        warnings.warn(f"the temperature is at an end of the range {TEMPERATURES[0]:g} to "
                      f"{TEMPERATURES[1]:g} that is searched: the distributions do not suit these "
                      "ages; train longer, or look at the labels", stacklevel=2)
    text = temperature_text(fitted.temperature, predicted.age_bins)
    print(f"temperature {text}, fitted on {count_text(fitted.count, 'face')}")
    for share, (before, after) in fitted.coverage.items():
        print(f"the central {share:.0%} interval covers {before:.1f} % before, {after:.1f} % "
              "after, on faces not fitted")
    print(f"MAE {fitted.mae[0]:.3f} before, {fitted.mae[1]:.3f} after, on faces not fitted")
    if all(abs(after - 100 * share) > abs(before - 100 * share)
           for share, (before, after) in fitted.coverage.items()):
        warnings.warn("on faces not fitted the intervals cover worse than before: these faces are "
                      "too few, or too unlike each other, to calibrate with", stacklevel=2)
    predicted = predicted.calibrated(fitted.temperature)
    save_checkpoint(predicted.path, predicted.checkpoint)
    return predicted


def report_models(tested, args, sources, split):
    """Write the report of one or several models.

    Args:
        tested: {name: [SplitPredictions, ...]}.
        args: the parsed command line.
        sources: list of Source, from lists.pair_folders().
        split: train, valid or test.
    """
    from evaluation.audit import Photos
    from evaluation.report import write_report
    from evaluation.scores import evaluate_all
    from lists import count_photos, count_rejected

    first = next(iter(tested.values()))[0]
    rejected = {f"{source.dataset} in '{source.list_dir}'": count_rejected(
        source, None if args.protocol else split, first.cfg.DATA.EXCLUDE) for source in sources}
    models = {name: [one.with_quality if one is first else one.predictions for one in seeds]
              for name, seeds in tested.items()}
    # With a protocol, rejected photos cannot be assigned to a split, so their share stays unknown.
    photos = None if args.protocol else Photos(count_photos(first.data.faces), rejected)
    evaluation = evaluate_all(models, first.variants, photos)
    provenance = {"Command": shlex.join(["python", *sys.argv]), "Split": split,
                  "Protocol": args.protocol or "the lists' own split", **first.provenance(),
                  "Photos without a face": rejected}
    names = ", ".join(source.dataset for source in sources)
    write_report(evaluation, args.report, provenance, first.data.face, f"{names}, {split}")
    print(f"report in {Path(args.report, 'report.html')}")


def report_predictions(args):
    """Evaluate a table of predictions of any model."""
    import metrics
    from evaluation.predictions import read_predictions, warn_of_equal_rows
    from evaluation.report import REPORT_FILES, write_report
    from evaluation.scores import evaluate_all

    predictions = read_predictions(args.predictions)
    warn_of_equal_rows(predictions)
    if args.report:
        written = [Path(args.report, name) for name in REPORT_FILES]
        earlier = Path(args.report).glob("predictions_*.csv")  # of models that it compared
        refuse_overwriting([*written, *earlier], [args.predictions], "--report")
        write_report(evaluate_all({"model": [predictions]}), args.report,
                     {"Command": shlex.join(["python", *sys.argv]),
                      "Predictions": args.predictions})
        print(f"report in {Path(args.report, 'report.html')}")
    pred_ages = predictions.faces["pred_age"]
    print_scores(metrics.point_scores(predictions.labels, pred_ages, predictions.last_age),
                 len(pred_ages))


if __name__ == "__main__":
    run_main(main)
