"""How well the mini detector reads scenes whose truth is known."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from annotate.mini import figure
from annotate.mini.detect import Reading, has_person, objects, read
from annotate.mini.losses import Truth
from annotate.mini.network import DetectorNetwork, JointNetwork
from annotate.mini.vocabulary import Vocabulary, Wanted

NEAR = 0.1  # PCK: of the longer side of the box of the person's joints
CLOSE = 1.25  # delta: the larger depth through the smaller
SPACES = ("coco_stuff_171", "ade20k_150")

Scores = dict[str, float | list[float] | None]  # a count, a value, or an `interval`


def measure(
    net: DetectorNetwork,
    truth: Truth,
    wanted: Sequence[Wanted],  # of each scene
    # other pictures of the same scenes, such as a VAE's; None = truth's own
    images: NDArray[np.uint8] | None = None,
) -> Scores:
    """Means with half the width of their 95 % intervals, over scenes, or over joints and objects; mIoU over
    classes, of all pixels.
    """
    readings = read(net, list(truth.images if images is None else images))
    rows = range(len(readings))
    ratios = [one.depth / truth.depth[row].astype(np.float32) for row, one in enumerate(readings)]
    joints = [hit for row in rows for hit in near(readings[row].joints, truth.joints[row])]
    finds = [recall_hits(readings[row], wanted[row]) for row in rows]
    things = [hit for hits in finds for hit in hits]
    named = [hit for row in rows for hit in _precision_hits(readings[row], wanted[row])]
    labels = np.stack([one.classes for one in readings])
    return {
        "n": len(readings),
        "joints": len(joints),
        "objects": len(things),
        "depth_delta_1.25": interval(
            [float((np.maximum(ratio, 1 / ratio) < CLOSE).mean()) for ratio in ratios]
        ),
        "normals_mean_angle": interval(
            [_angle(one.normals, truth.normals[row]) for row, one in enumerate(readings)]
        ),
        **{f"miou_{space}": round(miou(net.vocabulary, space, labels, truth.classes), 4) for space in SPACES},
        "pck_0.1": interval(joints),
        "objects_found": interval(things),
        "objects_that_are_named": interval(named),
        "scenes_with_all_found": interval([min(hits, default=1.0) for hits in finds]),
    }


# as `near`, of figures that are cut out where they truly are
def figure_hits(net: JointNetwork, truth: Truth, person: int) -> list[float]:
    seen = zip(truth.images, truth.classes == person, truth.joints, strict=True)
    return [hit for picture, mask, joints in seen for hit in near(figure.read(net, picture, mask), joints)]


def recall_hits(reading: Reading, wanted: Wanted) -> list[float]:  # of each thing named, the person last
    """1 = found; each object seen counts for one that is named."""
    seen = [(one.shape, one.colour) for one in objects(reading)]
    out = [float(_take(pair, seen)) for pair in wanted.objects]
    return [*out, float(has_person(reading))] if wanted.person else out


def _precision_hits(reading: Reading, wanted: Wanted) -> list[float]:  # of each thing seen: 1 = it is named
    """The other side of recall: what sees everything everywhere finds all."""
    left = list(wanted.objects)
    out = [float(_take((one.shape, one.colour), left)) for one in objects(reading)]
    return [*out, float(wanted.person)] if has_person(reading) else out


def _take(pair: tuple[str, str], left: list[tuple[str, str]]) -> bool:
    if pair not in left:
        return False
    left.remove(pair)
    return True


# own classes [N, h, w]
def miou(vocabulary: Vocabulary, space: str, labels: NDArray[np.uint8], true: NDArray[np.uint8]) -> float:
    """Over the classes of a label space that are there, of all pixels together."""
    ids, numbers = np.unique(vocabulary.ids(space), return_inverse=True)
    counts = np.bincount(
        numbers[labels].ravel() * len(ids) + numbers[true].ravel(), minlength=len(ids) ** 2
    ).reshape(len(ids), len(ids))
    union = counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal()
    return float((counts.diagonal()[union > 0] / union[union > 0]).mean())


# [18, 3] both: of each joint in sight, 1 = near
def near(predicted: NDArray[np.float32], true: NDArray[np.float32]) -> list[float]:
    """A joint that was not found is not near."""
    there = true[:, 2] > 0
    if not there.any():
        return []
    reach = NEAR * float(np.ptp(true[there, :2], axis=0).max())
    hits = (predicted[:, 2] > 0) & (np.hypot(*(predicted - true)[:, :2].T) <= reach)
    return [float(hit) for hit in hits[true[:, 2] == 1]]


def _angle(predicted: NDArray[np.float32], true: NDArray[np.int8]) -> float:  # degrees
    length = np.maximum(np.linalg.norm(true.astype(np.float32), axis=-1), 1e-6)
    return float(np.degrees(np.arccos(((predicted * true).sum(axis=-1) / length).clip(-1, 1))).mean())


def interval(values: Sequence[float]) -> list[float] | None:  # mean, half the width of its 95 % interval
    """Normal; None where there are not two values."""
    if len(values) < 2:
        return None
    return [
        round(float(np.mean(values)), 4),
        round(1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values)), 4),
    ]
