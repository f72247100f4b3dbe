"""AgeEstimator: the pixel path, what it accepts, batches; results, drawing, tracking."""

import csv
import io
import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from demo_inputs import AGE_BINS, ASTRONAUT, HOPPER, ROOT, TWO_FACES, face_at, write_model
from PIL import Image, ImageSequence

import metrics
from dataset import FaceDataset
from lists import Source, read_faces
from media.results import FIELDS, ResultFiles
from predictor import (
    AgeEstimator,
    Reading,
    as_photo,
    face_from_probs,
    pixel_count,
    read_or_explain,
)
from preprocess import face_align
from preprocess.detector import _aligned_face
from preprocess.face import expand_bbox, turned_bbox
from preprocess.mtcnn import Detections
from utils.pipeline import batches

PORTRAITS = ROOT.parent / "shared" / "data" / "portraits"


@pytest.fixture(scope="session")
def estimator(model_path):
    return AgeEstimator(model_path, "cpu")


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
    [first] = estimator.detector.detect([photo])
    crop = estimator.face_crop(photo, found)
    target = photo, turned_bbox(first.bboxes[1], photo.size, found.roll_deg), found.roll_deg
    nothing = Detections(*(np.zeros((0, *shape), np.float32) for shape in ((4,), (), (5, 2))))
    missed = _aligned_face(first, 1, target, nothing)
    assert found.found_twice and not missed.found_twice
    fallback = estimator.face_crop(photo, missed)
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


def test_bytes_open_files_and_floats_give_the_same_faces(estimator):
    array = np.asarray(Image.open(ASTRONAUT).convert("RGB"))
    content = ASTRONAUT.read_bytes()
    [expected] = estimator(ASTRONAUT)
    with ASTRONAUT.open("rb") as file:
        for image in (content, bytearray(content), file, io.BytesIO(content),
                      array.astype(np.float32) / 255, array / 255):
            [face] = estimator(image)
            np.testing.assert_allclose(face.probs, expected.probs, atol=1e-5)
    assert [len(faces) for faces in estimator([content, array / 255])] == [1, 1]


@pytest.mark.parametrize(("image", "words"), [
    (np.full((8, 8, 3), 200, np.float32), r"0..1.*200..200; divide by 255"),
    (np.full((8, 8, 3), np.nan), "0..1"), (np.zeros((8, 8, 3), np.int64), "int64"),
    (np.zeros((8, 8), np.uint16), "uint16 .*; divide 16 bits by 65535"),
    (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\); move the colours to the end: .*1, 2, 0"),
    (Image.new("RGB", (0, 10)), "the image is empty: 0 x 10 pixels"),
    (np.zeros((8, 8, 2), np.uint8), "expected"), (np.zeros((0, 8, 3), np.uint8), "expected"),
    ([7], "got int"), (None, r"got NoneType \(OpenCV's imread"), ([None], "got NoneType")])
def test_what_is_no_image_is_refused(estimator, image, words):
    with pytest.raises(ValueError, match=words):
        estimator(image)


# ---- Faces that others have found


def test_ages_at_the_boxes_of_another_detector(estimator):
    photo = as_photo(TWO_FACES)
    found = estimator(TWO_FACES)
    boxes = [(face.x1 + 3, face.y1 - 4, face.x2 + 5, face.y2 + 2) for face in found][::-1]
    for face, box, own in zip(estimator.ages_at(photo, boxes), boxes, found[::-1], strict=True):
        assert (face.x1, face.y1, face.x2, face.y2) == pytest.approx(box)
        assert face.roll_deg == pytest.approx(own.roll_deg, abs=1)
        assert face.age == pytest.approx(own.age, abs=0.5) and face.confidence > 0.9
    assert estimator.ages_at(photo, []) == []


def test_landmarks_of_another_detector_give_the_angle(estimator):
    photo = as_photo(TWO_FACES)
    detections = estimator.detector.detect([photo])[0]
    boxes, points = detections.bboxes[:2], detections.landmarks[:2]
    for landmarks in (points, points[:, :2]):
        faces = estimator.ages_at(photo, boxes, landmarks)
        for face, own in zip(faces, estimator(TWO_FACES), strict=True):
            np.testing.assert_allclose(face.probs, own.probs, atol=1e-5)
            assert face.roll_deg == own.roll_deg


def test_a_box_without_a_face_is_cut_out_as_it_is(estimator):
    photo, box = as_photo(HOPPER), (10, 10, 60, 70)
    [face] = estimator.ages_at(photo, [box])
    assert face.confidence == 0 and face.roll_deg == 0
    margin = estimator.cfg.DATA.MARGIN
    crop = photo.crop([round(value) for value in expand_bbox(box, margin)])
    [same] = estimator.ages_of_crops([crop])
    np.testing.assert_allclose(face.probs, same.probs, atol=1e-5)
    assert (same.x1, same.y1, same.x2, same.y2) == (0, 0, *crop.size)


