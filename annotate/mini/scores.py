"""How well the mini detector reads scenes whose truth is known."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotate.mini.detect import Reading, has_person, objects, read
from annotate.mini.losses import Truth
from annotate.mini.network import Detector

NEAR = 0.1  # PCK: of the longer side of the person's box


def measure(
    net: Detector,
    truth: Truth,
    wanted: Sequence[Mapping[str, Any]],  # of each scene: objects as (shape, colour), person
    images: NDArray[np.uint8] | None = None,  # other pictures of the same scenes, such as a VAE's; None = truth's own
) -> dict[str, Any]:
    """Means over scenes with half the width of their 95 % intervals, and n."""
    readings = read(net, list(truth.images if images is None else images))
    close: list[float] = []
    angles: list[float] = []
    hits: list[float] = []
    tables = {column: _table(net, column) for column in (1, 2)}
    confusion = {column: np.zeros((2, len(names))) for column, (_, names) in tables.items()}
    finds = []
    for number, reading in enumerate(readings):
        true_depth, normals = truth.depth[number].astype(np.float32), truth.normals[number].astype(np.float32) / 127
        ratio = reading.depth / true_depth
        close.append(float((np.maximum(ratio, 1 / ratio) < 1.25).mean()))
        cosine = (reading.normals * normals).sum(-1) / np.maximum(np.linalg.norm(normals, axis=-1), 1e-6)
        angles.append(float(np.degrees(np.arccos(cosine.clip(-1, 1))).mean()))
        for column, (table, names) in tables.items():
            made, true = table[reading.classes], table[truth.classes[number]]
            for index in range(len(names)):
                confusion[column][0, index] += ((made == index) & (true == index)).sum()
                confusion[column][1, index] += ((made == index) | (true == index)).sum()
        hits += _near(reading, truth.joints[number])
        finds.append(found(net, reading, wanted[number]))
    miou = {column: float(np.mean([i / u for i, u in confusion[column].T if u])) for column in (1, 2)}
    captioned = [one for it in finds for one in it]
    return {
        "n": len(readings), "depth_delta_1.25": _interval(close), "normals_mean_angle": _interval(angles), "miou_coco": round(miou[1], 4),
        "miou_ade20k": round(miou[2], 4), "pck_0.1": _interval(hits), "joints": len(hits), "objects_found": _interval(captioned),
        "objects": len(captioned), "all_objects_of_a_scene_found": _interval([float(all(it)) for it in finds]),
    }  # fmt: skip


def found(net: Detector, reading: Reading, wanted: Mapping[str, Any]) -> list[float]:  # of each thing named: 1 = found
    """Each object found is counted for one that is named; a person counts as a thing."""
    seen = [(one.shape, one.colour) for one in objects(net, reading)]
    out = []
    for pair in wanted["objects"]:
        out.append(float(tuple(pair) in seen))
        if out[-1]:
            seen.remove(tuple(pair))
    if wanted["person"]:
        out.append(float(has_person(net, reading)))
    return out


def _table(net: Detector, column: int) -> tuple[NDArray[np.int64], list[str]]:
    names = sorted({row[column] for row in net.words.classes})
    return np.array([names.index(row[column]) for row in net.words.classes]), names


def _near(reading: Reading, joints: NDArray[np.float32]) -> Iterable[float]:
    """Of the joints that are seen; one that was not found is not near."""
    there = joints[:, 2] > 0
    if not there.any():
        return []
    low, high = joints[there, :2].min(axis=0), joints[there, :2].max(axis=0)
    far = NEAR * float((high - low).max())
    return [
        float(made[2] > 0 and math.hypot(made[0] - true[0], made[1] - true[1]) <= far)
        for made, true in zip(reading.joints, joints, strict=True)
        if true[2] == 1
    ]


def _interval(values: Sequence[float]) -> list[float]:
    array = np.asarray(values, np.float64)
    return [round(float(array.mean()), 4), round(1.96 * float(array.std(ddof=1)) / math.sqrt(len(array)), 4)] if len(array) > 1 else [0.0, 0.0]
