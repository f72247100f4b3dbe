"""Photo in, faces with ages out: what demo.py and other programs call.

    from predictor import AgeEstimator
    for face in AgeEstimator()("photo.jpg"):
        print(face.age, face.low, face.high)

On a CPU the model in misc/ runs without PyTorch, which is not imported then.
"""

import io
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from numbers import Real
from pathlib import Path

import numpy as np
from PIL import Image

import metrics
from age_network import ONNX, load_age_network
from preprocess import face as geometry
from preprocess.detector import FaceDetector, cut_face
from preprocess.face import MIN_FACE
from utils.device import device_name
from utils.download import find_model
from utils.pipeline import batches, check_threads, done_now, map_ahead, worker_count

MIN_CONFIDENCE = 0.9  # of the detector; most of what it finds below is not a face
MAX_DECODERS = 4  # threads that read photos; as many photos are read ahead
BATCH_PHOTOS = 16  # detected together
BATCH_PIXELS = 24_000_000  # of these photos together
BOXES = "boxes of the shape (N, 4), x1 y1 x2 y2"
# Types of a single image; arrays and open files are recognised by their attributes.
ONE_IMAGE = (str, os.PathLike, bytes, bytearray, memoryview)


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
        threads: CPU threads of ONNX Runtime; one for each core by default. A .pth checkpoint
            uses PyTorch's own setting.
        any_rotation: find faces that lie on their side or upside down too, see FaceDetector.
    Raises:
        FileNotFoundError, ValueError, OSError: see device_name, find_model, load_age_network,
            FaceDetector.

    Attributes: `cfg`, `age_bins` (K,) list of years, `device` (its name).
    """

    def __init__(self, path=None, device="auto", opts=(), min_face=MIN_FACE, min_face_ratio=0.0,
                 min_confidence=MIN_CONFIDENCE, threads=None, any_rotation=False):
        self.device = device_name(device)
        if threads is not None:
            check_threads(threads)
        file = find_model(path, prefer_onnx=self.device == "cpu")
        if device == "auto" and Path(file).suffix.lower() == ONNX:
            self.device = "cpu"
        self.network = load_age_network(file, self.device, opts, threads)
        self.cfg, self.age_bins = self.network.cfg, self.network.age_bins
        self.detector = FaceDetector(self.device, min_face, min_face_ratio, threads,
                                     min_confidence, any_rotation)
        self.detector.load()

    def __call__(self, images):
        """Faces of one image or of many.

        Args:
            images: an image or an iterable of images: a path, bytes or an open binary file, a
                PIL.Image, or an array of the shape (H, W), (H, W, 3) or (H, W, 4), gray, RGB or
                RGBA (turn OpenCV's BGR first), uint8 or float in 0..1.
        Returns:
            list of Face, the largest first; for several images a list of such lists.
        Raises:
            OSError: a file cannot be read, or its values have no known range; FileNotFoundError:
                there is no such file.
            ValueError: anything else, or an array of another type, shape or range.
        """
        if images is None or is_one_image(images):
            return self._faces([as_photo(images)])[0]
        return [reading.faces for reading in self._stream(images, as_photo, is_stored,
                                                          BATCH_PHOTOS)]

    def stream(self, sources, read=None, batch_photos=BATCH_PHOTOS):
        """Faces of any number of images, in order, with a bounded number of them in memory.

        Files and bytes are decoded in threads of their own while faces are found in earlier ones.
        Other images are copied before the next one is asked for, so an iterator may reuse them.

        Args:
            sources: iterable of images, as in a call of the estimator, or of whatever `read`
                takes.
            read: function (source) -> PIL.Image, RGB and upright, or OSError if it cannot be
                read; called in several threads. By default as_photo().
            batch_photos: images of a batch.
        Yields:
            Reading for each source.
        """
        return self._stream(sources, partial(read_or_explain, read or as_photo),
                            (lambda source: True) if read else is_stored, batch_photos)

    def _stream(self, sources, read, is_threaded, batch_photos):
        """Readings of what `read` gives: photos, or Readings of photos that cannot be read.

        is_threaded: function (source) -> whether `read` may be called for it in another thread.
        """
        count = min(MAX_DECODERS, max(1, worker_count(self.cfg.TEST.WORKERS)))
        with ThreadPoolExecutor(count) as decoders, ThreadPoolExecutor(1) as finder:
            photos = map_ahead(lambda source: decoders.submit(read, source)
                               if is_threaded(source) else done_now(read, source), sources, count)
            for batch in map_ahead(partial(finder.submit, self._read_batch),
                                   batches(photos, pixel_count, BATCH_PIXELS, batch_photos), 1):
                yield from batch

    def _read_batch(self, batch):
        found = iter(self._faces([photo for photo in batch if not isinstance(photo, Reading)]))
        return [photo if isinstance(photo, Reading) else Reading(photo, next(found))
                for photo in batch]

    def _faces(self, photos):
        """Faces of RGB photos: list of Face for each."""
        aligned = self.detector.align(photos, faces="all")
        aged = iter(self.ages_of([(photo, found) for photo, faces in
                                  zip(photos, aligned, strict=True) for found in faces]))
        return [[next(aged) for _ in faces] for faces in aligned]

    def ages_at(self, photo, boxes, landmarks=None):
        """Ages of faces that another detector has found.

        Each face is found again near its box and turned upright, as in training, since the age
        depends on the framing. If it is not found there, its own box is cut out, with the
        confidence 0.

        Args:
            photo: one image, see __call__.
            boxes: (N, 4) xyxy pixels of the upright photo, each around a face from the forehead
                to the chin.
            landmarks: (N, 5, 2) xy or (N, 2, 2): image-left eye first, image-right eye second.
                With these the angle is theirs; without them it is the detector's.
        Returns:
            list of Face in the order of the boxes, with these boxes.
        Raises:
            ValueError: boxes or landmarks of another shape or not finite, an empty box, or a box
                that does not overlap the photo or is many times larger.
        """
        photo, boxes = as_photo(photo), _as_numbers(boxes, BOXES)
        if boxes.ndim and not len(boxes):
            return []
        _check_boxes(boxes, photo.size)
        if landmarks is not None:
            landmarks = _as_numbers(landmarks, "landmarks in pixels")
            if landmarks.shape not in ((len(boxes), 5, 2), (len(boxes), 2, 2)):
                raise ValueError(f"expected landmarks of the shape ({len(boxes)}, 5, 2) or "
                                 f"({len(boxes)}, 2, 2); got {landmarks.shape}")
            if not np.isfinite(landmarks).all():
                raise ValueError("expected landmarks in pixels; got some that are not finite")
        located = self.detector.align_at(photo, boxes, landmarks)
        return self.ages_of([(photo, found) for found in located])

    def ages_of_crops(self, crops):
        """Ages of faces that are cut out and upright already.

        Args:
            crops: iterable of images, see __call__. Each shows one face with its eyes level, from
                the forehead to the chin without a margin, or as much margin as cfg.DATA.MARGIN
                (share of the box): the framing of `aligned_bbox` in a list. Other framings, such
                as whole heads, give wrong ages.
        Returns:
            list of Face, one for each crop; its box is the whole crop.
        Raises:
            OSError: a file cannot be read.
            ValueError: a single image instead of several, or see as_photo().
        """
        if is_one_image(crops):  # the rows of a single array would each count as a crop
            raise ValueError("expected several crops, got a single image; pass a list of crops: "
                             "[crop]")
        photos = [as_photo(crop) for crop in crops]
        probs = self.network([geometry.resize_face(photo, self.cfg.MODEL.IMG_SIZE)
                              for photo in photos])
        return [face_from_probs((0, 0, *photo.size), 1.0, 0.0, row, self.age_bins,
                                self.cfg.TEST.DECODE)
                for photo, row in zip(photos, probs, strict=True)]

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
            found: AlignedFace of preprocess.detector.
        Returns:
            (S, S, 3) uint8.
        """
        return cut_face(photo, found, self.cfg.DATA.MARGIN, self.cfg.MODEL.IMG_SIZE)


def _as_numbers(values, what):
    """Float array of values; a ValueError that says what is expected if they are no numbers."""
    try:
        if values is None:  # would be NaN
            raise TypeError("no numbers")
        return np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected {what}; got {type(values).__name__} ({error})") from error


def _check_boxes(boxes, size):
    """Refuse boxes that cannot be around a face of a photo of this size."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expected {BOXES}; got shape {boxes.shape}")
    for number, box in enumerate(boxes):
        if problem := geometry.box_problem(box, size):
            raise ValueError(f"box {number} ({' '.join(f'{value:g}' for value in box)}): {problem}")


def is_one_image(images):
    """Whether this is a single image, not several."""
    return (isinstance(images, (*ONE_IMAGE, Image.Image)) or hasattr(images, "read")
            or (isinstance(images, np.ndarray) and images.ndim in (2, 3)))


def is_stored(image):
    """Whether an image is a file's path or bytes, which stay as they are while they wait."""
    return isinstance(image, (str, os.PathLike, bytes))


def as_photo(image):
    """Any kind of image as a PIL.Image, RGB and upright.

    Args:
        image: path, bytes, open binary file, PIL.Image, or array of the shape (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4), uint8 or float in 0..1.
    Raises:
        OSError: the file or the bytes, also those behind a PIL.Image, cannot be read, or hold
            values of no known range.
        ValueError: anything else.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        image = io.BytesIO(image)
    if isinstance(image, (str, os.PathLike)) or hasattr(image, "read"):
        return geometry.load_photo(image)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_as_uint8(image))
    if not isinstance(image, Image.Image):
        hint = " (OpenCV's imread gives None for a file that it cannot read)" if image is None \
            else ""
        raise ValueError("expected a path, bytes, an open file, a PIL image or an array, got "
                         f"{type(image).__name__}{hint}")
    if not all(image.size):  # such as PIL's crop() of an empty box
        raise ValueError(f"the image is empty: {image.width} x {image.height} pixels")
    return geometry.upright_rgb(image)


def _as_uint8(pixels):
    is_float = np.issubdtype(pixels.dtype, np.floating)
    is_picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    if not (is_float or pixels.dtype == np.uint8) or not is_picture or not pixels.size:
        hint = ""
        if pixels.dtype == np.uint16:
            hint = "; divide 16 bits by 65535"
        elif pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and not is_picture:
            hint = "; move the colours to the end: array.transpose(1, 2, 0)"
        raise ValueError("expected an array of the shape (H, W), (H, W, 3) or (H, W, 4), gray, RGB "
                         f"or RGBA, uint8 or float in 0..1; got {pixels.dtype} of shape "
                         f"{pixels.shape}{hint}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not is_float:
        return pixels
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is not
        raise ValueError(f"expected values in 0..1 in an array of {pixels.dtype}, got "
                         f"{pixels.min():g}..{pixels.max():g}; divide by 255, or pass uint8")
    return (255 * pixels).round().astype(np.uint8)


def read_or_explain(read, source):
    """What `read` gives for a source; if it cannot be read, a Reading that says why."""
    try:
        return read(source)
    except MemoryError:
        return Reading(None, [], "not enough memory")
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
    roll_deg: degrees between the line of the eyes and the horizontal, positive when the
        image-right eye is lower.
    age: the distribution's mean or, with TEST.DECODE median, its median, years.
    median, std: years, of the distribution.
    low, high: its central 80% interval, years.
    probs: (K,) float32, the distribution over the age bins.
    first_age: years, the age of probs[0]; the bins are one year apart.
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
    first_age: int = 0

    @property
    def age_bins(self):
        """(K,) years, the ages of probs."""
        return self.first_age + np.arange(len(self.probs))

    def probability_of_at_least(self, age):
        """Probability, 0..1, of being at least `age` whole years old.

        It is an estimate from one photo: do not decide by it what somebody may buy or do (see
        MODEL_CARD.md).

        Raises:
            ValueError: age is not a number.
        """
        if not isinstance(age, Real) or math.isnan(age):
            raise ValueError(f"expected an age in years, a number such as 18; got {age!r}")
        return float(metrics.probability_of_at_least(self.probs[None], self.age_bins, age)[0])

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
        decode: a key of metrics.DECODES: how the age is made of the distribution.
    """
    rows = np.asarray(probs, np.float32)[None]
    low, high = metrics.central_interval(rows, age_bins, metrics.INTERVAL_SHARE)
    numbers = (*bbox, confidence, roll_deg, metrics.DECODES[decode](rows, age_bins)[0],
               metrics.distribution_median(rows, age_bins)[0],
               metrics.distribution_std(rows, age_bins)[0], low[0], high[0])
    return Face(*(float(number) for number in numbers), probs=rows[0],
                first_age=int(age_bins[0]))
