"""Faces in photos and their upright alignment, with facenet_pytorch's MTCNN weights.

The method is in mtcnn.py. Here are the networks, on a CPU in ONNX Runtime and on a GPU in PyTorch,
and the two passes that every face of the project goes through:

    detector = FaceDetector()
    [faces] = detector.align([photo], faces="all")
    crop = crop_face(photo, faces[0].aligned_bbox, faces[0].roll_deg, margin_ratio)
"""

import copy
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real

import numpy as np
from PIL import Image

from preprocess.face import (
    MIN_FACE,
    as_listed,
    crop_face,
    iou,
    resize_face,
    roll_from_landmarks,
    rotation_to_canvas,
    to_canvas,
    turned_back,
    turned_bbox,
)
from preprocess.mtcnn import (
    NETWORK_FILES,
    Detections,
    Networks,
    SummedPhoto,
    find_faces,
    photo_part,
    propose,
    pyramid,
    windows,
)
from utils.download import MISC
from utils.onnx_network import OnnxNetwork
from utils.pipeline import available_cores, batches

DETECTION_PIXELS = 4_000_000  # of the photos that are searched together
FIRST_SHARE = 0.25  # of a photo's shorter side: the main face is first searched at this size
SPAN = 4.0  # pyramid levels finer than face size / SPAN are ignored: they cannot change the box
MIN_SURE = 0.95  # if the main face's probability is lower, finer levels are searched too
REACH = 1.0  # the second pass looks this many face sizes around the face's centre
MIN_SAME_FACE_IOU = 0.2  # of the boxes that the two passes find for one face
QUARTERS = {0: None, 90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180,
            270: Image.Transpose.ROTATE_270}  # degrees, counter-clockwise as in Image.rotate


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """One face of a photo after both passes.

    bbox: (4,) xyxy pixels of the photo, from the first pass.
    landmarks: (5, 2) xy, from the first pass, see Detections.
    roll_deg: degrees in -180..180; `PIL.Image.rotate(roll_deg, expand=True)` levels the eyes.
    aligned_bbox: (4,) xyxy pixels of the rotated, expanded canvas, from the second pass. If that
        finds no face, it is the first pass's box around the same point.
    found_twice: whether the second pass finds the face.
    confidence: probability in 0.7..1, from the second pass if it finds the face.
    first_confidence: probability in 0.7..1, from the first pass.
    """

    bbox: np.ndarray
    confidence: float
    landmarks: np.ndarray
    roll_deg: float
    aligned_bbox: np.ndarray
    found_twice: bool
    first_confidence: float


