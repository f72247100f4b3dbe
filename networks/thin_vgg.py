"""ThinAgeNet and TinyAgeNet of DLDL-v2."""

from torch import nn


class ThinVGG(nn.Sequential):
    """ThinAgeNet and TinyAgeNet of DLDL-v2: VGG16's convolutions with fewer channels.

    Gao et al., "Age Estimation Using Expectation of Label Distribution Learning", IJCAI 2018.
    Batch norm follows each convolution. Hybrid pooling replaces the fully connected layers:
    VGG16's last max pooling, then a global average. The authors pretrain on MS-Celeb-1M; here it
    starts from random weights, drawn as theirs.

    Args:
        width: share of VGG16's channels.
    """

    def __init__(self, width):
        layers, channels = [], 3
        for block_channels, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convolutions):
                convolution = nn.Conv2d(channels, int(block_channels * width), 3, padding=1,
                                        bias=False)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                channels = convolution.out_channels
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
