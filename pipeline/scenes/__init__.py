"""Rendered scenes with exact ground truth for every condition: objects and a jointed figure in a room, and a caption."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from annotate.maps import RawMap, depth_map
from pipeline.scenes import outlines, truth, words
from pipeline.scenes.painter import paint
from pipeline.scenes.plan import draw_plan as draw_plan
from pipeline.scenes.raster import cast

VERSION = 1  # of what a seed and a number render to
PROVIDES = ("pose_openpifpaf", "pose_openpose", "seg_coco", "seg_ade20k", "depth_large", "depth_small", "normal")  # conditions, exactly


@dataclass(frozen=True)
class Scene:
    """One picture, what it shows in words, and its truth; x right, y down, pixel centres at integers."""

    image: np.ndarray  # uint8 [s, s, 3] RGB
    caption: str
    maps: dict[str, RawMap]  # condition -> truth
    outlines: np.ndarray  # uint8 [s, s] {0, 255}: visible borders between instances and creases between faces
    lines: np.ndarray  # float32 [N, 4] x0 y0 x1 y1: the visible parts of straight edges and of seams in floor and wall
    instances: np.ndarray  # uint8 [s, s]: 0 wall, 1 floor, then the objects and the figure, from near to far
    facts: dict[str, Any]  # JSON-able


def render(seed: int, index: int, size: int = 128) -> Scene:
    """Scene `index` of a seed at size x size pixels, 64 to 1024; the same scene at every size.

    The bytes depend on the three numbers alone, on one kind of processor; another's last bits may differ. ValueError: another size.
    """
    import cv2

    if not 64 <= size <= 1024:
        raise ValueError(f"scenes are rendered at 64 to 1024 pixels, not {size}")
    plan = draw_plan(seed, index)
    seen = cast(plan.bodies, plan.view, size)
    image = cv2.resize(paint(plan, 2 * size), (size, size), interpolation=cv2.INTER_AREA)
    points = truth.keypoints(plan, seen)
    facts = words.facts(plan, seen, points)
    ends, owners = (np.concatenate(pair) for pair in zip(outlines.edges(plan.bodies, plan.view), truth.seams(plan, seen), strict=True))
    depth = depth_map(1 / seen.depth)
    depth = RawMap("depth", depth.array, {**depth.meta, "unit": "1/m"})
    maps = {
        "pose_openpifpaf": truth.people(points, "coco_17", size),
        "pose_openpose": truth.people(points, "openpose_18", size),
        "seg_coco": truth.labels(plan, seen, "coco_stuff_171", 0),
        "seg_ade20k": truth.labels(plan, seen, "ade20k_150", 1),
        "depth_large": depth,
        "depth_small": depth,
        "normal": RawMap("normals", seen.normal),
    }
    borders = outlines.borders(seen, plan.figure[0] if plan.figure else None)
    lines = outlines.seen_segments(ends, owners, plan.view, seen)
    return Scene(image, words.describe(facts), maps, borders, lines, seen.instance, facts)
