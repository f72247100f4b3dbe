"""Alignment in worker processes, one for each CPU core: each reads photos and finds their faces.

Several processes on one core each are faster than one process on several cores. While one process
reads a photo, the others search theirs for faces.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import operator
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from preprocess.columns import LOCATION
from preprocess.detector import FaceDetector, detection_batches
from preprocess.face import BOX_DECIMALS, ROLL_DECIMALS, as_listed, load_photo, stop_unless_damaged
from preprocess.rows import MISSING, UNREADABLE, location_problem
from utils.tables import number_of


@contextlib.contextmanager
def worker_pool(workers, data_dir, settings):
    """Start the processes and yield submit: it takes rows and returns a future of their results.

    Args:
        workers: number of processes.
        data_dir: folder of the photos.
        settings: {name: value} of FaceDetector's arguments.
    Raises:
        OSError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker, (str(data_dir), settings)) as pool:
        try:
            yield partial(pool.submit, align_in_worker)
        except BrokenProcessPool as error:
            raise OSError("a worker process died, perhaps because the memory was full; start "
                          f"again, if necessary with fewer than {workers} --workers: finished "
                          "work is kept") from error
        finally:
            pool.shutdown(cancel_futures=True)


def start_worker(data_dir, settings):
    global worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    threading.Thread(target=end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    worker = partial(align_rows, FaceDetector(**settings, threads=1), Path(data_dir))


def end_with_parent():
    """Wait until the main process ends, even by a kill, and end too."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def align_in_worker(rows):
    return worker(rows)


def align_rows(detector, data_dir, rows):
    """The results of some rows of a list.

    Args:
        detector: FaceDetector.
        data_dir: folder of the photos.
        rows: list of dicts with photo and age, and perhaps the columns LOCATION.
    Returns:
        list with, for each row, a list of texts: the reason why there is no face, or "" and the
        values of the columns ALIGNED.
    Raises:
        OSError: see face.stop_unless_damaged.
    """
    results = [None] * len(rows)

    def photos():  # a generator, so that few photos are in memory
        for index, row in enumerate(rows):
            results[index] = row_problem(row)
            if results[index] is None:
                path = data_dir / row["photo"]
                try:
                    photo = load_photo(path)
                except (OSError, MemoryError) as error:
                    stop_unless_damaged(error, path, data_dir)
                    is_missing = isinstance(error, FileNotFoundError)
                    results[index] = [MISSING if is_missing else UNREADABLE]
                else:
                    yield index, photo

    for batch in detection_batches(photos(), photo_of=operator.itemgetter(1)):
        indices, images = zip(*batch, strict=True)
        locations = [row_location(rows[index]) for index in indices]
        with naming_largest(images, [data_dir / rows[index]["photo"] for index in indices]):
            found = detector.align(images, locations=locations)
        for index, faces in zip(indices, found, strict=True):
            results[index] = face_result(faces)
    return results


@contextlib.contextmanager
def naming_largest(images, paths):
    """Context in which full memory is an OSError that names the largest of some photos."""
    try:
        yield
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
            raise
        path, _ = max(zip(paths, images, strict=True), key=lambda pair: np.prod(pair[1].size))
        stop_unless_damaged(MemoryError(), path, path.parent)


def face_result(faces):
    if not faces:
        return ["no face in the first pass"]
    face = faces[0]
    if not face.found_twice:
        return ["no face in the second pass"]
    roll_deg, bbox = as_listed(face.roll_deg, face.aligned_bbox)
    return ["", f"{roll_deg:.{ROLL_DECIMALS}f}", *(f"{value:.{BOX_DECIMALS}f}" for value in bbox),
            f"{face.confidence:.5f}"]


def row_problem(row):
    """A result that says why a row cannot be used, or None."""
    if not row["photo"]:
        return ["no photo"]
    if problem := location_problem(row):
        return [problem]
    if not row["age"].strip() and row.get("age_min") and row.get("age_max"):
        return None
    if number_of(row["age"]) is None:
        return [f"age '{' '.join(row['age'].split())}' is not a number"]
    return None


def row_location(row):
    """(4,) xyxy pixels of the face that the row is about, or None if the list does not say it."""
    location = [row.get(name, "").strip() for name in LOCATION]
    return np.array(location, float) if any(location) else None
