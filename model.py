"""The network: a backbone with its own input normalisation and a linear head over the age bins.

Every architecture is built the same way: features, global average pooling, dropout, one linear
layer. What an architecture needs beyond that stands in the tables at the top.
"""

import copy
import difflib
import warnings

import pretrainedmodels
import timm
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional

from checkpoint import load_checkpoint
from defaults import age_bins, parse_cfg
from pretrained import TIMM_PREFIX, load_imagenet
from utils.download import find_model

THIN_ARCHS = {"thinage": 0.5, "tinyage": 0.25}  # share of VGG16's channels (DLDL-v2)
# Mean and std of face photos, 0..1, with which DLDL-v2's authors train both.
FACE_MEAN, FACE_STD = (0.5958, 0.4637, 0.4065), (0.2693, 0.2409, 0.2352)

# Their features end before the ReLU that the library applies in front of the pooling.
RELU_AFTER_FEATURES = ("alexnet", "vgg", "densenet", "nasnet", "pnasnet", "xception")
# What follows the features: the ImageNet classifier, and inceptionv3's second one.
CLASSIFIER_PARTS = ("last_linear", "last_conv", "AuxLogits")
# Their fully connected layers need a feature map of this side.
FLATTENED_SIDE = {"alexnet": 6, "vgg": 7}

LARGEST_SIZE = 512  # pixels, where the search for a size that works ends


def list_archs():
    """Sorted names for MODEL.ARCH; beside these, any timm model works as timm/NAME."""
    return sorted([*pretrainedmodels.pretrained_settings, *THIN_ARCHS])


def build_model(cfg):
    """The network MODEL.ARCH with one output per age bin, on the CPU, in training mode.

    Its weights come from where MODEL.PRETRAINED says: `imagenet`, `none` (random), or a
    checkpoint (see download.find_model) of the same architecture, whose head is left out, with a
    warning, where it was trained for other age bins.

    Args:
        cfg: config of defaults.load_cfg; MODEL.* and DATA.AGE_* are read.
    Returns:
        AgeModel.
    Raises:
        ValueError: unknown architecture, MODEL.IMG_SIZE it cannot take, MODEL.DROP_PATH where
            there is none, no ImageNet weights, a checkpoint of another architecture.
        OSError: the weights cannot be downloaded or read.
    """
    model = _build(cfg)
    start = cfg.MODEL.PRETRAINED
    if start == "imagenet":
        load_imagenet(model.backbone, cfg.MODEL.ARCH, cfg.MODEL.IMG_SIZE)
    elif start != "none":
        _load_start(model, start, cfg)
    return model


def restore_model(checkpoint, device="cpu"):
    """The trained network of a checkpoint, in eval mode, and the config it was trained with.

    Args:
        checkpoint: dict of checkpoint.load_checkpoint; its keys cfg and model are read.
        device: where the network goes.
    Returns:
        (AgeModel, frozen CfgNode).
    Raises:
        ValueError: the weights are not those of the architecture the config names.
    """
    cfg = parse_cfg(checkpoint["cfg"])
    model = _build(cfg)
    _load_strictly(model, checkpoint["model"], f"the checkpoint's MODEL.ARCH '{cfg.MODEL.ARCH}'")
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


def _build(cfg):
    """The network of the config with random weights."""
    arch, size = cfg.MODEL.ARCH, cfg.MODEL.IMG_SIZE
    _check_arch(arch)
    try:
        backbone = _backbone(arch, size, cfg.MODEL.DROP_PATH)
        feature_count = _feature_shape(backbone, size)[1]
    except (RuntimeError, AssertionError) as error:  # the libraries' ways to refuse a size
        raise ValueError(_size_message(arch, size, error)) from error
    mean, std, bgr = _normalisation(arch)
    return AgeModel(backbone, feature_count, len(age_bins(cfg)), mean, std, bgr,
                    cfg.MODEL.DROPOUT)


