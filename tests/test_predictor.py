"""AgeEstimator: the pixel path, what it accepts, batches; results, drawing, tracking."""

import csv
import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from demo_inputs import ASTRONAUT, HOPPER, ROOT, TWO_FACES, write_model
from PIL import Image

import metrics
from dataset import FaceDataset
from lists import Source, read_faces
from media.results import FIELDS, ResultFiles
from predictor import AgeEstimator, Reading, as_photo, face_from_probs, pixel_count
from preprocess import face_align
from utils.pipeline import batches

PORTRAITS = ROOT.parent / "shared" / "data" / "portraits"
AGE_BINS = list(range(101))


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.pth")


@pytest.fixture(scope="session")
def estimator(model_path):
    return AgeEstimator(model_path, "cpu")


def peak(age, sigma=3.0):
    """(K,) Gaussian distribution."""
    probs = np.exp(-0.5 * ((np.array(AGE_BINS) - age) / sigma) ** 2)
    return probs / probs.sum()


# ---- The one pixel path


def test_network_gets_the_pixels_of_training(estimator, tmp_path, monkeypatch):
    """On the samples and, where that folder is there, on the portraits of ../shared/data."""
    photos = [ASTRONAUT, HOPPER, TWO_FACES, *sorted(PORTRAITS.glob("*.jpg"))]
    for path in photos:
        shutil.copy(path, tmp_path)
    rows = [f"{path.name},30\n" for path in photos]
    (tmp_path / "p_valid.csv").write_text("photo,age\n" + "".join(rows))
    monkeypatch.setattr(sys, "argv", ["face_align", "--dataset", "p", "--data_dir", str(tmp_path),
                                      "--workers", "1"])
    face_align.main()
    faces = read_faces(Source(tmp_path, "p", tmp_path), "valid", estimator.cfg)
    assert list(faces["photo"]) == [path.name for path in photos]
    dataset = FaceDataset(faces, estimator.cfg, train=False, cache_dir=tmp_path / "cache")
    trained = dataset.__getitems__([(0, index) for index in range(len(dataset))])["pixels"]

    seen, model = [], estimator.network.model
    monkeypatch.setattr(estimator.network, "model",
                        lambda pixels: seen.append(pixels) or model(pixels))
    images = [as_photo(path) for path in photos]
    found = [faces[0] for faces in estimator.detector.align(images, faces="all")]
    estimator.ages_of(list(zip(images, found, strict=True)))
    torch.testing.assert_close(torch.cat(seen), trained, rtol=0, atol=0)


def test_exif_rotation_changes_nothing_but_the_file(estimator, tmp_path):
    photo = Image.open(HOPPER)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to view
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    [upright], [seen] = estimator([HOPPER, tmp_path / "turned.png"])
    assert upright.x1 == pytest.approx(seen.x1, abs=0.01)
    assert upright.age == pytest.approx(seen.age, abs=1e-3)


def test_face_that_the_second_pass_misses_keeps_its_place(estimator):
    photo = as_photo(TWO_FACES)
    _, found = estimator.detector.align([photo], faces="all")[0][:2]
    crop = estimator.face_crop(photo, found)
    found.aligned_bbox = None
    fallback = estimator.face_crop(photo, found)
    likeness = np.corrcoef(crop.astype(float).ravel(), fallback.astype(float).ravel())[0, 1]
    assert likeness > 0.8


# ---- What it accepts and returns


def test_every_face_is_found_the_largest_first(estimator):
    faces = estimator(TWO_FACES)
    assert len(faces) == 2
    areas = [(face.x2 - face.x1) * (face.y2 - face.y1) for face in faces]
    assert areas == sorted(areas, reverse=True)
    assert faces[0].x1 > 560 > faces[1].x2  # the right half's face is the larger
    assert faces[1].roll_deg == pytest.approx(-11, abs=3)


def test_images_of_any_kind_give_the_same_faces(estimator):
    array = np.asarray(Image.open(ASTRONAUT).convert("RGB"))
    images = [str(ASTRONAUT), ASTRONAUT, Image.open(ASTRONAUT), array,
              np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])]
    results = estimator(image for image in images)
    assert len(results) == len(images)
    for faces in [*results, estimator(array), estimator(str(ASTRONAUT))]:
        assert len(faces) == 1
        np.testing.assert_allclose(faces[0].probs, results[0][0].probs, atol=1e-5)
    for paths in (pd.Series([str(ASTRONAUT)] * 2), np.array([str(ASTRONAUT)] * 2)):
        assert [len(faces) for faces in estimator(paths)] == [1, 1]
    assert estimator([]) == []
    assert estimator(np.zeros((80, 80), np.uint8)) == []


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 2), np.uint8),
                                   np.zeros((0, 8, 3), np.uint8), [7]])
def test_what_is_no_image_is_refused(estimator, image):
    with pytest.raises(ValueError, match="expected"):
        estimator(image)


def test_missing_and_broken_files_raise(estimator, tmp_path):
    with pytest.raises(FileNotFoundError):
        estimator(tmp_path / "none.jpg")
    (tmp_path / "broken.jpg").write_bytes(ASTRONAUT.read_bytes()[:5000])
    with pytest.raises(OSError, match=r"."):
        estimator([ASTRONAUT, tmp_path / "broken.jpg"])


