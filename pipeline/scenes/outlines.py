"""The edges of a scene that can be seen: outlines as pixels, straight edges as segments."""

import math
from collections.abc import Sequence

import numpy as np

from pipeline.scenes.bodies import SOLIDS, Part
from pipeline.scenes.camera import View
from pipeline.scenes.raster import Buffers

BORDER = -1  # owner of the line where floor and wall meet
CREASE = math.cos(math.radians(25))  # two faces that meet at a flatter angle make no outline
STEP = 0.06  # metres of depth between two parts of one figure that make an outline


def borders(seen: Buffers, figure: int | None) -> np.ndarray:
    """uint8 [n, n] in {0, 255}: the pixels left of and above borders of instances, creases, and a limb of the
    figure before another.
    """
    out = np.zeros(seen.instance.shape, bool)
    limbs = seen.instance == figure
    for a, b in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1),), (slice(1, None),)),
    ):
        edge = seen.instance[a] != seen.instance[b]
        ys, xs = np.nonzero((seen.face[a] != seen.face[b]) & ~edge)
        n1, n2, d1, d2 = (
            seen.normal[a][ys, xs],
            seen.normal[b][ys, xs],
            seen.depth[a][ys, xs],
            seen.depth[b][ys, xs],
        )
        edge[ys, xs] = np.where(limbs[a][ys, xs], np.abs(d1 - d2) > STEP, (n1 * n2).sum(axis=1) < CREASE)
        out[a] |= edge
    return out.astype(np.uint8) * 255


def edges(bodies: Sequence[Sequence[Part]], view: View) -> tuple[np.ndarray, np.ndarray]:
    """Camera-space segments [M, 2, 3] and owners [M]: what is straight on bodies of one part, faces turned
    away left out.
    """
    ends, owners = [], []
    for instance, body in enumerate(bodies, 2):
        part = body[0]
        eye = np.linalg.solve(part.axes, (0.0, view.height, 0.0) - part.at)
        local: list[np.ndarray] = []
        if len(body) == 1 and part.form in SOLIDS:
            solid = SOLIDS[part.form]
            toward = solid.normals @ eye > solid.offsets
            local = [solid.corners[[i, j]] for i, j, f, g in solid.edges if toward[f] or toward[g]]
        elif len(body) == 1 and part.form == "frustum":
            local = _sides(eye, *part.spread)
        ends += [view.to_camera(segment @ part.axes.T + part.at) for segment in local]
        owners += [instance] * len(local)
    return np.array(ends).reshape(-1, 2, 3), np.array(owners, int)


def _sides(eye: np.ndarray, bottom: float, top: float) -> list[np.ndarray]:
    """The two straight contours of a frustum, where planes through the eye touch it."""
    slope = (top - bottom) / 2
    away = math.hypot(eye[0], eye[2])
    # of the angle between the eye and the line of touch, about the axis
    cosine = ((bottom + top) / 2 + slope * eye[1]) / away
    if abs(cosine) >= 1:
        return []
    middle = math.atan2(eye[2], eye[0])
    sides = [
        (math.cos(middle + s * math.acos(cosine)), math.sin(middle + s * math.acos(cosine))) for s in (-1, 1)
    ]
    return [np.array([[bottom * x, -1, bottom * z], [top * x, 1, top * z]]) for x, z in sides]


def seen_segments(
    ends: np.ndarray, owners: np.ndarray, view: View, seen: Buffers, shortest: float = 0.04
) -> np.ndarray:
    """float32 [N, 4] x0 y0 x1 y1 in pixels: what of camera-space segments [M, 2, 3] is in the image with
    nothing before it.

    Pieces shorter than `shortest` of the side are dropped. Owners: an instance, or BORDER.
    """
    size = len(seen.depth)
    ends, owners = _before_camera(ends, owners)
    nearness = 1 / -ends[:, :, 2]
    points = (
        np.stack(
            [(view.focal * ends[:, :, 0] * nearness + 1), (1 - view.focal * ends[:, :, 1] * nearness)], axis=2
        )
        * size
        / 2
        - 0.5
    )
    start, along = points[:, 0], points[:, 1] - points[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):  # clip to the frame
        low, high = -start / along, (size - 1 - start) / along
    first = np.fmin(low, high).max(axis=1).clip(0, 1)
    last = np.fmax(low, high).min(axis=1).clip(0, 1)
    k = np.linspace(0, 1, 2 * size)
    share = first[:, None] + (last - first)[:, None] * k
    x = np.rint(start[:, :1] + along[:, :1] * share).astype(int).clip(0, size - 1)
    y = np.rint(start[:, 1:] + along[:, 1:] * share).astype(int).clip(0, size - 1)
    there = seen.instance[y, x]
    behind = seen.depth[y, x] * (nearness[:, :1] + (nearness[:, 1:] - nearness[:, :1]) * share) > 0.97
    owner = owners[:, None]
    shown = (
        np.where(owner >= 2, (there == owner) | behind, np.where(owner == BORDER, there < 2, there == owner))
        & (first < last)[:, None]
    )
    change = np.diff(np.pad(shown, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    line, begin = np.nonzero(change == 1)
    _, end = np.nonzero(change == -1)
    a, b = share[line, begin][:, None], share[line, end - 1][:, None]
    pieces = np.concatenate([start[line] + along[line] * a, start[line] + along[line] * b], axis=1).clip(
        0, size - 1
    )
    return (
        pieces[np.hypot(*(pieces[:, 2:] - pieces[:, :2]).T) >= shortest * size]
        .astype(np.float32)
        .reshape(-1, 4)
    )


def _before_camera(ends: np.ndarray, owners: np.ndarray, near: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """What of the segments lies more than `near` metres before the camera."""
    depth = -ends[:, :, 2]
    some = depth.max(axis=1) > near
    ends, owners, depth = ends[some].copy(), owners[some], depth[some]
    for i in (0, 1):
        cut = np.flatnonzero(depth[:, i] < near)
        k = ((near - depth[cut, 1 - i]) / (depth[cut, i] - depth[cut, 1 - i]))[:, None]
        ends[cut, i] = ends[cut, 1 - i] + k * (ends[cut, i] - ends[cut, 1 - i])
    return ends, owners
