"""Edges and drawn lines (Canny, sketches, cartoons): pixels matched one to one, exactly and within a
tolerance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate import paper, structure
from evaluate.comparison import PROMPT, Comparison, Counts, Map, Metric, Prepare, Statistic, same_size, worst
from evaluate.matching import most_pairs, near_pixels

EdgeMap = np.ndarray  # bool HW, or uint8 HW of 0 and one other value; non-zero = edge
BSDS = 0.0075  # of the diagonal: the tolerance of the Berkeley benchmark, 5.4 pixels at 512 x 512

# Berkeley's benchmark thins what a machine drew and matches it with people's outlines, which are thin. Here a
# machine drew both, so both are thinned: else a line read again as wide as it was would have pixels to spare.
THINNED = "; wide lines (sketches, cartoons) are thinned to one pixel first"

METRICS = (
    Metric(
        name="edge_f1_bsds",
        title="Edge F1",
        kind="edges",
        version="2",
        primary=True,
        definition=(
            "F1 of edge pixels matched one to one within 0.75 % of the diagonal (5.4 pixels at 512), as many"
            " pairs as possible"
        )
        + THINNED,
    ),
    Metric(
        name="edge_f1",
        title="Edge F1, exact",
        kind="edges",
        version="2",
        column="paper",
        definition="F1 of edge pixels that coincide exactly" + THINNED,
        quirks=(
            "no tolerance, so that a perfect image one pixel off scores 0.3; the paper reads both"
            " maps with kornia's Canny and pools four images of a prompt, as edge_f1_prompt does"
        ),
    ),
    Metric(
        name="edge_f1_prompt",
        title="Edge F1, exact, by prompt",
        kind="edges",
        level="set",
        column="paper",
        definition=(
            "Exact F1 from the coinciding pixels of all samples of a prompt together, averaged over prompts"
        )
        + THINNED,
        quirks=(
            f"no tolerance. ControlNet++'s formula; its reader where that is kornia-canny; {paper.ASKED}"
        ),
    ),
    Metric(
        name="edge_f1_1px",
        title="Edge F1, 1 px",
        kind="edges",
        version="2",
        definition=(
            "F1 of edge pixels matched one to one within one pixel (Euclidean), as many pairs as possible"
        )
        + THINNED,
    ),
    Metric(
        name="edge_f1_2px",
        title="Edge F1, 2 px",
        kind="edges",
        version="2",
        definition=(
            "F1 of edge pixels matched one to one within two pixels (Euclidean), as many pairs as possible"
        )
        + THINNED,
    ),
    Metric(
        name="edge_precision",
        title="Edge precision",
        kind="edges",
        version="2",
        column="diagnostic",
        definition="Share of the edge pixels read again that have a partner within 0.75 % of the diagonal"
        + THINNED,
    ),
    Metric(
        name="edge_recall",
        title="Edge recall",
        kind="edges",
        version="2",
        column="diagnostic",
        definition="Share of the condition's edge pixels that have a partner within 0.75 % of the diagonal"
        + THINNED,
    ),
    Metric(
        name="edge_chamfer",
        title="Edge Chamfer distance",
        kind="edges",
        version="2",
        unit="of the diagonal",
        column="diagnostic",
        higher_is_better=False,
        worst=1.0,
        best=0.0,
        definition=(
            "Mean distance from an edge pixel to the nearest of the other map, averaged over both directions"
        )
        + THINNED,
    ),
    Metric(
        name="edge_ms_ssim",
        title="MS-SSIM of drawings",
        kind="edges",
        column="diagnostic",
        definition="MS-SSIM (five scales from 176 pixels on, fewer below) of the two maps, white on black",
    ),
    Metric(
        name="edge_ssim",
        title="SSIM of drawings",
        kind="edges",
        limits=(-1.0, 1.0),
        column="diagnostic",
        definition="SSIM (11 x 11 Gaussian window) of the two maps, white on black",
    ),
    Metric(
        name="edge_f1_bsds_pooled",
        title="Edge F1, pooled",
        kind="edges",
        version="2",
        level="set",
        column="diagnostic",
        definition="F1 within 0.75 % of the diagonal from the pairs and pixels of all samples together"
        + THINNED,
    ),
    Metric(
        name="edge_f1_pooled",
        title="Edge F1, exact, pooled",
        kind="edges",
        version="2",
        level="set",
        column="diagnostic",
        definition="Exact F1 from the coinciding pixels of all samples together" + THINNED,
    ),
)
MATCHED = tuple(metric.name for metric in METRICS if metric.definition.endswith(THINNED))
TOLERANCES = ("edge_f1", "edge_f1_1px", "edge_f1_2px", "edge_f1_bsds")  # in the order of counts["matched"]


@dataclass(frozen=True, kw_only=True)
class EdgeCounts:
    """Sufficient statistics of precision, recall and F1; counts of many pairs may be added up and then
    scored.
    """

    matched: int  # pairs of a true and a made pixel, no pixel in two pairs
    n_truth: int  # edge pixels of the condition
    n_made: int  # edge pixels read from the generated image

    def __add__(self, other: "EdgeCounts") -> "EdgeCounts":
        return EdgeCounts(
            matched=self.matched + other.matched,
            n_truth=self.n_truth + other.n_truth,
            n_made=self.n_made + other.n_made,
        )


def edge_counts(truth: EdgeMap, reread: EdgeMap, tolerance: float = 0.0) -> EdgeCounts:
    """As many one-to-one pairs of edge pixels as there can be within a Euclidean `tolerance` in pixels: 1.0
    reaches the four neighbours.

    Martin, Fowlkes and Malik (PAMI 2004) match boundaries one to one too, by least cost; a distance transform
    counts thick or doubled edges more than once, which raises the score of a shuffled condition.

    ValueError: a map that `edges` refuses, maps of two sizes, or a tolerance below 0.
    """
    true, read = edges(truth, "truth"), edges(reread, "made")
    same_size(true, read)
    if tolerance < 0:
        raise ValueError(f"tolerance is a distance in pixels and can't be negative, found {tolerance}")
    n_truth, n_made = int(true.sum()), int(read.sum())
    # centres lie on integers: within less than a pixel there is only the same pixel
    if tolerance < 1 or not n_truth or not n_made:
        return EdgeCounts(matched=int((true & read).sum()), n_truth=n_truth, n_made=n_made)
    return EdgeCounts(matched=most_pairs(near_pixels(true, read, tolerance)), n_truth=n_truth, n_made=n_made)


def f1(counts: EdgeCounts) -> float:
    """Harmonic mean of precision and recall, in 0..1; two empty maps agree (1), one empty map finds nothing
    (0).
    """
    pixels = counts.n_truth + counts.n_made
    return 2 * counts.matched / pixels if pixels else 1.0


def chamfer(truth: EdgeMap, reread: EdgeMap) -> float:
    """In shares of the diagonal; one empty map is a diagonal away from what is not."""
    import cv2

    true, read = edges(truth, "truth"), edges(reread, "made")
    if not true.any() or not read.any():
        return 0.0 if true.any() == read.any() else 1.0

    def away(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
        # float32, whose last bit hangs on where the array lies in memory; the square is a whole number
        rounded = cv2.distanceTransform((~b).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return float(np.sqrt(np.rint(rounded[a].astype(np.float64) ** 2)).mean())

    return (away(true, read) + away(read, true)) / 2 / float(np.hypot(*true.shape))


def thinned(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Lines of one pixel where there were wide ones. Canny's are thin already, and would lose a sixth of
    their pixels at corners.
    """
    from skimage.morphology import skeletonize

    return np.asarray(skeletonize(marked), bool)