def _backbone(arch, size, drop_path=0.0):
    """Module (B, 3, S, S) -> (B, C) with random weights; size matters to transformers only."""
    if arch.startswith(TIMM_PREFIX):
        backbone = _timm_backbone(arch.removeprefix(TIMM_PREFIX), size, drop_path)
    elif arch in THIN_ARCHS:
        backbone = _ThinVGG(THIN_ARCHS[arch])
    else:
        backbone = _PooledFeatures(arch)
    if drop_path and not any(isinstance(part, DropPath) and part.drop_prob
                             for part in backbone.modules()):
        raise ValueError(f"MODEL.DROP_PATH {drop_path}: MODEL.ARCH '{arch}' has no stochastic "
                         "depth; set it to 0 or take a timm model that has, such as timm/resnet50")
    return backbone


def _check_arch(arch):
    if arch.startswith(TIMM_PREFIX):
        name, known, prefix = arch.removeprefix(TIMM_PREFIX), timm.list_models(), TIMM_PREFIX
        if timm.is_model(name) and ("." not in name or name in timm.list_pretrained()):
            return
    else:
        name, known, prefix = arch, list_archs(), ""
        if name in known:
            return
    near = [other for other in known if name and other.startswith(name)][:3] \
        or difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(prefix + other for other in near)}?" if near \
        else "train.py -h lists them; a timm model is written timm/NAME"
    raise ValueError(f"unknown MODEL.ARCH '{arch}'; {hint}")


def _normalisation(arch):
    """(mean, std, bgr) of an architecture's input, by its library; of pixels 0..255."""
    if arch.startswith(TIMM_PREFIX):
        settings = timm.get_pretrained_cfg(arch.removeprefix(TIMM_PREFIX))
        mean, std, largest, bgr = settings.mean, settings.std, 1, False
    elif arch in THIN_ARCHS:
        mean, std, largest, bgr = FACE_MEAN, FACE_STD, 1, False
    else:
        (settings, *_) = pretrainedmodels.pretrained_settings[arch].values()
        mean, std, largest = settings["mean"], settings["std"], settings["input_range"][1]
        bgr = settings["input_space"] == "BGR"
    scale = 255 / largest
    return [scale * value for value in mean], [scale * value for value in std], bgr


class _PooledFeatures(nn.Module):
    """Global average of a pretrainedmodels network's features: (B, 3, S, S) -> (B, C)."""

    def __init__(self, arch):
        super().__init__()
        self.network = _library_network(arch)
        self.relu = arch.startswith(RELU_AFTER_FEATURES)

    def forward(self, images):
        features = self.network.features(images)  # (B, C, h, w), or (B, C) after linear layers
        if self.relu:
            features = functional.relu(features)
        return features.mean((2, 3)) if features.ndim == 4 else features


