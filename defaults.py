"""Every number and choice of an experiment, with its default.

Anything here can be changed after the flags of train.py (`TRAIN.LR 0.01 MODEL.ARCH resnet50`)
or in a recipe (`--cfg configs/NAME.yaml`); test.py and demo.py read it from the checkpoint.
"""

import contextlib
import difflib
import math
from pathlib import Path

import yaml
from yacs.config import CfgNode

_C = CfgNode()

_C.MODEL = CfgNode()
_C.MODEL.ARCH = "se_resnext50_32x4d"  # pretrainedmodels name, thinage, tinyage or timm/NAME
_C.MODEL.IMG_SIZE = 224  # pixels, side of the square network input
_C.MODEL.PRETRAINED = "imagenet"  # imagenet | none | path, name or URL of a checkpoint
_C.MODEL.DROPOUT = 0.0  # share of features dropped before the head
_C.MODEL.DROP_PATH = 0.0  # stochastic depth rate, timm models that have it

_C.DATA = CfgNode()
_C.DATA.AGE_MIN = 0  # years, first age bin
_C.DATA.AGE_MAX = 100  # years, last age bin; the head has AGE_MAX - AGE_MIN + 1 outputs
_C.DATA.MARGIN = 0.0  # share of the face box added on each side before the crop
_C.DATA.APPA_REAL_LABEL = "apparent"  # apparent | real: which age of APPA-REAL is learned
_C.DATA.EXCLUDE = ""  # CSV of photo names to leave out, first column; none by default
_C.DATA.CACHE = True  # keep the resized crops in a memory-mapped file
_C.DATA.CONTEXT = 0.1  # share of the crop kept around it in the cache, for augmentation to turn in

_C.AUG = CfgNode()  # training only; a probability is of one image, a range is uniform
_C.AUG.STRENGTH = 1.0  # scales the whole of it; 0 turns augmentation off
_C.AUG.FLIP = 0.5  # probability of mirroring
_C.AUG.ROTATION = 15.0  # degrees to either side
_C.AUG.CROP_AREA = 0.7  # smallest share of the crop's area that is kept
_C.AUG.STRETCH = 0.1  # largest relative change of the aspect ratio
_C.AUG.SHIFT = 0.05  # share of the side, to each side, beside what the crop allows
_C.AUG.BRIGHTNESS = 0.3  # factor 1 - b to 1 + b
_C.AUG.CONTRAST = 0.3  # factor 1 - c to 1 + c
_C.AUG.SATURATION = 0.3  # factor 1 - s to 1 + s
_C.AUG.GAMMA = 0.3  # exponent (1 + g) ** u, u in -1..1
_C.AUG.GRAYSCALE = 0.1  # probability
_C.AUG.BLUR = 0.1  # probability of a Gaussian blur
_C.AUG.RESOLUTION = 0.0  # probability of a loss of resolution, down to a quarter of the side
_C.AUG.NOISE = 0.1  # probability of Gaussian noise
_C.AUG.JPEG = 0.0  # probability of JPEG compression, of quality 20 to 90
_C.AUG.ERASING = 0.25  # probability of erasing a rectangle

_C.LOSS = CfgNode()
_C.LOSS.NAME = "kl_l1"  # kl | kl_l1 | ce | mean_variance
_C.LOSS.LABEL = "gaussian"  # gaussian | vote_std | votes: the label distribution
_C.LOSS.STD_FLOOR = 1.0  # years, least sigma of vote_std
_C.LOSS.L1_WEIGHT = 1.0  # lambda of kl_l1 (DLDL-v2)
_C.LOSS.MEAN_WEIGHT = 0.2  # lambda 1 of mean_variance
_C.LOSS.VARIANCE_WEIGHT = 0.05  # lambda 2 of mean_variance
_C.LOSS.INTERVAL_WEIGHT = 1.0  # weight of a face whose age is known as an interval
_C.LOSS.RARE_AGE_POWER = 0.0  # weight of an age: its frequency to minus this; 0.5: square root
_C.LOSS.TEACHER = ""  # predictions of the training faces to learn from as well: CSV, folder, glob
_C.LOSS.TEACHER_WEIGHT = 0.5  # share of the loss that compares with them

