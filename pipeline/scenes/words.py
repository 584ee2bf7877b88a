"""What a scene shows, as facts and as a caption."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.scenes.plan import ScenePlan
from pipeline.scenes.props import Person
from pipeline.scenes.raster import Buffers

NUMBERS = ("no", "one", "two", "three", "four")
PLACES = ("on the left", "in the middle", "on the right")
_WORD = re.compile(r"(\W+)")  # split keeps what is between the words


def facts(plan: ScenePlan, seen: Buffers, points: Mapping[str, tuple[float, float, float]]) -> dict[str, Any]:
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
        if isinstance(one, Person):
            words = {"facing": one.facing, "pose": one.pose, "shirt": one.shirt, "trousers": one.trousers}
            figure = (
                words
                | common
                | {"keypoints": {name: state[confidence] for name, (_, _, confidence) in points.items()}}
            )
        else:
            objects.append({"shape": one.shape, "colour": one.colour, "material": one.material} | common)
    view = plan.view
    return {
        "camera": {
            "focal": view.focal,
            "height": view.height,
            "pitch": view.pitch,
            "wall": view.wall,
            "yaw": view.yaw,
        },
        "floor": plan.floor[1],
        "wall": plan.wall[1],
        "light": "from the left" if plan.light[0] < 0 else "from the right",
        "objects": objects,
        "figure": figure,
        "before": _before(plan),
    }


def _before(plan: ScenePlan) -> list[int] | None:
    """Two instances of which the first stands before the second: the pair that overlaps most in the image;
    None = none does.
    """
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
    text = number + ", ".join(
        f"{_article(o['colour'])} {o['material']} {o['shape']} {o['place']}" for o in objects
    )
    names = {o["instance"]: f"the {o['colour']} {o['shape']}" for o in objects}
    if figure:
        names[figure["instance"]] = "the person"
        text += (
            f"; a person in {_article(figure['shirt'])} shirt and {figure['trousers']} trousers"
            f" {figure['pose']} {figure['place']}"
        )
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
