"""Image files of a folder: found in a stable order, and written."""

import errno
import json
from contextlib import suppress
from pathlib import Path

from PIL import Image

from preprocess.face import HEIF_BRANDS, IMAGE_ENDINGS
from utils.files import entries, files_below, replaced

RECORD_NAME = ".written_by_demo"
JPEG = {"quality": 92, "subsampling": 0}  # thin coloured lines stay sharp
SAVED_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# JPEG, PNG, GIF, TIFF and the raw formats of cameras, JPEG XL, JPEG 2000 as a file and as a bare
# stream, Photoshop, DDS, PCX, SGI, OpenEXR, and the two portable maps of many gray values or
# colours.
PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\xff\x0a",
                  b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"8BPS",
                  b"DDS ", b"\x0a\x05\x01\x08", b"\x01\xda", b"v/1\x01", b"FUJIFILM",
                  b"P5\n", b"P5 ", b"P6\n", b"P6 ")
PICTURE_BRANDS = (*HEIF_BRANDS, b"ftypavif", b"ftypcrx ")
SAVE_OPTIONS = {".jpg": JPEG, ".jpeg": JPEG, ".jpe": JPEG, ".jfif": JPEG, ".webp": {"quality": 92}}

# No file of this name can be written here: it is too long, a folder has it, a file has the name
# of its folder, or the disk's format forbids a character of it.
NAME_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL)


def find_images(folder, recursive=False, leave_out=None):
    """Image files of a folder, by their endings, upper or lower case.

    Args:
        folder: existing folder. Links to folders are followed, each folder is searched once.
        recursive: also search the folders in it; what the demo has written there is left out.
        leave_out: folder that is not searched.
    Returns:
        (names of the images, names of other files that start as a picture does): two sorted lists
        of Path relative to the folder.
    Raises:
        ValueError: there is no image.
    """
    images, others = [], []
    paths = list(files_below(folder, leave_out)) if recursive else entries(folder)[-1]
    drawn = written_below(folder, paths)
    for path in paths:
        if path in drawn:
            continue
        if has_image_ending(path):
            images.append(path.relative_to(folder))
        elif starts_as_picture(path):
            others.append(path.relative_to(folder))
    if not images:
        hint = ""
        if others:
            hint = (f"; {len(others)} other files look like pictures, such as '{min(others)}': "
                    "convert them to one of these formats")
        elif not recursive and any(map(has_image_ending, files_below(folder, leave_out))):
            hint = "; there are some in folders below, add --recursive"
        raise ValueError(f"no image ({', '.join(IMAGE_ENDINGS)}) in '{folder}'{hint}")
    return (sorted(images, key=lambda path: path.parts),
            sorted(others, key=lambda path: path.parts))


def written_below(folder, paths):
    """Those of the paths that the demo has written to folders below `folder`.

    Args:
        folder: existing folder.
        paths: list of Path, of all files below it.
    """
    written = set()
    for record in paths:
        if record.name == RECORD_NAME and record.parent != Path(folder):
            with suppress(OSError, ValueError):
                written |= {record.parent / name for name in json.loads(record.read_text())}
    return written & set(paths)


def has_image_ending(path):
    """Whether a file's ending is that of an image that can be read."""
    return path.suffix.lower() in IMAGE_ENDINGS


def starts_as_picture(path):
    """Whether the first bytes of a file are those of a known picture format."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(PICTURE_STARTS) or start[4:12] in PICTURE_BRANDS \
        or (start.startswith(b"RIFF") and start[8:12] == b"WEBP") \
        or (start.startswith(b"BM") and start[6:10] == b"\0\0\0\0")  # BMP; "BM" may begin a word


def picture_names(names):
    """Names of the annotated copies of photos: another ending if a format is for reading only.

    Args:
        names: list of Path. p.jp2 becomes p.jp2.jpg, or if another photo has this name,
            p.jp2.jpg.jpg, on disks that do not tell case apart too.
    Returns:
        dict name -> Path.
    """
    pictures = {name: name for name in names if name.suffix.lower() in SAVED_ENDINGS}
    taken = {str(name).casefold() for name in pictures}
    for name in names:
        if name not in pictures:
            picture = name.with_name(f"{name.name}.jpg")
            while str(picture).casefold() in taken:
                picture = picture.with_name(f"{picture.name}.jpg")
            pictures[name] = picture
            taken.add(str(picture).casefold())
    return pictures


def save_picture(picture, path):
    """Write a PIL.Image in the format of the path's ending, whole or not at all.

    Raises:
        ValueError: the format cannot hold the picture, for example because it is too wide, or
            there can be no file of this name, for example because it is too long.
        OSError: the disk is full, or the folder cannot be written to.
    """
    suffix = path.suffix.lower()
    picture.info.pop("compression", None)  # the photo's own may be for black and white only
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as temporary:
            try:
                picture.save(temporary, Image.registered_extensions()[suffix],
                             icc_profile=picture.info.get("icc_profile"),
                             **SAVE_OPTIONS.get(suffix, {}))
            except OSError as error:
                if error.errno is None:  # an error of the encoder, not of the system
                    raise ValueError(" ".join(str(error).split())) from error
                raise
    except OSError as error:
        if error.errno in NAME_ERRORS:
            raise ValueError(f"cannot write '{path.name}': {error.strerror}") from error
        raise
