"""demo.py: folders, clips, windows; what it writes, how it ends."""

import csv
import ctypes
import ctypes.util
import functools
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from demo_inputs import (
    ASTRONAUT,
    HOPPER,
    ROOT,
    SAMPLES,
    TWO_FACES,
    exit_code,
)
from PIL import Image, ImageCms, features

import demo
import predictor
from benchmarks.demo_speed import write_clip
from media.outputs import RECORD_NAME
from media.photos import find_images, save_picture
from media.results import FIELDS, VIDEO_FIELDS, PhotoResults, with_threshold, work_digest
from media.video import ClipWriter, Frames, address_name
from predictor import as_photo
from preprocess import face_align, generate_csv
from preprocess.detector import FaceDetector
from preprocess.face import EXIF_ORIENTATION
from utils.locks import only_writer
from utils.share import share_of


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "my clip.mp4"
    write_clip(path, as_photo(ASTRONAUT), 40)
    return path


@pytest.fixture(autouse=True, scope="module")
def one_detector():
    """The detector's networks take seconds to load: once for all runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "FaceDetector", functools.cache(predictor.FaceDetector))
        yield


def run(model_path, *words):
    """Exit code of the demo."""
    return exit_code(demo.main, "--resume", model_path, "--device", "cpu", *words)


def command(model_path, *words):
    return [sys.executable, "demo.py", "--resume", model_path, "--device", "cpu", *words]


def environment(display=None):
    env = {name: value for name, value in os.environ.items()
           if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return env | ({"DISPLAY": display} if display else {})


def read_results(folder):
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (folder / "results.jsonl").open(encoding="utf-8")]
    assert len(rows) == len(lines)
    return rows, lines


def one_line_error(capsys):
    """The last line on stderr, which is the only one beside progress and warnings."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


# ---- Folders


