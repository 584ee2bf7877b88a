"""Makes the mini base from rendered scenes: renders what is missing, then hands arrays to the library that
trains.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field

from pipeline.manifest import NAME, Section, yaml_errors
from pipeline.mini import manifests, scenes
from pipeline.mini.manifests import RecipeKeys
from pipeline.mini.scenes import MiniScenes

if TYPE_CHECKING:
    from train.mini.scores import Scores


class MiniBase(Section):
    """manifests/mini/base.yaml."""

    name: Annotated[str, Field(pattern=NAME)]
    scenes: MiniScenes
    recipe: RecipeKeys  # of BaseRecipe in train/mini/make.py


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
    pictures, held_out = scenes.render(plan.scenes, work)
    go = make.polish if polish else make.train
    return go(recipe_of(plan), pictures, held_out, work, older=older, seconds=seconds, device=device)


def export_base(
    manifest: Path, work: Path, dest: Path, *, older: Path | None = None, count: int = 500
) -> "Scores":
    """Writes what has been made so far as a diffusers folder with its card; training may go on meanwhile."""
    from train.mini import base, card, make, scores

    plan = load(manifest)
    recipe = recipe_of(plan)
    pictures, held_out = scenes.render(plan.scenes, work)
    parts, spent = make.load_trained(recipe, pictures, work, older)
    for part in (parts.vae, parts.unet, parts.text_encoder):
        base.rounded(part)  # scored as it is shipped
    measured = scores.measure(parts, held_out, count=count)
    wanted = {
        "vae": recipe.autoencoder.images,
        "decoder": recipe.autoencoder.polish,
        "denoiser": recipe.denoiser.images,
    }
    base.write(dest, parts, spent, {}, "")  # sampled as it is shipped
    measured = cast("Scores", {**measured, **objects_found(dest, held_out, count)})
    text = card.write(
        parts=parts,
        spent=spent,
        scores=measured,
        data=scenes.sentence(plan.scenes, len(pictures.captions)),
        wanted=wanted,
    )
    note = {
        "scenes": plan.scenes.model_dump(),
        "recipe": dataclasses.asdict(recipe),
        "scores": measured,
        "machine": card.machine(),
    }
    base.write(dest, parts, spent, note, text)
    return measured


def objects_found(folder: Path, held_out: Any, count: int) -> dict[str, list[float] | int]:
    """How much of what captions name the mini detector finds in samples of the base, and in the scenes
    themselves; nothing without a detector.
    """
    from annotate.mini import detect
    from annotate.mini.scores import interval, recall_hits
    from train.mini import scores

    try:
        net = detect.load()
    except (OSError, ValueError, RuntimeError):
        return {}
    captions = [held_out.caption(i) for i in range(min(count, len(held_out.captions)))]
    shares: dict[str, list[float] | int] = {}
    for name, images in (
        ("objects_found", scores.draw(folder, captions)),
        ("objects_found_in_scenes", held_out.images(range(len(captions)))),
    ):
        wanted = [net.vocabulary.wanted(caption) for caption in captions]
        readings = detect.read(net, list(images))
        hits = [
            hit
            for reading, things in zip(readings, wanted, strict=True)
            for hit in recall_hits(reading, things)
        ]
        shares[name] = interval(hits) or [0.0, 0.0]
    return shares | {"samples": len(captions)}


def draw_grid(manifest: Path, work: Path, folder: Path, path: Path) -> None:
    """Held-out scenes, their reconstructions, and samples of held-out captions, as one PNG."""
    from train.mini import grid

    grid.write(path, folder, scenes.render(load(manifest).scenes, work)[1])


def load(path: Path) -> MiniBase:
    return yaml_errors.read(path, MiniBase)


def recipe_of(plan: MiniBase) -> Any:  # train.mini.make.BaseRecipe
    from train.mini.make import BaseRecipe

    return manifests.recipe(plan, BaseRecipe)
