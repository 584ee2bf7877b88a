"""Images that are files: a folder of them, or a list in JSONL or CSV."""

import csv
import glob
import importlib.util
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline import MillError
from pipeline.manifest import FolderSource, Image, ListSource
from pipeline.sources.raw import MAX_BYTES, Columns, FilePlace, RawImage, ReadCaptions, Unreadable, clean

PACKAGE = "package://"  # package://skimage/data/coffee.png: a file that an installed package ships
DEFAULT_CAPTION = "caption"  # column of a list; one without it is a list without captions
SIDECARS = {".txt", ".json"}
# files that live beside images and are none: texts, tables, and arrays, which are maps
NOT_PHOTOGRAPHS = SIDECARS | {
    ".jsonl",
    ".csv",
    ".md",
    ".db",
    ".parquet",
    ".npy",
    ".npz",
    ".mat",
    ".pfm",
    ".exr",
}


def list_folder(source: FolderSource, image: Image) -> Iterator[RawImage]:
    root = folder_of(source)
    template = source.captions.get("template") if isinstance(source.captions, dict) else None
    fixed = template if template is not None else None if source.captions == "sidecar" else ""
    provided = {name: given.model_dump() for name, given in source.provided.items()}
    paths = [path for path in sorted(root.rglob("*")) if _is_photograph(path, root)]
    maps = _maps_of(
        paths, root, [name for given in provided.values() for name in (given["path"], given["mask"]) if name]
    )
    for path in paths:
        if str(path) in maps:
            continue
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        problem = "" if name == str(path) else "its name is not UTF-8: rename the file"
        yield RawImage(name, fixed, problem=problem, place={"root": str(root)}, provided=provided)


def folder_of(source: FolderSource) -> Path:
    """Absolute, since an address must mean the same in a worker's folder and in a later run's; MillError
    where it is no folder.
    """
    root = resolve(source.path)
    if root.is_dir():
        return root
    reason = f"{root} is a file" if root.exists() else f"the folder {root} does not exist"
    raise MillError(f"source.path: {reason}: set it to a folder of images.")


def _is_photograph(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() not in NOT_PHOTOGRAPHS and not hidden and not path.is_dir()


def _maps_of(images: list[Path], root: Path, templates: list[str]) -> set[str]:
    """Where the maps of other images lie, which may be pictures among the photographs: a_depth.png beside
    a.png.
    """
    named = {
        (str(path), os.path.normpath(beside(template, path, root)))
        for template in templates
        for path in images
    }
    return {place for path, place in named if place != path}


def beside(template: str, image: Path, root: Path) -> Path:
    """The file that a `provided` path, {folder}/{stem}.png, names for an image below the source's folder."""
    return root / template.format(
        folder=image.parent.relative_to(root).as_posix(), stem=image.stem, name=image.name
    )


def list_table(source: ListSource, image: Image) -> Iterator[RawImage]:
    """One RawImage for each row of a .jsonl or .csv file; a row without an image has a `problem`.

    MillError where the path is no such file, or the file is not UTF-8; and after the last row where no row
    has a column that the manifest names.
    """
    path = resolve(source.path)
    if not path.is_file():
        reason = f"{path} is a folder" if path.is_dir() else f"the list {path} does not exist"
        raise MillError(f"source.path: {reason}: set it to a .jsonl or .csv file.")
    if path.suffix not in (".jsonl", ".csv"):
        raise MillError(f"source.path: {path} is neither .jsonl nor .csv: set it to a file that is.")
    caption_column = source.captions.get("column", DEFAULT_CAPTION)
    provided = {name: given.model_dump() for name, given in source.provided.items()}
    columns = {name for given in source.provided.values() for name in (given.column, given.mask) if name}
    seen: set[Any] = set()
    for number, row in (_csv_rows if path.suffix == ".csv" else _json_rows)(path):
        address = row.get(source.image_column)
        seen |= row.keys()
        if not isinstance(address, str) or not address:
            yield RawImage(
                f"{path}:{number}",
                "",
                problem=str(row.get("problem") or f"the row has no {source.image_column!r}"),
            )
            continue
        caption = (
            source.captions["template"]
            if "template" in source.captions
            else str(row.get(caption_column) or "")
        )
        uri = (
            address
            if address.startswith(PACKAGE) or Path(address).is_absolute()
            else str(path.parent / address)
        )
        fields = {
            str(key): value
            for key, value in row.items()
            if key not in (source.image_column, caption_column, None)
        }
        kept = json.loads(clean(json.dumps(fields, ensure_ascii=False)))
        place: FilePlace = {"root": str(path.parent)}
        if columns:  # maps may be large: the catalog keeps their paths, not their numbers
            place["cells"] = {name: row.get(name) for name in columns}
            kept = {name: cell for name, cell in kept.items() if name not in columns or _is_path(cell)}
        yield RawImage(clean(uri), clean(caption), kept, place=place, provided=provided)
    if source.image_column not in seen:
        raise MillError(
            f"{path}: no row has {source.image_column!r}: set `source.image_column` to the column that names"
            " the image."
        )
    mapped = {
        f"provided.{name}.{key}": column
        for name, given in provided.items()
        if given["column"]
        for key in ("column", "mask")
        if (column := given[key])
    }
    captioned = (
        {"captions.column": caption_column}
        if caption_column != DEFAULT_CAPTION and "template" not in source.captions
        else {}
    )
    for key, column in (captioned | mapped).items():
        if column not in seen:
            raise MillError(f"{path}: no row has {column!r}: set `source.{key}` to a column that is there.")


def _is_path(cell: Any) -> bool:
    return isinstance(cell, str) and cell.lstrip()[:1] not in ("[", "{")


def _csv_rows(path: Path) -> Iterator[tuple[int, Columns]]:
    csv.field_size_limit(MAX_BYTES)
    with _text(path) as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield rows.line_num, row


def _json_rows(path: Path) -> Iterator[tuple[int, Columns]]:
    with _text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=lambda name: None)
            except (ValueError, RecursionError) as error:
                row = {"problem": f"not JSON: {error}"}
            yield number, row if isinstance(row, dict) else {"problem": "a line must be a JSON object"}


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise MillError(f"source.path: {path} is not UTF-8 ({error.reason}): save it as UTF-8.") from error


