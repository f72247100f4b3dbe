"""The readers of the data sets, and the lists that generate_csv writes."""

import os
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faces import write_bomb
from PIL import Image
from scipy.io import savemat

from lists import parse_votes
from preprocess.columns import LOCATION, SPLITS
from preprocess.generate_csv import main, sort_records
from preprocess.readers import (
    DATASETS,
    Options,
    Skipped,
    age_on_1_july,
    parse_interval,
    table_reader,
)
from preprocess.rows import votes_problem
from preprocess.splits import by_hash, fill_empty_splits, share_by_hash
from utils.cli import run_main
from utils.tables import read_rows

SHARED = Path(__file__).parents[2] / "shared" / "data"


def write_photos(folder, names, size=(20, 30)):
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "#" + sha256(name.encode()).hexdigest()[:6]).save(path)


def write_text(folder, name, text):
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def read(name, folder, **options):
    records = list(DATASETS[name].read(folder, Options(**options)))
    rows = {row["photo"]: row for row in records if not isinstance(row, Skipped)}
    return rows, dict(row for row in records if isinstance(row, Skipped))


@pytest.fixture
def generate(monkeypatch, capsys):
    """A function that runs generate_csv in this process, as subprocess.run would."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # run_main changes it

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["generate_csv", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_main(main)
        return subprocess.CompletedProcess(arguments, ended.value.code or 0, *capsys.readouterr())

    return run


def test_shares_are_stable_and_as_asked():
    keys = [f"photo {i}" for i in range(5000)]
    counts = Counter(map(share_by_hash, keys))
    assert set(counts) == set(SPLITS)
    assert abs(counts["train"] / 5000 - 0.8) < 0.02 and abs(counts["test"] / 5000 - 0.1) < 0.02
    # A frozen list: a change of the hash would move photos between splits of users' lists.
    assert [share_by_hash(key) for key in ("a", "anna", "g", "i", "5", "31")] == [
        "train", "train", "valid", "valid", "test", "test"]


def test_utkface_odd_names(tmp_path):
    names = {"61_1_2_20170109142408075.jpg.chip.jpg": (61, "female", "asian"),
             "39_1_20170116174525125.jpg.chip.jpg": (39, "female", None),  # no race
             "24_0_1_20170116220224657 .jpg.chip.jpg": (24, "male", "black"),
             "55_0_0_20170116232725357jpg.chip.jpg": (55, "male", "white"),
             "14_0_0_2017011022340900.jpg.chip.jpg": (14, "male", "white"),
             "116_1_3_20170120134921760.jpg": (116, "female", "indian"),
             "part1/7_0_4_20161219210226888.jpg": (7, "male", "others")}
    write_photos(tmp_path, [*names, "cover.jpg", "notes_1_2.jpg"])
    rows, skipped = read("utkface", tmp_path)
    assert {photo: (row["age"], row.get("gender"), row.get("race"))
            for photo, row in rows.items()} == names
    assert set(skipped) == {"cover.jpg", "notes_1_2.jpg"}


def test_utkface_in_several_folders_counts_each_face_once(tmp_path, generate):
    names = [f"{age}_0_0_201701170000000{age}.jpg.chip.jpg" for age in range(20, 50)]
    folders = ("UTKFace", "crop_part1", "utkface_aligned_cropped/UTKFace")
    write_photos(tmp_path, [f"{folder}/{name}" for folder in folders for name in names])
    write_photos(tmp_path / "wild", [names[0].removesuffix(".chip.jpg")])
    done = generate("--dataset", "utkface", "--data_dir", tmp_path)
    assert "61 the same face as an earlier photo" in done.stdout
    photos = [photo for split in SPLITS
              for photo in pd.read_csv(tmp_path / f"utkface_{split}.csv")["photo"]]
    assert sorted(photos) == [f"UTKFace/{name}" for name in names]


def test_utkface_protocols(tmp_path):
    write_photos(tmp_path, [f"{age}_0_0_201701{age:02}{i:09}.jpg.chip.jpg"
                            for age in range(10, 80, 5) for i in range(30)])
    rows = list(read("utkface", tmp_path)[0].values())
    protocols = DATASETS["utkface"].protocols(rows, tmp_path)
    assert set(protocols) == {f"rotation{i}" for i in range(5)} | {"21-60"}
    tested = Counter(photo for i in range(5)
                     for photo, split in protocols[f"rotation{i}"].items() if split == "test")
    assert set(tested) == {row["photo"] for row in rows} and set(tested.values()) == {1}
    counts = Counter(protocols["rotation2"].values())
    for split, share in (("train", 0.6), ("valid", 0.2), ("test", 0.2)):
        assert counts[split] / len(rows) == pytest.approx(share, abs=0.06)
    ages = {row["photo"]: row["age"] for row in rows}
    assert {ages[photo] for photo in protocols["21-60"]} == {25, 30, 35, 40, 45, 50, 55, 60}


def test_utkface_published_lists_win(tmp_path):
    names = [f"{age}_0_0_201701170000000{age}.jpg.chip.jpg" for age in (25, 30, 35, 70)]
    write_photos(tmp_path, names)
    write_text(tmp_path, "utk_train.csv", f",file,age\n0,{names[0]},4\n1,{names[2]},9\n")
    write_text(tmp_path, "utk_test.csv", f",file,age\n2,{names[1]},9\n")
    rows = list(read("utkface", tmp_path)[0].values())
    splits = DATASETS["utkface"].protocols(rows, tmp_path)["21-60"]
    assert set(splits) == set(names[:3]) and splits[names[1]] == "test"
    assert "test" not in {splits[names[0]], splits[names[2]]}


def test_appa_real_votes_and_uncropped(tmp_path):
    write_text(tmp_path, "gt_avg_train.csv", "file_name,num_ratings,apparent_age_avg,"
               "apparent_age_std,real_age\n000000.jpg,3,5.3,1.1,4\n000001.jpg,2,20,4.1,\n")
    write_text(tmp_path, "gt_train.csv", "file_name,real_age,apparent_age,worker_age,"
               "worker_gender\n000000.jpg,4,5,30,female\n000000.jpg,4,6,31,male\n"
               "000000.jpg,4,5,32,female\n")
    write_photos(tmp_path, ["train/000000.jpg", "train/000000.jpg_face.jpg",
                            "train/000001.jpg_face.jpg"])
    rows, _ = read("appa_real", tmp_path)
    crop = "train/000000.jpg_face.jpg"  # of several faces in the photo the one that was voted on
    assert rows[crop] == {"photo": crop, "age": 5.3, "split": "train", "age_std": "1.1",
                          "votes": "5:2 6:1"}
    assert rows["train/000001.jpg_face.jpg"]["votes"] == ""
    rows, skipped = read("appa_real", tmp_path, appa_real_label="real")
    assert rows[crop]["age"] == 4 and "votes" not in rows[crop]
    assert skipped == {"train/000001.jpg_face.jpg": "no real_age"}
    (tmp_path / crop).unlink()
    assert "train/000000.jpg" in read("appa_real", tmp_path)[0]
    write_text(tmp_path, "gt_avg_train.csv", "file_name,num_ratings,apparent_age_avg,"
               "apparent_age_std,real_age\n000000.jpg,3,abc,1.1,4\n000001.jpg,3,nan,1.1,4\n")
    assert read("appa_real", tmp_path)[1] == {
        "train/000000.jpg": "apparent_age_avg 'abc' is not a number",
        "train/000001.jpg_face.jpg": "apparent_age_avg 'nan' is not a number"}


@pytest.mark.parametrize("first_age", [0, 1])
def test_megaage_distributions_and_test_list(tmp_path, first_age):
    for part, ages in (("train", (3, 40)), ("test", (10,))):
        write_text(tmp_path, f"list/{part}_name.txt", "".join(f"{age}.jpg\n" for age in ages))
        write_text(tmp_path, f"list/{part}_age.txt", "".join(f"{age}\n" for age in ages))
    weights = np.zeros((2, 60))
    weights[0, [2 - first_age, 3 - first_age, 4 - first_age]] = 0.25, 0.5, 0.25
    weights[1, 40 - first_age] = 1
    np.savetxt(tmp_path / "list/train_age_dis.txt", weights)
    records = list(DATASETS["megaage_asian"].read(tmp_path, Options()))
    assert [(row["photo"], row["age"], row["split"]) for row in records] == [
        ("train/3.jpg", 3, "train"), ("train/40.jpg", 40, "train"),
        ("test/10.jpg", 10, "valid"), ("test/10.jpg", 10, "test")]
    assert records[0]["votes"] == "2:0.25 3:0.5 4:0.25" and records[1]["votes"] == "40:1"


def test_megaage_files_that_are_none_are_named(tmp_path):
    for part in ("train", "test"):
        write_text(tmp_path, f"list/{part}_name.txt", "1.jpg\n2.jpg\n")
        write_text(tmp_path, f"list/{part}_age.txt", "30\n30y\n")
    write_text(tmp_path, "list/train_age_dis.txt", "0,0,1\n0,0,1\n")
    with pytest.raises(ValueError, match="28.0 years off"):  # commas or blanks between them
        read("megaage", tmp_path)
    write_text(tmp_path, "list/train_age_dis.txt", "0 x 1\n0 0 1\n")
    with pytest.raises(ValueError, match="train_age_dis.txt.*a line of numbers"):
        read("megaage", tmp_path)
    (tmp_path / "list/train_age_dis.txt").unlink()
    rows, skipped = read("megaage", tmp_path)
    assert rows["train/1.jpg"]["age"] == 30
    assert skipped["train/2.jpg"] == skipped["test/2.jpg"] == "age '30y' is not a number"
    for part in ("train", "test"):
        write_text(tmp_path, f"list/{part}_age.txt", "old\n30y\n")
    write_text(tmp_path, "list/train_age_dis.txt", "0 0 1\n0 0 1\n")
    assert not read("megaage", tmp_path)[0]
    (tmp_path / "list/test_name.txt").write_bytes("é.jpg\n".encode("latin-1"))
    with pytest.raises(ValueError, match="test_name.txt' is not UTF-8"):
        read("megaage", tmp_path)


@pytest.mark.parametrize("text, interval", [
    ("3-9", (3, 9)), ("(4, 6)", (4, 6)), ("(38,43)", (38, 43)), (" 35 ", (35, 35)),
    ("more than 70", (70, 100)), ("0-2", (0, 2)),
    ("70+", None), ("3-Sep", None), ("Oct-19", None), ("9-3", None), ("None", None), ("", None),
    ("20-29-39", None), ("1990", None)])
def test_an_interval_has_one_of_four_forms(text, interval):
    found = parse_interval(text, max_age=100)
    assert interval == (None if found is None else (found["age_min"], found["age_max"]))
    assert found is None or found["age"] == sum(interval) / 2


def test_a_photo_without_a_year_has_no_age():
    assert age_on_1_july(700_000, 2000) == 83
    assert age_on_1_july(700_000, float("nan")) is None
    assert age_on_1_july(float("nan"), 2000) is None


@pytest.mark.parametrize("content", [b"", b"no mat", "half"])
def test_a_broken_mat_file_is_named(tmp_path, content):
    savemat(tmp_path / "imdb.mat", {"imdb": {"full_path": ["a.jpg"] * 50}})
    if content == "half":
        content = (tmp_path / "imdb.mat").read_bytes()[:300]
    (tmp_path / "imdb.mat").write_bytes(content)
    with pytest.raises(ValueError, match="imdb.mat': expected a struct 'imdb'"):
        read("imdb", tmp_path)


def test_megaage_refuses_distributions_of_other_ages(tmp_path):
    for part in ("train", "test"):
        write_text(tmp_path, f"list/{part}_name.txt", "1.jpg\n")
        write_text(tmp_path, f"list/{part}_age.txt", "30\n")
    np.savetxt(tmp_path / "list/train_age_dis.txt", np.eye(60)[[10]])
    with pytest.raises(ValueError, match="20.0 years off"):
        read("megaage", tmp_path)


def test_morph_persons_stay_together(tmp_path):
    lines = [f"{person:06},Album2/{person:06}_{i}M{20 + i}.JPG,{20 + i},B,M"
             for person in range(60) for i in range(4)]
    write_text(tmp_path, "morph_2008_nonCommercial.csv",
               "id_num,photo,age,race,gender\n" + "\n".join(lines) + "\n000099,x.JPG,,W,F\n")
    rows, skipped = read("morph", tmp_path)
    assert len(rows) == 240 and "x.JPG" in skipped
    row = rows["Album2/000007_2M22.JPG"]
    assert (row["age"], row["gender"], row["race"], row["subject"]) == (22, "male", "b", "000007")
    rows = list(rows.values())
    protocols = DATASETS["morph"].protocols(rows, tmp_path)

    def shared_persons(splits):
        persons = {split: {row["subject"] for row in rows if splits[row["photo"]] == split}
                   for split in SPLITS}
        assert all(persons.values())
        return persons["train"] & persons["test"]

    assert not shared_persons({row["photo"]: row["split"] for row in rows})
    assert not shared_persons(protocols["subject"])
    assert shared_persons(protocols["random"])


def test_intervals_of_fairface_and_adience(tmp_path):
    header = "file,age,gender,race,service_test\n"
    write_text(tmp_path, "fairface_label_train.csv", header
               + "train/1.jpg,3-9,Male,East Asian,True\ntrain/2.jpg,more than 70,Female,White,True"
               "\ntrain/3.jpg,?,Female,White,True\n")
    write_text(tmp_path, "fairface_label_val.csv", header + "val/1.jpg,0-2,Female,Indian,False\n")
    rows, skipped = read("fairface", tmp_path)
    assert rows["train/1.jpg"] == {"photo": "train/1.jpg", "age": 6, "age_min": 3, "age_max": 9,
                                   "gender": "male", "race": "east asian", "split": "train"}
    assert (rows["train/2.jpg"]["age_min"], rows["train/2.jpg"]["age_max"]) == (70, 100)
    assert rows["val/1.jpg"]["split"] == "valid" and set(skipped) == {"train/3.jpg"}

    (tmp_path / "aligned").mkdir()
    for fold, age in enumerate(["(25, 32)", "35", "None", "(0, 2)", "(60, 100)"]):
        write_text(tmp_path, f"fold_{fold}_data.txt", "user_id\toriginal_image\tface_id\tage\t"
                   f"gender\n3{fold}@N03\tp.jpg\t{fold}\t{age}\tf\n")
    rows, skipped = read("adience", tmp_path)
    row = rows["aligned/30@N03/landmark_aligned_face.0.p.jpg"]
    assert (row["age"], row["age_min"], row["age_max"], row["split"]) == (28.5, 25, 32, "train")
    assert rows["aligned/31@N03/landmark_aligned_face.1.p.jpg"]["age_max"] == 35
    assert len(rows) == 4 and len(skipped) == 1
    folds = DATASETS["adience"].protocols(list(rows.values()), tmp_path)
    assert folds["fold0"][row["photo"]] == "test" and folds["fold1"][row["photo"]] == "valid"


def write_imdb(folder, name="imdb"):
    # 730486 is 2000-01-01; 100 is no date
    births = [730668, 730669, 100, 750000, 730668, 730668]
    faces = {"dob": births, "photo_taken": [2030, 2030, 2030, 1950, 2030, 2030],
             "full_path": np.array([f"0{i}/p{i}.jpg" for i in range(6)], object),
             "gender": [1.0, 0.0, np.nan, 1.0, 1.0, 1.0],
             "face_location": np.array([np.array([[1.0, 2, 3, 4]])] * 6 + [None], object)[:6],
             "face_score": [3.0, 0.5, 3.0, 3.0, -np.inf, 3.0],
             "second_face_score": [np.nan, np.nan, np.nan, np.nan, 1.0, 2.0],
             "celeb_id": [7, 8, 9, 10, 11, 12]}
    savemat(folder / f"{name}.mat", {name: faces})


def test_imdb_ages_filters_and_locations(tmp_path):
    (tmp_path / "imdb_crop").mkdir()
    write_imdb(tmp_path / "imdb_crop")
    rows, skipped = read("imdb", tmp_path)
    assert set(rows) == {"imdb_crop/00/p0.jpg"}
    row = rows["imdb_crop/00/p0.jpg"]
    assert (row["age"], row["gender"], row["subject"]) == (30, "male", "7")
    assert skipped == {"imdb_crop/01/p1.jpg": "face_score below 1",
                       "imdb_crop/02/p2.jpg": "age outside 0..100",
                       "imdb_crop/03/p3.jpg": "age outside 0..100",
                       "imdb_crop/04/p4.jpg": "no face by its own detector",
                       "imdb_crop/05/p5.jpg": "a second face"}
    assert "imdb_crop/05/p5.jpg" in read("imdb", tmp_path, max_second_face_score=2.0)[0]
    assert "imdb_crop/05/p5.jpg" not in read("imdb", tmp_path, max_second_face_score=1.9)[0]
    rows = read("imdb", tmp_path, min_face_score=0)[0]
    assert rows["imdb_crop/01/p1.jpg"]["age"] == 29  # born a day later, on 2 July


@pytest.mark.parametrize("folder", ["wiki_crop", "wiki"])
def test_wiki_in_its_own_folder(tmp_path, folder):
    (tmp_path / folder).mkdir()
    write_imdb(tmp_path / folder, "wiki")
    row = read("wiki", tmp_path / folder)[0]["00/p0.jpg"]
    assert ("location_ratio" in row) == (folder == "wiki_crop")
    assert [row.get(name) for name in LOCATION] == (
        [1, 2, 3, 4] if folder == "wiki" else [None] * 4)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_name_that_is_not_utf8_is_skipped(tmp_path, generate):
    write_photos(tmp_path, ["14_Ann_0001.jpg"])
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/15_Zo\xe9_0001.jpg")).write_bytes(
        (tmp_path / "14_Ann_0001.jpg").read_bytes())
    done = generate("--dataset", "cacd", "--data_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    skipped = pd.read_csv(tmp_path / "cacd_skipped.csv").to_dict("records")
    assert skipped == [{"photo": "15_Zo\\udce9_0001.jpg", "reason": "file name is not UTF-8"}]


def test_location_of_a_crop_becomes_pixels(tmp_path, generate):
    (tmp_path / "imdb_crop").mkdir()
    write_imdb(tmp_path / "imdb_crop")
    write_photos(tmp_path, ["imdb_crop/00/p0.jpg"], size=(180, 90))
    done = generate("--dataset", "imdb", "--data_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    lists = [pd.read_csv(path) for path in tmp_path.glob("imdb_t*.csv")]
    lists += [pd.read_csv(path) for path in tmp_path.glob("imdb_valid.csv")]
    [row] = pd.concat(lists).to_dict("records")
    assert [row[f"face_{name}"] for name in ("x1", "y1", "x2", "y2")] == [40, 20, 140, 70]


@pytest.mark.parametrize(("location", "reason"), [
    ("12,9,10,20", "face_x2 is not right of face_x1.*not width and height"),
    ("0.1,0.2,0.5,0.6", "expected pixels"), ("25,2,30,12", "outside the photo of 20 x 30"),
    ("1,2,10,", "not four numbers")])
def test_a_location_that_cannot_be_a_face_is_skipped(tmp_path, generate, location, reason):
    write_photos(tmp_path, ["a.png", "b.png", "c.png"])
    write_text(tmp_path, "ages.csv", "photo,age,face_x1,face_y1,face_x2,face_y2\n"
                                     f"a.png,3,{location}\nb.png,4,1,2,10,20\nc.png,5,,,,\n")
    done = generate("--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv")
    assert done.returncode == 0, done.stderr
    [row] = pd.read_csv(tmp_path / "my_skipped.csv").to_dict("records")
    assert row["photo"] == "a.png" and re.search(reason, row["reason"])


@pytest.mark.parametrize(("name", "photo", "age", "subject"), [
    ("fgnet", "images/001A02.JPG", 2, "001"), ("fgnet", "images/082a18b.jpg", 18, "082"),
    ("agedb", "3_Maria_Callas_35_f.jpg", 35, "Maria_Callas"),
    ("cacd", "14_Aaron_Johnson_0001.jpg", 14, "Aaron_Johnson"),
    ("cacd", "53_Zoë_O'Neil_0016.jpg", 53, "Zoë_O'Neil")])
def test_person_and_age_in_the_name(tmp_path, name, photo, age, subject):
    write_photos(tmp_path, [photo, "images/readme.png"])
    rows, skipped = read(name, tmp_path)
    assert (rows[photo]["age"], rows[photo]["subject"]) == (age, subject)
    assert set(skipped) == {"images/readme.png"}


@pytest.mark.parametrize(("name", "pattern"), [
    ("fgnet", "{0:03}A{1:02}.JPG"), ("agedb", "{1}_Person{0}_{1}_f.jpg"),
    ("cacd", "{1}_Person{0}_0001.jpg")])
def test_persons_are_in_one_split(tmp_path, name, pattern):
    write_photos(tmp_path, [pattern.format(person, age) for person in range(1, 83)
                            for age in (20, 30)])
    rows, _ = read(name, tmp_path)
    persons = {split: {row["subject"] for row in rows.values() if row["split"] == split}
               for split in SPLITS}
    assert all(persons.values()) and sum(map(len, persons.values())) == 82


def test_fgnet_leaves_one_person_out(tmp_path):
    write_photos(tmp_path, [f"images/{person:03}A{age:02}.JPG" for person in range(1, 83)
                            for age in (2, 30)])
    rows = list(read("fgnet", tmp_path)[0].values())
    protocols = DATASETS["fgnet"].protocols(rows, tmp_path)
    assert len(protocols) == 82
    tested = [photo for photo, split in protocols["without007"].items() if split == "test"]
    assert sorted(tested) == ["images/007A02.JPG", "images/007A30.JPG"]
    assert set(protocols["without007"].values()) == set(SPLITS)


def test_afad_folders(tmp_path):
    write_photos(tmp_path, ["AFAD-Full/25/112/9-0.jpg", "AFAD-Full/31/111/8-1.jpg", "logo.jpg"])
    rows, skipped = read("afad", tmp_path)
    assert rows["AFAD-Full/25/112/9-0.jpg"]["gender"] == "female"
    assert rows["AFAD-Full/31/111/8-1.jpg"]["age"] == 31 and set(skipped) == {"logo.jpg"}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_wrong_folder_names_what_was_looked_for(tmp_path, name):
    with pytest.raises((FileNotFoundError, ValueError), match=r"holds no|not found"):
        read(name, tmp_path)


def test_an_error_of_the_script_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "preprocess.generate_csv", "--dataset", "utkface",
                           "--data_dir", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "holds no image" in done.stderr


def test_generate_counts_what_it_cannot_use(tmp_path, generate):
    write_photos(tmp_path, [f"{age}_0_0_20170117000000{age:03}.jpg" for age in (1, 30, 116)])
    (tmp_path / "5_0_0_20170117000000999.jpg").write_bytes(b"no image")
    write_bomb(tmp_path / "6_0_0_20170117000000999.jpg")
    done = generate("--dataset", "utkface", "--data_dir", tmp_path, "--list_dir", tmp_path / "l")
    assert done.returncode == 0, done.stderr
    assert "1 older than the last bin" in done.stdout and "1 not an image" in done.stdout
    lists = pd.concat(pd.read_csv(tmp_path / "l" / f"utkface_{split}.csv")
                      for split in SPLITS if (tmp_path / "l" / f"utkface_{split}.csv").is_file())
    assert sorted(lists["age"]) == [1, 30, 100]
    assert pd.read_csv(tmp_path / "l/utkface_skipped.csv")["reason"].tolist() == [
        "not an image", "more pixels than PIL reads"]
    assert pd.read_csv(tmp_path / "l/utkface_split_rotation0.csv").columns.tolist() == [
        "photo", "split"]
    done = generate("--dataset", "utkface", "--data_dir", tmp_path, "--list_dir", tmp_path / "m",
                    "--drop_older")
    assert "1 older than 100" in done.stdout


@pytest.mark.parametrize("dataset, flag", [("utkface", ("--appa_real_label", "real")),
                                           ("appa_real", ("--min_face_score", "2")),
                                           ("fairface", ("--max_second_face_score", "3"))])
def test_flags_of_another_data_set_are_refused(tmp_path, generate, dataset, flag):
    done = generate("--dataset", dataset, "--data_dir", tmp_path, *flag)
    assert done.returncode == 2 and f"error: {flag[0]} is for --dataset" in done.stderr
    assert f"'{dataset}' does not read it" in done.stderr


def test_a_list_that_would_not_change_is_left_alone(tmp_path, generate):
    """It would seem newer than the list that was aligned from it."""
    photos = [f"{number}.png" for number in range(5)]
    write_photos(tmp_path, photos)
    table = pd.DataFrame({"photo": photos, "age": 30, "split": ["train"] * 4 + ["valid"]})
    arguments = ["--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv"]
    table.to_csv(tmp_path / "ages.csv", index=False)
    assert generate(*arguments).returncode == 0
    for split in ("train", "valid"):
        os.utime(tmp_path / f"my_{split}.csv", (1000, 1000))
    table.loc[4, "age"] = 31
    table.to_csv(tmp_path / "ages.csv", index=False)
    assert generate(*arguments).returncode == 0
    assert (tmp_path / "my_train.csv").stat().st_mtime == 1000
    assert (tmp_path / "my_valid.csv").read_text() == "photo,age\n4.png,31\n"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
def test_an_error_of_the_disk_stops_and_skips_no_photo(tmp_path, generate):
    write_photos(tmp_path, ["1.png", "2.png"])
    (tmp_path / "3.png").symlink_to("/proc/self/mem")  # opens, and fails with EIO
    write_text(tmp_path, "ages.csv", "photo,age\n1.png,3\n2.png,4\n3.png,5\n")
    done = generate("--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"'{tmp_path}/3.png': Input/output error; " in done.stderr
    assert not list(tmp_path.glob("my_*"))


def test_train_on_test_moves_the_test_photos_and_refuses_a_list_of_them(tmp_path, generate):
    write_photos(tmp_path, [f"30_0_0_20170117000000{i:03}.jpg" for i in range(60)])
    arguments = ["--dataset", "utkface", "--data_dir", tmp_path, "--list_dir", tmp_path / "lists"]
    assert generate(*arguments).returncode == 0
    apart = {split: pd.read_csv(tmp_path / f"lists/utkface_{split}.csv") for split in SPLITS}
    refused = generate(*arguments, "--train_on_test")
    assert refused.returncode == 2 and "utkface_test.csv" in refused.stderr
    (tmp_path / "lists/utkface_test.csv").unlink()
    assert generate(*arguments, "--train_on_test").returncode == 0
    assert not (tmp_path / "lists/utkface_test.csv").exists()
    for split, expected in (("train", [*apart["train"]["photo"], *apart["test"]["photo"]]),
                            ("valid", apart["valid"]["photo"])):
        written = pd.read_csv(tmp_path / f"lists/utkface_{split}.csv")
        assert sorted(written["photo"]) == sorted(expected)


def test_copies_of_measured_photos_are_told_and_can_be_left_out(tmp_path, generate):
    names = [f"{number}.png" for number in range(5)]
    write_photos(tmp_path, names)
    for copy, photo in (("a.png", "3.png"), ("b.png", "4.png"), ("c.png", "0.png")):
        shutil.copy(tmp_path / photo, tmp_path / copy)
    table = pd.DataFrame({"photo": [*names, "a.png", "b.png", "c.png"],
                          "age": [10, 20, 30, 40, 50, 41, 50, 10],
                          "split": ["train"] * 3 + ["valid", "test"] + ["train"] * 3})
    table.to_csv(tmp_path / "ages.csv", index=False)
    words = ["--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv"]
    with pytest.warns(UserWarning, match=r"another list: 2, 1 of them with another age, such as "
                      r"'a\.png' and '3\.png' \(valid\)"):
        generate(*words)
    assert len(pd.read_csv(tmp_path / "my_train.csv")) == 6
    told = generate(*words, "--drop_copies").stdout
    assert "1 a copy of a valid photo, 1 a copy of a test photo" in told
    assert list(pd.read_csv(tmp_path / "my_train.csv")["photo"]) == [
        "0.png", "1.png", "2.png", "c.png"]  # a copy within the training is no leak
    assert list(pd.read_csv(tmp_path / "my_skipped.csv")["photo"]) == ["a.png", "b.png"]
    assert [len(pd.read_csv(tmp_path / f"my_{split}.csv")) for split in SPLITS[1:]] == [1, 1]


@pytest.mark.parametrize("ending", ["", "_align"])
def test_the_list_of_an_earlier_run_does_not_stay_for_a_split_without_rows(tmp_path, generate,
                                                                           ending):
    photos = [f"{number}.png" for number in range(5)]
    write_photos(tmp_path, photos)
    table = pd.DataFrame({"photo": photos, "age": 30})
    arguments = ["--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv"]
    table.to_csv(tmp_path / "ages.csv", index=False)
    assert generate(*arguments).returncode == 0
    old, before = tmp_path / "my_test.csv", (tmp_path / "my_train.csv").read_text()
    old = old.rename(tmp_path / f"my_test{ending}.csv")
    table.assign(split=["train"] * 4 + ["valid"]).to_csv(tmp_path / "ages.csv", index=False)
    refused = generate(*arguments)
    assert refused.returncode == 2 and "no photo goes to test" in refused.stderr
    assert f"'{old}'" in refused.stderr and "--list_dir" in refused.stderr
    assert (tmp_path / "my_train.csv").read_text() == before  # nothing is half done
    old.unlink()
    assert generate(*arguments).returncode == 0
    assert len(pd.read_csv(tmp_path / "my_train.csv")) == 4


def test_train_on_test_refuses_photos_that_validate(tmp_path, generate):
    for part, name in (("train", "1.jpg"), ("test", "2.jpg")):
        write_text(tmp_path, f"list/{part}_name.txt", f"{name}\n")
        write_text(tmp_path, f"list/{part}_age.txt", "30\n")
        write_photos(tmp_path, [f"{part}/{name}"])
    np.savetxt(tmp_path / "list/train_age_dis.txt", np.ones((1, 60)) / 60)
    done = generate("--dataset", "megaage_asian", "--data_dir", tmp_path, "--train_on_test")
    assert done.returncode == 2 and "'test/2.jpg'" in done.stderr
    assert not (tmp_path / "megaage_asian_train.csv").exists()


def test_unwritable_folder_names_the_way_out(tmp_path, generate):
    write_photos(tmp_path, ["1_0_0_20170117000000001.jpg"])
    blocked = tmp_path / "file"
    blocked.touch()
    done = generate("--dataset", "utkface", "--data_dir", tmp_path, "--list_dir", blocked)
    assert done.returncode == 2 and "--list_dir" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not (SHARED / "UTKFace").is_dir(), reason="no ../shared/data/UTKFace")
def test_real_utkface_is_read_whole():
    rows, skipped = read("utkface", SHARED / "UTKFace")
    assert len(rows) == 18988 and not skipped
    assert Counter(row["split"] for row in rows.values()) == {
        "train": 15159, "valid": 1928, "test": 1901}


def test_a_table_of_ones_own_photos_becomes_lists(tmp_path, generate):
    photos = [f"in/{i}.png" for i in range(12)]
    write_photos(tmp_path, photos)
    splits = ["train"] * 6 + ["valid", "test", "", "", "", ""]
    table = pd.DataFrame({"photo": [*photos, "gone.png", "old.png"], "age": [*range(12), 3, "old"],
                          "age_min": "", "age_max": "", "note": "x",
                          "subject": ["", *"bbbbbdeccccc", ""], "split": [*splits, "", ""]})
    table.loc[6, ["age", "age_min", "age_max"]] = "", "20", "29"
    table.to_csv(tmp_path / "ages.csv", index=False)
    words = ["--dataset", "my-photos", "--data_dir", tmp_path]
    done = generate(*words, "--table", tmp_path / "ages.csv")
    assert done.returncode == 0, done.stderr
    lists = {path.stem.split("_")[-1]: pd.read_csv(path)
             for path in tmp_path.glob("my-photos_*.csv")}
    person = share_by_hash("c")
    assert set(lists["train"]["photo"]) >= set(photos[:6])
    assert set(lists[person]["photo"]) >= set(photos[8:])
    assert lists["valid"].set_index("photo").loc["in/6.png", "age"] == 24.5
    assert lists["skipped"]["reason"].tolist() == ["file missing", "age 'old' is not a number"]
    assert "note" not in lists["train"]
    assert "rows that name no face (face_x1 to face_y2): 12 of 12; " in done.stdout

    done = generate(*words)
    assert done.returncode == 2 and "utkface" in done.stderr and "--table" in done.stderr
    given = ["--table", tmp_path / "ages.csv", "--dataset"]
    for changes, named in ((["--table", tmp_path / "no.csv"], "no.csv' not found"),
                           ([*given, "utkface"], "of your own"), ([*given, "a/b"], "of your own"),
                           ([*given, "my_split_b"], "not '_split_'")):
        done = generate(*words, *changes)
        assert done.returncode == 2 and named in done.stderr and done.stderr.count("\n") == 1
    copy = tmp_path / "my-photos_train.csv"
    table.to_csv(copy, index=False)
    done = generate(*words, "--table", copy)
    assert done.returncode == 2 and "would be overwritten" in done.stderr
    assert len(pd.read_csv(copy)) == len(table)
    table.assign(split="dev").to_csv(tmp_path / "ages.csv", index=False)
    done = generate(*words, "--table", tmp_path / "ages.csv")
    assert done.returncode == 2 and "split 'dev' of 'in/0.png' is not one of train" in done.stderr


def test_photos_that_all_cannot_be_used_are_told_with_an_example(tmp_path, generate):
    (tmp_path / "ages.csv").write_text("photo,age\na.jpg,\npics/b.jpg,30\npics/c.jpg,40\n")
    done = generate("--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv")
    assert done.returncode == 2
    assert "3 skipped, most often because: file missing, such as 'pics/b.jpg'" in done.stderr
    (tmp_path / "ages.csv").write_text("photo,age\n")
    done = generate("--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv")
    assert done.stderr.strip().endswith(f"no usable photo of my in '{tmp_path}'")


def test_all_photos_of_a_person_in_a_table_go_to_one_split(tmp_path, generate):
    persons = ["a", "anna", "g", "i", "5", "31"]  # by hash in train, valid and test
    rows = [(f"{person} {number}.png", "30", person + " " * number, "")
            for person in persons for number in range(2)]
    rows += [("two.png", "30", "", ""), ("two.png", "9", "", "test")]  # two faces of a photo
    rows[1:2] = [(*rows[1][:3], "test")]
    rows[4:5] = [(*rows[4][:3], "train")]
    write_photos(tmp_path, [row[0] for row in rows])
    table = pd.DataFrame(rows, columns=["photo", "age", "subject", "split"])
    table.to_csv(tmp_path / "ages.csv", index=False)
    words = ["--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv"]
    assert generate(*words).returncode == 0
    splits = {}
    for split in SPLITS:
        written = pd.read_csv(tmp_path / f"my_{split}.csv", dtype=str)
        for key in written["subject"].fillna(written["photo"]):
            splits.setdefault(key, set()).add(split)
    assert splits == {"a": {"test"}, "anna": {"train"}, "g": {"train"}, "i": {"valid"},
                      "5": {"test"}, "31": {"test"}, "two.png": {"test"}}
    table.loc[0, "split"] = "train"
    table.to_csv(tmp_path / "ages.csv", index=False)
    refused = generate(*words)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "the person 'a' are in train and in test" in refused.stderr


def test_a_person_is_one_however_the_accents_are_spelled(tmp_path, generate):
    names = ["José", "Zoë", "Müller", "Åsa", "Renée", "Jürgen", "Chloé", "Søren", "Łuçja"]
    spellings = [unicodedata.normalize(form, name) for form in ("NFC", "NFD") for name in names]
    records = [(f"{number}.png", 30, name, "") for number, name in enumerate(spellings)]
    write_photos(tmp_path, [record[0] for record in records])
    table = pd.DataFrame(records, columns=["photo", "age", "subject", "split"])
    table.to_csv(tmp_path / "ages.csv", index=False)
    words = ["--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv"]
    assert generate(*words).returncode == 0
    persons = [set(pd.read_csv(tmp_path / f"my_{split}.csv")["subject"]) for split in SPLITS]
    assert sum(map(len, persons)) == len(set.union(*persons)) == len(names)
    table["split"] = ["train"] + [""] * 8 + ["test"] + [""] * 8
    table.to_csv(tmp_path / "ages.csv", index=False)
    assert "the person 'José' are in train and in test" in generate(*words).stderr


def test_a_photo_of_a_table_is_not_in_train_and_in_another_split(tmp_path, generate):
    write_photos(tmp_path, ["a.png", "b.png"])
    words = ["--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv"]
    write_text(tmp_path, "ages.csv", "photo,age,split\nb.png,30,train\na.png,30,valid\n"
                                     "a.png,30,test\n")  # as MegaAge: valid is test
    done = generate(*words)
    assert done.returncode == 0 and "1 train, 1 valid, 1 test" in done.stdout
    write_text(tmp_path, "ages.csv", "photo,age,split\na.png,30,valid\na.png,30,test\n"
                                     "./a.png,30,train\n")
    refused = generate(*words)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "the photo 'a.png' is in valid and in train" in refused.stderr


def test_a_group_photo_whose_persons_are_in_several_splits_is_told(tmp_path, generate):
    write_photos(tmp_path, ["a.png", "b.png"])
    words = ["--dataset", "my", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv"]
    persons = [f"a.png,30,{number}" for number in range(12)]
    write_text(tmp_path, "ages.csv", "\n".join(["photo,age,subject", "b.png,30,b", *persons]))
    with pytest.warns(UserWarning, match="^1 of 2 photos, such as 'a.png', have faces in the tr"):
        assert generate(*words).returncode == 0
    rows = ["photo,age,subject,split", "b.png,30,b,train", *[f"{row},valid" for row in persons]]
    write_text(tmp_path, "ages.csv", "\n".join(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(*words, "--list_dir", tmp_path / "other").returncode == 0


@pytest.mark.parametrize(("row", "kept"), [
    ("30,,", (30, None, None)), (",20,29", (24.5, 20, 29)), ("105,105,105", (100, 100, 100)),
    (",101,109", (100, 100, 100)), ("29.5,20,29", (29.5, 20, 29)),
    (",,", "no age"), ("30,25,", "age_min '25' to age_max '' is not an interval"),
    ("30,40,20", "age_min '40' to age_max '20' is not an interval"),
    ("50,20,29", "age 50 is outside age_min to age_max"),
    (",20s,29", "age_min '20s' is not a number"), ("20_30,,", "age '20_30' is not a number"),
    ("1985,,", "age above 122"), ("30,nan,NaN", (30, None, None)), ("nan,,", "no age"),
    (",20.5,29", "age_min 20.5 to age_max 29 are not whole years"), (",20.0,29", (24.5, 20, 29))])
def test_a_table_gives_rows_that_training_takes(tmp_path, row, kept):
    write_photos(tmp_path, ["a.png", "b.png"])
    write_text(tmp_path, "ages.csv", f"photo,age,age_min,age_max,split\na.png,{row},train\n"
                                     "b.png,40,,,valid\n")
    records = table_reader(tmp_path / "ages.csv")(tmp_path, Options())
    rows, skipped, _ = sort_records(records, tmp_path, max_age=100, drop_older=False)
    if isinstance(kept, str):
        assert skipped == [("a.png", kept)] and len(rows) == 1
    else:
        assert tuple(rows[0].get(name) or None for name in ("age", "age_min", "age_max")) == kept


@pytest.mark.parametrize(("name", "text", "problem"), [
    ("age_std", "ca. 3", "age_std 'ca. 3' is not a number"),
    ("age_std", "inf", "age_std 'inf' is not a number"),
    ("age_std", "-1", "age_std '-1' is negative"),
    ("votes", "23:1 80=3", "'80=3' in votes '23:1 80=3' is not age:weight"),
    ("votes", "23:-1", "'23:-1' in votes '23:-1' is not age:weight"),
    ("votes", "23:nan", "'23:nan' in votes '23:nan' is not age:weight")])
def test_labels_that_training_refuses_are_skipped(tmp_path, name, text, problem):
    """Otherwise they are found after hours of alignment, which a correction repeats."""
    write_text(tmp_path, "ages.csv", f"photo,age,{name}\na.png,3,{text}\nb.png,3,\n")
    skipped, row = table_reader(tmp_path / "ages.csv")(tmp_path, Options())
    assert skipped == ("a.png", problem) and row["photo"] == "b.png"
    if name == "votes":
        with pytest.raises(ValueError, match="votes"):
            parse_votes(text, list(range(101)))


@pytest.mark.parametrize("text", ["", "23:3 24:7", " 7:0.5", "130:2", "23.4:1"])
def test_votes_that_training_takes_are_taken(text):
    assert votes_problem({"votes": text}) is None
    assert parse_votes(text, list(range(101))).sum() >= 0


def test_half_a_year_of_a_vote_counts_upwards():
    assert np.flatnonzero(parse_votes("22.5:1 23.5:1", list(range(101)))).tolist() == [23, 24]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 20])
def test_no_split_is_empty_if_there_are_keys_for_it(count):
    for start in range(60):
        rows = [by_hash(f"{start} {number}") for number in range(count) for _ in range(2)]
        by_hash_alone = [row["split"] for row in rows]
        filled = fill_empty_splits(rows)
        assert {row["split"] for row in rows} == {*SPLITS[:count]}
        assert all(first["split"] == second["split"]
                   for first, second in zip(rows[::2], rows[1::2], strict=True))
        if count > 2:
            assert set(filled) == {*SPLITS} - {*by_hash_alone}
        moved = sum(row["split"] != split for row, split in zip(rows, by_hash_alone, strict=True))
        assert moved == 2 * len(filled) or count < 3


def test_official_splits_stay_and_count_as_filled():
    rows = [{"split": "train"}, {"split": "train"}, by_hash("a")]
    assert rows[2]["split"] == "train"
    assert fill_empty_splits(rows) == ["valid"]
    assert [row["split"] for row in rows] == ["train", "train", "valid"]
    official = [{"split": "train"}, {"split": "train"}, {"split": "train"}]
    assert fill_empty_splits(official) == []


def test_a_small_table_gets_a_valid_and_a_test_list(tmp_path, generate):
    photos = [f"{name}.png" for name in "abcdefh"]  # the hash puts all of them into train or test
    write_photos(tmp_path, photos)
    write_text(tmp_path, "ages.csv", "photo,age\n" + "".join(f"{name},30\n" for name in photos))
    words = ["--dataset", "mine", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv"]
    done = generate(*words)
    assert done.returncode == 0, done.stderr
    counts = {split: len(pd.read_csv(tmp_path / f"mine_{split}.csv")) for split in SPLITS}
    assert min(counts.values()) >= 1 and sum(counts.values()) == 7
    assert " empty; " in done.stdout and " got one photo" in done.stdout
    assert "when photos are added: name their splits in a column split" in done.stdout
    assert "no valid list" not in done.stdout
    write_text(tmp_path, "ages.csv", "photo,age,split\na.png,30,train\nb.png,40,train\n")
    done = generate(*words, "--list_dir", tmp_path / "other")
    assert done.returncode == 0 and "no valid list, which training" in done.stdout


def test_a_single_photo_is_trained_on(tmp_path, generate):
    write_photos(tmp_path, ["g.png"])  # which the hash puts into valid
    write_text(tmp_path, "ages.csv", "photo,age\ng.png,30\n")
    assert share_by_hash("g.png") == "valid"
    done = generate("--dataset", "mine", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv")
    assert "mine: 1 train -> " in done.stdout
    assert "few photos: all are in the train list, as they are one" in done.stdout
    assert "empty" not in done.stdout and "(face_x1 to face_y2): 1 of 1; " in done.stdout


def test_folders_that_are_links_are_searched_and_loops_end(tmp_path):
    write_photos(tmp_path, ["data/own/14_Ann_0001.jpg", "far/15_Ann_0001.jpg",
                            "far/deep/16_Ann_0001.jpg"])
    data = tmp_path / "data"
    try:
        (data / "linked").symlink_to(tmp_path / "far")
        (data / "again").symlink_to(data / "own")
        (data / "own/loop").symlink_to(data)
        (data / "17_Ann_0001.jpg").symlink_to(tmp_path / "far/15_Ann_0001.jpg")
        (data / "18_Ann_0001.jpg").symlink_to(tmp_path / "gone.jpg")
    except OSError:
        pytest.skip("no links on this system")
    assert set(read("cacd", data)[0]) == {
        "own/14_Ann_0001.jpg", "linked/15_Ann_0001.jpg", "linked/deep/16_Ann_0001.jpg",
        "17_Ann_0001.jpg"}


def test_other_spellings_of_a_path_are_the_same_photo(tmp_path):
    write_text(tmp_path, "ages.csv", "photo,age\nin/a.png,30\n./in/a.png,30\nin\\a.png,30\n"
                                     "in//a.png,30\n.\\in\\.\\a.png,30\n")
    records = list(table_reader(tmp_path / "ages.csv")(tmp_path, Options()))
    assert {record["photo"] for record in records} == {"in/a.png"}
    assert {record["split"] for record in records} == {share_by_hash("in/a.png")}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_name_that_a_list_would_change_is_skipped(tmp_path, generate):
    write_photos(tmp_path, ["14_Ann_0001.jpg", "15_A\\n_0001.jpg", " a/16_A_1.jpg", "a/16_A_1.jpg",
                            "17_A\r_1.jpg"])
    assert generate("--dataset", "cacd", "--data_dir", tmp_path).returncode == 0
    rows = [row for split in SPLITS if (path := tmp_path / f"cacd_{split}.csv").is_file()
            for row in read_rows(path, ["photo"])]
    assert {row["photo"] for row in rows} == {"14_Ann_0001.jpg", "a/16_A_1.jpg"}
    assert list(read_rows(tmp_path / "cacd_skipped.csv", ["photo"])) == [
        {"photo": "a/16_A_1.jpg", "reason": "path begins with a space"},  # as read_rows reads it
        {"photo": "15_A\\n_0001.jpg", "reason": "file name has a backslash"},
        {"photo": "17_A\\r_1.jpg", "reason": "file name has a carriage return"}]


def test_a_table_of_a_spreadsheet_is_read(tmp_path, generate):
    write_photos(tmp_path, ["Zoë.png", "b.png"])
    (tmp_path / "ages.csv").write_text("photo;age;subject\r\nZoë.png;30;z\r\nb.png;40;b\r\n",
                                       encoding="utf-16")
    words = ["--dataset", "mine", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv"]
    assert generate(*words).returncode == 0
    rows = pd.concat(pd.read_csv(tmp_path / f"mine_{split}.csv") for split in ("train", "valid"))
    assert dict(zip(rows["photo"], rows["age"], strict=True)) == {"Zoë.png": 30, "b.png": 40}
    write_text(tmp_path, "ages.csv", "file|years\nb.png|40\n")
    done = generate(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "it has file|years. Commas, semicolons or tabs separate columns" in done.stderr


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_of_a_spreadsheet_are_read(tmp_path, generate, separator):
    write_photos(tmp_path, ["1,5.png", "b.png"])
    lines = [["photo", "age", "age_std", "votes", "split"],
             ["1,5.png", "23,5", "0,125", "23:0,5 24:0,25", "train"],
             ["b.png", "40", "", "", "valid"]]
    write_text(tmp_path, "ages.csv", "\n".join(map(separator.join, lines)))
    done = generate("--dataset", "mine", "--data_dir", tmp_path, "--table", tmp_path / "ages.csv")
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout + done.stderr
    [row] = pd.read_csv(tmp_path / "mine_train.csv").to_dict("records")
    assert row == {"photo": "1,5.png", "age": 23.5, "age_std": 0.125, "votes": "23:0.5 24:0.25"}


def test_a_person_of_imdb_is_in_one_split(tmp_path):
    (tmp_path / "imdb").mkdir()
    count = 60
    faces = {"dob": [730668] * count, "photo_taken": [2030] * count,
             "full_path": np.array([f"p{i}.jpg" for i in range(count)], object),
             "gender": [1.0] * count, "face_score": [3.0] * count,
             "face_location": np.array([np.array([[1.0, 2, 3, 4]])] * count + [None],
                                       object)[:count],
             "second_face_score": [np.nan] * count, "celeb_id": [i // 4 for i in range(count)]}
    savemat(tmp_path / "imdb" / "imdb.mat", {"imdb": faces})
    rows = list(DATASETS["imdb"].read(tmp_path, Options()))
    assert len(rows) == count
    splits = {}
    for row in rows:
        splits.setdefault(row["subject"], set()).add(row["split"])
    assert len(splits) == 15 and all(len(found) == 1 for found in splits.values())
    assert len({row["split"] for row in rows}) > 1
