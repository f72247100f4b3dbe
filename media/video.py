"""Frames in and out: a camera or a clip, an annotated clip, a window."""

import functools
import os
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
from PIL import Image

from utils.files import free_space, size_text

DEFAULT_FPS = 30.0  # if a camera or clip does not say
MAX_FPS = 240.0  # a larger number is the time base of some formats, not a frame rate
SHORT_SECONDS, SHORT_SHARE = 0.5, 0.1  # a whole clip may state this much more than it has
MAX_LOST = 3000  # frames in a row that cannot be read; then the clip ends
WINDOW_SIZE = (1280, 800)  # pixels, largest picture in a window
MAX_PAUSE = 60  # seconds, longest time that a written clip stands still, see ClipWriter.write
ESC = 27
MODIFIER_KEYS = range(0xFFE1, 0xFFEF)  # X11's codes of Shift, Control, Alt alone
NO_DISPLAY = ("no display to open a window on (or OpenCV was built without windows); use "
              "--output_dir to write annotated files instead")


@functools.cache
def silence_opencv():
    """Keep OpenCV and FFmpeg from printing their errors: each ends in one line of our own."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Frames:
    """The frames of a clip or a camera, as (H, W, 3) uint8 RGB arrays.

    Attributes: `name`, `stem` (the name without a file's suffix), `size` (width, height), `fps` as
    the source states it, `count` of frames expected (0 if unknown), `is_camera`. For a clip also
    `seconds`, the time of the latest frame, `duration`, the seconds that the clip states (0 if
    unknown), and `has_broken_off`, True if it ended clearly before that. `has_stream_ended` is True
    if an address without a stated length gave no more frames. `lost` counts frames that could not
    be read between others; `number` is that of the latest frame, from 0, in which they count.

    Args:
        source: path of a clip, an rtsp:// or http(s):// address, or the number of a camera. An
            address whose length is not known is treated as a camera.
    Raises:
        FileNotFoundError: no such clip, or it is a folder.
        ValueError: OpenCV cannot open a file of that name.
        OSError: it cannot be read, or there is no such camera.
    """

    def __init__(self, source):
        silence_opencv()
        self.fps, self.seconds, self._start, self.has_broken_off = DEFAULT_FPS, None, 0.0, False
        self.has_stream_ended, self.lost, self._done = False, 0, 0
        is_number, is_address = isinstance(source, int), "://" in str(source)
        self._is_address = is_address
        if is_number:
            self.name = self.stem = f"camera {source}"
        elif is_address:
            self.name = self.stem = address_name(source)  # its points begin no suffix
        else:
            check_clip(source)
            self.name, self.stem = Path(source).name, Path(source).stem
        self._capture = cv2.VideoCapture(
            source if is_number or is_address else opencv_path(source))
        self.is_camera = is_number or (
            is_address and not self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0)
        self._first = self._read()
        if self._first is None:
            self.close()
            raise OSError(f"no camera {source}, or another program uses it; name another with "
                          "--camera, photos with --img_dir, a clip with --video" if is_number else
                          f"cannot read a frame of '{self.name}'; is the address right, and the "
                          "server up?" if is_address else
                          f"cannot read a frame of clip '{source}'; is it a video?")
        self.size = self._first.shape[1], self._first.shape[0]
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= MAX_FPS else DEFAULT_FPS
        count = 0 if self.is_camera else max(0, self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.duration = count / fps if fps > 0 else 0.0
        self.count = round(self.duration * self.fps)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __iter__(self):
        frame = self._first
        while frame is not None:
            yield frame
            frame = self._next()
        if self.is_camera and not self._is_address:
            raise OSError(f"{self.name} stopped delivering frames; is it still plugged in?")
        self.has_stream_ended = self.is_camera
        missing = self.duration - self.seconds - 1 / self.fps
        self.has_broken_off = missing > max(SHORT_SECONDS, SHORT_SHARE * self.duration)

    @property
    def number(self):
        return self._done + self.lost - 1

    def close(self):
        self._capture.release()

    def _next(self):
        """The next frame that can be read; None at the end."""
        failed = 0
        frame = self._read()
        while (frame is None and failed < MAX_LOST
               and self._done + self.lost + failed + 1 < self.count):
            failed += 1  # a damaged spot: OpenCV skips a frame at each try
            frame = self._read()
        if frame is not None:
            self.lost += failed
        return frame

    def _read(self):
        there, frame = self._capture.read()
        if not there:
            return None
        self._done += 1
        stated = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self.seconds is None:
            self._start, self.seconds = stated, 0.0
        elif stated - self._start > self.seconds:
            self.seconds = stated - self._start
        else:  # not stated
            self.seconds += 1 / self.fps
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def check_clip(path):
    """Refuse what is not a file.

    Raises:
        FileNotFoundError: there is no such file, or it is a folder, a device or a pipe.
    """
    if Path(path).is_dir():
        raise FileNotFoundError(f"--video '{path}' is a folder; name a clip in it, or give a "
                                "folder of photos with --img_dir")
    if Path(path).exists() and not Path(path).is_file():
        raise FileNotFoundError(f"--video '{path}' is not a file; a camera is given by its number, "
                                "with --camera N")
    if not Path(path).is_file():
        raise FileNotFoundError(f"clip '{path}' not found")


def address_name(address):
    """Name of an address without user, password and query, fit to be a file name."""
    parts = urlsplit(address)
    try:
        port = f"_{parts.port}" if parts.port else ""
    except ValueError:  # not a number; it may be a part of the password, so it is not shown
        port = ""
    name = f"{parts.hostname or ''}{port}{parts.path}"
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "stream"


def opencv_path(path):
    """A file's path in the form that OpenCV takes: absolute, as text.

    OpenCV would take a colon in the first part of a relative path for a protocol.

    Raises:
        ValueError: the name is not valid UTF-8; OpenCV would crash.
    """
    path = os.path.abspath(path)  # noqa: PTH100 (the file may not exist yet)
    if path != path.encode("utf-8", "replace").decode():
        raise ValueError(f"clip '{path}': its name is not valid UTF-8; rename it")
    return path


class ClipWriter:
    """Writes frames as an MP4 clip; a context manager, which finishes the file.

    Args:
        path: where the clip is written; an earlier file is replaced.
        size: (width, height) of every frame.
        fps: frames a second.
    Raises:
        OSError: the clip cannot be written, or at the end it is not whole.
    """

    def __init__(self, path, size, fps):
        silence_opencv()
        # MPEG-4 divides a second into at most 65535 parts; OpenCV gives it fps to three decimals.
        self.path, self.fps, self.written = Path(path), round(fps, 3 if fps < 65 else 0), 0
        self._left_out = 0.0  # seconds of pauses
        self._writer = cv2.VideoWriter(opencv_path(path), cv2.VideoWriter_fourcc(*"mp4v"),
                                       self.fps, size)
        if not self._writer.isOpened():
            raise OSError(f"cannot write clip '{path}' of {size[0]}x{size[1]} pixels and "
                          f"{self.fps:g} frames/s")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._writer.release()
        if kind not in (None, KeyboardInterrupt):
            return
        there = self._frames_there()  # OpenCV does not tell that it could not write
        if there < self.written:  # it may be one more: an interruption before it was counted
            raise OSError(f"clip '{self.path}' could not be written whole ({there} of "
                          f"{self.written} frames); {size_text(free_space(self.path))} free there")

    def _frames_there(self):
        clip = cv2.VideoCapture(opencv_path(self.path))
        try:
            return max(0, round(clip.get(cv2.CAP_PROP_FRAME_COUNT)))
        finally:
            clip.release()

    def write(self, picture, seconds=None):
        """Add a PIL.Image; with `seconds`, repeat it until the clip reaches that time.

        A recording then plays at the speed at which it was taken, however fast the frames came.
        Of a pause of hours, as a camera leaves that waits for motion, MAX_PAUSE is kept.
        """
        times = 1 if seconds is None else max(
            0, round((seconds - self._left_out) * self.fps) + 1 - self.written)
        too_many = times - max(1, round(MAX_PAUSE * self.fps))
        if too_many > 0:
            self._left_out += too_many / self.fps
            times -= too_many
        frame = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR)
        for _ in range(times):
            self._writer.write(frame)
            self.written += 1


class ScreenWindow:
    """A window for pictures; a context manager.

    Raises:
        OSError: no window can be opened here.
    """

    def __init__(self, title):
        self.title, self.shown = title, False
        check_display()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.shown:
            cv2.destroyAllWindows()

    def show(self, picture):
        """Show a PIL.Image, shrunk where it is larger than WINDOW_SIZE."""
        picture = picture.copy()
        picture.thumbnail(WINDOW_SIZE, Image.Resampling.LANCZOS)
        if not self.shown:
            cv2.namedWindow(self.title, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
            self.shown = True
        cv2.imshow(self.title, cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))

    def key(self, wait_ms):
        """Code of the key pressed within wait_ms; ESC when the window was closed; else None."""
        while True:  # in parts, so that Ctrl-C and a closed window need not wait for the end
            code = cv2.waitKeyEx(max(1, min(wait_ms, 50)))
            if self._is_closed():
                return ESC
            if code != -1 and code not in MODIFIER_KEYS:
                return code & 0xFF
            wait_ms -= 50
            if wait_ms <= 0:
                return None

    def _is_closed(self):
        try:
            return cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error:  # Qt shuts down with its last window
            return True

    def wait_key(self):
        """The next key; ESC when the window was closed. Ctrl-C in the terminal gets through."""
        while (code := self.key(50)) is None:
            pass
        return code


def check_display():
    """Raise OSError if no window can be opened.

    A process of its own tries it: without a display Qt ends the process instead of failing.
    """
    if not sys.platform.startswith("linux"):
        return
    probe = subprocess.run([sys.executable, "-c", "import cv2; cv2.namedWindow('probe')"],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if probe.returncode != 0:
        raise OSError(NO_DISPLAY)


class FrameRate:
    """Frames a second over the last thirty of them, measured."""

    def __init__(self):
        self._times = deque(maxlen=30)

    def tick(self):
        """Count a frame; the rate, 0 at the first."""
        self._times.append(time.perf_counter())
        spent = self._times[-1] - self._times[0]
        return (len(self._times) - 1) / spent if spent > 0 else 0.0
