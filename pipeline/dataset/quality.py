"""How a canonical image looks, in a few numbers that a manifest's `select:` can ask for.

A measure of JPEG blocks is left out on purpose: canonical images are scaled, so that a raw file's 8 x 8 grid
no longer lies where it could be looked for, and our own JPEG of quality 95 would be measured in its place.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

SHARP_SIDE = 512  # pixels: sharpness is a number per pixel, so larger images are measured at this short side
HASH_SIDE = 32
HASH_BITS = 64
# A coefficient of 2 is a wave of an eighth of a grey level, which rounding alone can make; less is nothing,
# so that plain images have no bits.
FAINT = 2.0
# of 255 between a pixel's largest and smallest channel: JPEG noise and faint tints of scans stay below
GREY_CHROMA = 10
GREY_SHARE = 0.99  # of the pixels of a grey image
LUMA_SIDE, CHROMA_SIDE = 16, 8  # cells a side of a thumbnail
SOFTNESS = 0.7  # of a thumbnail's cells, in 32nds of a side: a shift by less than a cell then shows smoothly

# of SQL
TYPES = {
    "sharpness": "DOUBLE",
    "contrast": "DOUBLE",
    "colour": "DOUBLE",
    "phash": "UBIGINT",
    "grey": "BOOLEAN",
}
MEASURES: tuple[str, ...] = tuple(TYPES)

# (row, column) in the DCT of the 64 lowest frequencies but the mean: by row + column, then row
_FREQUENCIES = np.array(
    sorted(((u, v) for u in range(11) for v in range(11) if u + v), key=lambda at: (sum(at), at[0]))[
        :HASH_BITS
    ]
).T


class Quality(TypedDict):
    """As stored with the image; about each, the function of its name."""

    sharpness: float
    contrast: float  # standard deviation of grey, of 255
    colour: float
    phash: int
    grey: bool
    thumbnail: bytes


Channels = Sequence[np.ndarray]  # uint8 [h, w] each: red, green, blue


def measure(pixels: np.ndarray) -> Quality:  # uint8 [h, w, 3] RGB
    """The measures of one image; about 1 ms at 512 x 512 on one core.

    Finite for every image, flat and tiny ones too.
    """
    import cv2

    pixels = np.ascontiguousarray(pixels)
    channels = cv2.split(pixels)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return {
        "sharpness": sharpness(grey),
        "contrast": float(cv2.meanStdDev(grey)[1].item()) / 255,
        "colour": colourfulness(channels),
        "phash": phash(grey),
        "grey": is_grey(channels),
        "thumbnail": thumbnail(pixels),
    }


def sharpness(grey: np.ndarray) -> float:  # uint8 [h, w]
    """Variance of the Laplacian (Pech-Pacheco et al. 2000) in grey levels², at a short side of at most 512;
    small means blurred.

    Smaller images are measured as they are: enlarging would add a blur that is not theirs. Noise and JPEG
    artefacts count as sharp.
    """
    import cv2

    short = min(grey.shape)
    if short > SHARP_SIDE:
        h, w = (max(round(side * SHARP_SIDE / short), 1) for side in grey.shape)
        grey = cv2.resize(grey, (w, h), interpolation=cv2.INTER_AREA)
    laplacian = cv2.Laplacian(grey, cv2.CV_16S)
    _, spread = _mean_and_spread(cv2.sumElems(laplacian)[0], _square(laplacian), laplacian.size)
    return spread**2


def _mean_and_spread(total: float, squares: float, n: int) -> tuple[float, float]:
    """Of n whole numbers with this sum and sum of squares, to the last bit what cv2.meanStdDev says of them,
    which takes many times as long.
    """
    scale = 1 / n
    mean = total * scale
    return mean, math.sqrt(max(squares * scale - mean * mean, 0))


def _square(one: np.ndarray, other: np.ndarray | None = None) -> int:
    """The sum of squares of one array, or of the differences of two; exact, although cv2 takes a root on the
    way.
    """
    import cv2

    return round(cv2.norm(one, cv2.NORM_L2SQR) if other is None else cv2.norm(one, other, cv2.NORM_L2SQR))


def colourfulness(channels: Channels) -> float:
    """Hasler and Süsstrunk (2003), section 7: 0 for grey, about 15 slightly, 45 averagely, 110 extremely
    colourful.
    """
    import cv2

    red, green, blue = channels
    n = red.size
    reds, greens, blues = (cv2.sumElems(channel)[0] for channel in channels)
    rg_squares = _square(red, green)
    rg_mean, rg_spread = _mean_and_spread(reds - greens, rg_squares, n)
    # of red + green - 2 blue, twice the paper's; (a + b)² = 2a² + 2b² - (a - b)²
    yb_squares = 2 * _square(red, blue) + 2 * _square(green, blue) - rg_squares
    yb_mean, yb_spread = _mean_and_spread(reds + greens - 2 * blues, yb_squares, n)
    return math.hypot(rg_spread, yb_spread / 2) + 0.3 * math.hypot(rg_mean, yb_mean / 2)


def phash(grey: np.ndarray) -> int:  # uint8 [h, w] -> 64 bits, unsigned
    """Perceptual hash: area to 32 x 32, orthonormal DCT, its 64 lowest frequencies without the mean; a bit
    says: above their median.

    The lowest frequency is the highest bit. A plain image has 0. Pictures re-coded, scaled, blurred or
    brightened differ in a few bits, different ones in about 32; mirrored and cropped ones count as different.
    """
    import cv2

    small = cv2.resize(grey, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[tuple(_FREQUENCIES)]
    low[np.abs(low) < FAINT] = 0
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def is_grey(channels: Channels) -> bool:
    """Whether nearly all pixels are nearly without saturation; a sepia picture is not grey."""
    import cv2

    red, green, blue = channels
    chroma = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    return bool(np.count_nonzero(chroma <= GREY_CHROMA) >= GREY_SHARE * chroma.size)


def thumbnail(pixels: np.ndarray) -> bytes:  # uint8 [h, w, 3] RGB
    """384 bytes: luma [16, 16], then red and blue chroma [8, 8, 2] around 128 (full-range BT.601), of the
    whole picture, whatever its aspect. What `pipeline/catalog/duplicates.py` compares.
    """
    import cv2

    small = cv2.resize(pixels, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA)
    soft = cv2.cvtColor(cv2.GaussianBlur(small, (0, 0), SOFTNESS), cv2.COLOR_RGB2YCrCb)
    luma = cv2.resize(soft[..., 0], (LUMA_SIDE, LUMA_SIDE), interpolation=cv2.INTER_AREA)
    chroma = cv2.resize(soft[..., 1:], (CHROMA_SIDE, CHROMA_SIDE), interpolation=cv2.INTER_AREA)
    return luma.tobytes() + chroma.tobytes()