def resolve(path: str) -> Path:
    """The absolute path, with `~` and links followed. MillError where the text can't be a path."""
    try:
        return Path(path).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise MillError(f"source.path: {path!r} is no path: {str(error).rstrip('.')}.") from error


def matching(path: str, *endings: str) -> list[Path]:
    """The files that `path` names and that end so, absolute and sorted: one file, all below a folder, or a
    glob; perhaps none.

    A link keeps its own name: in the hub's cache only that has the ending.
    """
    folder = resolve(path)
    if folder.is_dir():
        files = [
            Path(inner, name)
            for inner, folders, names in os.walk(folder)
            if _seen(folders)
            for name in names
            if not name.startswith(".")
        ]
    else:
        files = [Path(name).absolute() for name in glob.glob(str(Path(path).expanduser()), recursive=True)]  # noqa: PTH207 - an absolute pattern
    return sorted(inner for inner in files if inner.name.lower().endswith(endings) and inner.is_file())


def _seen(folders: list[str]) -> bool:
    """Keeps os.walk out of hidden folders."""
    folders[:] = [name for name in folders if not name.startswith(".")]
    return True


def stamp(path: str) -> tuple[int, int]:
    """When a file was written and how long it is: an open file is kept only as long as this stays."""
    state = os.stat(path)  # noqa: PTH116 - a read of one row needs no Path
    return state.st_mtime_ns, state.st_size


def nowhere(path: str, kind: str) -> MillError:
    return MillError(f"source.path: {path} names no {kind}: set it to a file, a folder or a glob of {kind}s.")


def read_file(raw: RawImage) -> bytes:
    """The raw bytes; raises Unreadable when the file is not there to be read."""
    path = _locate(raw.uri)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe or a device might never end
            raise Unreadable("not a file")
        if state.st_size > MAX_BYTES:
            raise Unreadable(f"too large: {state.st_size} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"can't be read: {error.strerror}") from error
    if not data:
        raise Unreadable("empty file")
    return data


def read_captions(raw: RawImage) -> ReadCaptions:
    """Those of the sidecar file beside the image."""
    caption = clean(_sidecar(_locate(raw.uri)))
    return ReadCaptions((caption,) if caption else ())


def _locate(uri: str) -> Path:
    if not uri.startswith(PACKAGE):
        return Path(uri)
    package, _, inner = uri.removeprefix(PACKAGE).partition("/")
    if ".." in PurePosixPath(inner).parts:
        raise Unreadable("a package:// address can't leave its package")
    if not package.isidentifier():
        raise Unreadable(f"{package!r} is no package's name")
    spec = importlib.util.find_spec(package)  # finds without importing
    if spec is None or not spec.submodule_search_locations:
        raise Unreadable(f"the package {package} is not installed")
    return Path(next(iter(spec.submodule_search_locations)), inner)


def _sidecar(path: Path) -> str:
    """photo.txt, else the `caption` or `text` of photo.json, else nothing."""
    text, record = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if text.is_file():
            return text.read_text(encoding="utf-8-sig").strip()
        if record.is_file():
            value = json.loads(record.read_text(encoding="utf-8-sig"))
            return str(value.get("caption") or value.get("text") or "").strip()
    except (OSError, ValueError, AttributeError, RecursionError):
        pass  # an image with a broken sidecar is an image without a caption
    return ""
