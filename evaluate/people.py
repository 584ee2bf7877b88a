"""People's keypoints by COCO's protocol: OKS, average precision over the whole set, PCK, and how many people
there are.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from evaluate import paper
from evaluate.comparison import Comparison, Counts, Map, Metric, Prepare, Statistic
from evaluate.oks import LEFT_OUT, SIGMAS, THRESHOLDS, People, area, coco, hits, oks
from evaluate.ranking import average_precision, average_recall

MOST = 20  # people of an image that count, the surest
# shares of the image that a box has: COCO's 32² and 96² pixels of its usual 640 x 480, which would be half of
# a small picture
SIZES = {"medium": (32**2 / (640 * 480), 96**2 / (640 * 480)), "large": (96**2 / (640 * 480), np.inf)}
PCKS = {"people_pck_10": 0.1, "people_pck_20": 0.2}  # of the longer side of the true person's box

METRICS = (
    Metric(
        name="people_ap",
        title="OKS-AP",
        kind="people",
        level="set",
        primary=True,
        definition=(
            "COCO's keypoint AP over the whole set, OKS .50 to .95, the 20 surest people of an image; area of"
            " the box of visible keypoints"
        ),
    ),
    Metric(
        name="people_ap50",
        title="OKS-AP at .50",
        kind="people",
        level="set",
        column="diagnostic",
        definition="COCO's keypoint AP over the whole set at OKS .50 alone",
    ),
    Metric(
        name="people_ap75",
        title="OKS-AP at .75",
        kind="people",
        level="set",
        column="diagnostic",
        definition="COCO's keypoint AP over the whole set at OKS .75 alone",
    ),
    *(
        Metric(
            name=f"people_ap_{size}",
            title=f"OKS-AP, {size}",
            kind="people",
            level="set",
            column="diagnostic",
            definition=(
                f"COCO's keypoint AP over the whole set of people whose box has {100 * low:.2g} % of the"
                " image or more"
            )
            + (f", up to {100 * high:.2g} %" if high < 1 else "")
            + "; others neither help nor harm",
        )
        for size, (low, high) in SIZES.items()
    ),
    Metric(
        name="people_ar",
        title="OKS-AR",
        kind="people",
        level="set",
        definition=(
            "COCO's keypoint AR over the whole set: share of the people found, averaged over OKS .50 to .95"
        ),
    ),
    Metric(
        name="people_ap_batches",
        title="OKS-AP of batches",
        kind="people",
        level="set",
        column="paper",
        definition="OKS-AP of every ten images on their own, averaged",
        quirks=(
            "HumanSD: AP per batch instead of over the set; boxes that missing keypoints stretch to the"
            " corner of the image"
        ),
    ),
    Metric(
        name="people_cap",
        title="CAP",
        kind="people",
        level="set",
        column="paper",
        definition=(
            "AP of every ten images with the cosine similarity of the keypoints in place of OKS, averaged"
        ),
        quirks=(
            "HumanSD: the made y is overwritten by x (`yd=xd/...`), so that heights never count; AP per"
            " batch; a true person without extent matches anyone"
        ),
    ),
    Metric(
        name="people_oks",
        title="Mean OKS",
        kind="people",
        definition=(
            "OKS of the best one-to-one assignment of people, averaged over an image's true people; one who"
            " is missed has 0"
        ),
    ),
    Metric(
        name="people_pck_10",
        title="PCK@0.1",
        kind="people",
        definition=(
            "Share of the visible keypoints found within 0.1 of the longer side of the person's box, in the"
            " same assignment"
        ),
    ),
    Metric(
        name="people_pck_20",
        title="PCK@0.2",
        kind="people",
        definition=(
            "Share of the visible keypoints found within 0.2 of the longer side of the person's box, in the"
            " same assignment"
        ),
    ),
    Metric(
        name="people_pce",
        title="People count error",
        kind="people",
        unit="people",
        higher_is_better=False,
        worst=float(MOST),
        best=0.0,
        definition="How many people too many or too few (20 at most); an image that can't be read has nobody",
    ),
)


def _of_size(counts: Sequence[Counts], size: str) -> Statistic:
    """AP averages thresholds, and at each of them others are left out."""
    kept = [[image[f"hits_{size}"][:, t] < LEFT_OUT for image in counts] for t in range(len(THRESHOLDS))]
    at = [
        average_precision(
            [
                {
                    "scores": image["scores"][own],
                    "hits": image[f"hits_{size}"][own, t : t + 1],
                    "n_truth": image[f"n_truth_{size}"],
                }
                for image, own in zip(counts, kept[t], strict=True)
            ],
            "hits",
        )
        for t in range(len(THRESHOLDS))
    ]
    return lambda weights: float(np.mean([statistic(weights) for statistic in at]))


STATISTICS: dict[str, Prepare] = {
    **{f"people_ap_{size}": partial(_of_size, size=size) for size in SIZES},
    "people_ap": partial(average_precision, hits="hits"),
    "people_ap50": partial(average_precision, hits="hits", thresholds=slice(0, 1)),
    "people_ap75": partial(average_precision, hits="hits", thresholds=slice(5, 6)),
    "people_ar": partial(average_recall, hits="hits"),
    "people_ap_batches": partial(average_precision, hits="hits_paper", batch=paper.BATCH),
    "people_cap": partial(average_precision, hits="hits_cap", batch=paper.BATCH),
}


def compare(truth: Map, reread: Map | None) -> Comparison:
    true = coco(truth, "truth")
    read = np.empty((0, 17, 3), np.float32)
    if reread is not None:
        h, w = reread.meta["size"]
        read = coco(reread, "made") * np.array(
            [truth.meta["size"][1] / w, truth.meta["size"][0] / h, 1], np.float32
        )
    score = np.array([person[person[:, 2] > 0, 2].mean() for person in read], np.float32)
    order = np.argsort(-score, kind="stable")
    everyone, read, score = len(read), read[order][:MOST], score[order][:MOST]
    similar = oks(read, true, np.array([area(person) for person in true]))
    counts: dict[str, np.ndarray] = {
        "scores": score,
        "hits": hits(similar),
        "hits_paper": hits(oks(read, true, np.array([paper.person_area(person) for person in true]))),
        "hits_cap": hits(
            np.array([[paper.cosine(t, d, SIGMAS) for t in true] for d in read]).reshape(len(read), len(true))
        ),
        "n_truth": np.array([len(true)], np.int32),
    }
    h, w = truth.meta["size"]
    for size, (low, high) in SIZES.items():
        of_size = [
            np.array([low <= area(person) / (h * w) < high for person in people], bool)
            for people in (true, read)
        ]
        matched = hits(similar, of_size[0])
        counts[f"hits_{size}"] = np.where((matched == 0) & ~of_size[1][:, None], LEFT_OUT, matched).astype(
            np.uint8
        )
        counts[f"n_truth_{size}"] = np.array([of_size[0].sum()], np.int32)
    values = {"people_oks": float(not len(read)), **dict.fromkeys(PCKS, float(not len(read)))}
    if len(true):
        values = _assigned(similar, read, true)
    elif reread is None:
        values = dict.fromkeys(values, 0.0)
    return Comparison(values | {"people_pce": float(min(abs(everyone - len(true)), MOST))}, counts)


def _assigned(similar: NDArray[np.float64], read: People, true: People) -> dict[str, float]:
    """The assignment of people with the greatest sum of OKS."""
    from scipy.optimize import linear_sum_assignment

    i, j = linear_sum_assignment(similar, maximize=True)
    visible = true[..., 2] > 0
    pairs = read[i], true[j]
    distance = np.linalg.norm(pairs[0][..., :2].astype(np.float64) - pairs[1][..., :2], axis=-1)
    side = np.array([np.ptp(person[person[:, 2] > 0, :2], axis=0).max() for person in pairs[1]]).reshape(
        -1, 1
    )
    both = visible[j] & (pairs[0][..., 2] > 0)
    return {"people_oks": float(similar[i, j].sum() / len(true))} | {
        name: float((both & (distance <= share * side)).sum() / visible.sum()) for name, share in PCKS.items()
    }
