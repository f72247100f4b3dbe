"""Results written as they are made, so that a stopped alignment continues where it was.

A list is worked on in chunks of rows. The results of each chunk are one file, which is written
whole or not at all, in a folder beside the aligned list. A chunk is done if its file exists, so
any number of processes can work on a list, together or one run after the other.
"""

import contextlib
import csv
import hashlib
import re
import shutil
from itertools import islice
from pathlib import Path

from preprocess.columns import ALIGNED
from utils.files import replaced

CHUNK_ROWS = 32
RESULT_FIELDS = (1, 1 + len(ALIGNED))  # a reason alone, or no reason and the values
PARTS = r"parts-[0-9a-f]{16}"  # ending of a folder of chunks


def chunks(rows):
    """(number, list of at most CHUNK_ROWS rows) of an iterable."""
    rows = iter(rows)
    number = 0
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield number, chunk
        number += 1


def chunk_count(row_count):
    """Number of chunks of a list of so many rows; the last chunk may be smaller."""
    return (row_count + CHUNK_ROWS - 1) // CHUNK_ROWS


class Shards:
    """The results of one list, one file for each chunk.

    Args:
        target: path of the aligned list.
        fingerprint: text that changes with the list and with every setting that changes results.
    """

    def __init__(self, target, fingerprint):
        self.target = Path(target)
        digest = hashlib.sha256(f"{fingerprint} {CHUNK_ROWS}".encode()).hexdigest()[:16]
        self.folder = self.target.with_suffix(f".parts-{digest}")

    def path(self, number):
        return self.folder / f"{number:06}.csv"

    def is_done(self, number):
        return self.path(number).is_file()

    def write(self, number, results, sizes):
        """Write the results of a chunk.

        Args:
            number: place of the chunk in the list, from 0.
            results: for each row a sequence of fields, see workers.align_rows.
            sizes: for each row the bytes of the photo that the result is about, or None.
        """
        with replaced(self.path(number)) as path, path.open("w", encoding="utf-8",
                                                            newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [*result, size] for result, size in zip(results, sizes, strict=True))

    def read(self, number):
        """The results of a chunk: for each row (list of text, bytes of its photo or None)."""
        with self.path(number).open(encoding="utf-8", newline="") as file:
            return [_result_and_size(fields) for fields in csv.reader(file)]

    def forget(self, number):
        """Let a chunk be worked on again."""
        self.path(number).unlink(missing_ok=True)

    def merge(self, rows):
        """Yield (row, (its result, bytes of its photo)) for all rows of the list, in order.

        Raises:
            ValueError: a file does not hold as many results as its chunk has rows.
        """
        for number, chunk in chunks(rows):
            results = self.read(number)
            if len(results) != len(chunk):
                self.forget(number)
                raise ValueError(f"{self.path(number)} was damaged and is deleted; start again")
            yield from zip(chunk, results, strict=True)

    def remove_all(self):
        """Delete these files, and what earlier settings and versions left of the same list.

        Each folder is renamed first, so that a process that still reads it finds all of it or
        nothing. It would take chunks that are deleted already for chunks that are not done yet.
        """
        for folder in self._beside(PARTS):
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)  # of a process that was killed here
            with contextlib.suppress(OSError):  # another process has done it
                folder.rename(old)
        for folder in self._beside(rf"{PARTS}(\.old)?"):
            shutil.rmtree(folder, ignore_errors=True)
        # Journals: earlier versions wrote a single file for each process, and locked it.
        for path in self._beside(r"part\d+of\d+(\.lock)?"):
            path.unlink(missing_ok=True)

    def count_others(self):
        """How many chunks are done for an earlier version of the list, or with other settings."""
        return sum(len(list(folder.glob("*.csv"))) for folder in self._beside(PARTS)
                   if folder != self.folder)

    def _beside(self, ending):
        """Paths of the files and folders of this list whose ending matches a pattern."""
        pattern = re.compile(rf"{re.escape(self.target.stem)}\.{ending}")
        return [path for path in self.target.parent.iterdir() if pattern.fullmatch(path.name)]


def _result_and_size(fields):
    """The fields of a result, and the size of its photo, which earlier versions did not write."""
    if len(fields) in RESULT_FIELDS:
        return fields, None
    *result, size = fields
    return result, int(size) if size else None
