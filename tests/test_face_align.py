"""Alignment of whole lists: columns, rejections, continuing, sharing; and the contact sheet."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from demo_inputs import ASTRONAUT
from matplotlib.cbook import get_sample_data
from PIL import Image
from skimage.data import astronaut

from dataset import FaceCrops
from defaults import load_cfg
from lists import Source, read_faces, warn_of_stale_lists
from preprocess import face_align, show
from preprocess.columns import age_label
from preprocess.detector import FaceDetector
from preprocess.face import EXIF_ORIENTATION, load_photo
from preprocess.face_align import Work, align_list, align_lists
from preprocess.shards import CHUNK_ROWS, Shards, chunk_count, chunks
from preprocess.workers import align_rows
from utils.cli import run_main
from utils.files import file_sha256
from utils.tables import read_rows

KILLS = 100  # of the slow test


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with eight turned portraits and some files that are of no use."""
    folder = tmp_path_factory.mktemp("photos")
    portraits = [Image.fromarray(astronaut()).crop((120, 0, 320, 220)),
                 load_photo(get_sample_data("grace_hopper.jpg", False)).resize((170, 200))]
    for number in range(8):
        photo = portraits[number % 2].rotate(5 * number - 15, expand=True)
        photo.save(folder / f"photo {number}, é.png")
    Image.new("RGB", (120, 90), "teal").save(folder / "wall.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not much of a photo")
    sideways = Image.Exif()
    sideways[EXIF_ORIENTATION] = 6
    portraits[0].rotate(90, expand=True).save(folder / "sideways.png", exif=sideways)
    portraits[0].save(folder / "upright.png")
    return folder


@pytest.fixture(scope="module")
def detector():
    return FaceDetector(threads=1)


@pytest.fixture(scope="module")
def work(photos, detector):
    return work_on(photos, detector)


