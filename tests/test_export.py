"""export.py: its files compute what PyTorch computes, and say what is wrong with a bad one."""

import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
import torch
from demo_inputs import ASTRONAUT, ROOT, TWO_FACES, exit_code
from faces import TINY, write_dataset
from torch import nn

import export
from age_network import CONFIG_KEYS, OnnxAgeNetwork, TorchAgeNetwork
from checkpoint import load_checkpoint, save_checkpoint
from defaults import load_cfg
from model import AgeModel, build_model
from predictor import AgeEstimator
from training import onnx_release
from training.onnx_release import export_onnx, sample_crops
from utils.download import MISC, find_model
from utils.files import file_sha256
from utils.locks import only_writer
from utils.onnx_export import write_onnx
from utils.onnx_network import OnnxNetwork

SIZE = 32


def run(*words):
    """Exit code of export.py."""
    return exit_code(export.main, *words)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small network whose batch norms do something, with a temperature."""
    path = tmp_path_factory.mktemp("model") / "model.pth"
    return write_checkpoint(path, [*TINY, "DATA.MARGIN", "0.1", "DATA.AGE_MIN", "10"],
                            temperature=(1.2, 1.6), datasets=["drawn", "utkface"], commit="abc1234")


def write_checkpoint(path, opts, **entries):
    cfg = load_cfg(opts=opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(model.head.weight, std=0.3)  # distributions that depend on the face
    save_checkpoint(path, {"cfg": cfg.dump(), "model": model.state_dict(), **entries})
    return path


@pytest.fixture(scope="module")
def exact(checkpoint, tmp_path_factory):
    """The checkpoint's file in single precision."""
    path = tmp_path_factory.mktemp("onnx") / "exact.onnx"
    export_onnx(checkpoint, path, half=False, licence="none at all")
    return path


def random_crops(count, size=SIZE):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


# ---- What a file computes


def test_a_file_computes_the_same_at_any_batch_size(checkpoint, exact):
    network, written = TorchAgeNetwork(checkpoint), OnnxAgeNetwork(exact, threads=1)
    for count in (0, 1, 2, 5, 150):
        crops = random_crops(count)
        probs = written(crops)
        assert probs.shape == (count, 91)
        np.testing.assert_allclose(probs, network(crops), atol=1e-6)
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("crops", [
    random_crops(1)[0],  # one face, whose rows would count as faces
    [random_crops(1)[0], random_crops(1, SIZE + 1)[0]], random_crops(2, SIZE * 2),
    random_crops(1)[..., :1], random_crops(1).transpose(0, 3, 1, 2), random_crops(1) / 255,
    random_crops(1).astype(int)])
def test_other_faces_than_those_of_training_are_refused(checkpoint, exact, crops):
    written = OnnxAgeNetwork(exact, threads=1)
    for network in (TorchAgeNetwork(checkpoint), written, written.calibrated_in_file):
        with pytest.raises(ValueError, match=r"expected a list of \(32, 32, 3\) uint8 RGB faces"):
            network(crops)


def test_mirror_averaging_comes_before_the_temperature(checkpoint, exact):
    opts = ["TEST.TTA", "True"]
    probs = OnnxAgeNetwork(exact, opts, 1)(random_crops(3))
    np.testing.assert_allclose(probs, TorchAgeNetwork(checkpoint, opts=opts)(random_crops(3)),
                               atol=1e-6)
    raw = [TorchAgeNetwork(checkpoint).model(torch.from_numpy(crops.copy()).movedim(3, 1))
           .softmax(1).detach().numpy() for crops in (random_crops(3), random_crops(3)[:, :, ::-1])]
    mean = np.mean(raw, axis=0)
    age = mean @ np.arange(10, 101)
    expected = mean ** (1 / (1.2 * (1.6 / 1.2) ** ((age - 10) / 90)))[:, None]
    np.testing.assert_allclose(probs, expected / expected.sum(1, keepdims=True), atol=1e-5)


def test_metadata_say_how_to_use_it(checkpoint, exact):
    metadata = OnnxAgeNetwork(exact, threads=1).metadata
    assert {key: metadata[key] for key in metadata if key != "content_sha256"} == {
        "architecture": "timm/test_resnet", "image_size": "32", "margin": "0.1", "age_min": "10",
        "age_max": "100", "decode": "mean", "temperature": "1.2 1.6", "data_sets": "drawn, utkface",
        "licence": "none at all", "commit": "abc1234", "source_sha256": file_sha256(checkpoint)}
    assert str(ROOT).encode() not in exact.read_bytes()  # the exporter notes where code lies


