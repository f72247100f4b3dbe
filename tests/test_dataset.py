"""From lists to batches: the crop cache, augmentation, order, and what each refuses."""

import pickle
import shutil
import threading
import time
import warnings
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from demo_inputs import ASTRONAUT, HOPPER
from faces import TINY, draw_face, write_bomb, write_dataset, write_list
from filelock import FileLock
from PIL import Image
from scripts import script, train

from augment import augment
from batches import OrderedBatches, ShuffledBatches, build_loader
from crop_cache import cached_crops
from dataset import FaceCrops, FaceDataset, check_photos, to_pixels
from defaults import load_cfg
from lists import BOX, Source, read_faces
from preprocess.boxes import find_boxes, warn_of_other_framing
from preprocess.columns import ALIGNED
from preprocess.detector import FaceDetector
from preprocess.face import (
    as_listed,
    crop_face,
    expand_bbox,
    load_photo,
    resize_face,
    upright_size,
)
from preprocess.shards import CHUNK_ROWS, Shards
from training import loop

AGES = [5, 20, 40, 60, 80, 95]
ONLY_FLIPS = ["AUG.CROP_AREA", "1"] + [  # of the augmentation
    word for name in load_cfg().AUG if name not in ("STRENGTH", "FLIP", "CROP_AREA")
    for word in (f"AUG.{name}", "0")]
NOTHING = [*ONLY_FLIPS, "AUG.FLIP", "0"]


def cfg_of(*opts):
    return load_cfg(None, [*TINY, *opts])


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "data", AGES)
    return tmp_path / "data"


def dataset(folder, tmp_path, *opts, train=False):
    cfg = cfg_of(*opts)
    faces = read_faces(Source(folder, "drawn", folder), "train", cfg)
    return FaceDataset(faces, cfg, train, tmp_path / "cache")


def test_cached_and_uncached_validation_pixels_are_equal(folder, tmp_path):
    cached = dataset(folder, tmp_path, "DATA.MARGIN", "0.3")
    uncached = dataset(folder, tmp_path, "DATA.MARGIN", "0.3", "DATA.CACHE", "False")
    keys = [(0, i) for i in range(len(AGES))]
    torch.testing.assert_close(cached.batch(keys)["pixels"],
                               uncached.batch(keys)["pixels"], rtol=0, atol=0)


def test_the_pixels_are_those_of_rotating_cropping_and_resizing(folder, tmp_path):
    pixels = dataset(folder, tmp_path, "DATA.MARGIN", "0.1").batch([(0, 2)])["pixels"]
    photo = load_photo(folder / "drawn_2.png")
    turned = photo.rotate(3.5, expand=True, resample=Image.Resampling.BICUBIC)
    crop = turned.crop((20.2 - 6.02, 18 - 6.4, 80.4 + 6.02, 82 + 6.4))
    expected = np.asarray(crop.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0).numpy(), expected)


def test_pixels_are_channels_last_rgb_bytes():
    face = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    pixels = to_pixels(face)
    assert pixels.shape == (2, 3, 4, 4)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert pixels[1, 2, 3, 0] == face[1, 3, 0, 2]