def _library_network(arch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision by an older signature
        network = pretrainedmodels.__dict__[arch](num_classes=1000, pretrained=None)
    for name in CLASSIFIER_PARTS:
        if hasattr(network, name):
            setattr(network, name, None)  # its parameters would never get a gradient
    if arch == "inceptionv3":
        network.aux_logits = False
    for prefix, side in FLATTENED_SIDE.items():
        if arch.startswith(prefix):
            # Flattened here: the library's own view() cannot read a channels-last map.
            network._features.append(nn.AdaptiveAvgPool2d(side)).append(nn.Flatten())
    # resnext101_* hand out one module to all their instances.
    return copy.deepcopy(network) if arch.startswith("resnext101") else network


class _ThinVGG(nn.Sequential):
    """VGG16's convolutions with fewer channels, batch norm, hybrid pooling (DLDL-v2).

    Gao et al., "Age Estimation Using Expectation of Label Distribution Learning", IJCAI 2018.
    Hybrid pooling is VGG16's last max pooling followed by global averaging in the place of the
    fully connected layers. The authors pretrain on MS-Celeb-1M; here it starts from random
    weights, initialised as theirs.

    Args:
        width: share of VGG16's channels.
    """

    def __init__(self, width):
        layers, channels = [], 3
        for block_channels, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convolutions):
                convolution = nn.Conv2d(channels, int(block_channels * width), 3, padding=1,
                                        bias=False)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                channels = convolution.out_channels
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _timm_backbone(name, size, drop_path=0.0, **options):
    if drop_path:
        options["drop_path_rate"] = drop_path
    if _has_fixed_size(name):
        options["img_size"] = size  # the position embedding has the input's size
    try:
        return timm.create_model(name, num_classes=0, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        return timm.create_model(name, num_classes=0)  # it does not know stochastic depth


def _has_fixed_size(name):
    return timm.get_pretrained_cfg(name).fixed_input_size


def _feature_shape(backbone, size):
    """(1, C), found by running the backbone once; raises what it raises for a wrong size."""
    backbone.eval()
    with torch.no_grad():
        shape = backbone(torch.zeros(1, 3, size, size)).shape
    backbone.train()
    return shape


def _size_message(arch, size, error):
    larger = _next_size(arch, size)
    way_out = f"the smallest larger one that does is {larger}" if larger \
        else " ".join(str(error).split())
    return f"MODEL.IMG_SIZE {size} does not work with MODEL.ARCH '{arch}'; {way_out}"


def _next_size(arch, size):
    """The smallest input size above `size` an architecture can take; None up to LARGEST_SIZE."""
    rebuild = arch.startswith(TIMM_PREFIX) and _has_fixed_size(arch.removeprefix(TIMM_PREFIX))
    with torch.device("meta"):  # shapes without numbers: fast
        backbone = None
        for larger in range(size + 1, LARGEST_SIZE + 1):
            try:
                if rebuild or backbone is None:
                    backbone = _backbone(arch, larger).to("meta")
                _feature_shape(backbone, larger)
                return larger
            except (RuntimeError, AssertionError):
                continue
    return None


def _load_start(model, path, cfg):
    """Start from a checkpoint's weights, except the head where its age bins are others."""
    try:
        checkpoint = load_checkpoint(find_model(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"MODEL.PRETRAINED: {error}; or choose imagenet or none") from error
    trained_cfg = parse_cfg(checkpoint["cfg"])
    if trained_cfg.MODEL.ARCH != cfg.MODEL.ARCH:
        raise ValueError(f"MODEL.PRETRAINED '{path}' holds a '{trained_cfg.MODEL.ARCH}', not the "
                         f"MODEL.ARCH '{cfg.MODEL.ARCH}'; set MODEL.ARCH to match")
    weights = checkpoint["model"]
    if age_bins(trained_cfg) != age_bins(cfg):
        head = {name: tensor for name, tensor in model.state_dict().items()
                if name.startswith("head.")}
        weights = {**weights, **head}
        warnings.warn(f"MODEL.PRETRAINED '{path}' was trained for the ages "
                      f"{trained_cfg.DATA.AGE_MIN} to {trained_cfg.DATA.AGE_MAX}; its head is "
                      "left out and starts from random weights", stacklevel=3)
    _load_strictly(model, weights, f"MODEL.PRETRAINED '{path}'")


def _load_strictly(model, weights, name):
    expected = model.state_dict()
    differences = {
        "missing": [key for key in expected if key not in weights],
        "unexpected": [key for key in weights if key not in expected],
        "of another shape": [key for key in expected if key in weights
                             and weights[key].shape != expected[key].shape]}
    problems = [f"{len(keys)} tensors {what} ({', '.join(keys[:3])}{', ...' if keys[3:] else ''})"
                for what, keys in differences.items() if keys]
    if problems:
        raise ValueError(f"{name}: the weights do not fit: {'; '.join(problems)}")
    model.load_state_dict(weights)
