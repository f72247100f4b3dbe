"""What the demo found, one line for each face: results.csv and results.jsonl."""

import csv
import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from utils.files import replaced

FACE_FIELDS = ("x1", "y1", "x2", "y2", "confidence", "roll_deg", "age", "median", "std", "low",
               "high")
FIELDS = ("file", "face", *FACE_FIELDS, "status")
VIDEO_FIELDS = ("file", "frame", "time_s", *FIELDS[1:])
DECIMALS = {"confidence": 4, "time_s": 3}  # shares have 4, all other numbers 2
P_AT_LEAST = "p_at_least_"  # with a number of years: the probability of being that old
OK, NO_FACE, NOT_DRAWN, UNREADABLE = "ok", "no face", "no annotated picture", "unreadable"
RESULTS_NAME, LINES_NAME = "results.csv", "results.jsonl"
PARTS_NAME = ".results-"
# A file name need not be valid UTF-8: its bytes are written as they are.
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def with_threshold(fields, threshold):
    """The fields with the probability of being at least `threshold` years old, unless None."""
    if threshold is None:
        return fields
    place = fields.index("high") + 1
    return (*fields[:place], f"{P_AT_LEAST}{threshold}", *fields[place:])


def result_rows(origin, faces, fields, status=OK):
    """One row for each face, or one row that says why there is no face.

    Args:
        origin: dict of the fields before `face`: file; for a clip also frame and time_s.
        faces: list of (number, Face).
        fields: names of the columns.
        status: what became of the image; OK becomes NO_FACE if there are no faces.
    Returns:
        list of dicts with the fields, rounded, and `probs`, a list or None.
    """
    rows = []
    for number, face in faces:
        shares = {name: face.probability_of_at_least(int(name.removeprefix(P_AT_LEAST)))
                  for name in fields if name.startswith(P_AT_LEAST)}
        values = {**origin, "face": number, **dict(face), **shares, "status": status}
        rows.append({name: _rounded(name, values.get(name)) for name in fields}
                    | {"probs": [round(float(p), 6) for p in face.probs]})
    if rows:
        return rows
    values = {**origin, "status": NO_FACE if status == OK else status}
    return [{name: _rounded(name, values.get(name)) for name in fields} | {"probs": None}]


def _rounded(name, value):
    decimals = 4 if name.startswith(P_AT_LEAST) else DECIMALS.get(name, 2)
    return round(value, decimals) if isinstance(value, float) else value


class ResultFiles:
    """results.csv and results.jsonl, written row by row; a context manager.

    Args:
        csv_path, jsonl_path: Path of the two files; older ones are replaced.
        fields: FIELDS, or VIDEO_FIELDS for frames of a clip, see with_threshold().
    """

    def __init__(self, csv_path, jsonl_path, fields=FIELDS):
        self.fields = fields
        self._csv, self._jsonl = csv_path.open("w", **TEXT), jsonl_path.open("w", **TEXT)
        self._writer = csv.DictWriter(self._csv, fields, extrasaction="ignore",
                                      lineterminator="\n")
        self._writer.writeheader()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._csv.close()
        self._jsonl.close()

    def write(self, origin, faces, status=OK):
        """Write what result_rows makes of one image."""
        self.write_rows(result_rows(origin, faces, self.fields, status))
        self._csv.flush()
        self._jsonl.flush()

    def write_rows(self, rows):
        for row in rows:
            self._writer.writerow(row)
            self._jsonl.write(json.dumps(row, ensure_ascii=False) + "\n")


def work_digest(settings, fields=FIELDS):
    """Short text that is equal for runs over photos whose results belong together.

    Args:
        settings: text that changes with everything that changes results.
        fields: see with_threshold().
    """
    return hashlib.sha256(f"{settings} {fields}".encode()).hexdigest()[:12]


def forget_other_work(folder, work):
    """Delete what stopped runs of other work have kept: they do not go on.

    folder, work: as of PhotoResults.
    """
    for parts in Path(folder).glob(f"{PARTS_NAME}*"):
        if parts.name != f"{PARTS_NAME}{work}":
            shutil.rmtree(parts, ignore_errors=True)