def compare(truth: Map, reread: Map | None, *, wide: bool = False) -> Comparison:
    """`wide`: lines of more than one pixel, thinned before pixels are matched."""
    true = edges(truth.array, "truth")
    read = np.zeros_like(true) if reread is None else edges(reread.array, "made")
    same_size(true, read)
    drawn, again = (marked.astype(np.uint8) * np.uint8(255) for marked in (true, read))
    if wide:
        true, read = thinned(true), thinned(read)
    reaches = (0.0, 1.0, 2.0, BSDS * float(np.hypot(*true.shape)))
    pairs = [edge_counts(true, read, reach) for reach in reaches]
    widest = pairs[-1]
    counts: dict[str, np.ndarray] = {
        "matched": np.array([pair.matched for pair in pairs], np.int32),
        "pixels": np.array([widest.n_truth, widest.n_made], np.int32),
    }
    if reread is None or (true.any() and not read.any()):
        return Comparison(worst(METRICS), counts)
    agree = float(not true.any() and not read.any())
    alike, alike_at_scales = structure.both(drawn, again)
    return Comparison(
        dict(zip(TOLERANCES, map(f1, pairs), strict=True))
        | {
            "edge_precision": widest.matched / widest.n_made if widest.n_made else agree,
            "edge_recall": widest.matched / widest.n_truth if widest.n_truth else agree,
            "edge_chamfer": chamfer(true, read),
            "edge_ms_ssim": alike_at_scales,
            "edge_ssim": alike,
        },
        counts,
    )


