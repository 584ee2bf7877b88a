"""Images that a list names, in JSONL, CSV or TSV."""

import math
import os
from collections.abc import Iterator
from json.encoder import encode_basestring
from pathlib import Path, PurePath
from typing import Any

from pipeline import MillError
from pipeline.manifest import Image, ListSource
from pipeline.sources.batches import Row, Rows, rest_of
from pipeline.sources.columns import captions_of, plain
from pipeline.sources.far.addresses import far, local_path, scheme_of
from pipeline.sources.far.lists import Copy, near
from pipeline.sources.files import ABSENT, PACKAGE, locate, resolve, stamp_or_absent
from pipeline.sources.maps import MapPlaces, is_path
from pipeline.sources.raw import Columns, FilePlace, ListingContext, RawImage, Unreadable, clean
from pipeline.sources.rows import SUFFIXES, Line, read_lines

DEFAULT_CAPTION = "caption"  # column of a list; one without it is a list without captions


def list_table(source: ListSource, image: Image, context: ListingContext) -> Iterator[RawImage]:
    """One RawImage for each row of a list; a row without an image has a `problem`.

    MillError where the path is no such file, the file is not UTF-8, or its header names a column twice; and
    after the last row where no row has a column that the manifest names.
    """
    with near(source) as copy:
        columns = ListColumns(source, list_file(copy.path if copy else source.path), copy)
        yield from columns.raw_images()


def list_file(given: str) -> Path:
    path = resolve(given)
    if not path.is_file():
        reason = f"{path} is a folder" if path.is_dir() else f"the list {path} does not exist"
        raise MillError(f"source.path: {reason}: set it to a .jsonl, .csv or .tsv file.")
    if path.suffix.lower() not in SUFFIXES:
        raise MillError(f"source.path: {path} is neither .jsonl nor .csv nor .tsv: set it to a file that is.")
    return path


