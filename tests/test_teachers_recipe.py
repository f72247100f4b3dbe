"""configs/teachers.sh, which trains teachers on halves of the faces, on drawn faces."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from faces import write_dataset, write_list
from scripts import script

from checkpoint import load_checkpoint
from defaults import load_cfg
from lists import pair_folders, read_sources
from training.teachers import halve

ROOT = Path(__file__).parent.parent
AGES = [5, 12, 18, 24, 31, 37, 43, 48, 55, 61, 68, 75]


def test_halves_are_halves_and_stay_the_same():
    names = [f"train/{number}.webp" for number in range(1000)]
    first = halve(names)
    assert 450 < sum(first) < 550
    assert list(halve(names[:3])) == list(first[:3]) == [True, False, False]


def test_each_face_is_left_out_with_one_of_the_halves_though_folders_share_names(tmp_path):
    rows = write_dataset(tmp_path / "one" / "photos", AGES, splits=())
    write_list(tmp_path / "one" / "one_train_align.csv", [
        row | {"photo": f"photos/{row['photo']}"} for row in rows])
    write_dataset(tmp_path / "two", AGES, splits=())
    for row in rows[::2]:  # named as APPA-REAL names its crops
        path = tmp_path / "two" / row["photo"]
        row["photo"] = path.rename(f"{path}_face.jpg").name
    write_list(tmp_path / "two" / "two_train_align.csv", rows)
    folders = [tmp_path / "one", tmp_path / "two"]
    script("training/teachers.py", tmp_path / "out", "--data_dir", *folders)
    sources = pair_folders(folders, None, None)
    kept = [read_sources(sources, "train", load_cfg(None, [
        "DATA.EXCLUDE", str(tmp_path / "out" / f"half_{number}.csv")])) for number in (1, 2)]
    faces = pd.concat(kept)["root"] + "/" + pd.concat(kept)["photo"]
    assert min(map(len, kept)) > 0
    assert sorted(faces) == sorted(
        [f"{folders[0]}/photos/drawn_{number}.png" for number in range(len(AGES))]
        + [f"{folders[1]}/{row['photo']}" for row in rows])


def test_each_script_of_a_recipe_gets_the_words_that_it_accepts(tmp_path):
    words = ["--data_dir=A", "--dataset", "a", "b", "--device", "cpu", "--tensorboard", "log",
             "TRAIN.LR", "0.1", "TEST.TTA", "True", "--list_dir", "C"]
    told = subprocess.run(
        ["bash", "-c", 'source "$0" "$@"; echo "${trained[@]}"; echo "${tested[@]}"; '
         'echo "${data[@]}"', ROOT / "configs" / "words.sh", tmp_path / "out", *words],
        capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == [" ".join(words), "--data_dir=A --dataset a b --device cpu TEST.TTA True "
                    "--list_dir C", "--data_dir=A --dataset a b --list_dir C"]


@pytest.mark.slow
def test_each_half_is_predicted_by_the_network_trained_on_the_other(tmp_path):
    faces, out = tmp_path / "drawn", tmp_path / "out"
    write_dataset(faces, AGES)

    def run():
        return subprocess.run(
            ["bash", ROOT / "configs" / "teachers.sh", out, "--data_dir", faces, "--cache_dir",
             tmp_path / "cache", "MODEL.PRETRAINED", "none", "MODEL.IMG_SIZE", "32",
             "TRAIN.EPOCHS", "1", "TRAIN.BATCH_SIZE", "4", "TRAIN.WORKERS", "0",
             "TEST.WORKERS", "0", "TRAIN.AMP", "off"], text=True, cwd=tmp_path,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                              "CUDA_VISIBLE_DEVICES": ""}, capture_output=True)

    done = run()
    assert done.returncode == 0, done.stderr
    halves = [set(pd.read_csv(out / f"half_{number}.csv")["photo"]) for number in (1, 2)]
    assert halves[0] | halves[1] == {f"drawn_{number}.png" for number in range(len(AGES))}
    assert halves[0] and halves[1] and not halves[0] & halves[1]
    for network in ("mobilenetv1", "lite2"):
        for number in (1, 2):
            predicted = set(pd.read_csv(out / f"{network}_{number}.csv")["photo"])
            assert predicted == halves[2 - number]  # the other's
            assert "model" in load_checkpoint(out / f"{network}_{number}.pth")
        table = pd.read_csv(out / "teachers" / f"{network}.csv")
        assert sorted(table["photo"]) == sorted(halves[0] | halves[1])
    (out / "teachers" / "lite2.csv").unlink()
    done = run()
    assert done.returncode == 0, done.stderr
    assert (out / "teachers" / "lite2.csv").is_file()