@pytest.mark.parametrize("cache", ["True", "False"])
def test_faces_without_a_box_are_cut_as_if_they_were_aligned(tmp_path, cache):
    raw = tmp_path / "appa-real-release"
    (raw / "valid").mkdir(parents=True)
    shutil.copy(ASTRONAUT, raw / "valid" / "0.jpg_face.jpg")
    Image.fromarray(draw_face(30)).save(raw / "valid" / "1.jpg_face.jpg", quality=95)
    (raw / "gt_avg_valid.csv").write_text(
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n0.jpg,,40,4,\n"
        "1.jpg,,30,4,\n")
    cfg = cfg_of("DATA.CACHE", cache)
    faces = read_faces(Source(raw, "appa_real", raw), "valid", cfg)
    data = FaceDataset(faces, cfg, False, tmp_path / "cache")
    assert data.note.startswith("2 faces have no box in their list") and ", 1 of them" in data.note
    photo = load_photo(ASTRONAUT)
    [[face]] = FaceDetector().align([photo])
    roll_deg, bbox = as_listed(face.roll_deg, face.aligned_bbox)
    np.testing.assert_array_equal(data.face(0),
                                  resize_face(crop_face(photo, bbox, roll_deg, 0), 32))
    drawn = load_photo(raw / "valid" / "1.jpg_face.jpg")  # in which there is no face: its middle
    np.testing.assert_array_equal(data.face(1),
                                  resize_face(crop_face(drawn, (16, 16, 80, 80), 0, 0), 32))
    again = FaceDataset(faces, cfg, False, tmp_path / "cache")
    pd.testing.assert_frame_equal(again.faces, data.faces)
    assert len(list(tmp_path.glob("cache/*.boxes.csv"))) == (cache == "True")


@pytest.mark.parametrize("framing", [1.0, 1.4])
@pytest.mark.parametrize("has_confidence", [True, False])
def test_boxes_of_other_programs_that_frame_faces_otherwise_are_told(tmp_path, framing,
                                                                    has_confidence):
    write_framed(tmp_path, "train", framing, has_confidence)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_other_framing(read_faces(Source(tmp_path, "my", tmp_path), "train", cfg_of()))
    told = of_framing(caught)
    if framing == 1 or has_confidence:
        assert not told
    else:
        assert len(told) == 1
        assert "the boxes of 'my' are 1.4" in told[0] and "(4 faces were compared)" in told[0]


def test_boxes_of_other_programs_are_told_once_a_run(tmp_path, recwarn):
    write_framed(tmp_path / "data", "train", 1.4)
    write_framed(tmp_path / "data", "valid", 1.5)
    train(tmp_path / "data", tmp_path / "run", *TINY, "TRAIN.EPOCHS", "1")
    [told] = of_framing(recwarn)
    assert "the boxes of 'my' are 1.4" in told and "(8 faces were compared)" in told
    recwarn.clear()
    script("test.py", "--data_dir", tmp_path / "data", "--resume", tmp_path / "run" / "best.pth",
           "--split", "valid", "--cache_dir", tmp_path / "cache")
    [told] = of_framing(recwarn)
    assert "the boxes of 'my' are 1.5" in told and "(4 faces were compared)" in told


def of_framing(caught):
    return [str(warning.message) for warning in caught
            if "framed otherwise" in str(warning.message)]


def write_framed(folder, split, framing, has_confidence=False):
    """Write a list of five faces whose boxes have `framing` times the sides of the detector's."""
    folder.mkdir(exist_ok=True)
    photos = [load_photo(path) for path in (ASTRONAUT, HOPPER)]
    photos += [photo.rotate(20, expand=True) for photo in photos]
    photos.append(Image.fromarray(draw_face(30)))  # in which the detector finds nothing
    rows, detector = [], FaceDetector()
    for number, photo in enumerate(photos):
        photo.save(folder / f"{split}{number}.png")
        [found] = detector.align([photo])
        roll_deg, bbox = 0, (9, 9, 60, 60)
        if found:
            roll_deg, bbox = found[0].roll_deg, found[0].aligned_bbox
        rows.append({"photo": f"{split}{number}.png", "age": 30, "deg": roll_deg,
                     **dict(zip(BOX, expand_bbox(bbox, (framing - 1) / 2), strict=True)),
                     "confidence": 0.9 if has_confidence else ""})
    write_list(folder / f"my_{split}_align.csv", rows)


