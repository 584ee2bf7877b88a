"""Geometry of the rendered scenes: convex solids, floor and wall, cast into buffers; the edges that can be seen.

World: metres, x right, y up, the camera above the origin looking to -z and down. Camera space: x right, y up, z to the viewer.
A ray of the camera is (x / f, y / f, -1), so the ray's parameter is the depth along the viewing axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

WALL, FLOOR = 0, 1  # instances; solids count on from 2
BORDER = -1  # owner of the line where floor and wall meet
CREASE = math.cos(math.radians(25))  # two faces that meet at a flatter angle make no outline
STEP = 0.06  # metres of depth between two parts of one figure that make an outline


@dataclass(frozen=True)
class View:
    """The camera (focal length in half widths of the image, height in metres, pitch down in radians) and the room (wall, its yaw)."""

    focal: float
    height: float
    pitch: float
    wall: float  # distance of the wall along -z at x = 0
    yaw: float  # of the wall's normal from +z towards +x

    @cached_property
    def rotation(self) -> np.ndarray:
        """float64 [3, 3]: world directions to camera space."""
        c, s = math.cos(self.pitch), math.sin(self.pitch)
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])

    @cached_property
    def room(self) -> np.ndarray:
        """float64 [3, 3], rows: along the wall, up, the wall's normal; all in camera space."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) @ self.rotation.T

    @property
    def wall_offset(self) -> float:
        """Distance of the camera from the wall's plane."""
        return self.wall * math.cos(self.yaw)

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points [N, 3] in camera space."""
        return (self.rotation @ (points.T - [[0.0], [self.height], [0.0]])).T

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points [N, 3] -> [N, 3]: x right and y up in half widths from the middle, depth in metres."""
        x, y, z = self.to_camera(points).T
        return np.array([self.focal * x / -z, self.focal * y / -z, -z]).T

    def floor_point(self, x: float, y: float) -> np.ndarray | None:
        """The world point of the floor seen at x, y (half widths); None above the horizon."""
        ray = self.rotation.T @ (x / self.focal, y / self.focal, -1.0)
        return None if ray[1] > -1e-3 else np.array([0.0, self.height, 0.0]) + ray * (self.height / -ray[1])


def pixels(half_widths: np.ndarray, size: int) -> np.ndarray:
    """x right, y up in half widths [N, 2+] -> pixels [N, 2], x right, y down, pixel centres at integers."""
    return np.array([(half_widths[:, 0] + 1) * size / 2 - 0.5, (1 - half_widths[:, 1]) * size / 2 - 0.5]).T


@dataclass(frozen=True)
class Solid:
    """The planes n . x <= d of a convex polyhedron in [-1, 1]^3, its corners, and edges as (corner, corner, face, face)."""

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
    return np.stack([np.cos(turns) * np.cos(tilts), np.sin(tilts) + 0 * turns, np.sin(turns) * np.cos(tilts)], axis=2).reshape(-1, 3)


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
        """World points [N, 3] whose convex hull is the body (a fine polyhedron for the round ones); it also bounds it."""
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


@dataclass(frozen=True)
class Buffers:
    """What each ray of the camera meets first, [n, n] each."""

    depth: np.ndarray  # float32, metres along the viewing axis
    normal: np.ndarray  # float32 [n, n, 3], unit, camera space
    place: np.ndarray  # float32 [n, n, 3]: solids: in their own space; floor, wall: metres along the wall, metres across, 0
    face: np.ndarray  # int16: 0 wall, 1 floor, else 8 * (part + 1) + its face
    instance: np.ndarray  # uint8
    windows: list[tuple[slice, slice] | None]  # of each part: the pixels it can cover
    alone: list[int]  # of each body: the pixels it would cover with nothing before it


def cast(bodies: Sequence[Sequence[Part]], view: View, n: int) -> Buffers:
    """Cast n x n rays through the pixel centres at bodies (instances 2, 3, …), floor and wall; the nearest wins."""
    u = (((np.arange(n) + 0.5) * (2 / n) - 1) / view.focal).astype(np.float32)
    u, v = u[None, :], -u[:, None]
    out = _empty_room(view, u, v, n)
    instances = [0]
    for instance, body in enumerate(bodies, 2):
        covered = np.zeros((n, n), bool)
        for part in body:
            out.windows.append(_window(part, view, n))
            instances.append(instance)
            if out.windows[-1] is not None:
                _cast_part(part, out.windows[-1], 8 * len(out.windows), view, u, v, out, covered)
        out.alone.append(int(np.count_nonzero(covered)))
    solid = out.face >= 8
    out.instance[solid] = np.array(instances, np.uint8)[out.face[solid] >> 3]
    return out


