"""configs/default.sh, which trains the default model, on drawn faces."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faces import write_dataset

from checkpoint import load_checkpoint
from defaults import parse_cfg

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_recipe_trains_goes_on_and_releases(tmp_path):
    faces, out = tmp_path / "drawn", tmp_path / "out [1]"
    write_dataset(faces, [5, 15, 25, 35, 45, 55, 65, 75])

    def run(folder, *words):
        return subprocess.run(
            ["bash", ROOT / "configs" / "default.sh", folder, "--data_dir", faces, "--cache_dir",
             tmp_path / "cache", "--tensorboard", tmp_path / "tf_log", "--device", "cpu",
             "MODEL.IMG_SIZE", "80", "TRAIN.EPOCHS", "1", "TRAIN.BATCH_SIZE", "4",
             "TRAIN.WORKERS", "0", "TEST.WORKERS", "0", *words], text=True,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                              "FACES": "none", "CASIA": "none",
                              "WEBFACE": "none"},
            capture_output=True, cwd=tmp_path)

    done = run(out.name)
    assert done.returncode == 0, done.stderr
    released = load_checkpoint(out / "model.pth")
    network = parse_cfg(released["cfg"]).MODEL
    assert network.ARCH == "mobilenetv1"
    assert network.PRETRAINED == "best.pth"
    assert "temperature" in released
    for teachers, runs in {"teachers": ("lite0_160", "lite2"),
                           "better_teachers": ("lite0_160", "lite2_160"),
                           "student_1_teachers": ("faces", "last"),
                           "student_2_teachers": ("casia", "last", "student_1"),
                           "student_3_teachers": ("casia", "last", "student_2"),
                           "webface_teachers": ("casia", "last", "student_2", "student_3"),
                           "student_4_teachers": ("casia", "last", "student_3", "webface")
                           }.items():
        tables = ", ".join(f"{out}/{teachers}/{run}.csv" for run in runs)
        assert f"teachers: {tables}" in done.stdout
    logs = {path: path.read_text(encoding="utf-8") for path in out.rglob("log.jsonl")}
    assert len(logs) == 16
    model = (out / "model.pth").read_bytes()
    (out / "model.pth").unlink()
    done = run(f"{out}/", "TRAIN.WORKERS", "1", "DATA.CACHE", "False")  # other words
    assert done.returncode == 0, done.stderr
    assert logs == {path: path.read_text(encoding="utf-8") for path in out.rglob("log.jsonl")}
    assert (out / "model.pth").read_bytes() == model
