"""Every number and choice of an experiment, with its default.

Anything here can be changed after the flags of train.py (`TRAIN.LR 0.01 MODEL.ARCH resnet50`)
or in a recipe (`--cfg configs/NAME.yaml`); test.py and demo.py read it from the checkpoint.
"""

import contextlib
import difflib
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path

import yaml
from yacs.config import CfgNode

_C = CfgNode()  # a key's choices and range stand in CHOICES and RANGES below

_C.MODEL = CfgNode()
_C.MODEL.ARCH = "se_resnext50_32x4d"  # one of ARCHS, or any timm model as timm/NAME
_C.MODEL.IMG_SIZE = 224  # pixels, side of the square network input
# imagenet | vggface2 | casia_webface | webface600k | none | path, name or URL of a checkpoint
_C.MODEL.PRETRAINED = "imagenet"
_C.MODEL.DROPOUT = 0.0  # share of features dropped before the head
_C.MODEL.DROP_PATH = 0.0  # stochastic depth rate, for timm models that have it

_C.DATA = CfgNode()
_C.DATA.AGE_MIN = 0  # years, first age bin
_C.DATA.AGE_MAX = 100  # years, last age bin; the head has AGE_MAX - AGE_MIN + 1 outputs
_C.DATA.MARGIN = 0.0  # share of the face box added on each side before the crop
_C.DATA.APPA_REAL_LABEL = "apparent"  # which age of a raw APPA-REAL folder is learned
_C.DATA.EXCLUDE = ""  # CSV with photo names in its first column, which are left out; "" for none
_C.DATA.CACHE = True  # keep the resized crops in a memory-mapped file
# Border around each cached crop, as a share of its side, so that rotated crops show real pixels.
_C.DATA.CONTEXT = 0.1

_C.AUG = CfgNode()  # training only; a probability is per image, a range is uniform
_C.AUG.STRENGTH = 1.0  # multiplies every setting below but FLIP; 0 turns all of them off
_C.AUG.FLIP = 0.5  # probability of mirroring
_C.AUG.ROTATION = 15.0  # degrees to either side
_C.AUG.CROP_AREA = 0.7  # smallest share of the crop's area that is kept
_C.AUG.STRETCH = 0.1  # largest relative change of the aspect ratio
_C.AUG.SHIFT = 0.05  # largest extra shift to each side, as a share of the side
_C.AUG.BRIGHTNESS = 0.3  # factor 1 - b to 1 + b
_C.AUG.CONTRAST = 0.3  # factor 1 - c to 1 + c
_C.AUG.SATURATION = 0.3  # factor 1 - s to 1 + s
_C.AUG.GAMMA = 0.3  # exponent (1 + g) ** u, u in -1..1
_C.AUG.GRAYSCALE = 0.1  # probability
_C.AUG.BLUR = 0.1  # probability of a Gaussian blur
_C.AUG.RESOLUTION = 0.0  # probability of a lower resolution, down to a quarter of the side
_C.AUG.NOISE = 0.1  # probability of Gaussian noise
_C.AUG.JPEG = 0.0  # probability of JPEG compression with quality 20 to 90
_C.AUG.ERASING = 0.25  # probability of erasing a rectangle

_C.LOSS = CfgNode()
_C.LOSS.NAME = "kl_l1"  # function of losses.py
_C.LOSS.LABEL = "gaussian"  # the label distribution, see losses.label_distribution
_C.LOSS.STD_FLOOR = 1.0  # years, smallest sigma of vote_std
_C.LOSS.L1_WEIGHT = 1.0  # lambda of kl_l1 (DLDL-v2)
_C.LOSS.SORD_SCALE = 1.0  # 1/years, by which the soft label of sord falls with the distance
_C.LOSS.MEAN_WEIGHT = 0.2  # lambda 1 of mean_variance
_C.LOSS.VARIANCE_WEIGHT = 0.05  # lambda 2 of mean_variance
_C.LOSS.INTERVAL_WEIGHT = 1.0  # weight of a face whose age is known as an interval
_C.LOSS.RARE_AGE_POWER = 0.0  # weight of an age = frequency ** -this; 0.5: square root
_C.LOSS.TEACHER = ""  # models, or tables of predictions, to learn from: file, folder or glob
_C.LOSS.TEACHER_WEIGHT = 0.5  # share of the loss that compares with the teacher