class ListColumns:
    """What a manifest takes of a list's columns."""

    def __init__(self, source: ListSource, file: Path, copy: Copy | None) -> None:
        self.source, self.file = source, file
        self.name = copy.name if copy else str(file)
        self.folder = copy.folder if copy else str(file.parent)
        self.template = source.captions.get("template")
        self.caption = source.captions.get("column", DEFAULT_CAPTION)
        self.maps = MapPlaces(str(file.parent), source.provided)
        self.place: FilePlace = {"root": str(self.file.parent)}
        self.seen: set[str] = set()
        # what rows have in common that say nothing special
        plain = RawImage("", "", place=self.place, provided=self.maps.provided)
        self._rest = rest_of(plain)
        self._template = None if self.template is None else clean(self.template)
        self._joins = "" if scheme_of(self.folder) or self.folder == "/" else f"{self.folder}/"

    def raw_images(self) -> Iterator[RawImage]:
        for line in read_lines(self.file, self.source.image_column):
            yield self.raw(line)
        self.check()

    def add(self, line: Line, rows: Rows) -> None:
        """Puts the image of a row among others."""
        row = None if self.maps.provided or line.problem else self._plain_row(line.cells)
        if row:
            rows.append(row)
        else:
            rows.add(self.raw(line))

    def _plain_row(self, cells: Columns) -> Row | None:
        """What `raw` makes, in a tenth of the time, of a row with a path, one caption and plain columns; None
        of all other rows.
        """
        if not self.seen >= cells.keys():
            self.seen |= cells.keys()
        address, caption = cells.get(self.source.image_column), cells.get(self.caption, "")
        if type(address) is not str or not address.isascii() or "://" in address or not address:
            return None
        if type(caption) is not str or self.source.image_column == self.caption:
            return None
        if address[0] != "/":
            if not self._joins or "//" in address or "./" in address or address[-1] in "/.":
                return None
            address = self._joins + address
        pieces = []
        for name in sorted(cells):
            if name == self.source.image_column or name == self.caption:
                continue
            text = _plain_text(cells[name])
            if text is None or not name.isascii():
                return None
            pieces.append(f"{encode_basestring(name)}:{text}")
        if self._template is not None:
            caption = self._template
        else:
            caption = (caption if caption.isascii() else clean(caption)).strip()
        try:
            state = os.stat(address)  # noqa: PTH116 - for each of many rows
            stamp = f"{state.st_size}:{state.st_mtime_ns}"
        except (OSError, ValueError):
            stamp = ABSENT
        return address, caption, None, "{" + ",".join(pieces) + "}", stamp, "", 0, self._rest

    def raw(self, line: Line) -> RawImage:
        """The image of a row."""
        row = line.cells
        self.seen |= row.keys()
        address = row.get(self.source.image_column)
        if not isinstance(address, str) or not address:
            reason = line.problem or f"the row has no {self.source.image_column!r}"
            return RawImage(f"{self.name}:{line.number}", "", problem=reason)
        uri = address_of(address, self.folder)
        captions, kept = self._captions(row), dict(row)
        kept.pop(self.source.image_column)
        if captions is not None:
            kept.pop(self.caption, None)
        place = self.place
        if self.maps.columns:  # maps may be large: the catalog keeps their paths, not their numbers
            place = {**place, "cells": {name: row.get(name) for name in self.maps.columns}}
            kept = {
                name: cell for name, cell in kept.items() if name not in self.maps.columns or is_path(cell)
            }
        first, *more = captions or ("",)
        raw = RawImage(
            clean(uri),
            clean(self.template) if self.template is not None else first,
            plain(kept),
            place=place,
            provided=self.maps.provided,
            more_captions=() if self.template is not None else tuple(more),
            stamp=stamp_of_address(uri),
            map_stamps=self._map_stamps(uri, row),
        )
        return far(raw, uri, self.source.download)

    def _captions(self, row: Columns) -> tuple[str, ...] | None:
        """None where the cell is something else, which stays among the fields."""
        try:
            return captions_of(row.get(self.caption))
        except TypeError:
            return None

    def _map_stamps(self, uri: str, row: Columns) -> dict[str, str]:
        path, folder = PurePath(uri), "."
        if self.maps.templates and path.parent.is_relative_to(self.file.parent):
            folder = path.parent.relative_to(self.file.parent).as_posix()
        return self.maps.stamps(folder, path.name, row)

    def check(self) -> None:
        """MillError where no row had a column that the manifest names."""
        asked = {"image_column": self.source.image_column}
        if self.template is None and self.caption != DEFAULT_CAPTION:
            asked["captions.column"] = self.caption
        for condition, columns in self.maps.cells.items():
            asked |= {
                f"provided.{condition}.{at}": name
                for at, name in zip(("column", "mask"), columns, strict=False)
            }
        for key, column in asked.items():
            if column not in self.seen:
                there = f"; there are {', '.join(map(repr, sorted(self.seen)))}" if self.seen else ""
                remedy = (
                    "the column that names the image" if key == "image_column" else "a column that is there"
                )
                raise MillError(f"{self.name}: no row has {column!r}: set `source.{key}` to {remedy}{there}.")


def _plain_text(value: Any) -> str | None:
    """The JSON of a plain cell; None of all else."""
    kind = type(value)
    if kind is str:
        return encode_basestring(value if value.isascii() else clean(value))
    if kind is float:
        return repr(value) if math.isfinite(value) else "null"
    return repr(value) if kind is int else None


def address_of(cell: str, folder: str) -> str:
    """The address that a cell names; a path begins at the list's folder, which may be far away too."""
    cell = local_path(cell.strip()) if scheme_of(cell.strip()) else cell
    if scheme_of(cell) or Path(cell).is_absolute():
        return cell
    return f"{folder}/{cell}" if scheme_of(folder) else str(Path(folder, cell))


def stamp_of_address(uri: str) -> str:
    """Of the file that an address names; "" where it names none that can be looked at from here."""
    if uri.startswith(PACKAGE):
        try:
            uri = str(locate(uri))
        except Unreadable:
            return ABSENT
    return "" if "://" in uri else stamp_or_absent(uri)