class FaceDetector:
    """MTCNN for lists of photos of any sizes.

    Args:
        device: "cpu", or a device of PyTorch such as "cuda" or "cuda:1".
        min_face_size: pixels, smallest side of a face looked for.
        min_face_ratio: the same as a share of a photo's shorter side; 0 for no such limit.
            It speeds up large photos; smaller faces are not found.
        threads: CPU threads of the networks; one for each core by default.
        min_confidence: 0..1, of the faces that align() gives.
        any_rotation: whether align() and align_at() look for faces in each photo turned by 90,
            180 and 270 degrees too, and take the quarter in which they are surest. It takes three
            to five times as long.
    """

    def __init__(self, device="cpu", min_face_size=MIN_FACE, min_face_ratio=0.0, threads=None,
                 min_confidence=0.0, any_rotation=False):
        if not isinstance(min_face_size, Real) or not min_face_size >= 1:
            raise ValueError(f"min_face_size must be at least 1 pixel, got {min_face_size}")
        if not 0 <= min_face_ratio <= 1:
            raise ValueError(f"min_face_ratio must lie in 0..1, got {min_face_ratio}")
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence must lie in 0..1, got {min_confidence}")
        self.min_face_size = min_face_size
        self.min_face_ratio = min_face_ratio
        self.min_confidence = min_confidence
        self.any_rotation = any_rotation
        self.device = str(device)
        self.threads = threads or available_cores()

    @cached_property
    def networks(self):
        """The three networks (mtcnn.Networks), loaded when first used."""
        return _load_networks(self.device, self.threads)

    def load(self):
        """Load the networks now instead of at the first photo."""
        return self.networks

    def detect(self, photos):
        """All faces of each photo.

        Args:
            photos: list of PIL.Image, RGB, upright (see face.load_photo).
        Returns:
            list of Detections, one for each photo, the largest face first; it may be empty.
        """
        return [faces for batch in detection_batches(photos) for faces in self._detect_all(batch)]

    def align(self, photos, faces="main", locations=None):
        """Both passes: find faces, then find each of them again in the photo turned upright.

        Args:
            photos: list of PIL.Image, RGB, upright (see face.load_photo).
            faces: "main" for at most one face of each photo, "all" for every face.
            locations: with "main", for each photo the xyxy pixels of the face wanted, or None
                for the largest one.
        Returns:
            list, for each photo, of lists of AlignedFace, the largest face first.
        Raises:
            ValueError: another value for faces, or locations of another length than photos.
        """
        if faces not in ("main", "all"):
            raise ValueError(f"faces must be 'main' or 'all', got '{faces}'")
        locations = [None] * len(photos) if locations is None else locations
        if len(locations) != len(photos):
            raise ValueError(f"{len(locations)} locations for {len(photos)} photos")
        if not self.any_rotation:
            return self._align(photos, faces, locations)
        tried = [self._align_turned(photos, faces, locations, quarter) for quarter in QUARTERS]
        return [max(found, key=_sureness) for found in zip(*tried, strict=True)]

    def _align_turned(self, photos, faces, locations, quarter):
        """Like align(), with the photos turned by a quarter; the faces in the photos' pixels."""
        if not quarter:
            return self._align(photos, faces, locations)
        turned = [photo.transpose(QUARTERS[quarter]) for photo in photos]
        locations = [None if location is None else turned_back(location, photo.size, -quarter)
                     for location, photo in zip(locations, turned, strict=True)]
        return [[_face_turned_back(face, photo.size, quarter) for face in found] for found, photo in
                zip(self._align(turned, faces, locations), photos, strict=True)]

    def _align(self, photos, faces, locations):
        """Like align() without the quarters; several photos share the CPU's cores."""
        workers = min(self.threads, len(photos)) if self.device == "cpu" else 1
        if workers < 2:
            return self._align_in_turn(photos, faces, locations)
        one_thread = self._with_one_thread
        shares = [slice(start, None, workers) for start in range(workers)]
        aligned = [None] * len(photos)
        with ThreadPoolExecutor(workers) as pool:
            found = pool.map(lambda share: one_thread._align_in_turn(
                photos[share], faces, locations[share]), shares)
            for share, part in zip(shares, found, strict=True):
                aligned[share] = part
        return aligned

    @cached_property
    def _with_one_thread(self):
        """This detector, with networks that use one core each.

        A part of the work, such as cutting crops, cannot be split within a photo. So two photos
        side by side use two cores better than two threads within each network.
        """
        detector = copy.copy(self)
        detector.threads = 1
        vars(detector).pop("networks", None)  # the cached ones use all threads
        detector.load()
        return detector

    def _align_in_turn(self, photos, faces, locations):
        aligned, done = [], 0
        for batch in detection_batches(photos):
            if faces == "all":
                found = self._detect_all(batch)
            else:
                found = self._detect_main(batch, locations[done:done + len(batch)])
            aligned += self._second_pass(batch, found)
            done += len(batch)
        return [[face for face in found if face.confidence >= self.min_confidence]
                for found in aligned]

    def align_at(self, photo, boxes, landmarks=None):
        """Both passes for faces that another detector has found in a photo.

        Args:
            photo: PIL.Image, RGB, upright.
            boxes: (N, 4) xyxy pixels of the photo.
            landmarks: (N, 5, 2) or (N, 2, 2) xy, see face.roll_from_landmarks; None to find them.
        Returns:
            list of AlignedFace in the order of the boxes, with these boxes; confidence 0.0 for a
            face that is not found there.
        """
        if landmarks is not None:
            return self._second_pass_at(photo, boxes, np.zeros(len(boxes), np.float32), landmarks)
        quarters = QUARTERS if self.any_rotation else [0]
        tried = [self._align_at_turned(photo, boxes, quarter) for quarter in quarters]
        surest = [max(found, key=_first_sureness) for found in zip(*tried, strict=True)]
        return [replace(face, bbox=np.asarray(box, float))
                for face, box in zip(surest, boxes, strict=True)]

    def _align_at_turned(self, photo, boxes, quarter):
        """Like align_at(), in the photo turned by a quarter; the faces in the photo's pixels."""
        turned = photo.transpose(QUARTERS[quarter]) if quarter else photo
        boxes = [turned_back(box, turned.size, -quarter) for box in boxes] if quarter else boxes
        landmarks = np.zeros((len(boxes), 5, 2))
        landmarks[:, 1, 0] = 1  # level eyes, if there is no face to tell
        confidences = np.zeros(len(boxes), np.float32)
        nearby = self._find_near([(turned, box, 0) for box in boxes])
        for index, (faces, box) in enumerate(zip(nearby, boxes, strict=True)):
            best = _closest(faces.bboxes, box, MIN_SAME_FACE_IOU)
            if best is not None:
                landmarks[index] = faces.landmarks[best]
                confidences[index] = faces.confidences[best]
        aligned = self._second_pass_at(turned, boxes, confidences, landmarks)
        return [_face_turned_back(face, photo.size, quarter) if quarter else face
                for face in aligned]

    def _second_pass_at(self, photo, boxes, confidences, landmarks):
        [aligned] = self._second_pass([photo], [Detections(np.asarray(boxes, float), confidences,
                                                           landmarks)])
        return aligned

    def _detect_all(self, photos):
        summed = [SummedPhoto(np.asarray(photo)) for photo in photos]
        scans = [[window for level in self._levels(photo.size)
                  for window in windows(level, photo.size)] for photo in photos]
        return self._find(summed, scans)

    def _detect_main(self, photos, locations):
        """Detections of 0 or 1 faces for each photo: the largest, or the one at its location."""
        found = [None] * len(photos)
        given = [i for i, location in enumerate(locations) if location is not None]
        nearby = self._find_near([(photos[i], locations[i], 0) for i in given])
        for i, faces in zip(given, nearby, strict=True):
            found[i] = _best(faces, _closest(faces.bboxes, locations[i], 0))
        free = [i for i, location in enumerate(locations) if location is None]
        for i, faces in zip(free, self._find_largest([photos[i] for i in free]), strict=True):
            found[i] = _best(faces, 0)
        return found

    def _find_largest(self, photos):
        """Search from large faces to small ones until smaller ones cannot matter."""
        searches = [_MainSearch(photo, self._levels(photo.size)) for photo in photos]
        active = searches
        while active:
            scans = [search.next_windows() for search in active]
            fresh = propose([search.summed for search in active], scans, self.networks)
            for search, proposals in zip(active, fresh, strict=True):
                search.proposals.update(proposals)
            found = find_faces([search.summed for search in active],
                               [_joined(search.proposals) for search in active], self.networks)
            active = [search for search, faces in zip(active, found, strict=True)
                      if not search.settled(faces)]
        return [search.faces for search in searches]

    def _find_near(self, targets):
        """Faces around a given one and about as large, in the photo turned by roll_deg.

        Args:
            targets: list of (photo, xyxy pixels of its rotated canvas, roll_deg).
        """
        summed, scans = [], []
        for photo, bbox, roll_deg in targets:
            size = rotation_to_canvas(photo.size, roll_deg)[0]
            scan = self._nearby_windows(bbox, size)
            part = photo_part(scan, size) if scan else (0, 0, 1, 1)
            pixels = np.asarray(crop_face(photo, part, roll_deg, 0))
            summed.append(SummedPhoto(pixels, size, part[:2]))
            scans.append(scan)
        return self._find(summed, scans)

    def _nearby_windows(self, bbox, size):
        (x, y), side = _centre(bbox), max(bbox[2] - bbox[0], bbox[3] - bbox[1])
        reach = REACH * side
        region = (x - reach, y - reach, x + reach, y + reach)
        return [window for level in self._levels(size)
                if side / SPAN <= level.face_size <= 2 * reach
                for window in windows(level, size, region)]

    def _second_pass(self, photos, found):
        rolls = [[roll_from_landmarks(points) for points in faces.landmarks] for faces in found]
        targets = [(photo, turned_bbox(bbox, photo.size, roll_deg), roll_deg)
                   for photo, faces, angles in zip(photos, found, rolls, strict=True)
                   for bbox, roll_deg in zip(faces.bboxes, angles, strict=True)]
        upright = iter(zip(targets, self._find_near(targets), strict=True))
        return [[_aligned_face(faces, index, *next(upright)) for index in range(len(faces))]
                for faces in found]

    def _find(self, summed, scans):
        proposals = propose(summed, scans, self.networks)
        return find_faces(summed, [_joined(levels) for levels in proposals], self.networks)

    def smallest_face(self, size):
        """Pixels, side of the smallest face looked for in a photo of this (width, height)."""
        return max(self.min_face_size, self.min_face_ratio * min(size))

    def _levels(self, size):
        levels = pyramid(size, self.min_face_size)
        smallest = self.min_face_ratio * min(size)
        return [level for level in levels if level.face_size >= smallest] or levels[-1:]


