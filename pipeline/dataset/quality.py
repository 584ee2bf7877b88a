"""How a canonical image looks, in a few numbers that a manifest's `select:` can ask for.

A measure of JPEG blocks is left out on purpose: canonical images are scaled, so that a raw file's 8 x 8 grid
no longer lies where it could be looked for, and our own JPEG of quality 95 would be measured in its place.
"""

import math
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


def measure(pixels: np.ndarray) -> Quality:  # uint8 [h, w, 3] RGB
    """The measures of one image; about 2 ms at 512 x 512 on one core.

    Finite for every image, flat and tiny ones too.
    """
    import cv2

    pixels = np.ascontiguousarray(pixels)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return {
        "sharpness": sharpness(grey),
        "contrast": float(cv2.meanStdDev(grey)[1].item()) / 255,
        "colour": colourfulness(pixels),
        "phash": phash(grey),
        "grey": is_grey(pixels),
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
    return float(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))[1].item()) ** 2


def colourfulness(pixels: np.ndarray) -> float:  # uint8 [h, w, 3] RGB
    """Hasler and Süsstrunk (2003), section 7: 0 for grey, about 15 slightly, 45 averagely, 110 extremely
    colourful.
    """
    import cv2

    red, green, blue = cv2.split(pixels)
    red_green = cv2.subtract(red, green, dtype=cv2.CV_16S)
    # twice the paper's
    yellow_blue = cv2.subtract(cv2.add(red, green, dtype=cv2.CV_16S), cv2.add(blue, blue, dtype=cv2.CV_16S))
    (rg_mean, rg_spread), (yb_mean, yb_spread) = (
        (mean.item() / twice, spread.item() / twice)
        for twice, (mean, spread) in ((1, cv2.meanStdDev(red_green)), (2, cv2.meanStdDev(yellow_blue)))
    )
    return math.hypot(rg_spread, yb_spread) + 0.3 * math.hypot(rg_mean, yb_mean)


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


def is_grey(pixels: np.ndarray) -> bool:  # uint8 [h, w, 3] RGB
    """Whether nearly all pixels are nearly without saturation; a sepia picture is not grey."""
    import cv2

    red, green, blue = cv2.split(pixels)
    chroma = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    return bool(np.count_nonzero(chroma <= GREY_CHROMA) >= GREY_SHARE * chroma.size)