def test_the_cache_is_used_and_rebuilt_when_list_or_settings_change(folder, tmp_path):
    cache = tmp_path / "cache"
    dataset(folder, tmp_path)
    (made,) = cache.glob("*.u8")
    stamp = made.stat().st_mtime_ns
    dataset(folder, tmp_path)
    assert [path.stat().st_mtime_ns for path in cache.glob("*.u8")] == [stamp]
    dataset(folder, tmp_path, "DATA.MARGIN", "0.5")
    assert len(list(cache.glob("*.u8"))) == 2
    Image.fromarray(draw_face(90)).save(folder / "drawn_0.png")  # a photo changes
    changed = dataset(folder, tmp_path)
    assert len(list(cache.glob("*.u8"))) == 3
    uncached = dataset(folder, tmp_path, "DATA.CACHE", "False")
    np.testing.assert_array_equal(changed.face(0), uncached.face(0))


def test_making_the_cache_leaves_the_random_state_alone(folder, tmp_path):
    before = torch.get_rng_state()
    dataset(folder, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupted_cache_goes_on_where_it_stopped(folder, tmp_path):
    cfg = cfg_of()
    faces = read_faces(Source(folder, "drawn", folder), "train", cfg)
    cached_crops(FaceCrops(faces, 0.0, 32), tmp_path / "cache", 0)
    (made,) = (tmp_path / "cache").glob("*.u8")
    face_bytes = 32 * 32 * 3
    content = made.read_bytes()
    made.unlink()
    marked = bytes(255 - byte for byte in content[:2 * face_bytes])  # to tell them from new ones
    made.with_suffix(".partial").write_bytes(marked + content[:100])  # killed in a write
    cached_crops(FaceCrops(faces, 0.0, 32), tmp_path / "cache", 0)
    assert made.read_bytes() == marked + content[2 * face_bytes:]
    assert not list((tmp_path / "cache").glob("*.partial"))


class OfADisk(FaceCrops):
    """Crops of photos whose disk is disconnected when a face is asked for."""

    disconnected_at = None

    def __getitem__(self, index):
        if index == self.disconnected_at:
            disk = self.path(index).parent
            disk.rename(disk.with_name("elsewhere"))
            disk.mkdir()
        return super().__getitem__(index)


def test_a_cache_of_a_disk_that_is_disconnected_goes_on(tmp_path):
    disk = tmp_path / "data"
    write_dataset(disk, [number + 20 for number in range(20)])
    crops = OfADisk(read_faces(Source(disk, "drawn", disk), "train", cfg_of()), 0.0, 32)
    crops.disconnected_at = 17
    with pytest.raises(OSError, match=rf"drawn_17.png': all of '{disk}' is gone, .* work is kept"):
        cached_crops(crops, tmp_path / "cache", 0)
    (partial,) = (tmp_path / "cache").glob("*.partial")
    face_bytes = 32 * 32 * 3
    assert partial.stat().st_size == 16 * face_bytes
    partial.write_bytes(bytes(16 * face_bytes))  # to tell them from new ones
    disk.rmdir()
    (tmp_path / "elsewhere").rename(disk)
    crops.disconnected_at = None
    cached = cached_crops(crops, tmp_path / "cache", 0)
    assert not cached[15].any() and cached[16].any()
    disk.rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=rf"drawn_0.png': all of '{disk}' is gone"):
        check_photos(crops)


