import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image
from skimage.data import astronaut

from preprocess import face_align, show
from preprocess.detector import FaceDetector
from preprocess.face import EXIF_ORIENTATION, load_photo
from preprocess.face_align import align_list
from preprocess.journal import CHUNK, Journal, chunks, merge, read_rows
from preprocess.workers import align_rows

SETTINGS = {"device": "cpu", "min_face_size": 20, "min_face_ratio": 0.0}


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
def submit(photos):
    align = partial(align_rows, FaceDetector(threads=1), photos)
    with ThreadPoolExecutor(1) as pool:
        send = partial(pool.submit, align)
        send.data_dir = photos
        yield send


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def many_rows(count):
    names = [f"photo {number}, é.png" for number in range(8)] + ["wall.png", "broken.jpg"]
    return [{"photo": names[i % len(names)], "age": 20 + i % 50, "gender": "female",
             "mood": "serious, mostly"} for i in range(count)]


def align(list_path, submit, rank=0, world_size=1, restart=False):
    args = argparse.Namespace(dataset="mine", restart=restart, data_dir=submit.data_dir)
    align_list(list_path, "train", args, SETTINGS, submit, 1, rank, world_size)
    return list_path.with_name("mine_train_align.csv")


def test_columns_rejections_and_odd_rows(tmp_path, submit):
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
    aligned = list(read_rows(align(tmp_path / "mine_train.csv", submit), []))
    assert list(aligned[0]) == ["age", "photo", "votes", "deg", "box1", "box2", "box3", "box4",
                                "confidence"]
    assert [(row["photo"], row["age"]) for row in aligned] == [("photo 3, é.png", "31"),
                                                               ("upright.png", "7")]
    assert aligned[0]["votes"] == "30:2 31:1" and float(aligned[0]["confidence"]) > 0.9
    rejected = {row["photo"]: (row["split"], row["reason"])
                for row in read_rows(tmp_path / "mine_rejected.csv", [])}
    assert rejected == {"other.jpg": ("valid", "file missing"),
                        "upright.png": ("train", "age 'x y' is no number"),
                        "wall.png": ("train", "no face in the first pass"),
                        "broken.jpg": ("train", "unreadable image"),
                        "gone.jpg": ("train", "file missing")}
    assert not list(tmp_path.glob("*.part*"))


def test_exif_orientation_is_applied(tmp_path, submit):
    write_rows(tmp_path / "mine_train.csv", [{"photo": "upright.png", "age": 3},
                                             {"photo": "sideways.png", "age": 3}])
    upright, sideways = read_rows(align(tmp_path / "mine_train.csv", submit), [])
    for name in ("deg", "box1", "box2", "box3", "box4"):
        assert abs(float(upright[name]) - float(sideways[name])) < 0.1


def test_given_location_chooses_the_face(photos, tmp_path, submit):
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
    [chosen] = read_rows(align(tmp_path / "mine_train.csv", submit), [])
    assert abs(float(chosen["deg"]) - face.roll_deg) < 8  # the other is upright
    assert "face_x1" not in chosen


def test_processes_share_the_work_and_merge_in_order(tmp_path, submit):
    (tmp_path / "alone").mkdir()
    for folder in (tmp_path, tmp_path / "alone"):
        write_rows(folder / "mine_train.csv", many_rows(3 * CHUNK + 7))
    alone = align(tmp_path / "alone/mine_train.csv", submit)
    shared = align(tmp_path / "mine_train.csv", submit, rank=2, world_size=3)
    align(tmp_path / "mine_train.csv", submit, rank=0, world_size=3)
    assert not shared.exists()
    align(tmp_path / "mine_train.csv", submit, rank=1, world_size=3)
    assert shared.read_bytes() == alone.read_bytes()
    assert ((tmp_path / "mine_rejected.csv").read_bytes()
            == (tmp_path / "alone/mine_rejected.csv").read_bytes())
    assert not list(tmp_path.glob("*.part*"))


def test_finished_lists_are_kept_until_they_change(tmp_path, submit, capsys):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(3))
    aligned = align(path, submit)
    aligned.write_text("kept", encoding="utf-8")
    align(path, submit)
    assert aligned.read_text(encoding="utf-8") == "kept" and "--restart" in capsys.readouterr().out
    align(path, submit, restart=True)
    assert len(list(read_rows(aligned, ["deg"]))) == 3
    write_rows(path, many_rows(5))
    os.utime(path, (time.time() + 5,) * 2)
    align(path, submit)
    assert len(list(read_rows(aligned, ["deg"]))) == 5


def wait_for_rows(run, journal, count):
    """Until the journal holds more than `count` rows; fails where the run ends before."""
    deadline = time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b"\n") > count):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline, f"not {count} rows in five minutes"
        time.sleep(0.02)


