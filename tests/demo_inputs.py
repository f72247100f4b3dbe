"""What the tests of the predictor and the demo share: a small model and the sample photos."""

from pathlib import Path

import torch

from checkpoint import save_checkpoint
from defaults import load_cfg
from model import build_model

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "misc" / "samples"
ASTRONAUT, HOPPER = SAMPLES / "astronaut.png", SAMPLES / "grace_hopper.jpg"
TWO_FACES = SAMPLES / "two_faces.jpg"
SMALL = ("MODEL.ARCH", "timm/resnet18", "MODEL.PRETRAINED", "none", "MODEL.IMG_SIZE", "64",
         "DATA.MARGIN", "0.2")


def write_model(path, opts=(), **entries):
    """Save a small network with fixed random weights; `entries` are added to the checkpoint."""
    cfg = load_cfg(opts=[*SMALL, *opts])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg)
    save_checkpoint(path, {"cfg": cfg.dump(), "model": model.state_dict(), **entries})
    return path
