"""metadata.jsonl, .csv or .parquet, in which Hugging Face's imagefolder keeps what it knows of images."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.sources.columns import captions_of, first_line, plain
from pipeline.sources.maps import is_path
from pipeline.sources.raw import Columns, RawImage
from pipeline.sources.rows import Line, read_lines
from pipeline.sources.sidecars import CAPTION_KEYS

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_NAME = "file_name"  # the column of the image; those that end in _file_name are of other pictures


@dataclass(frozen=True)
class ImageRow:
    """What is known of one image."""

    captions: tuple[str, ...] = ()
    fields: Columns = field(default_factory=dict)


@dataclass
class Metadata:
    """What all metadata files of a tree say."""

    images: dict[str, ImageRow] = field(default_factory=dict)  # by path
    others: set[str] = field(default_factory=set)  # pictures that a row names beside its image
    problems: list[RawImage] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def read(self, path: str) -> bool:
        """Takes a file in; False where it has no column of file names, and is something else."""
        start = len(self.problems)
        is_metadata = False
        for line in _lines(path):
            name = line.cells.get(FILE_NAME)
            if isinstance(name, str) and name:
                is_metadata = True
                self._take(os.path.dirname(path), name, line.cells)  # noqa: PTH120 - paths are text here
            else:
                reason = line.problem or f"the row has no {FILE_NAME!r}"
                self.problems.append(RawImage(f"{path}:{line.number}", "", problem=reason))
        if is_metadata:
            self.files.append(path)
        else:
            del self.problems[start:]
        return is_metadata

    def _take(self, folder: str, name: str, cells: Columns) -> None:
        path = _below(folder, name)
        captions: tuple[str, ...] = ()
        fields = {key: plain(cell) for key, cell in cells.items() if key != FILE_NAME}
        for key in CAPTION_KEYS:
            try:
                captions = captions or captions_of(fields.get(key))
            except TypeError:
                continue
            fields.pop(key, None)
        for key, cell in fields.items():
            if key.endswith(f"_{FILE_NAME}") and cell and is_path(cell):
                fields[key] = _below(folder, cell)
                self.others.add(fields[key])
        before = self.images.get(path)
        if before is None:
            self.images[path] = ImageRow(captions, fields)
        else:
            more = tuple(text for text in captions if text not in before.captions)
            self.images[path] = replace(before, captions=before.captions + more)


def _below(folder: str, name: str) -> str:
    return os.path.normpath(os.path.join(folder, name))  # noqa: PTH118


def _lines(path: str) -> Iterator[Line]:
    if not path.endswith(".parquet"):
        yield from read_lines(Path(path), FILE_NAME)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        rows = pq.read_table(path).to_pylist() if FILE_NAME in names else []
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Line(0, problem=first_line(error))
        return
    for number, row in enumerate(rows):
        yield Line(number, {key: cell for key, cell in row.items() if not isinstance(cell, bytes)})