@pytest.mark.parametrize(("boxes", "landmarks"), [
    ([(1, 2, 3)], None), ((1, 2, 30, 40), None),
    ([(1, 2, 30, 40)], np.zeros((2, 5, 2))), (None, None), (7, None), ("abcd", None),
    ({"x1": 1}, None), ([(1, 2, 30, 40)], ["eyes"])])
def test_boxes_of_another_shape_are_refused(estimator, boxes, landmarks):
    with pytest.raises(ValueError, match="expected"):
        estimator.ages_at(HOPPER, boxes, landmarks)


@pytest.mark.parametrize(("box", "problem"), [
    ((30, 2, 3, 40), "x2 is not right of x1"), ((1, 2, 1, 40), "not width and height"),
    ((1, 2, 30, np.nan), "not finite"),
    ((1, 2, np.inf, 40), "not finite"), ((9000, 2, 9090, 90), "outside the photo of 512 x 600"),
    ((1, -90, 80, -5), "outside the photo of 512 x 600"),
    ((-40000, -40000, 40000, 40000), "more than 3 times as large as the photo of 512 x 600"),
    ((0.1, 0.2, 0.4, 0.5), "expected pixels"), ((1.5, 2, 2.5, 40), "expected pixels")])
def test_a_box_that_cannot_be_a_face_is_named(estimator, box, problem):
    with pytest.raises(ValueError, match=rf"^box 1 \({box[0]:g} .*\): .*{problem}"):
        estimator.ages_at(HOPPER, [(10, 10, 60, 70), box])


def test_landmarks_that_are_not_finite_are_refused(estimator):
    with pytest.raises(ValueError, match="not finite"):
        estimator.ages_at(HOPPER, [(10, 10, 60, 70)], np.full((1, 2, 2), np.inf))


@pytest.mark.parametrize("crop", [np.zeros((64, 48, 3), np.uint8), np.zeros((64, 48), np.uint8),
                                  Image.new("RGB", (48, 64)), str(HOPPER), HOPPER.read_bytes()])
def test_a_single_crop_is_no_list_of_crops(estimator, crop):
    with pytest.raises(ValueError, match="pass a list of crops"):
        estimator.ages_of_crops(crop)


def test_an_empty_crop_is_refused(estimator):
    with pytest.raises(ValueError, match="the image is empty: 0 x 10 pixels"):
        estimator.ages_of_crops([Image.open(HOPPER).crop((5, 0, 5, 10))])


def test_an_array_of_crops_is_several(estimator):
    assert len(estimator.ages_of_crops(np.zeros((2, 64, 48, 3), np.uint8))) == 2


@pytest.mark.parametrize("quarter", [90, 180, 270])
def test_faces_on_their_side_are_found_where_asked_for(model_path, estimator, quarter):
    photo = as_photo(HOPPER)
    turned = photo.rotate(quarter, expand=True)
    [upright] = estimator(photo)
    any_way = AgeEstimator(model_path, "cpu", any_rotation=True)
    [face] = any_way(turned)
    assert (face.roll_deg + quarter - upright.roll_deg + 180) % 360 - 180 == pytest.approx(
        0, abs=0.01)
    assert face.age == pytest.approx(upright.age, abs=0.01)
    box = np.asarray(turned.crop([round(v) for v in (face.x1, face.y1, face.x2, face.y2)])
                     .rotate(-quarter, expand=True), float)
    expected = np.asarray(photo.crop([round(v) for v in (upright.x1, upright.y1, upright.x2,
                                                         upright.y2)]).resize(box.shape[1::-1]))
    assert np.abs(box - expected).mean() < 12  # the same part of the photo, within a pixel
    assert len(any_way([turned, photo])[1]) == 1
    box = (face.x1, face.y1, face.x2, face.y2)
    [near, nothing] = any_way.ages_at(turned, [box, (0, 0, 30, 30)])
    assert (near.x1, near.y1, near.x2, near.y2) == box and near.confidence > 0.9
    assert (near.roll_deg - face.roll_deg + 180) % 360 - 180 == pytest.approx(0, abs=0.5)
    assert near.age == pytest.approx(face.age, abs=0.5)
    assert nothing.confidence == nothing.roll_deg == 0


def test_probability_of_being_old_enough():
    face = face_from_probs((0, 0, 1, 1), 1, 0, [0.1, 0.2, 0.3, 0.4], [10, 11, 12, 13])
    ages = (0, 10, 11, 13, 14)
    assert [face.probability_of_at_least(age) for age in ages] == pytest.approx(
        [1, 1, 0.9, 0.4, 0])
    assert face.probability_of_at_least(np.float32(11.5)) == pytest.approx(0.7)
    for age in ("18", None, float("nan"), [18]):
        with pytest.raises(ValueError, match="expected an age in years, a number such as 18; got"):
            face.probability_of_at_least(age)


