"""Results written as they are made, so that a killed run continues where it stopped.

The rows of a list are worked on in chunks; chunk k belongs to process k % processes. Each process
appends the results of its chunks, in order, to a file of its own, one line a row. A chunk is
always the same rows, whatever was interrupted and however many processes there are, so the
merged results are always the same, too.
"""

import contextlib
import csv
import hashlib
import os
from itertools import islice
from pathlib import Path

from filelock import FileLock, Timeout

from utils.files import replaced

CHUNK = 32  # rows that are sent to a worker and recorded together


def read_rows(path, required):
    """Rows of a CSV file as dicts of text, one at a time.

    Raises:
        ValueError: a required column is missing, a quote is not closed, or the file is not UTF-8
            text.
    """
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="", skipinitialspace=True, strict=True)
        try:
            names = [name.strip() for name in reader.fieldnames or []]
            missing = [name for name in required if name not in names]
            if missing:
                raise ValueError(f"{path}: column {', '.join(missing)} missing; it has "
                                 f"{', '.join(names) or 'no header'}")
            reader.fieldnames = names
            for row in reader:
                row.pop(None, None)  # fields beyond the header
                yield row
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: not a CSV file: {error}") from error


def chunks(rows):
    """(number, list of at most CHUNK rows) of an iterable."""
    rows = iter(rows)
    number = 0
    while chunk := list(islice(rows, CHUNK)):
        yield number, chunk
        number += 1


class Journal:
    """The results of one process for one list.

    Args:
        target: path of the file that the merged results go to; the journal stands beside it.
        fingerprint: text that changes with the list and with whatever changes results.
        row_count: rows of the whole list.
        rank, world_size: this process and how many there are.
    """

    def __init__(self, target, fingerprint, row_count, rank=0, world_size=1):
        self.target, self.fingerprint, self.row_count = Path(target), fingerprint, row_count
        self.rank, self.world_size = rank, world_size
        self.path = self.target.with_suffix(f".part{rank}of{world_size}")
        self.header = f"{hashlib.sha256(fingerprint.encode()).hexdigest()}\n".encode()
        self.file = None
        self.lock = FileLock(f"{self.path}.lock")

    @property
    def expected(self):
        """Rows of this process's chunks."""
        full, rest = divmod(self.row_count, CHUNK)
        mine = len(range(self.rank, full, self.world_size)) * CHUNK
        return mine + (rest if full % self.world_size == self.rank else 0)

    def is_mine(self, chunk_number):
        return chunk_number % self.world_size == self.rank

    def open(self, restart=False):
        """Continue, or begin where there is nothing to continue or with restart.

        Returns:
            list rows of which the results are there already, in whole chunks.
        Raises:
            OSError: another run is writing it.
        """
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise OSError(f"{self.path.name} is being written by another run; wait for it, or "
                          "stop it first") from error
        done, size = (0, 0) if restart else self._recorded()
        if not size:
            self.path.write_bytes(self.header)
            size = len(self.header)
        os.truncate(self.path, size)  # cuts off what a kill left unfinished
        self.file = self.path.open("a", encoding="utf-8", newline="")
        return done

    def write(self, results):
        """Append a chunk's results, a sequence of fields each."""
        csv.writer(self.file, lineterminator="\n").writerows(results)
        self.file.flush()

    def reasons(self):
        """First field of each result recorded, in order."""
        with self.path.open(encoding="utf-8", newline="") as file:
            file.readline()
            for fields in csv.reader(file):
                yield fields[0]

    def replace_chunks(self, fresh):
        """Put other results in the place of recorded ones.

        Args:
            fresh: {number among this process's chunks: its results}.
        """
        self.file.close()
        with replaced(self.path) as temporary, self.path.open("rb") as old, \
                temporary.open("w", encoding="utf-8", newline="") as new:
            new.write(old.readline().decode())
            for number, line in enumerate(old):
                results = fresh.get(number // CHUNK)
                if results is None:
                    new.write(line.decode())
                elif number % CHUNK == 0:
                    csv.writer(new, lineterminator="\n").writerows(results)
        self.file = self.path.open("a", encoding="utf-8", newline="")

    def close(self):
        if self.file is not None:
            self.file.close()
        self.lock.release()

    def is_complete(self):
        return self._recorded()[0] == self.expected

    def siblings(self):
        """The journals of all processes, this one's among them."""
        return [Journal(self.target, self.fingerprint, self.row_count, rank, self.world_size)
                for rank in range(self.world_size)]

    def _recorded(self):
        """Rows in whole chunks, and the size in bytes of the file up to their end."""
        if not self.path.is_file():
            return 0, 0
        with self.path.open("rb") as file:
            if file.readline() != self.header:  # of another list or other settings
                return 0, 0
            count, size, position = 0, len(self.header), len(self.header)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                count += 1
                position += len(line)
                if count % CHUNK == 0 or count == self.expected:
                    size = position
        return (count if count == self.expected else count // CHUNK * CHUNK), size


def merge(journals, rows):
    """Join a list's rows with the results of all processes, in the list's order.

    Yields:
        (row, result fields).
    """
    with contextlib.ExitStack() as stack:
        readers = []
        for journal in journals:
            file = stack.enter_context(journal.path.open(encoding="utf-8", newline=""))
            file.readline()
            readers.append(csv.reader(file))
        for number, chunk in chunks(rows):
            for row in chunk:
                yield row, next(readers[number % len(readers)])
