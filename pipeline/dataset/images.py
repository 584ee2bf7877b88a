"""The canonical image: what every detector reads, and how anything that lies on the raw image is carried over
to it.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.dataset import colour, decoders, formats
from pipeline.dataset.colour import BAND, Colours
from pipeline.dataset.decoders import Raster
from pipeline.dataset.formats import Header
from pipeline.manifest import Image
from pipeline.sources.raw import Unreadable
from pipeline.storage import codec


@dataclass(frozen=True)
class Placement:
    """Which rectangle of an upright raw image becomes the canonical image, and at which size."""

    raw: tuple[int, int]  # (height, width), upright
    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]  # (height, width) of the canonical image

    @property
    def squashed(self) -> bool:
        """Whether the two axes are scaled differently, by more than a pixel."""
        unlike = abs(self.height * self.size[1] - self.width * self.size[0])
        return unlike > max(self.height, self.width, *self.size)


@dataclass(frozen=True)
class CanonicalImage:
    """What every detector reads. `encoded` is what is stored, so it is also what is decoded again."""

    encoded: bytes
    pixels: np.ndarray  # uint8 HWC RGB, before it was encoded
    header: Header  # of the raw image
    placement: Placement
    colour_space: str
    damage: str  # what is broken in the raw image, "" for nothing

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def raw_width(self) -> int:
        return self.header.width

    @property
    def raw_height(self) -> int:
        return self.header.height

    @property
    def raw_format(self) -> str:
        return self.header.format


def canonical(data: bytes, image: Image) -> CanonicalImage:
    """Upright, sRGB, alpha on white, scaled and cropped as the manifest says, encoded; raises Unreadable.

    Never more than one raw image is held at its full size; of a large JPEG, not even that.
    """
    with formats.opened(data, image.max_pixels) as (picture, header):
        _check(header, image)
        to = place(*header.upright, image)
        ratio = min(to.height / to.size[0], to.width / to.size[1])
        raster = decoders.decode(picture, header, data, image, ratio)
        channels = 1 if raster.pixels.ndim == 2 else raster.pixels.shape[2]
        colours = colour.colours(picture, data, channels)
    pixels = fit(raster, to, colours, header)
    return CanonicalImage(codec.encode(pixels, image.store), pixels, header, to, colours.name, raster.damage)


def _check(header: Header, image: Image) -> None:
    """Raises Unreadable where the manifest refuses a picture by its header."""
    short, long = sorted((header.width, header.height))
    size = f"{header.width}×{header.height}"
    reason = ""
    if short < image.min_side:
        reason = f"too small: {size} is below image.min_side ({image.min_side})"
    elif image.max_aspect is not None and long > short * image.max_aspect:
        reason = f"too long: {size} is over image.max_aspect ({image.max_aspect:g})"
    elif header.frames > 1 and image.frames == "refuse":
        reason = f"{header.frames} pictures in one file: set image.frames to first to take the first of them"
    if reason:
        raise Unreadable(reason, header.width, header.height, header.format)


def canonical_size(height: int, width: int, image: Image) -> tuple[int, int]:
    """(height, width) of the canonical image.

    Buckets: sides in multiples of 64, area at most R², nearest aspect ratio.
    """
    side = image.resolution
    if image.fit != "bucket":
        return side, side
    aspect = np.log(width / height)
    sides = range(64, side * side // 64 + 1, 64)
    best = min(
        ((h, w) for h in sides for w in [side * side // h // 64 * 64] if w >= 64),
        key=lambda hw: (abs(np.log(hw[1] / hw[0]) - aspect), -hw[0] * hw[1]),
    )
    return best


def place(height: int, width: int, image: Image) -> Placement:
    """The centre of an upright raw image that has the canonical aspect ratio; to be squashed, all of it."""
    tall, wide = canonical_size(height, width, image)
    if image.fit == "squash":
        return Placement((height, width), 0, 0, height, width, (tall, wide))
    scale = max(tall / height, wide / width)
    inner_h, inner_w = min(height, round(tall / scale)), min(width, round(wide / scale))
    return Placement(
        (height, width), (height - inner_h) // 2, (width - inner_w) // 2, inner_h, inner_w, (tall, wide)
    )


def fit(raster: Raster, to: Placement, colours: Colours, header: Header) -> np.ndarray:
    """The canonical pixels, uint8 HWC RGB: cut out, laid on white, made sRGB, scaled, turned upright."""
    box = _stored_box(to, raster.orientation)
    size = to.size[::-1] if raster.orientation >= 5 else to.size
    pixels = _cut(raster.pixels, box, raster.step, size)
    if raster.alpha is not None:  # of a picture at its full size: no JPEG has any
        alpha = _cut(raster.alpha, box, raster.step, size)
        if not alpha.any():
            raise Unreadable(
                "nothing to see: what image.fit takes of it is fully transparent",
                header.width, header.height, header.format,
            )  # fmt: skip
        pixels = _on_white(pixels, alpha)
    shrinks = to.height > to.size[0] or (to.squashed and to.width > to.size[1])
    if shrinks and colours.gentle and pixels.shape[2:] != (4,):  # fewer pixels to convert
        small = colours.to_srgb(_scaled(pixels, size, shrinks))
    else:
        small = _scaled(colours.to_srgb(pixels), size, shrinks)
    return _turned(small, raster.orientation)


def _scaled(pixels: np.ndarray, size: tuple[int, int], shrinks: bool) -> np.ndarray:
    """By the area filter down, by Lanczos up; an axis that shrinks beside one that grows goes first, since
    OpenCV filters by area only where both shrink.
    """
    import cv2

    if pixels.shape[:2] == size:
        return pixels
    smaller = (min(size[0], pixels.shape[0]), min(size[1], pixels.shape[1]))
    if shrinks and smaller != size:
        pixels, shrinks = _scaled(pixels, smaller, shrinks), False
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)


def _stored_box(to: Placement, orientation: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) on the picture as it is stored, turned and mirrored as EXIF says."""
    bottom, right = to.raw[0] - to.top - to.height, to.raw[1] - to.left - to.width
    top = bottom if orientation in (3, 4, 7, 8) else to.top
    left = right if orientation in (2, 3, 6, 7) else to.left
    return (left, top, to.width, to.height) if orientation >= 5 else (top, left, to.height, to.width)


