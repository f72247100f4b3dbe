"""The step between two batches: learning rate, parameter groups, precision, averaged weights."""

import copy
import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from faces import TINY

import engine
from batches import build_eval_loader
from defaults import load_cfg
from engine import Trainer
from lists import Source, read_faces
from losses import build_criterion, kl_divergence
from model import build_model
from training import build, optim
from utils import precision

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


# ---- Learning rate


def rates(*opts, steps_per_epoch=10, epochs=8):
    cfg = load_cfg(opts=["TRAIN.EPOCHS", str(epochs), *map(str, opts)])
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = optim.build_scheduler(torch.optim.SGD([parameter], lr=1.0), steps_per_epoch, cfg)
    return [schedule.lr_lambdas[0](step) for step in range(epochs * steps_per_epoch)]


def test_the_step_schedule_decays_every_so_many_epochs():
    factors = rates("TRAIN.LR_DECAY_STEP", 3, "TRAIN.LR_DECAY_RATE", 0.2)
    assert factors[:30] == [1.0] * 30
    assert factors[30:60] == pytest.approx([0.2] * 30)
    assert factors[60:] == pytest.approx([0.04] * 20)


def test_the_cosine_falls_from_one_to_zero():
    factors = rates("TRAIN.SCHEDULE", "cosine")
    assert factors[0] == 1.0
    assert factors[20] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert factors[40] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors))
    assert 0 < factors[-1] < 0.001


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_a_warm_up_rises_in_equal_steps_and_gives_way_to_the_schedule(schedule):
    factors = rates("TRAIN.SCHEDULE", schedule, "TRAIN.WARMUP_EPOCHS", 2)
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    if schedule == "step":
        assert factors[20:] == [1.0] * 60
    else:  # the whole cosine in the six epochs that are left
        assert factors[20] == 1.0
        assert factors[50] == pytest.approx(0.5)


# ---- Parameter groups


@pytest.mark.parametrize("opt", ["adam", "adamw", "sgd"])
def test_the_backbone_learns_at_its_share_of_the_rate(opt):
    cfg = load_cfg(opts=["MODEL.ARCH", "tinyage", "MODEL.IMG_SIZE", "64", "MODEL.PRETRAINED",
                         "none", "TRAIN.OPT", opt, "TRAIN.LR", "0.02",
                         "TRAIN.BACKBONE_LR_SCALE", "0.1", "TRAIN.WEIGHT_DECAY", "0.05"])
    model = build_model(cfg)
    settings = {id(parameter): (group["lr"], group["weight_decay"])
                for group in optim.build_optimizer(model, cfg).param_groups
                for parameter in group["params"]}
    head = {id(parameter) for parameter in model.head_parameters()}
    assert 0 < len(head) < len(settings) == len(list(model.parameters()))
    for parameter in model.parameters():
        rate, decay = settings[id(parameter)]
        assert rate == pytest.approx(0.02 if id(parameter) in head else 0.002)
        assert decay == (0 if opt == "adamw" and parameter.ndim == 1 else 0.05)


# ---- Memory of the loaders' workers


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted on Linux")
def test_no_batch_leaves_a_file_of_its_worker_open(folder):
    cfg = load_cfg(opts=[*TINY, "TRAIN.BATCH_SIZE", "2", "TEST.BATCH_SIZE", "2", "DATA.CACHE",
                         "False", "TRAIN.WORKERS", "1", "TEST.WORKERS", "1"])
    faces = pd.concat([read_faces(Source(folder, "drawn", folder), "train", cfg)] * 10,
                      ignore_index=True)
    loaders = [build.build_train_loader(faces, cfg, CPU), build_eval_loader(faces, cfg, CPU)]
    trainer = build.build_trainer(cfg, CPU, build.build_network(cfg, CPU), loaders[0])
    counts = []  # of open files, at each batch
    trainer.model.register_forward_pre_hook(
        lambda *_: counts.append(sum(1 for _ in Path("/proc/self/fd").iterdir())))
    engine.train_one_epoch(trainer, loaders[0], engine.EpochProgress(), lambda: False, "")
    engine.predict(trainer.model, loaders[1], CPU)
    assert len(counts) == 80
    for loop in (counts[:40], counts[40:]):
        assert loop[-1] - loop[10] < 10


