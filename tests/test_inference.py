"""Fast networks compute what the trained network computes."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from demo_inputs import ROOT, SMALL
from torch import nn

from defaults import load_cfg
from model import build_model
from utils import fast_network
from utils.fast_network import OpenVinoNetwork, fast_model, fuse_batch_norms

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(fast_network.openvino is None,
                                    reason="openvino is not installed")


def random_pixels(count, size):
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8).movedim(3, 1)


@pytest.fixture
def model():
    """A small network whose batch norms do something."""
    torch.manual_seed(0)
    model = build_model(load_cfg(opts=SMALL)).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return model


@needs_openvino
def test_openvino_computes_the_same_at_any_batch_size(model):
    fast = fast_model(model, 64, CPU)
    assert not isinstance(fast, nn.Module)
    for count in (1, 2, 5, 1, 70):
        pixels = random_pixels(count, 64)
        with torch.no_grad():
            torch.testing.assert_close(fast(pixels), model(pixels), rtol=1e-3, atol=1e-4)


@needs_openvino
def test_openvino_network_takes_nothing_and_many_at_once(model):
    network = OpenVinoNetwork(model, random_pixels(2, 64), 1)
    assert network(np.zeros((0, 3, 64, 64), np.uint8))[0].shape == (0, 101)
    inputs = [random_pixels(1, 64) for _ in range(8)]
    found = [None] * len(inputs)

    def run(place):
        for _ in range(5):
            found[place] = network(inputs[place].contiguous().numpy())[0]

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        np.testing.assert_allclose(np.concatenate(found), model(torch.cat(inputs)),
                                   rtol=1e-3, atol=1e-4)


@needs_openvino
def test_process_ends_well_after_networks_are_released():
    """Released ones once ended a process in a segmentation fault, see fast_network._core."""
    code = """
import gc, threading, torch
from defaults import load_cfg
from utils.fast_network import fast_model
from model import build_model
from demo_inputs import SMALL

pixels = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
model = build_model(load_cfg(opts=SMALL)).eval()
for _ in range(3):
    fast = fast_model(model, 64, torch.device("cpu"))
    thread = threading.Thread(target=fast, args=(pixels,))
    thread.start()
    thread.join()
    del fast, thread
    gc.collect()
    torch.nn.functional.conv2d(torch.zeros(8, 3, 64, 64), torch.zeros(8, 3, 3, 3))
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"})
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


class Unconvertible(nn.Module):
    """Its result depends on Python code that tracing does not record."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 4, 3), 0

    def forward(self, pixels):
        self.calls += 1
        return self.conv(pixels / 255).mean((2, 3)) + self.calls


def test_network_that_openvino_gets_wrong_stays_in_pytorch():
    assert isinstance(fast_model(Unconvertible().eval(), 16, CPU), Unconvertible)


def test_without_openvino_it_is_pytorch(model, monkeypatch):
    monkeypatch.setattr(fast_network, "openvino", None)
    assert isinstance(fast_model(model, 64, CPU), nn.Module)


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
