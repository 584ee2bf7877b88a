"""Pixels of a file as it stores them: one decoder per format, which says what is damaged."""

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from annotate import memory
from pipeline.dataset import colour, jpeg, png
from pipeline.dataset.formats import Header
from pipeline.dataset.jpeg import Damaged
from pipeline.manifest import Image
from pipeline.sources.raw import Unreadable

KEEP = "image.damaged: keep takes what can be read of it"
DEEP_MODES = ("I", "F")  # what Pillow's modes of more than 8 bits begin with
WHITE_16 = 65535
DARK_16 = 4096  # a 16-bit picture that stays below this holds 12 bits or fewer, or is nearly black
BITS, COMPRESSION, OFFSETS, COUNTS, JPEG_TABLES = 258, 259, 273, 279, 347  # tags of TIFF
TILE_OFFSETS, TILE_COUNTS = 324, 325
DEFLATE, JPEG_IN_TIFF = (8, 32946), 7
JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # simplejpeg's, by Pillow's mode


@dataclass(frozen=True)
class Raster:
    """A decoded picture."""

    pixels: np.ndarray  # uint8: [h, w] grey, [h, w, 3] RGB or [h, w, 4] CMYK, 0 = no ink
    orientation: int  # how the pixels are turned, 1 to 8
    alpha: np.ndarray | None = None  # uint8 [h, w]
    step: int = 1  # by how much it was scaled down while it was decoded
    damage: str = ""


def decode(picture: Any, header: Header, data: bytes, image: Image, ratio: float) -> Raster:
    """The first picture of an opened file; `ratio` is how many times fewer pixels a side are wanted. Raises
    Unreadable.
    """
    decoder = DECODERS.get(header.format, _by_pillow)
    try:
        return decoder(picture, header, data, image, ratio)
    except Unreadable:
        raise
    except Exception as error:  # decoders raise whatever they like on broken data; the file becomes a row
        memory.let_through(error)
        hint = "" if image.damaged == "keep" else f"; {KEEP}"
        told = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"broken image: {told}{hint}", header.width, header.height, header.format) from error


def _jpeg(picture: Any, header: Header, data: bytes, image: Image, ratio: float) -> Raster:
    step, size = jpeg.factor(ratio), (header.height, header.width)
    try:
        pixels, damage = jpeg.decode(data, JPEG_COLOURS[picture.mode], size, step, image.damaged == "keep")
    except jpeg.Unusual:
        return _by_pillow(picture, header, data, image, ratio)
    if picture.mode == "L":
        pixels = pixels[..., 0]
    elif picture.mode == "CMYK":
        pixels = 255 - pixels  # Adobe's, which all writers follow, are inverted
    return Raster(pixels, header.orientation, step=step, damage=damage)


def _png(picture: Any, header: Header, data: bytes, image: Image, ratio: float) -> Raster:
    whole, problem = png.checked(data)
    if problem and image.damaged == "fail":
        raise Damaged(problem)
    if whole is not data:
        with _reopened(picture, whole) as again:
            raster = _by_pillow(again, header, whole, image, ratio)
    else:
        raster = _by_pillow(picture, header, data, image, ratio)
    if data[24] == 16 and (deep := _deep(data)) is not None:
        pixels, alpha = _of_deep(deep, header, image)
        raster = replace(raster, pixels=pixels, alpha=alpha)
    return replace(raster, damage=problem or raster.damage)


def _tiff(picture: Any, header: Header, data: bytes, image: Image, ratio: float) -> Raster:
    tags = picture.tag_v2
    problem = _broken_strip(tags, data)
    if problem and image.damaged == "fail":
        raise Damaged(problem)
    bits = tags.get(BITS, (1,))
    deep = picture.mode in ("RGB", "RGBA", "RGBX") and max(bits) > 8
    raster = replace(_by_pillow(picture, header, data, image, ratio), orientation=1)  # turned already
    if deep:
        if (wide := _deep(data)) is None:
            raise Unreadable(
                f"a TIFF of {max(bits)} bits a channel and a kind that is not read: save it as PNG",
                header.width, header.height, header.format,
            )  # fmt: skip
        pixels, alpha = _of_deep(wide, header, image)
        raster = replace(raster, pixels=pixels, alpha=alpha)
    return replace(raster, damage=problem or raster.damage)


