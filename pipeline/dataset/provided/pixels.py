"""The numbers of a map as its file has them: a picture of 8 or 16 bits, `.npy`, or nested numbers."""

import io
import json
import re
from typing import Any

import numpy as np

from pipeline.dataset import formats
from pipeline.sources.raw import Unreadable

MOST = 2**28  # pixels of a map
UNLIKE = 4  # of 255: how far the channels of a grey picture may differ, since JPEG blends them


def pixels(data: Any, *, ids: bool = False) -> np.ndarray:
    """[h, w] or [h, w, channels] as stored, 8 or 16 bits, from bytes, JSON or nested numbers.

    `ids`: the numbers of a palette are kept in place of its colours, and a lossy format is refused.

    Unreadable: neither a picture nor an array, or too large. ValueError: `ids` in a lossy format, or a file
    that EXIF turns.
    """
    if not isinstance(data, bytes):
        return np.asarray(json.loads(data) if isinstance(data, str) else data)
    if data[:6] == b"\x93NUMPY":
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    from PIL import Image as Pillow

    try:
        opened = Pillow.open(io.BytesIO(data), formats=formats.FORMATS)
    except Pillow.UnidentifiedImageError:  # its own words name an address in memory, another for each image
        raise Unreadable("a map is a picture or .npy; this file is neither") from None
    with opened as picture:
        if picture.width * picture.height > MOST:
            raise Unreadable(f"a map of {picture.width}×{picture.height} pixels is too large")
        kind = _lossy(data, picture) if ids else None
        if kind:
            raise ValueError(f"labels must be lossless, and {kind} changes ids: write them as PNG or .npy")
        if formats.orientation_of(picture) != 1:
            raise ValueError("EXIF turns the map's own file: save it as it is to be read, without EXIF")
        if _sixteen_bits_of_colour(data):  # Pillow cuts them down to 8
            return _deep(data)
        if picture.mode in ("P", "PA") and not ids:
            return np.asarray(picture.convert("RGB"))
        return np.asarray(picture)


def one_channel(array: np.ndarray, what: str, unlike: int = 0) -> np.ndarray:
    """[h, w] of a grey map that may be stored with equal channels or with alpha; `what` are its numbers.

    `unlike`: how far the channels of an 8-bit picture may differ. ValueError: no such shape, or a colour
    picture.
    """
    if array.ndim == 3 and array.shape[2] in (1, 2):
        return array[..., 0]
    if array.ndim == 3 and array.shape[2] in (3, 4):
        first, second, third = (array[..., channel] for channel in range(3))
        if _apart(first, second, unlike) or _apart(first, third, unlike):
            raise ValueError(
                f"{what} have one number a pixel, and this is a picture in colours, such as a drawing of"
                " them: give the numbers that it was drawn from"
            )
        return first
    if array.ndim != 2:
        raise ValueError(f"a map of shape {array.shape} where 1 channel is wanted")
    return array


def _apart(one: np.ndarray, other: np.ndarray, unlike: int) -> bool:
    if one.dtype != np.uint8 or not unlike:
        return not np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return bool(np.abs(one.astype(np.int16) - other).max(initial=0) > unlike)


def _sixteen_bits_of_colour(data: bytes) -> bool:
    """Whether it is a PNG of 16 bits in RGB, grey with alpha, or RGB with alpha."""
    return data[:4] == b"\x89PNG" and data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")


def _deep(data: bytes) -> np.ndarray:
    import cv2

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise Unreadable("a map is a broken PNG")
    return array if array.ndim == 2 else array[..., 2::-1]


def _lossy(data: bytes, picture: Any) -> str | None:
    """The name of the format where it does not keep every pixel; AVIF does not tell, and counts."""
    match picture.format:
        case "JPEG" | "MPO" | "AVIF" | "HEIF":
            return str(picture.format)
        case "WEBP":
            chunk = re.search(rb"VP8[L ]", data[12:])
            return None if chunk and chunk.group() == b"VP8L" else "lossy WebP"
        case "JPEG2000":
            return None if _reversible(data) else "lossy JPEG 2000"
        case "TIFF":
            compression = str(picture.info.get("compression", ""))
            return f"TIFF with {compression}" if compression in ("jpeg", "webp") else None
    return None


def _reversible(data: bytes) -> bool:
    """Whether a JPEG 2000 codestream uses the 5-3 transform: the last byte of its COD segment is 1."""
    start = data.find(b"\xff\x52", max(data.find(b"\xff\x4f\xff\x51"), 0))
    return start >= 0 and data[start + 13 : start + 14] == b"\x01"
