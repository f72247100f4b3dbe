"""Face geometry against PIL's own rotation and against hand-made cases."""

import io
import sys
from pathlib import Path

import matplotlib.cbook
import numpy as np
import PIL
import pytest
import skimage.data
from faces import write_bomb
from PIL import Image, ImageOps, PngImagePlugin

from media.photos import find_images, starts_as_picture
from predictor import as_photo
from preprocess.face import (
    crop_face,
    crop_fingerprint,
    expand_bbox,
    has_exif_rotation,
    load_photo,
    photo_quad,
    resize_face,
    roll_from_landmarks,
    rotate_photo,
    rotation_to_canvas,
    to_canvas,
    turned_back,
    turned_bbox,
    upright,
    upright_size,
)

ANGLES = [-170.3, -95.0, -90.0, -33.3, -1.2, 0.0, 0.4, 7.0, 45.0, 90.0, 120.0, 180.0]
BOXES = [(100.2, 80.7, 300.5, 330.1), (-40.0, -20.0, 200.0, 180.0), (300.0, 300.0, 700.0, 800.0)]


@pytest.fixture(scope="module", params=["astronaut", "grace_hopper"])
def portrait(request):
    if request.param == "astronaut":
        return Image.fromarray(skimage.data.astronaut())
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return load_photo(file)


@pytest.mark.parametrize("roll_deg", ANGLES)
def test_the_crop_equals_rotating_the_whole_photo(portrait, roll_deg):
    photo = portrait.crop((0, 0, 437, 500))
    whole = photo.rotate(roll_deg, expand=True, resample=Image.Resampling.BICUBIC)
    assert rotation_to_canvas(photo.size, roll_deg)[0] == whole.size
    for box in BOXES:
        np.testing.assert_array_equal(np.asarray(crop_face(photo, box, roll_deg, 0.0)),
                                      np.asarray(whole.crop(box)))


def test_a_margin_adds_its_share_on_each_side(portrait):
    box = (100, 80, 200, 280)
    assert expand_bbox(box, 0.4) == (60, 0, 240, 360)
    np.testing.assert_array_equal(
        np.asarray(crop_face(portrait, box, 5.0, 0.4)),
        np.asarray(rotate_photo(portrait, 5.0).crop((60, 0, 240, 360))))


def test_what_overhangs_is_black():
    white = Image.new("RGB", (50, 40), "white")
    crop = np.asarray(crop_face(white, (-10, -5, 60, 45), 0.0, 0.0))
    inside = np.zeros(crop.shape[:2], bool)
    inside[5:45, 10:60] = True
    assert (crop[inside] == 255).all()
    assert (crop[~inside] == 0).all()


def test_an_empty_box_is_refused():
    with pytest.raises(ValueError, match="empty"):
        crop_face(Image.new("RGB", (50, 40)), (10, 10, 10, 30), 0.0, 0.0)


def test_rolling_by_the_angle_of_the_eyes_levels_them():
    eyes = np.array([[120.0, 90.0], [200.0, 130.0]])  # the image-right eye is lower
    size = (437, 500)
    roll_deg = roll_from_landmarks(eyes)
    assert roll_deg == pytest.approx(26.565, abs=1e-3)
    left, right = to_canvas(eyes, size, roll_deg)
    assert left[1] == pytest.approx(right[1], abs=1e-6)
    assert left[0] < right[0]


def test_rolling_levels_the_eyes_in_the_pixels_too():
    photo = Image.new("RGB", (400, 300))
    for x, y in ((150, 120), (250, 170)):
        photo.paste("white", (x - 4, y - 4, x + 4, y + 4))
    turned = np.asarray(rotate_photo(photo, roll_from_landmarks([[150, 120], [250, 170]])))
    rows, columns = np.nonzero(turned[..., 0] > 128)
    middle = np.median(columns)
    assert rows[columns < middle].mean() == pytest.approx(rows[columns > middle].mean(), abs=0.7)


def test_mirroring_with_sides_swapped_negates_the_roll():
    landmarks = np.array([[120.0, 90.0], [200.0, 130.0], [160, 140], [130, 180], [190, 200]])
    mirrored = landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (400, 0)
    assert roll_from_landmarks(mirrored) == pytest.approx(-roll_from_landmarks(landmarks))