def work_on(folder, detector, stop_after=None, **changes):
    """The Work of a process that aligns in this thread, and is interrupted after some chunks."""
    def align_chunks(todo):
        for number, rows in enumerate(todo):
            if number == stop_after:
                raise KeyboardInterrupt
            yield align_rows(detector, folder, rows)

    return Work(folder, align_chunks, **changes)


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def many_rows(count, one_in=8):
    """Rows of which one in `one_in` is searched for a face; the others have no age, so are fast."""
    names = [f"photo {number}, é.png" for number in range(8)] + ["wall.png", "broken.jpg"]
    return [{"photo": names[i // one_in % len(names)],
             "age": f"x{i}" if i % one_in else 20 + i % 50,
             "gender": "female", "mood": "serious, mostly"} for i in range(count)]


def align(list_path, work):
    align_list(list_path, work)
    return list_path.with_name("mine_train_align.csv")


def shards_in(folder):
    return sorted(path.name for path in folder.glob("*.part*/*"))


def whole_shards_in(folder):
    """Paths of the chunks that are done, without temporary files."""
    return list(folder.glob("*.part*/*.csv"))


def test_columns_rejections_and_odd_rows(tmp_path, work):
    rows = [{"age": "31", "photo": "photo 3, é.png", "votes": "30:2 31:1", "face_x1": ""},
            {"age": "x\ny", "photo": "upright.png", "votes": "", "face_x1": ""},
            {"age": "5", "photo": "wall.png", "votes": "", "face_x1": ""},
            {"age": "5", "photo": "broken.jpg", "votes": "", "face_x1": ""},
            {"age": "5", "photo": "gone.jpg", "votes": "", "face_x1": ""},
            {"age": "7", "photo": "upright.png", "votes": "", "face_x1": ""}]
    write_rows(tmp_path / "mine_train.csv", rows)
    write_rows(tmp_path / "mine_rejected.csv",
               [{"photo": "old.jpg", "split": "train", "reason": "of an earlier run"},
                {"photo": "other.jpg", "split": "valid", "reason": "file missing"},
                {"photo": "left.jpg", "split": "test", "reason": "of a list that is gone"}])
    write_rows(tmp_path / "mine_valid.csv", [{"photo": "other.jpg", "age": "5"}])
    aligned = list(read_rows(align(tmp_path / "mine_train.csv", work), []))
    assert list(aligned[0]) == ["age", "photo", "votes", "deg", "box1", "box2", "box3", "box4",
                                "confidence"]
    assert [(row["photo"], row["age"]) for row in aligned] == [("photo 3, é.png", "31"),
                                                               ("upright.png", "7")]
    assert aligned[0]["votes"] == "30:2 31:1" and float(aligned[0]["confidence"]) > 0.9
    rejected = {row["photo"]: (row["split"], row["reason"])
                for row in read_rows(tmp_path / "mine_rejected.csv", [])}
    assert rejected == {"other.jpg": ("valid", "file missing"),
                        "upright.png": ("train", "age 'x y' is not a number"),
                        "wall.png": ("train", "no face in the first pass"),
                        "broken.jpg": ("train", "unreadable image"),
                        "gone.jpg": ("train", "file missing")}
    assert not list(tmp_path.glob("*.part*"))


def test_a_list_without_rows_becomes_one_without_rows(photos, tmp_path, work, monkeypatch):
    write_rows(tmp_path / "mine_train.csv", many_rows(2, one_in=1))
    (tmp_path / "mine_valid.csv").write_text("photo,age,deg,face_x1\n")
    align_lists([tmp_path / "mine_train.csv", tmp_path / "mine_valid.csv"], work)
    assert (tmp_path / "mine_valid_align.csv").read_text() == (
        "photo,age,deg,box1,box2,box3,box4,confidence\n")
    monkeypatch.setattr(sys, "argv", ["show", "--data_dir", str(photos), "--dataset", "mine",
                                      "--list_dir", str(tmp_path)])
    show.main()
    with pytest.raises(ValueError, match="holds no faces"):
        read_faces(Source(photos, "mine", tmp_path), "valid", load_cfg())


def test_rows_about_the_same_face_are_told(tmp_path, work, capsys):
    names = ["upright.png", ".\\upright.png", "photo 3, é.png", "photo 3, é.png"]
    ages = (30, 5, 7, 7)
    write_rows(tmp_path / "mine_train.csv", [{"photo": name, "age": age}
                                             for name, age in zip(names, ages, strict=True)])
    aligned = list(read_rows(align(tmp_path / "mine_train.csv", work), []))
    assert [row["photo"] for row in aligned] == [names[0], names[0], *names[2:]]
    told = capsys.readouterr().out
    assert "faces with more than one age: 1 (upright.png 30 and 5); " in told
    assert "faces listed again with the same age: 1 (photo 3, é.png)." in told
    assert "face_x1" in told


def test_exif_orientation_is_applied(tmp_path, work):
    write_rows(tmp_path / "mine_train.csv", [{"photo": "upright.png", "age": 3},
                                             {"photo": "sideways.png", "age": 3}])
    upright, sideways = read_rows(align(tmp_path / "mine_train.csv", work), [])
    for name in ("deg", "box1", "box2", "box3", "box4"):
        assert abs(float(upright[name]) - float(sideways[name])) < 0.1


def test_given_location_chooses_the_face(photos, tmp_path, work):
    left, right = (Image.open(photos / name) for name in ("upright.png", "photo 7, é.png"))
    couple = Image.new("RGB", (500, 240))
    couple.paste(left, (0, 0))
    couple.paste(right, (260, 0))
    couple.save(photos / "couple.png")
    [face] = FaceDetector(threads=1).align([right])[0]
    box = face.bbox + np.array([260, 0, 260, 0])
    row = {"photo": "couple.png", "age": 3}
    located = row | dict(zip(("face_x1", "face_y1", "face_x2", "face_y2"), box, strict=True))
    write_rows(tmp_path / "mine_train.csv", [located])
    [chosen] = read_rows(align(tmp_path / "mine_train.csv", work), [])
    assert abs(float(chosen["deg"]) - face.roll_deg) < 8  # the other is upright
    assert "face_x1" not in chosen


@pytest.mark.parametrize("changes", [{"face_y2": ""}, {"face_x1": "left"}, {"face_x1": "nan"}])
def test_a_location_that_is_not_four_numbers_rejects_its_row(photos, detector, changes):
    row = {"photo": "upright.png", "age": "3"}
    located = row | {"face_x1": "1", "face_y1": "2", "face_x2": "200", "face_y2": "200"}
    for ages in ({}, {"age": "", "age_min": "3", "age_max": "5"}):
        [[reason]] = align_rows(detector, photos, [located | ages | changes])
        assert reason == "face_x1, face_y1, face_x2, face_y2 are not four numbers"
    nowhere = dict.fromkeys(("face_x1", "face_y1", "face_x2", "face_y2"), " ")
    assert align_rows(detector, photos, [row | nowhere]) == align_rows(detector, photos, [row])


def test_a_location_of_width_and_height_rejects_its_row(photos, detector):
    row = {"photo": "upright.png", "age": "3", "face_x1": "90", "face_y1": "60"}
    [[reason]] = align_rows(detector, photos, [row | {"face_x2": "70", "face_y2": "90"}])
    assert reason == ("face_x2 is not right of face_x1, or face_y2 not below face_y1 "
                      "(expected x1 y1 x2 y2, not width and height)")
    [[reason]] = align_rows(detector, photos, [row | {"face_x2": "90.7", "face_y2": "60.9"}])
    assert "expected pixels" in reason


def test_processes_share_the_work_and_merge_in_order(photos, detector, tmp_path, work):
    (tmp_path / "alone").mkdir()
    for folder in (tmp_path, tmp_path / "alone"):
        write_rows(folder / "mine_train.csv", many_rows(3 * CHUNK_ROWS + 7))
    alone = align(tmp_path / "alone/mine_train.csv", work)
    for rank in (2, 0):
        shared = align(tmp_path / "mine_train.csv",
                       work_on(photos, detector, rank=rank, world_size=3))
        assert not shared.exists()
    assert shards_in(tmp_path) == ["000000.csv", "000002.csv", "000003.csv"]
    align(tmp_path / "mine_train.csv", work_on(photos, detector, rank=1, world_size=3))
    assert shared.read_bytes() == alone.read_bytes()
    assert ((tmp_path / "mine_rejected.csv").read_bytes()
            == (tmp_path / "alone/mine_rejected.csv").read_bytes())
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("processes", [1, 4])
def test_a_run_stopped_under_two_processes_continues_under_another_number(
        photos, detector, tmp_path, work, processes):
    for folder in (tmp_path / "stopped", tmp_path / "whole"):
        folder.mkdir()
        write_rows(folder / "mine_train.csv", many_rows(5 * CHUNK_ROWS + 5))
    path = tmp_path / "stopped/mine_train.csv"
    for rank in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            align(path, work_on(photos, detector, stop_after=1 + rank, rank=rank, world_size=2))
    assert shards_in(path.parent) == ["000000.csv", "000001.csv", "000003.csv"]
    done = []

    def counted(todo):
        for rows in todo:
            done.append(len(rows))
            yield align_rows(detector, photos, rows)

    for rank in range(processes):
        aligned = align(path, Work(photos, counted, rank=rank, world_size=processes))
    assert sorted(done) == [5, CHUNK_ROWS, CHUNK_ROWS]
    whole = align(tmp_path / "whole/mine_train.csv", work)
    assert aligned.read_bytes() == whole.read_bytes()


def test_finished_lists_are_kept_until_they_change(photos, detector, tmp_path, work, capsys):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(3, one_in=1))
    aligned = align(path, work)
    aligned.write_text("kept", encoding="utf-8")
    align(path, work)
    assert aligned.read_text(encoding="utf-8") == "kept" and "--restart" in capsys.readouterr().out
    align(path, work_on(photos, detector, restart=True))
    assert len(list(read_rows(aligned, ["deg"]))) == 3
    write_rows(path, many_rows(5, one_in=1))
    os.utime(path, (time.time() + 5,) * 2)
    align(path, work)
    assert len(list(read_rows(aligned, ["deg"]))) == 5


