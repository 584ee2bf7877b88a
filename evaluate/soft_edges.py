"""Soft edges (HED): structural similarity of the grey maps, and one-to-one F1 of their ridges."""

import numpy as np
from numpy.typing import NDArray

from evaluate import paper, structure
from evaluate.comparison import Comparison, Map, Metric, Prepare, same_size, worst
from evaluate.edges import BSDS, edge_counts, f1, thinned

STRONG = 128  # of 255: from half strength on a soft edge is an edge

METRICS = (
    Metric(
        name="soft_ms_ssim",
        title="MS-SSIM of soft edges",
        kind="soft_edges",
        primary=True,
        column="paper",
        definition=(
            "MS-SSIM (five scales from 176 pixels on, fewer below; 11 x 11 Gaussian window) of the two maps"
        ),
        quirks=(
            "ControlNet++'s paper and tables call it SSIM, which is a lower number. ControlNet++'s"
            f" formula; its reader where that is controlnet-hed; {paper.ASKED}"
        ),
    ),
    Metric(
        name="soft_ssim",
        title="SSIM of soft edges",
        kind="soft_edges",
        limits=(-1.0, 1.0),
        definition="SSIM (11 x 11 Gaussian window) of the two maps",
    ),
    Metric(
        name="soft_f1",
        title="Soft edge F1",
        kind="soft_edges",
        definition=(
            "F1 of edges of half strength or more, thinned to one pixel, matched one to one within 0.75 % of"
            " the diagonal"
        ),
    ),
)
STATISTICS: dict[str, Prepare] = {}


def compare(truth: Map, reread: Map | None) -> Comparison:
    true = _grey(truth.array, "truth")
    read = np.zeros_like(true) if reread is None else _grey(reread.array, "made")
    same_size(true, read)
    pairs = edge_counts(thinned(true >= STRONG), thinned(read >= STRONG), BSDS * float(np.hypot(*true.shape)))
    counts: dict[str, np.ndarray] = {
        "matched": np.array([pairs.matched], np.int32),
        "pixels": np.array([pairs.n_truth, pairs.n_made], np.int32),
    }
    if reread is None or (true.any() and not read.any()):
        return Comparison(worst(METRICS), counts)
    alike, alike_at_scales = structure.both(true, read)
    return Comparison({"soft_ms_ssim": alike_at_scales, "soft_ssim": alike, "soft_f1": f1(pairs)}, counts)


def _grey(array: np.ndarray, name: str) -> NDArray[np.uint8]:
    if array.ndim != 2 or array.dtype != np.uint8:
        raise ValueError(
            f"{name} must be a map of soft edges, uint8 [height, width], found {array.dtype}"
            f" {list(array.shape)}"
        )
    return array
