"""How fast the demo is: a stream end to end, one face on one core, a folder of photos.

    python -m benchmarks.demo_speed --resume MODEL.pth

The clip and the folder are made from misc/samples: panned, zoomed and turned portraits.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import demo
from media.tracking import FaceTracker
from media.video import Frames
from predictor import AgeEstimator, as_photo
from utils.cli import HelpFormatter, run_main
from utils.pipeline import available_cores

SAMPLES = Path(__file__).parent.parent / "misc" / "samples"
FRAME_SIZE = 640, 480


def moving_portrait(photo, size, phase):
    """A frame of a camera that pans, zooms and turns before a photo.

    Args:
        photo: PIL.Image.
        size: (width, height) of the frame.
        phase: 0..1, once around.
    Returns:
        (H, W, 3) uint8 RGB.
    """
    angle = 2 * np.pi * phase
    zoom = 1.1 + 0.25 * np.sin(angle)
    scale = zoom * size[1] / photo.height
    motion = cv2.getRotationMatrix2D((photo.width / 2, photo.height / 2), 12 * np.sin(2 * angle),
                                     scale)
    motion[:, 2] += np.array(size) / 2 - np.array(photo.size) / 2
    motion[0, 2] += 60 * np.cos(angle)
    motion[1, 2] += 20 * np.sin(3 * angle) + 0.15 * size[1]
    return cv2.warpAffine(np.asarray(photo), motion, size, borderMode=cv2.BORDER_REPLICATE)


def write_clip(path, photo, frames, size=FRAME_SIZE, fps=30):
    """An MP4 clip of moving_portrait, once around in 150 frames, at most 3 pixels a frame."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    for index in range(frames):
        frame = moving_portrait(photo, size, index / 150)
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def stream_rate(folder, estimator, frames):
    """(frames a second, CPU ms a frame) of `demo.py --video --output_dir`, the model loaded.

    Read, detect, follow, estimate, draw, write.
    """
    write_clip(folder / "clip.mp4", as_photo(SAMPLES / "astronaut.png"), frames)
    args = demo.parse_args(["--video", str(folder / "clip.mp4"),
                            "--output_dir", str(folder / "out")])
    args.output_dir.mkdir()
    summary = demo.StreamSummary()
    started, cpu_started = time.perf_counter(), time.process_time()
    with Frames(args.video) as source, FaceTracker(estimator, estimator.age_bins) as tracker:
        stream = demo.annotated_frames(source, tracker, summary, plot=True)
        demo.write_stream(stream, source, args)
    cpu = time.process_time() - cpu_started
    return summary.frame_count / (time.perf_counter() - started), 1000 * cpu / summary.frame_count


def face_milliseconds(path, repeats=100):
    """Median time of one face on one core: crop, resize, network, distribution."""
    estimator = AgeEstimator(path, "cpu", threads=1)
    photo = as_photo(SAMPLES / "astronaut.png")
    [[found]] = estimator.detector.align([photo], faces="all")
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        estimator.ages_of([(photo, found)])
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def folder_rates(folder, estimator, count):
    """Images a second of detection alone on decoded photos and of AgeEstimator.stream; faces."""
    names = [folder / f"{index:04}.jpg" for index in range(count)]
    portraits = [as_photo(SAMPLES / name) for name in ("astronaut.png", "grace_hopper.jpg")]
    for index, name in enumerate(names):
        Image.fromarray(moving_portrait(portraits[index % 2], (500, 500), index / count)).save(name)
    photos = [as_photo(name) for name in names]
    started = time.perf_counter()
    for start in range(0, count, 16):
        estimator.detector.align(photos[start:start + 16], faces="all")
    detection = time.perf_counter() - started
    started = time.perf_counter()
    faces = sum(len(reading.faces) for reading in estimator.stream(names))
    return count / detection, count / (time.perf_counter() - started), faces


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_speed",
                                     description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--resume", help="as in demo.py")
    parser.add_argument("--frames", type=int, default=300, help="of the clip")
    parser.add_argument("--images", type=int, default=200, help="in the folder")
    args = parser.parse_args()
    estimator = AgeEstimator(args.resume, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        watcher = AgeEstimator(args.resume, "cpu", min_face_ratio=demo.STREAM_MIN_FACE_RATIO)
        rate, cpu = stream_rate(Path(folder), watcher, args.frames)
        detection, everything, faces = folder_rates(Path(folder), estimator, args.images)
    print(f"{available_cores()} threads, {args.images} photos of 500 px with {faces} faces")
    print(f"stream 640x480: {rate:.1f} frames/s, {cpu:.0f} ms of CPU a frame")
    print(f"face at batch 1, one core: {face_milliseconds(args.resume):.1f} ms")
    print(f"folder: {everything:.1f} images/s, detection alone {detection:.1f}")


if __name__ == "__main__":
    run_main(main)
