"""Rendered scenes with exact ground truth for every condition: objects and a jointed figure in a room, and a caption."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from annotate.label_spaces import SPACES
from annotate.maps import RawMap, depth_map
from annotate.skeletons import SKELETONS
from pipeline import props, raster
from pipeline.props import CLASSES, COLOURS, FLOORS, ON, WALLS, Figure, Surface, Thing, pick, span
from pipeline.raster import FLOOR, SOLIDS, WALL, Buffers, Part, View

VERSION = 1  # of what a seed and a number render to
PROVIDES = ("pose_openpifpaf", "pose_openpose", "seg_coco", "seg_ade20k", "depth_large", "depth_small", "normal")  # conditions, exactly
_WORD = re.compile(r"(\W+)")  # split keeps what is between the words
NUMBERS = ("no", "one", "two", "three", "four")
PLACES = ("on the left", "in the middle", "on the right")


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


@dataclass(frozen=True)
class _Actor:
    """Someone or something that has found its place."""

    who: Thing | Figure
    parts: list[Part]
    hull: np.ndarray  # world points [N, 3]
    box: np.ndarray  # x0 y0 x1 y1 in half widths, y up
    depth: float  # of the place where it stands, metres


@dataclass(frozen=True)
class _Plan:
    """What a scene is before it has a size."""

    view: View
    light: np.ndarray  # world unit vector to the light
    floor: tuple[str, str]  # key of FLOORS, look
    wall: tuple[str, str]
    actors: list[_Actor]  # from near to far; instances 2, 3, …
    noise: np.ndarray  # float32 [4096] in [-1, 1]

    @property
    def bodies(self) -> list[list[Part]]:
        return [actor.parts for actor in self.actors]

    @property
    def figure(self) -> tuple[int, Figure] | None:
        """Instance and person."""
        return next(((k, actor.who) for k, actor in enumerate(self.actors, 2) if isinstance(actor.who, Figure)), None)


def render(seed: int, index: int, size: int = 128) -> Scene:
    """Scene `index` of a seed at size x size pixels, 64 to 1024; the same scene at every size.

    The bytes depend on the three numbers alone, on one kind of processor; another's last bits may differ. ValueError: another size.
    """
    import cv2

    if not 64 <= size <= 1024:
        raise ValueError(f"scenes are rendered at 64 to 1024 pixels, not {size}")
    plan = _plan(seed, index)
    seen = raster.cast(plan.bodies, plan.view, size)
    image = cv2.resize(_paint(plan, 2 * size), (size, size), interpolation=cv2.INTER_AREA)
    points = _keypoints(plan, seen)
    facts = _facts(plan, seen, points)
    ends, owners = (np.concatenate(pair) for pair in zip(raster.edges(plan.bodies, plan.view), _seams(plan, seen), strict=True))
    depth = depth_map(1 / seen.depth)
    depth = RawMap("depth", depth.array, {**depth.meta, "unit": "1/m"})
    maps = {
        "pose_openpifpaf": _people(points, "coco_17", size),
        "pose_openpose": _people(points, "openpose_18", size),
        "seg_coco": _labels(plan, seen, "coco_stuff_171", 0),
        "seg_ade20k": _labels(plan, seen, "ade20k_150", 1),
        "depth_large": depth,
        "depth_small": depth,
        "normal": RawMap("normals", seen.normal),
    }
    outlines = raster.outlines(seen, plan.figure[0] if plan.figure else None)
    lines = raster.seen_segments(ends, owners, plan.view, seen)
    return Scene(image, describe(facts), maps, outlines, lines, seen.instance, facts)


# --- what is where ---


def _plan(seed: int, index: int) -> _Plan:
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(f"scene {seed} {index}".encode()).digest()[:16], "big")))
    peopled = rng.random() < 1 / 3
    while True:
        distance, height, focal = span(rng, 4.2, 5.2), span(rng, 1.1, 1.7), span(rng, 2.2, 2.7)
        border = span(rng, -0.3, 0.1) if peopled else span(rng, 0.0, 0.4)  # where floor and wall meet; low enough for a head above it
        pitch = math.atan(height / distance) + math.atan(border / focal)
        view = View(focal, height, pitch, distance, math.radians(span(rng, -18, 18)))
        from_side, up = math.radians(pick(rng, (-1, 1)) * span(rng, 25, 60)), math.radians(span(rng, 38, 58))
        light = np.array([math.cos(up) * math.sin(from_side), math.sin(up), math.cos(up) * math.cos(from_side)])
        floor, wall = pick(rng, list(FLOORS)), pick(rng, list(WALLS))
        looks = pick(rng, list(FLOORS[floor].looks)), pick(rng, list(WALLS[wall].looks))
        actors = _place(rng, view, border, peopled)
        if len(actors) > peopled:
            noise = (2 * rng.random(4096) - 1).astype(np.float32)
            return _Plan(view, light, (floor, looks[0]), (wall, looks[1]), sorted(actors, key=lambda actor: actor.depth), noise)


def _place(rng: np.random.Generator, view: View, border: float, peopled: bool) -> list[_Actor]:
    """Who stands where, the figure first; fewer than wanted where there is no room."""
    wanted = 1 + int(rng.random() * (3 if peopled else 4))
    colours = [name for _, name in sorted((rng.random(), name) for name in COLOURS)]
    person = props.draw_figure(rng) if peopled else None
    least = 0.2 if wanted + peopled > 1 else 0.35
    actors: list[_Actor] = []
    for _ in range(60):
        if len(actors) == wanted + peopled:
            break
        first = person is not None and not actors
        x, y = span(rng, -0.85, 0.85) * (0.6 if first else 1), span(rng, -0.85, border - (0.1 if first else 0.2))
        at = view.floor_point(x, y)
        if at is None:
            continue
        depth = float(-view.to_camera(at[None])[0, 2])
        spot, turn = (float(at[0]), float(at[2])), math.atan2(-at[0], -at[2])
        who: Thing | Figure
        if first and person is not None:
            top = view.project(at[None] + (0, max(point[1] for point in person.joints.values()) + 0.05, 0))[0, 1]
            if not (top < 0.95 and top - y > 0.75):  # cut off above, or small
                continue
            who = person.stand(spot, turn)
        else:
            who = props.draw_thing(rng, colours[len(actors)], spot, turn)
            if 4 * who.half[0] * who.half[1] * (view.focal / depth) ** 2 < 0.8 * least:
                continue
        actor = _enter(who, view, depth, least)
        if actor is not None and all(_apart(actor, other) for other in actors):
            actors.append(actor)
    return actors


def _enter(who: Thing | Figure, view: View, depth: float, least: float) -> _Actor | None:
    """The actor, if it stands before the wall, is not much cut off and its box has `least` of the 4 that the image has; else None."""
    parts = who.parts()
    hull = np.concatenate([part.hull for part in parts])
    shown = view.project(hull)
    if shown[:, 2].min() < 1 or (hull[:, 0] * math.sin(view.yaw) + hull[:, 2] * math.cos(view.yaw)).min() < 0.05 - view.wall_offset:
        return None
    low, high = shown[:, :2].min(axis=0), shown[:, :2].max(axis=0)
    inside = np.maximum(np.minimum(high, 1) - np.maximum(low, -1), 0)
    area, share = float(inside.prod()), float(inside.prod() / (high - low).prod())
    if isinstance(who, Figure):
        fits = inside[1] >= 0.84 and share > 0.88 and high[1] < 1.03  # 42 % of the height
    else:
        fits = least <= area <= 1.1 and share > 0.85
    return _Actor(who, parts, hull, np.concatenate([low, high]), depth) if fits else None


def _apart(one: _Actor, other: _Actor) -> bool:
    """Neither touches the other, nor hides more than a third of it, or an eighth of a person."""
    gap = np.maximum(one.hull.min(axis=0) - other.hull.max(axis=0), other.hull.min(axis=0) - one.hull.max(axis=0))
    common = np.maximum(np.minimum(one.box[2:], other.box[2:]) - np.maximum(one.box[:2], other.box[:2]), 0).prod()
    farther = one if one.depth > other.depth else other
    most = (0.12 if isinstance(farther.who, Figure) else 0.3) * (farther.box[2:] - farther.box[:2]).prod()
    return bool(max(gap[0], gap[2]) > 0.02 and common <= most)


# --- colour ---


def _paint(plan: _Plan, n: int) -> np.ndarray:
    """uint8 [n, n, 3] RGB, one sample a pixel: Lambert and Blinn shading, shadows on floor and wall."""
    import cv2

    seen = raster.cast(plan.bodies, plan.view, n)
    parts = [part for body in plan.bodies for part in body]
    colour = np.empty((n, n, 3), np.float32)
    for instance, surface, look in ((WALL, WALLS[plan.wall[0]], plan.wall[1]), (FLOOR, FLOORS[plan.floor[0]], plan.floor[1])):
        mask = seen.instance == instance
        colour[mask] = _surface(seen.place[mask], surface, look, plan.noise)
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
        colour[window][ys, xs] = _pattern(seen.place[window][ys, xs], part)
        if part.paint[3] and len(ys):
            ys, xs = ys + window[0].start, xs + window[1].start
            toward = np.stack(
                [(n - 1 - 2 * xs) / (n * plan.view.focal), (2 * ys + 1 - n) / (n * plan.view.focal), np.ones(len(xs))], axis=1
            )
            shine.append(
                (ys, xs, 0.85 * part.paint[3] * _glint(seen.normal[ys, xs], toward, light, up if part.form == "frustum" else None))
            )
    colour *= bright[..., None]
    for ys, xs, white in shine:
        colour[ys, xs] += white[:, None]
    return cv2.convertScaleAbs(colour, alpha=255)  # rounds and saturates


def _glint(normal: np.ndarray, toward: np.ndarray, light: np.ndarray, axis: np.ndarray | None) -> np.ndarray:
    """float32 [N] in 0 to 1: Blinn's highlight; drawn out along `axis` as on brushed metal, or a cylinder would show none."""
    between = (toward / np.linalg.norm(toward, axis=1, keepdims=True) + light).astype(np.float32)
    if axis is not None:
        between -= (between @ axis)[:, None] * axis
    along = (normal * between).sum(axis=1) / np.linalg.norm(between, axis=1)
    return np.maximum(along, 0) ** 40


