"""What the tests of the predictor and the demo share: a small model, sample photos, faces."""

from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoint import save_checkpoint
from defaults import load_cfg
from model import build_model
from predictor import face_from_probs
from utils import cli

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "misc" / "samples"
ASTRONAUT, HOPPER = SAMPLES / "astronaut.png", SAMPLES / "grace_hopper.jpg"
TWO_FACES = SAMPLES / "two_faces.jpg"
SMALL = ("MODEL.ARCH", "timm/resnet18", "MODEL.PRETRAINED", "none", "MODEL.IMG_SIZE", "64",
         "DATA.MARGIN", "0.2")
AGE_BINS = list(range(101))


def write_model(path, opts=(), **entries):
    """Save a small network with fixed random weights; `entries` are added to the checkpoint."""
    cfg = load_cfg(opts=[*SMALL, *opts])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg)
    save_checkpoint(path, {"cfg": cfg.dump(), "model": model.state_dict(), **entries})
    return path


def exit_code(main, *words):
    """Exit code of a script's main(argv), run in this process as from the command line."""
    with pytest.raises(SystemExit) as end:
        cli.run_main(lambda: main(list(map(str, words))))
    return end.value.code


def face_at(bbox, age=34, confidence=0.99, roll_deg=0.0):
    """A Face in xyxy pixels whose distribution is a Gaussian of 3 years around its age."""
    probs = np.exp(-0.5 * ((np.array(AGE_BINS) - age) / 3.0) ** 2)
    return face_from_probs(bbox, confidence, roll_deg, probs / probs.sum(), AGE_BINS)