@pytest.mark.parametrize(("words", "message"), [
    ({"device": None}, "unknown device None; choose auto, cpu"),
    ({"device": 0}, "unknown device 0; choose auto, cpu"),
    ({"threads": "2"}, "threads must be a whole number of at least 1, got '2'"),
    ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
    ({"min_face": float("nan")}, "min_face_size must be at least 1 pixel, got nan"),
    ({"min_face": None}, "min_face_size must be at least 1 pixel, got None"),
    ({"opts": {"TEST.TTA": "True"}}, "flat list, such as"),
    ({"opts": ["TEST.TTA"]}, "override 'TEST.TTA' has no value"),
    ({"path": 7}, "expected a model as a path, a name or an https URL, got int")])
def test_an_estimator_of_another_kind_of_value_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        AgeEstimator(**{"device": "cpu"} | words)


def test_missing_and_broken_files_raise(estimator, tmp_path):
    with pytest.raises(FileNotFoundError):
        estimator(tmp_path / "none.jpg")
    (tmp_path / "broken.jpg").write_bytes(ASTRONAUT.read_bytes()[:5000])
    with pytest.raises(OSError, match=r"."):
        estimator([ASTRONAUT, tmp_path / "broken.jpg"])


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_damaged_file_raises_as_a_pil_image_too(estimator, share):
    content = bytearray(ASTRONAUT.read_bytes())
    place = round(share * len(content))
    content[place:place + 50] = bytes(50)
    for image in (io.BytesIO(content), Image.open(io.BytesIO(content))):
        with pytest.raises(OSError):
            estimator(image)


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


def test_overrides_may_be_python_values(model_path):
    cfg = AgeEstimator(model_path, opts=("TEST.TTA", True, "TEST.BATCH_SIZE", 16)).cfg
    assert cfg.TEST.TTA is True and cfg.TEST.BATCH_SIZE == 16


# ---- Streams and threads


@pytest.mark.parametrize("model", ["default", "checkpoint"])
def test_threads_can_share_an_estimator(model, estimator):
    """As in a web service, with ONNX Runtime and with PyTorch."""
    shared = estimator if model == "checkpoint" else AgeEstimator(threads=1)
    photos = [ASTRONAUT, HOPPER, TWO_FACES] * 4

    def ages_of(photo):
        return [face.age for face in shared(photo)]

    alone = [ages_of(photo) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ages_of, photos))
    np.testing.assert_allclose(np.hstack(together), np.hstack(alone), atol=1e-3)


def test_images_that_share_their_memory_are_told_apart(estimator, tmp_path):
    portraits = [Image.open(path).convert("RGB").resize((400, 400)) for path in (ASTRONAUT, HOPPER)]
    alone = [estimator(portrait)[0].x1 for portrait in portraits]
    arrays, order = [np.asarray(portrait) for portrait in portraits], [0, 1, 1, 0] * 5

    def same(found):
        boxes = [face.x1 for [face] in found]
        assert boxes == pytest.approx([alone[place] for place in order], abs=0.1)

    def frames():
        buffer = np.empty_like(arrays[0])  # as cv2.VideoCapture.read(buffer) fills it
        for place in order:
            buffer[:] = arrays[place]
            yield buffer

    same(reading.faces for reading in estimator.stream(frames()))
    portraits[0].save(tmp_path / "pages.tif", save_all=True,
                      append_images=[portraits[place] for place in order[1:]])
    with Image.open(tmp_path / "pages.tif") as pages:
        same(estimator(ImageSequence.Iterator(pages)))
    with Image.open(ASTRONAUT) as photo:  # not decoded yet
        assert [len(faces) for faces in estimator([photo] * 8)] == [1] * 8


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
    face = face_at((1.234, 2, 30, 40), 34, 0.987654, -3.14159)
    with ResultFiles(tmp_path / "results.csv", tmp_path / "results.jsonl") as results:
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
    with ResultFiles(tmp_path / "results.csv", tmp_path / "results.jsonl") as results:
        results.write({"file": name}, [])
    assert b"caf\xe9.jpg,,," in (tmp_path / "results.csv").read_bytes()
    assert Path(tmp_path, "results.jsonl").read_bytes().count(b"caf\xe9.jpg") == 1


def test_a_photo_that_the_memory_does_not_hold_is_told_and_the_next_is_read(tmp_path):
    def read(source):
        return bytearray(2**62 if source == "large.png" else 1)

    assert read_or_explain(read, "large.png").problem == "not enough memory"
    assert read_or_explain(read, "small.png") == bytearray(1)


def test_crops_get_the_median_where_the_config_says_so(model_path):
    by = {decode: AgeEstimator(model_path, "cpu", ["TEST.DECODE", decode]).ages_of_crops(
        [ASTRONAUT])[0] for decode in ("mean", "median")}
    assert by["median"].age == by["median"].median == by["mean"].median != by["mean"].age
