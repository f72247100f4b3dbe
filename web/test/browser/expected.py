"""Draw scenes for page.test.js, and write what AgeEstimator finds in them and in the samples.

    python web/test/browser/expected.py OUT

OUT gets the pictures, camera.mjpeg (frames for Chromium's fake camera) and expected.json.
"""

import argparse
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

import predictor  # noqa: E402

SAMPLES = ROOT / "misc" / "samples"
EXIF_ORIENTATION = 0x0112
CAMERA_SIZE, CAMERA_FRAMES = (640, 480), 8


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--min_face_ratio", type=float, default=0.0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    draw_scenes(args.output_dir)
    for sample in SAMPLES.glob("*.[jp]*g"):
        shutil.copy(sample, args.output_dir)
    names = sorted(path.name for path in args.output_dir.iterdir()
                   if path.suffix in (".jpg", ".png", ".webp"))
    estimator = predictor.AgeEstimator(device="cpu", min_face_ratio=args.min_face_ratio)
    faces = {name: [as_dict(face) for face in estimator(args.output_dir / name)] for name in names}
    too_wide().save(args.output_dir / "too_wide.png")
    (args.output_dir / "expected.json").write_text(json.dumps(faces))


def draw_scenes(folder):
    astronaut = Image.open(SAMPLES / "astronaut.png").convert("RGB")
    hopper = Image.open(SAMPLES / "grace_hopper.jpg").convert("RGB")
    turned(hopper, 33).save(folder / "scene_turned.png")
    hopper.transpose(Image.Transpose.ROTATE_90).save(folder / "scene_lying.png")
    hopper.convert("L").save(folder / "scene_gray.png")
    group(astronaut, hopper).save(folder / "scene_group.png")
    large(astronaut, hopper).save(folder / "scene_large.jpg", quality=92)
    landscape((600, 400)).save(folder / "scene_empty.png")
    faded(hopper).save(folder / "scene_faded.png")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # the camera was held upright, the pixels are stored lying
    astronaut.transpose(Image.Transpose.ROTATE_90).save(folder / "scene_exif.jpg", quality=95,
                                                        exif=exif)
    exif[EXIF_ORIENTATION] = 8
    astronaut.transpose(Image.Transpose.ROTATE_270).save(folder / "scene_lying.webp", lossless=True,
                                                         exif=exif)
    exif[EXIF_ORIENTATION] = 2
    astronaut.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "scene_mirrored.webp",
                                                              lossless=True, exif=exif)
    (folder / "camera.mjpeg").write_bytes(camera_frame(hopper) * CAMERA_FRAMES)


def landscape(size):
    """A sky, hills and a sun: nothing in it is a face."""
    width, height = size
    rows = np.linspace(0, 1, height)[:, None, None]
    sky = (1 - rows) * (90, 150, 220) + rows * (220, 230, 240)
    picture = Image.fromarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((0.1 * width, 0.1 * height, 0.1 * width + 60, 0.1 * height + 60), fill="gold")
    for x, y, colour in ((0.2, 0.75, (70, 130, 70)), (0.75, 0.8, (90, 150, 80))):
        draw.ellipse(((x - 0.6) * width, y * height, (x + 0.6) * width, 2 * height), fill=colour)
    return picture


def turned(photo, degrees):
    return photo.rotate(degrees, Image.Resampling.BICUBIC, expand=True)


def group(astronaut, hopper):
    """Seven faces of many sizes and angles before a landscape."""
    scene = landscape((940, 700))
    heads = {"a": astronaut.crop((130, 20, 330, 220)), "h": hopper.crop((120, 60, 410, 350))}
    for head, side, degrees, place in (
            ("a", 200, 0, (20, 20)), ("h", 150, -20, (250, 30)), ("a", 90, 12, (480, 40)),
            ("h", 60, 0, (620, 60)), ("h", 260, 8, (40, 300)), ("a", 120, -35, (400, 320)),
            ("h", 100, 55, (650, 350))):
        scene.paste(turned(heads[head].resize((side, side)), degrees), place)
    return scene


def large(astronaut, hopper):
    """More than a 50th of the shorter side counts as a face here, not 20 pixels."""
    scene = landscape((2400, 1800))
    scene.paste(turned(hopper.resize((1024, 1200)), 10), (100, 300))
    scene.paste(turned(astronaut, -15), (1500, 200))
    scene.paste(astronaut.resize((300, 300)), (1500, 1100))
    return scene


def faded(photo):
    """Transparent towards the right: laid on black wherever it is read."""
    opacity = np.broadcast_to(np.linspace(255, 120, photo.width).astype(np.uint8),
                              (photo.height, photo.width))
    layered = photo.copy()
    layered.putalpha(Image.fromarray(opacity))
    return layered


def too_wide():
    """More than the 65,535 pixels that a canvas of Chromium may have, and a face at the end."""
    scene = Image.new("RGB", (70_000, 240), (90, 100, 110))
    scene.paste(Image.open(SAMPLES / "astronaut.png").crop((130, 20, 330, 220)), (69_750, 20))
    return scene


def camera_frame(photo):
    frame = Image.new("RGB", CAMERA_SIZE, (90, 100, 110))
    frame.paste(photo.resize((410, 480)), (115, 0))
    data = io.BytesIO()
    frame.save(data, "JPEG", quality=92)
    return data.getvalue()


def as_dict(face):
    return {name: [float(p) for p in value] if name == "probs" else value
            for name, value in dict(face).items()}


if __name__ == "__main__":
    main()
