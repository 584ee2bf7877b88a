"""Captions in files beside the images: photo.jpg.txt or photo.txt, .caption or .json, in any case."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pipeline.sources.columns import MAX_TEXT, captions_of, encoding_of
from pipeline.sources.files import may_pass, read_path
from pipeline.sources.raw import FilePlace, RawImage, ReadCaptions, Unreadable, clean

EXTENSIONS = ("txt", "caption", "json")  # of two beside one image the earlier is read
CAPTION_KEYS = ("caption", "text")  # of a .json, likewise


class Sidecars:
    """The files of one folder that may hold captions."""

    def __init__(self, names: Mapping[str, tuple[str, str]]) -> None:
        """`names` -> their stems and extensions."""
        ranked: dict[str, tuple[int, bool, str]] = {}
        for name, (base, kind) in names.items():
            if kind in EXTENSIONS:
                rank = EXTENSIONS.index(kind), not name.endswith(kind), name  # a.txt before a.TXT
                ranked[base] = min(ranked.get(base, rank), rank)
        self._of = {base: name for base, (*_, name) in ranked.items()}

    def of(self, image: str, stem: str) -> str | None:
        """The file that holds the captions of an image: the one after its whole name, else after its stem."""
        return self._of.get(image) or self._of.get(stem)


def read_captions(raw: RawImage) -> ReadCaptions:
    """Those of the file that the listing saw beside the image."""
    place = cast(FilePlace, raw.place)
    if "sidecar" not in place:
        return ReadCaptions(())
    path = Path(place["sidecar"])
    try:
        data = read_path(path, MAX_TEXT)
    except Unreadable as error:
        problem = "" if str(error) == "empty file" else f"caption file: {error}"
        return ReadCaptions((), problem, may_pass(raw, error))
    return read_text(data, path.suffix.lower() == ".json", place.get("encoding", "utf-8"))


def read_text(data: bytes, is_json: bool, encoding: str = "utf-8") -> ReadCaptions:
    """The captions in the bytes of a file; a byte order mark goes before the declared encoding."""
    remedy = "set `encoding` of the source to what it is"
    named = encoding_of(data, encoding)
    try:
        text = data.decode(named)
    except UnicodeError:
        return ReadCaptions((), f"caption file is not {named.upper()}: {remedy}")
    if "\0" in text:
        return ReadCaptions((), f"caption file holds NUL characters: {remedy}")
    if not is_json:
        caption = clean(text).strip()
        return ReadCaptions((caption,) if caption else ())
    try:
        return _read_json(json.loads(text))
    except RecursionError:
        return ReadCaptions((), "caption file is JSON that is nested too deeply")
    except ValueError as error:
        return ReadCaptions((), f"caption file is not JSON: {getattr(error, 'msg', error)}")


def _read_json(value: Any) -> ReadCaptions:
    """Of {caption: one or several} or {text: …}; a list of texts, or one text, stands for itself."""
    if isinstance(value, dict):
        value = next((value[key] for key in CAPTION_KEYS if value.get(key)), None)
    try:
        return ReadCaptions(captions_of(value))
    except TypeError as error:
        return ReadCaptions((), f"caption file: {error}")