def test_a_list_is_known_by_what_it_holds_not_by_its_time(tmp_path, work, capsys):
    """`mv corrected.csv mine_train.csv` keeps the older time; writing it again alters it."""
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(3, one_in=1))
    aligned = align(path, work)
    corrected = [row | {"age": 80} for row in many_rows(3, one_in=1)]
    write_rows(path, corrected)
    os.utime(path, (0, 0))
    with pytest.warns(UserWarning, match=r"mine_train\.csv"):
        warn_of_stale_lists([Source(work.data_dir, "mine", tmp_path)])
    align(path, work)
    assert [row["age"] for row in read_rows(aligned, [])] == ["80"] * 3
    write_rows(path, corrected)
    os.utime(path, (time.time() + 5,) * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_stale_lists([Source(work.data_dir, "mine", tmp_path)])
    capsys.readouterr()
    align(path, work)
    assert "aligned already: kept" in capsys.readouterr().out


def test_a_list_of_an_earlier_version_is_judged_by_its_time(photos, detector, tmp_path, work):
    """That version wrote no record of what it aligned."""
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(3, one_in=1))
    aligned = align(path, work)
    (tmp_path / "mine_train_align.source.json").unlink()
    write_rows(path, many_rows(5, one_in=1))
    for age_seconds, count in ((-5, 3), (5, 5)):
        os.utime(path, (aligned.stat().st_mtime + age_seconds,) * 2)
        align(path, work)
        assert len(list(read_rows(aligned, []))) == count


def test_a_finished_list_is_aligned_again_if_its_photos_were_replaced(photos, detector, tmp_path,
                                                                      capsys):
    other = tmp_path / "other"
    other.mkdir()
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(2, one_in=1))
    aligned = align(path, work_on(photos, detector))
    before = aligned.read_bytes()
    shutil.copy(photos / "photo 0, é.png", other)  # one photo is missing there, none was replaced
    capsys.readouterr()
    align(path, work_on(other, detector))
    assert "kept" in capsys.readouterr().out and aligned.read_bytes() == before
    photo = Image.open(photos / "photo 1, é.png")
    photo.resize((2 * photo.width, 2 * photo.height)).save(other / "photo 1, é.png")
    align(path, work_on(other, detector))
    assert f"aligned again: 1 photo of '{other}' had another size" in capsys.readouterr().out
    second = list(read_rows(aligned, []))[1]
    assert float(second["box3"]) > 1.5 * float(before.decode().splitlines()[2].split(",")[-2])
    align(path, work_on(other, detector))
    assert "kept" in capsys.readouterr().out


def test_a_finished_list_is_aligned_again_if_a_missing_photo_came(photos, detector, tmp_path,
                                                                  capsys):
    there = tmp_path / "there"
    there.mkdir()
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(2, one_in=1))
    shutil.copy(photos / "photo 0, é.png", there)
    aligned = align(path, work_on(there, detector))
    assert "1 file missing" in capsys.readouterr().out and len(list(read_rows(aligned, []))) == 1
    align(path, work_on(there, detector))
    assert "kept" in capsys.readouterr().out
    shutil.copy(photos / "photo 1, é.png", there)
    align(path, work_on(there, detector))
    assert f"aligned again: 1 photo of '{there}' was not there" in capsys.readouterr().out
    assert len(list(read_rows(aligned, []))) == 2
    align(path, work_on(there, detector))
    assert "kept" in capsys.readouterr().out


def test_lists_that_finish_together_keep_the_rejected_rows_of_both(photos, detector, tmp_path,
                                                                   monkeypatch):
    paths = [tmp_path / f"mine_{split}.csv" for split in ("train", "valid")]
    for path in paths:
        write_rows(path, many_rows(2, one_in=2))  # the second row has no age
    read = face_align.rejected_elsewhere

    def slowly(*args):  # what the other process writes meanwhile would be lost
        rows = read(*args)
        time.sleep(1)
        return rows

    monkeypatch.setattr(face_align, "rejected_elsewhere", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: align(path, work_on(photos, detector)), paths))
    rejected = list(read_rows(tmp_path / "mine_rejected.csv", []))
    assert {row["split"] for row in rejected} == {"train", "valid"}
    assert not list(tmp_path.glob(".*"))


def test_a_restart_aligns_every_chunk_again(photos, detector, tmp_path):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(2 * CHUNK_ROWS))
    with pytest.raises(KeyboardInterrupt):
        align(path, work_on(photos, detector, stop_after=1))
    [shard] = tmp_path.glob("*.part*/*")
    shard.write_text('"",1,2,3,4,5,0.9\n' * CHUNK_ROWS)
    aligned = align(path, work_on(photos, detector, restart=True))
    assert "1" not in {row["deg"] for row in read_rows(aligned, ["deg"])}


