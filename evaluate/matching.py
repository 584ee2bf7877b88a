"""One-to-one matching: as many pairs as there can be, nothing in two of them."""

import numpy as np
from numpy.typing import NDArray

Near = NDArray[np.int32]  # [e, 2]: a row and a column that may be paired; sorted by row, then by column
EXACT = 600_000  # choices up to which the matching is the largest: above, dense noise would take seconds
STRIP = 8_000  # rows matched at a time beyond that


def most_pairs(near: Near) -> int:
    """Size of a maximum matching; of more than 600,000 choices, strip by strip, at most 0.4 % smaller on the
    densest maps tried.

    The strips err to fewer pairs. The edges of the photographs of benchmarks/fidelity.py stay below the limit
    at every tolerance.
    """
    if len(near) <= EXACT:
        return len(_matched(near))
    free = np.ones(int(near[:, 1].max()) + 1, bool)
    ends = np.searchsorted(near[:, 0], np.arange(STRIP, int(near[-1, 0]) + 1, STRIP))
    for strip in np.split(near, ends):
        free[_matched(strip[free[strip[:, 1]]])] = False
    return int((~free).sum())


def near_pixels(
    true: NDArray[np.bool_],  # [h, w]
    read: NDArray[np.bool_],  # [h, w]
    tolerance: float,  # pixels, Euclidean
) -> Near:  # pixels of the one and of the other, numbered in reading order
    reach = int(np.floor(tolerance))
    numbers = np.pad(
        np.where(read, np.cumsum(read, dtype=np.int32).reshape(read.shape) - 1, np.int32(-1)),
        reach,
        constant_values=-1,
    )
    width = numbers.shape[1]
    steps = [
        dy * width + dx
        for dy in range(-reach, reach + 1)
        for dx in range(-reach, reach + 1)
        if dy * dy + dx * dx <= tolerance * tolerance
    ]
    y, x = np.nonzero(true)
    places = ((y + reach) * width + x + reach)[:, None] + np.array(steps)
    near = numbers.ravel().take(places)  # [n, steps], -1 = no pixel there
    exists = near >= 0
    rows = np.repeat(np.arange(len(y), dtype=np.int32), exists.sum(axis=1))
    return np.stack([rows, near[exists]], axis=1)


def _matched(near: Near) -> NDArray[np.int64]:  # columns that are paired
    """A maximum matching, found as a flow source -> row -> column -> sink.

    SciPy's maximum_bipartite_matching finds one too but takes exponential time on thick edges (scipy issue
    26147); Dinic's algorithm does not. In reading order it finds most pairs at its first try, in any other it
    must mend more.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    if not len(near):
        return np.empty(0, np.int64)
    rows, columns = (np.bincount(near[:, side]) > 0 for side in (0, 1))
    row, column = (np.cumsum(present)[near[:, side]] - 1 for side, present in ((0, rows), (1, columns)))
    n, m = int(rows.sum()), int(columns.sum())
    sink = n + m + 1
    to = np.concatenate([np.arange(1, n + 1), column + n + 1, np.full(m, sink)]).astype(np.int32)
    ends = np.concatenate(
        [[0, n], n + np.cumsum(np.bincount(row, minlength=n)), n + len(near) + np.arange(1, m + 1), [len(to)]]
    )
    graph = csr_array((np.ones(len(to), np.int32), to, ends.astype(np.int32)), shape=(sink + 1, sink + 1))
    flow = maximum_flow(graph, 0, sink, method="dinic").flow
    # the flow is antisymmetric: what the sink's row gives back came from a column
    into = slice(*flow.indptr[sink : sink + 2])
    return np.flatnonzero(columns)[flow.indices[into][flow.data[into] != 0] - n - 1]
