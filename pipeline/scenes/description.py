"""What a scene shows: each object and the person as the camera sees them, and the caption that says so."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.scenes.camera import View
from pipeline.scenes.person import Person
from pipeline.scenes.plan import Actor, ScenePlan
from pipeline.scenes.raster import Buffers

NUMBERS = ("no", "one", "two", "three", "four")
PLACES = ("on the left", "in the middle", "on the right")
STATES = {1.0: "seen", 0.5: "hidden", 0.0: "outside"}  # of a keypoint, by its confidence
_WORD = re.compile(r"(\W+)")  # split keeps what is between the words

Box = tuple[float, float, float, float]  # x0 y0 x1 y1 in shares of the sides


@dataclass(frozen=True)
class SceneObject:
    shape: str
    colour: str
    material: str
    instance: int
    place: str  # one of PLACES
    box: Box
    visible: float  # share that nothing hides


@dataclass(frozen=True)
class ScenePerson:
    facing: str
    pose: str
    shirt: str  # colours
    trousers: str
    instance: int
    place: str
    box: Box
    visible: float
    keypoints: dict[str, str]  # joint -> one of STATES


@dataclass(frozen=True)
class SceneGraph:
    """All that a caption can say of a scene, and where in the picture it is; asdict of it is JSON."""

    camera: View
    floor: str
    wall: str
    light: str
    objects: tuple[SceneObject, ...]
    person: ScenePerson | None
    in_front: tuple[int, int] | None  # instances: the first hides some of the second; None = no pair does


def graph_of(plan: ScenePlan, seen: Buffers, points: Mapping[str, tuple[float, float, float]]) -> SceneGraph:
    objects: list[SceneObject] = []
    person: ScenePerson | None = None
    for instance, actor in enumerate(plan.actors, 2):
        who, where = actor.who, _where(instance, actor, seen)
        if isinstance(who, Person):
            states = {name: STATES[confidence] for name, (_, _, confidence) in points.items()}
            person = ScenePerson(who.facing, who.pose, who.shirt, who.trousers, *where, states)
        else:
            objects.append(SceneObject(who.shape, who.colour, who.material, *where))
    return SceneGraph(
        camera=plan.view,
        floor=plan.floor[1],
        wall=plan.wall[1],
        light="from the left" if plan.light[0] < 0 else "from the right",
        objects=tuple(objects),
        person=person,
        in_front=_in_front(plan),
    )


def _where(instance: int, actor: Actor, seen: Buffers) -> tuple[int, str, Box, float]:
    """Instance, place, box and the visible share."""
    ys, xs = np.nonzero(seen.instance == instance)
    size, middle = len(seen.depth), actor.box[0] + actor.box[2]
    place = PLACES[0 if middle < -0.5 else 2 if middle > 0.5 else 1]
    x0, y0, x1, y1 = (round(float(v) / size, 4) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
    return instance, place, (x0, y0, x1, y1), round(len(xs) / max(seen.alone[instance - 2], 1), 3)


def _in_front(plan: ScenePlan) -> tuple[int, int] | None:
    """Two instances of which the first stands before the second: the pair that overlaps most in the image;
    None = none does.
    """
    best, pair = 0.25, None
    for i, near in enumerate(plan.actors):
        for j, far in enumerate(plan.actors[i + 1 :], i + 1):
            (a0, _, a1, top), (b0, bottom, b1, _) = near.box, far.box
            share = (min(a1, b1) - max(a0, b0)) / min(a1 - a0, b1 - b0)
            if share > best and far.depth - near.depth > 0.25 and top > bottom:
                best, pair = share, (i + 2, j + 2)
    return pair


def describe(graph: SceneGraph) -> str:
    """The caption."""
    objects, person = graph.objects, graph.person
    number = NUMBERS[len(objects)] + (" object: " if len(objects) == 1 else " objects: ")
    text = number + ", ".join(
        f"{_article(one.colour)} {one.material} {one.shape} {one.place}" for one in objects
    )
    names = {one.instance: f"the {one.colour} {one.shape}" for one in objects}
    if person:
        names[person.instance] = "the person"
        text += (
            f"; a person in {_article(person.shirt)} shirt and {person.trousers} trousers"
            f" {person.pose} {person.place}, facing {person.facing}"
        )
    if graph.in_front:
        near, far = graph.in_front
        text += f"; {names[near]} in front of {names[far]}"
    return f"{text}; {graph.floor}, {graph.wall}, light {graph.light}"


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def mirrored(caption: str) -> str:
    """The caption of the mirrored scene: left and right change places, nothing else."""
    swap = {"left": "right", "right": "left"}
    return "".join(swap.get(word, word) for word in _WORD.split(caption))
