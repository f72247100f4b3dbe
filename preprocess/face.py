"""Face geometry: how a photo is read, rotated upright and cropped.

Preparation, training, testing and the demo all use the same `load_photo`, `crop_face` and
`resize_face`. Coordinates are xyxy pixels, 0-based, x2 and y2 exclusive. An `aligned_bbox` lies
in the rotated, expanded canvas, which is `PIL.Image.rotate(roll_deg, expand=True)` of the photo.
"""

import errno
import functools
import hashlib
import io
import math
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

EXIF_ORIENTATION = 0x0112
TIFF_SIZE = (0x0100, 0x0101)  # tags of the stored width and height
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
           4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
           6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}  # EXIF orientation: what makes the photo upright
METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")  # may hold an orientation
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
CROP_RESAMPLING = Image.Resampling.BICUBIC  # the original scripts' rotation filter
RESIZE_RESAMPLING = Image.Resampling.BICUBIC  # antialiased when shrinking
ROLL_DECIMALS, BOX_DECIMALS = 4, 2  # in an aligned list
# Bytes 4 to 12 of HEIC files, which PIL reads with the package pillow-heif.
HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftyphevx",
               b"ftyphevm", b"ftyphevs", b"ftypmif1", b"ftypmsf1")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib",
                 ".tif", ".tiff", ".gif", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx",
                 ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".heic", ".heif")
MIN_FACE = 20  # pixels, side of the smallest face looked for
# Errors of the system that are about a path or a file, not about the moment: it is a folder, leads
# nowhere, or sends PIL to a place before its start.
DAMAGE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
MAX_CROP = 89_000_000  # pixels; a larger box is in other units, and would fill the memory
MAX_BOX_RATIO = 3  # of a face's box to the photo's longer side
RGB_MODES = ("RGB", "RGBA", "RGBX", "P", "PA")  # whose colour profile is one of RGB
GRAY_SCALES = (1.0, 255.0, 4095.0, 65535.0)  # largest values of float, 8, 12 and 16 bits

# PIL warns above 89 million pixels, which may be a panorama, and refuses twice as many.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def load_photo(source):
    """Read an image file as upright RGB.

    Args:
        source: path or binary file object in any format that PIL reads. Of an animation the
            first frame is read. 16-bit grayscale is scaled to 8 bits; behind transparent pixels
            the photo is black.
    Returns:
        PIL.Image in mode RGB, EXIF orientation applied.
    Raises:
        OSError: the file is missing, is not an image, is truncated, or has negative gray values.
        MemoryError: there is not enough memory for it.
    """
    return _from_file(source, upright_rgb)


def upright_rgb(photo):
    """A PIL.Image in mode RGB, EXIF orientation applied.

    Raises:
        OSError: it was opened from a file that is damaged.
        ValueError: another error of the file, or see to_rgb.
    """
    try:
        photo.load()  # first: the getexif of a PNG does it too, but hides its errors
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # SyntaxError of a PNG, RuntimeError of an AVIF file
        raise OSError(f"cannot read image: {error}") from error
    return to_rgb(upright(photo))


def _from_file(source, read):
    """The result of read(), called with the PIL.Image of a file.

    Raises:
        OSError: whatever the file makes PIL raise.
        MemoryError: there is not enough memory, which says nothing about the file.
    """
    try:
        try:
            with _opened(source) as photo:
                return read(photo)
        except ValueError as error:
            if "text" not in str(error).lower():
                raise
            with _without_text(source) as photo:
                return read(photo)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # on broken files decoders raise errors of any class
        raise OSError(f"cannot read image: {error}") from error


class MissingPackage(OSError):
    """A photo needs a package that is not installed."""