def _surface(place: np.ndarray, surface: Surface, look: str, noise: np.ndarray) -> np.ndarray:
    """float32 [N, 3] RGB of points of a floor or wall in metres along and across."""
    a, b = place[:, 0], place[:, 1]
    first, second = (np.array(c, np.float32) for c in surface.looks[look])
    strength, *period = surface.grain
    cells = _floor(a / period[0]) * 57 + _floor(b / period[1]) * 1117
    bright = 1 + np.float32(strength) * noise[cells & 4095]
    seam = np.zeros(len(a), bool)
    if surface.cell[0]:
        row, column, within, across = _cells(a, b, surface, noise)
        seam = np.minimum(within, surface.cell[0] - within) < surface.seam / 2
        if surface.cell[1]:
            seam |= np.minimum(across, surface.cell[1] - across) < surface.seam / 2
        bright += np.float32(surface.tones / 2) * noise[(column * 71 + row * 313) & 4095]
        if surface.chequered:
            colour = np.where(((column + row) & 1)[:, None] == 1, second, first) * bright[:, None]
            colour[seam] = 0.45
            return colour
    colour = first * bright[:, None]
    colour[seam] = second
    return colour


def _cells(a: np.ndarray, b: np.ndarray, surface: Surface, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of each point's cell, and the metres from its beginning along and across."""
    row = _floor(b / surface.cell[1]) if surface.cell[1] else np.zeros(len(b), np.int32)
    moved = a - surface.cell[0] * _row_shift(row, surface, noise)
    column = _floor(moved / surface.cell[0])
    return row, column, moved - column * surface.cell[0], b - row * surface.cell[1]


def _row_shift(row: np.ndarray, surface: Surface, noise: np.ndarray) -> np.ndarray:
    """By which share of a cell each row is moved."""
    return noise[(row * 37) & 4095] if surface.shift < 0 else np.float32(surface.shift) * (row & 1)


def _pattern(place: np.ndarray, part: Part) -> np.ndarray:
    """float32 [N, 3] RGB of points of a body in its own space."""
    pattern, first, second, _ = part.paint
    x, y, z = place.T
    other = np.zeros(len(place), bool)
    if pattern == "striped":
        other = _floor(y * 2.5 + 0.25) & 1 == 1
    elif pattern == "checked":
        if part.form == "box":
            around = _floor(x * 1.2 + 0.27) + _floor(z * 1.2 + 0.27)
        elif part.form == "pyramid":
            around = _floor(np.where(np.abs(x) > np.abs(z), z, x) * 2.5)
        else:
            around = _floor(np.arctan2(z, x) * (3 / np.pi))
        other = (around + _floor(y * (1.4 if part.form in SOLIDS else 2.0) + 0.27)) & 1 == 1
    elif pattern == "head":
        other = (z < -0.1) | (y > 0.5)
    colour = np.where(other[:, None], np.float32(second), np.float32(first))
    if pattern == "head":
        colour[((np.abs(x) - 0.37) ** 2 + (y - 0.15) ** 2 < 0.035) & (z > 0)] = 0.08
        colour[(np.abs(x) < 0.3) & (np.abs(y + 0.48) < 0.07) & (z > 0)] = (0.6, 0.15, 0.15)
    return colour


def _floor(x: np.ndarray) -> np.ndarray:
    return np.floor(x).astype(np.int32)


def _shadows(plan: _Plan, seen: Buffers) -> np.ndarray:
    """bool [n, n]: floor and wall where a body is before the light; a convex body's shadow is the convex hull of its points' shadows."""
    import cv2

    n = len(seen.depth)
    dark = np.zeros((n, n), bool)
    hulls = [part.hull for body in plan.bodies for part in body]
    points, ends = np.concatenate(hulls), np.cumsum([len(hull) for hull in hulls])
    normal = np.array([math.sin(plan.view.yaw), 0, math.cos(plan.view.yaw)])
    for instance, plane, offset in ((FLOOR, np.array([0.0, 1, 0]), 0.0), (WALL, normal, -plan.view.wall_offset)):
        mask = np.zeros((n, n), np.uint8)
        fallen = points - ((points @ plane - offset) / (plan.light @ plane))[:, None] * plan.light
        shown = raster.pixels(plan.view.project(fallen), n).clip(-4 * n, 5 * n).astype(np.float32)
        for corners in np.split(shown, ends[:-1]):
            cv2.fillConvexPoly(mask, np.rint(cv2.convexHull(corners) * 16).astype(np.int32), 1, cv2.LINE_8, 4)
        dark |= (mask > 0) & (seen.instance == instance)
    return dark


# --- truth ---


def _seams(plan: _Plan, seen: Buffers) -> tuple[np.ndarray, np.ndarray]:
    """Camera-space segments [M, 2, 3] and owners [M]: the border of floor and wall, and the seams wide enough apart to be seen."""
    along, up, out = plan.view.room
    below = -plan.view.height * up  # the floor below the camera
    foot = below - plan.view.wall_offset * out  # where the wall stands nearest to the camera
    ends, owners = [foot + np.outer((-20, 20), along)], [raster.BORDER]
    for owner, surface, origin, across in ((FLOOR, FLOORS[plan.floor[0]], below, out), (WALL, WALLS[plan.wall[0]], foot, up)):
        mask = seen.instance == owner
        if not surface.cell[0] or not mask.any():
            continue
        place = seen.place[mask][:, :2]
        (a0, b0), (a1, b1) = place.min(axis=0), place.max(axis=0)
        w, h = surface.cell
        flat = []
        rows = np.arange(math.floor(b0 / h), math.ceil(b1 / h)) if h else np.zeros(1, int)
        for row in rows:
            shift = w * float(_row_shift(np.array([row]), surface, plan.noise)[0])
            low, high = (row * h, (row + 1) * h) if h else (b0, b1)
            flat += [(c, low, c, high) for c in np.arange(math.ceil((a0 - shift) / w), math.floor((a1 - shift) / w) + 1) * w + shift]
            if h and row != rows[0]:
                flat.append((a0, low, a1, low))
        points = np.array(flat, float).reshape(-1, 2, 2)
        ends += list(origin + points[..., :1] * along + points[..., 1:] * across)
        owners += [owner] * len(points)
    return np.array(ends), np.array(owners)


def _keypoints(plan: _Plan, seen: Buffers) -> dict[str, tuple[float, float, float]]:
    """Name -> x, y in pixels, and 1 seen, 0.5 hidden, 0 outside the image; empty without a figure."""
    if plan.figure is None:
        return {}
    instance, person = plan.figure
    size = len(seen.depth)
    names = [part.name for body in plan.bodies for part in body]
    projected = plan.view.project(np.array(list(person.joints.values())))
    out = {}
    for name, (x, y), depth in zip(person.joints, raster.pixels(projected, size), projected[:, 2], strict=True):
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


def _people(points: Mapping[str, tuple[float, float, float]], layout: str, size: int) -> RawMap:
    names = SKELETONS[layout].names
    array = np.array([[points[name] for name in names]] if points else [], np.float32).reshape(-1, len(names), 3)
    return RawMap("people", array, {"size": [size, size], "layout": layout})


def _labels(plan: _Plan, seen: Buffers, space: str, column: int) -> RawMap:
    wall, floor = WALLS[plan.wall[0]], FLOORS[plan.floor[0]]
    words = [(wall.coco, wall.ade), (floor.coco, floor.ade)]
    words += [CLASSES["person" if isinstance(actor.who, Figure) else actor.who.shape] for actor in plan.actors]
    table = np.array([SPACES[space].names.index(row[column]) for row in words], np.uint8)
    return RawMap("labels", table[seen.instance], {"label_space": space})


# --- words ---


def _facts(plan: _Plan, seen: Buffers, points: Mapping[str, tuple[float, float, float]]) -> dict[str, Any]:
    objects: list[dict[str, Any]] = []
    figure: dict[str, Any] | None = None
    state = {1.0: "seen", 0.5: "hidden", 0.0: "outside"}
    for instance, actor in enumerate(plan.actors, 2):
        one, box = actor.who, actor.box
        ys, xs = np.nonzero(seen.instance == instance)
        size = len(seen.depth)
        common = {
            "instance": instance,
            "place": PLACES[0 if box[0] + box[2] < -0.5 else 2 if box[0] + box[2] > 0.5 else 1],
            "box": [round(float(v) / size, 4) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)],
            "visible": round(len(xs) / max(seen.alone[instance - 2], 1), 3),
        }
        if isinstance(one, Figure):
            words = {"facing": one.facing, "pose": one.pose, "shirt": one.shirt, "trousers": one.trousers}
            figure = words | common | {"keypoints": {name: state[confidence] for name, (_, _, confidence) in points.items()}}
        else:
            objects.append({"shape": one.shape, "colour": one.colour, "material": one.material} | common)
    view = plan.view
    return {
        "camera": {"focal": view.focal, "height": view.height, "pitch": view.pitch, "wall": view.wall, "yaw": view.yaw},
        "floor": plan.floor[1],
        "wall": plan.wall[1],
        "light": "from the left" if plan.light[0] < 0 else "from the right",
        "objects": objects,
        "figure": figure,
        "before": _before(plan),
    }