_C.TRAIN = CfgNode()
_C.TRAIN.OPT = "adam"
_C.TRAIN.WORKERS = 8  # loader processes, at most one for each CPU core
_C.TRAIN.LR = 0.001  # of the head; the backbone's is BACKBONE_LR_SCALE times this
_C.TRAIN.BACKBONE_LR_SCALE = 1.0  # learning rate of the backbone relative to the head's
_C.TRAIN.SCHEDULE = "step"  # learning rate over time, see training.optim.lr_factor
_C.TRAIN.LR_DECAY_STEP = 20  # epochs between two decays of the step schedule
_C.TRAIN.LR_DECAY_RATE = 0.2  # factor of each decay
_C.TRAIN.WARMUP_EPOCHS = 0.0  # epochs of linear warm-up, in both schedules
_C.TRAIN.MOMENTUM = 0.9  # of sgd
_C.TRAIN.WEIGHT_DECAY = 0.0  # adamw: of matrices and kernels only; else of all parameters
_C.TRAIN.BATCH_SIZE = 128  # total over all processes
_C.TRAIN.EPOCHS = 80
_C.TRAIN.AGE_STDDEV = 2.0  # years, sigma of the label distribution and of interval edges
_C.TRAIN.CLIP_NORM = 0.0  # maximum norm of the gradient; 0 turns clipping off
_C.TRAIN.EMA_DECAY = 0.0  # decay per step of averaged weights, which are validated; 0: off
_C.TRAIN.AMP = "auto"  # mixed precision with channels_last; auto: on a GPU, on a CPU if faster
_C.TRAIN.SAVE_MINUTES = 10.0  # between two savings of last.pth within an epoch; 0: at its end only
_C.TRAIN.SEED = 0
_C.TRAIN.DETERMINISTIC = False  # bitwise repeatable; slower on a GPU; not for alexnet and vgg*

_C.TEST = CfgNode()
_C.TEST.WORKERS = 8  # loader processes, at most one for each CPU core
_C.TEST.BATCH_SIZE = 128
_C.TEST.TTA = False  # average each face's distribution with its mirror image's
_C.TEST.DECODE = "mean"  # how a distribution becomes an age

CHOICES = {
    "DATA.APPA_REAL_LABEL": ("apparent", "real"),
    "LOSS.NAME": ("kl", "kl_l1", "ce", "sord", "or_cnn", "mean_variance"),
    "LOSS.LABEL": ("gaussian", "vote_std", "votes"),
    "TRAIN.OPT": ("adam", "adamw", "sgd"),
    "TRAIN.SCHEDULE": ("step", "cosine"),
    "TRAIN.AMP": ("auto", "bf16", "fp16", "off"),
    "TEST.DECODE": ("mean", "median"),
}

MAX_BINS, MAX_SIZE = 10_000, 4_096  # a typing error must not fill the memory
MAX_NUMBER = 1e30  # with room for products in float32, which ends at 3e38
MAX_SEED = 2 ** 32 - 1  # of NumPy


def _within(low, high):
    return f"lie in {low}..{high}", lambda value: low <= value <= high


POSITIVE = ("be positive", lambda value: value > 0)
NOT_NEGATIVE = ("not be negative", lambda value: value >= 0)
SHARE, FACTOR = _within(0, 1), _within(0, 10 ** 6)
WIDTH = ("be at least 0.01", lambda value: value >= 0.01)  # years; its square divides in float32
RANGES = {
    "MODEL.IMG_SIZE": _within(1, MAX_SIZE), "MODEL.DROPOUT": SHARE, "MODEL.DROP_PATH": SHARE,
    # -0.5 leaves nothing of the box; 5 shows eleven times its side.
    "DATA.MARGIN": ("lie above -0.5 and up to 5", lambda value: -0.5 < value <= 5),
    "DATA.CONTEXT": SHARE, "DATA.AGE_MIN": NOT_NEGATIVE,
    "AUG.STRENGTH": _within(0, 10), "AUG.FLIP": SHARE, "AUG.ROTATION": NOT_NEGATIVE,
    "AUG.CROP_AREA": ("lie above 0 and up to 1", lambda value: 0 < value <= 1),
    "AUG.STRETCH": SHARE, "AUG.SHIFT": SHARE, "AUG.BRIGHTNESS": SHARE, "AUG.CONTRAST": SHARE,
    "AUG.SATURATION": SHARE, "AUG.GAMMA": SHARE, "AUG.GRAYSCALE": SHARE, "AUG.BLUR": SHARE,
    "AUG.RESOLUTION": SHARE, "AUG.NOISE": SHARE, "AUG.JPEG": SHARE, "AUG.ERASING": SHARE,
    "LOSS.STD_FLOOR": WIDTH, "LOSS.L1_WEIGHT": FACTOR, "LOSS.SORD_SCALE": POSITIVE,
    "LOSS.MEAN_WEIGHT": FACTOR, "LOSS.VARIANCE_WEIGHT": FACTOR, "LOSS.INTERVAL_WEIGHT": FACTOR,
    "LOSS.RARE_AGE_POWER": _within(0, 4), "LOSS.TEACHER_WEIGHT": SHARE,
    "TRAIN.WORKERS": NOT_NEGATIVE, "TRAIN.LR": POSITIVE, "TRAIN.BACKBONE_LR_SCALE": FACTOR,
    "TRAIN.LR_DECAY_STEP": POSITIVE, "TRAIN.LR_DECAY_RATE": _within(0, 10),
    "TRAIN.WARMUP_EPOCHS": NOT_NEGATIVE, "TRAIN.MOMENTUM": NOT_NEGATIVE,
    "TRAIN.WEIGHT_DECAY": FACTOR, "TRAIN.BATCH_SIZE": POSITIVE, "TRAIN.EPOCHS": POSITIVE,
    "TRAIN.AGE_STDDEV": WIDTH, "TRAIN.CLIP_NORM": NOT_NEGATIVE, "TRAIN.EMA_DECAY": SHARE,
    "TRAIN.SAVE_MINUTES": NOT_NEGATIVE, "TRAIN.SEED": _within(0, MAX_SEED),
    "TEST.WORKERS": NOT_NEGATIVE, "TEST.BATCH_SIZE": POSITIVE,
}

