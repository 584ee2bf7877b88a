"""Rows of JSONL, CSV and TSV files, each with the number of its line."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipeline import MillError
from pipeline.sources.columns import encoding_of
from pipeline.sources.raw import MAX_BYTES, Columns

JSON_SUFFIXES = (".jsonl", ".ndjson")
SUFFIXES = (*JSON_SUFFIXES, ".csv", ".tsv")  # in any case
DELIMITERS = (",", ";", "\t")
SEPARATOR_LINE = "sep="  # how a spreadsheet names its delimiter above the header


@dataclass(frozen=True)
class Line:
    """One row of a file."""

    number: int  # of its last line, from 1
    cells: Columns = field(default_factory=dict)
    problem: str = ""  # why there are no cells


def read_lines(path: Path, key: str) -> Iterator[Line]:
    """The rows of a file; `key` is a column that it should have, by which the delimiter is known.

    MillError where the file is not UTF-8, or names a column twice.
    """
    if path.suffix.lower() in JSON_SUFFIXES:
        return _json_lines(path)
    return _delimited_lines(path, key)


def _json_lines(path: Path) -> Iterator[Line]:
    with _text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            yield json_line(number, line)


def json_line(number: int, line: str) -> Line:
    """The row that a line of JSON holds."""
    try:
        row = json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        return Line(number, problem=f"not JSON: {error}")
    if isinstance(row, dict):
        return Line(number, row)
    return Line(number, problem="a line must be a JSON object")


def _delimited_lines(path: Path, key: str) -> Iterator[Line]:
    csv.field_size_limit(MAX_BYTES)
    with _text(path) as file:
        lines = _Lines(file)
        header = lines.first()
        delimiters = DELIMITERS if path.suffix.lower() == ".csv" else ("\t",)
        if header.lower().startswith(SEPARATOR_LINE):
            delimiters = (header[len(SEPARATOR_LINE) :].strip("\r\n") or ",",)
            header = lines.first()
        delimiter = _delimiter(header, delimiters, key)
        rows = csv.reader(lines.after(header), delimiter=delimiter)
        names = [name.strip() for name in next(rows, [])]
        twice = [name for name, count in Counter(names).items() if name and count > 1]
        if twice:
            raise MillError(f"{path}: the header has {twice[0]!r} twice: give each column a name of its own.")
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield Line(lines.number, problem=f"not CSV: {error}")
                continue
            if cells:
                yield _line(lines, names, cells, delimiter)


def _line(lines: "_Lines", names: list[str], cells: list[str], delimiter: str) -> Line:
    if lines.ended:  # within a cell
        return Line(lines.number, problem="a quote opens in this row and never closes: close it")
    if any(cell.strip() for cell in cells[len(names) :]):
        counts = f"{len(cells)} cells where the header has {len(names)}"
        return Line(
            lines.number, problem=f"the row has {counts}: put quotes around a cell that holds {delimiter!r}"
        )
    return Line(lines.number, {name: cell for name, cell in zip(names, cells, strict=False) if name})


def _delimiter(header: str, delimiters: tuple[str, ...], key: str) -> str:
    """The one by which the header has the column, else the one that gives most columns."""
    columns = {
        delimiter: [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        for delimiter in delimiters
    }
    return max(columns, key=lambda delimiter: (key in columns[delimiter], len(columns[delimiter])))


class _Lines:
    """The lines of a file, counted; `ended` once more lines were asked for than there are."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.number, self.ended = file, 0, False

    def first(self) -> str:
        """The next line, which becomes the header."""
        self.number += 1
        return self.file.readline()

    def after(self, header: str) -> Iterator[str]:
        yield header
        for line in self.file:
            self.number += 1
            yield line
        self.ended = True


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    try:
        with path.open("rb") as start:
            encoding = encoding_of(start.read(4), "utf-8")
        with path.open(encoding=encoding, newline="") as file:
            yield file
    except UnicodeError as error:
        reason = getattr(error, "reason", str(error))
        raise MillError(f"source.path: {path} is not UTF-8 ({reason}): save it as UTF-8.") from error
    except OSError as error:
        raise MillError(f"source.path: {path} can't be read: {error.strerror}.") from error
