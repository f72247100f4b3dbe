"""The network: a backbone, its own input normalisation, and a linear head over the age bins.

Every architecture has the same parts: features, one vector of them for each face (mostly their
average; VGG, AlexNet and transformers have their own way), dropout, one linear layer.
First come the network and the functions that build one, then the backbones from libraries. What
neither library has is in networks/.
pretrainedmodels and timm take seconds to import: only the functions that need them do it.
"""

import copy
import difflib
import warnings
from contextlib import suppress

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from checkpoint import load_checkpoint
from defaults import ARCHS, age_bins, parse_cfg
from losses import ORDINAL, ordinal_log_probs
from networks.own_archs import OWN_ARCHS
from pretrained import (
    SOURCES,
    TIMM_PREFIX,
    find_source,
    import_pretrainedmodels,
    load_pretrained,
)
from utils.download import find_model

MAX_SIZE_TRIED = 512  # pixels, the last one tried after one that does not work


class AgeModel(nn.Module):
    """Pixels in, one logit for each age bin out; in training what its head gives.

    Args:
        backbone: module, normalised (B, 3, S, S) images -> (B, feature_count) features.
        feature_count: number of features.
        bin_count: number of age bins K.
        mean, std: (3,) of pixels 0..255, in the channel order of the backbone.
        bgr: True if the backbone takes BGR instead of RGB.
        dropout: share of the features that training drops in front of the head.
        is_ordinal: True for the head of a loss of losses.ORDINAL.
    """

    def __init__(self, backbone, feature_count, bin_count, mean, std, bgr=False, dropout=0.0,
                 is_ordinal=False):
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = OrdinalHead(feature_count, bin_count - 1) if is_ordinal \
            else nn.Linear(feature_count, bin_count)
        self.bgr = bgr
        # Buffers, so that a checkpoint holds the normalisation that it was trained with.
        self.register_buffer("pixel_mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(std).view(1, 3, 1, 1))

    def normalise(self, pixels):
        """(B, 3, S, S) RGB pixels 0..255, uint8 or float -> the backbone's input."""
        pixels = pixels.to(self.pixel_mean.dtype)
        if self.bgr:
            pixels = pixels.flip(1)
        return (pixels - self.pixel_mean) / self.pixel_std

    def forward(self, pixels):
        """(B, 3, S, S) RGB pixels 0..255, uint8 or float -> (B, K) logits over the age bins.

        In training mode an OrdinalHead gives (B, K - 1) binary outputs instead.
        """
        features = self.backbone(self.normalise(pixels))  # (B, C)
        return self.head(self.dropout(features))

    def head_parameters(self):
        """Parameters of the linear layer over the age bins."""
        return self.head.parameters()

    def backbone_parameters(self):
        """All other parameters."""
        return self.backbone.parameters()


class OrdinalHead(nn.Linear):
    """A linear layer with an output for each age bin but the last: is the face older?

    In training mode it gives these outputs, which the loss takes; else the log-probabilities of the
    ages. So whatever uses a trained network need not know about it.
    """

    def forward(self, features):
        """(B, C) -> (B, K - 1) logits of P(age > bin), or (B, K) log-probabilities of the ages."""
        older = super().forward(features)
        return older if self.training else ordinal_log_probs(older.float())


class PixelsToProbs(nn.Module):
    """A trained network as a function: pixels -> probabilities, calibrated.

    The formula is the one of metrics.face_temperatures. An .onnx file computes this, and a teacher.

    Args:
        model: AgeModel in eval mode.
        temperature: T of the calibration, one number or two.
        bin_count: number of age bins K.
    """

    def __init__(self, model, temperature, bin_count):
        super().__init__()
        self.model = model
        self.first, self.last = np.broadcast_to(np.log(temperature), 2).tolist()
        self.register_buffer("positions", torch.linspace(0, 1, bin_count))

    def forward(self, pixels):
        """(N, 3, S, S) uint8 RGB -> calibrated probabilities and uncalibrated log-probabilities.

        Both are (N, K) float32.
        """
        log_probs = self.model(pixels).float().log_softmax(dim=1)
        position = (log_probs.exp() * self.positions).sum(dim=1, keepdim=True)  # (N, 1), 0..1
        temperature = (self.first + (self.last - self.first) * position).exp()
        return (log_probs / temperature).softmax(dim=1), log_probs


def build_model(cfg):
    """The network MODEL.ARCH with one output for each age bin, on the CPU, in training mode.

    MODEL.PRETRAINED names its first weights: a source such as `imagenet` (see
    pretrained.find_source), `none` (random weights), or a checkpoint of the same architecture
    (see download.find_model). The head of that checkpoint is left out with a warning if it was
    trained for other age bins, or if only one of the two networks has binary outputs.

    Args:
        cfg: config from defaults.load_cfg(); MODEL.*, DATA.AGE_* and LOSS.NAME are read.
    Returns:
        AgeModel.
    Raises:
        ValueError: an unknown architecture; a MODEL.IMG_SIZE that it cannot take; MODEL.DROP_PATH
            for one without stochastic depth; a source without weights for it; a checkpoint of
            another architecture.
        OSError: the weights cannot be downloaded or read.
    """
    model = _build(cfg)
    if cfg.MODEL.ARCH.startswith(TIMM_PREFIX):
        _refuse_cut_patches(model.backbone, cfg)
    start = cfg.MODEL.PRETRAINED
    if find_source(start):
        load_pretrained(start, model.backbone, cfg.MODEL.ARCH, cfg.MODEL.IMG_SIZE)
    elif start != "none":
        _load_start(model, start, cfg)
    return model


def restore_model(checkpoint, device="cpu"):
    """The trained network of a checkpoint, in eval mode, and the config it was trained with.

    Args:
        checkpoint: dict from checkpoint.load_checkpoint(); `cfg` and `model` are read.
        device: device of the returned network.
    Returns:
        (AgeModel, frozen CfgNode).
    Raises:
        ValueError: the weights do not fit the architecture that the config names.
    """
    cfg = parse_cfg(checkpoint["cfg"])
    model = _build(cfg)
    _load_strictly(model, checkpoint["model"], f"the checkpoint's MODEL.ARCH '{cfg.MODEL.ARCH}'")
    return model.to(device).eval(), cfg


def input_normalisation(arch):
    """The input that the first weights of an architecture were trained on.

    Args:
        arch: a MODEL.ARCH.
    Returns:
        (mean, std, bgr): lists of 3 numbers for pixels 0..255, and True for BGR.
    """
    if arch in OWN_ARCHS:
        return OWN_ARCHS[arch][1:]
    if arch.startswith(TIMM_PREFIX):
        import timm
        settings = timm.get_pretrained_cfg(arch.removeprefix(TIMM_PREFIX))
        mean, std, white, bgr = settings.mean, settings.std, 1, False
    else:
        (settings, *_) = import_pretrainedmodels().pretrained_settings[arch].values()
        mean, std, white = settings["mean"], settings["std"], settings["input_range"][1]
        bgr = settings["input_space"] == "BGR"
    scale = 255 / white
    return [scale * value for value in mean], [scale * value for value in std], bgr


def _build(cfg):
    """The network of the config with random weights."""
    arch, size = cfg.MODEL.ARCH, cfg.MODEL.IMG_SIZE
    _check_arch(arch)
    try:
        backbone = _backbone(arch, size, cfg.MODEL.DROP_PATH)
        feature_count = _count_features(backbone, size)
    except (RuntimeError, AssertionError) as error:  # the libraries refuse a size with these
        raise ValueError(_size_message(arch, size, error)) from error
    mean, std, bgr = input_normalisation(arch)
    return AgeModel(backbone, feature_count, len(age_bins(cfg)), mean, std, bgr,
                    cfg.MODEL.DROPOUT, cfg.LOSS.NAME in ORDINAL)


def _refuse_cut_patches(backbone, cfg):
    """Refuse a size at which a transformer would not see the right and lower edge of the faces."""
    from timm.layers import PatchEmbed
    patches, size = getattr(backbone, "patch_embed", None), cfg.MODEL.IMG_SIZE
    if not isinstance(patches, PatchEmbed) or patches.dynamic_img_pad or not patches.patch_size:
        return
    side = max(patches.patch_size)
    if size % side:
        raise ValueError(f"MODEL.IMG_SIZE {size}: MODEL.ARCH '{cfg.MODEL.ARCH}' sees patches of "
                         f"{side} pixels and would leave out the edge of each face; choose a "
                         f"multiple, such as {size + side - size % side}")


def _check_arch(arch):
    name, known, prefix = arch, ARCHS, ""
    if arch.startswith(TIMM_PREFIX):
        import timm
        name, known, prefix = arch.removeprefix(TIMM_PREFIX), timm.list_models(), TIMM_PREFIX
        if timm.is_model(name) and ("." not in name or name in timm.list_pretrained()):
            return
    elif name in known:
        return
    near = [other for other in known if name and other.startswith(name)][:3] \
        or difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(prefix + other for other in near)}?" if near \
        else "train.py -h lists them; a timm model is written timm/NAME"
    raise ValueError(f"unknown MODEL.ARCH '{arch}'; {hint}")