def edges(edge_map: EdgeMap, name: str) -> NDArray[np.bool_]:
    """The map as bool HW; a map with grey levels is refused, because any threshold chosen here would be a
    guess.

    ValueError: not bool or uint8 [height, width], or more than one value other than 0.
    """
    if edge_map.ndim != 2 or edge_map.dtype not in (np.dtype(bool), np.dtype(np.uint8)):
        raise ValueError(
            f"{name} must be an edge map, bool or uint8 [height, width], found {edge_map.dtype}"
            f" {list(edge_map.shape)}"
        )
    if edge_map.dtype == bool:
        return edge_map
    marked = edge_map != 0
    if edge_map.size and (edge_map[marked] != edge_map.max()).any():
        raise ValueError(
            f"{name} must be a binary edge map, found grey levels: threshold it where it is made"
        )
    return marked


def _pooled(tolerance: str) -> Prepare:
    index = TOLERANCES.index(tolerance)

    def prepare(counts: Sequence[Counts]) -> Statistic:
        matched = np.array([image["matched"][index] for image in counts], np.float64)
        pixels = np.array([image["pixels"].sum() for image in counts], np.float64)

        def statistic(weights: NDArray[np.float64]) -> float:
            total = float(weights @ pixels)
            return 2 * float(weights @ matched) / total if total else 1.0

        return statistic

    return prepare


def _by_prompt(counts: Sequence[Counts]) -> Statistic:
    """ControlNet++'s eval_edge.py: a prompt's images are flattened into one before they are scored."""
    each = [int(image[PROMPT][0]) if PROMPT in image else number for number, image in enumerate(counts)]
    prompts, prompt = np.unique(each, return_inverse=True)
    matched = np.bincount(prompt, [image["matched"][0] for image in counts], len(prompts))
    pixels = np.bincount(prompt, [image["pixels"].sum() for image in counts], len(prompts))
    score = np.divide(2 * matched, pixels, out=np.zeros(len(prompts)), where=pixels > 0)  # as torchmetrics

    def statistic(weights: NDArray[np.float64]) -> float:
        total = float(weights.sum())
        return float(weights @ score[prompt]) / total if total else 0.0

    return statistic


STATISTICS: dict[str, Prepare] = {
    "edge_f1_bsds_pooled": _pooled("edge_f1_bsds"),
    "edge_f1_pooled": _pooled("edge_f1"),
    "edge_f1_prompt": _by_prompt,
}
