"""The detector's three networks as ONNX files, from the weights in facenet-pytorch.

    python -m preprocess.export_mtcnn misc

The files in misc/ were made so; who uses them needs neither PyTorch nor that package. The weights
are under its MIT licence, misc/mtcnn_LICENSE.txt.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import torch

from preprocess.detector import torch_networks
from preprocess.mtcnn import CELL, NETWORK_FILES, OUTPUT_SIZE, REFINE_SIZE
from utils.cli import HelpFormatter, run_main
from utils.files import writable_folder
from utils.onnx_export import write_onnx

SIDES = 4 * CELL, REFINE_SIZE, OUTPUT_SIZE  # pixels, of the pictures that are traced
OUTPUTS = ["offsets", "probs"], ["offsets", "probs"], ["offsets", "landmarks", "probs"]


def export_networks(folder):
    """Write the three networks into a folder; returns their paths."""
    metadata = {"licence": "MIT, Copyright (c) 2019 Timothy Esler",
                "source": f"facenet-pytorch {version('facenet-pytorch')}"}
    paths = [Path(folder, name) for name in NETWORK_FILES]
    for network, side, outputs, path in zip(torch_networks(), SIDES, OUTPUTS, paths, strict=True):
        sizes = {0: "n"} if path.name != NETWORK_FILES[0] else {0: "n", 2: "h", 3: "w"}
        write_onnx(network, torch.zeros(2, 3, side, side), path, ("images", outputs), sizes,
                   metadata)
    return paths


def main():
    parser = argparse.ArgumentParser(prog="python -m preprocess.export_mtcnn",
                                     description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("folder", help="where the files are written")
    args = parser.parse_args()
    for path in export_networks(writable_folder(args.folder, "folder")):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    run_main(main)