def _cast_part(
    part: Part, box: tuple[slice, slice], code: int, view: View, u: np.ndarray, v: np.ndarray, out: Buffers, covered: np.ndarray
) -> None:
    inverse = np.linalg.inv(view.rotation @ part.axes)
    eye = inverse @ -view.to_camera(part.at[None])[0]
    m = inverse.astype(np.float32)
    ray = [m[i, 0] * u[:, box[1]] + (m[i, 1] * v[box[0]] - m[i, 2]) for i in range(3)]
    t, face = _FORMS[part.form](part, eye, ray)
    covered[box] |= t < np.inf
    won = t < out.depth[box]
    ys, xs = np.nonzero(won)
    if not len(ys):
        return
    t = t[ys, xs]
    p = np.stack([np.float32(eye[i]) + ray[i][ys, xs] * t for i in range(3)], axis=1)
    face = face[ys, xs] if isinstance(face, np.ndarray) else np.zeros(len(t), np.int16)
    normal = _normals(part, p, face) @ m
    normal /= np.sqrt((normal * normal).sum(axis=1, keepdims=True))
    for buffer, value in ((out.depth, t), (out.normal, normal), (out.place, p), (out.face, code + face)):
        buffer[box][ys, xs] = value


def _empty_room(view: View, u: np.ndarray, v: np.ndarray, n: int) -> Buffers:
    along, up, out = view.room.astype(np.float32)
    climb = up[1] * v - up[2]
    floor = np.broadcast_to(np.float32(view.height) / np.maximum(-climb, np.float32(1e-6)), (n, n))
    toward = np.maximum(-out[0] * u - (out[1] * v - out[2]), np.float32(1e-6))
    wall = np.float32(view.wall_offset) / toward
    is_floor = floor < wall
    depth = np.minimum(floor, wall)
    place = np.zeros((n, n, 3), np.float32)
    place[..., 0] = depth * (along[0] * u + (along[1] * v - along[2]))
    place[..., 1] = np.where(is_floor, -depth * toward, np.float32(view.height) + depth * climb)
    face = is_floor.astype(np.int16)
    return Buffers(depth, np.take(np.stack([out, up]), face, axis=0), place, face, face.astype(np.uint8), [], [])


def _window(part: Part, view: View, n: int) -> tuple[slice, slice] | None:
    """The pixels that the part can cover; the hull of a ball lies inside it, hence the margin."""
    p = pixels(view.project(part.hull), n)
    low, high = p.min(axis=0), p.max(axis=0)
    margin = 0.04 * (high - low) + 1
    x0, y0 = np.maximum(np.floor(low - margin), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(high + margin) + 1, n).astype(int)
    return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None


# --- forms: nearest depth of each ray (inf = none), and the face it meets (0 = the only one) ---

_Hit = tuple[np.ndarray, np.ndarray | int]


def _ball(part: Part, eye: np.ndarray, ray: list[np.ndarray]) -> _Hit:
    x, y, z = ray
    ox, oy, oz = eye.astype(np.float32)
    a = x * x + y * y + z * z
    b = ox * x + oy * y + oz * z
    root = b * b - a * np.float32(eye @ eye - 1)
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.float32(np.inf)), 0


def _capsule(part: Part, eye: np.ndarray, ray: list[np.ndarray]) -> _Hit:
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


def _frustum(part: Part, eye: np.ndarray, ray: list[np.ndarray]) -> _Hit:
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
        lid = np.where(y * oy < 0, (np.sign(oy) - oy) / np.where(y == 0, np.float32(1), y), np.float32(np.inf))
        radius = part.spread[1] if oy > 0 else part.spread[0]
        with np.errstate(invalid="ignore"):
            inside = (ox + lid * x) ** 2 + (oz + lid * z) ** 2 <= radius * radius
        closer = inside & (lid < t)
        t = np.where(closer, lid, t)
        face[closer] = 1 if oy > 0 else 2
    return t, face


