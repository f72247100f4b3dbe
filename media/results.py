"""What the demo found, one line for each face: results.csv and results.jsonl."""

import csv
import json
from pathlib import Path

FACE_FIELDS = ("x1", "y1", "x2", "y2", "confidence", "roll_deg", "age", "median", "std", "low",
               "high")
FIELDS = ("file", "face", *FACE_FIELDS, "status")
VIDEO_FIELDS = ("file", "frame", "time_s", *FIELDS[1:])
DECIMALS = {"confidence": 4, "time_s": 3}  # all other numbers have 2
OK, NO_FACE, NOT_DRAWN, UNREADABLE = "ok", "no face", "no annotated picture", "unreadable"
RESULTS_NAME = "results.csv"


class ResultFiles:
    """results.csv and results.jsonl, written photo by photo; a context manager.

    Args:
        folder: existing folder; older results in it are replaced.
        fields: FIELDS, or VIDEO_FIELDS for frames of a clip.
    """

    def __init__(self, folder, fields=FIELDS):
        self.fields = fields
        # A file name need not be valid UTF-8: its bytes are written as they are.
        options = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
        self.csv_path, self.jsonl_path = Path(folder, RESULTS_NAME), Path(folder, "results.jsonl")
        self._csv = self.csv_path.open("w", **options)
        self._jsonl = self.jsonl_path.open("w", **options)
        self._writer = csv.DictWriter(self._csv, fields, lineterminator="\n")
        self._writer.writeheader()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._csv.close()
        self._jsonl.close()

    def write(self, origin, faces, status=OK):
        """Write one row for each face, or one row that says why there is no face.

        Args:
            origin: dict of the fields before `face`: file; for a clip also frame and time_s.
            faces: list of (number, Face).
            status: of the image; OK becomes NO_FACE if there are no faces.
        """
        rows = [{**origin, "face": number, **dict(face), "status": status}
                for number, face in faces]
        if not rows:
            rows = [{**origin, "status": NO_FACE if status == OK else status}]
        for row in rows:
            self._write_row(row)
        self._csv.flush()
        self._jsonl.flush()

    def _write_row(self, row):
        values = {name: _rounded(name, row.get(name)) for name in self.fields}
        self._writer.writerow(values)
        probs = row.get("probs")
        values["probs"] = None if probs is None else [round(float(p), 6) for p in probs]
        self._jsonl.write(json.dumps(values, ensure_ascii=False) + "\n")


def _rounded(name, value):
    return round(value, DECIMALS.get(name, 2)) if isinstance(value, float) else value