def test_a_restart_that_was_stopped_goes_on(photos, detector, tmp_path, capsys):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(3 * CHUNK_ROWS))
    whole = align(path, work_on(photos, detector)).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        align(path, work_on(photos, detector, stop_after=2, restart=True))
    done = []

    def counted(todo):
        for rows in todo:
            done.append(len(rows))
            yield align_rows(detector, photos, rows)

    aligned = tmp_path / "mine_train_align.csv"
    aligned.write_text("of before the restart")
    capsys.readouterr()
    align(path, Work(photos, counted, restart=True))
    assert done == [CHUNK_ROWS] and aligned.read_bytes() == whole
    assert "goes on; to begin again, delete" in capsys.readouterr().out
    align(path, Work(photos, counted, restart=True))
    assert done == [CHUNK_ROWS] * 4 and "goes on" not in capsys.readouterr().out


def test_a_restart_goes_on_at_the_list_that_it_had_reached(photos, detector, tmp_path):
    lists = [tmp_path / "mine_train.csv", tmp_path / "mine_valid.csv"]
    for path in lists:
        write_rows(path, many_rows(2 * CHUNK_ROWS))
    work = work_on(photos, detector)
    align_lists(lists, work)
    calls = []

    def stop_in_the_second_list(todo):
        calls.append("")
        yield from work_on(photos, detector, stop_after=1 if len(calls) == 2 else None).align(todo)

    with pytest.raises(KeyboardInterrupt):
        align_lists(lists, Work(photos, stop_in_the_second_list, restart=True))
    done = []

    def counted(todo):
        for rows in todo:
            done.append(len(rows))
            yield align_rows(detector, photos, rows)

    align_lists(lists, Work(photos, counted, restart=True))
    assert done == [CHUNK_ROWS]
    align_lists(lists, Work(photos, counted, restart=True))
    assert done == [CHUNK_ROWS] * 5


def test_what_an_earlier_list_or_version_left_is_not_used_and_goes(photos, detector, tmp_path):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(CHUNK_ROWS + 1))
    with pytest.raises(KeyboardInterrupt):
        align(path, work_on(photos, detector, stop_after=1))
    write_rows(path, many_rows(CHUNK_ROWS + 1)[::-1])
    for name in ("mine_train_align.part0of2", "mine_train_align.part0of2.lock"):
        (tmp_path / name).write_text("journal of an earlier version\n")
    kept = tmp_path / "mine_train_align.participants.csv"
    kept.write_text("a list of the user\n")
    aligned = align(path, work_on(photos, detector))
    assert next(read_rows(aligned, []))["photo"] == many_rows(CHUNK_ROWS + 1)[-1]["photo"]
    assert list(tmp_path.glob("*.part*")) == [kept]


def test_other_settings_begin_again(photos, detector, tmp_path):
    write_rows(tmp_path / "mine_train.csv", many_rows(2 * CHUNK_ROWS))
    for settings in ("20 0.0", "40 0.0"):
        with pytest.raises(KeyboardInterrupt):
            align(tmp_path / "mine_train.csv",
                  work_on(photos, detector, stop_after=1, settings=settings))
    assert shards_in(tmp_path) == ["000000.csv", "000000.csv"]


def test_faces_on_their_side_are_found_where_asked_for(photos, tmp_path, capsys, monkeypatch):
    """And a run that goes on with another value says so; its rows are read as all others are."""
    monkeypatch.setattr(sys, "argv", ["face_align", "--dataset", "mine", "--data_dir", str(photos),
                                      "--list_dir", str(tmp_path), "--workers", "1"])
    turned = Image.open(photos / "upright.png").rotate(90, expand=True)
    turned.save(photos / "on its side.png")
    write_rows(tmp_path / "mine_train.csv", [{"photo": name, "age": 3}
                                             for name in ("upright.png", "on its side.png")])
    face_align.main()
    assert "1 face of 2 photos, 1 rejected" in capsys.readouterr().out
    aligned = tmp_path / "mine_train_align.csv"
    aligned.unlink()
    stopped = Shards(aligned, f"{file_sha256(tmp_path / 'mine_train.csv')} 20 0.0")
    stopped.folder.mkdir()
    stopped.write(0, [["no face in the first pass"]] * 2, [None] * 2)
    sys.argv.append("--any_rotation")
    face_align.main()
    told = capsys.readouterr().out
    assert "begins again: 1 chunks of 32 photos were aligned with other settings" in told
    assert "2 faces of 2 photos" in told
    faces = read_faces(Source(photos, "mine", tmp_path), "train", load_cfg())
    assert faces["deg"].tolist() == [pytest.approx(0, abs=20), pytest.approx(-90, abs=20)]
    upright, side = FaceCrops(faces, 0, 48)
    assert np.abs(upright.astype(float) - side).mean() < 3
    face_align.main()
    assert "with the settings that it was aligned with; --restart" in capsys.readouterr().out


def test_a_damaged_file_of_results_is_aligned_again(photos, detector, tmp_path):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(2 * CHUNK_ROWS))
    with pytest.raises(KeyboardInterrupt):
        align(path, work_on(photos, detector, stop_after=1))
    [shard] = tmp_path.glob("*.part*/*")
    shard.write_text("")
    with pytest.raises(ValueError, match="damaged and is deleted; start again"):
        align(path, work_on(photos, detector))
    assert len(list(read_rows(align(path, work_on(photos, detector)), []))) == CHUNK_ROWS // 4