def test_half_precision_weights_halve_the_file(checkpoint, exact, tmp_path):
    years, probability, count = export_onnx(checkpoint, tmp_path / "half.onnx")
    assert 0 < years < 0.1 and 0 < probability < 0.01 and count == 40
    assert (tmp_path / "half.onnx").stat().st_size < 0.7 * exact.stat().st_size


def test_sample_crops_are_faces():
    crops = sample_crops(0.0, 64)
    assert len(crops) == 40 and {crop.shape for crop in crops} == {(64, 64, 3)}
    assert len({crop.tobytes() for crop in crops}) == 40


def test_a_file_that_computes_something_else_is_not_written(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_release.PixelsToProbs, "forward", lambda self, pixels: (
        self.model(pixels.flip(3)).softmax(dim=1), self.model(pixels).log_softmax(dim=1)))
    with pytest.raises(ValueError, match=r"an age differs by \d+\.\d+ years.*more than 0.1.*fp32"):
        export_onnx(checkpoint, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


class Unexportable(nn.Module):
    """Decides by a value, which a graph without control flow cannot."""

    def forward(self, images):
        return images.mean((2, 3)) if images.mean() > 0 else images.amax((2, 3))


def test_an_export_leaves_a_folder_alone_that_another_process_writes_to(checkpoint, tmp_path,
                                                                        capsys):
    target = tmp_path / "age.onnx"
    with only_writer(tmp_path, "wait"):
        assert run("--resume", checkpoint, target) == 2
        assert not target.exists()
    assert f"error: another process writes to '{tmp_path}': process" in capsys.readouterr().err
    assert run("--resume", checkpoint, target) == 0
    assert list(tmp_path.iterdir()) == [target]


def test_what_cannot_be_exported_is_said(checkpoint, tmp_path, monkeypatch):
    content = load_checkpoint(checkpoint)
    network = AgeModel(Unexportable(), 3, 91, [0.0] * 3, [1.0] * 3)
    monkeypatch.setattr("model.restore_model",
                        lambda *_: (network.eval(), load_cfg(opts=[*TINY, "DATA.AGE_MIN", "10"])))
    save_checkpoint(tmp_path / "m.pth", content)
    with pytest.raises(ValueError, match=r"^MODEL.ARCH 'timm/test_resnet' cannot be exported") as e:
        export_onnx(tmp_path / "m.pth", tmp_path / "a.onnx")
    assert "\n" not in str(e.value) and not (tmp_path / "a.onnx").exists()


# One architecture of every code path of model.py, at a size it takes.
ARCHS = {"alexnet": 224, "vgg11_bn": 64, "densenet121": 64, "inceptionv3": 80, "dpn68": 64,
         "inception_resnet_v1": 80, "mobilefacenet": 64, "se_resnet50": 64, "nasnetamobile": 64,
         "xception": 64, "resnext101_32x4d": 64, "cafferesnet101": 64,
         "timm/vit_tiny_patch16_224": 64, "timm/convnext_atto": 64}


@pytest.mark.parametrize(("arch", "size"), [
    ("tinyage", 64), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ARCHS.items())])
def test_every_kind_of_architecture_can_be_exported(arch, size, tmp_path):
    opts = ["MODEL.ARCH", arch, "MODEL.IMG_SIZE", str(size), "MODEL.PRETRAINED", "none"]
    path = write_checkpoint(tmp_path / "model.pth", opts)
    years, _, _ = export_onnx(path, tmp_path / "model.onnx", half=False)
    assert years < 0.01


# ---- The command line


def test_the_shipped_file_is_of_the_shipped_checkpoint():
    shipped = OnnxAgeNetwork(MISC / "model.onnx", threads=1)
    assert shipped.metadata["source_sha256"] == file_sha256(find_model())
    crops = sample_crops(shipped.cfg.DATA.MARGIN, shipped.cfg.MODEL.IMG_SIZE)[::8]
    expected = TorchAgeNetwork(find_model())(crops)
    ages = np.arange(101)
    np.testing.assert_allclose(shipped(crops) @ ages, expected @ ages, atol=0.1)