@pytest.mark.parametrize("roll_deg", ANGLES)
def test_boxes_go_to_the_photo_and_back(roll_deg):
    box, size = (90.0, 60.0, 210.0, 240.0), (437, 500)
    corners = photo_quad(box, size, roll_deg)
    back = to_canvas(corners, size, roll_deg)
    np.testing.assert_allclose(back, [[90, 60], [210, 60], [210, 240], [90, 240]], atol=1e-9)


def test_a_turned_box_keeps_its_sides_and_its_centre():
    box = turned_bbox((100, 100, 140, 200), (300, 200), 90.0)  # the canvas is 200 x 300
    assert box[2:] - box[:2] == pytest.approx([40, 100])
    assert (box[:2] + box[2:]) / 2 == pytest.approx([150, 180])


def test_faces_are_square_rgb():
    face = resize_face(Image.new("RGB", (120, 170), (10, 20, 30)), 64)
    assert face.shape == (64, 64, 3)
    assert (face == (10, 20, 30)).all()


@pytest.mark.parametrize(("mode", "value", "expected"), [
    ("L", 100, (100, 100, 100)),
    ("I;16", 25700, (100, 100, 100)),
    ("RGBA", (255, 0, 0, 0), (0, 0, 0)),
    ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
    ("1", 1, (255, 255, 255)),
    ("P", 0, None),
])
def test_every_mode_becomes_rgb(tmp_path, mode, value, expected):
    path = tmp_path / "image.png"
    Image.new(mode, (8, 6), value).save(path)
    photo = load_photo(path)
    assert (photo.mode, photo.size) == ("RGB", (8, 6))
    if expected is not None:
        assert photo.getpixel((0, 0)) == expected


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    path = tmp_path / "cmyk.jpg"
    Image.new("CMYK", (8, 6), (0, 0, 0, 0)).save(path)
    assert load_photo(path).getpixel((0, 0)) == (255, 255, 255)
    assert not has_exif_rotation(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_orientation_says(tmp_path, orientation):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as photo:
        expected = np.asarray(ImageOps.exif_transpose(photo))
    np.testing.assert_array_equal(load_photo(path), expected)
    np.testing.assert_array_equal(upright(load_photo(path)), expected)  # turned once only
    assert has_exif_rotation(path) == (orientation > 1)


def test_exif_data_behind_the_pixels_turn_a_photo_and_its_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(tmp_path / "before.png", exif=exif)
    content = (tmp_path / "before.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start:start + 4], "big")
    path, last = tmp_path / "behind.png", content[-12:]  # the chunk IEND
    path.write_bytes(content[:start] + content[end:-12] + content[start:end] + last)
    assert load_photo(path).size == upright_size(path) == (60, 40)
    assert has_exif_rotation(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_data_do_not_stop_a_photo(tmp_path):
    path = tmp_path / "damaged.jpg"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    Image.new("RGB", (80, 60), "red").save(path, exif=exif)
    content = path.read_bytes()
    start = content.index(b"Exif")
    sizes = set()
    for place in range(start + 6, start + len(exif.tobytes())):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1:])
        sizes.add(load_photo(path).size)
        has_exif_rotation(path)
    assert (60, 80) in sizes


def test_a_fixed_face_has_the_same_pixels_in_every_version_of_pillow():
    """Pillow 10.3 to 13.0 give this one; Pillow 13 resizes tall crops in another order."""
    assert crop_fingerprint() == "2087ded9d2f25a1e"


def test_resizing_is_that_of_pillow_10_to_12():
    if int(PIL.__version__.split(".")[0]) > 12:
        pytest.skip("Pillow 13 resizes in another order when left to itself")
    photo = Image.fromarray(skimage.data.astronaut())
    for box in [(0, 0, 70, 400), (100, 50, 500, 90), (10, 10, 170, 500), (3, 3, 163, 163)]:
        crop = photo.crop(box)
        np.testing.assert_array_equal(
            resize_face(crop, 160), crop.resize((160, 160), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_what_is_no_image_raises_oserror(tmp_path, content):
    path = tmp_path / "bad.jpg"
    if content is None:
        Image.new("RGB", (64, 64), "blue").save(path)
        content = path.read_bytes()[:-200]  # truncated
    path.write_bytes(content)
    with pytest.raises(OSError):
        load_photo(path)


@pytest.mark.parametrize(("mode", "values"), [
    ("F", 1.0), ("F", 255.0), ("I", 255), ("I", 65535), ("I;16", 255), ("I;16", 4095),
    ("I;16", 65535)])
def test_gray_values_of_any_scale_are_read(tmp_path, mode, values):
    shades = np.linspace(0, 1, 64).reshape(8, 8)
    dtype = {"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode]
    photo = Image.fromarray((shades * values).astype(dtype))
    assert photo.mode == mode
    photo.save(tmp_path / "a.tif")
    expected = (shades * 255).round()
    read = np.asarray(load_photo(tmp_path / "a.tif"), float)
    assert read.shape == (8, 8, 3) and np.abs(read - expected[..., None]).max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_gray_values_below_zero_are_refused_and_not_black(tmp_path, dtype):
    photo = Image.fromarray(np.array([[-1, 0], [0, 1]], dtype))
    photo.save(tmp_path / "a.tif")
    with pytest.raises(OSError, match=r"^cannot read image: expected gray .* -1\.\.1; shift"):
        load_photo(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"^expected gray values .* got -1\.\.1"):
        as_photo(photo)


@pytest.mark.parametrize("after", [False, True])
def test_a_png_with_a_long_text_is_read(tmp_path, after):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    text = PngImagePlugin.PngInfo()
    text.add_text("notes", "x" * 2_000_000, zip=True)
    photo.save(tmp_path / "a.png", pnginfo=text)
    content = (tmp_path / "a.png").read_bytes()
    if after:  # the picture: move the text behind it
        start = content.index(b"zTXt") - 4
        end = start + 12 + int.from_bytes(content[start:start + 4], "big")
        content = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    (tmp_path / "a.png").write_bytes(content)
    for source in (tmp_path / "a.png", io.BytesIO(content)):
        np.testing.assert_array_equal(load_photo(source), photo)
    assert upright_size(tmp_path / "a.png") == (30, 20)
    assert not has_exif_rotation(tmp_path / "a.png")


@pytest.mark.parametrize("read", [load_photo, upright_size, has_exif_rotation])
def test_whatever_a_decoder_raises_is_an_oserror(tmp_path, read):
    write_bomb(tmp_path / "a.png")
    with pytest.raises(OSError, match="decompression bomb"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.heic"])
def test_heic_is_known_by_its_first_bytes(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    content = b"\0\0\0\x18ftypheic" + bytes(20)
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, io.BytesIO(content)):
        with pytest.raises(OSError, match="pip install pillow-heif"):
            load_photo(source)
    (tmp_path / name).write_bytes(b"no image at all")
    with pytest.raises(OSError, match="cannot identify"):
        load_photo(tmp_path / name)


@pytest.mark.parametrize(("ending", "mode"), [
    (".pgm", "L"), (".ppm", "RGB"), (".tga", "RGB"), (".dib", "RGB"), (".apng", "RGB"),
    (".j2c", "RGB"), (".jpx", "RGB")])
def test_other_formats_that_pillow_reads_are_found(tmp_path, ending, mode):
    path = tmp_path / f"a{ending}"
    Image.new(mode, (16, 12), "white").save(path)
    assert load_photo(path).size == (16, 12)
    assert find_images(tmp_path)[0] == [Path(path.name)]
    if ending not in (".tga", ".dib"):  # they begin with numbers only
        assert starts_as_picture(path)


def test_a_bitmap_with_another_ending_is_known_and_a_word_is_not(tmp_path):
    Image.new("RGB", (16, 12)).save(tmp_path / "a.dat", "BMP")
    (tmp_path / "b.dat").write_text("BMW and others, P5 and P6")
    assert starts_as_picture(tmp_path / "a.dat") and not starts_as_picture(tmp_path / "b.dat")


@pytest.mark.parametrize("name", ["DDS", "PCX", "SGI", "JPEG2000", "TIFF", "PNG", "GIF", "JPEG"])
def test_pictures_with_another_ending_are_known(tmp_path, name):
    Image.new("RGB", (16, 12)).save(tmp_path / "a.dat", name)
    assert starts_as_picture(tmp_path / "a.dat")


@pytest.mark.parametrize("quarter", [90, 180, 270])
def test_turned_back(quarter):
    photo = np.zeros((50, 80, 3), np.uint8)
    photo[10:20, 30:35] = 255
    turned = np.asarray(Image.fromarray(photo).rotate(quarter, expand=True))
    rows, columns = np.nonzero(turned[..., 0])
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    np.testing.assert_array_equal(turned_back(box, (80, 50), quarter), (30, 10, 35, 20))