def test_a_killed_run_continues_to_the_same_file(photos, tmp_path, submit):
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        folder.mkdir()
        write_rows(folder / "mine_train.csv", many_rows(6 * CHUNK + 5))
    command = [sys.executable, "-m", "preprocess.face_align", "--dataset", "mine", "--data_dir",
               str(photos), "--list_dir", str(tmp_path / "killed"), "--workers", "1"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    journal = tmp_path / "killed/mine_train_align.part0of1"
    wait_for_rows(run, journal, 2 * CHUNK)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    recorded = journal.read_bytes()  # fails where the run was over before it was killed
    assert recorded.count(b"\n") < 6 * CHUNK
    journal.write_bytes(recorded + b",3.1,12")  # a line of which a kill left a part
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = align(tmp_path / "whole/mine_train.csv", submit)
    assert (tmp_path / "killed/mine_train_align.csv").read_bytes() == whole.read_bytes()
    assert "rejected (" in done.stdout


def test_ctrl_c_ends_quietly(photos, tmp_path):
    write_rows(tmp_path / "mine_train.csv", many_rows(20 * CHUNK))
    run = subprocess.Popen([sys.executable, "-m", "preprocess.face_align", "--dataset", "mine",
                            "--data_dir", str(photos), "--list_dir", str(tmp_path), "--workers",
                            "1"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    journal = tmp_path / "mine_train_align.part0of1"
    wait_for_rows(run, journal, CHUNK)
    os.killpg(run.pid, signal.SIGINT)
    errors = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and "Traceback" not in errors
    assert (journal.read_bytes().count(b"\n") - 1) % CHUNK == 0


def test_workers_end_with_a_main_process_that_is_killed(photos, tmp_path):
    write_rows(tmp_path / "mine_train.csv", many_rows(20 * CHUNK))
    run = subprocess.Popen([sys.executable, "-m", "preprocess.face_align", "--dataset", "mine",
                            "--data_dir", str(photos), "--list_dir", str(tmp_path), "--workers",
                            "1"], stderr=subprocess.PIPE, start_new_session=True)
    journal = tmp_path / "mine_train_align.part0of1"
    wait_for_rows(run, journal, CHUNK)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)  # raises while a worker lives, which holds the pipe open


def test_a_list_that_changes_meanwhile_is_not_merged(tmp_path, submit):
    path = tmp_path / "mine_train.csv"
    write_rows(path, many_rows(3))

    def submit_and_edit(rows):
        future = submit(rows)
        write_rows(path, many_rows(3)[::-1])
        return future

    submit_and_edit.data_dir = submit.data_dir
    with pytest.raises(ValueError, match="changed while it was aligned"):
        align(path, submit_and_edit)
    assert not (tmp_path / "mine_train_align.csv").exists()


def test_photos_that_have_come_since_are_aligned_after_all(photos, tmp_path, capsys):
    names = ["photo 0, é.png", "photo 1, é.png"]
    write_rows(tmp_path / "mine_train.csv", [{"photo": names[i % 2], "age": 20}
                                             for i in range(5 * CHUNK)])
    (tmp_path / "some").mkdir()
    shutil.copy(photos / names[0], tmp_path / "some")
    detector = FaceDetector(threads=1)
    with ThreadPoolExecutor(1) as pool:
        def send(rows):  # interrupted when one chunk is written and three are on the way
            sent.append(rows)
            if len(sent) > 4:
                raise KeyboardInterrupt
            return pool.submit(align_rows, detector, tmp_path / "some", rows)

        sent, send.data_dir = [], tmp_path / "some"
        with pytest.raises(KeyboardInterrupt):
            align(tmp_path / "mine_train.csv", send)
        (tmp_path / "some" / names[1]).write_bytes(b"half of it")
        sent.clear()
        with pytest.raises(KeyboardInterrupt):
            align(tmp_path / "mine_train.csv", send)
        assert "chunks of 32 photos are aligned again" in capsys.readouterr().out
        shutil.copy(photos / names[1], tmp_path / "some")
        whole = partial(pool.submit, align_rows, detector, tmp_path / "some")
        whole.data_dir = tmp_path / "some"
        aligned = align(tmp_path / "mine_train.csv", whole)
    assert len(list(read_rows(aligned, []))) == 5 * CHUNK


def test_only_chunks_with_photos_that_have_come_are_aligned_again(tmp_path):
    photos = {name: tmp_path / name for name in ("missing.jpg", "broken.jpg", "come.png")}
    photos["broken.jpg"].write_bytes(b"no photo")
    Image.new("RGB", (20, 20)).save(photos["come.png"])
    rows = [{"photo": "come.png", "age": str(number)} for number in range(3 * CHUNK + 5)]
    results = [["", f'"{number}", é'] for number in range(len(rows))]
    rows[1]["photo"], results[1] = "missing.jpg", ["file missing"]
    rows[2]["photo"], results[2] = "broken.jpg", ["unreadable image"]
    results[CHUNK + 3], results[3 * CHUNK] = ["unreadable image"], ["file missing"]
    journal = Journal(tmp_path / "a_align.csv", "print", 4 * CHUNK)
    journal.open()
    journal.write(results)
    journal.close()
    assert journal.open() == 3 * CHUNK  # the fourth chunk was not whole
    asked = []

    def submit(rows):
        asked.append([row["age"] for row in rows])
        future = Future()
        future.set_result([["", "anew"]] * len(rows))
        return future

    face_align.align_what_has_come(journal, lambda: (chunk for _, chunk in chunks(rows)),
                                   tmp_path, submit, 1)
    journal.write([["", "written after"]] * CHUNK)
    journal.close()
    assert asked == [[str(number) for number in range(CHUNK, 2 * CHUNK)]]
    expected = results[:CHUNK] + [["", "anew"]] * CHUNK + results[2 * CHUNK:3 * CHUNK]
    assert [fields for _, fields in merge([journal], range(4 * CHUNK))] == \
        expected + [["", "written after"]] * CHUNK


def test_a_folder_without_any_photo_of_the_list_is_named(tmp_path, submit):
    write_rows(tmp_path / "mine_train.csv", [{"photo": "a.jpg", "age": 3}])
    with pytest.raises(FileNotFoundError, match="none of the 1 photos of .*--data_dir"):
        align(tmp_path / "mine_train.csv", submit)
    assert not list(tmp_path.glob("*.part0*"))


def test_two_runs_do_not_write_one_journal(tmp_path):
    first, second = (Journal(tmp_path / "a_align.csv", "print", 3) for _ in range(2))
    first.open()
    for restart in (False, True):
        with pytest.raises(OSError, match="written by another run"):
            second.open(restart)
    assert first.path.exists()
    first.write([["", "1"]] * 3)
    first.close()
    assert second.open() == 3
    second.close()
    assert second.open(restart=True) == 0
    second.close()


@pytest.mark.parametrize(("rows", "world_size"), [(0, 1), (1, 2), (64, 2), (70, 2), (70, 5)])
def test_journals_expect_every_row_once(tmp_path, rows, world_size):
    journals = Journal(tmp_path / "a_align.csv", "print", rows, 0, world_size).siblings()
    assert sum(journal.expected for journal in journals) == rows
    for number, chunk in chunks(range(rows)):
        owners = [journal for journal in journals if journal.is_mine(number)]
        assert len(owners) == 1 and len(chunk) <= CHUNK


def test_journal_keeps_whole_chunks_and_nothing_of_another_list(tmp_path):
    def journal(fingerprint):
        return Journal(tmp_path / "a_align.csv", fingerprint, 2 * CHUNK + 3)

    first = journal("one list")
    assert first.open() == 0
    first.write([["", str(i)] for i in range(CHUNK)])
    first.write([["", str(i)] for i in range(CHUNK, CHUNK + 10)])  # a chunk broken off
    first.close()
    again = journal("one list")
    assert again.open() == CHUNK and not again.is_complete()
    again.write([["", str(i)] for i in range(CHUNK, 2 * CHUNK + 3)])
    again.close()
    assert again.is_complete()
    assert [fields[1] for _, fields in merge([again], range(2 * CHUNK + 3))] == [
        str(i) for i in range(2 * CHUNK + 3)]
    assert not journal("another list").is_complete()
    assert journal("another list").open() == 0


@pytest.mark.parametrize(("text", "message"), [
    ("photo,years\na.jpg,3\n", "column age missing"), ("", "no header"),
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
def test_bad_calls_end_in_one_line(tmp_path, arguments, message):
    write_rows(tmp_path / "mine_train.csv", [{"photo": "a.jpg", "age": 3}])
    arguments = [str(tmp_path) if word == "LISTS" else word for word in arguments]
    done = subprocess.run([sys.executable, "-m", "preprocess.face_align", "--dataset", "mine",
                           *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_contact_sheet_and_ages(photos, tmp_path, submit, monkeypatch):
    write_rows(tmp_path / "mine_train.csv", many_rows(7))
    align(tmp_path / "mine_train.csv", submit)
    monkeypatch.setattr(sys, "argv", ["show", "--data_dir", str(photos), "--dataset", "mine",
                                      "--list_dir", str(tmp_path), "--count", "7"])
    show.main()
    sheet = np.asarray(Image.open(tmp_path / "mine_faces.png"))
    assert sheet.shape == (2 * (show.SIDE + show.CAPTION), 5 * (2 * show.SIDE + 8), 3)
    assert (sheet == (0, 255, 0)).all(-1).any(), "no box is drawn"
    assert Image.open(tmp_path / "mine_ages.png").size[0] > 500


def test_the_sheet_shows_intervals_where_no_age_is_known(photos, tmp_path, submit, monkeypatch):
    rows = [row | {"age": "", "age_min": "3", "age_max": "9"} for row in many_rows(2)]
    write_rows(tmp_path / "mine_train.csv", rows)
    aligned = list(read_rows(align(tmp_path / "mine_train.csv", submit), []))
    assert show.age_text(aligned[0]) == "3-9" and show.age_text({"age": "31.0"}) == "31"
    monkeypatch.setattr(sys, "argv", ["show", "--data_dir", str(photos), "--dataset", "mine",
                                      "--list_dir", str(tmp_path)])
    show.main()
    assert (tmp_path / "mine_ages.png").is_file()


@pytest.mark.parametrize("module", ["generate_csv", "face_align", "show"])
def test_help(module):
    done = subprocess.run([sys.executable, "-m", f"preprocess.{module}", "--help"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "--list_dir" in done.stdout