def stop_unless_damaged(error, path, folder):
    """Raise an error that says nothing about a photo, so that the photo is not left out for it.

    Such are full memory, a refused permission, a package that is missing, what a disk or a network
    reports, and a missing photo in a folder that is gone or empty, as after a disk was
    disconnected.

    Args:
        error: OSError or MemoryError of load_photo or upright_size.
        path: file of the photo, for the message.
        folder: that holds all photos.
    Raises:
        OSError: names the photo and the way out.
    """
    if isinstance(error, MemoryError):
        reason = "not enough memory"
    elif isinstance(error, MissingPackage):
        reason = str(error)
    elif isinstance(error, FileNotFoundError) and _is_empty(folder):
        reason = f"all of '{folder}' is gone, perhaps with its disk"
    elif error.errno is None or error.errno in DAMAGE:  # PIL's own errors have no number
        return
    else:
        reason = error.strerror
    raise OSError(f"'{path}': {reason}; the photo itself may be good, so it is not left out. Mend "
                  "this, or move the photo away, and start again: finished work is kept"
                  ) from error


def _is_empty(folder):
    """Whether a folder holds nothing, or is not there."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _opened(source):
    """PIL.Image of a file, also of HEIC if pillow-heif is installed.

    Raises:
        MissingPackage: it is not.
    """
    try:
        return Image.open(source)
    except UnidentifiedImageError as error:
        if not _starts_as_heif(source):
            raise
        try:
            import pillow_heif
        except ImportError:
            raise MissingPackage("HEIC needs a package: pip install pillow-heif") from error
        pillow_heif.register_heif_opener()
        return Image.open(source)


def _starts_as_heif(source):
    """Whether a path or file object is HEIC by its first bytes; photos may have any ending."""
    if hasattr(source, "read"):
        try:
            source.seek(0)
        except OSError:  # of a stream, which PIL has read to its end
            return False
        start = source.read(12)
        source.seek(0)
    else:
        with Path(source).open("rb") as file:
            start = file.read(12)
    return start[4:] in HEIF_BRANDS


def _without_text(source):
    """A PNG without its texts: PIL refuses those of more than a megabyte, picture and all."""
    if hasattr(source, "read"):
        source.seek(0)
    content = source.read() if hasattr(source, "read") else Path(source).read_bytes()
    kept, place = [content[:8]], 8
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place:place + 4], "big")
        if content[place + 4:place + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(content[place:end])
        place = end
    return Image.open(io.BytesIO(b"".join(kept)))


def upright(photo):
    """PIL.Image turned and mirrored by its EXIF orientation; the result has no orientation.

    PIL's own exif_transpose also rewrites all other EXIF data, and fails if a byte of them is
    wrong.
    """
    step = UPRIGHT.get(_orientation(photo))
    if step is None:
        return photo
    turned = photo.transpose(step)
    for name in METADATA:
        turned.info.pop(name, None)
    return turned


def upright_size(path):
    """(width, height) of load_photo's result, read from the file's header.

    Raises:
        OSError: the file is missing, or is not an image.
    """
    return _from_file(path, _upright_size)


def _upright_size(photo):
    # The getexif of a PNG decodes the whole photo, as EXIF data may follow it; that of the base
    # class does not.
    if photo.format == "PNG" and "exif" not in photo.info and _ends_in_exif(photo.fp):
        photo.getexif()
    # PIL may report the size of a TIFF already rotated; its tags hold the stored size.
    is_sideways = _orientation(photo, Image.Image.getexif) in SIDEWAYS
    stored = (tuple(photo.tag_v2[tag] for tag in TIFF_SIZE) if photo.format == "TIFF"
              else photo.size)
    return stored[::-1] if is_sideways else stored


def _ends_in_exif(file):
    """Whether a PNG has EXIF data behind its pixels; the place in the file does not change."""
    place = file.tell()
    try:
        file.seek(8)  # behind the signature
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            if head[4:] == b"eXIf":
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)  # its data and checksum
        return False
    finally:
        file.seek(place)


def _orientation(photo, read_exif=lambda photo: photo.getexif()):
    try:
        return read_exif(photo).get(EXIF_ORIENTATION, 1)
    except (struct.error, SyntaxError, TypeError, ValueError, LookupError, OSError):
        return 1  # unreadable EXIF data


def to_rgb(photo):
    """PIL.Image of any mode as mode RGB, 8 bits per channel, black behind transparent pixels.

    It keeps the colour profile, unless that is of another kind of colours.

    Raises:
        ValueError: gray values below zero, whose scale is not known.
    """
    profile = photo.info.get("icc_profile") if photo.mode in RGB_MODES else None
    if photo.mode.startswith("I;16") or photo.mode in ("I", "F"):
        rgb = Image.fromarray(_as_8_bits(np.asarray(photo, np.float32))).convert("RGB")
    elif photo.mode in ("RGBA", "LA", "PA") or "transparency" in photo.info:
        photo = photo.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", photo.size, (0, 0, 0, 255)),
                                    photo).convert("RGB")
    else:
        rgb = photo.convert("RGB")
    rgb.info.pop("icc_profile", None)
    if profile:
        rgb.info["icc_profile"] = profile
    return rgb


def _as_8_bits(values):
    """uint8 of gray values whose largest tells their scale, see GRAY_SCALES."""
    values = np.nan_to_num(values, posinf=0, neginf=0)
    if values.min(initial=0) < 0:
        raise ValueError(f"expected gray values from 0 up to 1, 255, 4095 or 65535, got "
                         f"{values.min():g}..{values.max():g}; shift and scale them first")
    scale = next((scale for scale in GRAY_SCALES if values.max() <= scale), GRAY_SCALES[-1])
    return (values * (255 / scale)).round().clip(0, 255).astype(np.uint8)


def has_exif_rotation(path):
    """Whether the photo in a file has an EXIF orientation that turns or mirrors it.

    Raises:
        OSError: the file is missing, or is not an image.
    """
    return _from_file(path, lambda photo: _orientation(photo) in UPRIGHT)


def roll_from_landmarks(landmarks):
    """Angle of the line between the eyes.

    Args:
        landmarks: (5, 2) xy, or (2, 2): image-left eye first, image-right eye second.
    Returns:
        roll_deg in (-180, 180], positive when the image-right eye is lower;
        `PIL.Image.rotate(roll_deg)` levels the eyes.
    """
    (left_x, left_y), (right_x, right_y) = landmarks[0], landmarks[1]
    return math.degrees(math.atan2(right_y - left_y, right_x - left_x))


def as_listed(roll_deg, bbox):
    """Angle and (4,) box, rounded as in an aligned list, so that training reads the same."""
    return (round(float(roll_deg), ROLL_DECIMALS),
            [round(float(value), BOX_DECIMALS) for value in bbox])


def box_problem(bbox, size=None, names=("x1", "y1", "x2", "y2")):
    """Why a box cannot be around a face, or None.

    Args:
        bbox: x1, y1, x2, y2, pixels.
        size: (width, height) of the photo, if known.
        names: four words for the numbers, for the message.
    """
    x1, y1, x2, y2 = bbox
    if not np.isfinite(bbox).all():
        return f"{', '.join(names)} are not finite"
    if x1 >= x2 or y1 >= y2:
        return (f"{names[2]} is not right of {names[0]}, or {names[3]} not below {names[1]} "
                "(expected x1 y1 x2 y2, not width and height)")
    if min(x2 - x1, y2 - y1) <= 1:
        return "the box is no larger than a pixel (expected pixels, not shares of the photo)"
    if size and (x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0):
        return f"the box is outside the photo of {size[0]} x {size[1]} pixels"
    if size and max(x2 - x1, y2 - y1) > MAX_BOX_RATIO * max(size):
        return (f"the box is more than {MAX_BOX_RATIO} times as large as the photo of {size[0]} x "
                f"{size[1]} pixels (expected pixels of this photo)")
    return None


def iou(bboxes, bbox):
    """Intersection over union of (..., 4) boxes with one (4,) box, xyxy: (...) in [0, 1]."""
    sides = np.minimum(bboxes[..., 2:], bbox[2:]) - np.maximum(bboxes[..., :2], bbox[:2])
    shared = sides.clip(min=0).prod(-1)
    areas = (bboxes[..., 2:] - bboxes[..., :2]).prod(-1)
    return shared / (areas + (bbox[2:] - bbox[:2]).prod() - shared)


def rotation_to_canvas(size, roll_deg):
    """The affine map of PIL.Image.rotate(roll_deg, expand=True).

    Args:
        size: (width, height) of the photo.
        roll_deg: degrees, counter-clockwise.
    Returns:
        canvas_size: (width, height) of the rotated, expanded canvas.
        inverse: (2, 3) float64, canvas xy to photo xy.
    """
    width, height = size
    radians = -math.radians(roll_deg % 360)
    # PIL rounds to 15 digits so that right angles are exact.
    cos, sin = round(math.cos(radians), 15), round(math.sin(radians), 15)
    linear = np.array([[cos, sin], [-sin, cos]])
    centre = np.array([width / 2, height / 2])
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float)
    # PIL uses the inverse map here; as its mirror image it has the same extent.
    turned = (corners - centre) @ linear.T + centre
    canvas_w, canvas_h = (np.ceil(turned.max(0)) - np.floor(turned.min(0))).astype(int)
    if roll_deg % 180 == 0:
        canvas_w, canvas_h = width, height
    elif roll_deg % 90 == 0:
        canvas_w, canvas_h = height, width
    offset = centre - linear @ np.array([canvas_w / 2, canvas_h / 2])
    return (int(canvas_w), int(canvas_h)), np.column_stack([linear, offset])


def rotate_photo(photo, roll_deg):
    """The whole photo (PIL.Image) rotated by roll_deg: the canvas of aligned boxes."""
    return photo.rotate(roll_deg, expand=True, resample=CROP_RESAMPLING)


def expand_bbox(bbox, margin_ratio):
    """Add margin_ratio of the box's width and height on each of its sides.

    Args:
        bbox: x1, y1, x2, y2 in pixels.
        margin_ratio: share of the box's width and height; 0 changes nothing.
    Returns:
        (x1, y1, x2, y2) floats; may overhang the image.
    """
    x1, y1, x2, y2 = (float(value) for value in bbox)
    margin_x, margin_y = (x2 - x1) * margin_ratio, (y2 - y1) * margin_ratio
    return x1 - margin_x, y1 - margin_y, x2 + margin_x, y2 + margin_y


def crop_pixels(aligned_bbox, margin_ratio):
    """(x1, y1, x2, y2) ints, the pixels of the canvas that crop_face cuts out; see there."""
    return tuple(round(value) for value in expand_bbox(aligned_bbox, margin_ratio))


def crop_problem(aligned_bbox, photo_size, roll_deg, margin_ratio):
    """Why crop_face cannot cut a box out of a photo of photo_size (width, height), or "" if it can.

    The other arguments are those of crop_face.
    """
    (width, height), _ = rotation_to_canvas(photo_size, roll_deg)
    x1, y1, x2, y2 = aligned_bbox
    left, top, right, bottom = crop_pixels(aligned_bbox, margin_ratio)
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        problem = f"lies outside the {width}x{height} image"
    elif right <= left or bottom <= top:
        problem = "is smaller than a pixel"
    elif (right - left) * (bottom - top) > MAX_CROP:
        problem = f"of the {width}x{height} image is far too large"
    else:
        return ""
    return f"box {x1:g} {y1:g} {x2:g} {y2:g} {problem}"


def crop_face(photo, aligned_bbox, roll_deg, margin_ratio):
    """Cut a face out of the rotated photo without rotating the whole photo.

    The pixels equal `photo.rotate(roll_deg, expand=True, resample=BICUBIC).crop(box)`, the crop
    of the original two-pass scripts. The cost depends on the size of the box only, except at 0,
    90, 180 and 270 degrees, at which the whole photo is turned or copied.

    Args:
        photo: PIL.Image, RGB, upright (see load_photo).
        aligned_bbox: x1, y1, x2, y2 in the rotated, expanded canvas.
        roll_deg: degrees, see roll_from_landmarks.
        margin_ratio: share of the box's width and height added on each side.
    Returns:
        PIL.Image at the photo's resolution; pixels outside the photo are black.
    Raises:
        ValueError: the box, rounded to pixels, is empty.
    """
    x1, y1, x2, y2 = crop_pixels(aligned_bbox, margin_ratio)
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"empty face box {x1} {y1} {x2} {y2}")
    if roll_deg % 90 == 0:
        return rotate_photo(photo, roll_deg).crop((x1, y1, x2, y2))  # a transpose: exact
    _, inverse = rotation_to_canvas(photo.size, roll_deg)
    inverse[:, 2] += inverse[:, :2] @ (x1, y1)
    return photo.transform((x2 - x1, y2 - y1), Image.Transform.AFFINE,
                           tuple(inverse.ravel()), resample=CROP_RESAMPLING)


def resize_face(crop, size):
    """Square (size, size, 3) uint8 RGB array of a crop, stretched as the original scripts do.

    The width first, then the height, in two calls: in one, Pillow 13 takes the height first for
    some crops, Pillow 10 to 12 never do, and the pixels in between are rounded.
    """
    wide = crop.resize((size, crop.height), RESIZE_RESAMPLING)
    return np.asarray(wide.resize((size, size), RESIZE_RESAMPLING))


@functools.cache
def crop_fingerprint():
    """Checksum of the pixels of a fixed face, as text.

    Installations whose libraries cut and resize alike have the same one, so that a cache of crops
    can tell whether it still holds what would be cut today.
    """
    rows, columns, channels = np.indices((211, 157, 3))
    pattern = (rows * columns * 7 + rows * 31 + channels * 89) // 5 % 256
    photo = Image.fromarray(pattern.astype(np.uint8))
    digest = hashlib.sha256()
    for bbox, roll_deg, size in (((20, 9, 130, 200), 0, 48), ((5, 40, 150, 120), -17.3, 160)):
        digest.update(resize_face(crop_face(photo, bbox, roll_deg, 0.1), size).tobytes())
    return digest.hexdigest()[:16]


def to_canvas(points, size, roll_deg):
    """Move points of the photo to the rotated, expanded canvas.

    Args:
        points: (..., 2) xy in the photo.
        size: (width, height) of the photo.
        roll_deg: degrees, see roll_from_landmarks.
    Returns:
        (..., 2) float64 xy.
    """
    _, inverse = rotation_to_canvas(size, roll_deg)
    # The inverse of a rotation is its transpose: multiplying from the right rotates back.
    return (np.asarray(points, float) - inverse[:, 2]) @ inverse[:, :2]


def turned_bbox(bbox, size, roll_deg):
    """A box with the same side lengths and the same centre, in the rotated canvas.

    Args:
        bbox: x1, y1, x2, y2 in the photo.
        size, roll_deg: as in to_canvas.
    Returns:
        (4,) float64 aligned_bbox.
    """
    first, second = np.asarray(bbox, float).reshape(2, 2)
    centre, half = to_canvas((first + second) / 2, size, roll_deg), (second - first) / 2
    return np.concatenate([centre - half, centre + half])


def turned_back(bbox, size, quarter):
    """A box of the photo turned by a multiple of 90 degrees, in the photo's own pixels.

    Args:
        bbox: x1, y1, x2, y2 in photo.rotate(quarter, expand=True).
        size: (width, height) of the photo itself.
        quarter: degrees, counter-clockwise.
    Returns:
        (4,) float64 xyxy.
    """
    turned_size = rotation_to_canvas(size, quarter)[0]
    corners = to_canvas(np.reshape(bbox, (2, 2)), turned_size, -quarter)
    return np.concatenate([corners.min(0), corners.max(0)])


def photo_quad(aligned_bbox, size, roll_deg):
    """Corners of an aligned box in the pixels of the photo.

    Args:
        aligned_bbox: x1, y1, x2, y2 in the rotated, expanded canvas.
        size: (width, height) of the photo.
        roll_deg: degrees, see roll_from_landmarks.
    Returns:
        (4, 2) float64 xy, clockwise from the top left of the face.
    """
    _, inverse = rotation_to_canvas(size, roll_deg)
    return _corners(aligned_bbox) @ inverse[:, :2].T + inverse[:, 2]


def _corners(bbox):
    x1, y1, x2, y2 = (float(value) for value in bbox)
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
