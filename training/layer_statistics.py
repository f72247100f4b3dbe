"""Mean and standard deviation of the output of each convolution, for weights from faces.

    python -m training.layer_statistics vggface2 PACKAGE OUT.npz \\
      --data_dir UTKFace appa-real-release --dataset utkface appa_real

writes what the `statistics` of face_weights.PACKAGES hold: measured on FACES training faces, drawn
at random, at the size that the network learned from, not augmented.
"""

import argparse
import tarfile
import zipfile

import cv2
import numpy as np
import torch
from tqdm import tqdm

from dataset import FaceDataset
from defaults import load_cfg
from lists import pair_folders, read_sources
from model import build_model
from networks.face_weights import PACKAGES, folded_weights
from utils.cli import HelpFormatter, add_data_flags, run_main
from utils.files import replaced

MIN_STD = 1e-4  # of a channel that never changes
FACES, SEED = 1024, 0
CHUNK = 64  # faces that pass through the network at once


class Moments:
    """Forward hook that adds up the outputs of a convolution, (B, C, H, W), for each channel."""

    def __init__(self):
        self.count, self.sums, self.squares = 0, 0, 0

    def __call__(self, module, inputs, output):
        values = output.double()
        self.count += values[:, 0].numel()
        self.sums = self.sums + values.sum((0, 2, 3))
        self.squares = self.squares + values.square().sum((0, 2, 3))

    def mean_and_std(self):
        """((C,), (C,)) float64."""
        mean = self.sums / self.count
        variance = (self.squares - self.count * mean.square()) / (self.count - 1)
        return mean, variance.clamp(min=MIN_STD ** 2).sqrt()


def write_statistics(path, layers, network, images):
    """Measure a package's convolutions on faces and write the statistics of the package.

    Args:
        path: .npz file to write, in half precision.
        layers: list of FoldedLayer, from a package's read().
        network: backbone of the package's architecture; its weights are replaced.
        images: (B, 3, S, S) faces, normalised by AgeModel.normalise().
    """
    moments = {layer.norm: Moments() for layer in layers if layer.norm}
    hooks = [network.get_submodule(layer.conv).register_forward_hook(moments[layer.norm])
             for layer in layers if layer.norm]
    network.load_state_dict(folded_weights(layers))
    network.eval()
    with torch.no_grad():
        for chunk in tqdm(images.split(CHUNK), desc="faces", leave=False, disable=None):
            network(chunk)
    for hook in hooks:
        hook.remove()
    measured = {}
    for norm, layer_moments in moments.items():
        mean, std = layer_moments.mean_and_std()
        measured |= {f"{norm}.mean": mean.numpy().astype(np.float16),
                     f"{norm}.std": std.numpy().astype(np.float16)}
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **measured)


def main():
    parser = argparse.ArgumentParser(prog="python -m training.layer_statistics",
                                     description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("source", choices=PACKAGES, help="whose weights")
    parser.add_argument("package", metavar="PACKAGE", help="file of its package")
    parser.add_argument("output", metavar="OUT", help="file to write (.npz)")
    add_data_flags(parser)
    args = parser.parse_args()
    package = PACKAGES[args.source]
    try:
        layers = package.read(args.package)
    except (KeyError, tarfile.ReadError, zipfile.BadZipFile, cv2.error) as error:
        raise ValueError(f"'{args.package}' does not hold the network of the {package.name}; "
                         f"fetch it with: {package.command}") from error
    cfg = load_cfg(opts=["MODEL.ARCH", package.arch, "MODEL.PRETRAINED", "none",
                         "MODEL.IMG_SIZE", str(package.size), "DATA.CACHE", "False"])
    faces = read_sources(pair_folders(args.data_dir, args.dataset, args.list_dir), "train", cfg)
    drawn = faces.sample(min(FACES, len(faces)), random_state=SEED).reset_index(drop=True)
    data, model = FaceDataset(drawn, cfg, train=False), build_model(cfg)
    pixels = data.batch([(0, index) for index in range(len(data))])["pixels"]
    write_statistics(args.output, layers, model.backbone, model.normalise(pixels))
    print(f"{args.output}: measured on {len(data):,} faces")


if __name__ == "__main__":
    run_main(main)
