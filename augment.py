"""Training augmentation on uint8 RGB arrays.

One affine resampling, few passes over the colours, then the faults of cameras and files.
"""

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def augment(canvas, size, rng, aug):
    """A randomly changed face.

    Args:
        canvas: (T, T, 3) uint8 RGB, T >= size: the crop with its context around it.
        size: pixels, side of the result.
        rng: numpy Generator; the same state gives the same face.
        aug: the config's AUG section; with STRENGTH 0 the result is the centre of the canvas.
    Returns:
        (size, size, 3) uint8 RGB, black outside the canvas.
    """
    strength = aug.STRENGTH
    face = cv2.warpAffine(canvas, _random_affine(canvas.shape[0], size, rng, aug), (size, size),
                          flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_CONSTANT)
    face = _jitter_colour(face, rng, aug)
    if rng.random() < strength * aug.BLUR:
        face = cv2.GaussianBlur(face, (0, 0), rng.uniform(0.3, 1.5) * size / 128)
    if rng.random() < strength * aug.RESOLUTION:
        face = _coarsen(face, rng.uniform(0.25, 1))
    if rng.random() < strength * aug.NOISE:
        noise = rng.standard_normal(face.shape, np.float32) * rng.uniform(2, 12)
        face = cv2.add(face, noise, dtype=cv2.CV_8U)  # saturates to 0..255
    if rng.random() < strength * aug.JPEG:
        face = _compress(face, int(rng.integers(20, 91)))
    if rng.random() < strength * aug.ERASING:
        _erase(face, rng)
    return face


def _random_affine(canvas_size, size, rng, aug):
    """(2, 3) matrix from pixels of the result to the canvas: flip, turn, zoom, stretch, shift."""
    strength = aug.STRENGTH
    turn = np.radians(rng.uniform(-1, 1) * strength * aug.ROTATION)
    smallest = 1 - strength * (1 - aug.CROP_AREA)
    zoom = np.sqrt(rng.uniform(max(smallest, 0.05), 1))  # side of the kept part
    stretch = np.sqrt((1 + strength * aug.STRETCH) ** rng.uniform(-1, 1))
    room = (1 - zoom) / 2 + strength * aug.SHIFT  # shift that keeps a smaller crop inside
    shift = rng.uniform(-room, room, 2) * size
    mirror = -1 if rng.random() < (aug.FLIP if strength > 0 else 0) else 1
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = rotation @ np.diag([mirror * zoom * stretch, zoom / stretch])
    centre = (canvas_size - 1) / 2 + shift
    return np.column_stack([linear, centre - linear @ np.full(2, (size - 1) / 2)])


def _jitter_colour(face, rng, aug):
    """Gamma, contrast and brightness as one look-up table, saturation as one matrix."""
    strength = aug.STRENGTH
    brightness, contrast, saturation = 1 + strength * rng.uniform(-1, 1, 3) * (
        aug.BRIGHTNESS, aug.CONTRAST, aug.SATURATION)
    gamma = (1 + aug.GAMMA) ** (strength * rng.uniform(-1, 1))
    if rng.random() < strength * aug.GRAYSCALE:
        saturation = 0.0
    levels = np.linspace(0, 1, 256) ** gamma * brightness
    middle = float(face.mean()) / 255  # contrast is relative to the face's mean brightness
    table = ((levels - middle) * contrast + middle).clip(0, 1) * 255
    face = cv2.LUT(face, table.round().astype(np.uint8))
    if saturation != 1:
        mixing = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * LUMA
        face = cv2.transform(face, mixing)  # saturates to 0..255
    return face


def _coarsen(face, scale):
    """The face at a lower resolution: scaled down to this share of its side, and up again."""
    size = face.shape[0]
    side = max(1, round(size * scale))
    small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)


def _compress(face, quality):
    """The face after JPEG compression with this quality, 0..100."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(face, cv2.COLOR_RGB2BGR),
                           [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _erase(face, rng):
    """Fill a rectangle of 2 to 20% of the area with noise (Zhong et al., AAAI 2020)."""
    size = face.shape[0]
    area, aspect = rng.uniform(0.02, 0.2), np.exp(rng.uniform(-1, 1))
    height = max(1, min(size, round(size * np.sqrt(area * aspect))))
    width = max(1, min(size, round(size * np.sqrt(area / aspect))))
    top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
    face[top:top + height, left:left + width] = rng.integers(0, 256, (height, width, 3), np.uint8)
