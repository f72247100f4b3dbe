"""Photo in, faces with ages out: what demo.py and other programs call.

    from predictor import AgeEstimator
    for face in AgeEstimator()("photo.jpg"):
        print(face.age, face.low, face.high)
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from PIL import Image

import metrics
from checkpoint import load_checkpoint
from dataset import to_pixels
from defaults import age_bins, override_cfg
from engine import log_probs_of
from model import restore_model
from preprocess import face as geometry
from preprocess.detector import FaceDetector
from utils.distributed import choose_device
from utils.download import find_model
from utils.fast_network import fast_model
from utils.pipeline import batches, map_ahead, worker_count

MIN_FACE = 20  # pixels
MIN_CONFIDENCE = 0.9  # of the detector, below which most of what it finds is no face
DECODERS = 4  # threads that read photos, and photos read ahead, at most
BATCH_PHOTOS = 16  # detected together
BATCH_PIXELS = 24_000_000  # of these photos together
INTERVAL_SHARE = 0.8  # of the distribution that lies within low..high


class AgeEstimator:
    """Finds the faces in photos and estimates their ages.

    Args:
        path: checkpoint, name or https URL, see download.find_model; by default the model in
            misc/.
        device: auto | cpu | cuda.
        opts: flat KEY VALUE pairs over the checkpoint's config, TEST.* only.
        min_face: pixels, side of the smallest face looked for.
        min_face_ratio: the same as a share of an image's shorter side; speeds up large ones.
        min_confidence: 0..1, least confidence of the detector.
    Raises:
        FileNotFoundError, ValueError, OSError: see find_model, load_checkpoint, choose_device.

    Attributes: `cfg`, `age_bins` (K,) list of years, `device`.
    """

    def __init__(self, path=None, device="auto", opts=(), min_face=MIN_FACE, min_face_ratio=0.0,
                 min_confidence=MIN_CONFIDENCE):
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"the least confidence must lie in 0..1, got {min_confidence}")
        self.device = choose_device(device)
        checkpoint = load_checkpoint(find_model(path))
        model, cfg = restore_model(checkpoint, self.device)
        self.cfg = override_cfg(cfg, opts, "TEST")
        self.age_bins = age_bins(self.cfg)
        self.temperature = checkpoint.get("temperature")
        self.min_confidence = min_confidence
        self.model = fast_model(model, cfg.MODEL.IMG_SIZE, self.device)
        self.detector = FaceDetector(self.device, min_face, min_face_ratio)
        self.detector.detect([Image.new("RGB", (64, 64))])  # its networks load at first use

    def __call__(self, images):
        """Faces of one image or of many.

        Args:
            images: an image or an iterable of images: a path, a PIL.Image, or an (H, W, 3)
                uint8 RGB array (OpenCV's BGR has to be turned first).
        Returns:
            list of Face, the largest first; for several images a list of such lists.
        Raises:
            OSError: a file that cannot be read; FileNotFoundError where there is none.
            ValueError: an array of another type or shape.
        """
        if isinstance(images, (str, os.PathLike, Image.Image)) or (
                isinstance(images, np.ndarray) and images.ndim in (2, 3)):
            return self._faces([as_photo(images)])[0]
        return [faces for _, faces in self.stream(images, as_photo)]

    def stream(self, sources, read, batch_photos=BATCH_PHOTOS):
        """Faces of any number of images, in order, with a bounded number of them in memory.

        Images are decoded in threads of their own while faces are found in earlier ones.

        Args:
            sources: iterable.
            read: function (source) -> PIL.Image, or whatever else where there is no image; it
                runs in several threads.
            batch_photos: images of a batch.
        Yields:
            (what read returned, list of Face or, where it is no image, None) for each source.
        """
        count = min(DECODERS, max(1, worker_count(self.cfg.TEST.WORKERS)))
        with ThreadPoolExecutor(count) as decoders, ThreadPoolExecutor(1) as finder:
            photos = map_ahead(partial(decoders.submit, read), sources, count)
            for batch in map_ahead(partial(finder.submit, self._faces_of_batch),
                                   batches(photos, pixel_count, BATCH_PIXELS, batch_photos), 1):
                yield from batch

    def _faces_of_batch(self, batch):
        photos = [photo for photo in batch if isinstance(photo, Image.Image)]
        found = iter(self._faces(photos))
        return [(photo, next(found) if isinstance(photo, Image.Image) else None)
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
        probs = self._probs([self.face_crop(photo, found) for photo, found in located])
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
        bbox = found.aligned_bbox
        if bbox is None:
            bbox = geometry.turned_bbox(found.bbox, photo.size, found.roll_deg)
        roll_deg, bbox = geometry.as_listed(found.roll_deg, bbox)
        crop = geometry.crop_face(photo, bbox, roll_deg, self.cfg.DATA.MARGIN)
        return geometry.resize_face(crop, self.cfg.MODEL.IMG_SIZE)

    def _probs(self, crops):
        """(N, K) float64 distributions of (S, S, 3) crops."""
        rows = []
        for start in range(0, len(crops), self.cfg.TEST.BATCH_SIZE):
            pixels = to_pixels(np.stack(crops[start:start + self.cfg.TEST.BATCH_SIZE]))
            log_probs = log_probs_of(self.model, pixels.to(self.device), self.cfg.TEST.TTA)
            rows.append(metrics.calibrated_probs(log_probs.cpu().numpy(), self.temperature))
        return np.concatenate(rows) if rows else ()


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


def pixel_count(photo):
    """Pixels of a photo; 0 for whatever a reader gives instead of one."""
    return math.prod(photo.size) if isinstance(photo, Image.Image) else 0


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
