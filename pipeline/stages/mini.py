"""Makes the mini models from rendered scenes: renders what is missing, then hands arrays to the library that trains."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from pipeline import MillError, scenes
from pipeline.manifest import NAME, Section, Whole
from pipeline.scenes import words

PART = 1000  # scenes rendered for one file


class HeldOut(Section):
    """Scenes of another seed, which nothing is trained on."""

    count: Annotated[Whole, Field(ge=1)]
    seed: Annotated[Whole, Field(ge=0)]


class MiniScenes(Section):
    """Which of the rendered scenes are simple enough for so small a model."""

    count: Annotated[Whole, Field(ge=1)]
    seed: Annotated[Whole, Field(ge=0)] = 0
    held_out: HeldOut
    resolution: Literal[64, 128, 256] = 128
    most_objects: Annotated[Whole, Field(ge=1)] = 4
    least_box: Annotated[float, Field(ge=0, lt=1)] = 0.0
    least_visible: Annotated[float, Field(ge=0, le=1)] = 0.0


class MiniBase(Section):
    """manifests/mini/base.yaml."""

    name: Annotated[str, Field(pattern=NAME)]
    scenes: MiniScenes
    recipe: Annotated[dict[str, Any], Field(default_factory=dict)]  # of train/mini/make.py; what is left out is its default


def make_base(
    manifest: Path,
    work: Path,  # scenes, latents, states, log.jsonl
    *,
    older: Path | None = None,  # a base to go on from where `work` has no state; None = from nothing
    seconds: float = float("inf"),
    device: str = "cpu",
    polish: bool = False,  # the VAE's decoder alone, instead of the UNet
) -> bool:  # whether the recipe's images have all been seen
    """Stops after `seconds` or at SIGTERM; the same call goes on."""
    from train.mini import make

    plan = load(manifest)
    pictures, held_out = render(plan.scenes, work)
    go = make.polish if polish else make.train
    return go(recipe_of(plan, manifest), pictures, held_out, work, older=older, seconds=seconds, device=device)


def export_base(manifest: Path, work: Path, dest: Path, *, older: Path | None = None, count: int = 500) -> dict[str, Any]:  # its scores
    """Writes what has been made so far as a diffusers folder with its card; training may go on meanwhile."""
    from train.mini import base, card, make, scores

    plan = load(manifest)
    recipe = recipe_of(plan, manifest)
    pictures, held_out = render(plan.scenes, work)
    parts = make.load_trained(recipe, pictures, work, older)
    spent = parts.pop("spent")
    for name in ("vae", "unet", "text_encoder"):
        base.rounded(parts[name])  # scored as it is shipped
    found = scores.measure(parts, held_out, count=count)
    wanted = {"vae": recipe.autoencoder.images, "decoder": recipe.autoencoder.polish, "denoiser": recipe.denoiser.images}
    text = card.write(parts=parts, spent=spent, scores=found, data=_sentence(plan.scenes, len(pictures.captions)), wanted=wanted)
    facts = {"scenes": plan.scenes.model_dump(), "recipe": dataclasses.asdict(recipe), "scores": found, "machine": card.machine()}
    base.write(dest, parts, spent, facts, text)
    return found


def draw_grid(manifest: Path, work: Path, folder: Path, path: Path) -> None:
    """Held-out scenes, their reconstructions, and samples of held-out captions, as one PNG."""
    from train.mini import grid

    grid.write(path, folder, render(load(manifest).scenes, work)[1])


def load(path: Path) -> MiniBase:
    """MillError has one line for each mistake."""
    try:
        return MiniBase.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise MillError(f"The manifest {path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.YAMLError as error:
        raise MillError(f"{path}: not YAML: {getattr(error, 'problem', error)}.") from error
    except ValidationError as error:
        raise MillError("\n".join(f"{path}: {_where(one['loc'])}: {one['msg'].lower()}." for one in error.errors())) from None


def recipe_of(plan: MiniBase, path: Path) -> Any:  # train.mini.make.BaseRecipe
    from train.mini.make import BaseRecipe

    _refuse_unknown(plan.recipe, BaseRecipe, path, "recipe")
    try:
        return TypeAdapter(BaseRecipe).validate_python(plan.recipe)
    except ValidationError as error:
        raise MillError("\n".join(f"{path}: recipe.{_where(one['loc'])}: {one['msg'].lower()}." for one in error.errors())) from None


def _refuse_unknown(value: Any, kind: Any, path: Path, key: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, inner in (value or {}).items():
        if name not in fields:
            raise MillError(f"{path}: {key}.{name}: unknown key; known keys: {', '.join(fields)}.")
        if dataclasses.is_dataclass(fields[name].type):
            _refuse_unknown(inner, fields[name].type, path, f"{key}.{name}")


def _where(steps: tuple[Any, ...]) -> str:
    return ".".join(map(str, steps)) or "the manifest"


def render(plan: MiniScenes, work: Path) -> tuple[Any, Any]:  # train.mini.pictures.Pictures of training and held out
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
        if simple(plan, scene.facts):
            yield scene.image, scene.caption, words.mirrored(scene.caption)


def simple(plan: MiniScenes, facts: dict[str, Any]) -> bool:
    """Whether a scene keeps to the limits."""
    objects = facts["objects"]
    boxes = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one["box"] for one in objects)]
    return (
        len(objects) <= plan.most_objects
        and all(box >= plan.least_box for box in boxes)
        and all(one["visible"] >= plan.least_visible for one in objects)
    )


def _sentence(plan: MiniScenes, kept: int) -> str:
    return (
        f"{kept:,} of {plan.count:,} rendered scenes (seed {plan.seed}, {plan.resolution}x{plan.resolution}) with at most {plan.most_objects} "
        f"objects of at least {plan.least_box:.0%} of the picture, {plan.least_visible:.0%} of each in sight, and their mirror images; "
        f"held out: seed {plan.held_out.seed}."
    )
