"""Faces followed through frames: motion, identity, averaging, where results depend on time."""

import threading

import numpy as np
import pytest
from demo_inputs import AGE_BINS, ASTRONAUT, TWO_FACES, face_at
from PIL import Image

from benchmarks.demo_speed import moving_portrait
from media.tracking import FaceTracker, match_boxes, move_boxes
from preprocess.face import iou

FACE_IN_ASTRONAUT = (181.0, 62, 268, 172)


def moved_by(bbox, right, down):
    return np.array(bbox) + np.array([right, down, right, down])


def shifted(picture, right, down):
    """The picture moved by whole pixels, its edge repeated."""
    moved = Image.fromarray(picture).transform(
        picture.shape[1::-1], Image.Transform.AFFINE, (1, 0, -right, 0, 1, -down))
    return np.asarray(moved)


@pytest.fixture
def astronaut():
    return np.asarray(Image.open(ASTRONAUT).convert("RGB"))


def shifting_detector(ages=(30,)):
    """Stands where the detector does, for frames that are the astronaut shifted right.

    It reads the shift off the frame's first pixel, and gives one age after the other.
    """
    calls = []

    def find(frame):
        calls.append(int(frame[0, 0, 0]))
        box = moved_by(FACE_IN_ASTRONAUT, calls[-1], 0)
        return [face_at(box, ages[(len(calls) - 1) % len(ages)])]

    return find, calls


def shifted_frames(picture, count, step=2):
    for index in range(count):
        frame = shifted(picture, step * index, 0).copy()
        frame[0, 0] = step * index
        yield frame


def test_box_moves_and_turns_with_its_pixels(astronaut):
    gray = astronaut[..., 1].copy()
    box = np.array(FACE_IN_ASTRONAUT)
    [(moved, turned)] = move_boxes(gray, shifted(gray, 5, -3), [box])
    np.testing.assert_allclose(moved, moved_by(box, 5, -3), atol=0.3)
    assert turned == pytest.approx(0, abs=0.3)
    centre = (box[:2] + box[2:]) / 2
    rotated = np.asarray(Image.fromarray(gray).rotate(-4, Image.Resampling.BICUBIC,
                                                      center=tuple(centre)))
    [(moved, turned)] = move_boxes(gray, rotated, [box])
    assert turned == pytest.approx(4, abs=0.5)  # clockwise: the image-right eye sinks
    np.testing.assert_allclose(moved, box, atol=1.5)


def test_box_without_structure_or_off_the_picture_is_lost(astronaut):
    gray = astronaut[..., 1].copy()
    blank = np.full_like(gray, 128)
    noise = np.random.default_rng(0).integers(0, 256, gray.shape, np.uint8)
    box = np.array(FACE_IN_ASTRONAUT)
    assert move_boxes(blank, blank, [box]) == [None]
    assert move_boxes(gray, noise, [box]) == [None]
    assert move_boxes(gray, gray, [box + 1000]) == [None]
    lost, kept = move_boxes(gray, gray, [box + 1000, box])
    assert lost is None and kept is not None
    assert move_boxes(gray, gray, []) == []


def test_matching_takes_the_best_pairs_once():
    a, b = np.array([0, 0, 10, 10.0]), np.array([20, 0, 30, 10.0])
    assert iou(a, a) == 1 and iou(a, b) == 0
    assert iou(a, moved_by(a, 5, 0)) == pytest.approx(1 / 3)
    assert match_boxes([a, b], [b + 1, a + 2, a + 1]) == {0: 1, 2: 0}
    assert match_boxes([], [a]) == {}


def test_face_keeps_its_number_and_its_place(astronaut):
    find, calls = shifting_detector()
    with FaceTracker(find, AGE_BINS, every=5) as tracker:
        for index, frame in enumerate(shifted_frames(astronaut, 40)):
            [(number, face)] = tracker.update(frame)
            assert number == 1
            true_box = moved_by(FACE_IN_ASTRONAUT, 2 * index, 0)
            assert iou(np.array([face.x1, face.y1, face.x2, face.y2]), true_box) > 0.9
    assert len(calls) <= 2 + 40 // 5  # not on every frame


def test_large_frames_give_boxes_in_their_own_pixels(astronaut):
    large = np.asarray(Image.fromarray(astronaut).resize((1536, 1536)))
    box = tuple(3 * value for value in FACE_IN_ASTRONAUT)
    with FaceTracker(lambda frame: [face_at(box)], AGE_BINS, every=2) as tracker:
        for _ in range(6):
            [(_, face)] = tracker.update(large)
            np.testing.assert_allclose((face.x1, face.y1, face.x2, face.y2), box, atol=3)


def test_face_that_is_cut_away_does_not_come_back(astronaut):
    noise = np.random.default_rng(0).integers(0, 256, astronaut.shape, np.uint8)
    scene = np.asarray(Image.fromarray(noise).resize((64, 64)).resize(astronaut.shape[1::-1]))
    with FaceTracker(lambda frame: [face_at(FACE_IN_ASTRONAUT)] if frame is astronaut else [],
                     AGE_BINS, every=5) as tracker:
        for _ in range(8):
            assert len(tracker.update(astronaut)) == 1
        for _ in range(30):
            assert tracker.update(scene) == []