def test_a_search_for_boxes_goes_on_where_it_stopped(tmp_path):
    for number in range(CHUNK_ROWS + 2):
        Image.fromarray(draw_face(30, seed=number)).save(tmp_path / f"{number}.png")
    rows = [{"root": tmp_path, "photo": f"{number}.png"} for number in range(CHUNK_ROWS + 2)]
    faces = pd.DataFrame(rows).assign(**dict.fromkeys(ALIGNED, np.nan))
    whole, _ = find_boxes(faces, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").glob("*.boxes.csv")
    kept.unlink()
    parts = Shards(kept, kept.name.split(".")[0])
    parts.folder.mkdir()
    parts.write(0, [["", "1", "2", "3", "40", "50", "0.9"]] * CHUNK_ROWS, [None] * CHUNK_ROWS)
    again, _ = find_boxes(faces, tmp_path / "cache")
    assert (again.loc[:CHUNK_ROWS - 1, "box3"] == 40).all()
    pd.testing.assert_frame_equal(again[CHUNK_ROWS:], whole[CHUNK_ROWS:])
    assert not parts.folder.exists()


@pytest.mark.parametrize(("ending", "work"), [
    (".u8", "cuts the same faces"), (".boxes.csv", "searches the same photos for faces")])
def test_a_process_says_that_it_waits_for_another(tmp_path, ending, work):
    raw = tmp_path / "appa-real-release"
    (raw / "valid").mkdir(parents=True)
    Image.fromarray(draw_face(30)).save(raw / "valid" / "1.jpg_face.jpg")
    (raw / "gt_avg_valid.csv").write_text(
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n1.jpg,,30,4,\n")
    faces = read_faces(Source(raw, "appa_real", raw), "valid", cfg_of())
    before = FaceDataset(faces, cfg_of(), False, tmp_path / "cache").face(0)
    (made,) = (tmp_path / "cache").glob(f"*{ending}")
    made.unlink()
    is_held = threading.Event()

    def hold():
        with FileLock(made.with_suffix(".lock")):
            is_held.set()
            time.sleep(1)

    threading.Thread(target=hold).start()
    is_held.wait()
    with pytest.warns(UserWarning, match=f"another process {work}; waiting for it .*lock"):
        data = FaceDataset(faces, cfg_of(), False, tmp_path / "cache")
    np.testing.assert_array_equal(data.face(0), before)


def test_a_cache_file_that_was_cut_short_is_made_anew(folder, tmp_path):
    content = dataset(folder, tmp_path).crops[5].copy()
    (made,) = (tmp_path / "cache").glob("*.u8")
    made.write_bytes(made.read_bytes()[:-100])
    np.testing.assert_array_equal(dataset(folder, tmp_path).crops[5], content)


def test_bad_photos_are_all_named_and_leave_no_cache(folder, tmp_path):
    whole = (folder / "drawn_1.png").read_bytes()
    (folder / "drawn_1.png").write_bytes(whole[:len(whole) // 2])
    (folder / "drawn_4.png").write_text("no image")
    with pytest.raises(ValueError) as raised:
        dataset(folder, tmp_path)
    assert "2 of 6" in str(raised.value)
    assert "drawn_1.png" in str(raised.value)
    assert "drawn_4.png" in str(raised.value)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock"}


@pytest.mark.parametrize("cache", ["True", "False"])
def test_a_box_wholly_outside_is_refused_at_the_start(folder, tmp_path, cache):
    rows = write_dataset(folder, AGES)
    rows[3].update(box1=400, box3=500)
    write_list(folder / "drawn_train_align.csv", rows)
    with pytest.raises(ValueError, match=r"drawn_3\.png.*outside"):
        dataset(folder, tmp_path, "DATA.CACHE", cache)


@pytest.mark.parametrize("cache", ["True", "False"])
@pytest.mark.parametrize("box, problem", [
    ((20.2, 20, 20.4, 60), "smaller than a pixel"), ((0, 0, 1e7, 1e7), "far too large"),
    ((0, 0, 19_000, 19_000), "far too large")])
def test_a_box_that_cannot_be_cut_is_refused_at_the_start(folder, tmp_path, cache, box, problem):
    rows = write_dataset(folder, AGES)
    rows[3].update(zip(("box1", "box2", "box3", "box4"), box, strict=True))
    write_list(folder / "drawn_train_align.csv", rows)
    with pytest.raises(ValueError, match=rf"drawn_3\.png.*{problem}"):
        dataset(folder, tmp_path, "DATA.CACHE", cache)


@pytest.mark.parametrize("cache", ["True", "False"])
def test_whatever_a_decoder_raises_the_photo_is_named(folder, tmp_path, cache):
    write_bomb(folder / "drawn_1.png")
    with pytest.raises(ValueError, match=r"1 of 6.*drawn_1\.png"):
        dataset(folder, tmp_path, "DATA.CACHE", cache)


def test_a_cache_folder_that_is_a_file_is_named(folder, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(OSError, match=r"--cache_dir '.*cache' is a file.*DATA.CACHE False"):
        dataset(folder, tmp_path)
    write_dataset(folder / "valid", AGES)
    (folder / "gt_avg_valid.csv").write_text(  # faces without a box
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age\n1.jpg,,30,4,\n")
    (folder / "valid" / "drawn_1.png").rename(folder / "valid" / "1.jpg_face.jpg")
    raw = read_faces(Source(folder, "appa_real", folder), "valid", cfg_of())
    with pytest.raises(OSError, match=r"--cache_dir '.*cache' is a file.*DATA.CACHE False"):
        FaceDataset(raw, cfg_of(), False, tmp_path / "cache")


def test_a_cache_reaches_a_loader_process_by_its_path(folder, tmp_path):
    data = dataset(folder, tmp_path)
    assert len(pickle.dumps(data.crops)) < 1000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data.crops))[1], data.crops[1])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_box_is_held_against_the_upright_photo(folder, tmp_path, format):
    exif = Image.Exif()
    exif[0x0112] = 6  # 120 x 96 upright in the file, 96 x 120 as it is seen
    Image.new("RGB", (120, 96)).save(folder / "drawn_0.png", format, exif=exif)
    assert load_photo(folder / "drawn_0.png").size == (96, 120)
    assert upright_size(folder / "drawn_0.png") == (96, 120)
    table = pd.read_csv(folder / "drawn_train_align.csv")
    table.loc[0, ["deg", "box1", "box2", "box3", "box4"]] = 0, 10, 100, 40, 119
    table.to_csv(folder / "drawn_train_align.csv", index=False)
    dataset(folder, tmp_path, "DATA.CACHE", "False").face(0)


def test_a_list_that_ignored_exif_warns_each_time(folder, tmp_path, monkeypatch):
    rows = write_dataset(folder, [30] * 8)
    exif = Image.Exif()
    exif[0x0112] = 3
    for row in rows[1:]:
        Image.fromarray(draw_face(30)).save(folder / row["photo"], exif=exif)
    dataset(folder, tmp_path).face(0)  # aligned with the rotation, so that nothing is said
    for row in rows:
        del row["confidence"]  # as the original scripts wrote it
    write_list(folder / "drawn_train_align.csv", rows)
    for opts in ([], [], ["DATA.CACHE", "False"]):  # the second time the crops are cached
        with pytest.warns(UserWarning) as warned:
            dataset(folder, tmp_path, *opts).face(1)
        assert [str(each.message) for each in warned] == [
            "7 of 8 photos (drawn_1.png, drawn_2.png, drawn_3.png, drawn_4.png, drawn_5.png, ...) "
            "have an EXIF rotation, which the scripts that wrote this list ignored; align again "
            "with python -m preprocess.face_align"]
    monkeypatch.setattr("dataset.MAX_ROTATIONS_READ", 2)
    with pytest.warns(UserWarning, match=r"^1 of 2 photos that were looked at \(drawn_7.png\) "):
        dataset(folder, tmp_path)
    write_list(folder / "drawn_train_align.csv", [rows[1] | {"box1": 200, "box3": 300}])
    with pytest.warns(UserWarning, match="1 of 1 photos"), \
            pytest.raises(ValueError, match=r"outside.*EXIF.*preprocess\.face_align"):
        dataset(folder, tmp_path, "DATA.CACHE", "False")


def test_photos_that_end_before_the_margin_does_are_reported(folder, tmp_path):
    words = ["DATA.MARGIN", "0.4", "DATA.CACHE", "False"]
    rows = write_dataset(folder, AGES)
    for row in rows:
        row.update(deg=0, box1=28, box2=28, box3=68, box4=68)  # 28 pixels to each side
    for room, count in ((28, 0), (10, 3), (10, 4)):
        for row in rows[:count]:
            row.update(box1=room, box3=room + 40)
        write_list(folder / "drawn_train_align.csv", rows)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset(folder, tmp_path, *words)
            dataset(folder, tmp_path, "DATA.CACHE", "False")  # without a margin
        texts = [str(one.message) for one in caught]
        assert len(texts) == (count > 3), texts
    assert "DATA.MARGIN 0.4 does (4 of 6 that" in texts[0]


def test_without_strength_augmentation_is_the_evaluation_crop(folder, tmp_path):
    plain = dataset(folder, tmp_path)
    train = dataset(folder, tmp_path, "AUG.STRENGTH", "0", train=True)
    np.testing.assert_array_equal(train.face(2, epoch=5), plain.face(2))


def test_identity_augmentation_is_the_centre_of_the_canvas():
    canvas = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    cfg = cfg_of("AUG.STRENGTH", "0")
    face = augment(canvas, 32, np.random.default_rng(0), cfg.AUG)
    np.testing.assert_array_equal(face, canvas[4:36, 4:36])


def test_augmentation_depends_on_seed_epoch_and_face_alone(folder, tmp_path):
    one, two = (dataset(folder, tmp_path, train=True) for _ in range(2))
    two.face(3, epoch=9)
    np.testing.assert_array_equal(one.face(1, epoch=4), two.face(1, epoch=4))
    assert not np.array_equal(one.face(1, epoch=4), one.face(1, epoch=5))


def test_augmentation_varies_but_keeps_the_face_recognisable(folder, tmp_path):
    train = dataset(folder, tmp_path, train=True)
    faces = np.stack([train.face(2, epoch) for epoch in range(60)]).astype(float)
    assert faces.shape == (60, 32, 32, 3)
    assert faces.std(axis=0).mean() > 10
    plain = dataset(folder, tmp_path).face(2).astype(float)
    alike = [np.corrcoef(plain.ravel(), face.ravel())[0, 1] for face in faces]
    assert np.mean(alike) > 0.5
    assert 30 < faces.mean() < 200


@pytest.mark.parametrize("key", ["AUG.RESOLUTION", "AUG.JPEG"])
def test_losses_of_detail_keep_the_picture_but_not_its_fine_grain(key):
    ramp = np.linspace(60, 190, 64)[:, None, None] * np.ones((64, 64, 3)) + (0, 20, 40)
    grain = np.random.default_rng(0).normal(0, 12, ramp.shape)
    canvas = (ramp + grain).clip(0, 255).astype(np.uint8)
    cfg = cfg_of(*NOTHING, key, "1")
    faces = np.stack([augment(canvas, 64, np.random.default_rng(i), cfg.AUG) for i in range(20)])
    assert faces.mean(axis=(0, 1, 2)) == pytest.approx(canvas.mean(axis=(0, 1)), abs=2)
    assert np.abs(faces.mean(axis=0) - ramp).mean() < 0.8 * np.abs(canvas - ramp).mean()
    assert len({face.tobytes() for face in faces}) > 10


def test_flips_happen_half_of_the_time():
    canvas = np.zeros((32, 32, 3), np.uint8)
    canvas[:, :16] = 255
    cfg = cfg_of(*ONLY_FLIPS)
    left = [augment(canvas, 32, np.random.default_rng(i), cfg.AUG)[16, 4, 0] == 255
            for i in range(400)]
    assert 0.42 < np.mean(left) < 0.58


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_each_global_batch_without_loss(world_size):
    def epoch(rank, size):
        batches = ShuffledBatches(23, 6, 7, rank, size)
        batches.epoch = 2
        return [sorted(index for _, index in batch) for batch in batches]

    alone = epoch(0, 1)
    shared = [sorted(chain(*parts)) for parts in
              zip(*(epoch(rank, world_size) for rank in range(world_size)), strict=True)]
    assert shared == alone
    assert len(alone) == 3
    assert len(set(chain(*alone))) == 18


def test_shuffling_changes_with_the_epoch_and_can_start_late():
    batches = ShuffledBatches(23, 6, 7)
    first = list(batches)
    batches.start = 2
    assert list(batches) == first[2:]
    assert len(batches) == 1
    batches.epoch, batches.start = 1, 0
    assert [[i for _, i in b] for b in batches] != [[i for _, i in b] for b in first]


def test_ordered_batches_take_each_face_once():
    seen = [index for rank in range(3) for batch in OrderedBatches(11, 2, rank, 3)
            for _, index in batch]
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize("batches", [
    partial(OrderedBatches, 1, 2), partial(ShuffledBatches, 1, 2, 0)])
def test_fewer_faces_than_processes_are_refused(batches):
    with pytest.raises(ValueError, match="1 .*cannot be shared by 2 processes"):
        batches(rank=0, world_size=2)


def test_a_batch_smaller_than_the_processes_is_refused():
    with pytest.raises(ValueError, match=r"batch of 2 .* by 3 processes \(TRAIN.BATCH_SIZE 2"):
        ShuffledBatches(100, 2, 0, rank=0, world_size=3)


def test_workers_deliver_what_the_main_process_would(folder, tmp_path):
    data = dataset(folder, tmp_path, train=True)
    batches = ShuffledBatches(len(data), 4, 0)
    alone = list(build_loader(data, batches, 0, torch.device("cpu")))
    shared = list(build_loader(data, batches, 2, torch.device("cpu")))
    for one, other in zip(alone, shared, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_memory_is_pinned_for_a_gpu_only(folder, tmp_path):
    data = dataset(folder, tmp_path)
    batches = OrderedBatches(len(data), 4)
    for device in ("cpu", "cuda"):
        assert build_loader(data, batches, 0, torch.device(device)).pin_memory == (device == "cuda")


def test_votes_become_histograms(folder, tmp_path):
    write_dataset(folder, AGES, columns={"votes": ["5:3 6:1", "", "", "", "", ""]})
    data = dataset(folder, tmp_path, "LOSS.LABEL", "votes")
    assert data.labels["votes"][0, [5, 6]].tolist() == [3, 1]
    assert data.labels["votes"][1].sum() == 0


@pytest.mark.parametrize("votes", ["20", "inf:1", "20:nan", "20:inf", "old:1", "20:1:1"])
def test_votes_that_are_none_are_named_before_crops_are_cut(folder, tmp_path, votes):
    write_dataset(folder, AGES, columns={"votes": ["5:3 6:1", votes, "", "", "", ""]})
    with pytest.raises(ValueError, match=rf"drawn_1\.png: '{votes}' in votes"):
        dataset(folder, tmp_path, "LOSS.LABEL", "votes")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("column", "value"), [("deg", -20.0), ("box1", 30.0)])
def test_a_list_that_was_aligned_anew_gets_crops_of_its_own(tmp_path, column, value):
    data = tmp_path / "data"
    write_dataset(data, [5, 20, 40])
    path = data / "drawn_train_align.csv"

    def face(*opts):
        cfg = load_cfg(None, [*TINY, *opts])
        faces = read_faces(Source(data, "drawn", data), "train", cfg)
        return FaceDataset(faces, cfg, False, tmp_path / "cache").face(2)

    before = face()
    pd.read_csv(path).assign(**{column: value}).to_csv(path, index=False)
    after = face()
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(after, face("DATA.CACHE", "False"))


@pytest.mark.parametrize("name", [name for name in load_cfg().AUG if name not in (
    "STRENGTH", "CROP_AREA")])
def test_each_kind_of_augmentation_can_be_turned_off_and_on(name):
    canvas = np.random.default_rng(0).integers(60, 190, (40, 40, 3), np.uint8)

    def faces(*opts):
        aug = load_cfg(None, [*NOTHING, *opts]).AUG
        return [augment(canvas, 32, np.random.default_rng(seed), aug) for seed in range(10)]

    for face in faces():
        np.testing.assert_array_equal(face, canvas[4:36, 4:36])
    value = "10" if name == "ROTATION" else "0.5"
    assert len({face.tobytes() for face in faces(f"AUG.{name}", value)}) > 1


def test_a_training_crop_has_the_evaluation_crop_in_its_middle(tmp_path):
    write_dataset(tmp_path, [30], splits=("train",))
    crops = {}
    for is_train in (True, False):
        cfg = load_cfg(None, [*TINY, "DATA.MARGIN", "0.3", "DATA.CACHE", "False",
                              "DATA.CONTEXT", "0.25"])
        faces = read_faces(Source(tmp_path, "drawn", tmp_path), "train", cfg)
        crops[is_train] = FaceDataset(faces, cfg, is_train).crops[0].astype(float)
    assert crops[True].shape == (48, 48, 3) and crops[False].shape == (32, 32, 3)
    middle = crops[True][8:-8, 8:-8]
    error = np.abs(middle - crops[False]).mean()
    for shift in (-1, 1):
        assert np.abs(np.roll(middle, shift, axis=0) - crops[False]).mean() > 2 * error


def test_a_gray_face_has_the_brightness_of_its_colours():
    canvas = np.full((40, 40, 3), (200, 40, 100), np.uint8)
    aug = load_cfg(None, [*NOTHING, "AUG.GRAYSCALE", "1"]).AUG
    face = augment(canvas, 32, np.random.default_rng(0), aug)
    assert np.abs(face - (0.299 * 200 + 0.587 * 40 + 0.114 * 100)).max() < 1


def test_crops_of_other_libraries_are_not_used(folder, tmp_path, monkeypatch):
    cfg = load_cfg(None, TINY)
    faces = read_faces(Source(folder, "drawn", folder), "train", cfg)
    for version in ("one", "two"):
        monkeypatch.setattr("crop_cache.crop_fingerprint", lambda version=version: version)
        FaceDataset(faces, cfg, False, tmp_path)
    assert len(list(tmp_path.glob("*.u8"))) == 2


def test_boxes_of_a_photo_that_was_replaced_are_found_anew(tmp_path):
    faces = pd.DataFrame([{"root": tmp_path, "photo": "a"}]).assign(
        **dict.fromkeys(ALIGNED, np.nan))
    for photo in (ASTRONAUT, HOPPER):
        shutil.copy(photo, tmp_path / "a")
        kept, _ = find_boxes(faces, tmp_path / "cache")
        pd.testing.assert_frame_equal(kept, find_boxes(faces)[0])


def test_another_seed_gives_another_order_other_pictures_and_other_weights(tmp_path):
    assert list(ShuffledBatches(23, 6, 0)) != list(ShuffledBatches(23, 6, 1))
    write_dataset(tmp_path, [20], splits=("train",))
    pictures, numbers = [], []
    for seed in ("0", "0", "1"):
        cfg = load_cfg(opts=[*TINY, "DATA.CACHE", "False", "TRAIN.SEED", seed])
        faces = read_faces(Source(tmp_path, "drawn", tmp_path), "train", cfg)
        pictures.append(FaceDataset(faces, cfg, True).face(0).tobytes())
        loop.fix_seeds(cfg)
        numbers.append(torch.rand(1).item())
    assert pictures[0] == pictures[1] != pictures[2]
    assert numbers[0] == numbers[1] != numbers[2]
