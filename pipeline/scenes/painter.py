"""The picture of a scene: colours under one light, with shadows on floor and wall."""

import math

import numpy as np

from pipeline.scenes import textures
from pipeline.scenes.camera import pixels
from pipeline.scenes.plan import ScenePlan
from pipeline.scenes.props import FLOORS, WALLS
from pipeline.scenes.raster import FLOOR, WALL, Buffers, cast


def paint(plan: ScenePlan, n: int) -> np.ndarray:
    """uint8 [n, n, 3] RGB, one sample a pixel: Lambert and Blinn shading, shadows on floor and wall."""
    import cv2

    seen = cast(plan.bodies, plan.view, n)
    parts = [part for body in plan.bodies for part in body]
    colour = np.empty((n, n, 3), np.float32)
    for instance, surface, look in (
        (WALL, WALLS[plan.wall[0]], plan.wall[1]),
        (FLOOR, FLOORS[plan.floor[0]], plan.floor[1]),
    ):
        mask = seen.instance == instance
        colour[mask] = textures.surface(seen.place[mask], surface, look, plan.noise)
    light = (plan.view.rotation @ plan.light).astype(np.float32)
    up = plan.view.rotation[:, 1].astype(np.float32)
    facing = (seen.normal.reshape(-1, 3) @ np.stack([light, up], axis=1)).reshape(n, n, 2)
    lit = np.maximum(facing[..., 0], 0)
    lit[_shadows(plan, seen)] *= 0.12
    bright = 0.5 + 0.08 * facing[..., 1] + 0.58 * lit
    shine = []
    for k, (part, window) in enumerate(zip(parts, seen.windows, strict=True), 1):
        if window is None:
            continue
        ys, xs = np.nonzero(seen.face[window] >> 3 == k)
        colour[window][ys, xs] = textures.pattern(seen.place[window][ys, xs], part)
        if part.paint[3] and len(ys):
            ys, xs = ys + window[0].start, xs + window[1].start
            toward = np.stack(
                [
                    (n - 1 - 2 * xs) / (n * plan.view.focal),
                    (2 * ys + 1 - n) / (n * plan.view.focal),
                    np.ones(len(xs)),
                ],
                axis=1,
            )
            shine.append(
                (
                    ys,
                    xs,
                    0.85
                    * part.paint[3]
                    * _glint(seen.normal[ys, xs], toward, light, up if part.form == "frustum" else None),
                )
            )
    colour *= bright[..., None]
    for ys, xs, white in shine:
        colour[ys, xs] += white[:, None]
    return cv2.convertScaleAbs(colour, alpha=255)  # rounds and saturates


def _glint(normal: np.ndarray, toward: np.ndarray, light: np.ndarray, axis: np.ndarray | None) -> np.ndarray:
    """float32 [N] in 0 to 1: Blinn's highlight; drawn out along `axis` as on brushed metal, or a cylinder
    would show none.
    """
    between = (toward / np.linalg.norm(toward, axis=1, keepdims=True) + light).astype(np.float32)
    if axis is not None:
        between -= (between @ axis)[:, None] * axis
    along = (normal * between).sum(axis=1) / np.linalg.norm(between, axis=1)
    return np.maximum(along, 0) ** 40


def _shadows(plan: ScenePlan, seen: Buffers) -> np.ndarray:
    """bool [n, n]: floor and wall where a body is before the light; a convex body's shadow is the convex hull
    of its points' shadows.
    """
    import cv2

    n = len(seen.depth)
    dark = np.zeros((n, n), bool)
    hulls = [part.hull for body in plan.bodies for part in body]
    points, ends = np.concatenate(hulls), np.cumsum([len(hull) for hull in hulls])
    normal = np.array([math.sin(plan.view.yaw), 0, math.cos(plan.view.yaw)])
    for instance, plane, offset in (
        (FLOOR, np.array([0.0, 1, 0]), 0.0),
        (WALL, normal, -plan.view.wall_offset),
    ):
        mask = np.zeros((n, n), np.uint8)
        fallen = points - ((points @ plane - offset) / (plan.light @ plane))[:, None] * plan.light
        shown = pixels(plan.view.project(fallen), n).clip(-4 * n, 5 * n).astype(np.float32)
        for corners in np.split(shown, ends[:-1]):
            cv2.fillConvexPoly(mask, np.rint(cv2.convexHull(corners) * 16).astype(np.int32), 1, cv2.LINE_8, 4)
        dark |= (mask > 0) & (seen.instance == instance)
    return dark
