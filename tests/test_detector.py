import re
import subprocess
import sys
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from skimage.data import astronaut
from torchvision.ops import nms

from preprocess.detector import FaceDetector, TorchNetwork, detection_batches, torch_networks
from preprocess.export_mtcnn import export_networks
from preprocess.face import (
    crop_face,
    expand_bbox,
    load_photo,
    resize_face,
    roll_from_landmarks,
    rotate_photo,
    to_canvas,
)
from preprocess.mtcnn import (
    Networks,
    SummedPhoto,
    Window,
    _nms,
    _nms_within,
    propose,
    pyramid,
    windows,
)
from utils.download import MISC
from utils.onnx_network import OnnxNetwork

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def faces_found():
    return FaceDetector(threads=1)


@pytest.fixture(scope="module")
def portraits():
    return [Image.fromarray(astronaut()), load_photo(get_sample_data("grace_hopper.jpg", False))]


@pytest.fixture(scope="module")
def mtcnn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from facenet_pytorch import MTCNN
        return MTCNN()


def plain_two_passes(mtcnn, photo):
    _, _, landmarks = mtcnn.detect(photo, landmarks=True)
    roll_deg = roll_from_landmarks(landmarks[0])
    boxes, probs = mtcnn.detect(rotate_photo(photo, roll_deg))
    return roll_deg, boxes[0].astype(float), probs[0]


def test_detects_what_the_package_detects(faces_found, portraits, mtcnn):
    # Two faces side by side and one small photo: several faces, several sizes.
    couple = Image.new("RGB", (700, 300))
    for x, portrait in zip((0, 350), portraits, strict=True):
        couple.paste(portrait.resize((350, 300)), (x, 0))
    photos = [*portraits, couple, portraits[0].crop((150, 20, 330, 220))]
    for photo, found in zip(photos, faces_found.detect(photos), strict=True):
        boxes, probs, landmarks = mtcnn.detect(photo, landmarks=True)
        assert len(found) == len(boxes)
        np.testing.assert_allclose(found.bboxes, boxes.astype(float), atol=0.01)
        np.testing.assert_allclose(found.confidences, probs.astype(float), atol=1e-5)
        np.testing.assert_allclose(found.landmarks, landmarks.astype(float), atol=0.01)


@pytest.mark.parametrize("turn", [0, 14, -37])
def test_aligns_as_two_plain_passes_do(faces_found, portraits, mtcnn, turn):
    photos = [portrait.rotate(turn, expand=True) for portrait in portraits]
    for photo, [face] in zip(photos, faces_found.align(photos), strict=True):
        # A pixel that differs by one grey level can tip which of two overlapping boxes wins.
        roll_deg, bbox, prob = plain_two_passes(mtcnn, photo)
        assert abs(face.roll_deg - roll_deg) < 0.01
        np.testing.assert_allclose(face.aligned_bbox, bbox, atol=5)
        assert abs(face.confidence - prob) < 0.01


def test_roll_levels_the_eyes(faces_found, portraits):
    tilted = portraits[1].rotate(-25, expand=True)
    [[face]] = faces_found.align([tilted])
    [upright] = faces_found.detect([rotate_photo(tilted, face.roll_deg)])
    assert abs(face.roll_deg) > 15
    assert abs(roll_from_landmarks(upright.landmarks[0])) < 3


def test_all_faces_largest_first(faces_found, portraits):
    group = Image.new("RGB", (900, 420))
    group.paste(portraits[0].crop((130, 0, 330, 250)).resize((240, 300)), (600, 20))
    group.paste(portraits[1].crop((100, 0, 420, 400)), (0, 0))
    [everyone] = faces_found.align([group], faces="all")
    assert len(everyone) == 2 and all(face.found_twice for face in everyone)
    areas = [(face.bbox[2:] - face.bbox[:2]).prod() for face in everyone]
    assert areas[0] > areas[1]
    [[main]] = faces_found.align([group])
    np.testing.assert_allclose(main.bbox, everyone[0].bbox, atol=0.5)
    [[smaller]] = faces_found.align([group], locations=[everyone[1].bbox])
    np.testing.assert_allclose(smaller.bbox, everyone[1].bbox, atol=0.5)
    loose = np.array(expand_bbox(everyone[1].bbox, 1.6))  # so wide that the larger face is near
    [[smaller]] = faces_found.align([group], locations=[loose])
    np.testing.assert_allclose(smaller.bbox, everyone[1].bbox, atol=5)
    [nobody] = faces_found.align([group], locations=[np.array([400, 300, 450, 350])])
    assert nobody == []


