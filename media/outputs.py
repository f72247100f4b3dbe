"""Which files of a folder the demo has written: it replaces these, and no others."""

import csv
import json
import os
from contextlib import suppress
from pathlib import Path

from media.photos import RECORD_NAME, picture_names
from media.results import LINES_NAME, PARTS_NAME, RESULTS_NAME, TEXT
from utils.files import replaced

OUR_COLUMNS = {"file", "face", "age", "status"}  # of results.csv, of photos and of clips


def claim_files(folder, names, clip=None):
    """Refuse to replace what the demo has not written; note what it is about to write.

    The note is kept before the first file is written, so that a run that was killed can go on.

    Args:
        folder: existing folder of the results.
        names: Paths relative to it, of the pictures or the clip that will be written beside
            results.csv and results.jsonl.
        clip: what the tables name as their file if they are of a clip; None for photos.
    Raises:
        ValueError: a file is there that the demo has not written, or tables of another clip.
    """
    names = {RESULTS_NAME, LINES_NAME, *(name.as_posix() for name in names)}
    # Before the record is read: a process that shares the work keeps it before it writes.
    there = sorted(name for name in names if _is_file(folder / name))
    record = folder / RECORD_NAME
    written = set(json.loads(record.read_text()) if record.is_file() else _written_before(folder))
    others = [name for name in there if name not in written]
    if others:
        more = f" (and {len(others) - 1} more)" if others[1:] else ""
        raise ValueError(f"'{folder / others[0]}'{more}, not written by the demo, would be "
                         "overwritten; choose another --output_dir")
    columns, files = _table(folder)
    if files and files[0] != clip and (clip is not None or "frame" in columns):
        raise ValueError(f"the tables of '{files[0]}' in '{folder}' would be overwritten; choose "
                         "another --output_dir")
    if not (record.is_file() and written >= names):
        with replaced(record) as temporary:
            temporary.write_text(json.dumps(sorted(written | names)))


def clip_name(stem):
    """Path of the annotated clip."""
    return Path(f"{stem}.mp4")


def _is_file(path):
    return os.path.isfile(path)  # noqa: PTH113 (False where the name is too long)


def _table(folder):
    """(columns, files that its rows name) of a results.csv of the demo; empty without one."""
    path = folder / RESULTS_NAME
    if path.is_file():
        with path.open(**TEXT) as file, suppress(csv.Error):
            rows = csv.DictReader(file)
            if {*(rows.fieldnames or ())} >= OUR_COLUMNS:
                return rows.fieldnames, list(dict.fromkeys(row["file"] for row in rows))
    return [], []


def _written_before(folder):
    """Names of what earlier versions wrote, which kept no record: their tables and parts tell."""
    columns, files = _table(folder)
    names = [RESULTS_NAME, LINES_NAME] if columns else []
    if "frame" in columns:
        return names + [str(clip_name(stem)) for file in files for stem in (file, Path(file).stem)]
    for part in folder.glob(f"{PARTS_NAME}*/*.jsonl"):
        for line in part.open(encoding="utf-8"):
            with suppress(ValueError, KeyError):  # cut short by a kill
                files.append(json.loads(line)["file"])
    return names + [picture.as_posix() for file in files
                    for picture in picture_names([Path(file)]).values()]