_C.TRAIN = CfgNode()
_C.TRAIN.OPT = "adam"  # adam | adamw | sgd
_C.TRAIN.WORKERS = 8  # loader processes, at most one a CPU core is started
_C.TRAIN.LR = 0.001  # of the head and, times BACKBONE_LR_SCALE, of the backbone
_C.TRAIN.BACKBONE_LR_SCALE = 1.0  # learning rate of the backbone relative to the head's
_C.TRAIN.SCHEDULE = "step"  # step | cosine
_C.TRAIN.LR_DECAY_STEP = 20  # epochs between two decays of the step schedule
_C.TRAIN.LR_DECAY_RATE = 0.2  # factor of each
_C.TRAIN.WARMUP_EPOCHS = 0.0  # epochs of linear warm-up, either schedule
_C.TRAIN.MOMENTUM = 0.9  # sgd
_C.TRAIN.WEIGHT_DECAY = 0.0  # matrices and kernels only under adamw, all parameters otherwise
_C.TRAIN.BATCH_SIZE = 128  # total over all processes
_C.TRAIN.EPOCHS = 80
_C.TRAIN.AGE_STDDEV = 2.0  # years, sigma of the label distribution and of interval edges
_C.TRAIN.CLIP_NORM = 0.0  # largest gradient norm, 0: not clipped
_C.TRAIN.EMA_DECAY = 0.0  # of the averaged weights, a step; 0: off. Validated and saved when on
_C.TRAIN.AMP = "auto"  # auto | bf16 | fp16 | off: mixed precision with channels_last
_C.TRAIN.SEED = 0
_C.TRAIN.DETERMINISTIC = False  # bitwise repeatable; on a GPU slower, alexnet and vgg* cannot

_C.TEST = CfgNode()
_C.TEST.WORKERS = 8  # loader processes, at most one a CPU core is started
_C.TEST.BATCH_SIZE = 128
_C.TEST.TTA = False  # average each face's distribution with its mirror image's
_C.TEST.DECODE = "mean"  # mean | median: how a distribution becomes an age

CHOICES = {
    "DATA.APPA_REAL_LABEL": ("apparent", "real"),
    "LOSS.NAME": ("kl", "kl_l1", "ce", "mean_variance"),
    "LOSS.LABEL": ("gaussian", "vote_std", "votes"),
    "TRAIN.OPT": ("adam", "adamw", "sgd"),
    "TRAIN.SCHEDULE": ("step", "cosine"),
    "TRAIN.AMP": ("auto", "bf16", "fp16", "off"),
    "TEST.DECODE": ("mean", "median"),
}
FREE_OF_CHECKPOINT = ("DATA.CACHE", "DATA.EXCLUDE")  # say nothing of the network
POSITIVE = ("MODEL.IMG_SIZE", "TRAIN.LR", "TRAIN.LR_DECAY_STEP", "TRAIN.BATCH_SIZE",
            "TRAIN.EPOCHS", "TRAIN.AGE_STDDEV", "TEST.BATCH_SIZE", "LOSS.STD_FLOOR")
NOT_NEGATIVE = ("TRAIN.WORKERS", "TEST.WORKERS", "TRAIN.WARMUP_EPOCHS", "TRAIN.CLIP_NORM",
                "TRAIN.WEIGHT_DECAY", "TRAIN.SEED", "TRAIN.BACKBONE_LR_SCALE",
                "TRAIN.LR_DECAY_RATE", "TRAIN.MOMENTUM", "AUG.STRENGTH", "AUG.ROTATION",
                "LOSS.RARE_AGE_POWER", "LOSS.L1_WEIGHT", "LOSS.MEAN_WEIGHT",
                "LOSS.VARIANCE_WEIGHT", "LOSS.INTERVAL_WEIGHT")
SHARES = ("MODEL.DROPOUT", "MODEL.DROP_PATH", "TRAIN.EMA_DECAY", "LOSS.TEACHER_WEIGHT",
          "DATA.CONTEXT", "AUG.FLIP", "AUG.CROP_AREA", "AUG.STRETCH", "AUG.SHIFT",
          "AUG.BRIGHTNESS", "AUG.CONTRAST", "AUG.SATURATION", "AUG.GAMMA", "AUG.GRAYSCALE",
          "AUG.BLUR", "AUG.RESOLUTION", "AUG.NOISE", "AUG.JPEG", "AUG.ERASING")


def load_cfg(path=None, opts=(), base=_C):
    """Defaults, then the recipe, then the overrides: a fresh, checked, frozen config.

    Args:
        path: YAML file over the defaults, or None.
        opts: KEY VALUE pairs, flat, as they follow the flags on a command line.
        base: config that takes the place of the defaults.
    Returns:
        Frozen CfgNode.
    Raises:
        ValueError: unknown key or choice, a value of the wrong type or range, a key without
            a value, malformed YAML.
        FileNotFoundError: no file at path.
    """
    cfg = base.clone()
    cfg.defrost()
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"config '{path}' not found; the recipes are in configs/")
        _merge_yaml(cfg, Path(path).read_text(encoding="utf-8"), path)
    _merge_pairs(cfg, opts)
    return _checked(cfg)


