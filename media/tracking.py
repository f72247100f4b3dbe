"""Faces followed through a video: detected every few frames, moved by optical flow in between.

Detection runs in a thread of its own, so that frames go on meanwhile. Motion is measured in a
reduced gray picture of each frame; the boxes of tracks are in pixels of that picture.
"""

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from predictor import Face, face_from_probs
from preprocess.face import MIN_FACE, iou

FLOW_SIDE = 640  # pixels, the longer side of the picture in which motion is measured
FLOW_FACE = 24  # pixels, the smallest face in that picture, which is larger if need be
MAX_CORNERS = 40  # followed in one face
MIN_CORNERS = 6  # if fewer agree on one motion, the face is lost
MIN_AGREEMENT = 0.4  # share of the corners that must agree
MIN_IOU = 0.3  # of a detected box and a track's box that are the same face
MAX_MISSES = 4  # detections in a row that miss a face; then its track ends
MIN_NEWEST_WEIGHT = 0.1  # of the newest distribution in a track's average
SMOOTHING = 0.6  # weight of the detected box; the rest is the followed box's


@dataclass
class Track:
    """One face through time.

    bbox: (4,) xyxy, its place now, in pixels of the reduced picture.
    bbox_then: its place when the running detection began.
    detected: the Face last found.
    turned_deg: degrees by which it has rolled since that Face's frame.
    probs: (K,), average of its distributions, in which older ones fade.
    """

    number: int
    bbox: np.ndarray
    detected: Face
    probs: np.ndarray
    bbox_then: np.ndarray | None = None
    estimates: int = 1
    misses: int = 0
    visible: bool = True
    turned_deg: float = 0.0

    def add(self, face, followed):
        """Add a detection in an earlier frame.

        Args:
            face: Face.
            followed: (its box now, degrees by which it has rolled since), or None if it was lost
                on the way. A lost face is shown again when a later detection finds it.
        """
        self.estimates += 1
        newest = max(1 / self.estimates, MIN_NEWEST_WEIGHT)
        self.probs = self.probs + newest * (np.asarray(face.probs) - self.probs)
        self.detected, self.misses = face, 0
        if followed is not None:
            bbox, self.turned_deg = followed
            self.bbox = bbox + (1 - SMOOTHING) * (self.bbox - bbox) if self.visible else bbox
        self.visible = followed is not None


class FaceTracker:
    """Follows the faces of a stream of frames.

    Args:
        find_faces: function (frame) -> list of Face in the frame's pixels; the slow part.
        age_bins: (K,) years.
        decode: mean | median, how a track's distribution becomes its age.
        every: frames from one detection to the next.
        wait: True to use a detection exactly `every` frames after it began, so that the result
            depends on the frames alone. False, for a camera, to use it as soon as it is ready
            after that, so that no frame waits.
        min_face: pixels, the smallest face that find_faces finds.

    Use it as a context manager, which ends its thread.
    """

    def __init__(self, find_faces, age_bins, decode="mean", every=5, wait=True, min_face=MIN_FACE):
        self.find_faces, self.age_bins, self.decode = find_faces, age_bins, decode
        self.every, self.wait, self.min_face = every, wait, min_face
        self.tracks, self.track_count = [], 0
        self.scale = 1.0  # of the reduced picture
        self.pictures = deque()  # reduced frames since the running detection began
        self.job, self.job_age = None, 0  # the running detection, and frames since it began
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="detection")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.thread.shutdown(wait=True, cancel_futures=True)

    def update(self, frame):
        """Take the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB, all of one size.
        Returns:
            list of (track number, Face in the frame's pixels), in order of appearance.
        """
        self.scale = min(1.0, max(FLOW_SIDE / max(frame.shape[:2]), FLOW_FACE / self.min_face))
        self.pictures.append(_flow_picture(frame, self.scale))
        self.job_age += 1
        if self.job is None:  # the first frame: nothing could be shown without waiting
            self._start_detection(frame)
            self._take_detection()
            self._start_detection(frame)
        self._follow()
        if self.job_age >= self.every and (self.wait or self.job.done()):
            self._take_detection()
            self._start_detection(frame)
        return [(track.number, self._face(track)) for track in self.tracks if track.visible]

    def _face(self, track):
        found = track.detected
        return face_from_probs(track.bbox / self.scale, found.confidence,
                               found.roll_deg + track.turned_deg, track.probs, self.age_bins,
                               self.decode)

    def _start_detection(self, frame):
        self.job, self.job_age = self.thread.submit(self.find_faces, frame), 0
        while len(self.pictures) > 1:
            self.pictures.popleft()
        for track in self.tracks:
            track.bbox_then = track.bbox

    def _follow(self):
        if len(self.pictures) < 2:
            return
        seen = [track for track in self.tracks if track.visible]
        moves = move_boxes(self.pictures[-2], self.pictures[-1], [track.bbox for track in seen])
        for track, move in zip(seen, moves, strict=True):
            track.visible = move is not None
            if move is not None:
                track.bbox = move[0]
                track.turned_deg += move[1]

    def _take_detection(self):
        """Match the faces of an earlier frame with the tracks' places in that frame."""
        faces = self.job.result()
        boxes = [self.scale * np.array([f.x1, f.y1, f.x2, f.y2]) for f in faces]
        matches = match_boxes([track.bbox_then for track in self.tracks], boxes)
        for track in self.tracks:
            track.misses += 1  # a match sets it back to 0
        now = self._followed(boxes)
        for i, face in enumerate(faces):
            if i in matches:
                self.tracks[matches[i]].add(face, now.get(i))
            elif i in now:
                self.track_count += 1
                bbox, turned_deg = now[i]
                self.tracks.append(Track(self.track_count, bbox, face, np.asarray(face.probs),
                                         turned_deg=turned_deg))
        self.tracks = [track for track in self.tracks if track.misses < MAX_MISSES]

    def _followed(self, boxes):
        """{index: (box now, degrees rolled)} of the detected boxes that are not lost."""
        followed = {i: (box, 0.0) for i, box in enumerate(boxes)}
        for previous, current in itertools.pairwise(self.pictures):
            moves = move_boxes(previous, current, [box for box, _ in followed.values()])
            followed = {i: (move[0], turned_deg + move[1]) for (i, (_, turned_deg)), move
                        in zip(followed.items(), moves, strict=True) if move is not None}
        return followed