def test_a_list_that_another_run_has_finished_ends_quietly(photos, detector, tmp_path, capsys):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(2 * CHUNK_ROWS))

    def slow(todo):
        for number, rows in enumerate(todo):
            if number == 1:
                align(path, work_on(photos, detector))
            yield align_rows(detector, photos, rows)

    aligned = align(path, Work(photos, slow))
    assert "finished by another process" in capsys.readouterr().out
    assert len(list(read_rows(aligned, []))) == CHUNK_ROWS // 4
    assert not list(tmp_path.glob("*.part*"))


def test_shares_that_finish_together_all_end_well(photos, tmp_path):
    """Each merges the chunks; the first one deletes them while the others still read them."""
    count, processes = 400, 4
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(count * CHUNK_ROWS))
    together = threading.Barrier(processes)

    def nothing_left(todo):
        together.wait(60)
        assert not list(todo)
        return []

    works = [Work(photos, nothing_left, rank=rank, world_size=processes)
             for rank in range(processes)]
    shards = Shards(tmp_path / "mine_train_align.csv", f"{file_sha256(path)} ")
    for _ in range(3):
        shards.folder.mkdir()
        for number in range(count):
            shards.path(number).write_text("no age\n" * CHUNK_ROWS)
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(partial(align_list, path), works))  # raises what a process raises
        assert shards.target.is_file() and not list(tmp_path.glob("*.part*"))
        shards.target.unlink()


def test_a_folder_of_lists_that_is_moved_away_ends_in_an_error(photos, detector, tmp_path, capsys):
    lists = tmp_path / "lists"
    lists.mkdir()
    write_rows(lists / "mine_train.csv", many_rows(2 * CHUNK_ROWS))

    def align_and_move(todo):
        for rows in todo:
            if lists.is_dir():
                lists.rename(tmp_path / "moved")
            yield align_rows(detector, photos, rows)

    with pytest.raises(FileNotFoundError, match=r"lists/.*\.parts-"):
        align(lists / "mine_train.csv", Work(photos, align_and_move))
    assert "finished" not in capsys.readouterr().out


def start_script(photos, list_dir):
    return subprocess.Popen([sys.executable, "-m", "preprocess.face_align", "--dataset", "mine",
                             "--data_dir", str(photos), "--list_dir", str(list_dir), "--workers",
                             "1"], stderr=subprocess.PIPE, text=True, start_new_session=True)


def start_alignment(photos, list_dir, chunk_count):
    """Start the script on a long list, and wait until more than `chunk_count` chunks are done."""
    write_rows(list_dir / "mine_train.csv", many_rows(40 * CHUNK_ROWS))
    run = start_script(photos, list_dir)
    deadline = time.monotonic() + 300
    while len(whole_shards_in(list_dir)) <= chunk_count:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline, f"not {chunk_count} chunks in five minutes"
        time.sleep(0.02)
    return run


def test_after_a_kill_every_file_is_whole_and_no_worker_is_left(photos, tmp_path):
    run = start_alignment(photos, tmp_path, 2)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=120)  # raises while a worker lives, as it holds the pipe open
    done = whole_shards_in(tmp_path)
    assert 2 < len(done) < 40
    for path in done:
        assert len(path.read_text(encoding="utf-8").splitlines()) == CHUNK_ROWS


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_at_the_same_file(photos, tmp_path, work):
    rng = np.random.default_rng(0)
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "mine_train.csv", many_rows(10 * CHUNK_ROWS + 5))
    whole = align(tmp_path / "whole/mine_train.csv", work)
    aligned = tmp_path / "killed/mine_train_align.csv"
    started = time.monotonic()
    start_script(photos, aligned.parent).communicate()
    seconds = time.monotonic() - started
    kills = 0
    while kills < KILLS:
        aligned.unlink(missing_ok=True)
        while not aligned.exists():
            run = start_script(photos, aligned.parent)
            try:
                errors = run.communicate(timeout=rng.uniform(0, seconds))[1]
                assert run.returncode == 0, errors
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
                kills += 1
        assert aligned.read_bytes() == whole.read_bytes()
        assert ((aligned.parent / "mine_rejected.csv").read_bytes()
                == (whole.parent / "mine_rejected.csv").read_bytes())


def test_ctrl_c_ends_quietly(photos, tmp_path):
    run = start_alignment(photos, tmp_path, 0)
    os.killpg(run.pid, signal.SIGINT)
    errors = run.communicate(timeout=120)[1]
    assert run.returncode == 130 and "Traceback" not in errors
    assert all(name.endswith(".csv") for name in shards_in(tmp_path))


def test_a_list_that_changes_meanwhile_is_not_merged(photos, detector, tmp_path):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(3, one_in=1))

    def align_and_edit(todo):
        for rows in todo:
            write_rows(path, many_rows(3, one_in=1)[::-1])
            yield align_rows(detector, photos, rows)

    with pytest.raises(ValueError, match="changed while it was aligned"):
        align(path, Work(photos, align_and_edit))
    assert not (tmp_path / "mine_train_align.csv").exists()


