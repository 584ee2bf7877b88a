"""Images that a list names, in JSONL, CSV or TSV."""

from collections.abc import Iterator
from pathlib import Path, PurePath

from pipeline import MillError
from pipeline.manifest import Image, ListSource
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
        columns = _ListColumns(source, _list_file(copy.path if copy else source.path), copy)
        for line in read_lines(columns.file, source.image_column):
            yield columns.raw(line)
        columns.check()


def _list_file(given: str) -> Path:
    path = resolve(given)
    if not path.is_file():
        reason = f"{path} is a folder" if path.is_dir() else f"the list {path} does not exist"
        raise MillError(f"source.path: {reason}: set it to a .jsonl, .csv or .tsv file.")
    if path.suffix.lower() not in SUFFIXES:
        raise MillError(f"source.path: {path} is neither .jsonl nor .csv nor .tsv: set it to a file that is.")
    return path


class _ListColumns:
    """What a manifest takes of a list's columns."""

    def __init__(self, source: ListSource, file: Path, copy: Copy | None) -> None:
        self.source, self.file = source, file
        self.name = copy.name if copy else str(file)
        self.folder = copy.folder if copy else str(file.parent)
        self.template = source.captions.get("template")
        self.caption = source.captions.get("column", DEFAULT_CAPTION)
        self.maps = MapPlaces(str(file.parent), source.provided)
        self.seen: set[str] = set()

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
        place: FilePlace = {"root": str(self.file.parent)}
        if self.maps.columns:  # maps may be large: the catalog keeps their paths, not their numbers
            place["cells"] = {name: row.get(name) for name in self.maps.columns}
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