def test_an_error_that_holds_a_loader_ends_the_process(folder):
    program = f"""
import torch
from batches import build_eval_loader
from defaults import load_cfg
from lists import Source, read_faces
cfg = load_cfg(opts={[*TINY, "TEST.WORKERS", "1", "TEST.BATCH_SIZE", "1", "DATA.CACHE", "False"]})
faces = read_faces(Source({str(folder)!r}, "drawn", {str(folder)!r}), "train", cfg)
held = iter(build_eval_loader(faces, cfg, torch.device("cpu")))
next(held)
raise RuntimeError("a fault")
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True,
                           text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.endswith("RuntimeError: a fault\n")


# ---- Precision


def choose(amp="auto", device=CPU, deterministic=False):
    """choose_amp for a layer whose steps are counted."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(48, 2))
    batch = {"pixels": torch.randn(4, 3, 4, 4)}
    precisions = []

    def criterion(logits, batch):
        precisions.append(logits.dtype)
        return {"loss": logits.float().square().mean(dim=1)}

    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state = torch.get_rng_state()
    chosen = build.choose_amp(amp, deterministic, device, layer, criterion, lambda: batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())
    return chosen, precisions


@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_a_precision_that_is_named_is_not_tried(amp):
    assert choose(amp) == (amp, [])


def test_what_must_repeat_does_not_ask_the_clock():
    assert choose(deterministic=True) == ("off", [])


@pytest.mark.parametrize(("capability", "amp"), [
    ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 0), "fp16")])
def test_a_gpu_that_only_emulates_bf16_gets_fp16(monkeypatch, capability, amp):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose(device=torch.device("cuda")) == (amp, [])


def test_a_device_that_a_clock_cannot_time_gets_no_mixed_precision():
    assert choose(device=torch.device("mps")) == ("off", [])


@pytest.mark.parametrize("faster", ["off", "bf16"])
def test_a_cpu_takes_the_faster_precision_and_leaves_the_run_as_it_was(monkeypatch, faster):
    measure, tried = build.seconds_per_step, {}

    def slowed(amp, *words):  # on so few numbers the measured time is chance
        tried[amp] = measure(amp, *words)
        return tried[amp] + (0 if amp == faster else 3600)

    monkeypatch.setattr(build, "seconds_per_step", slowed)
    chosen, precisions = choose()
    assert chosen == faster
    assert set(tried) == {"off", "bf16"} and all(seconds > 0 for seconds in tried.values())
    assert set(precisions) == {torch.float32, torch.bfloat16}


def test_half_precision_on_a_cpu_spares_depthwise_convolutions():
    torch.manual_seed(0)
    layers = {"plain": torch.nn.Conv2d(8, 8, 3), "depthwise": torch.nn.Conv2d(8, 8, 3, groups=8)}
    images = torch.randn(2, 8, 9, 9).bfloat16()
    for name, layer in layers.items():
        with precision.autocast(CPU, "bf16"):
            out = layer(images)
        assert out.dtype == torch.bfloat16
        exact = layer(images.float())
        assert torch.equal(out, exact.bfloat16()) == (name == "depthwise")
        torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.02)
        out.float().square().sum().backward()
        assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.abs().min() > 0


# ---- Teachers


def test_a_model_teaches_by_the_very_pixels_of_the_batch():
    cfg = load_cfg(opts=["MODEL.ARCH", "tinyage", "MODEL.IMG_SIZE", "32", "MODEL.PRETRAINED",
                         "none", "LOSS.TEACHER_WEIGHT", "1", "LOSS.NAME", "kl"])
    model, bins = build_model(cfg), torch.arange(101)
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    ages = torch.tensor([20.0, 70.0])
    batch = {"pixels": pixels, "age": ages, "age_min": ages, "age_max": ages,
             "age_std": torch.full((2,), math.nan)}
    probs = torch.rand(2, 101).softmax(dim=1)
    seen = []

    def teach(pixels):
        seen.append(pixels)
        return probs

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model.eval(), build_criterion(cfg, bins), bins, optimizer,
                      torch.optim.lr_scheduler.ConstantLR(optimizer), CPU, 2, teachers=teach)
    parts, _ = trainer.step(batch)
    assert torch.equal(*seen, pixels)
    torch.testing.assert_close(parts["loss"], kl_divergence(
        probs, model(pixels).detach().log_softmax(dim=1)))


