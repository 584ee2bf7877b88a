"""Near-duplicates by perceptual hash: whose group an image joins. Asked when its shard is committed."""

import numpy as np
from numpy.typing import NDArray


def leaders(
    known: NDArray[np.uint64],  # [n] hashes in the order of their commits
    incoming: NDArray[np.uint64],  # [m] in the order in which they are to be committed
    distance: int,  # bits
    # [n] the leader of each known image, itself where it has none; None = each leads itself
    led: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:  # [m] index of the leader, incoming counted from n on; -1 = none: it leads itself
    """The earliest leader among an image's near-duplicates; an image that bridges two groups joins the
    earlier, and they stay two.
    """
    n = len(known)
    own = np.arange(n, dtype=np.int64) if led is None else led
    result = np.full(len(incoming), -1, np.int64)
    for i, each in enumerate(incoming):
        committed, before = _near(known, each, distance), _near(incoming[:i], each, distance)
        found = np.concatenate([own[committed], np.where(result[before] < 0, n + before, result[before])])
        result[i] = found.min() if len(found) else -1
    return result


def _near(known: NDArray[np.uint64], each: np.uint64, distance: int) -> NDArray[np.int64]:
    return np.flatnonzero(np.bitwise_count(known ^ each) <= distance)