def test_command_writes_and_verifies(checkpoint, tmp_path, capsys):
    write_dataset(tmp_path / "faces", [15, 35, 55, 75], splits=("valid",))
    out = tmp_path / "age.onnx"
    assert run(out, "--resume", checkpoint, "--fp32", "--licence", "ours") == 0
    assert "on 40 face crops: ages differ by at most 0.0" in capsys.readouterr().out
    metadata = OnnxAgeNetwork(out, threads=1).metadata
    assert metadata["licence"] == "ours"
    words = ["--data_dir", str(tmp_path / "faces"), "--cache_dir", str(tmp_path / "cache")]
    assert run("--verify", out, *words) == 0
    stated = float(capsys.readouterr().out.split("valid mae: ")[1])
    done = subprocess.run([sys.executable, "test.py", "--resume", checkpoint, "--split", "valid",
                           "--device", "cpu", *words], cwd=ROOT, capture_output=True, text=True)
    assert stated == pytest.approx(float(done.stdout.split("test mae: ")[1]), abs=0.002)


@pytest.mark.parametrize(("words", "message"), [
    ([], "name one file"),
    (["a.onnx", "--verify", "b.onnx"], "name one file"),
    (["a.pth"], "must end in .onnx"),
    (["no/such/a.onnx"], "folder 'no/such' not found"),
    (["--verify", "b.onnx"], "--data_dir DIR"),
    (["--verify", "b.onnx", "--data_dir", ".", "--resume", "default"], "--resume is for writing"),
    (["--verify", "b.onnx", "--data_dir", ".", "--fp32"], "--fp32 is for writing"),
    (["--verify", "b.onnx", "--data_dir", ".", "--licence", "MIT"], "--licence is for writing"),
    (["a.onnx", "TEST.TTA", "True"], "TEST.TTA True: an .onnx file does not average"),
    (["a.onnx", "--resume", "nosuch"], "model 'nosuch' not found"),
    (["a.onnx", "--data_dir", "."], "is for --verify")])
def test_wrong_words_end_in_one_line(words, message, capsys):
    assert run(*words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_every_copy_of_the_shipped_model_keeps_its_licence(checkpoint, tmp_path):
    shutil.copy(find_model(), tmp_path / "mine.pth")
    for source in (find_model(), find_model("default"), tmp_path / "mine.pth"):
        assert export.licence_of(source) == export.SHIPPED_LICENCE
    assert export.licence_of(checkpoint) == "not stated"


def test_verifying_says_how_faces_without_a_box_were_cut(exact, tmp_path, capsys):
    folder = tmp_path / "appa-real"  # a released table without boxes
    (folder / "valid").mkdir(parents=True)
    shutil.copy(ASTRONAUT, folder / "valid" / "1.jpg_face.jpg")
    (folder / "gt_avg_valid.csv").write_text(
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n1.jpg,9,40,4,40\n")
    assert run("--verify", exact, "--data_dir", folder, "--dataset", "appa_real",
               "--cache_dir", tmp_path / "cache") == 0
    assert "1 faces have no box in their list" in capsys.readouterr().out


# ---- Files


def test_estimator_takes_a_file(exact, checkpoint):
    by_file = {path: AgeEstimator(path, "cpu")(ASTRONAUT)[0] for path in (exact, checkpoint)}
    np.testing.assert_allclose(by_file[exact].probs, by_file[checkpoint].probs, atol=1e-5)
    with pytest.raises(ValueError, match="no such device|runs on the CPU"):
        AgeEstimator(exact, "cuda")


def damaged(path, change):
    """A copy of an ONNX file, changed as a model; its checksum is made anew."""
    model = onnx.load(path)
    change(model)
    target = path.with_name("damaged.onnx")
    for entry in list(model.metadata_props):
        if entry.key == "content_sha256":
            model.metadata_props.remove(entry)
    onnx.save(model, target)
    return target


def without(key):
    def change(model):
        [entry] = [one for one in model.metadata_props if one.key == key]
        model.metadata_props.remove(entry)
    return change


def with_text(key, text):
    def change(model):
        [entry] = [one for one in model.metadata_props if one.key == key]
        entry.value = text
    return change


@pytest.mark.parametrize(("change", "message"), [
    *((without(key), f"metadata lack {key}") for key in (*CONFIG_KEYS, "temperature")),
    (with_text("age_max", "99"), "not a probability and a log-probability for each of the ages 10"),
    (with_text("age_max", "many"), "metadata cannot be used: DATA.AGE_MAX must be a int"),
    (with_text("image_size", "64"), "not pixels of 64 x 64 faces"),
    (with_text("temperature", "-1"), "temperature must be one or two positive numbers, got '-1'"),
    (with_text("temperature", "1 2 3"), "one or two positive numbers, got '1 2 3'"),
    (with_text("temperature", "warm"), "metadata cannot be used"),
    (with_text("decode", "mode"), "unknown TEST.DECODE 'mode'")])
def test_metadata_that_do_not_fit_are_refused(exact, change, message):
    with pytest.raises(ValueError, match=message) as error:
        OnnxAgeNetwork(damaged(exact, change), threads=1)
    assert "\n" not in str(error.value)


def test_networks_of_others_are_refused():
    with pytest.raises(ValueError, match=r"not an age network of this project.*export.py"):
        OnnxAgeNetwork(MISC / "mtcnn_onet.onnx", threads=1)


@pytest.mark.parametrize(("content", "named"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    (b"\n<!DOCTYPE html><html>", "is a web page")])
def test_what_a_download_left_instead_is_named(tmp_path, content, named):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=named):
        OnnxAgeNetwork(tmp_path / "a.onnx", threads=1)


def test_damaged_files_are_refused(exact, tmp_path):
    content, path = exact.read_bytes(), tmp_path / "a.onnx"
    middle = len(content) // 2
    for bad in (b"", b"no network", content[:1000], content[:middle], content[:-20],
                content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1:]):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"damaged|not an ONNX network|not an age") as error:
            OnnxAgeNetwork(path, threads=1)
        assert "\n" not in str(error.value) and "a.onnx" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"none.onnx"):
        OnnxAgeNetwork(tmp_path / "none.onnx")