def move_boxes(previous, current, boxes):
    """Carry boxes from one frame to the next by the motion of the corners inside them.

    Pyramidal Lucas-Kanade (Bouguet, 2001), then the similarity that most corners follow.

    Args:
        previous, current: (H, W) uint8, reduced as _flow_picture does.
        boxes: list of (4,) xyxy in these pictures.
    Returns:
        list, for each box ((4,) moved box, degrees by which it rolled, positive as in roll_deg),
        or None if its corners do not move together or it leaves the picture.
    """
    corners = [_corners_in(previous, box) for box in boxes]
    if not any(len(points) for points in corners):
        return [None] * len(boxes)
    moved, found, _ = cv2.calcOpticalFlowPyrLK(previous, current, np.concatenate(corners), None,
                                               winSize=(15, 15), maxLevel=3)
    ends = np.cumsum([len(points) for points in corners])[:-1]
    moves = []
    for box, points, targets, kept in zip(boxes, corners, np.split(moved, ends),
                                          np.split(found.ravel() == 1, ends), strict=True):
        motion = _common_motion(points[kept], targets[kept])
        moves.append(None if motion is None else _moved(box, motion, current.shape))
    return moves


def _corners_in(picture, box):
    """(N, 2) float32 corners in the middle of a box: its border shows background."""
    x1, y1, x2, y2 = box
    inset_x, inset_y = 0.1 * (x2 - x1), 0.1 * (y2 - y1)
    left, top = max(0, round(x1 + inset_x)), max(0, round(y1 + inset_y))
    region = picture[top:max(0, round(y2 - inset_y)), left:max(0, round(x2 - inset_x))]
    if min(region.shape) < 8:
        return np.empty((0, 2), np.float32)
    spacing = max(2, min(region.shape) // 16)
    corners = cv2.goodFeaturesToTrack(region, MAX_CORNERS, 0.01, spacing)
    if corners is None:
        return np.empty((0, 2), np.float32)
    return corners.reshape(-1, 2) + np.float32([left, top])


def _common_motion(points, targets):
    """(2, 3) similarity that most of the points follow, or None."""
    if len(points) < MIN_CORNERS:
        return None
    motion, inliers = cv2.estimateAffinePartial2D(points, targets, ransacReprojThreshold=2.0)
    if motion is None or inliers.sum() < max(MIN_CORNERS, MIN_AGREEMENT * len(points)):
        return None
    return motion


def _moved(box, motion, shape):
    """(box, degrees) after a similarity; None if it doubles or halves, or leaves the picture."""
    growth = float(np.hypot(motion[0, 0], motion[1, 0]))
    centre = motion[:, :2] @ (box[:2] + box[2:]) / 2 + motion[:, 2]
    if not 0.5 < growth < 2 or not (0 <= centre[0] < shape[1] and 0 <= centre[1] < shape[0]):
        return None
    half = (box[2:] - box[:2]) / 2 * growth
    turned = float(np.degrees(np.arctan2(motion[1, 0], motion[0, 0])))
    return np.concatenate([centre - half, centre + half]), turned


def match_boxes(tracked, detected):
    """Pairs of boxes with an IoU of at least MIN_IOU, best first, each box once.

    Args:
        tracked, detected: lists of (4,) xyxy.
    Returns:
        dict, index of a detected box -> index of its tracked box.
    """
    pairs = sorted(((iou(t, d), i, j) for i, t in enumerate(tracked)
                    for j, d in enumerate(detected)), reverse=True)
    matches = {}
    for overlap, i, j in pairs:
        if overlap >= MIN_IOU and j not in matches and i not in matches.values():
            matches[j] = i
    return matches


def _flow_picture(frame, scale):
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    if scale == 1:
        return gray
    return cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