class PhotoResults:
    """Results of a folder of photos, kept one by one so that a stopped run can go on.

    Each process appends to a file of its own in a hidden folder, so any number of processes can
    work on the photos, together or one run after the other. A photo counts as done if it has a
    line there and has not changed since: its size is the same, and unless the work is shared also
    its time. Machines that share the work may have copies of the photos, with other times. A photo
    that could not be read or drawn on is tried again, as the reason may be gone.
    A context manager, which closes the file.

    Args:
        folder: existing folder of the results.
        work: names the work in the hidden folder's name, see work_digest().
        fields: see with_threshold().
        is_shared: several processes work on the photos.
    """

    def __init__(self, folder, work, fields=FIELDS, is_shared=False):
        self.folder, self.fields, self.is_shared = Path(folder), fields, is_shared
        self.parts = self.folder / f"{PARTS_NAME}{work}"
        self.parts.mkdir(exist_ok=True)
        self._earlier, _ = self._index()
        path = self.parts / f"{uuid4().hex}.jsonl"
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def is_done(self, name, path):
        """Whether an earlier run has the results of this photo as it is now."""
        return _find(self._earlier, name, path) is not None

    def add(self, name, path, faces, status=OK):
        """Keep the results of one photo.

        Args:
            name: str, its name in the tables.
            path: where the photo lies.
            faces: list of Face.
            status: see result_rows().
        """
        rows = result_rows({"file": name}, list(enumerate(faces, 1)), self.fields, status)
        size, stamp = _stamps(path)
        line = {"file": name, "stamp": size if self.is_shared else stamp, "rows": rows}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def write_tables(self, paths, only_complete=False):
        """Write results.csv and results.jsonl of what is done, in the order of the photos.

        When all photos are done, the hidden folder is deleted.

        Args:
            paths: {name: path} of all photos.
            only_complete: write nothing unless all photos are done.
        Returns:
            Number of photos that are not done.
        """
        with suppress(FileNotFoundError):  # another process has just written and deleted all
            done, failed = self._index()
            places = {name: _find(done, name, path) or _find(failed, name, path)
                      for name, path in paths.items()}
            missing = sum(place is None for place in places.values())
            if missing and only_complete:
                return missing
            with (replaced(self.folder / RESULTS_NAME) as csv_path,
                  replaced(self.folder / LINES_NAME) as jsonl_path,
                  ResultFiles(csv_path, jsonl_path, self.fields) as results):
                for place in filter(None, places.values()):
                    results.write_rows(_read_line(*place)["rows"])
            if missing:
                return missing
        self._file.close()
        shutil.rmtree(self.parts, ignore_errors=True)
        return 0

    def _index(self):
        """{(name, stamp): (file, place in it)} of all lines that are whole: (done, failed).

        Raises:
            FileNotFoundError: another process has just deleted the folder.
        """
        done, failed = {}, {}
        for path in sorted(self.parts.iterdir()):
            place = 0
            with path.open("rb") as file:
                for line in file:
                    with suppress(ValueError, KeyError):  # cut short by a kill
                        entry = json.loads(line)
                        stamp = entry["stamp"]
                        if self.is_shared:
                            stamp = stamp.partition(" ")[0]  # the size
                        has_failed = entry["rows"][0]["status"].startswith((UNREADABLE, NOT_DRAWN))
                        (failed if has_failed else done)[entry["file"], stamp] = path, place
                    place += len(line)
        return done, failed


def _find(index, name, path):
    """The place of a photo's results in the index, or None if it is not there."""
    size, stamp = _stamps(path)
    return index.get((name, stamp)) or index.get((name, size))  # the size alone: a share's


def _read_line(path, place):
    with path.open("rb") as file:
        file.seek(place)
        return json.loads(file.readline())


def _stamps(path):
    """(size, size and time of a file) as text; both are "" if there is no such file."""
    try:
        state = Path(path).stat()
    except OSError:
        return "", ""
    return f"{state.st_size}", f"{state.st_size} {state.st_mtime_ns}"