def _broken_strip(tags: Any, data: bytes) -> str:
    """What is broken in a strip or tile whose compression has checks that libtiff leaves out."""
    offsets = tags.get(OFFSETS) or tags.get(TILE_OFFSETS) or ()
    counts = tags.get(COUNTS) or tags.get(TILE_COUNTS) or ()
    kind, tables = tags.get(COMPRESSION), tags.get(JPEG_TABLES, b"")
    if kind not in (*DEFLATE, JPEG_IN_TIFF):
        return ""
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=False)):
        strip = data[offset : offset + count]
        if kind == JPEG_IN_TIFF:
            problem = jpeg.problem(tables[:-2] + strip[2:] if tables else strip)
        else:
            problem = _inflates(strip)
        if problem:
            return f"strip {number}: {problem}"
    return ""


def _inflates(strip: bytes) -> str:
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(strip)
    except zlib.error as error:
        return str(error)
    return "" if inflate.eof else "it ends too early"


def _by_pillow(picture: Any, header: Header, data: bytes, image: Image, ratio: float) -> Raster:
    try:
        picture.load()
    except Exception as error:
        memory.let_through(error)
        if image.damaged == "fail":
            raise
        with _lenient(), _reopened(picture, data) as again:
            again.load()
            raster = _of_pillow(again, header, image)
        return replace(raster, damage=" ".join(str(error).split()) or type(error).__name__)
    return _of_pillow(picture, header, image)


def _of_pillow(picture: Any, header: Header, image: Image) -> Raster:
    """A loaded Pillow picture of any mode."""
    turned, mode = header.orientation, picture.mode
    if mode.startswith(DEEP_MODES):
        deep = np.asarray(picture)
        if (mode == "I" and picture.format == "PPM") or (mode.startswith("I;16") and mode != "I;16S"):
            deep = deep.astype(np.uint16)
        pixels, alpha = _of_deep(deep, header, image)
        return Raster(pixels, turned, alpha)
    if mode in ("L", "1") and "transparency" not in picture.info:
        return Raster(np.asarray(picture.convert("L")), turned)
    if mode in ("L", "1", "LA", "La"):
        both = np.asarray(picture.convert("LA"))
        return Raster(both[..., 0], turned, both[..., 1])
    if mode in ("RGBA", "RGBa", "PA") or "transparency" in picture.info:
        both = np.asarray(picture.convert("RGBA"))
        return Raster(both[..., :3], turned, both[..., 3])
    if mode == "LAB":
        from PIL import ImageCms

        picture = ImageCms.applyTransform(picture, colour.lab())
    return Raster(np.asarray(picture if picture.mode in ("RGB", "CMYK") else picture.convert("RGB")), turned)


def _deep(data: bytes) -> np.ndarray | None:
    """The samples of a PNG or TIFF as stored, [h, w] or [h, w, 3 or 4] RGB; Pillow cuts colours to 8 bits."""
    import cv2

    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype == np.uint8:
        return None
    if samples.ndim == 3:
        samples = samples[..., [2, 1, 0, 3][: samples.shape[2]]]
    return samples


def _of_deep(samples: np.ndarray, header: Header, image: Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and alpha of samples of more than 8 bits; raises Unreadable where it can't be told which of them
    are black and white.
    """
    alpha = None
    if samples.ndim == 3 and samples.shape[2] == 4:
        samples, alpha = samples[..., :3], (samples[..., 3] // 257).astype(np.uint8)
    facts = (header.width, header.height, header.format)
    least, most = samples.min(), samples.max()
    if not np.isfinite(least) or not np.isfinite(most):
        raise Unreadable("some of its values are no numbers", *facts)
    if image.range is not None:
        black, white = image.range
    elif samples.dtype != np.uint16:
        raise Unreadable(
            f"its values, {least:g} to {most:g}, may mean anything: set image.range to [black, white]", *facts
        )
    elif most < DARK_16:
        raise Unreadable(
            f"a 16-bit picture whose values end at {most} of {WHITE_16}: set image.range to [black, white],"
            " such as [0, 4095] for 12 bits",
            *facts,
        )
    else:
        black, white = 0, WHITE_16
    scaled = (samples.astype(np.float64) - black) * (255 / (white - black))
    return np.round(np.clip(scaled, 0, 255)).astype(np.uint8), alpha


@contextmanager
def _reopened(picture: Any, data: bytes) -> Iterator[Any]:
    """The same file from its start, by the format that it had."""
    from PIL import Image as Pillow

    with (
        warnings.catch_warnings(action="ignore"),
        Pillow.open(io.BytesIO(data), formats=[picture.format]) as again,
    ):
        yield again


@contextmanager
def _lenient() -> Iterator[None]:
    """Lets Pillow give what it has of a file that breaks off."""
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


DECODERS = {"JPEG": _jpeg, "MPO": _jpeg, "PNG": _png, "TIFF": _tiff}
