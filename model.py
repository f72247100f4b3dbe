"""The network: a backbone with its own input normalisation and a linear head over the age bins.

Every architecture is built the same way: features, global average pooling, dropout, one linear
layer. What an architecture needs beyond that stands in the tables at the top.
"""

import copy
import difflib
import warnings
from pathlib import Path

import pretrainedmodels
import timm
import torch
from torch import nn
from torch.nn import functional

from defaults import age_bins, parse_cfg

# pretrainedmodels lists a few names twice; its settings dict holds each of the 45 once.
LIBRARY_ARCHS = sorted(pretrainedmodels.pretrained_settings)
THIN_ARCHS = {"thinage": 0.5, "tinyage": 0.25}  # share of VGG16's channels (DLDL-v2)
TIMM_PREFIX = "timm/"
FACE_NORMALISATION = ([0.5958 * 255, 0.4637 * 255, 0.4065 * 255],
                      [0.2693 * 255, 0.2409 * 255, 0.2352 * 255])

# Their features end before the ReLU that the library applies in front of the pooling.
RELU_AFTER_FEATURES = ("alexnet", "vgg", "densenet", "nasnet", "pnasnet", "xception")
# What follows the features: the ImageNet classifier, and inceptionv3's second one.
CLASSIFIER_PARTS = ("last_linear", "last_conv", "AuxLogits")
# Their fully connected layers need a feature map of this side.
FLATTENED_SIDE = {"alexnet": 6, "vgg": 7}


def list_archs():
    """Sorted names for MODEL.ARCH; beside these, any timm model works as timm/NAME."""
    return sorted([*LIBRARY_ARCHS, *THIN_ARCHS])


def build_model(cfg):
    """The network MODEL.ARCH with one output per age bin, on the CPU, in training mode.

    Its weights come from where MODEL.PRETRAINED says: ImageNet, nowhere (random), or a
    checkpoint of the same architecture, whose head is left out, with a warning, where it has
    another number of bins.

    Args:
        cfg: config of defaults.load_cfg; MODEL.* and DATA.AGE_* are read.
    Returns:
        AgeModel.
    Raises:
        ValueError: unknown architecture, MODEL.IMG_SIZE too small for it, MODEL.DROP_PATH where
            there is none, a checkpoint of another architecture.
        OSError: the weights cannot be downloaded or read.
    """
    start = cfg.MODEL.PRETRAINED
    model = _build(cfg, imagenet=start == "imagenet")
    if start not in ("imagenet", "none"):
        _start_from(model, start, cfg.MODEL.ARCH)
    return model


def restore_model(checkpoint, device="cpu"):
    """The trained network of a checkpoint, in eval mode, and the config it was trained with.

    Args:
        checkpoint: dict of checkpoint.load_checkpoint; keys cfg (YAML text) and model.
        device: where the network goes.
    Returns:
        (AgeModel, frozen CfgNode).
    Raises:
        ValueError: the weights are not those of the architecture the config names.
    """
    cfg = parse_cfg(checkpoint["cfg"])
    model = _build(cfg, imagenet=False)
    problem = _mismatch(model.state_dict(), checkpoint["model"])
    if problem:
        raise ValueError(f"the checkpoint's weights do not fit its MODEL.ARCH "
                         f"'{cfg.MODEL.ARCH}': {problem}")
    model.load_state_dict(checkpoint["model"])
    return model.to(device).eval(), cfg


