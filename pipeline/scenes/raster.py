"""Rays through every pixel, cast at bodies, floor and wall, into buffers of what they meet first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.bodies import FORMS, Part, normals
from pipeline.scenes.camera import View, pixels

WALL, FLOOR = 0, 1  # instances; solids count on from 2


@dataclass(frozen=True)
class Buffers:
    """What each ray of the camera meets first, [n, n] each."""

    depth: np.ndarray  # float32, metres along the viewing axis
    normal: np.ndarray  # float32 [n, n, 3], unit, camera space
    # float32 [n, n, 3]: solids: in their own space; floor, wall: metres along the wall, metres across, 0
    place: np.ndarray
    face: np.ndarray  # int16: 0 wall, 1 floor, else 8 * (part + 1) + its face
    instance: np.ndarray  # uint8
    windows: list[tuple[slice, slice] | None]  # of each part: the pixels it can cover
    alone: list[int]  # of each body: the pixels it would cover with nothing before it


def cast(bodies: Sequence[Sequence[Part]], view: View, n: int) -> Buffers:
    """Cast n x n rays through the pixel centres at bodies (instances 2, 3, …), floor and wall; the nearest
    wins.
    """
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
    part: Part,
    box: tuple[slice, slice],
    code: int,
    view: View,
    u: np.ndarray,
    v: np.ndarray,
    out: Buffers,
    covered: np.ndarray,
) -> None:
    inverse = np.linalg.inv(view.rotation @ part.axes)
    eye = inverse @ -view.to_camera(part.at[None])[0]
    m = inverse.astype(np.float32)
    ray = [m[i, 0] * u[:, box[1]] + (m[i, 1] * v[box[0]] - m[i, 2]) for i in range(3)]
    t, face = FORMS[part.form](part, eye, ray)
    covered[box] |= t < np.inf
    won = t < out.depth[box]
    ys, xs = np.nonzero(won)
    if not len(ys):
        return
    t = t[ys, xs]
    p = np.stack([np.float32(eye[i]) + ray[i][ys, xs] * t for i in range(3)], axis=1)
    face = face[ys, xs] if isinstance(face, np.ndarray) else np.zeros(len(t), np.int16)
    normal = normals(part, p, face) @ m
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
    return Buffers(
        depth, np.take(np.stack([out, up]), face, axis=0), place, face, face.astype(np.uint8), [], []
    )


def _window(part: Part, view: View, n: int) -> tuple[slice, slice] | None:
    """The pixels that the part can cover; the hull of a ball lies inside it, hence the margin."""
    p = pixels(view.project(part.hull), n)
    low, high = p.min(axis=0), p.max(axis=0)
    margin = 0.04 * (high - low) + 1
    x0, y0 = np.maximum(np.floor(low - margin), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(high + margin) + 1, n).astype(int)
    return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None