def parse_cfg(text):
    """The frozen config of a checkpoint, from the YAML it carries (see load_cfg)."""
    cfg = _C.clone()
    _merge_yaml(cfg, text, "the checkpoint's config")
    return _checked(cfg)


def override_cfg(cfg, opts, *free):
    """A copy of a checkpoint's cfg with KEY VALUE pairs merged.

    They change only what is free: sections such as TEST, keys such as DATA.CACHE.

    Raises:
        ValueError: a pair changes another key; what load_cfg refuses.
    """
    merged = cfg.clone()
    merged.defrost()
    _merge_pairs(merged, opts)
    for key in opts[::2]:
        section, name = key.split(".")
        if not {section, key} & {*free} and merged[section][name] != cfg[section][name]:
            allowed = " and ".join(word if "." in word else f"{word}.*" for word in free)
            raise ValueError(f"'{key}' is fixed by the checkpoint at {cfg[section][name]}; only "
                             f"{allowed} can be overridden here")
    return _checked(merged)


def _merge_pairs(cfg, opts):
    if len(opts) % 2:
        raise ValueError(f"override '{opts[-1]}' has no value; write KEY VALUE pairs, "
                         "for example TRAIN.LR 0.01")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        value = text
        if not _is_text(key):  # in a path, YAML would take ' #' for a comment
            with contextlib.suppress(yaml.YAMLError):
                value = yaml.safe_load(text)
        _assign(cfg, key, value)


def _merge_yaml(cfg, text, name):
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{name}: expected sections such as 'TRAIN:', found {tree!r}")
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise ValueError(f"{name}: '{section}' must be a section of keys, found {values!r}")
        for key, value in values.items():
            _assign(cfg, f"{section}.{key}", value)


def known_keys(cfg=_C):
    """All keys as SECTION.NAME, in the order of this file."""
    return [f"{section}.{key}" for section, node in cfg.items() for key in node]


def _is_text(key):
    section, _, name = key.partition(".")
    return isinstance(_C.get(section, {}).get(name), str)


def _assign(cfg, key, value):
    if key.startswith("-"):
        raise ValueError(f"flag '{key}' stands among the overrides; flags come before "
                         "the first KEY VALUE pair")
    if key not in known_keys():
        near = difflib.get_close_matches(key.upper(), known_keys(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see defaults.py"
        raise ValueError(f"unknown config key '{key}'{hint}")
    section, name = key.split(".")
    default = _C[section][name]
    if isinstance(default, float) and isinstance(value, (int, str)) \
            and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML reads 1 as an int and 1e-3 as a string
    if isinstance(default, str) and value is False:
        value = "off"  # YAML 1.1 reads a bare off as false
    if isinstance(default, str) and value is None:
        value = ""
    if type(value) is not type(default):
        raise ValueError(f"{key} must be a {type(default).__name__}, got {value!r}")
    cfg[section][name] = value


def _checked(cfg):
    def value_of(key):
        section, name = key.split(".")
        return cfg[section][name]

    for key, choices in CHOICES.items():
        if value_of(key) not in choices:
            raise ValueError(f"unknown {key} '{value_of(key)}'; choose one of {list(choices)}")
    for key in known_keys():
        if isinstance(value_of(key), float) and not math.isfinite(value_of(key)):
            raise ValueError(f"{key} must be a finite number, got {value_of(key)}")
    for key in POSITIVE:
        if not value_of(key) > 0:
            raise ValueError(f"{key} must be positive, got {value_of(key)}")
    for key in NOT_NEGATIVE:
        if value_of(key) < 0:
            raise ValueError(f"{key} must not be negative, got {value_of(key)}")
    for key in SHARES:
        if not 0 <= value_of(key) <= 1:
            raise ValueError(f"{key} must lie in 0..1, got {value_of(key)}")
    if cfg.DATA.AGE_MAX <= cfg.DATA.AGE_MIN:
        raise ValueError(f"DATA.AGE_MAX {cfg.DATA.AGE_MAX} must exceed "
                         f"DATA.AGE_MIN {cfg.DATA.AGE_MIN}")
    if cfg.DATA.MARGIN <= -0.5:
        raise ValueError(f"DATA.MARGIN {cfg.DATA.MARGIN} leaves nothing of the face box")
    if not cfg.AUG.CROP_AREA > 0:
        raise ValueError(f"AUG.CROP_AREA must be positive, got {cfg.AUG.CROP_AREA}")
    cfg.freeze()
    return cfg


def age_bins(cfg):
    """(K,) list of the bins' ages in years, DATA.AGE_MIN..DATA.AGE_MAX."""
    return list(range(cfg.DATA.AGE_MIN, cfg.DATA.AGE_MAX + 1))