def test_photos_that_can_be_read_since_are_aligned_after_all(photos, detector, tmp_path, capsys):
    names = ["photo 0, é.png", "photo 1, é.png"]
    path = tmp_path / "mine_train.csv"
    write_rows(path, [{"photo": names[number // CHUNK_ROWS % 2],
                       "age": f"x{number}" if number % 8 else 20}
                      for number in range(4 * CHUNK_ROWS)])
    some = tmp_path / "some"
    some.mkdir()
    shutil.copy(photos / names[0], some)
    with pytest.raises(KeyboardInterrupt):  # the chunks 1 and 3 are of a photo that is missing
        align(path, work_on(some, detector, stop_after=3))
    first = (next(tmp_path.glob("*.part*/000000.csv"))).stat().st_mtime_ns
    (some / names[1]).write_bytes(b"half of it")
    with pytest.raises(KeyboardInterrupt):
        align(path, work_on(some, detector, stop_after=1))
    assert f"chunks of {CHUNK_ROWS} photos that are aligned again: 1," in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):  # it is still unreadable: nothing to do again
        align(path, work_on(some, detector, stop_after=0))
    assert "aligned again" not in capsys.readouterr().out
    assert (next(tmp_path.glob("*.part*/000000.csv"))).stat().st_mtime_ns == first
    shutil.copy(photos / names[1], some)
    aligned = align(path, work_on(some, detector))
    assert f"chunks of {CHUNK_ROWS} photos that are aligned again: 1," in capsys.readouterr().out
    assert len(list(read_rows(aligned, []))) == 4 * CHUNK_ROWS // 8