class _MainSearch:
    """State of the search for the largest face of one photo."""

    def __init__(self, photo, levels):
        self.summed = SummedPhoto(np.asarray(photo))
        self.levels = levels  # finest first
        self.smallest = FIRST_SHARE * min(photo.size)  # pixels, of the faces searched so far
        self.proposals = {}
        self.faces = None

    def next_windows(self):
        return [window for level in self.levels
                if level.face_size >= self.smallest and level not in self.proposals
                for window in windows(level, self.summed.size)]

    def settled(self, faces):
        """Note the faces found so far; True if finer levels would not change the largest."""
        self.faces = faces
        if not self.levels or self.smallest <= self.levels[0].face_size:
            return True
        if not len(faces):
            self.smallest /= 2
            return False
        enough = max(faces.bboxes[0, 2:] - faces.bboxes[0, :2]) / SPAN
        if faces.confidences[0] < MIN_SURE:
            enough /= SPAN
        settled = self.smallest <= enough
        self.smallest = min(self.smallest, enough)
        return settled


def _aligned_face(faces, index, target, upright):
    _, expected_bbox, roll_deg = target
    best = _closest(upright.bboxes, expected_bbox, MIN_SAME_FACE_IOU)
    return AlignedFace(
        bbox=faces.bboxes[index], landmarks=faces.landmarks[index], roll_deg=roll_deg,
        confidence=float(faces.confidences[index] if best is None else upright.confidences[best]),
        aligned_bbox=expected_bbox if best is None else upright.bboxes[best],
        found_twice=best is not None, first_confidence=float(faces.confidences[index]))


