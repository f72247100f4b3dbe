"""MobileFaceNet, as InsightFace trains it; for the weights `webface600k` of face_weights.

Chen et al., "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile
Devices", CCBR 2018. InsightFace doubles the channels. The layers that turn the last map into 512
numbers for an identity are left out: features are the average of this map.
"""

from collections import OrderedDict

from torch import nn

FEATURES = 512
INPUT_SIZE = 112  # pixels, what it was trained on


class MobileFaceNet(nn.Sequential):
    """(B, 3, S, S) images -> (B, FEATURES)."""

    def __init__(self):
        super().__init__(OrderedDict(
            stem=nn.Sequential(conv(3, 128, 3, stride=2), conv(128, 128, 3, groups=64)),
            stage1=stage(128, 128, width=128, residuals=4),
            stage2=stage(128, 256, width=256, residuals=6),
            stage3=stage(256, 256, width=512, residuals=2),
            last=conv(256, FEATURES),
            pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))


def stage(channels, outputs, width, residuals):
    """A bottleneck of the given width that halves the sides, then residual ones."""
    return nn.Sequential(bottleneck(channels, outputs, width, stride=2),
                         *(Residual(outputs) for _ in range(residuals)))


class Residual(nn.Module):
    """What enters, plus what a bottleneck of the same width makes of it."""

    def __init__(self, channels):
        super().__init__()
        self.bottleneck = bottleneck(channels, channels, channels)

    def forward(self, images):
        return images + self.bottleneck(images)


def bottleneck(channels, outputs, width, stride=1):
    """1x1 convolution, depthwise convolution, and a linear 1x1 convolution."""
    return nn.Sequential(OrderedDict(
        expand=conv(channels, width), depthwise=conv(width, width, 3, stride, groups=width),
        project=conv(width, outputs, prelu=False)))


def conv(channels, outputs, kernel=1, stride=1, groups=1, prelu=True):
    """A convolution, its batch normalisation, and a PReLU with a slope for each channel."""
    layers = OrderedDict(
        conv=nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        norm=nn.BatchNorm2d(outputs))
    if prelu:
        layers["prelu"] = nn.PReLU(outputs)
    return nn.Sequential(layers)
