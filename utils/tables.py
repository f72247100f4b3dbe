"""Tables of text (CSV files), read row by row without pandas."""

import codecs
import csv
import math
import re
from pathlib import Path

SEPARATORS = ",;\t"
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig",  # by the file's first bytes; Excel writes all three
             codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
NUMBERS = re.compile(r"[\s\d,:eE+-]*\d,\d[\s\d,:eE+-]*", re.ASCII)  # also votes, 7:0,5
DECIMAL_COMMA = re.compile(r"(?<![\d,])\d+,\d+(?![\d,])", re.ASCII)
THOUSANDS = re.compile(r"[1-9]\d{0,2},\d{3}", re.ASCII)  # 1,234 of English, between tabs


def read_rows(path, required):
    """Rows of a table as dicts of text, one at a time.

    The first line names the columns. Commas, semicolons or tabs separate them. The text is UTF-8,
    or UTF-16 with a byte order mark. Between semicolons or tabs a number may have a decimal comma,
    which is given as a point. Missing fields at the end of a row are "", empty fields beyond
    the header are left out.

    Args:
        path: path of the file.
        required: names of columns that must be there.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a required column is missing, two columns have one name, a row has more fields
            than there are columns, a quote is not closed, or the file is not text.
    """
    lines = _read_fields(path, required)
    names = next(lines)
    return (dict(zip(names, fields, strict=True)) for fields in lines)


def read_columns(path, required):
    """The whole table as {name: list of text}; see read_rows."""
    names, *rows = _read_fields(path, required)
    return {name: [fields[place] for fields in rows] for place, name in enumerate(names)}


def _read_fields(path, required):
    """Yield the names of the columns, then as many fields for each row."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"list '{path}' not found")
    lines = 0  # of the header and the rows that are read
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            header = file.readline()
            separator = _separator(header, required)
            names = _header_names(header, separator)
            if not names:
                raise ValueError(f"{path}: no header; the first line names the columns")
            missing = [name for name in required if name not in names]
            if missing:
                raise ValueError(f"{path}: column {', '.join(missing)} missing; it has "
                                 f"{', '.join(names)}. Commas, semicolons or tabs separate columns")
            repeated = sorted({name for name in names if name and names.count(name) > 1})
            if repeated and required:  # without required columns the first line may be no header
                raise ValueError(f"{path}: column {', '.join(repeated)} is there twice; rename one "
                                 "of the two")
            lines = 1
            yield names
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
            for fields in reader:
                if required and any(fields[len(names):]):
                    raise ValueError(f"{path}: line {reader.line_num + 1} has {len(fields)} fields "
                                     f"for {len(names)} columns; put a field that holds "
                                     f"{separator!r} in quotes")
                if separator != ",":
                    fields = [with_decimal_points(field, separator) for field in fields]
                if fields:  # not an empty line
                    yield [*fields, *[""] * (len(names) - len(fields))][:len(names)]
                lines = reader.line_num + 1
    except UnicodeError as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 or UTF-16: {_bad_line(path)}"
                         f"{error}") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 or UTF-16: line {lines + 1}: "
                         f"{error}") from error


def _bad_line(path):
    """'line N: ', the first that is not UTF-8; a file is decoded in blocks, whose error has none.

    Empty for UTF-16, whose lines cannot be told apart before they are decoded.
    """
    if _encoding(path) != "utf-16":
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeError:
                    return f"line {number}: "
    return ""


def table_format(path, required):
    """(encoding, separator) of a table, for a library that reads it; arguments as of read_rows.

    Raises:
        UnicodeError: the first line is not text in that encoding.
    """
    encoding = _encoding(path)
    with path.open(encoding=encoding, newline="") as file:
        return encoding, _separator(file.readline(), required)


def with_decimal_points(text, separator):
    """A field of numbers with 23.5 in the place of 23,5; any other text as it is.

    separator: what stands between two cells. Between commas no comma is a decimal one. Between tabs
    1,234 may be a thousand, and is left for the caller to refuse.
    """
    if separator == "," or not NUMBERS.fullmatch(text):
        return text
    return DECIMAL_COMMA.sub(lambda match: match[0] if separator == "\t" and THOUSANDS.fullmatch(
        match[0]) else match[0].replace(",", "."), text)


def _encoding(path):
    with path.open("rb") as file:
        start = file.read(3)
    return next((name for mark, name in ENCODINGS.items() if start.startswith(mark)), "utf-8")


def _separator(header, required):
    """The separator with which the header has all required columns and the most columns."""
    columns = {separator: _header_names(header, separator) for separator in SEPARATORS}
    fitting = [separator for separator, names in columns.items() if {*required} <= {*names}]
    return max(fitting or SEPARATORS, key=lambda separator: len(columns[separator]))


def _header_names(header, separator):
    line = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
    return [name.strip() for name in line]


def number_of(text):
    """A finite number, or None."""
    if "_" in text:  # Python would read 20_30 as 2030
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
