"""Write a trained network as an .onnx file, which needs no PyTorch to run.

    python export.py model.onnx                                 the model in misc/
    python export.py --resume RUN/best.pth age.onnx             one of your own
    python export.py --verify age.onnx --data_dir DIR           its MAE, through ONNX Runtime

The file takes faces as pixels (uint8, N x 3 x S x S RGB) and gives calibrated probabilities of the
ages: normalisation, temperatures and softmax are inside. Its metadata state the ages, size, margin,
decode, temperatures, data sets, licence, commit and the checksum of the checkpoint.
"""

import argparse
from pathlib import Path

from preprocess.columns import SPLITS
from utils import cli

SHIPPED_LICENCE = "non-commercial research only, see MODEL_CARD.md"
NO_LICENCE = "not stated"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("target", nargs="?", type=Path, metavar="OUT.onnx", help="file to write")
    parser.add_argument("--resume", help="checkpoint, name from misc/models.yaml, or https URL "
                        "ending in #sha256=HEX; by default the model in misc/")
    parser.add_argument("--fp32", action="store_true",
                        help="store the weights exactly; by default in half precision, which "
                             "halves the file and moves ages by 0.01 years")
    parser.add_argument("--licence", help="terms of the weights, stored in the file")
    parser.add_argument("--verify", type=Path, metavar="FILE.onnx",
                        help="instead of writing, measure this file on the faces of --data_dir")
    cli.add_data_flags(parser)
    parser.add_argument("--split", default="valid", choices=SPLITS,
                        help="of the faces for --verify")
    return cli.parse_with_overrides(parser, argv, "TEST.* only, for example TEST.DECODE median")


def main(argv=None):
    args = parse_args(argv)
    if (args.target is None) == (args.verify is None):
        raise ValueError("name one file: OUT.onnx to write it, or --verify FILE.onnx to measure it")
    try:
        return export(args) if args.verify is None else verify(args)
    except ModuleNotFoundError as error:  # with what the demo needs alone
        raise OSError(f"export.py needs {error.name}, which is not installed; install it with: "
                      "pip install -r requirements.txt") from error


def export(args):
    if args.data_dir:
        raise ValueError("--data_dir is for --verify; a file is written without it")
    if not args.target.parent.is_dir():
        raise FileNotFoundError(f"folder '{args.target.parent}' not found; create it first")
    if args.target.suffix.lower() != ".onnx":
        raise ValueError(f"'{args.target}': the name must end in .onnx")
    from training.onnx_release import export_onnx
    from utils.download import find_model
    source = find_model(args.resume)
    years, probability, count = export_onnx(source, args.target, args.opts, not args.fp32,
                                            args.licence or licence_of(source))
    print(f"PyTorch and ONNX Runtime on {count} face crops: ages differ by at most {years:.4f} "
          f"years, probabilities by {probability:.1e}")
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB")
    return 0


def licence_of(source):
    """Terms of a checkpoint: known of the shipped one, under whatever name its copy lies."""
    from utils.download import find_model
    from utils.files import file_sha256
    try:
        shipped = find_model()
    except FileNotFoundError:
        return NO_LICENCE
    return SHIPPED_LICENCE if file_sha256(source) == file_sha256(shipped) else NO_LICENCE


def verify(args):
    """Print the metrics of an .onnx file on a split, as test.py does for a checkpoint."""
    if not args.data_dir:
        raise ValueError("--verify needs the folder of the photos: --data_dir DIR")
    for_writing = [flag for flag in ("resume", "fp32", "licence") if getattr(args, flag)]
    if for_writing:
        raise ValueError(f"--{for_writing[0]} is for writing a file; --verify measures a file as "
                         "it is")
    import numpy as np
    from tqdm import tqdm

    import metrics
    from age_network import OnnxAgeNetwork
    from dataset import FaceDataset
    from lists import pair_folders, read_sources
    from preprocess.boxes import warn_of_other_framing
    network = OnnxAgeNetwork(args.verify, args.opts)
    sources = pair_folders(args.data_dir, args.dataset, args.list_dir)
    faces = read_sources(sources, args.split, network.cfg)
    warn_of_other_framing(faces)
    data = FaceDataset(faces, network.cfg, train=False, cache_dir=args.cache_dir)
    if data.note:
        print(data.note)
    size = network.cfg.TEST.BATCH_SIZE
    starts = tqdm(range(0, len(data), size), desc="verifying", unit="batch", leave=False)
    probs = np.concatenate([network([data.face(index) for index in
                                     range(start, min(start + size, len(data)))])
                            for start in starts])
    ages = metrics.DECODES[network.cfg.TEST.DECODE](probs, network.age_bins)
    scores = metrics.point_scores(data.labels, ages, network.age_bins[-1])
    print(f"{cli.count_text(len(data), f'{args.split} face')} through ONNX Runtime")
    if "interval_accuracy" in scores:
        print(f"in the right interval: {scores['interval_accuracy']:.2f} %")
    if "mae" in scores:
        print(f"{args.split} mae: {scores['mae']:.3f}")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