class AgeModel(nn.Module):
    """Backbone and head behind the backbone's own input normalisation.

    Args:
        backbone: module, normalised (B, 3, S, S) images -> (B, feature_count) features.
        feature_count: number of features.
        bin_count: number of age bins K.
        mean, std: (3,) per channel, of pixels 0..255, in the order the backbone takes them.
        bgr: whether the backbone takes BGR instead of RGB.
        dropout: share of the features dropped before the head in training.
    """

    def __init__(self, backbone, feature_count, bin_count, mean, std, bgr=False, dropout=0.0):
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(feature_count, bin_count)
        self.bgr = bgr
        # Buffers, so that a checkpoint carries the normalisation it was trained with.
        self.register_buffer("pixel_mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(std).view(1, 3, 1, 1))

    def normalise(self, pixels):
        """(B, 3, S, S) RGB pixels 0..255, uint8 or float -> images as the backbone takes them."""
        pixels = pixels.to(self.pixel_mean.dtype)
        if self.bgr:
            pixels = pixels.flip(1)
        return (pixels - self.pixel_mean) / self.pixel_std

    def forward(self, pixels):
        """(B, 3, S, S) RGB pixels 0..255, uint8 or float -> (B, K) logits over the age bins."""
        features = self.backbone(self.normalise(pixels))  # (B, C)
        return self.head(self.dropout(features))

    def head_parameters(self):
        """Parameters of the linear layer over the age bins."""
        return self.head.parameters()

    def backbone_parameters(self):
        """All the other parameters."""
        return self.backbone.parameters()


def _build(cfg, imagenet):
    arch, size = cfg.MODEL.ARCH, cfg.MODEL.IMG_SIZE
    if arch.startswith(TIMM_PREFIX):
        backbone, (mean, std, bgr) = _timm_backbone(arch, size, cfg.MODEL.DROP_PATH, imagenet)
    else:
        _check_arch(arch)
        if cfg.MODEL.DROP_PATH:
            raise ValueError(f"MODEL.DROP_PATH {cfg.MODEL.DROP_PATH} does nothing in "
                             f"MODEL.ARCH '{arch}'; set it to 0 or take a timm/NAME that has it")
    if arch in THIN_ARCHS:
        backbone = _ThinVGG(THIN_ARCHS[arch])
        mean, std, bgr = *FACE_NORMALISATION, False
    elif not arch.startswith(TIMM_PREFIX):
        backbone = _PooledFeatures(_library_network(arch), arch.startswith(RELU_AFTER_FEATURES))
        mean, std, bgr = _library_normalisation(arch)
    feature_count = _count_features(backbone, arch, size)
    return AgeModel(backbone, feature_count, len(age_bins(cfg)), mean, std, bgr,
                    cfg.MODEL.DROPOUT)


def _check_arch(arch):
    if arch in list_archs():
        return
    near = difflib.get_close_matches(arch, list_archs(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "train.py -h lists them"
    raise ValueError(f"unknown MODEL.ARCH '{arch}'; {hint} A timm model is written timm/NAME")


class _PooledFeatures(nn.Module):
    """Global average of a pretrainedmodels network's features: (B, 3, S, S) -> (B, C)."""

    def __init__(self, network, relu):
        super().__init__()
        self.network = network
        self.relu = relu

    def forward(self, images):
        features = self.network.features(images)  # (B, C, h, w), or (B, C) after linear layers
        if self.relu:
            features = functional.relu(features)
        return features.mean((2, 3)) if features.ndim == 4 else features


class _ThinVGG(nn.Sequential):
    """VGG16's convolutions with fewer channels, batch norm, hybrid pooling (DLDL-v2, section 3.4).

    Hybrid pooling is a 2x2 max pooling followed by global averaging, instead of VGG16's fully
    connected layers: (B, 3, S, S) -> (B, C).
    """

    def __init__(self, width):
        layers, channels = [], 3
        for block_channels, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convolutions):
                wider = int(block_channels * width)
                layers += [nn.Conv2d(channels, wider, 3, padding=1, bias=False),
                           nn.BatchNorm2d(wider), nn.ReLU(inplace=True)]
                channels = wider
            layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _library_network(arch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision by an older name
        network = pretrainedmodels.__dict__[arch](num_classes=1000, pretrained=None)
    for name in CLASSIFIER_PARTS:
        if hasattr(network, name):
            setattr(network, name, None)  # or its parameters would never get a gradient
    if arch == "inceptionv3":
        network.aux_logits = False
    for prefix, side in FLATTENED_SIDE.items():
        if arch.startswith(prefix):
            network._features.append(nn.AdaptiveAvgPool2d(side))
    # resnext101_* hand out one module for all their instances.
    return copy.deepcopy(network) if arch.startswith("resnext101") else network


def _library_normalisation(arch):
    (settings, *_) = pretrainedmodels.pretrained_settings[arch].values()
    scale = 255 / settings["input_range"][1]
    return ([value * scale for value in settings["mean"]],
            [value * scale for value in settings["std"]], settings["input_space"] == "BGR")


def _timm_backbone(arch, size, drop_path, imagenet):
    name = arch.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(TIMM_PREFIX + other for other in near)}?"
        raise ValueError(f"unknown MODEL.ARCH '{arch}'{hint if near else ''}")
    options = {"drop_path_rate": drop_path} if drop_path else {}
    backbone = timm.create_model(name, pretrained=imagenet, num_classes=0, **options)
    settings = backbone.pretrained_cfg
    return backbone, ([255 * value for value in settings["mean"]],
                      [255 * value for value in settings["std"]], False)


def _count_features(backbone, arch, size):
    backbone.eval()
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, size, size))
    backbone.train()
    return features.shape[1]


def _mismatch(expected, given):
    """What keeps the state dict `given` from loading, in words; empty where nothing does."""
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    reshaped = [f"{key} {tuple(given[key].shape)} for {tuple(expected[key].shape)}"
                for key in expected if key in given and given[key].shape != expected[key].shape]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if keys[3:] else ''})"
                     for what, keys in parts if keys)


def _start_from(model, path, arch):
    if not Path(path).is_file():
        raise FileNotFoundError(f"MODEL.PRETRAINED '{path}' is not a file; choose imagenet, none "
                                "or the path of a checkpoint")
    weights = dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    model.load_state_dict(weights)
