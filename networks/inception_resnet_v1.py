"""Inception-ResNet-v1, as facenet has it; for the weights of face_weights.PACKAGES.

Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
AAAI 2017, figures 10 to 15. As in David Sandberg's facenet, the stem pads its third convolution
only, and a sixth block of 8 x 8 follows the five of the paper. Their 512 numbers for a face are
left out: features are the average in front of them.
"""

from collections import OrderedDict

import torch
from torch import nn

FEATURES = 1792


class InceptionResnetV1(nn.Sequential):
    """(B, 3, S, S) images -> (B, FEATURES); S is 75 or more.

    The convolutions stand in the order of facenet's names: block by block, branch by branch.
    """

    def __init__(self):
        super().__init__(OrderedDict(
            stem=nn.Sequential(
                conv(3, 32, 3, stride=2), conv(32, 32, 3), conv(32, 64, 3, padding=1),
                nn.MaxPool2d(3, stride=2), conv(64, 80), conv(80, 192, 3),
                conv(192, 256, 3, stride=2)),
            blocks35=nn.Sequential(*(block35() for _ in range(5))),
            reduction17=Branches(
                conv(256, 384, 3, stride=2),
                nn.Sequential(conv(256, 192), conv(192, 192, 3, padding=1),
                              conv(192, 256, 3, stride=2)),
                nn.MaxPool2d(3, stride=2)),
            blocks17=nn.Sequential(*(block17() for _ in range(10))),
            reduction8=Branches(
                nn.Sequential(conv(896, 256), conv(256, 384, 3, stride=2)),
                nn.Sequential(conv(896, 256), conv(256, 256, 3, stride=2)),
                nn.Sequential(conv(896, 256), conv(256, 256, 3, padding=1),
                              conv(256, 256, 3, stride=2)),
                nn.MaxPool2d(3, stride=2)),
            blocks8=nn.Sequential(*(block8(scale=0.2) for _ in range(5)),
                                  block8(scale=1.0, relu=False)),
            pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


def conv(channels, outputs, kernel=1, stride=1, padding=0):
    """A convolution, its batch normalisation, and a ReLU."""
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(channels, outputs, kernel, stride, padding, bias=False),
        norm=nn.BatchNorm2d(outputs), relu=nn.ReLU(inplace=True)))


class Branches(nn.ModuleList):
    """The channels of several branches, one after the other."""

    def __init__(self, *branches):
        super().__init__(branches)

    def forward(self, images):
        return torch.cat([branch(images) for branch in self], dim=1)


class Residual(nn.Module):
    """What enters, plus `scale` times what the branches make of it; then a ReLU.

    Args:
        channels: how many the input has, and the output.
        width: channels of all branches together.
        branches: modules, (B, channels, H, W) -> (B, part of width, H, W).
    """

    def __init__(self, channels, width, *branches, scale, relu=True):
        super().__init__()
        self.branches = Branches(*branches)
        self.expand = nn.Conv2d(width, channels, 1)  # it alone has a bias and no normalisation
        self.scale = scale
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, images):
        return self.relu(images + self.scale * self.expand(self.branches(images)))


def block35():
    return Residual(
        256, 3 * 32, conv(256, 32),
        nn.Sequential(conv(256, 32), conv(32, 32, 3, padding=1)),
        nn.Sequential(conv(256, 32), conv(32, 32, 3, padding=1), conv(32, 32, 3, padding=1)),
        scale=0.17)


def block17():
    return Residual(
        896, 2 * 128, conv(896, 128),
        nn.Sequential(conv(896, 128), conv(128, 128, (1, 7), padding=(0, 3)),
                      conv(128, 128, (7, 1), padding=(3, 0))),
        scale=0.1)


def block8(scale, relu=True):
    return Residual(
        FEATURES, 2 * 192, conv(FEATURES, 192),
        nn.Sequential(conv(FEATURES, 192), conv(192, 192, (1, 3), padding=(0, 1)),
                      conv(192, 192, (3, 1), padding=(1, 0))),
        scale=scale, relu=relu)
