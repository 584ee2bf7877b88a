"""Rendered scenes with exact ground truth for every condition: objects and a jointed figure in a room, and a
caption.
"""

from dataclasses import dataclass

import numpy as np

from annotate.maps import RawMap, depth_map
from pipeline.scenes import description, outlines, truth
from pipeline.scenes.description import SceneGraph
from pipeline.scenes.painter import paint
from pipeline.scenes.plan import ScenePlan
from pipeline.scenes.plan import draw_plan as draw_plan
from pipeline.scenes.raster import Buffers, cast

VERSION = 1  # of what a seed and a number render to
# conditions, exactly
PROVIDES = (
    "pose_openpifpaf",
    "pose_openpose",
    "seg_coco",
    "seg_ade20k",
    "depth_large",
    "depth_small",
    "normal",
)
TRIES = 1000  # numbers that belong to one scene with limits


@dataclass(frozen=True)
class Limits:
    """How much a scene may hold, and how small or hidden it may be; the defaults let every scene pass."""

    most_objects: int = 4  # the figure not counted
    least_box: float = 0.0  # share of the picture that an object's box has at least
    least_visible: float = 0.0  # share of an object that nothing hides, at least

    def hold(self, graph: SceneGraph) -> bool:
        """Whether the scene keeps to them."""
        boxes = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one.box for one in graph.objects)]
        return (
            len(graph.objects) <= self.most_objects
            and all(box >= self.least_box for box in boxes)
            and all(one.visible >= self.least_visible for one in graph.objects)
        )


@dataclass(frozen=True)
class Scene:
    """One picture, what it shows in words, and its truth; x right, y down, pixel centres at integers."""

    image: np.ndarray  # uint8 [s, s, 3] RGB
    caption: str
    maps: dict[str, RawMap]  # condition -> truth
    outlines: np.ndarray  # uint8 [s, s] {0, 255}: visible borders between instances and creases between faces
    # float32 [N, 4] x0 y0 x1 y1: the visible parts of straight edges and of seams in floor and wall
    lines: np.ndarray
    instances: np.ndarray  # uint8 [s, s]: 0 wall, 1 floor, then the objects and the figure, from near to far
    graph: SceneGraph  # what is there, and where


def render(seed: int, index: int, size: int = 128, limits: Limits = Limits()) -> Scene:
    """Scene `index` of a seed at size x size pixels, 64 to 1024; the same scene at every size, but for what
    limits see of it.

    With limits it is the first that keeps to them among the thousand numbers that belong to `index`. The
    bytes depend on these four alone, on one kind of processor; another's last bits may differ. ValueError:
    another size, or limits that no scene keeps to.
    """
    import cv2

    if not 64 <= size <= 1024:
        raise ValueError(f"scenes are rendered at 64 to 1024 pixels, not {size}")
    numbers = [index] if limits == Limits() else range(index * TRIES, (index + 1) * TRIES)
    layouts = (_Layout.at(draw_plan(seed, number), size) for number in numbers)
    layout = next((layout for layout in layouts if limits.hold(layout.graph)), None)
    if layout is None:
        raise ValueError(f"none of {TRIES} scenes keeps to {limits}: loosen them")
    plan, seen, points = layout.plan, layout.seen, layout.points
    image = cv2.resize(paint(plan, 2 * size), (size, size), interpolation=cv2.INTER_AREA)
    ends, owners = (
        np.concatenate(pair)
        for pair in zip(outlines.edges(plan.bodies, plan.view), truth.seams(plan, seen), strict=True)
    )
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
    caption = description.describe(layout.graph)
    return Scene(image, caption, maps, borders, lines, seen.instance, layout.graph)


@dataclass(frozen=True)
class _Layout:
    """A scene before it is painted, which is most of the work."""

    plan: ScenePlan
    seen: Buffers
    points: dict[str, tuple[float, float, float]]
    graph: SceneGraph

    @classmethod
    def at(cls, plan: ScenePlan, size: int) -> "_Layout":
        seen = cast(plan.bodies, plan.view, size)
        points = truth.keypoints(plan, seen)
        return cls(plan, seen, points, description.graph_of(plan, seen, points))
