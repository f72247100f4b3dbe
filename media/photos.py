"""Image files of a folder: found in a stable order, and written."""

import os
from pathlib import Path

from PIL import Image

from preprocess.face import IMAGE_ENDINGS
from utils.files import replaced

JPEG = {"quality": 92, "subsampling": 0}  # thin coloured lines stay sharp
SAVE_OPTIONS = {".jpg": JPEG, ".jpeg": JPEG, ".jpe": JPEG, ".jfif": JPEG, ".webp": {"quality": 92}}


def find_images(folder, recursive=False, leave_out=None):
    """Image files of a folder, by their endings, upper or lower case.

    Args:
        folder: existing folder.
        recursive: also search the folders in it.
        leave_out: folder that is not searched.
    Returns:
        list of Path relative to the folder, sorted.
    Raises:
        ValueError: there is no image.
    """
    left_out = Path(leave_out).resolve() if leave_out else None
    found, deeper = [], 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name).resolve() != left_out]
        images = [Path(place, name).relative_to(folder) for name in names
                  if Path(name).suffix.lower() in IMAGE_ENDINGS]
        if recursive or Path(place) == Path(folder):
            found += images
        elif images:
            deeper = len(images)
            break
    if not found:
        hint = "; there are some in folders below, add --recursive" if deeper else ""
        raise ValueError(f"no image ({', '.join(IMAGE_ENDINGS)}) in '{folder}'{hint}")
    return sorted(found, key=lambda path: path.parts)


def save_picture(picture, path):
    """Write a PIL.Image in the format of the path's ending, whole or not at all.

    Raises:
        ValueError: the format cannot hold the picture, for example because it is too wide.
        OSError: the disk is full, or the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    picture.info.pop("compression", None)  # the photo's own may be for black and white only
    with replaced(path) as temporary:
        try:
            picture.save(temporary, Image.registered_extensions()[suffix],
                         **SAVE_OPTIONS.get(suffix, {}))
        except OSError as error:
            if error.errno is None:  # an error of the encoder, not of the system
                raise ValueError(" ".join(str(error).split())) from error
            raise