def _sureness(faces):
    """How sure it is that a quarter of a photo is the upright one, by its AlignedFaces.

    The first pass tells: a face upside down is found in a quarter of photos, as if it were
    upright, and the second pass is then as sure as of upright ones.
    """
    return sum(math.log(value / (1 - value)) for value in map(_first_sureness, faces))


def _first_sureness(face):
    return min(face.first_confidence, 1 - 1e-6)  # float32: the next value is noise


def _face_turned_back(face, size, quarter):
    """An AlignedFace of a photo turned by a quarter, in the pixels of the photo of this size.

    The canvases of both show the face in the same direction and have the same centre, but the
    parity of their sides may differ.
    """
    turned_size = size if quarter == 180 else size[::-1]
    roll_deg = (face.roll_deg + quarter + 180) % 360 - 180
    canvas = np.array(rotation_to_canvas(size, roll_deg)[0])
    turned_canvas = np.array(rotation_to_canvas(turned_size, face.roll_deg)[0])
    return replace(face, bbox=turned_back(face.bbox, size, quarter), roll_deg=roll_deg,
                   landmarks=to_canvas(face.landmarks, turned_size, -quarter),
                   aligned_bbox=face.aligned_bbox + np.tile((canvas - turned_canvas) / 2, 2))


def cut_face(photo, face, margin_ratio, size):
    """The face as the network gets it, pixel for pixel as in training.

    Args:
        photo: PIL.Image, RGB, upright.
        face: AlignedFace. Training leaves a face out that the second pass did not find.
        margin_ratio: share of the box's width and height added on each side.
        size: pixels, side of the result.
    Returns:
        (size, size, 3) uint8.
    """
    roll_deg, bbox = as_listed(face.roll_deg, face.aligned_bbox)
    return resize_face(crop_face(photo, bbox, roll_deg, margin_ratio), size)


def detection_batches(items, photo_of=lambda item: item):
    """Lists of items whose photos are searched together (see pipeline.batches).

    Args:
        items: iterable.
        photo_of: function (item) -> its PIL.Image.
    """
    return batches(items, lambda item: math.prod(photo_of(item).size), DETECTION_PIXELS)


def _best(faces, index):
    """Detections of that one face; empty if the index is None or there is no such face."""
    kept = slice(0, 0) if index is None else slice(index, index + 1)
    return Detections(faces.bboxes[kept], faces.confidences[kept], faces.landmarks[kept])


def _joined(proposals):
    """Proposals of all levels, finest first, as one (N, 9) array."""
    levels = sorted(proposals, key=lambda level: -level.scale)
    return np.concatenate([np.zeros((0, 9), np.float32), *(proposals[lev] for lev in levels)])


def _centre(bbox):
    return (bbox[0] + bbox[2]) / 2, (bbox[1] + bbox[3]) / 2


def _closest(bboxes, bbox, min_iou):
    """Index of the box with the largest IoU with bbox; None if no IoU exceeds min_iou."""
    if not len(bboxes):
        return None
    overlaps = iou(bboxes, np.asarray(bbox, float))
    best = int(overlaps.argmax())
    return best if overlaps[best] > min_iou else None


def _load_networks(device, threads):
    if device == "cpu":
        return Networks(*(OnnxNetwork(MISC / name, threads) for name in NETWORK_FILES))
    return Networks(*(TorchNetwork(network, device) for network in torch_networks()))


def torch_networks():
    """The three networks as nn.Modules in eval mode: proposal, refinement, output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # how the package loads its weights
        from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
        return [network().eval() for network in (PNet, RNet, ONet)]


class TorchNetwork:
    """A network of facenet_pytorch behind the interface of OnnxNetwork."""

    def __init__(self, network, device):
        import torch
        self.torch, self.network, self.device = torch, network.to(device), device

    def __call__(self, images):
        if not len(images):  # a network cannot run on nothing: its outputs' shapes tell
            return [output[:0] for output in self(np.zeros((1, *images.shape[1:]), np.float32))]
        with self.torch.inference_mode():
            outputs = self.network(self.torch.from_numpy(images).to(self.device))
        return [output.cpu().numpy() for output in outputs]
