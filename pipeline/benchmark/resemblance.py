"""Whether a submitted picture is a copy of a held-out photograph, of which only a code is known.

A code is small enough to be public, and too coarse to be a picture: 16 x 16 cells of colour. A copy may be
coded again, brightened, blurred, mirrored, shifted by a quarter of its side or cropped by a tenth: it is laid
over the code where the two correlate most (cv2.matchTemplate), turned and stretched to fit
(cv2.findTransformECC), and compared where both are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CELLS, FINE = 16, 4  # of a code a side; pixels of a cell in the picture that is laid over it
SIDE = CELLS * FINE
SOFT = 1.4  # pixels: the blur before cells are taken, so that a shift by less than a cell shows smoothly
MARGIN = 12  # pixels on each side that the part to look for leaves out, so that a shift can be found
PROMISING = 0.7  # correlation below which two pictures are not laid over each other at all
ALIKE_BITS = 16  # of 64 of the perceptual hash: photographs of other prompts that are looked at closely
OVERLAP = 0.4  # of the cells: less says nothing
# What is left of a copy, as a share of the code's detail and in levels of 255: 99 of 100 copies are below.
# Of 78 samples of the showcase the nearest to its own photograph left 0.18, and 9.7 levels.
LEFT, LEVELS = 0.14, 7.0
FLAT = 4.0  # levels²: detail is never taken for less
GAIN = (0.6, 1.6)  # how much another contrast may be


@dataclass(frozen=True)
class Code:
    """What is told of one held-out photograph."""

    cells: NDArray[np.uint8]  # [16, 16, 3]: luma, red and blue chroma (full-range BT.601)
    phash: int  # of 64 bits, `pipeline.dataset.quality.phash`

    def stored(self) -> str:
        """As benchmark.json holds it: base64 of cells and hash."""
        import base64

        return base64.b64encode(self.cells.tobytes() + self.phash.to_bytes(8, "big")).decode()

    @classmethod
    def read(cls, text: str) -> "Code":
        """ValueError: no code."""
        import base64

        data = base64.b64decode(text, validate=True)
        if len(data) != 3 * CELLS**2 + 8:
            raise ValueError(f"a code has {3 * CELLS**2 + 8} bytes, not {len(data)}")
        cells = np.frombuffer(data[:-8], np.uint8).reshape(CELLS, CELLS, 3)
        return cls(cells, int.from_bytes(data[-8:], "big"))


def code(pixels: np.ndarray) -> Code:  # uint8 [h, w, 3] RGB
    """Of a whole picture, whatever its aspect."""
    return Code(_cells(_planes(pixels)).round().astype(np.uint8), _phash(pixels))


class Codes:
    """All held-out photographs, to be compared with one picture after the other."""

    def __init__(self, codes: dict[str, Code]) -> None:
        """By image id."""
        self._codes = codes
        self._names = list(codes)
        self._hashes = np.array([one.phash for one in codes.values()], np.uint64)

    def copied(self, pixels: np.ndarray, own: str) -> str | None:  # uint8 [h, w, 3] RGB
        """The image id of the photograph that it is a copy of; None = of none. `own` is the one whose
        condition it was made from, which is looked at closely in any case.
        """
        likely = [own] if own in self._codes else []
        for picture in (pixels, pixels[:, ::-1]):
            apart = np.bitwise_count(self._hashes ^ np.uint64(_phash(picture)))
            likely += [self._names[number] for number in np.flatnonzero(apart <= ALIKE_BITS)]
        planes = _planes(pixels)
        return next((name for name in dict.fromkeys(likely) if _is_copy(planes, self._codes[name])), None)


def _phash(pixels: np.ndarray) -> int:
    import cv2

    from pipeline.dataset import quality

    return quality.phash(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY))


def _planes(pixels: np.ndarray) -> Floats:  # [SIDE, SIDE, 3]
    import cv2

    small = cv2.resize(np.ascontiguousarray(pixels), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    soft: Any = cv2.cvtColor(cv2.GaussianBlur(small, (0, 0), SOFT), cv2.COLOR_RGB2YCrCb)
    return np.asarray(soft, np.float32)


def _cells(planes: np.ndarray) -> Floats:  # [SIDE, SIDE, ...] -> [CELLS, CELLS, ...]
    return planes.reshape(CELLS, FINE, CELLS, FINE, *planes.shape[2:]).mean((1, 3), dtype=np.float32)


def _is_copy(planes: Floats, of: Code) -> bool:
    cells = of.cells.astype(np.float32)
    return any(_fits(planes, np.ascontiguousarray(way)) for way in (cells, cells[:, ::-1]))


def _fits(planes: Floats, cells: Floats) -> bool:
    """Whether the picture, laid over these cells, is the picture that they were taken of."""
    import cv2

    luma = cv2.GaussianBlur(planes[..., 0], (0, 0), FINE * 0.4)
    wanted = cv2.resize(cells[..., 0], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    if np.ptp(wanted) == 0 or np.ptp(luma) == 0:  # nothing to find a place by
        return _left(planes, cells, np.eye(2, 3, dtype=np.float32))
    found = cv2.matchTemplate(luma, wanted[MARGIN:-MARGIN, MARGIN:-MARGIN], cv2.TM_CCOEFF_NORMED)
    _, peak, _, (x, y) = cv2.minMaxLoc(found)
    if not peak >= PROMISING:
        return False
    place: Any = np.array([[1, 0, x - MARGIN], [0, 1, y - MARGIN]], np.float32)
    if _left(planes, cells, place):
        return True
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    try:
        _, place = cv2.findTransformECC(wanted, luma, place, cv2.MOTION_AFFINE, stop, None, 1)  # type: ignore[call-overload]
    except cv2.error:  # it found no better place
        return False
    return _left(planes, cells, place)


def _left(planes: Floats, cells: Floats, place: Any) -> bool:  # of [2, 3], affine
    """Whether little is left between the two where both are, with the contrast that fits best."""
    import cv2

    back = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    whole = np.ones((SIDE, SIDE), np.float32)
    laid = _cells(
        np.asarray(cv2.warpAffine(planes, place, (SIDE, SIDE), flags=back, borderMode=cv2.BORDER_REPLICATE))
    )
    inside = np.asarray(cv2.warpAffine(whole, place, (SIDE, SIDE), flags=back))
    both = inside.reshape(CELLS, FINE, CELLS, FINE).min((1, 3)) > 0.99
    if both.mean() < OVERLAP:
        return False
    one, other = laid[both], cells[both]  # [n, 3]
    one, other = one - [one[:, 0].mean(), 128, 128], other - [other[:, 0].mean(), 128, 128]
    gain = float(np.clip((one[:, 0] @ other[:, 0] + 1e-3) / (one[:, 0] @ one[:, 0] + 1e-3), *GAIN))
    weight = np.array([1, 2, 2])  # chroma spans less than luma
    left = float((weight * (other - gain * one) ** 2).sum(1).mean())
    detail = float((weight * (other - other.mean(0)) ** 2).sum(1).mean())
    return left <= LEVELS**2 and left <= LEFT**2 * max(detail, FLAT)
