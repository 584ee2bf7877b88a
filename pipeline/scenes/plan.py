"""What a scene is before it has a size: the draw of the room, the camera and the light, and who
stands where.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from pipeline.scenes import props
from pipeline.scenes.bodies import Part
from pipeline.scenes.camera import View
from pipeline.scenes.person import Person, draw_person
from pipeline.scenes.props import COLOURS, FLOORS, WALLS, Thing, pick, span


@dataclass(frozen=True)
class Actor:
    """Someone or something that has found its place."""

    who: Thing | Person
    parts: list[Part]
    hull: np.ndarray  # world points [N, 3]
    box: np.ndarray  # x0 y0 x1 y1 in half widths, y up
    depth: float  # of the place where it stands, metres


@dataclass(frozen=True)
class ScenePlan:
    """What a scene is before it has a size."""

    view: View
    light: np.ndarray  # world unit vector to the light
    floor: tuple[str, str]  # key of FLOORS, look
    wall: tuple[str, str]
    actors: list[Actor]  # from near to far; instances 2, 3, …
    noise: np.ndarray  # float32 [4096] in [-1, 1]

    @property
    def bodies(self) -> list[list[Part]]:
        return [actor.parts for actor in self.actors]

    @property
    def figure(self) -> tuple[int, Person] | None:
        """Instance and person."""
        return next(
            ((k, actor.who) for k, actor in enumerate(self.actors, 2) if isinstance(actor.who, Person)), None
        )


def draw_plan(seed: int, index: int) -> ScenePlan:
    rng = np.random.Generator(
        np.random.PCG64(int.from_bytes(hashlib.sha256(f"scene {seed} {index}".encode()).digest()[:16], "big"))
    )
    peopled = rng.random() < 1 / 3
    while True:
        distance, height, focal = span(rng, 4.2, 5.2), span(rng, 1.1, 1.7), span(rng, 2.2, 2.7)
        # where floor and wall meet; low enough for a head above it
        border = span(rng, -0.3, 0.1) if peopled else span(rng, 0.0, 0.4)
        pitch = math.atan(height / distance) + math.atan(border / focal)
        view = View(focal, height, pitch, distance, math.radians(span(rng, -18, 18)))
        from_side, up = math.radians(pick(rng, (-1, 1)) * span(rng, 25, 60)), math.radians(span(rng, 38, 58))
        light = np.array(
            [math.cos(up) * math.sin(from_side), math.sin(up), math.cos(up) * math.cos(from_side)]
        )
        floor, wall = pick(rng, list(FLOORS)), pick(rng, list(WALLS))
        looks = pick(rng, list(FLOORS[floor].looks)), pick(rng, list(WALLS[wall].looks))
        actors = _place(rng, view, border, peopled)
        if len(actors) > peopled:
            noise = (2 * rng.random(4096) - 1).astype(np.float32)
            return ScenePlan(
                view,
                light,
                (floor, looks[0]),
                (wall, looks[1]),
                sorted(actors, key=lambda actor: actor.depth),
                noise,
            )


def _place(rng: np.random.Generator, view: View, border: float, peopled: bool) -> list[Actor]:
    """Who stands where, the figure first; fewer than wanted where there is no room."""
    wanted = 1 + int(rng.random() * (3 if peopled else 4))
    colours = [name for _, name in sorted((rng.random(), name) for name in COLOURS)]
    person = draw_person(rng) if peopled else None
    least = 0.2 if wanted + peopled > 1 else 0.35
    actors: list[Actor] = []
    for _ in range(60):
        if len(actors) == wanted + peopled:
            break
        first = person is not None and not actors
        x, y = (
            span(rng, -0.85, 0.85) * (0.6 if first else 1),
            span(rng, -0.85, border - (0.1 if first else 0.2)),
        )
        at = view.floor_point(x, y)
        if at is None:
            continue
        depth = float(-view.to_camera(at[None])[0, 2])
        spot, turn = (float(at[0]), float(at[2])), math.atan2(-at[0], -at[2])
        who: Thing | Person
        if first and person is not None:
            top = view.project(at[None] + (0, max(point[1] for point in person.joints.values()) + 0.05, 0))[
                0, 1
            ]
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


def _enter(who: Thing | Person, view: View, depth: float, least: float) -> Actor | None:
    """The actor, if it stands before the wall, is not much cut off and its box has `least` of the 4 that the
    image has; else None.
    """
    parts = who.parts()
    hull = np.concatenate([part.hull for part in parts])
    shown = view.project(hull)
    if (
        shown[:, 2].min() < 1
        or (hull[:, 0] * math.sin(view.yaw) + hull[:, 2] * math.cos(view.yaw)).min() < 0.05 - view.wall_offset
    ):
        return None
    low, high = shown[:, :2].min(axis=0), shown[:, :2].max(axis=0)
    inside = np.maximum(np.minimum(high, 1) - np.maximum(low, -1), 0)
    area, share = float(inside.prod()), float(inside.prod() / (high - low).prod())
    if isinstance(who, Person):
        fits = inside[1] >= 0.84 and share > 0.88 and high[1] < 1.03  # 42 % of the height
    else:
        fits = least <= area <= 1.1 and share > 0.85
    return Actor(who, parts, hull, np.concatenate([low, high]), depth) if fits else None


def _apart(one: Actor, other: Actor) -> bool:
    """Neither touches the other, nor hides more than a third of it, or an eighth of a person."""
    gap = np.maximum(
        one.hull.min(axis=0) - other.hull.max(axis=0), other.hull.min(axis=0) - one.hull.max(axis=0)
    )
    common = np.maximum(
        np.minimum(one.box[2:], other.box[2:]) - np.maximum(one.box[:2], other.box[:2]), 0
    ).prod()
    farther = one if one.depth > other.depth else other
    most = (0.12 if isinstance(farther.who, Person) else 0.3) * (farther.box[2:] - farther.box[:2]).prod()
    return bool(max(gap[0], gap[2]) > 0.02 and common <= most)