def _cut(pixels: np.ndarray, box: tuple[int, int, int, int], step: int, size: tuple[int, int]) -> np.ndarray:
    """The box, in pixels of the raw image, of a picture that was scaled down by `step`.

    Where it begins or ends within a pixel, pixels are repeated along that axis until it does not, and the
    axis is scaled to what `size` wants of it: the area filter makes the same of repeated pixels, and the
    centre stays the centre.
    """
    for axis, (start, length) in enumerate(zip(box[:2], box[2:], strict=True)):
        times = step // math.gcd(step, start, length)
        unit = step // times  # pixels of the raw image in one of these
        first, last = start // step, -(-(start + length) // step)
        pixels = pixels[first:last] if axis == 0 else pixels[:, first:last]
        if times > 1:
            pixels = np.repeat(pixels, times, axis)
        begin = start // unit - first * times
        inner = slice(begin, begin + length // unit)
        pixels = pixels[inner] if axis == 0 else pixels[:, inner]
        if times > 1:
            tall, wide = pixels.shape[:2]
            pixels = _scaled(pixels, (size[0], wide) if axis == 0 else (tall, size[1]), shrinks=True)
    return pixels


def _on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Grey or RGB pixels laid on white, rounded to the nearest."""
    laid = np.empty_like(pixels)
    rows = max(1, BAND // max(1, pixels.shape[1]))
    for band in (slice(top, top + rows) for top in range(0, len(pixels), rows)):
        cover = (alpha[band] if pixels.ndim == 2 else alpha[band, :, None]).astype(np.uint16)
        laid[band] = (pixels[band] * cover + 255 * (255 - cover) + 127) // 255
    return laid


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, of a picture stored as EXIF's orientation says."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