@pytest.mark.parametrize("in_place", [True, False], ids=["replaced", "other folder"])
def test_a_stopped_run_goes_on_without_the_boxes_of_other_pictures(detector, photos, tmp_path,
                                                                   capsys, in_place):
    first, second = (tmp_path / name for name in ("first", "first" if in_place else "second"))
    first.mkdir()
    shutil.copy(photos / "upright.png", first)
    shutil.copy(photos / "photo 0, é.png", first)
    path = tmp_path / "mine_train.csv"
    write_rows(path, [{"photo": ["photo 0, é.png", "upright.png"][number // CHUNK_ROWS % 2],
                       "age": f"x{number}" if number % CHUNK_ROWS else 20}
                      for number in range(3 * CHUNK_ROWS)])
    with pytest.raises(KeyboardInterrupt):
        align(path, work_on(first, detector, stop_after=2))
    second.mkdir(exist_ok=True)
    shutil.copy(photos / "photo 0, é.png", second)
    upright = Image.open(photos / "upright.png")
    upright.resize((2 * upright.width, 2 * upright.height)).save(second / "upright.png")
    aligned = align(path, work_on(second, detector))
    assert "that are aligned again: 1, as photos in them were replaced" in capsys.readouterr().out
    (tmp_path / "whole").mkdir()
    shutil.copy(path, tmp_path / "whole")
    whole = align(tmp_path / "whole/mine_train.csv", work_on(second, detector))
    assert aligned.read_bytes() == whole.read_bytes()


def test_chunks_of_an_earlier_version_which_knew_no_sizes_are_used(detector, photos, tmp_path):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(CHUNK_ROWS, one_in=1))
    with pytest.raises(KeyboardInterrupt):
        align(path, work_on(photos, detector, stop_after=0))
    [folder] = tmp_path.glob("*.part*")
    (folder / "000000.csv").write_text('"",1,2,3,4,5,0.9\nno face in the first pass\n'
                                       * (CHUNK_ROWS // 2))
    aligned = align(path, work_on(photos, detector, stop_after=0))
    assert [row["deg"] for row in read_rows(aligned, [])] == ["1"] * (CHUNK_ROWS // 2)


def test_a_folder_without_any_photo_of_the_list_is_named(tmp_path, work):
    write_rows(tmp_path / "mine_train.csv", [{"photo": "a.jpg", "age": 3}])
    with pytest.raises(FileNotFoundError, match="none of the 1 photos of .*--data_dir"):
        align(tmp_path / "mine_train.csv", work)
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
def test_an_error_of_the_disk_stops_and_leaves_no_photo_out(photos, detector, tmp_path):
    shutil.copy(photos / "upright.png", tmp_path)
    (tmp_path / "on a bad disk.png").symlink_to("/proc/self/mem")  # opens, and fails with EIO
    path = tmp_path / "mine_train.csv"
    write_rows(path, [{"photo": "upright.png", "age": 20 if number == 0 else f"x{number}"}
                      for number in range(CHUNK_ROWS)]
               + [{"photo": "on a bad disk.png", "age": 30}])
    for _ in range(2):
        with pytest.raises(OSError, match=r"bad disk.png': Input/output error; .* start again"):
            align(path, work_on(tmp_path, detector))
        assert shards_in(tmp_path) == ["000000.csv"]
    (tmp_path / "on a bad disk.png").unlink()
    shutil.copy(photos / "photo 0, é.png", tmp_path / "on a bad disk.png")
    aligned = list(read_rows(align(path, work_on(tmp_path, detector)), []))
    assert [row["age"] for row in aligned] == ["20", "30"]


def test_a_disk_that_is_disconnected_stops_and_leaves_no_photo_out(photos, detector, tmp_path):
    disk = tmp_path / "disk"
    shutil.copytree(photos, disk)
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(3 * CHUNK_ROWS, one_in=16))

    def align_and_disconnect(todo):
        for number, rows in enumerate(todo):
            if number == 1:
                disk.rename(tmp_path / "elsewhere")
                disk.mkdir()  # the empty folder to which it was connected
            yield align_rows(detector, disk, rows)

    with pytest.raises(OSError, match=f"all of '{disk}' is gone, .* finished work is kept"):
        align(path, Work(disk, align_and_disconnect))
    assert shards_in(tmp_path) == ["000000.csv"]
    disk.rmdir()
    with pytest.raises(OSError, match="is gone"):
        align_rows(detector, disk, [{"photo": "wall.png", "age": "3"}])
    (tmp_path / "elsewhere").rename(disk)
    aligned = align(path, work_on(disk, detector)).read_bytes()
    assert aligned == align(path, work_on(disk, detector, restart=True)).read_bytes()


def test_a_missing_package_leaves_no_photo_out(tmp_path, detector, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(OSError, match=r"a.heic': HEIC needs a package: pip install pillow-heif; "):
        align_rows(detector, tmp_path, [{"photo": "a.heic", "age": "3"}])


def test_a_name_too_long_for_a_file_is_left_out(photos, detector, tmp_path):
    write_rows(tmp_path / "mine_train.csv", [{"photo": "a" * 300 + ".png", "age": 3},
                                             {"photo": "photo 0, é.png", "age": 4}])
    aligned = align(tmp_path / "mine_train.csv", work_on(photos, detector))
    assert [row["photo"] for row in read_rows(aligned, [])] == ["photo 0, é.png"]
    [rejected] = read_rows(tmp_path / "mine_rejected.csv", [])
    assert rejected["reason"] == "unreadable image"
    align(tmp_path / "mine_train.csv", work_on(photos, detector))


def test_paths_that_can_be_no_photo_are_left_out(tmp_path, detector):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "file.png").write_bytes(b"")
    names = ["folder.png", "loop.png", "file.png", "file.png/a.png", "a" * 300 + ".png"]
    results = align_rows(detector, tmp_path, [{"photo": name, "age": "3"} for name in names])
    assert results == [["unreadable image"]] * 5


@pytest.mark.parametrize("free", [60_000_000, 300_000_000], ids=["to read", "to search"])
def test_full_memory_stops_and_leaves_no_photo_out(tmp_path, free):
    Image.new("RGB", (6000, 6000), "gray").save(tmp_path / "large.jpg")
    code = """
import resource, sys
from pathlib import Path
from preprocess.detector import FaceDetector
from preprocess.workers import align_rows
detector = FaceDetector(threads=1)
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[2]),) * 2)
print(align_rows(detector, Path(sys.argv[1]), [{"photo": "large.jpg", "age": "3"}]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(free)],
                          capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert f"OSError: '{tmp_path}/large.jpg': not enough memory; " in done.stderr


def test_labels_that_training_refuses_stop_the_alignment_before_it_begins(tmp_path, work):
    path = tmp_path / "mine_train.csv"
    write_rows(path, [{"photo": "upright.png", "age": 3, "age_std": spread}
                      for spread in ("2.5", "", "ca. 3")])
    with pytest.raises(ValueError, match=r"1 of 3 rows; .*: age_std 'ca. 3' is not a number \(upr"):
        align(path, work)
    assert not list(tmp_path.glob("*.part*"))


def test_labels_that_training_may_refuse_are_told_before_the_alignment(tmp_path, work):
    path = tmp_path / "mine_train.csv"
    labels = [(102, "", "", ""), (-3, "", "", ""), (3, "80=3", "", ""), (3, "3:1", "", ""),
              (100, "", "", ""), (105, "", "70", "110"), (85, "", "70", ""), (50, "", "70", "60")]
    write_rows(path, [dict(zip(("photo", "age", "votes", "age_min", "age_max"),
                               ("upright.png", *label), strict=True)) for label in labels])
    with pytest.warns(UserWarning, match="5 of 8 rows; .*age 102 is outside .*age -3 .*80=3"
                                         ".*age_max '' is.*age_max '60' is"):
        aligned = align(path, work)
    assert len(list(read_rows(aligned, []))) == 8


@pytest.mark.parametrize(("rows", "world_size"), [(0, 1), (1, 2), (64, 2), (70, 2), (70, 5)])
def test_every_row_is_in_one_chunk(tmp_path, rows, world_size):
    shards = Shards(tmp_path / "a_align.csv", "print")
    shards.folder.mkdir()
    for rank in reversed(range(world_size)):
        for number, chunk in chunks(range(rows)):
            if number % world_size == rank:
                shards.write(number, [["", str(row), 'a "quoted", é'] for row in chunk], chunk)
    assert chunk_count(rows) == len(list(shards.folder.iterdir()))
    assert list(shards.merge(range(rows))) == [
        (row, (["", str(row), 'a "quoted", é'], row)) for row in range(rows)]


@pytest.mark.parametrize(("text", "message"), [
    ("photo,years\na.jpg,3\n", "column age missing"), ("", "no header"),
    ("photo,age,note,age\na.jpg,3,x,4\n", "column age is there twice"),
    ("photo,age,votes,votes\na.jpg,3,3:1,4:1\n", "column votes is there twice"),
    ('photo,age,note\na.jpg,3,"unclosed\nb.jpg,4,x\n', "not a CSV"),
    ("photo,age\n\xff\xfe\n".encode("latin-1"), "not a CSV")])
def test_lists_that_are_none(tmp_path, text, message):
    path = tmp_path / "mine_train.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        list(read_rows(path, ["photo", "age"]))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data_dir", "nowhere"], "folder 'nowhere' not found"),
    (["--data_dir", "."], "preprocess.generate_csv"),
    (["--data_dir", ".", "--list_dir", "LISTS", "--workers", "-2"], "--workers must be"),
    (["--data_dir", ".", "--list_dir", "LISTS", "--min_face_size", "0"], "min_face_size")])
def test_bad_calls_end_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    write_rows(tmp_path / "mine_train.csv", [{"photo": "a.jpg", "age": 3}])
    arguments = [str(tmp_path) if word == "LISTS" else word for word in arguments]
    monkeypatch.setattr(sys, "argv", ["face_align", "--dataset", "mine", *arguments])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # run_main changes it
    with pytest.raises(SystemExit) as ended:
        run_main(face_align.main)
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.startswith("error: ")
    assert message in errors and errors.count("\n") == 1


def test_contact_sheet_and_ages(photos, tmp_path, work, monkeypatch):
    write_rows(tmp_path / "mine_train.csv", many_rows(7, one_in=1))
    align(tmp_path / "mine_train.csv", work)
    monkeypatch.setattr(sys, "argv", ["show", "--data_dir", str(photos), "--dataset", "mine",
                                      "--list_dir", str(tmp_path), "--count", "7"])
    show.main()
    sheet = np.asarray(Image.open(tmp_path / "mine_faces.png"))
    assert sheet.shape == (2 * (show.SIDE + show.CAPTION), 5 * (2 * show.SIDE + 8), 3)
    assert (sheet == (0, 255, 0)).all(-1).any(), "no box is drawn"
    assert Image.open(tmp_path / "mine_ages.png").size[0] > 500


def test_a_full_disk_is_named_by_the_sheet(photos, tmp_path, work, small_disk, monkeypatch):
    write_rows(tmp_path / "mine_train.csv", many_rows(2, one_in=1))
    align(tmp_path / "mine_train.csv", work)
    (small_disk / "other").write_bytes(bytes(2_000_000))
    monkeypatch.setattr(sys, "argv", ["show", "--data_dir", str(photos), "--dataset", "mine",
                                      "--list_dir", str(tmp_path), "--output_dir",
                                      str(small_disk)])
    with pytest.raises(OSError, match=f"no space left to write '{small_disk}/mine_faces.png'"):
        show.main()
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_the_sheet_shows_intervals_when_no_age_is_known(photos, tmp_path, work, monkeypatch):
    rows = [row | {"age": "", "age_min": "3", "age_max": "9"} for row in many_rows(2, one_in=1)]
    write_rows(tmp_path / "mine_train.csv", rows)
    aligned = list(read_rows(align(tmp_path / "mine_train.csv", work), []))
    assert age_label(aligned[0]) == "3-9" and age_label({"age": "31.0"}) == "31"
    monkeypatch.setattr(sys, "argv", ["show", "--data_dir", str(photos), "--dataset", "mine",
                                      "--list_dir", str(tmp_path)])
    show.main()
    assert (tmp_path / "mine_ages.png").is_file()


@pytest.mark.parametrize(("change", "message"), [
    ({"age": ""}, "age '' is not a number"), ({"age": "old"}, "age 'old' is not a number"),
    ({"deg": ""}, "deg '' is not a number"), ({"box3": "x"}, "box3 'x' is not a number"),
    ({"box3": "1"}, "the box is empty")])
def test_the_sheet_names_bad_rows_of_other_programs(photos, tmp_path, monkeypatch, change, message):
    row = {"photo": "upright.png", "age": "30", "deg": "0", "box1": "50", "box2": "50",
           "box3": "120", "box4": "120"}
    path = tmp_path / "mine_train_align.csv"
    write_rows(path, [row, row | change])
    monkeypatch.setattr(sys, "argv", ["show", "--data_dir", str(photos), "--dataset", "mine",
                                      "--list_dir", str(tmp_path)])
    with pytest.raises(ValueError) as raised:
        show.main()
    assert str(raised.value) == f"{path}: photo 'upright.png': {message}"
    write_rows(path, [row])
    show.main()


def test_the_sheet_names_what_it_cannot_show(photos, tmp_path, monkeypatch):
    row = {"photo": "upright.png", "age": "30", "deg": "0", "box1": "50", "box2": "50",
           "box3": "120", "box4": "120"}
    (tmp_path / "half.png").write_bytes((photos / "upright.png").read_bytes()[:2000])
    shutil.copy(photos / "upright.png", tmp_path)
    for change, words, message in (
            ({"photo": "half.png"}, [], f"'{tmp_path}/half.png': .*truncated"),
            ({"box3": "40000", "box4": "40000"}, [], "upright.png': box 50 50 40000 40000 .*large"),
            ({}, ["--margin", "nan"], "DATA.MARGIN must .*nan"),
            ({}, ["--margin", "1e6"], "DATA.MARGIN must .*1000000")):
        write_rows(tmp_path / "mine_train_align.csv", [row | change])
        monkeypatch.setattr(sys, "argv", ["show", "--data_dir", str(tmp_path), "--dataset", "mine",
                                          *words])
        with pytest.raises((OSError, ValueError), match=message):
            show.main()


@pytest.mark.parametrize("module", ["generate_csv", "face_align", "show"])
def test_help_needs_neither_torch_nor_pandas_nor_matplotlib(module):
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", f"preprocess.{module}",
                           "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--list_dir" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not {"torch", "pandas", "matplotlib", "cv2", "scipy"} & imported


def test_smallest_face_of_an_alignment_is_that_of_its_flags(tmp_path, monkeypatch):
    shutil.copy(ASTRONAUT, tmp_path / "a.png")
    (tmp_path / "my_train.csv").write_text("photo,age\na.png,40\n")
    counts, texts = [], set()
    for flags in ([], ["--min_face_size", "300"], ["--min_face_ratio", "0.9"]):
        monkeypatch.setattr("sys.argv", ["face_align", "--dataset", "my", "--data_dir",
                                         str(tmp_path), "--workers", "1", "--restart", *flags])
        texts.add(face_align.settings_text(face_align.parse_args()))
        face_align.main()
        counts.append(len(pd.read_csv(tmp_path / "my_train_align.csv")))
    assert counts == [1, 0, 0] and len(texts) == 3