def _count_features(backbone, size):
    """Number of features, by one run; raises what the backbone raises for a wrong size."""
    backbone.eval()
    with torch.no_grad():
        count = backbone(torch.zeros(1, 3, size, size)).shape[1]
    backbone.train()
    return count


def _size_message(arch, size, error):
    works = _next_size(arch, size)
    way_out = f"the next larger size that does is {works}" if works \
        else " ".join(str(error).split())
    return f"MODEL.IMG_SIZE {size} does not work with MODEL.ARCH '{arch}'; {way_out}"


def _next_size(arch, size):
    """The smallest larger input size that an architecture takes, or None."""
    with torch.device("meta"):  # shapes without numbers: fast
        for larger in range(size + 1, MAX_SIZE_TRIED + 1):
            with suppress(RuntimeError, AssertionError):
                _count_features(_backbone(arch, larger), larger)
                return larger
    return None


def _load_start(model, path, cfg):
    """Start from a checkpoint's weights; without its head if that has other outputs."""
    try:
        checkpoint = load_checkpoint(find_model(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"MODEL.PRETRAINED '{path}' not found; name a .pth file, an https "
                                "URL ending in #sha256=HEX, `default`, or one of "
                                f"{', '.join(SOURCES)} and none") from error
    trained_cfg = parse_cfg(checkpoint["cfg"])
    if trained_cfg.MODEL.ARCH != cfg.MODEL.ARCH:
        raise ValueError(f"MODEL.PRETRAINED '{path}' holds a '{trained_cfg.MODEL.ARCH}', not the "
                         f"MODEL.ARCH '{cfg.MODEL.ARCH}'; set MODEL.ARCH to match")
    weights = checkpoint["model"]
    if _outputs(trained_cfg) != _outputs(cfg):
        head = {name: tensor for name, tensor in model.state_dict().items()
                if name.startswith("head.")}
        weights = {**weights, **head}
        warnings.warn(f"MODEL.PRETRAINED '{path}' was trained for the ages "
                      f"{trained_cfg.DATA.AGE_MIN} to {trained_cfg.DATA.AGE_MAX} with LOSS.NAME "
                      f"{trained_cfg.LOSS.NAME}; its head is left out and starts from random "
                      "weights", stacklevel=3)
    _load_strictly(model, weights, f"MODEL.PRETRAINED '{path}'")


def _outputs(cfg):
    """What the outputs of a network's head mean."""
    return age_bins(cfg), cfg.LOSS.NAME in ORDINAL


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


# ---- Backbones: (B, 3, S, S) images -> (B, C) features ------------------------------------

def _backbone(arch, size, drop_path=0.0):
    """The backbone of an architecture with random weights; only transformers need the size."""
    if arch.startswith(TIMM_PREFIX):
        backbone = _timm_backbone(arch.removeprefix(TIMM_PREFIX), size, drop_path)
    elif arch in OWN_ARCHS:
        backbone = OWN_ARCHS[arch].build()
    else:
        backbone = PooledFeatures(arch)
    if drop_path and not _has_stochastic_depth(backbone):
        raise ValueError(f"MODEL.DROP_PATH {drop_path}: MODEL.ARCH '{arch}' has no stochastic "
                         "depth; set it to 0 or take a timm model that has, such as timm/resnet50")
    return backbone


def _has_stochastic_depth(backbone):
    from timm.layers import DropPath
    return any(isinstance(part, DropPath) and part.drop_prob for part in backbone.modules())


# The library applies a ReLU between the features of these and the pooling.
RELU_AFTER_FEATURES = ("alexnet", "vgg", "densenet", "nasnet", "pnasnet", "xception")
# What follows the features: the ImageNet classifier, and the second one of inceptionv3.
CLASSIFIER_PARTS = ("last_linear", "last_conv", "AuxLogits")
# The fully connected layers of these need a feature map of this side.
FLATTENED_SIDE = {"alexnet": 6, "vgg": 7}


class PooledFeatures(nn.Module):
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
    library = import_pretrainedmodels()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision by an older signature
        network = vars(library)[arch](num_classes=1000, pretrained=None)
    for name in CLASSIFIER_PARTS:
        if hasattr(network, name):
            setattr(network, name, None)  # its parameters would never get a gradient
    if arch == "inceptionv3":
        network.aux_logits = False
    for prefix, side in FLATTENED_SIDE.items():
        if arch.startswith(prefix):
            # Flattened here: the library's own view() cannot read a channels-last map.
            network._features.append(nn.AdaptiveAvgPool2d(side)).append(nn.Flatten())
    if arch.startswith("resnext101"):  # all of its instances share modules made at import
        network = copy.deepcopy(network).to(torch.empty(0).device)
    return network


def _timm_backbone(name, size, drop_path):
    import timm
    options = {"num_classes": 0}
    if timm.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = size  # the position embedding has the size of the input
    try:
        return timm.create_model(name, drop_path_rate=drop_path or None, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        return timm.create_model(name, **options)  # it does not know stochastic depth
