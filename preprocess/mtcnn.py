"""MTCNN face detection in batches: everything but the three networks.

Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
Networks", IEEE SPL 2016, in the variant of facenet_pytorch: the same image pyramid, thresholds,
rounding of boxes, area resampling and suppression, so that it finds the same faces. It differs
in how: means of pixels come from a summed-area table, the crops of many photos pass a network
together, and a search can be limited to a part of a photo and to some levels of its pyramid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

NETWORK_FILES = ("mtcnn_pnet.onnx", "mtcnn_rnet.onnx", "mtcnn_onet.onnx")  # in misc/
CELL = 12  # pixels, side of the squares that the proposal network judges
STRIDE = 2  # pixels between two of these squares
PYRAMID_FACTOR = 0.709  # from one level of the pyramid to the next
MIN_PROPOSAL_SCORE, MIN_REFINED_SCORE, MIN_FACE_SCORE = 0.6, 0.7, 0.7  # probabilities
MAX_LEVEL_IOU, MAX_PHOTO_IOU, MAX_FACE_OVERLAP = 0.5, 0.7, 0.7  # of boxes of different faces
REFINE_SIZE, OUTPUT_SIZE = 24, 48  # pixels, input sides of the second and the third network
MAX_WINDOWS = 64  # scanned at once; bounds the memory
MAX_TILE = 128  # pixels, side of the windows scanned at once: fits the CPU's cache


@dataclass
class Detections:
    """Faces of one photo, the largest first.

    bboxes: (N, 4) float32 xyxy pixels of the photo; may overhang it.
    confidences: (N,) float32 probabilities in 0.7..1.
    landmarks: (N, 5, 2) float32 xy: image-left eye, image-right eye, nose, image-left mouth,
        image-right mouth.
    """

    bboxes: np.ndarray
    confidences: np.ndarray
    landmarks: np.ndarray

    def __len__(self):
        return len(self.bboxes)


class Networks(NamedTuple):
    """The three networks: each maps (N, 3, H, W) float32 in -1..1 to a tuple of arrays.

    propose: gives offsets (N, 4, h, w) and probabilities (N, 2, h, w).
    refine: takes 24 x 24 pixels, gives offsets (N, 4) and probabilities (N, 2).
    output: takes 48 x 48, gives offsets (N, 4), landmarks (N, 10) and probabilities (N, 2).
    """

    propose: Callable
    refine: Callable
    output: Callable


class Level(NamedTuple):
    """One level of the image pyramid: the photo resampled to height x width."""

    scale: float
    height: int
    width: int

    @property
    def face_size(self):
        """Pixels in the photo of the square that one cell of the level sees."""
        return CELL / self.scale


def pyramid(size, min_face_size):
    """Levels from the finest to the coarsest for a photo of size (width, height)."""
    width, height = size
    scale = CELL / min_face_size
    shorter = min(size) * scale
    levels = []
    while shorter >= CELL:
        levels.append(Level(scale, int(height * scale + 1), int(width * scale + 1)))
        scale *= PYRAMID_FACTOR
        shorter *= PYRAMID_FACTOR
    return levels


class SummedPhoto:
    """Summed-area table of a photo, or of a part of it: mean colours of rectangles.

    Args:
        pixels: (h, w, 3) uint8, the part.
        size: (width, height) of the whole photo; that of pixels by default.
        origin: (x, y) of the part in the photo.
    """

    def __init__(self, pixels, size=None, origin=(0, 0)):
        # 32 bits overflow above 8 megapixels, but differences of sums stay right.
        self.sums = cv2.integral(pixels, sdepth=cv2.CV_32S)  # (h + 1, w + 1, 3)
        self.size = size or (pixels.shape[1], pixels.shape[0])
        self.origin = origin
        self.part = np.array([*origin, origin[0] + pixels.shape[1], origin[1] + pixels.shape[0]])
        self.judged = {}  # (side, x1, y1, x2, y2) of a crop -> a network's outputs for it

    def window(self, level, top, left, height, width):
        """(3, height, width) network input: a part of a level, its corner at (left, top)."""
        y1, y2 = _bins(self.size[1], level.height, np.arange(top, top + height))
        x1, x2 = _bins(self.size[0], level.width, np.arange(left, left + width))
        x1, x2, y1, y2 = self._local(x1, x2, y1, y2)
        rows = self.sums[y2] - self.sums[y1]
        sums = rows[:, x2] - rows[:, x1]
        return _network_input(sums, (y2 - y1)[:, None] * (x2 - x1)).transpose(2, 0, 1)

    def crops(self, bboxes, side):
        """(N, 3, side, side) network inputs: (N, 4) integer boxes, resampled."""
        steps = np.arange(side)
        offset_x1, offset_x2 = _bins((bboxes[:, 2] - bboxes[:, 0])[:, None], side, steps)
        offset_y1, offset_y2 = _bins((bboxes[:, 3] - bboxes[:, 1])[:, None], side, steps)
        left, top = bboxes[:, :1], bboxes[:, 1:2]
        x1, x2, y1, y2 = self._local(left + offset_x1, left + offset_x2,
                                     top + offset_y1, top + offset_y2)
        table, stride = self.sums.reshape(-1, 3), self.sums.shape[1]
        upper, lower = y1[:, :, None] * stride, y2[:, :, None] * stride  # (N, side, 1)
        x1, x2 = x1[:, None, :], x2[:, None, :]  # (N, 1, side)
        sums = table.take(lower + x2, axis=0)  # (N, side, side, 3)
        sums -= table.take(lower + x1, axis=0)
        sums -= table.take(upper + x2, axis=0)
        sums += table.take(upper + x1, axis=0)
        return _network_input(sums, (lower - upper) // stride * (x2 - x1)).transpose(0, 3, 1, 2)

    def _local(self, x1, x2, y1, y2):
        return x1 - self.origin[0], x2 - self.origin[0], y1 - self.origin[1], y2 - self.origin[1]


def _bins(length, count, indices):
    """First and one past the last of the pixels that make a resampled one (adaptive pooling)."""
    return indices * length // count, -(-(indices + 1) * length // count)


def _network_input(sums, areas):
    means = sums.astype(np.float32)
    means /= areas[..., None]
    means -= 127.5
    means *= 0.0078125
    return means


class Window(NamedTuple):
    """A part of a level that the proposal network scans in one piece."""

    level: Level
    top: int
    left: int
    height: int
    width: int


def windows(level, size, region=None):
    """Windows whose cells cover a level, or the part of it within a region, once.

    Args:
        level: Level of a photo of size (width, height).
        region: x1, y1, x2, y2 in pixels of the photo, or None for the whole.
    Returns:
        list of Window; empty if the region is smaller than a cell.
    """
    rows, columns = (0, level.height), (0, level.width)
    if region is not None:
        columns = _level_range(region[0], region[2], level.width, level.width / size[0])
        rows = _level_range(region[1], region[3], level.height, level.height / size[1])
    return [Window(level, top, left, height, width)
            for top, height in _tiles(*rows) for left, width in _tiles(*columns)]


def _level_range(low, high, length, scale):
    """Start and stop of a range of the photo in pixels of a level, rounded to whole cells."""
    start = max(int(low * scale), 0) // STRIDE * STRIDE  # cells keep their places
    stop = -(-int(np.ceil(high * scale)) // STRIDE) * STRIDE  # as if the level went on
    return start, min(stop, length)


def _tiles(start, stop):
    overlap = CELL - STRIDE
    tiles = []
    while stop - start > overlap:
        tiles.append((start, min(MAX_TILE, stop - start)))
        if stop - start <= MAX_TILE:
            break
        start += MAX_TILE - overlap
    return tiles


def photo_part(window_list, size):
    """x1, y1, x2, y2: the part of a photo of size (width, height) that the windows show."""
    x1, y1, x2, y2 = size[0], size[1], 0, 0
    for level, top, left, height, width in window_list:
        x1 = min(x1, left * size[0] // level.width)
        y1 = min(y1, top * size[1] // level.height)
        x2 = max(x2, -(-(left + width) * size[0] // level.width))
        y2 = max(y2, -(-(top + height) * size[1] // level.height))
    return x1, y1, x2, y2


def propose(photos, photo_windows, networks):
    """First stage: squares that may hold a face.

    Args:
        photos: list of SummedPhoto.
        photo_windows: list, for each photo, of lists of Window.
        networks: Networks.
    Returns:
        list, for each photo {Level: (N, 9) float32}: xyxy, probability, four offsets.
    """
    groups = {}  # windows of one shape pass the network together
    for index, window_list in enumerate(photo_windows):
        for window in window_list:
            groups.setdefault((window.height, window.width), []).append((index, window))
    found = [{window.level: [] for window in window_list} for window_list in photo_windows]
    for members in groups.values():
        for start in range(0, len(members), MAX_WINDOWS):
            some = members[start:start + MAX_WINDOWS]
            images = np.stack([photos[index].window(*window) for index, window in some])
            offsets, probs = networks.propose(images)
            for (index, window), offset, prob in zip(some, offsets, probs[:, 1], strict=True):
                found[index][window.level].append(_squares(window, offset, prob))
    return [{level: _suppress_level(np.concatenate(parts)) for level, parts in levels.items()}
            for levels in found]


def _squares(window, offsets, probs):
    rows, columns = np.nonzero(probs >= MIN_PROPOSAL_SCORE)
    cells = np.stack([window.left // STRIDE + columns, window.top // STRIDE + rows], axis=1)
    scale = np.float32(window.level.scale)
    corners = (STRIDE * cells + 1).astype(np.float32)
    return np.concatenate([np.floor(corners / scale), np.floor((corners + CELL - 1) / scale),
                           probs[rows, columns][:, None], offsets[:, rows, columns].T], axis=1)


def _suppress_level(squares):
    return squares[_nms(squares[:, :4], squares[:, 4], MAX_LEVEL_IOU)]


def find_faces(photos, proposals, networks):
    """Second and third stage: from squares to faces.

    Args:
        photos: list of SummedPhoto.
        proposals: list, for each photo, of (N, 9) arrays (see propose).
        networks: Networks.
    Returns:
        list of Detections, one for each photo.
    """
    if not photos:
        return []
    owners = np.repeat(np.arange(len(photos)), [len(rows) for rows in proposals])
    squares = np.concatenate(proposals)
    kept = _nms_by_owner(squares[:, :4], squares[:, 4], owners, MAX_PHOTO_IOU)
    squares, owners = squares[kept], owners[kept]
    sides = squares[:, 2:4] - squares[:, :2]
    boxes = _square(squares[:, :4] + squares[:, 5:9] * np.tile(sides, 2))

    boxes, owners, (offsets, probs) = _judge(networks.refine, REFINE_SIZE, photos, boxes, owners)
    passed = probs[:, 1] > MIN_REFINED_SCORE
    boxes, owners, scores, offsets = _select(passed, boxes, owners, probs[:, 1], offsets)
    kept = _nms_by_owner(boxes, scores, owners, MAX_PHOTO_IOU)
    boxes, owners, offsets = _select(kept, boxes, owners, offsets)
    boxes = _square(_shifted(boxes, offsets))

    boxes, owners, (offsets, points, probs) = _judge(networks.output, OUTPUT_SIZE,
                                                     photos, boxes, owners)
    passed = probs[:, 1] > MIN_FACE_SCORE
    boxes, owners, scores, offsets, points = _select(
        passed, boxes, owners, probs[:, 1], offsets, points)
    corners, sides = boxes[:, None, :2], (boxes[:, 2:4] - boxes[:, :2] + 1)[:, None]
    landmarks = points.reshape(-1, 2, 5).transpose(0, 2, 1) * sides + corners - 1
    boxes = _shifted(boxes, offsets)
    return [_photo_faces(boxes[mine], scores[mine], landmarks[mine])
            for mine in (owners == index for index in range(len(photos)))]


def _photo_faces(boxes, scores, landmarks):
    kept = _nms_within(boxes, scores, MAX_FACE_OVERLAP)
    boxes, scores, landmarks = _select(kept, boxes, scores, landmarks)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Detections(*_select(np.argsort(areas)[::-1], boxes, scores, landmarks))


def _judge(network, side, photos, boxes, owners):
    """The boxes that are not empty, their owners, and the network's outputs for them.

    Each photo keeps the outputs: a search that goes on to finer levels judges many boxes again.
    """
    parts = np.stack([photo.part for photo in photos])[owners]  # (N, 4)
    pixels = np.trunc(boxes).astype(np.int64)
    pixels[:, :2] = np.maximum(pixels[:, :2] - 1, parts[:, :2])
    pixels[:, 2:] = np.minimum(pixels[:, 2:], parts[:, 2:])
    pixels, boxes, owners = _select((pixels[:, 2:] > pixels[:, :2]).all(1), pixels, boxes, owners)
    keys = [(side, *box) for box in pixels.tolist()]
    new = np.array([key not in photos[owner].judged
                    for key, owner in zip(keys, owners, strict=True)], bool)
    crops = np.empty((len(boxes), 3, side, side), np.float32)
    for owner in np.unique(owners[new]):
        mine = new & (owners == owner)
        crops[mine] = photos[owner].crops(pixels[mine], side)
    outputs = network(crops[new])
    for index, *output in zip(np.flatnonzero(new), *outputs, strict=True):
        photos[owners[index]].judged[keys[index]] = output
    known = [photos[owner].judged[key] for key, owner in zip(keys, owners, strict=True)]
    columns = zip(*known, strict=True) if known else [[] for _ in outputs]
    return boxes, owners, [np.array(column, np.float32).reshape(len(known), *output.shape[1:])
                           for column, output in zip(columns, outputs, strict=True)]


def _shifted(boxes, offsets):
    return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def _square(boxes):
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(axis=1, keepdims=True)
    corners = boxes[:, :2] + sides * np.float32(0.5) - longer * np.float32(0.5)
    return np.concatenate([corners, corners + longer], axis=1)


def _select(indices, *arrays):
    return [array[indices] for array in arrays]


def _nms(boxes, scores, iou):
    if len(boxes) < 2:
        return np.arange(len(boxes))
    corners = boxes.astype(float)
    rects = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return np.asarray(cv2.dnn.NMSBoxes(rects, scores, 0.0, iou), np.int64)


def _nms_by_owner(boxes, scores, owners, iou):
    """Indices kept, photo by photo."""
    kept = [np.zeros(0, np.int64)]
    for owner in np.unique(owners):
        mine = np.flatnonzero(owners == owner)
        kept.append(mine[_nms(boxes[mine], scores[mine], iou)])
    return np.concatenate(kept)


def _nms_within(boxes, scores, overlap):
    """Suppression by the share of the smaller of two boxes, in whole pixels (the paper's Min)."""
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    order = np.argsort(scores)[::-1]
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        corner = np.maximum(boxes[best, :2], boxes[order, :2])
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - corner + 1
        shared = sides.clip(min=0).prod(1)
        order = order[shared / np.minimum(areas[best], areas[order]) <= overlap]
    return np.array(kept, np.int64)