# A date such as 2024-13-45 and thousands of digits are a ValueError, thousands of brackets a
# RecursionError.
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)

# Of the machine and its disk; they change no result.
OF_MACHINE = ("TRAIN.WORKERS", "TRAIN.SAVE_MINUTES", "TEST.WORKERS", "TEST.BATCH_SIZE",
              "DATA.CACHE")
# May differ from the checkpoint's: they do not affect a trained network.
FREE_OF_CHECKPOINT = ("DATA.CACHE", "DATA.EXCLUDE")
# Of a run that is continued; its teachers may lie elsewhere now, but must be the same files.
FREE_OF_RESUME = (*FREE_OF_CHECKPOINT, "LOSS.TEACHER")

ARCHS = (  # names of pretrainedmodels, and those of networks.own_archs
    "alexnet", "bninception", "cafferesnet101", "densenet121", "densenet161", "densenet169",
    "densenet201", "dpn107", "dpn131", "dpn68", "dpn68b", "dpn92", "dpn98", "fbresnet152",
    "inception_resnet_v1", "inceptionresnetv2", "inceptionv3", "inceptionv4", "mobilefacenet",
    "mobilenetv1", "nasnetalarge", "nasnetamobile", "pnasnet5large", "polynet", "resnet101",
    "resnet152", "resnet18", "resnet34", "resnet50", "resnext101_32x4d", "resnext101_64x4d",
    "se_resnet101", "se_resnet152", "se_resnet50", "se_resnext101_32x4d", "se_resnext50_32x4d",
    "senet154", "squeezenet1_0", "squeezenet1_1", "thinage", "tinyage", "vgg11", "vgg11_bn",
    "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "xception",
)


def load_cfg(path=None, opts=()):
    """Defaults, then the recipe, then the overrides: a fresh, checked, frozen config.

    Args:
        path: YAML file over the defaults, or None.
        opts: KEY VALUE pairs, flat, as they follow the flags on a command line.
    Returns:
        Frozen CfgNode.
    Raises:
        ValueError: unknown key or choice, a value of the wrong type or range, a key without
            a value, malformed YAML.
        FileNotFoundError: no file at path.
    """
    cfg = _C.clone()
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"config '{path}' not found; the recipes are in configs/")
        _merge_yaml(cfg, Path(path).read_bytes(), path)
    _merge_pairs(cfg, opts)
    return _checked(cfg)


def parse_cfg(text):
    """The frozen config of a checkpoint, from the YAML text in it (see load_cfg)."""
    cfg = _C.clone()
    _merge_yaml(cfg, text, "the checkpoint's config")
    return _checked(cfg)


