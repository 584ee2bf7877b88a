"""The canonical image: what every detector reads, and how anything that lies on the raw image is carried over
to it.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.manifest import Image
from pipeline.sources.raw import Unreadable
from pipeline.storage import codec

# What photographs come in; Pillow's others include some that start another program (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO")
ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class CanonicalImage:
    """What every detector reads. `encoded` is what is stored, so it is also what is decoded again."""

    encoded: bytes
    width: int
    height: int
    raw_width: int
    raw_height: int
    raw_format: str
    pixels: np.ndarray  # uint8 HWC RGB, before it was encoded


@dataclass(frozen=True)
class Placement:
    """Which rectangle of an upright raw image becomes the canonical image, and at which size."""

    raw: tuple[int, int]  # (height, width), upright
    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]  # (height, width) of the canonical image


def canonical(data: bytes, image: Image) -> CanonicalImage:
    """EXIF applied, RGB, alpha on white, scaled and cropped as the manifest says, encoded;
    raises Unreadable.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    width = height = kind = None
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Pillow.open(io.BytesIO(data), formats=FORMATS) as picture,
        ):
            (width, height), kind = picture.size, picture.format
            if width * height > image.max_pixels:
                raise Unreadable(
                    f"too large: {width}×{height} is over image.max_pixels ({image.max_pixels:,})".replace(
                        ",", " "
                    ),
                    width,
                    height,
                    kind,
                )
            turned = picture.getexif().get(ORIENTATION, 1) != 1
            pixels = None if turned else _plain_jpeg(data, picture)
            if pixels is None:
                picture.load()
                pixels = _rgb(ImageOps.exif_transpose(picture) if turned else picture)
    except Unreadable:
        raise
    except Pillow.DecompressionBombError as error:
        raise Unreadable("too large: over Pillow's limit of pixels", width, height, kind) from error
    except Pillow.UnidentifiedImageError as error:
        raise Unreadable("not an image of a known format") from error
    except Exception as error:  # decoders raise whatever they like on broken data; the file becomes a row
        raise Unreadable(
            f"broken image: {str(error) or type(error).__name__}", width, height, kind
        ) from error
    small = fit(pixels, image)
    return CanonicalImage(
        codec.encode(small, image.store), small.shape[1], small.shape[0], width, height, kind or "", small
    )


def _plain_jpeg(data: bytes, picture: Any) -> np.ndarray | None:
    """uint8 HWC RGB of the common case, twice as fast as Pillow; None for whatever needs Pillow's care.

    OpenCV fills a truncated file with grey and says nothing, so the end marker must be there.
    """
    import cv2

    if picture.format != "JPEG" or picture.mode not in ("RGB", "L") or b"\xff\xd9" not in data[-64:]:
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _rgb(picture: Any) -> np.ndarray:
    """uint8 HWC RGB of a loaded Pillow image of any mode."""
    from PIL import Image as Pillow

    if picture.mode.startswith("I"):  # 16-bit grey: I;16, I;16B, or I where Pillow widened it
        grey = np.asarray(picture).astype(np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit grey without a known range")
        return np.repeat(np.round(grey / 257).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("floating-point image without a known range")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Pillow.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Pillow.alpha_composite(white, picture)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def canonical_size(height: int, width: int, image: Image) -> tuple[int, int]:
    """(height, width) of the canonical image.

    Buckets: sides in multiples of 64, area at most R², nearest aspect ratio.
    """
    side = image.resolution
    if image.fit == "crop":
        return side, side
    aspect = np.log(width / height)
    sides = range(64, side * side // 64 + 1, 64)
    best = min(
        ((h, w) for h in sides for w in [side * side // h // 64 * 64] if w >= 64),
        key=lambda hw: (abs(np.log(hw[1] / hw[0]) - aspect), -hw[0] * hw[1]),
    )
    return best


def place(height: int, width: int, image: Image) -> Placement:
    """The centre of an upright raw image that has the canonical aspect ratio."""
    tall, wide = canonical_size(height, width, image)
    scale = max(tall / height, wide / width)
    inner_h, inner_w = min(height, round(tall / scale)), min(width, round(wide / scale))
    return Placement(
        (height, width), (height - inner_h) // 2, (width - inner_w) // 2, inner_h, inner_w, (tall, wide)
    )


def fit(pixels: np.ndarray, image: Image) -> np.ndarray:
    """Scales uint8 HWC RGB to cover the canonical size (area filter down, Lanczos up) and takes
    the centre.
    """
    import cv2

    to = place(pixels.shape[0], pixels.shape[1], image)
    centre = np.ascontiguousarray(pixels[to.top : to.top + to.height, to.left : to.left + to.width])
    if centre.shape[:2] == to.size:
        return centre
    shrinks = to.height > to.size[0]
    return cv2.resize(centre, to.size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4)


def upright_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the image as EXIF turns it, from its header alone."""
    from PIL import Image as Pillow

    with warnings.catch_warnings(action="ignore"), Pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
        width, height = picture.size
        return (width, height) if picture.getexif().get(ORIENTATION, 1) >= 5 else (height, width)