def _polyhedron(part: Part, eye: np.ndarray, ray: list[np.ndarray]) -> _Hit:
    solid = SOLIDS[part.form]
    enter, leave = np.zeros_like(ray[0]), np.full_like(ray[0], np.inf)
    face = np.zeros(ray[0].shape, np.int16)
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, (normal, offset) in enumerate(zip(solid.normals.astype(np.float32), solid.offsets, strict=True)):
            speed = normal[0] * ray[0] + normal[1] * ray[1] + normal[2] * ray[2]
            t = np.float32(offset - normal @ eye) / speed
            if normal @ eye > offset:  # the eye is before this face
                later = (t > enter) | (speed >= 0)
                enter = np.where(speed >= 0, np.float32(np.inf), np.where(later, t, enter))
                face[later] = k
            else:
                leave = np.where((speed > 0) & (t < leave), t, leave)
    return np.where(enter < leave, enter, np.float32(np.inf)), face


_FORMS = {"ball": _ball, "capsule": _capsule, "frustum": _frustum, "box": _polyhedron, "pyramid": _polyhedron}


def _normals(part: Part, p: np.ndarray, face: np.ndarray) -> np.ndarray:
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


# --- what can be drawn of it ---


def outlines(seen: Buffers, figure: int | None) -> np.ndarray:
    """uint8 [n, n] in {0, 255}: the pixels left of and above borders of instances, creases, and a limb of the figure before another."""
    out = np.zeros(seen.instance.shape, bool)
    limbs = seen.instance == figure
    for a, b in (((slice(None), slice(None, -1)), (slice(None), slice(1, None))), ((slice(None, -1),), (slice(1, None),))):
        edge = seen.instance[a] != seen.instance[b]
        ys, xs = np.nonzero((seen.face[a] != seen.face[b]) & ~edge)
        n1, n2, d1, d2 = seen.normal[a][ys, xs], seen.normal[b][ys, xs], seen.depth[a][ys, xs], seen.depth[b][ys, xs]
        edge[ys, xs] = np.where(limbs[a][ys, xs], np.abs(d1 - d2) > STEP, (n1 * n2).sum(axis=1) < CREASE)
        out[a] |= edge
    return out.astype(np.uint8) * 255


def edges(bodies: Sequence[Sequence[Part]], view: View) -> tuple[np.ndarray, np.ndarray]:
    """Camera-space segments [M, 2, 3] and owners [M]: what is straight on bodies of one part, faces turned away left out."""
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
    cosine = ((bottom + top) / 2 + slope * eye[1]) / away  # of the angle between the eye and the line of touch, about the axis
    if abs(cosine) >= 1:
        return []
    middle = math.atan2(eye[2], eye[0])
    sides = [(math.cos(middle + s * math.acos(cosine)), math.sin(middle + s * math.acos(cosine))) for s in (-1, 1)]
    return [np.array([[bottom * x, -1, bottom * z], [top * x, 1, top * z]]) for x, z in sides]


def seen_segments(ends: np.ndarray, owners: np.ndarray, view: View, seen: Buffers, shortest: float = 0.04) -> np.ndarray:
    """float32 [N, 4] x0 y0 x1 y1 in pixels: what of camera-space segments [M, 2, 3] is in the image with nothing before it.

    Pieces shorter than `shortest` of the side are dropped. Owners: an instance, or BORDER.
    """
    size = len(seen.depth)
    ends, owners = _before_camera(ends, owners)
    nearness = 1 / -ends[:, :, 2]
    points = np.stack([(view.focal * ends[:, :, 0] * nearness + 1), (1 - view.focal * ends[:, :, 1] * nearness)], axis=2) * size / 2 - 0.5
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
    shown = np.where(owner >= 2, (there == owner) | behind, np.where(owner == BORDER, there < 2, there == owner)) & (first < last)[:, None]
    change = np.diff(np.pad(shown, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    line, begin = np.nonzero(change == 1)
    _, end = np.nonzero(change == -1)
    a, b = share[line, begin][:, None], share[line, end - 1][:, None]
    pieces = np.concatenate([start[line] + along[line] * a, start[line] + along[line] * b], axis=1).clip(0, size - 1)
    return pieces[np.hypot(*(pieces[:, 2:] - pieces[:, :2]).T) >= shortest * size].astype(np.float32).reshape(-1, 4)


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
