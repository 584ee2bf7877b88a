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

    @property
    def splits(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Seed and count of the scenes to train on, and of those held out."""
        return (self.seed, self.count), (self.held_out.seed, self.held_out.count)

    @property
    def key(self) -> str:
        """Identity of what a seed and a number become here: the name of a folder."""
        settings = {"version": scenes.VERSION, **self.model_dump(exclude={"count", "held_out", "seed"})}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def parts_of(count: int) -> Iterator[tuple[str, range]]:
    """The name of each part's file, and its scenes."""
    for first in range(0, count, PART):
        yield f"{first:08d}", range(first, min(first + PART, count))


# train.mini.pictures.Pictures of training and held out
def render(plan: MiniScenes, work: Path) -> tuple[Any, Any]:
    """Each part once; another section of the manifest has a folder of its own."""
    from train.mini import pictures

    splits = []
    for seed, count in plan.splits:
        folder = work / "scenes" / plan.key / f"{seed}-{count}"
        for name, indices in parts_of(count):
            if not pictures.has_part(folder, name):
                pictures.write_part(folder, name, _kept(plan, seed, indices))
        splits.append(pictures.read(folder))
    return splits[0], splits[1]


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