def test_without_a_runtime_it_says_what_to_install(exact, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OSError, match=r"ONNX Runtime.*pip install -r requirements-demo.txt"):
        OnnxAgeNetwork(exact)
    monkeypatch.setitem(sys.modules, "checkpoint", None)
    with pytest.raises(OSError, match=r"PyTorch.*pip install -r requirements.txt.*export.py"):
        TorchAgeNetwork(checkpoint)


def test_export_without_pytorch_says_what_to_install(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("training.onnx_release")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(tmp_path / "a.onnx") == 2
    assert "pip install -r requirements.txt" in capsys.readouterr().err


def test_threads_may_share_a_network(exact):
    network = OnnxNetwork(exact, 2)
    inputs = [random_crops(8)[place:place + 1].transpose(0, 3, 1, 2) for place in range(8)]
    found = [None] * len(inputs)

    def compute(place):
        for _ in range(20):
            found[place] = network(inputs[place])[0]

    threads = [threading.Thread(target=compute, args=(place,)) for place in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = network(np.concatenate(inputs))[0]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-6)


def test_weights_beyond_half_precision_stay_exact(tmp_path):
    layer = nn.Linear(400, 30)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    layer.weight.data[0, 0] = 1e6
    write_onnx(layer.eval(), torch.zeros(2, 400), tmp_path / "a.onnx", ("x", ["y"]), {0: "n"},
               half=True)
    inputs = torch.randn(5, 400, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(OnnxNetwork(tmp_path / "a.onnx", 1)(inputs.numpy())[0],
                                   layer(inputs), rtol=1e-4)


# ---- Without PyTorch


LIGHT = """
import sys
from predictor import AgeEstimator
import demo
assert demo.main(["--img_dir", sys.argv[1], "--output_dir", sys.argv[2]]) == 0
faces = AgeEstimator()(sys.argv[1])
heavy = {"torch", "torchvision", "timm", "pandas", "scipy", "facenet_pytorch", "onnx", "requests"}
print(len(faces), sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""


def test_ages_need_no_pytorch(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIGHT, TWO_FACES, tmp_path], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 []"
    assert (tmp_path / "two_faces.jpg").is_file()