@pytest.mark.parametrize("quarter", [0, 90, 180, 270])
@pytest.mark.parametrize("size", [(320, 400), (321, 400)])  # of even and odd canvases
def test_a_face_in_any_quarter_is_cut_as_if_it_were_upright(faces_found, portraits, quarter, size):
    tilted = portraits[1].resize(size).rotate(9, expand=True)
    turned = tilted.rotate(quarter, expand=True)
    [[expected]] = faces_found.align([tilted])
    any_way = FaceDetector(threads=1, any_rotation=True)
    [[face]] = any_way.align([turned])
    assert (face.roll_deg + quarter - expected.roll_deg + 180) % 360 - 180 == pytest.approx(0)
    crops = [np.asarray(crop_face(photo, found.aligned_bbox, found.roll_deg, 0.2), float)
             for photo, found in ((tilted, expected), (turned, face))]
    assert max(np.abs(np.subtract(crops[0].shape, crops[1].shape))) <= 1
    crops = [resize_face(Image.fromarray(crop.astype(np.uint8)), 64) for crop in crops]
    assert np.abs(np.subtract(*crops, dtype=float)).mean() < 6  # within half a pixel
    np.testing.assert_allclose(to_canvas(face.landmarks, turned.size, -quarter),
                               expected.landmarks, atol=0.01)
    [[located]] = any_way.align([turned], locations=[face.bbox])
    np.testing.assert_allclose(located.bbox, face.bbox, atol=1)
    nowhere = np.array([0, 0, 9, 9]) if quarter else np.array([1, 1, 10, 10])
    assert any_way.align([turned], locations=[nowhere]) == [[]]


def test_an_unsure_face_is_left_out(portraits):
    sure, none = (FaceDetector(threads=1, min_confidence=lowest).align(portraits, faces="all")
                  for lowest in (0.9, 1))
    assert [len(faces) for faces in sure] == [1, 1] and none == [[], []]


def test_photos_without_faces_and_of_any_size(faces_found):
    sizes = [(300, 200), (40, 900), (20, 20), (12, 30), (1, 1)]
    photos = [Image.new("RGB", size, (90, 120, 30)) for size in sizes]
    assert [len(found) for found in faces_found.detect(photos)] == [0] * 5
    assert faces_found.align(photos) == [[]] * 5
    assert faces_found.align([]) == [] and faces_found.detect([]) == []
    assert faces_found.align([], faces="all") == []


def test_a_face_does_not_depend_on_its_batch(faces_found, portraits):
    alone = faces_found.align(portraits[:1])[0][0]
    among = faces_found.align([portraits[1], portraits[0], portraits[1]])[1][0]
    np.testing.assert_allclose(alone.aligned_bbox, among.aligned_bbox, atol=0.01)


def test_photos_side_by_side_keep_their_order_and_places(portraits):
    photos = [portraits[index % 2].resize((300 + 20 * index,) * 2) for index in range(5)]
    wanted = [None, (150, 150, 160, 160), None, None, (1, 1, 2, 2)]
    alone, shared = (FaceDetector(threads=threads) for threads in (1, 3))
    for options in ({"faces": "all"}, {"locations": wanted}):
        one_by_one = [alone.align([photo], **{
            name: [value[index]] if name == "locations" else value
            for name, value in options.items()})[0] for index, photo in enumerate(photos)]
        together = shared.align(photos, **options)
        assert [len(faces) for faces in together] == [len(faces) for faces in one_by_one]
        assert sum(map(len, together)) > 2
        pairs = zip(chain(*together), chain(*one_by_one), strict=True)
        for face, expected in pairs:
            np.testing.assert_allclose(face.aligned_bbox, expected.aligned_bbox, atol=0.01)


