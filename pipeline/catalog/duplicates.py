"""Near-duplicates: whether two thumbnails are copies of one picture.

`hash_index.py` proposes pairs by their perceptual hashes, this decides. Of two thumbnails one is predicted
from the other: with another brightness, contrast and strength of colours, shifted and stretched as a crop of
a few percent does. What is left is compared with the detail that the pictures have: copies leave a little
everywhere, an object that moved leaves much in few places. On a plain ground, as in product shots and on
pages, hashes agree by chance: there little may be left, or the fit must explain much of the difference; and
where a large ground stays as it was, nothing else was brightened.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Floats = NDArray[np.floating]
# uint8 [n, 384]: luma [16, 16], then red and blue chroma [8, 8, 2] around 128, as `quality.thumbnail` says
Thumbnails = NDArray[np.uint8]

LUMA, CHROMA = 16, 8  # cells a side
BYTES = LUMA**2 + 2 * CHROMA**2
CHUNK = 1024  # pairs at once

# Chosen on the even pictures of `benchmarks/duplicates.py`, whose table is of the odd ones.
LEFT = 0.45  # of the detail: what may be left, root mean square
LITTLE, UNEXPLAINED = 0.2, 0.87  # on a plain ground: of the detail, or else of what the fit was to explain
LEFT_IN_CELL = 1.4  # of the detail: what may be left in the worst cell
LEVELS_IN_CELL = 6.0  # of 255: the same where most of the picture is ground, and that stays
SOME, MOST = (0.15, 2), (0.5, 2)  # share of the cells within so many levels: some ground, and mostly ground
STAYS, DARK = 3.0, 16.0  # levels: a ground that changes by less stays; a darker one always does
ROUNDING = 0.5  # levels²: what rounding leaves of equal pictures; in one cell up to eight times as much
FAINT = 0.25  # levels²: detail is never taken for less
STIFF = 0.3  # levels²: holds a shift back where there is nothing to see it by


class _Pictures(NamedTuple):
    luma: Floats  # [n, 16, 16]
    chroma: Floats  # [n, 8, 8, 2], grey is 0

    def of(self, chosen: NDArray[np.bool_]) -> "_Pictures":
        return _Pictures(self.luma[chosen], self.chroma[chosen])


class _Fit(NamedTuple):
    """What is left of n pairs."""

    left: Floats  # [n] root mean square, as a share of the detail
    worst: Floats  # [n] levels in the worst cell
    detail: Floats  # [n] levels from cell to cell
    change: Floats  # [n] of the level that was asked about
    unexplained: Floats  # [n] share of the difference that is left


def alike(thumbnails: Thumbnails, one: Numbers, other: Numbers) -> NDArray[np.bool_]:  # [n] pairs
    """Whether they are copies of one picture: re-coded, scaled, brightened, cropped by a few percent.

    The same for a pair and for the pair the other way round.
    """
    result = np.zeros(len(one), bool)
    for start in range(0, len(one), CHUNK):
        chunk = slice(start, start + CHUNK)
        result[chunk] = _alike(_pictures(thumbnails[one[chunk]]), _pictures(thumbnails[other[chunk]]))
    return result


def _pictures(thumbnails: Thumbnails) -> _Pictures:
    luma, chroma = np.split(thumbnails.astype(np.float32), [LUMA**2], axis=1)
    return _Pictures(luma.reshape(-1, LUMA, LUMA), chroma.reshape(-1, CHROMA, CHROMA, 2) - 128)


def _alike(one: _Pictures, other: _Pictures) -> NDArray[np.bool_]:
    (some, _), (too, _) = _ground(one.luma, *SOME), _ground(other.luma, *SOME)
    (most, level), (most_too, level_too) = _ground(one.luma, *MOST), _ground(other.luma, *MOST)
    some, most, level = some | too, most | most_too, (level + level_too) / 2
    fit = _fit(one, other, level, most)
    good = (fit.left <= LEFT) & (fit.worst <= LEFT_IN_CELL * fit.detail)
    good &= ~some | (fit.left <= LITTLE) | (fit.unexplained <= UNEXPLAINED)
    held = good & most & (level > DARK) & (np.abs(fit.change) < STAYS)
    if held.any():
        again = _fit(one.of(held), other.of(held), level[held], most[held], exposure=False)
        good[held] = (again.left <= LEFT) & (again.worst <= LEVELS_IN_CELL)
    return good


def some_ground(thumbnails: Thumbnails) -> NDArray[np.bool_]:  # [n]
    """Whether some of the picture is a plain ground, on which hashes agree by chance."""
    return _ground(thumbnails[:, : LUMA**2].astype(np.float32), *SOME)[0]


def _ground(
    luma: Floats,  # [n, ...] 256 cells
    share: float,
    spread: int,
) -> tuple[NDArray[np.bool_], Floats]:  # [n], [n]
    """Whether such a share of the cells lies within so many levels; and the level where most of them lie."""
    levels, count = np.sort(luma.reshape(-1, LUMA**2), axis=1), round(share * LUMA**2)
    spreads = levels[:, count - 1 :] - levels[:, : LUMA**2 - count + 1]
    start, rows = spreads.argmin(axis=1), np.arange(len(levels))
    return spreads[rows, start] <= spread, levels[rows, start + count // 2]


def _fit(
    one: _Pictures,
    other: _Pictures,
    level: Floats,  # [n]
    # [n] whether colours change as contrast does; else they have a strength and a cast of their own
    tied: NDArray[np.bool_],
    *,
    exposure: bool = True,  # False: brightness, contrast and colours are taken as they are
) -> _Fit:
    """Least squares in luma; chroma is shifted as was found there."""
    n = len(one.luma)
    middle = (one.luma + other.luma) / 2
    mean = middle.mean((1, 2))
    contrast = middle - mean[:, None, None]
    slopes = _slopes(middle)
    # the square: what was cut off at white and black
    causes = [np.ones_like(middle), contrast, contrast**2 / 64] if exposure else []
    columns = np.stack([*slopes, *causes], axis=-1).reshape(n, LUMA**2, 4 + len(causes))
    difference = (other.luma - one.luma).reshape(n, LUMA**2, 1)
    turned = columns.transpose(0, 2, 1)
    stiff = np.diag([STIFF * LUMA**2] * 4 + [1e-3 * LUMA**2] * len(causes))
    solution = np.linalg.solve(turned @ columns + stiff, turned @ difference).astype(np.float32)
    luma_left = difference - columns @ solution

    tint = (one.chroma + other.chroma) / 2
    tint_slopes = _slopes(tint)
    chroma_left = other.chroma - one.chroma
    for number, slope in enumerate(tint_slopes):  # a cell is twice as large
        chroma_left -= slope * solution[:, number].reshape(n, 1, 1, 1) * CHROMA / LUMA
    change = np.zeros(n, np.float32)
    if exposure:
        bias, gain = solution[:, 4, 0], solution[:, 5, 0]
        strength = (chroma_left * tint).sum((1, 2, 3)) / ((tint**2).sum((1, 2, 3)) + 1)
        chroma_left -= np.where(tied, gain, strength).reshape(n, 1, 1, 1) * tint
        chroma_left[~tied] -= chroma_left[~tied].mean((1, 2), keepdims=True)
        change = bias + gain * (level - mean)

    cells = _cells(luma_left, chroma_left)
    difference_cells = _cells(difference, other.chroma - one.chroma)
    unexplained = np.sqrt(cells.mean((1, 2)) / np.maximum(difference_cells.mean((1, 2)), ROUNDING))
    detail = sum((slope**2).mean((1, 2)) for slope in slopes[:2])
    detail = detail + sum((slope**2).mean((1, 2)).sum(-1) for slope in tint_slopes[:2]) / 2
    detail = np.sqrt(np.maximum(detail, FAINT))
    left = np.sqrt(np.maximum(cells.mean((1, 2)) - ROUNDING, 0)) / detail
    worst = np.sqrt(np.maximum(cells.max((1, 2)) - 8 * ROUNDING, 0))
    return _Fit(left, worst, detail, change, unexplained)


def _cells(luma: Floats, chroma: Floats) -> Floats:  # [n, 8, 8] levels²
    """Squared differences; chroma counts twice, for it spans less than luma."""
    half = CHROMA, LUMA // CHROMA
    return (luma.reshape(-1, *half, *half) ** 2).mean((2, 4)) + 2 * (chroma**2).sum(-1)


def _slopes(middle: Floats) -> list[Floats]:  # [n, side, side, ...]
    """What a shift by one cell changes, across and down, and what a stretch by one at the borders does."""
    down, across = np.gradient(middle, axis=(1, 2))
    side = middle.shape[1]
    place = ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)
    column = place.reshape(side, *[1] * (middle.ndim - 3))
    return [across, down, across * column, down * column[:, None]]
