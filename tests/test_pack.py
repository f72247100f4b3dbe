"""training.pack: the packed faces are those that a training sees."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from faces import draw_face, write_dataset, write_list
from PIL import Image
from scripts import ROOT, script

from dataset import FaceDataset
from defaults import load_cfg
from lists import pair_folders, read_sources

AGES = [5, 15, 25, 35, 45, 55]


def pack(*words):
    return script("training/pack.py", *words, check=False)


@pytest.fixture
def drawn(tmp_path):
    folder = tmp_path / "photos"
    write_dataset(folder, AGES, columns={"gender": ["male", "female"] * 3,
                                         "age_std": [1.5] * 6})
    return folder


def datasets_of(folder, cfg, train):
    faces = read_sources(pair_folders([folder], ["drawn"], None), "train", cfg)
    return FaceDataset(faces, cfg, train)


def test_packed_faces_are_those_of_the_photos(drawn, tmp_path):
    done = pack(tmp_path / "out", "--data_dir", drawn, "--size", 64, "--quality", 100)
    assert done.returncode == 0, done.stderr
    assert f"drawn: 6 train faces, 0.0 MB -> {tmp_path / 'out' / 'drawn'}" in done.stdout
    cfg = load_cfg(opts=["MODEL.IMG_SIZE", "64", "DATA.CACHE", "False"])
    photos, packed = (datasets_of(folder, cfg, train=True)
                      for folder in (drawn, tmp_path / "out" / "drawn"))
    for index in range(len(AGES)):
        before, after = (data.crops[index].mean(axis=2) for data in (photos, packed))
        error = np.abs(before - after).mean()  # WebP has colours at half the resolution
        assert error < 3 and np.abs(before - np.roll(after, 1, axis=1)).mean() > 2 * error
        difference = photos.face(index).astype(float) - packed.face(index)
        assert np.abs(difference.mean(axis=2)).mean() < 3  # augmented
    # Without surroundings a box is rounded to other pixels of the photo.
    photos, packed = (datasets_of(folder, cfg, train=False)
                      for folder in (drawn, tmp_path / "out" / "drawn"))
    difference = photos.face(0).astype(float) - packed.face(0)
    assert np.abs(difference.mean(axis=2)).mean() < 4


def test_lists_keep_names_and_columns(drawn, tmp_path):
    assert pack(tmp_path, "--data_dir", drawn, "--size", 64).returncode == 0
    for split in ("train", "valid"):
        table = pd.read_csv(tmp_path / "drawn" / f"drawn_{split}_align.csv")
        original = pd.read_csv(drawn / f"drawn_{split}_align.csv")
        same = ["photo", "age", "age_std", "gender", "confidence"]
        pd.testing.assert_frame_equal(table[same], original[same], check_dtype=False)
    with Image.open(tmp_path / "drawn" / table["photo"][0]) as picture:
        assert picture.format == "WEBP"
        assert picture.size == (76, 76)  # a tenth around


def test_each_face_of_a_photo_gets_a_picture_of_its_own(drawn, tmp_path):
    Image.fromarray(np.hstack([draw_face(10), draw_face(80)])).save(drawn / "pair.png")
    left = {"photo": "pair.png", "age": 10, "deg": 0.0, "box1": 16, "box2": 16, "box3": 80,
            "box4": 80}
    right = left | {"age": 80, "box1": 112, "box3": 176}
    taken = left | {"photo": "pair_face2.png", "age": 30}
    Image.fromarray(draw_face(30)).save(drawn / "pair_face2.png")
    write_list(drawn / "drawn_train_align.csv", [left, right, left | {"age": 11}, taken])
    write_list(drawn / "drawn_valid_align.csv", [right, left | {"box1": 14}])
    done = pack(tmp_path / "out", "--data_dir", drawn, "--size", 64)
    assert done.returncode == 0, done.stderr
    assert "drawn: 3 faces share their photo with another face" in done.stdout
    out = tmp_path / "out" / "drawn"
    lists = [pd.read_csv(out / f"drawn_{split}_align.csv") for split in ("train", "valid")]
    assert lists[0]["photo"].tolist() == ["pair.png", "pair_face3.png", "pair.png",
                                          "pair_face2.png"]
    assert lists[1]["photo"].tolist() == ["pair_face3.png", "pair_face4.png"]
    cfg = load_cfg(opts=["MODEL.IMG_SIZE", "64", "DATA.CACHE", "False"])
    photos, packed = (datasets_of(folder, cfg, train=False) for folder in (drawn, out))
    for index in range(4):
        difference = photos.face(index).astype(float) - packed.face(index)
        assert np.abs(difference.mean(axis=2)).mean() < 5
    assert sorted(path.name for path in out.iterdir()) == [
        "drawn_train_align.csv", "drawn_valid_align.csv", "pair.png", "pair_face2.png",
        "pair_face3.png", "pair_face4.png"]  # and nothing half-written


def test_data_sets_of_one_name_are_not_packed_over_each_other(drawn, tmp_path):
    write_dataset(tmp_path / "more", AGES)
    done = pack(tmp_path / "out", "--data_dir", drawn, tmp_path / "more")
    assert done.returncode == 2
    assert "2 of the data sets are called 'drawn'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_lists_is_named(drawn, tmp_path):
    done = pack(tmp_path / "out", "--data_dir", drawn, "--dataset", "nosuch")
    assert done.returncode == 2
    assert "nosuch_train_align.csv" in done.stderr


def test_missing_photo_is_named(drawn, tmp_path):
    (drawn / "drawn_3.png").unlink()
    done = pack(tmp_path / "out", "--data_dir", drawn)
    assert done.returncode == 2
    assert "drawn_3.png" in done.stderr


def test_rotations_that_an_old_list_ignored_are_told(drawn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(draw_face(30)).save(drawn / "drawn_0.png", exif=exif)
    for split in ("train", "valid"):
        path = drawn / f"drawn_{split}_align.csv"
        pd.read_csv(path).drop(columns="confidence").to_csv(path, index=False)
    done = subprocess.run([sys.executable, "-m", "training.pack", tmp_path / "out", "--data_dir",
                           drawn, "--size", "64"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "warning: 1 of 6 photos (drawn_0.png) have an EXIF rotation" in done.stderr
    assert done.stderr.count("warning:") == 1


@pytest.mark.parametrize("what", ["photos", "lists"])
def test_nothing_that_is_read_is_overwritten(drawn, tmp_path, what):
    lists = tmp_path / "lists"
    lists.mkdir()
    for path in drawn.glob("*.csv"):
        path.rename(lists / path.name)
    {"photos": drawn, "lists": lists}[what].rename(tmp_path / "drawn")
    folders = {"photos": drawn, "lists": lists} | {what: tmp_path / "drawn"}
    before = {path: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}
    done = pack(tmp_path, "--data_dir", folders["photos"], "--list_dir", folders["lists"])
    assert done.returncode == 2
    assert " would be overwritten; choose another OUT" in done.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}


def test_quality_is_checked(drawn, tmp_path):
    done = pack(tmp_path / "out", "--data_dir", drawn, "--quality", 101)
    assert done.returncode == 2
    assert "--quality must lie in 0..100, got 101" in done.stderr