def test_pytorch_networks_load_without_the_exporter():
    """The exporter takes seconds to import, and a GPU does not need it."""
    code = ("import sys; from preprocess.detector import torch_networks; torch_networks(); "
            "sys.exit('onnx' in sys.modules or 'preprocess.export_mtcnn' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_pytorch_networks_find_the_same(portraits, faces_found):
    """They run on a GPU; here on the CPU."""
    detector = FaceDetector()
    detector.networks = Networks(*(TorchNetwork(network, "cpu") for network in torch_networks()))
    for ours, theirs in zip(faces_found.align(portraits), detector.align(portraits), strict=True):
        np.testing.assert_allclose(ours[0].aligned_bbox, theirs[0].aligned_bbox, atol=0.01)


def test_files_of_the_networks_are_what_the_command_writes(tmp_path):
    """Up to the exporter's version, they compute the same."""
    for path in export_networks(tmp_path):
        new, shipped = OnnxNetwork(path, 1), OnnxNetwork(MISC / path.name, 1)
        assert new.metadata.keys() == shipped.metadata.keys()
        height, width = (30, 41) if "pnet" in path.name else new.input_shape[2:]
        images = np.random.default_rng(0).uniform(-1, 1, (3, 3, height, width))
        images = images.astype(np.float32)
        for one, other in zip(new(images), shipped(images), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.5, 0.7])
def test_suppression_is_that_of_torchvision(overlap):
    rng = np.random.default_rng(0)
    for trial in range(200):
        sides, corners = rng.integers(12, 60, (100, 1)), rng.integers(0, 120, (100, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        if trial % 2:  # otherwise whole pixels, whose overlap is often the limit itself
            boxes += rng.random(boxes.shape, np.float32)
        scores = rng.integers(60, 100, 100).astype(np.float32) / 100  # many are equal
        expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap)
        np.testing.assert_array_equal(_nms(boxes, scores, overlap), expected)


def test_min_face_ratio_leaves_small_faces_out(faces_found, portraits):
    scene = Image.new("RGB", (400, 400), "gray")
    scene.paste(portraits[1].resize((128, 150)), (200, 200))  # a face of about 50 pixels
    assert len(faces_found.detect([scene])[0]) == 1
    assert len(FaceDetector(threads=1, min_face_ratio=0.25).detect([scene])[0]) == 0


def test_bad_arguments(faces_found, portraits):
    with pytest.raises(ValueError, match="'main' or 'all'"):
        faces_found.align(portraits, faces="largest")
    with pytest.raises(ValueError, match="1 locations for 2 photos"):
        faces_found.align(portraits, locations=[None])
    with pytest.raises(ValueError, match="min_face_size"):
        FaceDetector(min_face_size=0)
    with pytest.raises(ValueError, match="min_face_ratio"):
        FaceDetector(min_face_ratio=2)
    with pytest.raises(ValueError, match="min_confidence"):
        FaceDetector(min_confidence=-1)


def test_windows_equal_adaptive_pooling():
    pixels = np.random.default_rng(0).integers(0, 256, (97, 141, 3), np.uint8)
    [level, *_] = pyramid((141, 97), 20)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    whole = torch.nn.functional.interpolate(tensor, (level.height, level.width), mode="area")
    whole = ((whole - 127.5) * 0.0078125)[0].numpy()
    part = SummedPhoto(pixels).window(level, 4, 10, 30, 41)
    np.testing.assert_allclose(part, whole[:, 4:34, 10:51], atol=1e-5)
    # The same window from the part of the photo that it needs.
    piece = SummedPhoto(pixels[3:70, 12:120], (141, 97), (12, 3))
    np.testing.assert_allclose(piece.window(level, 4, 10, 30, 41), part, atol=1e-6)


def test_crops_equal_adaptive_pooling():
    pixels = np.random.default_rng(1).integers(0, 256, (90, 80, 3), np.uint8)
    boxes = np.array([[0, 0, 80, 90], [10, 20, 13, 25], [5, 5, 53, 53], [7, 60, 80, 61]])
    crops = SummedPhoto(pixels).crops(boxes, 24)
    for (x1, y1, x2, y2), crop in zip(boxes, crops, strict=True):
        tensor = torch.from_numpy(pixels[y1:y2, x1:x2]).permute(2, 0, 1).float()
        pooled = torch.nn.functional.adaptive_avg_pool2d(tensor, 24)
        np.testing.assert_allclose(crop, ((pooled - 127.5) * 0.0078125).numpy(), atol=1e-5)


def test_sums_of_a_large_white_photo_do_not_overflow():
    white = np.full((4200, 4200, 3), 255, np.uint8)  # its sum exceeds 32 bits
    crops = SummedPhoto(white).crops(np.array([[4000, 4000, 4200, 4200], [0, 0, 4200, 4200]]), 48)
    np.testing.assert_allclose(crops, 127.5 * 0.0078125, atol=1e-5)


@pytest.mark.parametrize("size", [(700, 431), (128, 129), (129, 300), (247, 90)])
def test_tiles_cover_every_cell_once(faces_found, size):
    """Cells found tile by tile are those of one scan of the whole level."""
    pixels = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), np.uint8)
    photo = SummedPhoto(pixels)
    level = pyramid(size, 12)[0]  # a level as large as the photo
    whole = Window(level, 0, 0, level.height, level.width)

    def cells(scan):
        count = {}

        def network(images):
            offsets, probs = faces_found.networks.propose(images)
            return offsets, np.stack([1 - probs[:, 1], 0.6 + 0.4 * probs[:, 1]], 1)  # all pass

        import preprocess.mtcnn as mtcnn
        squares = [mtcnn._squares(window, offset[0], prob[0, 1]) for window in scan
                   for offset, prob in [network(photo.window(*window)[None])]]
        for row in np.concatenate(squares):
            count[tuple(row[:4])] = count.get(tuple(row[:4]), 0) + 1
        return count

    assert cells(windows(level, size)) == cells([whole])


