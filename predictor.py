"""Photo in, faces with ages out: what demo.py and other programs call.

    from predictor import AgeEstimator
    for face in AgeEstimator()("photo.jpg"):
        print(face.age, face.low, face.high)

On a CPU the model in misc/ runs without PyTorch, which is not imported then.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import metrics
from age_network import ONNX, load_age_network
from preprocess import face as geometry
from preprocess.detector import FaceDetector
from utils.device import device_name
from utils.download import find_model
from utils.pipeline import batches, map_ahead, worker_count

MIN_FACE = 20  # pixels
MIN_CONFIDENCE = 0.9  # of the detector; most of what it finds below is not a face
MAX_DECODERS = 4  # threads that read photos; as many photos are read ahead
BATCH_PHOTOS = 16  # detected together
BATCH_PIXELS = 24_000_000  # of these photos together
INTERVAL_SHARE = 0.8  # of the distribution that lies within low..high


class AgeEstimator:
    """Finds the faces in photos and estimates their ages.

    Args:
        path: checkpoint, .onnx file, name or https URL, see download.find_model(); by default
            the model in misc/.
        device: auto | cpu | cuda | cuda:N | mps; auto takes a GPU of CUDA if PyTorch finds one.
        opts: flat KEY VALUE pairs over the model's config, TEST.* only.
        min_face: pixels, side of the smallest face looked for.
        min_face_ratio: the same as a share of an image's shorter side; speeds up large ones.
        min_confidence: 0..1, lowest confidence of the detector.
        threads: CPU threads of the networks; one for each core by default.
    Raises:
        FileNotFoundError, ValueError, OSError: see device_name, find_model, load_age_network.

    Attributes: `cfg`, `age_bins` (K,) list of years, `device` (its name).
    """

    def __init__(self, path=None, device="auto", opts=(), min_face=MIN_FACE, min_face_ratio=0.0,
                 min_confidence=MIN_CONFIDENCE, threads=None):
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"the lowest confidence must lie in 0..1, got {min_confidence}")
        self.device = device_name(device)
        file = find_model(path, prefer_onnx=self.device == "cpu")
        if device == "auto" and Path(file).suffix.lower() == ONNX:
            self.device = "cpu"
        self.network = load_age_network(file, self.device, opts, threads)
        self.cfg, self.age_bins = self.network.cfg, self.network.age_bins
        self.min_confidence = min_confidence
        self.detector = FaceDetector(self.device, min_face, min_face_ratio, threads)
        self.detector.load()

    def __call__(self, images):
        """Faces of one image or of many.

        Args:
            images: an image or an iterable of images: a path, a PIL.Image, or an (H, W, 3)
                uint8 RGB array (turn OpenCV's BGR first).
        Returns:
            list of Face, the largest first; for several images a list of such lists.
        Raises:
            OSError: a file cannot be read; FileNotFoundError: there is no such file.
            ValueError: an array of another type or shape.
        """
        if isinstance(images, (str, os.PathLike, Image.Image)) or (
                isinstance(images, np.ndarray) and images.ndim in (2, 3)):
            return self._faces([as_photo(images)])[0]
        return [reading.faces for reading in self._stream(images, as_photo, BATCH_PHOTOS)]

    def stream(self, sources, read=None, batch_photos=BATCH_PHOTOS):
        """Faces of any number of images, in order, with a bounded number of them in memory.

        Images are decoded in threads of their own while faces are found in earlier ones.

        Args:
            sources: iterable of images, as in a call of the estimator, or of whatever `read`
                takes.
            read: function (source) -> PIL.Image, RGB and upright, or OSError if it cannot be
                read; called in several threads. By default as_photo().
            batch_photos: images of a batch.
        Yields:
            Reading for each source.
        """
        return self._stream(sources, partial(read_or_explain, read or as_photo), batch_photos)

    def _stream(self, sources, read, batch_photos):
        """Readings of what `read` gives: photos, or Readings of photos that cannot be read."""
        count = min(MAX_DECODERS, max(1, worker_count(self.cfg.TEST.WORKERS)))
        with ThreadPoolExecutor(count) as decoders, ThreadPoolExecutor(1) as finder:
            photos = map_ahead(partial(decoders.submit, read), sources, count)
            for batch in map_ahead(partial(finder.submit, self._read_batch),
                                   batches(photos, pixel_count, BATCH_PIXELS, batch_photos), 1):
                yield from batch

    def _read_batch(self, batch):
        found = iter(self._faces([photo for photo in batch if not isinstance(photo, Reading)]))
        return [photo if isinstance(photo, Reading) else Reading(photo, next(found))
                for photo in batch]

    def _faces(self, photos):
        """Faces of RGB photos: list of Face for each."""
        aligned = [[found for found in faces if found.confidence >= self.min_confidence]
                   for faces in self.detector.align(photos, faces="all")]
        aged = iter(self.ages_of([(photo, found) for photo, faces in
                                  zip(photos, aligned, strict=True) for found in faces]))
        return [[next(aged) for _ in faces] for faces in aligned]

    def ages_of(self, located):
        """Faces that are already located.

        Args:
            located: list of (photo, AlignedFace), the photo an upright RGB PIL.Image.
        Returns:
            list of Face, one for each.
        """
        probs = self.network([self.face_crop(photo, found) for photo, found in located])
        return [face_from_probs(found.bbox, found.confidence, found.roll_deg, row, self.age_bins,
                                self.cfg.TEST.DECODE)
                for (_, found), row in zip(located, probs, strict=True)]

    def face_crop(self, photo, found):
        """The face as the network gets it, pixel for pixel as in training.

        Args:
            photo: PIL.Image, RGB, upright.
            found: AlignedFace of preprocess.detector. Training leaves a face out whose second
                pass found nothing; here it gets the first pass's box around the same point.
        Returns:
            (S, S, 3) uint8.
        """
        return cut_face(photo, found, self.cfg.DATA.MARGIN, self.cfg.MODEL.IMG_SIZE)


def cut_face(photo, found, margin_ratio, size):
    """(size, size, 3) uint8 crop of a face, see AgeEstimator.face_crop."""
    bbox = found.aligned_bbox
    if bbox is None:
        bbox = geometry.turned_bbox(found.bbox, photo.size, found.roll_deg)
    roll_deg, bbox = geometry.as_listed(found.roll_deg, bbox)
    return geometry.resize_face(geometry.crop_face(photo, bbox, roll_deg, margin_ratio), size)


def as_photo(image):
    """A path, a PIL.Image or an (H, W), (H, W, 3) or (H, W, 4) uint8 array as upright RGB."""
    if isinstance(image, (str, os.PathLike)):
        return geometry.load_photo(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3
                                           and image.shape[2] in (3, 4))) or not image.size:
            raise ValueError(f"expected an (H, W, 3) uint8 RGB array, got {image.dtype} of shape "
                             f"{image.shape}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected a path, a PIL image or an array, got {type(image).__name__}")
    return geometry.to_rgb(geometry.upright(image))


def read_or_explain(read, source):
    """What `read` gives for a source; if it raises OSError, a Reading that says why."""
    try:
        return read(source)
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(source, (str, os.PathLike)):
            reason = reason.replace(os.fspath(source), Path(source).name)
        return Reading(None, [], " ".join(reason.split()))


def pixel_count(photo):
    """Pixels of a photo; 0 for a Reading, whose photo could not be read."""
    return 0 if isinstance(photo, Reading) else math.prod(photo.size)


@dataclass(frozen=True, eq=False)
class Reading:
    """A photo and its faces, or why it could not be read.

    photo: PIL.Image, RGB and upright; None if it could not be read.
    faces: list of Face, the largest first.
    problem: one line; "" if the photo was read.
    """

    photo: Image.Image | None
    faces: list
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Face:
    """A face and its predicted age; `dict(face)` and `face["age"]` work too.

    x1, y1, x2, y2: box in pixels of the upright photo, x2 and y2 exclusive; may overhang it.
    confidence: the detector's, 0..1.
    roll_deg: of the line between the eyes, positive when the image-right eye is lower.
    age: the distribution's mean or, with TEST.DECODE median, its median, years.
    median, std: of the distribution, years.
    low, high: its central 80% interval, years.
    probs: (K,) float32, the distribution over the age bins.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    confidence: float
    roll_deg: float
    age: float
    median: float
    std: float
    low: float
    high: float
    probs: np.ndarray

    def keys(self):
        return [field.name for field in fields(self)]

    def __getitem__(self, name):
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)


def face_from_probs(bbox, confidence, roll_deg, probs, age_bins, decode="mean"):
    """A Face from where it is and how its age is distributed.

    Args:
        bbox: (4,) xyxy pixels.
        confidence, roll_deg: see Face.
        probs: (K,), sums to 1.
        age_bins: (K,) years.
        decode: of metrics.DECODES, how the age is made of the distribution.
    """
    rows = np.asarray(probs, np.float32)[None]
    low, high = metrics.central_interval(rows, age_bins, INTERVAL_SHARE)
    numbers = (*bbox, confidence, roll_deg, metrics.DECODES[decode](rows, age_bins)[0],
               metrics.distribution_median(rows, age_bins)[0],
               metrics.distribution_std(rows, age_bins)[0], low[0], high[0])
    return Face(*(float(number) for number in numbers), probs=rows[0])
