"""What archives and tables share: the files that a path names, and facts that any row can keep."""

import glob
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import MillError
from pipeline.sources.files import resolve
from pipeline.sources.raw import clean

MAX_TEXT = 2**20  # bytes of one caption or JSON member


def matching(path: str, *endings: str) -> list[Path]:
    """The files that `path` names and that end so, absolute and sorted: one file, all below a folder, or a
    glob; perhaps none.

    A link keeps its own name: in the hub's cache only that has the ending.
    """
    folder = resolve(path)
    if folder.is_dir():
        found = [
            Path(inner, name)
            for inner, folders, names in os.walk(folder)
            if _seen(folders)
            for name in names
            if not name.startswith(".")
        ]
    else:
        found = [Path(name).absolute() for name in glob.glob(str(Path(path).expanduser()), recursive=True)]  # noqa: PTH207 - an absolute pattern
    return sorted(inner for inner in found if inner.name.lower().endswith(endings) and inner.is_file())


def _seen(folders: list[str]) -> bool:
    """Keeps os.walk out of hidden folders."""
    folders[:] = [name for name in folders if not name.startswith(".")]
    return True


def stamp(path: str) -> tuple[int, int]:
    """When a file was written and how long it is: an open file is kept only as long as this stays."""
    told = os.stat(path)  # noqa: PTH116 - a read of one row needs no Path
    return told.st_mtime_ns, told.st_size


def plain(value: Any) -> Any:
    """The value as JSON and UTF-8 can hold it: NaN and infinities become None, dates ISO text, bytes are left
    out.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(inner) for key, inner in value.items() if not isinstance(inner, bytes)}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value if not isinstance(inner, bytes)]
    return clean(value.isoformat() if hasattr(value, "isoformat") else str(value))


def json_facts(data: bytes) -> dict[str, Any]:
    """The fields of a JSON member; what is no object stands under `json`, and so does the reason why it can't
    be read.
    """
    try:
        value = plain(json.loads(data.decode("utf-8-sig"), parse_constant=lambda name: None))
    except RecursionError:
        return {"json": "left out: nested too deeply"}
    except ValueError as error:
        return {"json": f"left out: not JSON: {clean(str(error))}"}
    return value if isinstance(value, dict) else {"json": value}


def text(data: bytes) -> str:
    """A caption from a member's bytes; what is not UTF-8 becomes a replacement mark."""
    return clean(data.decode("utf-8-sig", "replace").strip())


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def caption_of(fields: Mapping[str, Any], key: str) -> str:
    """The caption under a key; of several, the first."""
    value = fields.get(key)
    value = next(iter(value), None) if isinstance(value, list) else value
    return "" if value is None else clean(str(value)).strip()


def nowhere(path: str, kind: str) -> MillError:
    return MillError(f"source.path: {path} names no {kind}: set it to a file, a folder or a glob of {kind}s.")