@pytest.fixture(scope="session")
def odd_folder(tmp_path_factory):
    """One portrait in every format and mode, and what is no portrait."""
    folder = tmp_path_factory.mktemp("in") / "in put"
    deeper = folder / "Süd" / "b"
    deeper.mkdir(parents=True)
    photo = Image.open(ASTRONAUT).convert("RGB").crop((100, 20, 356, 276))
    for name in ("plain.jpg", "UPPER.JPEG", "a b.webp", "ü.bmp", "t.tiff", "p.png"):
        photo.save(folder / name)
    photo.convert("L").save(folder / "gray.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("RGBA").save(folder / "alpha.png")
    frames = [photo, Image.new("RGB", photo.size)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    sixteen = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    cv2.imwrite(str(folder / "sixteen.png"), sixteen)
    exif = Image.Exif()
    exif[0x0112] = 3
    photo.rotate(180).save(folder / "exif.jpg", exif=exif, quality=95)
    photo.save(deeper / "plain.jpg")
    Image.new("RGB", (90, 60), "teal").save(folder / "nobody.png")
    (folder / "broken.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:3000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_folder_of_every_format(odd_folder, model_path, tmp_path, capsys):
    before = {path: path.read_bytes() for path in odd_folder.rglob("*.*")}
    assert run(model_path, "--img_dir", odd_folder, "--output_dir", tmp_path / "out",
               "--recursive") == 0
    rows, lines = read_results(tmp_path / "out")
    names = [row["file"] for row in rows]
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert sorted(names) == sorted(str(path) for path in find_images(odd_folder, True)[0])
    assert "Süd/b/plain.jpg" in names and len(names) == 17
    status = {row["file"]: row["status"] for row in rows}
    assert status.pop("nobody.png") == "no face"
    assert status.pop("broken.jpg").startswith("unreadable: ")
    assert status.pop("empty.png").startswith("unreadable: ")
    assert set(status.values()) == {"ok"}
    for row, line in zip(rows, lines, strict=True):
        assert list(row) == list(FIELDS) == list(line)[:-1]
        assert row["file"] == line["file"] and row["age"] == ("" if line["age"] is None
                                                              else str(line["age"]))
        if row["status"] == "ok":
            assert float(row["x1"]) == pytest.approx(81, abs=4)
            assert float(row["y2"]) == pytest.approx(155, abs=10)
            assert 0 <= float(row["low"]) <= float(row["median"]) <= float(row["high"]) <= 100
            written = as_photo(tmp_path / "out" / row["file"])
            assert written.size == (256, 256)
            assert written.tobytes() != as_photo(odd_folder / row["file"]).tobytes()
    assert {path: path.read_bytes() for path in odd_folder.rglob("*.*")} == before
    out, err = capsys.readouterr()
    assert "images: 17 in" in out and "faces: 14;" in out and "unreadable: 2" in out
    assert "images/s" in out and str(tmp_path / "out") in out
    assert "broken.jpg" in err and "empty.png" in err


def test_several_faces_are_rows_of_one_file(model_path, tmp_path):
    assert run(model_path, "--img_dir", TWO_FACES, "--output_dir", tmp_path) == 0
    rows, _ = read_results(tmp_path)
    assert [(row["file"], row["face"]) for row in rows] == [("two_faces.jpg", "1"),
                                                            ("two_faces.jpg", "2")]
    assert visible(tmp_path) == ["results.csv", "results.jsonl", "two_faces.jpg"]


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_plot_can_be_turned_off(model_path, tmp_path):
    for folder, flags in (("with", []), ("without", ["--no_plot"])):
        assert run(model_path, "--img_dir", ASTRONAUT, "--output_dir", tmp_path / folder,
                   *flags) == 0
    marked = [(np.asarray(as_photo(tmp_path / folder / "astronaut.png")) !=
               np.asarray(as_photo(ASTRONAUT))).sum() for folder in ("with", "without")]
    assert marked[0] > 1.5 * marked[1] > 0


def test_confidence_and_smallest_face(model_path, tmp_path):
    assert run(model_path, "--img_dir", TWO_FACES, "--output_dir", tmp_path,
               "--min_face", "700") == 0
    assert read_results(tmp_path)[0][0]["status"] == "no face"
    assert run(model_path, "--img_dir", TWO_FACES, "--output_dir", tmp_path,
               "--min_confidence", "1") == 0
    assert len(read_results(tmp_path)[0]) < 2


def test_output_within_the_folder_is_not_read_again(model_path, tmp_path):
    shutil.copy(ASTRONAUT, tmp_path / "a.png")
    for _ in range(2):
        assert run(model_path, "--img_dir", tmp_path, "--recursive", "--output_dir",
                   tmp_path / "out") == 0
        assert [row["file"] for row in read_results(tmp_path / "out")[0]] == ["a.png"]


def test_a_photo_that_cannot_be_drawn_on_stops_no_other(model_path, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    shutil.copy(ASTRONAUT, photos / "a.png")
    with Image.open(ASTRONAUT) as photo:
        photo.convert("1").save(photos / "fax.tif", compression="group4")
    Image.new("RGB", (16_400, 20)).save(photos / "long.webp", "PNG")  # wider than a WebP may be
    shutil.copy(ASTRONAUT, photos / "z.png")
    assert run(model_path, "--img_dir", photos, "--output_dir", out) == 0
    rows, _ = read_results(out)
    assert {row["file"]: row["status"].partition(":")[0] for row in rows} == {
        "a.png": "ok", "fax.tif": rows[1]["status"], "long.webp": "no annotated picture",
        "z.png": "ok"}
    assert visible(out) == ["a.png", "fax.tif", "results.csv", "results.jsonl", "z.png"]
    assert rows[1]["status"] in ("ok", "no face")
    assert "long.webp" in capsys.readouterr().err


def test_a_picture_whose_name_cannot_be_written_stops_no_other(model_path, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    long = "a" * 250 + ".jp2"  # its annotated copy would end in .jp2.jpg
    (photos / "file").mkdir(parents=True)
    for name in (long, "b.jpg", "file/c.jpg", "z.jpg"):
        as_photo(HOPPER).resize((64, 80)).save(photos / name)
    (out / "b.jpg").mkdir(parents=True)
    (out / "file").write_text("not a folder")
    assert run(model_path, "--img_dir", photos, "--output_dir", out, "--recursive") == 0
    status = {row["file"]: row["status"] for row in read_results(out)[0]}
    assert status.pop("z.jpg") in ("ok", "no face") and (out / "z.jpg").is_file()
    assert set(status) == {long, "b.jpg", "file/c.jpg"}
    assert all(words.startswith("no annotated picture: cannot write") for words in status.values())


def test_two_photos_never_give_one_picture(model_path, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name, size in (("P.jp2", 64), ("p.jp2.jpg", 80), ("p.jp2", 96)):
        as_photo(HOPPER).resize((size, 100)).save(photos / name)
    assert run(model_path, "--img_dir", photos, "--output_dir", out) == 0
    assert visible(out) == ["P.jp2.jpg.jpg", "p.jp2.jpg", "p.jp2.jpg.jpg.jpg", "results.csv",
                            "results.jsonl"]
    assert [Image.open(out / name).width for name in visible(out)[:3]] == [64, 80, 96]


@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK"])
def test_the_colours_of_a_photo_keep_their_profile(tmp_path, ending, mode):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    first = {"RGB": ending, "CMYK": "tif"}.get(mode, "png")
    Image.new(mode, (30, 30)).save(tmp_path / f"a.{first}", icc_profile=profile)
    save_picture(as_photo(tmp_path / f"a.{first}"), tmp_path / f"b.{ending}")
    kept = Image.open(tmp_path / f"b.{ending}").info.get("icc_profile")
    assert kept == (profile if mode in ("RGB", "RGBA") else None)  # a picture of RGB


def test_no_photo_is_overwritten(model_path, tmp_path, capsys):
    shutil.copy(ASTRONAUT, tmp_path / "a.png")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for folder in (tmp_path, tmp_path / "link"):
        assert run(model_path, "--img_dir", tmp_path, "--output_dir", folder) == 2
        assert "would be overwritten; choose another --output_dir" in one_line_error(capsys)
    assert (tmp_path / "a.png").read_bytes() == ASTRONAUT.read_bytes()
    (tmp_path / "out").mkdir()
    os.link(tmp_path / "a.png", tmp_path / "out" / "a.png")
    assert run(model_path, "--img_dir", tmp_path / "a.png", "--output_dir", tmp_path / "out") == 2
    assert "a.png', not written by the demo, would be" in one_line_error(capsys)
    assert (tmp_path / "a.png").read_bytes() == ASTRONAUT.read_bytes()


@pytest.mark.parametrize("name", ["0.jpg", "results.csv", "results.jsonl"])
def test_files_of_the_user_in_the_output_folder_stay(name, few_photos, model_path, tmp_path,
                                                     capsys):
    words = ["--img_dir", few_photos, "--output_dir", tmp_path]
    (tmp_path / name).write_text("photo,age\nof the user,30\n")
    assert run(model_path, *words) == 2
    assert f"{name}', not written by the demo, would be" in one_line_error(capsys)
    assert (tmp_path / name).read_text().startswith("photo,age")
    assert visible(tmp_path) == [name]
    if name == "0.jpg":  # tables do not harm it, and do not make it a picture of ours
        assert run(model_path, *words, "--tables_only") == 0
        assert run(model_path, *words) == 2
        assert "0.jpg', not written" in one_line_error(capsys)
    (tmp_path / name).unlink()
    for _ in range(2):  # results of an earlier run are replaced
        assert run(model_path, *words) == 0
    assert len(read_results(tmp_path)[0]) == 5


def test_results_of_the_code_before_the_record_are_replaced(few_photos, model_path, tmp_path,
                                                            monkeypatch):
    words = ["--img_dir", few_photos, "--output_dir", tmp_path]
    assert run(model_path, *words) == 0
    (tmp_path / RECORD_NAME).unlink()
    assert run(model_path, *words) == 0
    with monkeypatch.context() as patch:  # a share that was killed: no tables
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "2")
        assert run(model_path, *words) == 0
    for name in (RECORD_NAME, "results.csv", "results.jsonl", "1.jpg", "3.jpg"):
        (tmp_path / name).unlink()
    assert run(model_path, *words) == 0
    assert len(read_results(tmp_path)[0]) == 5


def test_a_picture_that_a_killed_run_left_is_replaced(few_photos, model_path, tmp_path,
                                                      monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    words = ["--img_dir", few_photos, "--output_dir", tmp_path]
    with monkeypatch.context() as patch:
        patch.setattr(PhotoResults, "add", killed)  # the picture is there, its line is not
        patch.setattr(PhotoResults, "write_tables", killed)
        assert run(model_path, *words) == 130
    assert "0.jpg" in visible(tmp_path)
    assert run(model_path, *words) == 0


def test_folder_without_a_readable_image(model_path, tmp_path, capsys):
    (tmp_path / "a.jpg").write_text("text")
    assert run(model_path, "--img_dir", tmp_path, "--output_dir", tmp_path / "out") == 2
    assert "none of the images" in one_line_error(capsys)
    assert read_results(tmp_path / "out")[0][0]["status"].startswith("unreadable: ")


@pytest.mark.parametrize(("words", "message"), [
    (["--img_dir", "{tmp}/none", "--output_dir", "{tmp}/o"], "none' not found"),
    (["--img_dir", "{tmp}", "--output_dir", "{tmp}/o"], "no image .*add --recursive"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/file"], "is a file"),
    (["--recursive", "--output_dir", "{tmp}/o"], "--recursive is for photos.*--img_dir"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/o", "--resume", "nosuch"],
     r"model 'nosuch' not found.*\['default'\]"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/o", "--resume", "nosuch.pth"],
     r"no file 'nosuch\.pth'; give the path of a model .*\['default'\]"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/o", "--resume", "{tmp}/file"],
     "not a checkpoint"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/o", "TRAIN.LR", "1"],
     "TRAIN.LR' is fixed by the checkpoint"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/o", "TEST.NAME", "1"],
     "unknown config key 'TEST.NAME'"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/o", "--min_face", "0"], "at least 1"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/o", "--min_confidence", "7"], "0..1"),
    (["--img_dir", "{tmp}/file", "--output_dir", "{tmp}/o"],
     "is no image that can be read; a clip is given with --video, images end in .jpg"),
    (["--video", "{tmp}/deeper", "--output_dir", "{tmp}/o"], "is a folder; name a clip in it"),
    (["--video", "http://localhost:1/a.mp4", "--output_dir", "{tmp}/o"], "is the address right"),
    (["--img_dir", "{samples}", "--tables_only"], "--output_dir"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/o", "--threshold", "101"], r"1\.\.100"),
    (["--img_dir", "{samples}", "--output_dir", "{tmp}/o", "--device", "tpu"], "unknown device"),
    (["--video", "{tmp}/none.mp4", "--output_dir", "{tmp}/o"], "clip '.*none.mp4' not found"),
    (["--video", "{tmp}/file", "--output_dir", "{tmp}/o"], "cannot read a frame"),
    (["--video", "/dev/null", "--output_dir", "{tmp}/o"], "not a file; a camera .* --camera N"),
    (["--camera", "77", "--output_dir", "{tmp}/o"], "no camera 77"),
])
def test_bad_input_ends_in_one_line(words, message, model_path, tmp_path, capfd):
    (tmp_path / "deeper").mkdir()
    shutil.copy(ASTRONAUT, tmp_path / "deeper" / "a.png")
    (tmp_path / "file").write_text("text")
    assert run(model_path, *(word.format(tmp=tmp_path, samples=SAMPLES) for word in words)) == 2
    assert re.search(message, one_line_error(capfd))
    assert not (tmp_path / "o").exists()


def test_interrupted_folder_keeps_what_is_done(model_path, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(300):
        shutil.copy(HOPPER, tmp_path / "in" / f"{number:03}.jpg")
    process = subprocess.Popen(
        command(model_path, "--img_dir", tmp_path / "in", "--output_dir", tmp_path / "out"),
        cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "out" / "010.jpg").exists())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    rows, _ = read_results(tmp_path / "out")
    assert 1 <= len(rows) < 300
    assert not list((tmp_path / "out").glob(".*.tmp"))


# ---- Large folders


@pytest.fixture(scope="session")
def few_photos(tmp_path_factory):
    """Five small photos, one of them broken."""
    folder = tmp_path_factory.mktemp("few")
    for number in range(4):
        as_photo(HOPPER).resize((200 + number, 240)).save(folder / f"{number}.jpg")
    (folder / "4.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture
def process_number(monkeypatch):
    def become(rank, count):
        for name, value in (("RANK", rank), ("WORLD_SIZE", count)):
            monkeypatch.setenv(name, str(value))
    return become


def test_processes_share_a_folder(few_photos, model_path, tmp_path, process_number, capsys):
    assert run(model_path, "--img_dir", few_photos, "--output_dir", tmp_path / "one",
               "--tables_only") == 0
    for rank, done in ((2, False), (0, False), (1, True)):
        process_number(rank, 3)
        assert run(model_path, "--img_dir", few_photos, "--output_dir", tmp_path / "many",
                   "--tables_only") == 0
        assert (tmp_path / "many" / "results.csv").exists() == done
    out = capsys.readouterr().out
    assert "none of the 5 images is in share 2 of 3" in out
    assert re.search("not done yet: 3 images, .* without RANK and WORLD_SIZE", out)
    rows, lines = zip(*(read_results(tmp_path / name) for name in ("one", "many")), strict=True)
    for one, many in (*zip(*rows, strict=True), *zip(*lines, strict=True)):  # up to rounding,
        assert list(one) == list(many)  # which depends on what else is in a batch
        assert one["file"] == many["file"] and one["status"] == many["status"]
        if one["status"] == "ok":
            assert float(one["age"]) == pytest.approx(float(many["age"]), abs=0.02)
    assert visible(tmp_path / "many") == ["results.csv", "results.jsonl"]
    assert not list((tmp_path / "many").glob(".results*"))


def test_copies_of_photos_and_model_count_as_the_same_work(few_photos, model_path, tmp_path,
                                                           process_number):
    """Two machines, each with a clone of its own; the second one then does what is left."""
    for number, machine in enumerate(("a", "b")):
        shutil.copytree(few_photos, tmp_path / machine)
        for path in (tmp_path / machine).iterdir():
            os.utime(path, (1000 + number, 1000 + number))
        shutil.copy(model_path, tmp_path / f"model of {machine}.pth")
    out = tmp_path / "out"

    def run_on(machine):
        return run(tmp_path / f"model of {machine}.pth", "--img_dir", tmp_path / machine,
                   "--output_dir", out, "--tables_only")

    process_number(0, 3)
    assert run_on("a") == 0
    process_number(1, 3)
    assert run_on("b") == 0
    process_number(2, 3)
    assert run_on("a") == 0
    assert [row["file"] for row in read_results(out)[0]] == [f"{n}.jpg" for n in range(5)]


def test_a_photo_more_in_one_copy_moves_no_other(few_photos, model_path, tmp_path, process_number):
    shutil.copytree(few_photos, tmp_path / "more")
    shutil.copy(HOPPER, tmp_path / "more" / "0 first.jpg")
    for rank, photos in enumerate((tmp_path / "more", few_photos)):
        process_number(rank, 2)
        assert run(model_path, "--img_dir", photos, "--output_dir", tmp_path / "out",
                   "--tables_only") == 0
    assert [row["file"] for row in read_results(tmp_path / "out")[0]] == [
        f"{number}.jpg" for number in range(5)]


def test_a_lone_run_does_what_shares_left(few_photos, model_path, tmp_path, process_number,
                                          monkeypatch, capsys):
    words = ["--img_dir", few_photos, "--output_dir", tmp_path, "--tables_only"]
    process_number(0, 2)
    assert run(model_path, *words) == 0
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert run(model_path, *words) == 0
    assert "3 more images were done by an earlier run" in capsys.readouterr().out
    assert len(read_results(tmp_path)[0]) == 5


def test_a_checkpoint_and_its_export_are_the_same_work():
    args = demo.parse_args(["--img_dir", str(SAMPLES)])
    checkpoint, export = (demo.build_estimator(demo.parse_args(["--resume", str(path)]))
                          for path in (ROOT / "misc/model.pth", ROOT / "misc/model.onnx"))
    assert demo.settings_text(checkpoint, args) == demo.settings_text(export, args)


def test_a_lone_run_waits_for_shares(few_photos, model_path, tmp_path, process_number, monkeypatch,
                                     capsys):
    words = ["--img_dir", few_photos, "--output_dir", tmp_path, "--tables_only"]
    add, codes = PhotoResults.add, []

    def add_while_others_start(*args):
        add(*args)
        if not codes:
            codes.append(None)
            with monkeypatch.context() as patch:
                patch.delenv("RANK")
                patch.delenv("WORLD_SIZE")
                codes.append(run(model_path, *words))
            codes.append(run(model_path, *words, "--min_face", "50"))

    process_number(share_of("0.jpg", 1_000), 1_000)
    monkeypatch.setattr(PhotoResults, "add", add_while_others_start)
    assert run(model_path, *words) == 0
    assert codes == [None, 2, 2]
    assert capsys.readouterr().err.count("processes that share their work write to") == 2
    assert not (tmp_path / "results.csv").exists()
    assert not list(tmp_path.glob(".lock*"))


@pytest.mark.parametrize(("first", "second", "found"), [
    (True, True, True), (True, False, True), (False, True, True), (False, False, False)])
def test_a_copy_of_a_photo_counts_as_done_where_work_is_shared(first, second, found, tmp_path):
    photo = tmp_path / "a.jpg"
    shutil.copy(HOPPER, photo)
    with PhotoResults(tmp_path, "work", is_shared=first) as results:
        results.add("a.jpg", photo, [])
    os.utime(photo, (1000, 1000))
    with PhotoResults(tmp_path, "work", is_shared=second) as results:
        assert results.is_done("a.jpg", photo) == found
        photo.write_bytes(photo.read_bytes() + b"more")
        assert not results.is_done("a.jpg", photo)


def test_a_share_that_others_finished_says_so(few_photos, tmp_path):
    paths = {"0.jpg": few_photos / "0.jpg", "1.jpg": few_photos / "1.jpg"}
    with (PhotoResults(tmp_path, "work", is_shared=True) as first,
          PhotoResults(tmp_path, "work", is_shared=True) as second):
        for name, path in paths.items():
            first.add(name, path, [])
        assert first.write_tables(paths, only_complete=True) == 0
        assert second.write_tables(paths, only_complete=True) == 0


def test_a_share_of_unreadable_photos_is_no_error(few_photos, model_path, tmp_path,
                                                  process_number):
    process_number(share_of("4.jpg", 1_000), 1_000)  # its only photo is broken
    assert run(model_path, "--img_dir", few_photos, "--output_dir", tmp_path) == 0


@pytest.mark.parametrize(("rank", "count"), [("2", "2"), ("-1", "2"), ("x", "2"), ("", "2")])
def test_numbers_of_processes_that_do_not_fit_are_refused(rank, count, few_photos, model_path,
                                                          tmp_path, process_number, capsys):
    process_number(rank, count)
    assert run(model_path, "--img_dir", few_photos, "--output_dir", tmp_path) == 2
    assert "set both" in one_line_error(capsys)


def test_a_stopped_folder_goes_on(few_photos, model_path, tmp_path, monkeypatch, capsys):
    photos = tmp_path / "in"
    shutil.copytree(few_photos, photos)
    add, left = PhotoResults.add, [3]

    def stopped_after_three(*args):
        add(*args)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    words = ["--img_dir", photos, "--output_dir", tmp_path / "out"]
    monkeypatch.setattr(PhotoResults, "add", stopped_after_three)
    assert run(model_path, *words) == 130
    monkeypatch.undo()
    assert [row["file"] for row in read_results(tmp_path / "out")[0]] == ["0.jpg", "1.jpg", "2.jpg"]
    as_photo(ASTRONAUT).resize((200, 240)).save(photos / "1.jpg")  # changed: done again
    [part] = (tmp_path / "out").glob(".results*/*")
    part.write_bytes(part.read_bytes()[:-10])  # the last line cut short, as by a power cut
    capsys.readouterr()
    assert run(model_path, *words) == 0
    out = capsys.readouterr().out
    assert "images: 4 in" in out and "1 more images were done by an earlier run" in out
    whole, _ = read_results(tmp_path / "out")
    assert [row["file"] for row in whole] == [f"{number}.jpg" for number in range(5)]
    assert run(model_path, "--img_dir", photos, "--output_dir", tmp_path / "again") == 0
    assert read_results(tmp_path / "again")[0] == whole
    assert not list((tmp_path / "out").glob(".results*"))


def test_a_stopped_folder_tries_again_what_failed(few_photos, model_path, tmp_path, capsys):
    words = ["--img_dir", few_photos, "--output_dir", tmp_path]
    work = demo.work_digest(demo.settings_text(
        demo.build_estimator(demo.parse_args(["--resume", str(model_path), "--device", "cpu"])),
        demo.parse_args(list(map(str, words)))), FIELDS)
    with PhotoResults(tmp_path, work) as results:
        results.add("0.jpg", few_photos / "0.jpg", [], "unreadable: a cause that is gone")
        results.add("1.jpg", few_photos / "1.jpg", [], "no annotated picture: the name")
        results.add("2.jpg", few_photos / "2.jpg", [])
    assert run(model_path, *words) == 0
    out = capsys.readouterr().out
    assert "images: 4 in" in out and "unreadable: 1" in out
    assert "1 more images were done by an earlier run" in out
    status = [row["status"].partition(":")[0] for row in read_results(tmp_path)[0]]
    assert status == ["ok", "ok", "no face", "ok", "unreadable"]
    assert (tmp_path / "1.jpg").is_file()


def test_other_settings_do_not_go_on_with_earlier_results(few_photos, model_path, tmp_path, capsys):
    with PhotoResults(tmp_path, work_digest("other settings")) as results:
        results.add("0.jpg", few_photos / "0.jpg", [])
    assert run(model_path, "--img_dir", few_photos, "--output_dir", tmp_path) == 0
    assert "images: 5 in" in capsys.readouterr().out
    assert not list(tmp_path.glob(".results*"))  # their pictures are overwritten


def test_a_run_that_is_refused_deletes_nothing(few_photos, model_path, tmp_path, capsys):
    with PhotoResults(tmp_path, work_digest("other settings")) as results:
        results.add("0.jpg", few_photos / "0.jpg", [])
    (tmp_path / "1.jpg").write_text("mine")
    assert run(model_path, "--img_dir", few_photos, "--output_dir", tmp_path) == 2
    assert "1.jpg', not written by the demo, would be overwritten" in one_line_error(capsys)
    assert list(tmp_path.glob(".results*")) == [results.parts]


def test_other_tables_leave_earlier_results_that_can_go_on(few_photos, model_path, tmp_path):
    with PhotoResults(tmp_path, work_digest("other settings")) as results:
        results.add("0.jpg", few_photos / "0.jpg", [])
    assert run(model_path, "--img_dir", few_photos, "--output_dir", tmp_path, "--tables_only") == 0
    assert list(tmp_path.glob(".results*")) == [results.parts]


def test_annotated_photos_below_the_folder_are_no_photos(few_photos, model_path, tmp_path, capsys):
    shutil.copytree(few_photos, tmp_path / "in")
    words = ["--img_dir", tmp_path / "in", "--recursive", "--output_dir"]
    for name in ("first", "second"):
        assert run(model_path, *words, tmp_path / "in" / name) == 0
        assert "images: 5 in" in capsys.readouterr().out
    assert run(model_path, "--img_dir", tmp_path / "in" / "first", "--output_dir",
               tmp_path / "third") == 0  # if they are asked for, they are read


def test_what_a_killed_run_left_in_folders_below_is_removed(few_photos, model_path, tmp_path):
    shutil.copytree(few_photos, tmp_path / "in" / "deep")
    out = tmp_path / "out"
    left = [out / f".{'0' * 32}.tmp", out / "deep" / f".{'1' * 32}.tmp"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert run(model_path, "--img_dir", tmp_path / "in", "--recursive", "--output_dir", out) == 0
    assert (out / "deep" / "0.jpg").is_file() and not any(path.exists() for path in left)


def test_unreadable_photos_that_are_left_are_no_error(few_photos, model_path, tmp_path,
                                                      monkeypatch):
    photos = tmp_path / "in"
    photos.mkdir()
    for name in ("0.jpg", "4.jpg"):
        shutil.copy(few_photos / name, photos)
    add = PhotoResults.add

    def stopped_after_one(*args):
        add(*args)
        raise KeyboardInterrupt

    words = ["--img_dir", photos, "--output_dir", tmp_path / "out"]
    monkeypatch.setattr(PhotoResults, "add", stopped_after_one)
    assert run(model_path, *words) == 130
    monkeypatch.undo()
    assert run(model_path, *words) == 0
    assert [row["status"].partition(":")[0] for row in read_results(tmp_path / "out")[0]] == [
        "ok", "unreadable"]


def test_two_runs_in_one_folder_do_not_mix(few_photos, model_path, tmp_path, capsys):
    with only_writer(tmp_path, "wait"):
        assert run(model_path, "--img_dir", few_photos, "--output_dir", tmp_path) == 2
    assert "another process writes to" in one_line_error(capsys)


def test_threshold_adds_a_column(model_path, tmp_path, capsys):
    assert run(model_path, "--img_dir", TWO_FACES, "--output_dir", tmp_path,
               "--threshold", "18") == 0
    rows, lines = read_results(tmp_path)
    for row, line in zip(rows, lines, strict=True):
        assert float(row["p_at_least_18"]) == pytest.approx(sum(line["probs"][18:]), abs=1e-3)
        assert list(row) == list(with_threshold(FIELDS, 18))
    out = capsys.readouterr().out
    assert "MODEL_CARD.md" in out and re.search(r"two_faces.jpg  .*, 18\+: \d+\.\d%; .*18\+", out)


def test_long_names_are_shortened_in_the_printed_table(model_path, tmp_path, capsys):
    name = "a" * 200 + ".jpg"
    shutil.copy(HOPPER, tmp_path / name)
    assert run(model_path, "--img_dir", tmp_path, "--output_dir", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:2])) < 100 and "aaa...aaa" in out
    assert read_results(tmp_path / "out")[0][0]["file"] == name


# ---- What a folder holds


def test_a_name_cannot_steer_the_terminal(model_path, tmp_path, capsys):
    source = tmp_path / "photos"
    source.mkdir()
    for name in ("two\nlines.png", "\x1b[31mred.png"):
        Image.new("RGB", (64, 64)).save(source / name)
    (source / "empty\x1b[31m.png").write_text("")
    assert run(model_path, "--img_dir", source, "--output_dir", tmp_path / "out") == 0
    printed = "".join(capsys.readouterr())
    assert "two?lines.png" in printed and "?[31mred.png" in printed and "empty?[31m" in printed
    assert "\x1b[31m" not in printed and "two\nlines" not in printed


def test_a_large_photo_is_read_without_a_warning(model_path, tmp_path):
    Image.new("1", (12000, 7600)).save(tmp_path / "panorama.png")  # over 89 million pixels
    ended = subprocess.run(command(model_path, "--img_dir", tmp_path, "--output_dir",
                                   tmp_path / "out", "--tables_only", "--min_face", "2000"),
                           cwd=ROOT, capture_output=True, text=True, check=True)
    assert "panorama.png  no face" in ended.stdout and "Warning" not in ended.stderr


def test_links_are_followed_once(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for folder in ("in/deep", "elsewhere"):
        shutil.copy(HOPPER, tmp_path / folder / "a.jpg")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in" / "deep" / "back").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "elsewhere" / "itself").symlink_to(tmp_path / "elsewhere")
    names, _ = find_images(tmp_path / "in", recursive=True)
    assert [str(name) for name in names] == ["deep/a.jpg", "link/a.jpg"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("recursive", [False, True])
def test_pipes_are_left_out(tmp_path, recursive):
    shutil.copy(HOPPER, tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert find_images(tmp_path, recursive) == ([Path("a.jpg")], [])


def test_other_formats_are_read_and_other_pictures_named(model_path, tmp_path, capsys):
    photos, out = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    photo = as_photo(HOPPER)
    for ending in (".jp2", *([".avif"] if features.check("avif") else [])):
        photo.save(photos / f"a{ending}")
    photo.save(photos / "portrait", "JPEG")
    (photos / "raw.cr2").write_bytes(b"II*\0" + bytes(20))
    (photos / "apple.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    (photos / "notes.txt").write_text("no picture")
    assert run(model_path, "--img_dir", photos, "--output_dir", out) == 0
    status = {row["file"]: row["status"] for row in read_results(out)[0]}
    assert status.pop("apple.heic").startswith("unreadable: ")
    assert set(status.values()) == {"ok"} and "a.jp2" in status
    assert (out / "a.jp2.jpg").is_file()
    err = capsys.readouterr().err
    assert "2 files look like pictures but are not read: 'portrait', 'raw.cr2'" in err
    (photos / "only").mkdir()
    (photos / "raw.cr2").rename(photos / "only" / "raw.cr2")
    with pytest.raises(ValueError, match=r"1 other files look like pictures, such as 'raw.cr2'"):
        find_images(photos / "only")


def test_heic_is_read_by_the_demo_and_the_aligner(model_path, tmp_path, monkeypatch, capsys):
    heif = pytest.importorskip("pillow_heif")
    photos, out = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    heif.from_pillow(as_photo(HOPPER)).save(photos / "a.heic", quality=95)
    assert as_photo(photos / "a.heic").size == as_photo(HOPPER).size
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # as of a telephone that was held upright
    as_photo(HOPPER).rotate(90, expand=True).save(photos / "lying.heic", exif=exif.tobytes())
    shutil.copy(photos / "lying.heic", photos / "named otherwise.jpg")
    assert run(model_path, "--img_dir", photos, "--output_dir", out, "--tables_only") == 0
    rows = read_results(out)[0]
    [expected] = FaceDetector(threads=1).align([as_photo(HOPPER)])[0]
    assert [row["file"] for row in rows] == ["a.heic", "lying.heic", "named otherwise.jpg"]
    for row in rows:
        assert row["status"] == "ok"
        np.testing.assert_allclose([float(row[name]) for name in ("x1", "y1", "x2", "y2")],
                                   expected.bbox, atol=4)
    (photos / "ages.csv").write_text("photo,age,split\nlying.heic,77,train\n")
    for script, words in ((generate_csv, ["--table", photos / "ages.csv"]),
                          (face_align, ["--workers", "1"])):
        monkeypatch.setattr(sys, "argv", [script.__name__, "--dataset", "my", "--data_dir",
                                          str(photos), *map(str, words)])
        script.main()
    assert "my_train_align.csv: 1 face of 1 photo, " in capsys.readouterr().out


def test_heic_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(OSError, match="pip install pillow-heif"):
        as_photo(tmp_path / "a.heic")


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


# ---- Clips


def count_frames(path):
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    return count, capture.get(cv2.CAP_PROP_FPS)


def test_clip_gives_a_row_a_frame_and_an_annotated_clip(clip_path, model_path, tmp_path, capsys):
    assert run(model_path, "--video", clip_path, "--output_dir", tmp_path) == 0
    assert count_frames(tmp_path / "my clip.mp4") == (40, 30)
    rows, lines = read_results(tmp_path)
    assert list(rows[0]) == list(VIDEO_FIELDS)
    assert [int(row["frame"]) for row in rows] == list(range(40))
    assert {row["file"] for row in rows} == {"my clip.mp4"}
    assert {row["face"] for row in rows} == {"1"}  # one track, in every frame
    assert float(rows[30]["time_s"]) == 1
    assert len(lines[0]["probs"]) == 101
    steps = np.abs(np.diff([float(row["x1"]) for row in rows]))
    assert steps.max() < 12  # the box follows, it does not jump
    out = capsys.readouterr().out
    assert re.search(r"frames: 40 in .* frames/s; faces: 1\n", out) and "#1" in out


def test_clip_gives_the_same_twice(clip_path, model_path, tmp_path):
    for folder in ("a", "b"):
        assert run(model_path, "--video", clip_path, "--output_dir", tmp_path / folder) == 0
    for one, other in zip(*(read_results(tmp_path / folder)[0] for folder in ("a", "b")),
                          strict=True):
        assert float(one["x1"]) == pytest.approx(float(other["x1"]), abs=0.1)
        assert float(one["age"]) == pytest.approx(float(other["age"]), abs=0.02)


def test_a_clip_that_is_no_result_is_not_overwritten(clip_path, model_path, tmp_path, capsys):
    shutil.copy(clip_path, tmp_path / "c.avi")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "c.mp4").write_bytes(b"another clip")
    words = ["--video", tmp_path / "c.avi", "--output_dir", tmp_path / "out"]
    assert run(model_path, *words) == 2
    assert "c.mp4', not written by the demo, would be overwritten" in one_line_error(capsys)
    assert (tmp_path / "out" / "c.mp4").read_bytes() == b"another clip"
    shutil.copytree(tmp_path / "out", tmp_path / "beside")
    (tmp_path / "out" / "c.mp4").unlink()
    for _ in range(2):  # the results of an earlier run are replaced
        assert run(model_path, *words) == 0
    (tmp_path / "out" / RECORD_NAME).unlink()  # as the code before the record left it
    assert run(model_path, *words) == 0
    shutil.copy(tmp_path / "out" / "results.csv", tmp_path / "beside" / "results.csv")
    text = (tmp_path / "beside" / "results.csv").read_text().replace("c.avi", "another.avi")
    (tmp_path / "beside" / "results.csv").write_text(text)
    assert run(model_path, *words[:-1], tmp_path / "beside") == 2
    assert "c.mp4', not written by the demo" in one_line_error(capsys)
    assert (tmp_path / "beside" / "c.mp4").read_bytes() == b"another clip"


def test_tables_of_one_source_are_not_replaced_by_those_of_another(clip_path, few_photos,
                                                                   model_path, tmp_path, capsys):
    other, out = tmp_path / "other.mp4", tmp_path / "out"
    shutil.copy(clip_path, other)
    assert run(model_path, "--video", clip_path, "--output_dir", out) == 0
    before = read_results(out)
    for words in (["--video", other], ["--video", other, "--tables_only"],
                  ["--img_dir", few_photos]):
        assert run(model_path, *words, "--output_dir", out) == 2
        assert "the tables of 'my clip.mp4' in" in one_line_error(capsys)
        assert read_results(out) == before and not (out / "other.mp4").exists()
    assert run(model_path, "--img_dir", few_photos, "--output_dir", tmp_path / "photos") == 0
    assert run(model_path, "--video", other, "--output_dir", tmp_path / "photos") == 2
    assert "the tables of '0.jpg' in" in one_line_error(capsys)


def test_only_the_first_tracks_of_a_stream_are_kept():
    summary = demo.StreamSummary()
    for number in range(1, 101):
        summary.add([(number, f"face {number}")] * 2)
    assert summary.track_count == 100 and len(summary.tracks) == demo.MAX_TABLE_ROWS
    assert summary.tracks[1] == (2, "face 1")


def test_clip_itself_is_not_overwritten(clip_path, model_path, tmp_path, capsys):
    shutil.copy(clip_path, tmp_path / "c.mp4")
    assert run(model_path, "--video", tmp_path / "c.mp4", "--output_dir", tmp_path) == 2
    assert "would be overwritten" in one_line_error(capsys)
    assert (tmp_path / "c.mp4").read_bytes() == clip_path.read_bytes()


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_times_of_a_clip_are_those_of_its_frames(ending, tmp_path):
    places = [*range(30), *range(34, 154, 4)]  # thirtieths of a second
    with av.open(str(tmp_path / f"2024-05-01T12:30.{ending}"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.time_base = 64, 48, Fraction(1, 30)
        stream.codec_context.time_base = Fraction(1, 30)
        for place in places:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), place, np.uint8))
            frame.pts = place
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with Frames(tmp_path / f"2024-05-01T12:30.{ending}") as frames:
        times = [frames.seconds for _ in frames]
    np.testing.assert_allclose(times, np.array(places) / 30, atol=2e-3)
    assert not frames.has_broken_off and frames.fps < 60


@pytest.mark.parametrize("fps", [0.5, 24000 / 1001, 239.763])
def test_clips_of_any_frame_rate_are_read_and_written(tmp_path, fps):
    with ClipWriter(tmp_path / "a.mp4", (64, 48), fps) as clip:
        for _ in range(4):
            clip.write(Image.new("RGB", (64, 48)))
    with Frames(tmp_path / "a.mp4") as frames:
        assert frames.fps == pytest.approx(fps, rel=0.002)
        times = [frames.seconds for _ in frames]
    np.testing.assert_allclose(times, np.arange(4) / fps, rtol=0.01, atol=1e-3)
    assert not frames.has_broken_off


def test_a_clip_that_cannot_be_written_whole_is_told(small_disk):
    frames = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (480, 640, 3), np.uint8))
              for seed in range(20)]
    message = r"a\.mp4' could not be written whole \(\d+ of 20 frames\); "
    with pytest.raises(OSError, match=message), \
            ClipWriter(small_disk / "a.mp4", (640, 480), 30) as clip:
        for frame in frames:
            clip.write(frame)


def test_a_long_pause_does_not_fill_the_disk(tmp_path):
    times = [0, 1, 36_000, 36_001, 36_050]  # a camera that waits for motion
    with ClipWriter(tmp_path / "a.mp4", (64, 48), 10) as clip:
        ends = []
        for place, seconds in enumerate(times):
            clip.write(Image.new("RGB", (64, 48), (50 * place, 0, 0)), seconds)
            ends.append(clip.written)
    assert ends == [1, 11, 11 + 600, 11 + 610, 11 + 610 + 490]  # a minute of ten hours


def test_a_clip_that_breaks_off_is_told(tmp_path, model_path, capfd):
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 48))
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for _ in range(60):
        writer.write(noise)
    writer.release()
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(content[:len(content) // 2])
    assert run(model_path, "--video", tmp_path / "a.avi", "--output_dir", tmp_path / "out") == 0
    assert re.search(r"only [01]\.\d of 2\.0 s of a.avi", capfd.readouterr().err)


def test_a_damaged_spot_does_not_end_a_clip(clip_path, model_path, tmp_path, capfd):
    content = bytearray(clip_path.read_bytes())
    start = content.index(b"mdat") + 4
    length = int.from_bytes(content[start - 8:start - 4], "big")
    content[start + length // 4:start + length // 2] = bytes(length // 2 - length // 4)
    (tmp_path / "a.mp4").write_bytes(content)
    assert run(model_path, "--video", tmp_path / "a.mp4", "--output_dir", tmp_path / "out") == 0
    frames = {int(row["frame"]): float(row["time_s"]) for row in read_results(tmp_path / "out")[0]}
    assert 20 <= len(frames) < 40 and max(frames.values()) == pytest.approx(39 / 30, abs=0.01)
    assert list(frames.values()) == pytest.approx([n / 30 for n in frames], abs=0.01)  # of the clip
    err = capfd.readouterr().err
    assert re.search(rf"warning: {40 - len(frames)} frames of a.mp4 could not be read", err)
    assert "only" not in err


def test_a_clip_from_an_address(model_path, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "my clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30,
                             (64, 48))
    for _ in range(10):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://localhost:{server.server_port}/my%20clip.avi?token=secret"
        assert run(model_path, "--video", address, "--output_dir", tmp_path / "out",
                   "--tables_only") == 0
    finally:
        server.shutdown()
        server.server_close()
    rows, _ = read_results(tmp_path / "out")
    assert {row["file"] for row in rows} == {
        f"localhost_{server.server_port}_my_20clip.avi"} and len(rows) == 10
    assert visible(tmp_path / "out") == ["results.csv", "results.jsonl"]


class TenPictures(http.server.BaseHTTPRequestHandler):
    """The stream of a network camera, which breaks off."""

    def do_GET(self):
        file = io.BytesIO()
        Image.new("RGB", (64, 48), "teal").save(file, "JPEG")
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for _ in range(10):
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: "
                             + b"%d\r\n\r\n%b\r\n" % (len(file.getvalue()), file.getvalue()))


def test_a_stream_that_breaks_off_is_told(model_path, tmp_path, capfd):
    server = http.server.ThreadingHTTPServer(("localhost", 0), TenPictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert run(model_path, "--video", f"http://localhost:{server.server_port}/live",
                   "--output_dir", tmp_path, "--tables_only") == 0
    finally:
        server.shutdown()
        server.server_close()
    assert len(read_results(tmp_path)[0]) == 10
    assert re.search(r"warning: the stream localhost_\d+_live ended after \d\.\d s; start again",
                     capfd.readouterr().err)


@pytest.mark.parametrize(("address", "name"), [
    ("rtsp://192.168.1.10/live", "192.168.1.10_live"),
    ("rtsp://me:secret@192.168.1.20:8554/live", "192.168.1.20_8554_live"),
    ("rtsp://me:sec#ret@192.168.1.20/live", "me"), ("rtsp://", "stream")])
def test_names_of_addresses(address, name):
    assert address_name(address) == name


def test_two_addresses_give_two_recordings(clip_path, model_path, tmp_path, monkeypatch):
    cameras = {address: Camera(clip_path, 2, lambda: (False, None))
               for address in ("rtsp://192.168.1.10/live", "rtsp://192.168.1.20:8554/live")}
    connect(monkeypatch, cameras)
    names = ["192.168.1.10_live.mp4", "192.168.1.20_8554_live.mp4"]
    for address, name in zip(cameras, names, strict=True):
        assert run(model_path, "--video", address, "--output_dir", tmp_path / name) == 0
        assert visible(tmp_path / name) == [name, "results.csv", "results.jsonl"]


def connect(monkeypatch, cameras):
    """Let OpenCV find these cameras, {number or address: Camera}, beside the files there are."""
    open_file = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: cameras[source] if source in cameras
                        else open_file(source))


class Camera:
    """A clip in the place of camera 3, which is unplugged, or Ctrl-C pressed, after some frames."""

    def __init__(self, path, frames, end):
        self.capture, self.left, self.end = cv2.VideoCapture(str(path)), frames, end

    def read(self):
        self.left -= 1
        return self.capture.read() if self.left >= 0 else self.end()

    def __getattr__(self, name):
        return getattr(self.capture, name)


def press_ctrl_c():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("end", "code"), [(lambda: (False, None), 2), (press_ctrl_c, 0)])
def test_a_camera_is_recorded_by_the_clock(end, code, clip_path, model_path, tmp_path, monkeypatch,
                                           capfd):
    camera = Camera(clip_path, 12, end)
    connect(monkeypatch, {3: camera})
    assert run(model_path, "--camera", "3", "--output_dir", tmp_path) == code
    monkeypatch.undo()
    told = capfd.readouterr()
    assert ("camera 3 stopped delivering frames" in told.err) == (code == 2)
    assert ("frames: 12 in" in told.out) == (code == 0)
    rows, _ = read_results(tmp_path)
    assert {row["file"] for row in rows} == {"camera 3"}
    times = {int(row["frame"]): float(row["time_s"]) for row in rows}
    assert list(times) == list(range(12)) and list(times.values()) == sorted(times.values())
    with Frames(tmp_path / "camera 3.mp4") as clip:
        count = sum(1 for _ in clip)
    assert count / clip.fps == pytest.approx(times[11], abs=0.2)  # real time, whatever the speed


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_clip_whose_name_is_not_utf8_is_refused(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    Path(path).write_bytes(b"")
    with pytest.raises(ValueError, match="rename it"):
        Frames(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_clip_is_finished(number, model_path, tmp_path):
    write_clip(tmp_path / "long.mp4", as_photo(ASTRONAUT), 900, size=(320, 240))
    process = subprocess.Popen(
        command(model_path, "--video", tmp_path / "long.mp4", "--output_dir", tmp_path / "out"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    results = tmp_path / "out" / "results.csv"
    wait_for(lambda: results.exists() and len(results.read_text().splitlines()) > 20)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err
    rows, _ = read_results(tmp_path / "out")
    frames, _ = count_frames(tmp_path / "out" / "long.mp4")
    assert 20 <= frames < 900 and abs(frames - len(rows)) <= 1
    assert "frames/s" in out


# ---- Windows


@pytest.mark.parametrize("source", ["--img_dir", "--video"])
def test_without_a_display_it_says_what_to_do(source, clip_path, model_path):
    done = subprocess.run(
        command(model_path, source, SAMPLES if source == "--img_dir" else clip_path),
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "use --output_dir" in done.stderr


@pytest.fixture
def screen():
    """A virtual X display, by its name."""
    if not shutil.which("Xvfb") or not shutil.which("xdotool"):
        pytest.skip("Xvfb and xdotool, which stand in for a screen and a user, are not installed")
    reader, writer = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(writer), "-screen", "0", "1400x900x24"],
                              pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as numbers:
        name = f":{numbers.readline().strip()}"
    yield name
    server.terminate()
    server.wait()


class User:
    """Sees the demo's window on a screen and presses keys."""

    def __init__(self, screen):
        self.env = environment(screen)

    def _xdotool(self, *words):
        return subprocess.run(["xdotool", *words], env=self.env, capture_output=True, text=True,
                              check=False)

    def sees_window(self):
        return self._xdotool("search", "--name", f"^{demo.WINDOW_TITLE}$").stdout.split()

    def press(self, key):
        self._xdotool("search", "--name", f"^{demo.WINDOW_TITLE}$", "windowfocus", "--sync",
                      "key", key)

    def close_window(self):
        """What the window manager's close button does: a WM_DELETE_WINDOW message."""
        x11 = ctypes.CDLL(ctypes.util.find_library("X11"))
        x11.XOpenDisplay.restype = ctypes.c_void_p
        x11.XInternAtom.restype = ctypes.c_ulong
        display = ctypes.c_void_p(x11.XOpenDisplay(self.env["DISPLAY"].encode()))
        protocols, delete = (x11.XInternAtom(display, name, 0)
                             for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))
        for window in map(int, self.sees_window()):
            event = (ctypes.c_long * 24)()  # an XClientMessageEvent
            event[:9] = [33, 0, 1, 0, window, protocols, 32, delete, 0]
            x11.XSendEvent(display, ctypes.c_ulong(window), 0, ctypes.c_long(0),
                           ctypes.byref(event))
        x11.XFlush(display)
        x11.XCloseDisplay(display)

    def start(self, model_path, *words):
        return subprocess.Popen(command(model_path, *words), cwd=ROOT, env=self.env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=1)


def test_any_key_shows_the_next_photo_and_escape_ends(screen, model_path):
    user = User(screen)
    process = user.start(model_path, "--img_dir", SAMPLES)
    for name in ("astronaut.png", "grace_hopper.jpg"):
        assert process.stdout.readline().startswith(f"{name}: ")
        wait_for(user.sees_window)
        time.sleep(0.5)  # the picture is drawn just after its line is printed
        user.press("space")
    assert process.stdout.readline().startswith("two_faces.jpg: ")
    time.sleep(0.5)
    user.press("Escape")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "" and "Traceback" not in err


@pytest.mark.parametrize("ending", ["q", "close"])
def test_clip_in_a_window_ends_cleanly(ending, screen, model_path, tmp_path):
    write_clip(tmp_path / "long.mp4", as_photo(ASTRONAUT), 900, size=(320, 240))
    user = User(screen)
    process = user.start(model_path, "--video", tmp_path / "long.mp4")
    wait_for(user.sees_window)
    time.sleep(1)
    if ending == "close":
        user.close_window()
    else:
        user.press(ending)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    frames = int(re.search(r"frames: (\d+) in", out).group(1))
    assert 1 <= frames < 900


def test_help_names_every_flag():
    done = subprocess.run([sys.executable, "demo.py", "-h"], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    for flag in ("--img_dir", "--output_dir", "--video", "--camera", "--resume", "--recursive",
                 "--no_plot", "--device", "--min_face", "--min_confidence", "KEY VALUE"):
        assert flag in done.stdout