def test_a_turning_head_is_not_reported_late(astronaut):
    frames = [astronaut, *(np.asarray(Image.fromarray(astronaut).rotate(
        -2 * step, Image.Resampling.BICUBIC, center=(224, 117))) for step in range(1, 16))]

    def find(frame):
        step = next(i for i, known in enumerate(frames) if known is frame)
        return [face_at(FACE_IN_ASTRONAUT, roll_deg=2.0 * step)]

    with FaceTracker(find, AGE_BINS, every=5) as tracker:
        for step, frame in enumerate(frames):
            [(_, face)] = tracker.update(frame)
            assert face.roll_deg == pytest.approx(2 * step, abs=1.5)


def test_distribution_is_averaged_over_time(astronaut):
    find, calls = shifting_detector(ages=(20, 40))
    with FaceTracker(find, AGE_BINS, every=2) as tracker:
        ages = [tracker.update(frame)[0][1].age for frame in shifted_frames(astronaut, 60, 0)]
    assert len(calls) > 20
    assert ages[0] == pytest.approx(20, abs=0.1)
    assert all(abs(age - 30) < 1.5 for age in ages[-20:])
    assert np.abs(np.diff(ages[40:])).max() < 2.5


def test_face_that_leaves_ends_and_a_new_one_gets_a_new_number(astronaut):
    blank = np.full_like(astronaut, 128)
    with FaceTracker(lambda frame: [face_at(FACE_IN_ASTRONAUT)] if frame.std() > 1 else [],
                     AGE_BINS, every=2) as tracker:
        assert [number for number, _ in tracker.update(astronaut)] == [1]
        for _ in range(23):
            assert tracker.update(blank) == []
        for _ in range(5):
            there = tracker.update(astronaut)
        assert [number for number, _ in there] == [2]


def test_camera_frames_do_not_wait_for_a_slow_detection(astronaut):
    release = threading.Event()
    calls = []

    def slow(frame):
        calls.append(1)
        if len(calls) == 2:
            assert release.wait(30)
        return [face_at(FACE_IN_ASTRONAUT, age=20 * len(calls))]

    with FaceTracker(slow, AGE_BINS, every=2, wait=False) as tracker:
        for _ in range(10):
            [(_, face)] = tracker.update(astronaut)
        assert face.age == pytest.approx(20, abs=0.1)  # the second one is still in work
        release.set()
        tracker.job.result()
        [(_, face)] = tracker.update(astronaut)
        assert face.age == pytest.approx(30, abs=0.1)


def test_an_error_of_the_detector_is_not_swallowed(astronaut):
    def broken(frame):
        raise OSError("the detector broke")

    with FaceTracker(broken, AGE_BINS) as tracker, pytest.raises(OSError, match="broke"):
        tracker.update(astronaut)


@pytest.mark.parametrize("size, face", [((1280, 720), 39), ((1280, 720), 22), ((3840, 2160), 45)])
def test_a_small_face_in_a_large_frame_is_followed(astronaut, size, face):
    scale = face / (FACE_IN_ASTRONAUT[3] - FACE_IN_ASTRONAUT[1])
    portrait = Image.fromarray(astronaut).resize([round(scale * side) for side in (512, 512)])
    box = moved_by(scale * np.array(FACE_IN_ASTRONAUT), 500, 300)

    def frame_at(right):
        picture = Image.new("RGB", size, (120, 120, 110))
        picture.paste(portrait, (500 + right, 300))
        frame = np.asarray(picture).copy()
        frame[0, 0] = right
        return frame

    empty = np.full((*size[::-1], 3), 120, np.uint8)
    frames = [empty] * 5 + [frame_at(2 * k) for k in range(12)]  # it comes after the first frame

    def find(frame):
        return [] if frame is empty else [face_at(moved_by(box, int(frame[0, 0, 0]), 0))]

    with FaceTracker(find, AGE_BINS, every=5, min_face=20) as tracker:
        seen = [tracker.update(frame) for frame in frames]
    shown = [index for index, tracked in enumerate(seen) if tracked]
    assert shown == list(range(10, 17))  # the detection before began without it
    [(_, last)] = seen[-1]
    assert iou(np.array([last.x1, last.y1, last.x2, last.y2]), moved_by(box, 22, 0)) > 0.8


def test_two_faces_before_a_moving_camera_are_two_tracks():
    from preprocess.detector import FaceDetector
    photo = Image.open(TWO_FACES)
    detector = FaceDetector(min_face_ratio=0.1)

    def find(frame):
        [found] = detector.align([Image.fromarray(frame)], faces="all")
        return [face_at(face.bbox, confidence=face.confidence, roll_deg=face.roll_deg)
                for face in found if face.confidence > 0.9]

    numbers = set()
    with FaceTracker(find, AGE_BINS) as tracker:
        for index in range(110, 140):  # both are in the picture
            tracked = tracker.update(moving_portrait(photo, (640, 480), index / 150))
            numbers |= {number for number, _ in tracked}
    assert numbers == {1, 2} and len(tracked) == 2
