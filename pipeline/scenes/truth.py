"""What of a scene's truth is no buffer of the camera: seams of floor and wall, keypoints, class ids."""

import math
from collections.abc import Mapping

import numpy as np

from annotate.label_spaces import SPACES
from annotate.maps import RawMap
from annotate.skeletons import SKELETONS
from pipeline.scenes.camera import pixels
from pipeline.scenes.outlines import BORDER
from pipeline.scenes.person import ON, Person
from pipeline.scenes.plan import ScenePlan
from pipeline.scenes.props import CLASSES, FLOORS, WALLS
from pipeline.scenes.raster import FLOOR, WALL, Buffers
from pipeline.scenes.textures import row_shift


def seams(plan: ScenePlan, seen: Buffers) -> tuple[np.ndarray, np.ndarray]:
    """Camera-space segments [M, 2, 3] and owners [M]: the border of floor and wall, and the seams wide enough
    apart to be seen.
    """
    along, up, out = plan.view.room
    below = -plan.view.height * up  # the floor below the camera
    foot = below - plan.view.wall_offset * out  # where the wall stands nearest to the camera
    ends, owners = [foot + np.outer((-20, 20), along)], [BORDER]
    for owner, surface, origin, across in (
        (FLOOR, FLOORS[plan.floor[0]], below, out),
        (WALL, WALLS[plan.wall[0]], foot, up),
    ):
        mask = seen.instance == owner
        if not surface.cell[0] or not mask.any():
            continue
        place = seen.place[mask][:, :2]
        (a0, b0), (a1, b1) = place.min(axis=0), place.max(axis=0)
        w, h = surface.cell
        flat = []
        rows = np.arange(math.floor(b0 / h), math.ceil(b1 / h)) if h else np.zeros(1, int)
        for row in rows:
            shift = w * float(row_shift(np.array([row]), surface, plan.noise)[0])
            low, high = (row * h, (row + 1) * h) if h else (b0, b1)
            flat += [
                (c, low, c, high)
                for c in np.arange(math.ceil((a0 - shift) / w), math.floor((a1 - shift) / w) + 1) * w + shift
            ]
            if h and row != rows[0]:
                flat.append((a0, low, a1, low))
        points = np.array(flat, float).reshape(-1, 2, 2)
        ends += list(origin + points[..., :1] * along + points[..., 1:] * across)
        owners += [owner] * len(points)
    return np.array(ends), np.array(owners)


def keypoints(plan: ScenePlan, seen: Buffers) -> dict[str, tuple[float, float, float]]:
    """Name -> x, y in pixels, and 1 seen, 0.5 hidden, 0 outside the image; empty without a figure."""
    if plan.figure is None:
        return {}
    instance, person = plan.figure
    size = len(seen.depth)
    names = [part.name for body in plan.bodies for part in body]
    projected = plan.view.project(np.array(list(person.joints.values())))
    out = {}
    for name, (x, y), depth in zip(person.joints, pixels(projected, size), projected[:, 2], strict=True):
        column, row = round(float(x)), round(float(y))
        if not (0 <= column < size and 0 <= row < size):
            out[name] = (0.0, 0.0, 0.0)
            continue
        side, _, what = name.rpartition("_")
        allowed, below = ON[what]
        own = seen.instance[row, column] == instance and names[(seen.face[row, column] >> 3) - 1] in {
            part.format(side=side) for part in allowed
        }
        shown = own and depth - seen.depth[row, column] < below * person.tall
        out[name] = (float(x), float(y), 1.0 if shown else 0.5)
    return out


def people(points: Mapping[str, tuple[float, float, float]], layout: str, size: int) -> RawMap:
    names = SKELETONS[layout].names
    array = np.array([[points[name] for name in names]] if points else [], np.float32).reshape(
        -1, len(names), 3
    )
    return RawMap("people", array, {"size": [size, size], "layout": layout})


def labels(plan: ScenePlan, seen: Buffers, space: str, column: int) -> RawMap:
    wall, floor = WALLS[plan.wall[0]], FLOORS[plan.floor[0]]
    words = [(wall.coco, wall.ade), (floor.coco, floor.ade)]
    words += [
        CLASSES["person" if isinstance(actor.who, Person) else actor.who.shape] for actor in plan.actors
    ]
    table = np.array([SPACES[space].names.index(row[column]) for row in words], np.uint8)
    return RawMap("labels", table[seen.instance], {"label_space": space})
