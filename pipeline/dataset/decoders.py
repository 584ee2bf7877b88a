"""Pixels of a file as it stores them: one decoder per format, which says what is damaged."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from annotate import memory
from pipeline.dataset import colour, jpeg, png, tiff
from pipeline.dataset.colour import BAND
from pipeline.dataset.formats import Header
from pipeline.dataset.jpeg import Damaged
from pipeline.manifest import Image
from pipeline.sources.raw import Unreadable

KEEP = "image.damaged: keep takes what can be read of it"
DEEP_MODES = ("I", "F")  # what Pillow's modes of more than 8 bits begin with
WHITE_16 = 65535
DARK_16 = 4096  # a 16-bit picture that stays below this holds 12 bits or fewer, or is nearly black
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
        raise Unreadable(
            f"broken image: {_told(error)}{hint}", header.width, header.height, header.format
        ) from error


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
    if data[24] == 16:
        damage = _damage(picture, whole, image)
        if (deep := _deep(data)) is not None:
            pixels, alpha = _of_deep(deep, header, image)
            return Raster(pixels, header.orientation, alpha, damage=problem or damage)
    if whole is not data:
        with _reopened(picture, whole) as again:
            raster = _by_pillow(again, header, whole, image, ratio)
    else:
        raster = _by_pillow(picture, header, data, image, ratio)
    return replace(raster, damage=problem or raster.damage)


def _tiff(picture: Any, header: Header, data: bytes, image: Image, ratio: float) -> Raster:
    tags = picture.tag_v2
    problem = tiff.broken_strip(tags, (header.width, header.height), data)
    if problem and image.damaged == "fail":
        raise Damaged(problem)
    bits = max(tags.get(tiff.BITS, (1,)))
    if picture.mode in ("RGB", "RGBA", "RGBX") and bits > 8:
        damage = _damage(picture, data, image)
        if (deep := _deep(data)) is None:
            raise Unreadable(
                f"a TIFF of {bits} bits a channel and a kind that is not read: save it as PNG",
                header.width, header.height, header.format,
            )  # fmt: skip
        pixels, alpha = _of_deep(deep, header, image)
        return Raster(pixels, 1, alpha, damage=problem or damage)
    raster = replace(_by_pillow(picture, header, data, image, ratio), orientation=1)  # turned already
    return replace(raster, damage=problem or raster.damage)


def _damage(picture: Any, data: bytes, image: Image) -> str:
    """What Pillow, which is strict, finds broken in a file whose pixels another library decodes; raises it
    where damage fails.
    """
    with _reopened(picture, data) as once:
        try:
            once.load()
        except Exception as error:
            memory.let_through(error)
            if image.damaged == "fail":
                raise
            return _told(error)
    return ""


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
        return replace(raster, damage=_told(error))
    return _of_pillow(picture, header, image)


def _of_pillow(picture: Any, header: Header, image: Image) -> Raster:
    """A loaded Pillow picture of any mode."""
    turned, mode = header.orientation, picture.mode
    if mode.startswith(DEEP_MODES):
        deep = _converted(picture, mode)
        if (mode == "I" and picture.format == "PPM") or (mode.startswith("I;16") and mode != "I;16S"):
            deep = deep.astype(np.uint16)
        pixels, alpha = _of_deep(deep, header, image)
        return Raster(pixels, turned, alpha)
    if mode in ("L", "1") and "transparency" not in picture.info:
        return Raster(_converted(picture, "L"), turned)
    if mode in ("L", "1", "LA", "La"):
        both = _converted(picture, "LA")
        return Raster(both[..., 0], turned, both[..., 1])
    if mode in ("RGBA", "RGBa", "PA") or "transparency" in picture.info:
        both = _converted(picture, "RGBA")
        return Raster(both[..., :3], turned, both[..., 3])
    return Raster(_converted(picture, "CMYK" if mode == "CMYK" else "RGB"), turned)


def _converted(picture: Any, mode: str) -> np.ndarray:
    """[h, w] or [h, w, c] of a loaded picture in Pillow's `mode`, some rows at a time: Pillow and NumPy
    hold several copies of what they convert.
    """
    from PIL import ImageCms

    width, height = picture.size
    rows = max(1, BAND // width)
    pixels: np.ndarray | None = None
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height)))
        if band.mode == "LAB":
            band = ImageCms.applyTransform(band, colour.lab())
        part = np.asarray(band if band.mode == mode else band.convert(mode))
        if pixels is None:
            pixels = np.empty((height, *part.shape[1:]), part.dtype)
        pixels[top : top + rows] = part
    assert pixels is not None
    return pixels


def _deep(data: bytes) -> np.ndarray | None:
    """The samples of a PNG or TIFF as stored, [h, w] or [h, w, 3 or 4] BGR; Pillow cuts colours to 8 bits."""
    import cv2

    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype == np.uint8:
        return None
    return samples


def _of_deep(samples: np.ndarray, header: Header, image: Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and alpha of samples of more than 8 bits; raises Unreadable where it can't be told which of them
    are black and white.
    """
    alpha = None
    if samples.ndim == 3:
        if samples.shape[2] == 4:
            alpha = (samples[..., 3] // 257).astype(np.uint8)
        samples = samples[..., 2::-1]
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
    pixels = np.empty(samples.shape, np.uint8)
    rows = max(1, BAND // header.width)
    for top in range(0, len(samples), rows):
        scaled = (samples[top : top + rows].astype(np.float64) - black) * (255 / (white - black))
        pixels[top : top + rows] = np.round(np.clip(scaled, 0, 255))
    return pixels, alpha


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