def _before(plan: _Plan) -> list[int] | None:
    """Two instances of which the first stands before the second: the pair that overlaps most in the image; None = none does."""
    best, pair = 0.25, None
    for i, near in enumerate(plan.actors):
        for j, far in enumerate(plan.actors[i + 1 :], i + 1):
            (a0, _, a1, top), (b0, bottom, b1, _) = near.box, far.box
            share = (min(a1, b1) - max(a0, b0)) / min(a1 - a0, b1 - b0)
            if share > best and far.depth - near.depth > 0.25 and top > bottom:
                best, pair = share, [i + 2, j + 2]
    return pair


def describe(facts: Mapping[str, Any]) -> str:
    """The caption of a scene's facts."""
    objects, figure = facts["objects"], facts["figure"]
    number = NUMBERS[len(objects)] + (" object: " if len(objects) == 1 else " objects: ")
    text = number + ", ".join(f"{_article(o['colour'])} {o['material']} {o['shape']} {o['place']}" for o in objects)
    names = {o["instance"]: f"the {o['colour']} {o['shape']}" for o in objects}
    if figure:
        names[figure["instance"]] = "the person"
        text += f"; a person in {_article(figure['shirt'])} shirt and {figure['trousers']} trousers {figure['pose']} {figure['place']}"
        text += f", facing {figure['facing']}"
    if facts["before"]:
        text += "; {} in front of {}".format(*(names[k] for k in facts["before"]))
    return f"{text}; {facts['floor']}, {facts['wall']}, light {facts['light']}"


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def mirrored(caption: str) -> str:
    """The caption of the mirrored scene: left and right change places, nothing else."""
    swap = {"left": "right", "right": "left"}
    return "".join(swap.get(word, word) for word in _WORD.split(caption))