# ---- Memory


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux alone is told")
def test_freed_memory_is_kept():
    program = """if True:
        import resource, sys, numpy, torch
        from utils.precision import keep_freed_memory
        if sys.argv[1] == "keep":
            keep_freed_memory(torch.device("cpu"))
        def faults():
            numpy.ones(1 << 23)  # 64 MiB
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        faults()
        before = faults()
        print(faults() - before)"""
    faults = {mode: int(subprocess.run([sys.executable, "-c", program, mode], cwd=ROOT, text=True,
                                       capture_output=True, check=True).stdout)
              for mode in ("keep", "release")}
    assert faults["release"] > 10 * (1 + faults["keep"])


@pytest.mark.parametrize(("largest", "told"), [
    (2 ** 40, ["threshold", "trim"]), (2 ** 25, ["threshold", "threshold", "trim"]),
    (0, ["threshold", "threshold"])])
def test_memory_is_kept_as_far_as_the_c_library_allows(monkeypatch, largest, told):
    names = {precision.M_MMAP_THRESHOLD: "threshold", precision.M_TRIM_THRESHOLD: "trim"}
    asked = []

    def mallopt(option, size):
        asked.append(names[option])
        return names[option] == "trim" or size <= largest

    monkeypatch.setattr(precision.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(precision.sys, "platform", "linux")
    precision.keep_freed_memory(CPU)
    assert asked == told


# ---- Averaged weights


def test_averaged_weights_forget_the_first_ones_soon_and_then_slowly():
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 0.0)
    averaged = optim.averaged_model(layer, 0.9)
    averaged.update_parameters(layer)  # takes the first weights as they are
    expected = 0.0
    for step in range(1, 200):
        torch.nn.init.constant_(layer.weight, float(step))
        averaged.update_parameters(layer)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_a_step_is_that_of_the_optimiser_on_the_mean_loss_of_its_batch():
    cfg = load_cfg(opts=["MODEL.ARCH", "tinyage", "MODEL.IMG_SIZE", "32", "MODEL.PRETRAINED",
                         "none", "TRAIN.OPT", "sgd", "TRAIN.LR", "0.01", "TRAIN.MOMENTUM", "0.5"])
    bins, generator = torch.arange(101), torch.Generator().manual_seed(0)
    model = build_model(cfg).eval()
    alone = copy.deepcopy(model)
    criterion, optimizer = build_criterion(cfg, bins), optim.build_optimizer(model, cfg)
    trainer = Trainer(model, criterion, bins, optimizer,
                      optim.build_scheduler(optimizer, 10, cfg), CPU, batch_faces=3)
    plain = torch.optim.SGD(alone.parameters(), lr=0.01, momentum=0.5)
    for ages in ([20.0, 70.0, 5.0], [33.0, 41.0, 90.0], [60.0, 8.0, 25.0]):
        ages = torch.tensor(ages)
        batch = {"pixels": torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8,
                                         generator=generator),
                 "age": ages, "age_min": ages, "age_max": ages,
                 "age_std": torch.full((3,), math.nan)}
        trainer.step(batch)
        plain.zero_grad()
        criterion(alone(batch["pixels"]), batch)["loss"].mean().backward()
        plain.step()
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_weights_of_a_training_are_averaged_with_the_decay_of_its_config(folder):
    cfg = load_cfg(None, [*TINY, "TRAIN.EMA_DECAY", "0.05", "DATA.CACHE", "False"])
    faces = read_faces(Source(folder, "drawn", folder), "train", cfg)
    trainer = build.build_trainer(cfg, CPU, build.build_network(cfg, CPU),
                                  build.build_train_loader(faces, cfg, CPU))
    for value in (0.0, 1.0):
        torch.nn.init.constant_(trainer.model.head.bias, value)
        trainer.ema.update_parameters(trainer.model)
    assert trainer.evaluated_model().head.bias[0].item() == pytest.approx(0.95)
