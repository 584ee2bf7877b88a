"""What a source says of an image, as values that JSON and UTF-8 can hold."""

import codecs
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pipeline.sources.raw import Columns, clean

MAX_TEXT = 2**20  # bytes of one caption or JSON member
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


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


def json_columns(data: bytes) -> Columns:
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


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def encoding_of(data: bytes, declared: str) -> str:
    """By the byte order mark with which a text begins, else as declared."""
    return next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), declared)


def stamp_of_value(value: Any) -> str:
    """A hash of what a cell holds, for a stamp."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode()
    return f"#{hashlib.sha256(data).hexdigest()[:16]}"


def captions_of(value: Any) -> tuple[str, ...]:
    """The captions in a value: one text, or a list of texts of which the first is used; TypeError where it is
    something else.
    """
    captions = []
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, list | tuple | Mapping | bytes):
            raise TypeError("a caption is a text or a list of texts")
        caption = "" if one is None else clean(str(one)).strip()
        if caption:
            captions.append(caption)
    return tuple(captions)


def captions_under(fields: Columns, key: str) -> tuple[str, ...]:
    """The captions under a key; none where something else stands there, which stays among the fields."""
    try:
        return captions_of(fields.get(key))
    except TypeError:
        return ()
