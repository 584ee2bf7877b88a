"""The rendered scenes that the mini models learn from: those simple enough, rendered once."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from pipeline import scenes
from pipeline.manifest import Real, Section, Whole
from pipeline.scenes import Limits, description

PART = 1000  # scenes rendered for one file


class HeldOutScenes(Section):
    """Scenes of another seed, which nothing is trained on."""

    count: Annotated[Whole, Field(ge=1)]
    seed: Annotated[Whole, Field(ge=0)]


class MiniScenes(Section):
    """Which of the rendered scenes are simple enough for so small a model."""

    count: Annotated[Whole, Field(ge=1)]
    seed: Annotated[Whole, Field(ge=0)] = 0
    held_out: HeldOutScenes
    resolution: Literal[64, 128, 256] = 128
    most_objects: Annotated[Whole, Field(ge=1)] = 4
    least_box: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    least_visible: Annotated[Real, Field(ge=0, le=1)] = 0.0

    @property
    def limits(self) -> Limits:
        return Limits(self.most_objects, self.least_box, self.least_visible)


# train.mini.pictures.Pictures of training and held out
def render(plan: MiniScenes, work: Path) -> tuple[Any, Any]:
    """Each part once; another section of the manifest has a folder of its own."""
    from train.mini import pictures

    facts = {"version": scenes.VERSION, **plan.model_dump(exclude={"count", "held_out", "seed"})}
    folder = work / "scenes" / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    out = []
    for seed, count in ((plan.seed, plan.count), (plan.held_out.seed, plan.held_out.count)):
        below = folder / f"{seed}-{count}"
        for first in range(0, count, PART):
            name = f"{first:08d}"
            if not pictures.has_part(below, name):
                pictures.write_part(below, name, _kept(plan, seed, range(first, min(first + PART, count))))
        out.append(pictures.read(below))
    return out[0], out[1]


def _kept(plan: MiniScenes, seed: int, indices: range) -> Iterator[tuple[np.ndarray, str, str]]:
    for index in indices:
        scene = scenes.render(seed, index, plan.resolution)
        if plan.limits.hold(scene.graph):
            yield scene.image, scene.caption, description.mirrored(scene.caption)


def sentence(plan: MiniScenes, kept: int) -> str:
    """For a model's card."""
    return (
        f"{kept:,} of {plan.count:,} rendered scenes (seed {plan.seed}, {plan.resolution}x{plan.resolution})"
        f" with at most {plan.most_objects} objects of at least {plan.least_box:.0%} of the picture,"
        f" {plan.least_visible:.0%} of each in sight, and their mirror images; held out: seed"
        f" {plan.held_out.seed}."
    )
