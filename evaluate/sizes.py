"""What the size of pictures does to measures: tolerances that reach the same pixels, scales without room."""

from collections.abc import Collection, Iterator

import numpy as np

from evaluate import measures, structure
from evaluate.edges import BSDS

Sizes = Collection[tuple[int, int]]  # height and width of the pictures of one benchmark
# each with a share of the diagonal as its tolerance, and the same with pixels, or none
_PIXELS = {
    "edge_f1_bsds": {"edge_f1": 0.0, "edge_f1_1px": 1.0, "edge_f1_2px": 2.0},
    "edge_f1_bsds_pooled": {"edge_f1_pooled": 0.0},
}
_SCALED = ("edge_ms_ssim", "soft_ms_ssim")


def repeats(names: Collection[str], sizes: Sizes) -> dict[str, str]:
    """Measure -> the one whose every value it has, since both reach the same pixels in pictures of these
    sizes.
    """
    return {
        other: name
        for name, pixels in _PIXELS.items()
        for other, reach in pixels.items()
        if {name, other} <= set(names)
        and sizes
        and all(_reached(BSDS * float(np.hypot(*size))) == _reached(reach) for size in sizes)
    }


def _reached(tolerance: float) -> int:
    """How many pixels lie within a distance."""
    reach = int(tolerance)
    squares = np.arange(-reach, reach + 1) ** 2
    return int((squares[:, None] + squares <= tolerance * tolerance).sum())


def scales(names: Collection[str], sizes: Sizes) -> tuple[int, int] | None:
    """Fewest and most that MS-SSIM has in pictures of these sizes; None = it is not among the measures, or
    has all of them.
    """
    counts = [structure.scales(*size) for size in sizes]
    if not set(_SCALED) & set(names) or min(counts, default=len(structure.BETAS)) == len(structure.BETAS):
        return None
    return min(counts), max(counts)


def remarks(names: Collection[str], sizes: Sizes) -> Iterator[str]:
    """A sentence of each for a reader."""
    for name, same in repeats(names, sizes).items():
        one, other = (measures.metric(each).title for each in (name, same))
        yield f"{one} is {other} here: in pictures of this size both reach the same pixels."
    if counts := scales(names, sizes):
        few = " to ".join(map(str, dict.fromkeys(counts)))
        yield f"Scales of MS-SSIM here: {few}, not 5; more do not fit into pictures of this size."
