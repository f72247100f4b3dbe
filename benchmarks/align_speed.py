"""Two-pass alignment against the plain loop over facenet_pytorch.MTCNN: speed and agreement.

    python -m benchmarks.align_speed --data_dir DIR

For each kind of images the same files are aligned in turn by the plain loop in one process with
N threads, by the plain loop in N processes with one thread each, and by the workers of
preprocess.face_align, N processes with one thread each. Reading the files counts, starting the
processes and loading the networks does not. Images agree when neither finds a face, or when
their angles differ by at most 0.5 degrees and their boxes have an IoU of at least 0.95.
"""

import argparse
import math
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from preprocess.face import iou
from preprocess.workers import worker_pool
from utils.cli import HelpFormatter, run_main

KINDS = {"portraits": "portraits", "UTKFace": "UTKFace", "APPA-REAL": "appa-real-release/valid",
         "FairFace": "fairface/val"}
CHUNK = 16  # images sent to a process at once
ANGLE, IOU = 0.5, 0.95  # degrees and ratio, what counts as agreement


def parse_args():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.align_speed",
                                     description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--data_dir", required=True, metavar="DIR",
                        help=f"folder with some of {', '.join(KINDS.values())}")
    parser.add_argument("--images", type=int, default=200, help="images of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="the fastest one counts")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores each may use")
    return parser.parse_args()


def load_mtcnn(threads=1):
    global mtcnn
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    from facenet_pytorch import MTCNN

    mtcnn = MTCNN()


def plain_loop(paths):
    """One image after another through MTCNN with its defaults, as the original scripts do.

    Returns:
        list, one an image, of None or (deg, x1, y1, x2, y2).
    """
    results = []
    for path in paths:
        photo = Image.open(path).convert("RGB")
        _, _, landmarks = mtcnn.detect(photo, landmarks=True)
        if landmarks is None:
            results.append(None)
            continue
        (left_x, left_y), (right_x, right_y) = landmarks[0][:2]
        deg = math.degrees(math.atan2(right_y - left_y, right_x - left_x))
        boxes, _ = mtcnn.detect(photo.rotate(deg, expand=True, resample=Image.BICUBIC))
        results.append(None if boxes is None else (deg, *boxes[0]))
    return results


def plain_processes(pool, paths):
    chunks = [paths[i:i + CHUNK] for i in range(0, len(paths), CHUNK)]
    return [result for results in pool.map(plain_loop, chunks) for result in results]


def our_workers(submit, paths):
    rows = [{"photo": str(path), "age": "0"} for path in paths]
    futures = [submit(rows[i:i + CHUNK]) for i in range(0, len(rows), CHUNK)]
    return [tuple(map(float, fields[:5])) if fields else None
            for future in futures for _, *fields in future.result()]


def agreement(references, results):
    """Share of images on which two lists of results agree."""
    return float(np.mean([_agree(*pair) for pair in zip(references, results, strict=True)]))


def _agree(reference, result):
    if reference is None or result is None:
        return reference is result
    turn = abs((reference[0] - result[0] + 180) % 360 - 180)
    return turn <= ANGLE and iou(np.array(reference[1:]), np.array(result[1:])) >= IOU


def choose_images(folder, count):
    """count images of a folder, evenly spaced by name; a small folder several times over."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    if not paths:
        raise FileNotFoundError(f"'{folder}' holds no images")
    paths *= -(-count // len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def main():
    args = parse_args()
    data_dir = Path(args.data_dir).resolve()
    kinds = {name: data_dir / folder for name, folder in KINDS.items()
             if (data_dir / folder).is_dir()}
    if not kinds:
        raise FileNotFoundError(f"'{data_dir}' holds none of {', '.join(KINDS.values())}; name "
                                "the folder of the data sets with --data_dir")
    load_mtcnn(args.threads)
    with (ProcessPoolExecutor(args.threads, multiprocessing.get_context("spawn"),
                              load_mtcnn) as pool,
          worker_pool(args.threads, data_dir, {"device": "cpu"}) as submit):
        methods = {"plain threads": plain_loop, "plain processes": partial(plain_processes, pool),
                   "ours": partial(our_workers, submit)}
        print(f"images/s on {args.threads} CPU cores, best of {args.rounds} rounds\n"
              f"{'kind':10} {'images':>6} {'plain loop':>11} {'in processes':>13} {'ours':>7} "
              f"{'ratio':>6} {'ratio':>6} {'agreement':>10}")
        for name, folder in kinds.items():
            paths = choose_images(folder, args.images)
            speeds, results = time_methods(methods, paths, args.rounds)
            threads, processes, ours = speeds.values()
            share = agreement(results["plain threads"], results["ours"])
            print(f"{name:10} {len(paths):6} {threads:11.1f} {processes:13.1f} {ours:7.1f} "
                  f"{ours / threads:6.1f} {ours / processes:6.1f} {share:10.2%}", flush=True)


def time_methods(methods, paths, rounds):
    """Images/s and results of each method, the methods taking turns; warmed up first."""
    speeds, results = dict.fromkeys(methods, 0), {}
    for method in methods.values():
        method(paths[:4 * CHUNK])
    for _ in range(rounds):
        for name, method in methods.items():
            start = time.perf_counter()
            results[name] = method(paths)
            speeds[name] = max(speeds[name], len(paths) / (time.perf_counter() - start))
    return speeds, results


if __name__ == "__main__":
    run_main(main)
