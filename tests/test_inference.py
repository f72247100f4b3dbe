"""Fast networks compute what the trained network computes."""

import pytest
import torch
from demo_inputs import SMALL
from torch import nn

from defaults import load_cfg
from inference import fuse_batch_norms
from model import build_model

CPU = torch.device("cpu")


@pytest.fixture
def model():
    """A small network whose batch norms do something."""
    torch.manual_seed(0)
    model = build_model(load_cfg(opts=SMALL)).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return model


def test_folded_network_computes_the_same(model):
    fused = fuse_batch_norms(model, 64, "cpu")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(fused(pixels), model(pixels), rtol=1e-3, atol=1e-4)


class BetweenConvAndNorm(nn.Module):
    """The convolution's output is needed without the norm too, or changed before it."""

    def __init__(self, in_place):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(1, 2)
        self.in_place = in_place

    def forward(self, pixels):
        features = self.conv(pixels.float() / 255)
        if self.in_place:
            return self.norm(features.relu_()).mean((2, 3))
        return (features + self.norm(features)).mean((2, 3))


@pytest.mark.parametrize("in_place", [False, True])
def test_network_that_cannot_be_folded_stays(in_place):
    model = BetweenConvAndNorm(in_place).eval()
    fused = fuse_batch_norms(model, 16, "cpu")
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(fused(pixels), model(pixels))
    assert isinstance(fused.norm, nn.BatchNorm2d)
