"""The whole path on a CUDA device: `pytest -m gpu`, on a machine that has one."""

import pytest
import torch
from demo_inputs import ASTRONAUT
from faces import TINY, write_dataset
from scripts import script, train, weights

from preprocess.detector import FaceDetector
from preprocess.face import load_photo
from utils.cli import MEMORY_ADVICE, run_main

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("amp", ["off", "fp16", "bf16"])
def test_training_goes_on_where_it_stopped(tmp_path, amp):
    write_dataset(tmp_path / "faces", [5, 15, 25, 35, 45, 55, 65, 75], splits=("train", "valid"))
    words = [*TINY, "--device", "cuda", "TRAIN.AMP", amp, "TRAIN.EMA_DECAY", "0.9",
             "TRAIN.OPT", "sgd", "TRAIN.LR", "0.01"]  # whose steps small noise changes little
    train(tmp_path / "faces", tmp_path / "whole", *words, "TRAIN.EPOCHS", "2")
    train(tmp_path / "faces", tmp_path / "parts", *words, "TRAIN.EPOCHS", "1")
    halfway = weights(tmp_path / "parts" / "last.pth")
    done = train(tmp_path / "faces", tmp_path / "parts", "--device", "cuda", "--resume",
                 tmp_path / "parts" / "last.pth", "TRAIN.EPOCHS", "2")
    assert f"precision {amp}" in done.stdout
    whole, parts = (weights(tmp_path / run / "last.pth") for run in ("whole", "parts"))
    assert distance(whole, parts) < 0.1 * distance(whole, halfway)


def distance(first, second):
    """Between the weights of two checkpoints, the trained and the averaged ones."""
    pairs = [(first["model"], second["model"]),
             (first["ema"]["trained_model"], second["ema"]["trained_model"])]
    names = [name for name in first["model"] if first["model"][name].is_floating_point()]
    return sum((a[name] - b[name]).square().sum() for a, b in pairs for name in names).sqrt()


def test_a_gpu_and_a_cpu_predict_the_same(tmp_path):
    faces = tmp_path / "faces"
    write_dataset(faces, [5, 25, 45, 65], splits=("train", "valid", "test"))
    train(faces, tmp_path / "run", *TINY, "--device", "cuda", "TRAIN.EPOCHS", "1")
    ages = [float(script("test.py", "--data_dir", faces, "--cache_dir", tmp_path / "cache",
                         "--device", device, "--resume", tmp_path / "run" / "best.pth")
                  .stdout.split("test mae: ")[1]) for device in ("cuda", "cpu")]
    assert ages[0] == pytest.approx(ages[1], abs=0.02)


def test_full_gpu_memory_ends_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: torch.empty(1 << 50, dtype=torch.uint8, device="cuda"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: CUDA out of memory; {MEMORY_ADVICE}\n"


def test_a_gpu_and_a_cpu_find_the_same_face():
    photo = load_photo(ASTRONAUT)
    boxes = [FaceDetector(device).align([photo])[0][0].aligned_bbox for device in ("cuda", "cpu")]
    assert boxes[0] == pytest.approx(boxes[1], abs=2)