def override_cfg(cfg, opts, *free):
    """A copy of a checkpoint's cfg with KEY VALUE pairs merged.

    Args:
        cfg: the config.
        opts: KEY VALUE pairs, flat.
        free: sections such as TEST and keys such as DATA.CACHE that the pairs may change.
    Raises:
        ValueError: a pair changes another key; what load_cfg refuses.
    """
    merged = cfg.clone()
    merged.defrost()
    _merge_pairs(merged, opts)
    for key, _ in _pairs(opts):
        section = key.split(".")[0]
        if not {section, key} & {*free} and value_of(merged, key) != value_of(cfg, key):
            allowed = " and ".join(word if "." in word else f"{word}.*" for word in free)
            raise ValueError(f"'{key}' is fixed by the checkpoint at {value_of(cfg, key)}; only "
                             f"{allowed} can be overridden here")
    return _checked(merged)


def _merge_pairs(cfg, opts):
    for key, value in _pairs(opts):
        # In a path, YAML would take ' #' for a comment.
        if isinstance(value, str) and not _is_text(key):
            with contextlib.suppress(*YAML_ERRORS):
                value = yaml.safe_load(value)
        _assign(cfg, key, value)


def _pairs(opts):
    """[(key, value)] of flat KEY VALUE pairs, whose values need not be text."""
    if isinstance(opts, (str, Mapping)):
        raise ValueError("expected overrides as a flat list, such as ['TEST.TTA', True]; got "
                         f"{opts!r}")
    words = list(opts)
    if len(words) % 2:
        raise ValueError(f"override '{words[-1]}' has no value; write KEY VALUE pairs, "
                         "for example TRAIN.LR 0.01")
    return list(zip(words[::2], words[1::2], strict=True))


def _merge_yaml(cfg, text, name):
    try:
        tree = yaml.safe_load(text) or {}
    except YAML_ERRORS as error:
        raise ValueError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{name}: expected sections such as 'TRAIN:', found {reprlib.repr(tree)}")
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise ValueError(f"{name}: '{section}' must be a section of keys, found "
                             f"{reprlib.repr(values)}")
        for key, value in values.items():
            _assign(cfg, f"{section}.{key}", value)


def known_keys():
    """All keys as SECTION.NAME, in the order of this file."""
    return [f"{section}.{key}" for section, node in _C.items() for key in node]


def value_of(cfg, key):
    """The value of a key written as SECTION.NAME."""
    section, name = key.split(".")
    return cfg[section][name]


def _is_text(key):
    return key in known_keys() and isinstance(value_of(_C, key), str)


def _assign(cfg, key, value):
    if key not in known_keys():
        near = difflib.get_close_matches(key.upper(), known_keys(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see defaults.py"
        raise ValueError(f"unknown config key '{key}'{hint}")
    default = value_of(_C, key)
    if isinstance(default, float) and isinstance(value, (int, str)) \
            and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)  # YAML reads 1 as an int and 1e-3 as a string
    if isinstance(default, str) and value is False:
        value = "off"  # YAML 1.1 reads a bare off as false
    if isinstance(default, str) and value is None:
        value = ""
    if type(value) is not type(default):
        raise ValueError(f"{key} must be a {type(default).__name__}, got {reprlib.repr(value)}")
    section, name = key.split(".")
    cfg[section][name] = value


def _checked(cfg):
    for key, choices in CHOICES.items():
        if value_of(cfg, key) not in choices:
            raise ValueError(f"unknown {key} '{value_of(cfg, key)}'; choose one of "
                             f"{list(choices)}")
    for key in known_keys():
        value = value_of(cfg, key)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} must be a finite number, got {value}")
        if isinstance(value, float) and abs(value) > MAX_NUMBER:
            raise ValueError(f"{key} must not exceed {MAX_NUMBER:g}, got {value:g}")
        rule, is_in_range = RANGES.get(key, (None, None))
        if rule and not is_in_range(value):
            raise ValueError(f"{key} must {rule}, got {value}")
    if cfg.DATA.AGE_MAX <= cfg.DATA.AGE_MIN:
        raise ValueError(f"DATA.AGE_MAX {cfg.DATA.AGE_MAX} must exceed "
                         f"DATA.AGE_MIN {cfg.DATA.AGE_MIN}")
    if cfg.DATA.AGE_MAX - cfg.DATA.AGE_MIN >= MAX_BINS:
        raise ValueError(f"DATA.AGE_MIN {cfg.DATA.AGE_MIN} to DATA.AGE_MAX {cfg.DATA.AGE_MAX} are "
                         f"more than {MAX_BINS} ages")
    cfg.freeze()
    return cfg


def age_bins(cfg):
    """(K,) list of the bins' ages in years, DATA.AGE_MIN..DATA.AGE_MAX."""
    return list(range(cfg.DATA.AGE_MIN, cfg.DATA.AGE_MAX + 1))
