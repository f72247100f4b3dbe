"""What the tests of networks with weights from faces share."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from defaults import load_cfg
from model import build_model
from networks.face_weights import PACKAGES, face_weights
from training.layer_statistics import write_statistics


def draw_pixels(count, size, seed=0):
    """(count, 3, size, size) smooth random pixels, 0..255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    return (255 * functional.interpolate(coarse, size=size, mode="bilinear")).byte()


def build(arch, start, size):
    return build_model(load_cfg(opts=["MODEL.ARCH", arch, "MODEL.PRETRAINED", str(start),
                                      "MODEL.IMG_SIZE", str(size)]))


def features(model, pixels):
    with torch.no_grad():
        return model.backbone(model.normalise(pixels))


def check_statistics_keep_features(source, package, size, pixels, folder):
    """In training mode, the network computes nearly what it does with the package's own weights."""
    arch = PACKAGES[source].arch
    model = build(arch, "none", size)
    path = folder / "statistics.npz"
    write_statistics(path, PACKAGES[source].read(package), model.backbone, model.normalise(pixels))
    before = features(model.eval(), pixels)  # measuring leaves the package's own weights
    model.backbone.load_state_dict(face_weights(arch, size, source, package, path))
    torch.testing.assert_close(features(model.eval(), pixels), before, rtol=1e-3, atol=1e-3)
    difference = features(model.train(), pixels) - before  # of rounding
    assert difference.abs().mean() < 0.02 * before.abs().mean()
    return model


def check_shipped_statistics(source):
    """The file in misc/ has a mean and a deviation for each batch normalisation."""
    network = build(PACKAGES[source].arch, "none", 80).backbone
    norms = {name: part.num_features for name, part in network.named_modules()
             if isinstance(part, nn.BatchNorm2d)}
    with np.load(PACKAGES[source].statistics) as measured:
        assert {name: measured[name].shape for name in measured} == {
            f"{name}.{kind}": (count,) for name, count in norms.items()
            for kind in ("mean", "std")}
        assert all(np.isfinite(measured[name]).all() for name in measured)
        assert all((measured[name] > 0).all() for name in measured if name.endswith("std"))