def test_region_proposes_what_the_whole_level_proposes_there(faces_found, portraits):
    photo = portraits[0]
    summed = SummedPhoto(np.asarray(photo))
    level = pyramid(photo.size, 20)[3]
    whole = propose([summed], [windows(level, photo.size)], faces_found.networks)[0][level]
    region = (150, 0, 330, 260)
    part = propose([summed], [windows(level, photo.size, region)], faces_found.networks)[0][level]
    inside = whole[(whole[:, 0] >= region[0]) & (whole[:, 1] >= region[1])
                   & (whole[:, 2] <= region[2]) & (whole[:, 3] <= region[3])]
    assert len(inside)
    for row in inside:
        np.testing.assert_allclose(np.abs(part - row).sum(1).min(), 0, atol=1e-3)


def test_suppression_by_the_smaller_box():
    boxes = np.array([[0, 0, 100, 100], [10, 10, 50, 50], [90, 90, 190, 190]], np.float32)
    assert _nms_within(boxes, np.array([0.9, 0.8, 0.7], np.float32), 0.7).tolist() == [0, 2]
    assert _nms_within(boxes, np.array([0.8, 0.9, 0.7], np.float32), 0.7).tolist() == [1, 2]


def test_batches_bound_the_pixels_and_read_no_further(portraits):
    read = []

    def photos():
        for side in (1000, 1500, 1500, 3000, 10, 10):
            read.append(side)
            yield Image.new("RGB", (side, side))

    taken = detection_batches(photos())
    assert len(next(taken)) == 2 and read == [1000, 1500, 1500]
    assert [len(batch) for batch in taken] == [1, 1, 2]


def test_only_the_networks_in_pytorch_import_the_package():
    users = [path.name for path in [*Path().glob("*.py"), *Path("preprocess").glob("*.py")]
             if re.search(r"(from|import) facenet_pytorch", path.read_text(encoding="utf-8"))]
    assert users == ["detector.py"]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize("folder", ["portraits", "UTKFace", "appa-real-release/valid",
                                    "fairface/val"])
def test_agrees_with_the_plain_loop_on_real_photos(folder):
    from benchmarks.align_speed import agreement, choose_images, load_mtcnn, plain_loop
    from preprocess.workers import align_rows
    paths = choose_images((SHARED / folder).resolve(), 25 if folder == "portraits" else 200)
    load_mtcnn()
    rows = [{"photo": str(path), "age": "0"} for path in paths]
    ours = [tuple(map(float, fields[:5])) if fields else None
            for _, *fields in align_rows(FaceDetector(threads=1), Path(), rows)]
    assert agreement(plain_loop(paths), ours) >= 0.99
    assert crop_face(load_photo(paths[0]), ours[0][1:], ours[0][0], 0).size[0] > 20
