"""Alignment in worker processes: one a CPU core, each reads photos and finds their faces.

A process a core is faster than one process on several cores, and reading a photo in one overlaps
with detection in the others.
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

from preprocess.detector import FaceDetector, detection_batches
from preprocess.face import BOX_DECIMALS, ROLL_DECIMALS, as_listed, load_photo
from preprocess.readers import LOCATION, MISSING, number_of

RESULT = ["deg", "box1", "box2", "box3", "box4", "confidence"]  # columns, see face_align.py
UNREADABLE = "unreadable image"


@contextlib.contextmanager
def worker_pool(workers, data_dir, settings):
    """A function that sends rows to a worker process and returns a future of their results."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, start_worker, (str(data_dir), settings)) as pool:
        try:
            yield partial(pool.submit, align_in_worker)
        except BrokenProcessPool as error:
            raise OSError("a worker process died, perhaps out of memory; start again, if need be "
                          f"with fewer than {workers} --workers: nothing done is lost") from error
        finally:
            pool.shutdown(cancel_futures=True)


def start_worker(data_dir, settings):
    global worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    threading.Thread(target=end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    worker = partial(align_rows, FaceDetector(**settings, threads=1), Path(data_dir))


def end_with_parent():
    """Wait for the main process's end, however it comes, and end with it."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def align_in_worker(rows):
    return worker(rows)


def align_rows(detector, data_dir, rows):
    """Results of a few rows of a list.

    Args:
        detector: FaceDetector.
        data_dir: folder of the photos.
        rows: list of dicts with photo and age, and perhaps the columns of LOCATION.
    Returns:
        list, one a row, of fields as text: a reason why there is no face, or "" and RESULT.
    """
    results = [None] * len(rows)

    def photos():  # read as the detector takes them, so that few are in memory
        for index, row in enumerate(rows):
            results[index] = row_problem(row)
            if results[index] is None:
                try:
                    yield index, load_photo(data_dir / row["photo"])
                except FileNotFoundError:
                    results[index] = [MISSING]
                except OSError:
                    results[index] = [UNREADABLE]

    for batch in detection_batches(photos(), photo_of=operator.itemgetter(1)):
        indices, images = zip(*batch, strict=True)
        locations = [row_location(rows[index]) for index in indices]
        for index, faces in zip(indices, detector.align(images, locations=locations), strict=True):
            results[index] = face_result(faces)
    return results


def face_result(faces):
    if not faces:
        return ["no face in the first pass"]
    face = faces[0]
    if face.aligned_bbox is None:
        return ["no face in the second pass"]
    roll_deg, bbox = as_listed(face.roll_deg, face.aligned_bbox)
    return ["", f"{roll_deg:.{ROLL_DECIMALS}f}", *(f"{value:.{BOX_DECIMALS}f}" for value in bbox),
            f"{face.confidence:.5f}"]


def row_problem(row):
    """Why a row cannot be used as it stands, as a result, or None."""
    if not row["photo"]:
        return ["no photo"]
    if not row["age"].strip() and row.get("age_min") and row.get("age_max"):
        return None
    if number_of(row["age"]) is None:
        return [f"age '{' '.join(row['age'].split())}' is no number"]
    return None


def row_location(row):
    """xyxy pixels of the face in question, or None where the list does not tell."""
    try:
        return np.array([float(row[name]) for name in LOCATION])
    except (KeyError, ValueError):
        return None
