"""The convex bodies of which things and figures are made: their form, where a ray meets it, and the normal
there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Solid:
    """The planes n . x <= d of a convex polyhedron in [-1, 1]^3, its corners, and edges as (corner, corner,
    face, face).
    """

    normals: np.ndarray
    offsets: np.ndarray
    corners: np.ndarray
    edges: tuple[tuple[int, int, int, int], ...]


def _solid(normals: Sequence[Sequence[float]], corners: Sequence[Sequence[float]]) -> Solid:
    n, c = np.array(normals, float), np.array(corners, float)
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    offsets = (c @ n.T).max(axis=0)
    touches = np.isclose(c @ n.T, offsets)
    edges = []
    for i in range(len(c)):
        for j in range(i):
            both = np.flatnonzero(touches[i] & touches[j])
            if len(both) == 2:  # two corners that share two faces
                edges.append((j, i, int(both[0]), int(both[1])))
    return Solid(n, offsets, c, tuple(edges))


SOLIDS = {
    "box": _solid(
        [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)],
        [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)],
    ),
    "pyramid": _solid(
        [(2, 1, 0), (-2, 1, 0), (0, 1, 2), (0, 1, -2), (0, -1, 0)],
        [(0, 1, 0), *((x, -1, z) for x in (-1, 1) for z in (-1, 1))],
    ),
}


def _rings(around: int, latitudes: Sequence[float]) -> np.ndarray:
    """Points [N, 3] on the unit ball."""
    turns = np.linspace(0, 2 * np.pi, around, endpoint=False)
    tilts = np.radians(latitudes)[:, None]
    return np.stack(
        [np.cos(turns) * np.cos(tilts), np.sin(tilts) + 0 * turns, np.sin(turns) * np.cos(tilts)], axis=2
    ).reshape(-1, 3)


_BALL, _RING, _DOME = _rings(24, (-75, -50, -25, 0, 25, 50, 75)), _rings(24, (0,)), _rings(12, (0, 45, 80))


@dataclass(frozen=True)
class Part:
    """One convex body: `form` in its own space, put into the world by x -> axes @ x + at.

    ball     the unit ball
    capsule  radius 1 around the y axis from -spread[0] to spread[0]
    frustum  |y| <= 1, radius spread[0] at the bottom and spread[1] at the top
    box, pyramid  the solids of SOLIDS
    """

    form: str
    axes: np.ndarray  # [3, 3], columns
    at: np.ndarray  # [3]
    name: str = ""
    spread: tuple[float, ...] = ()
    paint: tuple = ()  # what the painter makes of it: pattern, first colour, second colour, gloss

    @cached_property
    def hull(self) -> np.ndarray:
        """World points [N, 3] whose convex hull is the body (a fine polyhedron for the round ones); it also
        bounds it.
        """
        if self.form in SOLIDS:
            points = SOLIDS[self.form].corners
        elif self.form == "frustum":
            points = np.concatenate([_RING * self.spread[0] - (0, 1, 0), _RING * self.spread[1] + (0, 1, 0)])
        elif self.form == "capsule":
            tip = np.array([0, self.spread[0], 0])
            points = np.concatenate([_DOME * (1, -1, 1) - tip, _DOME + tip])
        else:
            points = _BALL
        return (self.axes @ points.T + self.at[:, None]).T


# --- forms: nearest depth of each ray (inf = none), and the face it meets (0 = the only one) ---

Hit = tuple[np.ndarray, np.ndarray | int]


def _ball(part: Part, eye: np.ndarray, ray: list[np.ndarray]) -> Hit:
    x, y, z = ray
    ox, oy, oz = eye.astype(np.float32)
    a = x * x + y * y + z * z
    b = ox * x + oy * y + oz * z
    root = b * b - a * np.float32(eye @ eye - 1)
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.float32(np.inf)), 0


def _capsule(part: Part, eye: np.ndarray, ray: list[np.ndarray]) -> Hit:
    x, y, z = ray
    ox, oy, oz = eye.astype(np.float32)
    half = np.float32(part.spread[0])
    a = np.maximum(x * x + z * z, 1e-9)
    b = ox * x + oz * z
    root = b * b - a * np.float32(eye[0] ** 2 + eye[2] ** 2 - 1)
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    height = oy + t * y
    cap = oy - np.clip(height, -half, half)  # the ball at the nearer end, where the side is missed
    b = b + cap * y
    a = a + y * y
    tip = b * b - a * (np.float32(eye[0] ** 2 + eye[2] ** 2 - 1) + cap * cap)
    end = np.where(tip > 0, (-b - np.sqrt(np.maximum(tip, 0))) / a, np.float32(np.inf))
    return np.where(root > 0, np.where(np.abs(height) <= half, t, end), np.float32(np.inf)), 0


def _frustum(part: Part, eye: np.ndarray, ray: list[np.ndarray]) -> Hit:
    x, y, z = ray
    ox, oy, oz = eye.astype(np.float32)
    slope = np.float32((part.spread[1] - part.spread[0]) / 2)
    width = np.float32((part.spread[0] + part.spread[1]) / 2) + slope * oy  # radius at the eye's height
    a = x * x + z * z - (slope * y) ** 2
    a = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    b = ox * x + oz * z - width * slope * y
    root = b * b - a * (ox * ox + oz * oz - width * width)
    s = np.sqrt(np.maximum(root, 0))
    t = np.full_like(a, np.inf)
    for candidate in ((-b - s) / a, (-b + s) / a):
        good = (root > 0) & (candidate > 0) & (np.abs(oy + candidate * y) <= 1)
        t = np.where(good & (candidate < t), candidate, t)
    face = np.zeros(a.shape, np.int16)
    if abs(oy) > 1:  # the one lid that can be seen
        lid = np.where(
            y * oy < 0, (np.sign(oy) - oy) / np.where(y == 0, np.float32(1), y), np.float32(np.inf)
        )
        radius = part.spread[1] if oy > 0 else part.spread[0]
        with np.errstate(invalid="ignore"):
            inside = (ox + lid * x) ** 2 + (oz + lid * z) ** 2 <= radius * radius
        closer = inside & (lid < t)
        t = np.where(closer, lid, t)
        face[closer] = 1 if oy > 0 else 2
    return t, face


def _polyhedron(part: Part, eye: np.ndarray, ray: list[np.ndarray]) -> Hit:
    solid = SOLIDS[part.form]
    enter, leave = np.zeros_like(ray[0]), np.full_like(ray[0], np.inf)
    face = np.zeros(ray[0].shape, np.int16)
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, (normal, offset) in enumerate(
            zip(solid.normals.astype(np.float32), solid.offsets, strict=True)
        ):
            speed = normal[0] * ray[0] + normal[1] * ray[1] + normal[2] * ray[2]
            t = np.float32(offset - normal @ eye) / speed
            if normal @ eye > offset:  # the eye is before this face
                later = (t > enter) | (speed >= 0)
                enter = np.where(speed >= 0, np.float32(np.inf), np.where(later, t, enter))
                face[later] = k
            else:
                leave = np.where((speed > 0) & (t < leave), t, leave)
    return np.where(enter < leave, enter, np.float32(np.inf)), face


FORMS = {"ball": _ball, "capsule": _capsule, "frustum": _frustum, "box": _polyhedron, "pyramid": _polyhedron}


def normals(part: Part, p: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Outward normals [N, 3] in the part's own space at its points p."""
    if part.form in SOLIDS:
        return SOLIDS[part.form].normals.astype(np.float32)[face]
    n = p.copy()
    if part.form == "capsule":
        n[:, 1] -= np.clip(p[:, 1], -part.spread[0], part.spread[0])
    if part.form == "frustum":
        slope = (part.spread[1] - part.spread[0]) / 2
        n[:, 1] = -slope * ((part.spread[0] + part.spread[1]) / 2 + slope * p[:, 1])
        n[face > 0] = 0
        n[face == 1, 1], n[face == 2, 1] = 1, -1
    return n
