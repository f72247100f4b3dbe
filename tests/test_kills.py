"""A hundred SIGKILLs at random moments: nothing is lost but the work since the last save."""

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from demo_inputs import SAMPLES, write_model
from faces import write_dataset, write_list
from PIL import Image
from scripts import STEADY, draw_ages, read_log, script, train, weights
from tqdm import tqdm

from checkpoint import load_checkpoint
from crop_cache import cached_crops
from dataset import FaceCrops
from defaults import load_cfg
from lists import Source, read_faces
from media.outputs import RECORD_NAME
from preprocess import face_align

KILLS = 25  # of each kind
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")]


def kill_often(start, is_sound, longest):
    """Run start() in processes that are killed at random moments, then once to its end.

    Args:
        start: function without arguments; continues what an earlier call has begun.
        is_sound: function, called after each kill, that fails if a file is half written.
        longest: seconds after which the latest kill comes.
    Returns:
        How many of the processes were killed before they had ended.
    """
    tqdm.set_lock(threading.RLock())  # its own is shared with the processes, and would stay held
    rng, killed = random.Random(0), 0
    for _ in range(KILLS):
        # Forked: the libraries, which take seconds, are imported already.
        process = multiprocessing.get_context("fork").Process(target=start)
        process.start()
        process.join(rng.uniform(0, longest))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
        is_sound()
    start()
    return killed


def seconds_of(work):
    """How long an undisturbed work() takes. Kills must come earlier, and machines differ."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_training(tmp_path):
    folder, whole, parts = draw_ages(tmp_path / "data"), tmp_path / "whole", tmp_path / "parts"
    longest = seconds_of(lambda: train(folder, whole, *STEADY, "TRAIN.EPOCHS", "8")) / 10
    last = parts / "last.pth"

    def start():
        words = ["--resume", last] if last.is_file() else [*STEADY, "TRAIN.EPOCHS", "8"]
        train(folder, parts, *words, "TRAIN.SAVE_MINUTES", "0.0001")

    def is_sound():
        for path in parts.glob("*.pth"):
            load_checkpoint(path)  # compares the checksums

    assert kill_often(start, is_sound, longest) > KILLS / 2
    mine, theirs = weights(whole / "last.pth"), weights(last)
    for part in ("model", "ema", "optimizer", "scheduler", "random_state"):
        torch.testing.assert_close(mine[part], theirs[part], rtol=0, atol=0)
    assert [record["epoch"] for record in read_log(parts)] == list(range(1, 9))
    assert [r["valid"] for r in read_log(parts)] == [r["valid"] for r in read_log(whole)]
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in parts.iterdir() if "earlier" not in path.name} == names


def test_filling_the_crop_cache(tmp_path):
    write_dataset(tmp_path / "data", list(range(1, 100)) * 3)
    source = Source(tmp_path / "data", "drawn", tmp_path / "data")
    crops = FaceCrops(read_faces(source, "train", load_cfg()), 0.2, 224)
    whole = cached_crops(crops, tmp_path / "whole", 0)

    def is_sound():
        for path in (tmp_path / "parts").glob("*.u8"):
            assert path.stat().st_size == len(crops) * 224 * 224 * 3

    killed = kill_often(lambda: cached_crops(crops, tmp_path / "parts", 0), is_sound, 0.1)
    assert killed > KILLS / 3
    [path] = (tmp_path / "parts").glob("*.u8")
    assert path.read_bytes() == whole.path.read_bytes()


def write_photos(folder, count):
    """Copies of the sample photos, and a list of them."""
    samples = sorted(path for path in SAMPLES.iterdir() if path.suffix in (".png", ".jpg"))
    rows = []
    for number in range(count):
        sample = samples[number % len(samples)]
        photo = f"{number}{sample.suffix}"
        shutil.copy(sample, folder / photo)
        rows.append({"photo": photo, "age": 30})
    write_list(folder / "my_train.csv", rows)


def test_aligning(tmp_path):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        write_photos(tmp_path / name, 100)

    def align(name):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("sys.argv", ["face_align", "--dataset", "my", "--data_dir",
                                         str(tmp_path / name)])
            face_align.main()

    def is_sound():
        path = tmp_path / "parts" / "my_train_align.csv"
        assert not path.is_file() or len(pd.read_csv(path)) == len(pd.read_csv(whole))

    longest = seconds_of(lambda: align("whole")) / 2
    whole = tmp_path / "whole" / "my_train_align.csv"
    assert kill_often(lambda: align("parts"), is_sound, longest) > KILLS / 3
    assert (tmp_path / "parts" / "my_train_align.csv").read_text() == whole.read_text()


def test_a_demo_over_a_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos", 30)
    model = write_model(tmp_path / "model.pth")

    def run(out):
        script("demo.py", "--resume", model, "--img_dir", tmp_path / "photos", "--output_dir", out)

    def is_sound():
        for path in (tmp_path / "parts").glob("[0-9]*"):
            np.asarray(Image.open(path))  # a cut file raises

    run(tmp_path / "whole")
    assert kill_often(lambda: run(tmp_path / "parts"), is_sound, 10) > KILLS / 3
    for name in ("results.csv", "results.jsonl"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert [path.name for path in (tmp_path / "parts").glob(".*")] == [RECORD_NAME]