def test_numbers_of_a_face_follow_from_its_distribution(estimator):
    [face] = estimator(HOPPER)
    assert face.probs.shape == (101,)
    assert face.probs.sum() == pytest.approx(1, abs=1e-5)
    assert face.age == pytest.approx(float(face.probs @ np.arange(101)), abs=1e-3)
    low, high = metrics.central_interval(face.probs[None], AGE_BINS, 0.8)
    assert (face.low, face.high) == (pytest.approx(low[0]), pytest.approx(high[0]))
    assert face.low <= face.median <= face.high
    assert dict(face)["age"] == face["age"] == face.age
    with pytest.raises(KeyError):
        face["keys"]


def test_temperature_of_the_checkpoint_widens_the_distribution(estimator, tmp_path):
    [sharp] = estimator(HOPPER)
    [wide] = AgeEstimator(write_model(tmp_path / "m.pth", temperature=2.0), "cpu")(HOPPER)
    expected = sharp.probs ** 0.5 / (sharp.probs ** 0.5).sum()
    np.testing.assert_allclose(wide.probs, expected, atol=1e-5)


def test_mirror_averaging_is_symmetric(estimator, model_path):
    photo = as_photo(HOPPER)
    crop = estimator.face_crop(photo, estimator.detector.align([photo], faces="all")[0][0])
    both = AgeEstimator(model_path, "cpu", ["TEST.TTA", "True"])
    plain, mirrored = both.network([crop, crop[:, ::-1]])
    np.testing.assert_allclose(plain, mirrored, atol=1e-6)
    assert np.abs(estimator.network([crop])[0] - plain).max() > 1e-4


def test_faces_in_small_batches_are_the_same(estimator, model_path):
    small = AgeEstimator(model_path, "cpu", ["TEST.BATCH_SIZE", "1"])
    for one, other in zip(small(TWO_FACES), estimator(TWO_FACES), strict=True):
        np.testing.assert_allclose(one.probs, other.probs, atol=1e-5)


def test_the_age_is_the_median_where_the_config_says_so(model_path):
    by = {decode: AgeEstimator(model_path, opts=["TEST.DECODE", decode])(ASTRONAUT)[0]
          for decode in ("mean", "median")}
    assert by["median"].age == by["median"].median == by["mean"].median != by["mean"].age


def test_only_test_keys_can_be_overridden(model_path):
    with pytest.raises(ValueError, match=r"MODEL.IMG_SIZE.*fixed by the checkpoint"):
        AgeEstimator(model_path, opts=["MODEL.IMG_SIZE", "96"])
    with pytest.raises(ValueError, match="confidence"):
        AgeEstimator(model_path, min_confidence=2)


# ---- Streams


def test_stream_keeps_order_and_few_images(estimator):
    alive, most, lock = set(), 0, threading.Lock()

    def read(number):
        nonlocal most
        with lock:
            alive.add(number)
            most = max(most, len(alive))
        if number % 5 == 3:
            raise OSError(f"broken\n{number}")
        return as_photo(ASTRONAUT).resize((128, 128))

    count = 40
    for number, reading in enumerate(estimator.stream(range(count), read, 3)):
        alive.discard(number)
        if number % 5 == 3:
            assert (reading.photo, reading.faces) == (None, [])
            assert reading.problem == f"broken {number}"
        else:
            assert reading.photo.size == (128, 128) and reading.problem == ""
    assert number == count - 1
    assert most < 16  # two batches, those decoded ahead, the one just handed out


def test_batches_are_bounded_by_pixels():
    unreadable = Reading(None, [], "cut short")
    photos = [Image.new("RGB", (20, 20)), unreadable, Image.new("RGB", (20, 20)),
              Image.new("RGB", (20, 20)), Image.new("RGB", (90, 90)), Image.new("RGB", (5, 5))]
    assert [len(batch) for batch in batches(photos, pixel_count, 1000, 16)] == [3, 1, 1, 1]
    assert [len(batch) for batch in batches([unreadable] * 5, pixel_count, 1000, 2)] == [2, 2, 1]


# ---- Result files


def test_result_files_hold_every_image(tmp_path):
    face = face_from_probs((1.234, 2, 30, 40), 0.987654, -3.14159, peak(34), AGE_BINS)
    with ResultFiles(tmp_path) as results:
        results.write({"file": "sub dir/ä,b.jpg"}, [(1, face), (2, face)])
        results.write({"file": "empty.jpg"}, [])
        results.write({"file": "bad.jpg"}, [], 'unreadable: "what"')
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == FIELDS
    assert [row["status"] for row in rows] == ["ok", "ok", "no face", 'unreadable: "what"']
    assert [row["face"] for row in rows] == ["1", "2", "", ""]
    assert rows[0]["file"] == "sub dir/ä,b.jpg"
    assert (rows[0]["x1"], rows[0]["confidence"], rows[0]["roll_deg"]) == ("1.23", "0.9877",
                                                                            "-3.14")
    assert float(rows[0]["age"]) == pytest.approx(34, abs=0.01)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").open(encoding="utf-8")]
    assert list(lines[0]) == [*FIELDS, "probs"]
    assert len(lines[0]["probs"]) == 101
    assert sum(lines[0]["probs"]) == pytest.approx(1, abs=1e-4)
    assert lines[2]["age"] is None and lines[2]["probs"] is None


def test_file_name_that_is_not_utf8_survives(tmp_path):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    with ResultFiles(tmp_path) as results:
        results.write({"file": name}, [])
    assert b"caf\xe9.jpg,,," in (tmp_path / "results.csv").read_bytes()
    assert Path(tmp_path, "results.jsonl").read_bytes().count(b"caf\xe9.jpg") == 1
