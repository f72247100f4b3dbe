"""The architectures that neither library has, by their MODEL.ARCH: builder and input of each."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from networks.face_weights import (
    CASIA_MEAN,
    CASIA_STD,
    MEAN_BGR,
    STD_BGR,
    WEBFACE_MEAN,
    WEBFACE_STD,
)
from networks.inception_resnet_v1 import InceptionResnetV1
from networks.mobilefacenet import MobileFaceNet
from networks.thin_vgg import ThinVGG


class OwnArch(NamedTuple):
    """How an architecture begins.

    build: function () -> backbone with random weights, (B, 3, S, S) images -> (B, C) features.
    mean, std, bgr: its input, see model.AgeModel.
    """

    build: Callable
    mean: list
    std: list
    bgr: bool = False


def mobilenet_v1():
    """MobileNetV1 of timm, padded as in TensorFlow; for the weights `vggface2` of face_weights.

    Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
    Applications", arXiv 1704.04861.
    """
    import timm
    return timm.create_model("mobilenetv1_100", num_classes=0, pad_type="same")


# Of face photos; the authors of DLDL-v2 use them for both networks.
FACE_MEAN = [255 * value for value in (0.5958, 0.4637, 0.4065)]
FACE_STD = [255 * value for value in (0.2693, 0.2409, 0.2352)]
OWN_ARCHS = {
    "thinage": OwnArch(partial(ThinVGG, width=1 / 2), FACE_MEAN, FACE_STD),
    "tinyage": OwnArch(partial(ThinVGG, width=1 / 4), FACE_MEAN, FACE_STD),
    "inception_resnet_v1": OwnArch(InceptionResnetV1, CASIA_MEAN, CASIA_STD),
    "mobilefacenet": OwnArch(MobileFaceNet, WEBFACE_MEAN, WEBFACE_STD),
    "mobilenetv1": OwnArch(mobilenet_v1, MEAN_BGR, STD_BGR, bgr=True),
}
