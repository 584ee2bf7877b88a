"""Makes the mini scorer from rendered scenes: renders what is missing, trains, measures, and writes what is
shipped.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from pipeline.manifest import NAME, Section, yaml_errors
from pipeline.mini import manifests, scenes, training
from pipeline.mini.manifests import RecipeKeys
from pipeline.mini.scenes import MiniScenes
from pipeline.mini.training import Schedule
from pipeline.scenes.bodies import SOLIDS
from pipeline.scenes.description import PLACES
from pipeline.scenes.props import CLASSES, COLOURS, MATERIALS, PATTERNED

PART = "scorer"  # in the log and in the work folder
WATCHED = 256  # held-out scenes that it is measured on as it trains
SHAPES = tuple(name for name in CLASSES if name != "person")
CHANGES = ("another colour", "another shape", "another place", "two colours exchanged")
THING = re.compile(
    rf"\b(an?|the) ({'|'.join(COLOURS)})(?: ({'|'.join(MATERIALS)}))? ({'|'.join(SHAPES)})(?:"
    rf" ({'|'.join(PLACES)}))?"
)


class Look(NamedTuple):
    """What is said of an object but its colour, which no other object of its scene has."""

    material: str
    shape: str
    place: str


@dataclass(frozen=True, kw_only=True)
class ScorerRecipe:
    """Schedule; the sizes are those of evaluate/mini/network.py."""

    seed: int = 0
    images: int = 96_000
    batch: int = 64
    lr: float = 1.5e-3
    half_life: float = 4_000  # images, of the average
    bf16: bool = True

    def schedule(self) -> Schedule:
        return Schedule(
            part=PART,
            seed=self.seed,
            images=self.images,
            batch=self.batch,
            lr=self.lr,
            lr_end=0.02,
            half_life=self.half_life,
            log_every=1_600,
        )


class MiniScorer(Section):
    """manifests/mini/scorer.yaml."""

    name: Annotated[str, Field(pattern=NAME)]
    scenes: MiniScenes
    recipe: RecipeKeys  # of ScorerRecipe


def load(path: Path) -> MiniScorer:
    return yaml_errors.read(path, MiniScorer)


def recipe_of(plan: MiniScorer) -> ScorerRecipe:
    return manifests.recipe(plan, ScorerRecipe)


def make_scorer(
    manifest: Path,
    work: Path,  # scenes, state, log.jsonl
    *,
    seconds: float = float("inf"),
    device: str = "cpu",
) -> bool:  # whether the recipe's images have all been seen
    """Stops after `seconds` or at SIGTERM; the same call goes on."""
    import torch

    from annotate.mini.losses import degraded
    from evaluate.mini import losses, scores
    from evaluate.mini.clip import MiniClip

    until = time.monotonic() + seconds
    plan = load(manifest)
    recipe = recipe_of(plan)
    pictures, held_out = scenes.render(plan.scenes, work)
    net, schedule = _new(recipe, plan, pictures).to(device), recipe.schedule()

    def loss(net: Any, seen: int) -> Any:
        rng, rows = schedule.rng(seen), schedule.rows(len(pictures), seen)
        captions = [pictures.caption(row) for row in rows]
        false = [
            changed(caption, CHANGES[rng.integers(len(CHANGES))], rng) or changed(caption, CHANGES[0], rng)
            for caption in captions
        ]
        images = torch.from_numpy(degraded(pictures.images(rows), rng)).to(device)
        return losses.loss(net, images, captions, [str(text) for text in false], bf16=recipe.bf16)

    def measure(mean: Any) -> dict[str, float]:
        measured = scores.measure(MiniClip(mean, "", device), *_examination(held_out, WATCHED))
        return {name: one.value for name, one in measured.items()}

    return training.train(net, schedule, loss, measure, work, until)


def export_scorer(manifest: Path, work: Path, dest: Path) -> dict[str, dict[str, float]]:  # its scores
    """Writes the scorer as it is now, with its card; scored as it is shipped, on all held-out scenes."""
    from evaluate.mini import card, clip, scores
    from train.mini.card import machine

    plan = load(manifest)
    recipe = recipe_of(plan)
    pictures, held_out = scenes.render(plan.scenes, work)
    net = _new(recipe, plan, pictures)
    spent = training.load_average(net, work, PART)
    if spent is None:
        raise training.not_begun(work)
    note = {"spent": vars(spent), "machine": machine(), "made_from": plan.model_dump()}
    clip.write(net, dest, note)
    shipped = clip.read(dest)
    measured = scores.measure(shipped, *_examination(held_out, len(held_out.captions)))
    rounded = {
        name: {key: round(value, 4) for key, value in one._asdict().items()} for name, one in measured.items()
    }
    clip.write(shipped.net, dest, {**note, "scores": rounded})
    text = card.write(
        scorer=shipped,
        spent=vars(spent),
        scores=measured,
        data=scenes.sentence(plan.scenes, len(pictures.captions)),
        machine=machine(),
        wanted=recipe.images,
    )
    (dest / "README.md").write_text(text)
    return rounded


def changed(caption: str, kind: str, rng: np.random.Generator) -> str | None:
    """The caption with one thing changed wherever it is said, to what the renderer could draw too; None = it
    has nothing to change so. ValueError where the caption names an object and `kind` is none of CHANGES.
    """
    things = {
        colour: Look(material, shape, place)
        for _, colour, material, shape, place in THING.findall(caption.split(";")[0])
    }
    options: list[dict[str, tuple[str, Look]]] = []  # colour of an object => its new colour and look
    for colour, look in things.items():
        if kind == "another colour":
            options += [
                {colour: (one, look)} for one in COLOURS if one not in things and _possible(one, look)
            ]
        elif kind == "another shape":
            looks = [look._replace(shape=one) for one in SHAPES if one != look.shape]
            options += [{colour: (colour, one)} for one in looks if _possible(colour, one)]
        elif kind == "another place":
            options += [{colour: (colour, look._replace(place=one))} for one in PLACES if one != look.place]
        elif kind == "two colours exchanged":
            others = [(one, other) for one, other in things.items() if one > colour and other != look]
            options += [
                {colour: (one, look), one: (colour, other)}
                for one, other in others
                if _possible(one, look) and _possible(colour, other)
            ]
        else:
            raise ValueError(f"{kind} is no change, known ones are {', '.join(CHANGES)}")
    return _rewritten(caption, options[rng.integers(len(options))]) if options else None


def _rewritten(caption: str, changes: Mapping[str, tuple[str, Look]]) -> str:
    def changed_thing(match: re.Match[str]) -> str:
        article, before, material, _, place = match.groups()
        if before not in changes:
            return match[0]
        colour, look = changes[before]
        if article != "the":
            article = "an" if colour[0] in "aeiou" else "a"
        return " ".join(
            word for word in (article, colour, material, look.shape, place and look.place) if word
        )

    return THING.sub(changed_thing, caption)


def _possible(colour: str, look: Look) -> bool:
    """As pipeline/scenes/props.py draws them: no pattern on white, no gloss on flat faces."""
    return not (colour == "white" and look.material in PATTERNED) and not (
        look.material == "glossy" and look.shape in SOLIDS
    )


# pictures: train.mini.pictures.Pictures
def _new(recipe: ScorerRecipe, plan: MiniScorer, pictures: Any) -> Any:
    from evaluate.mini.network import Scorer, Sizes, words_of

    with training.seeded(recipe.seed):
        return Scorer(words_of(pictures.captions + pictures.mirrored), Sizes(side=plan.scenes.resolution))


def _examination(held_out: Any, count: int) -> tuple[np.ndarray, list[str], dict[str, list[str | None]]]:
    """Pictures, their captions, and each caption changed in each way; the same in every call."""
    rows = range(min(count, len(held_out.captions)))
    captions = [held_out.captions[row] for row in rows]
    false = {
        kind: [
            changed(caption, kind, np.random.default_rng([row, number]))
            for row, caption in zip(rows, captions, strict=True)
        ]
        for number, kind in enumerate(CHANGES)
    }
    return held_out.images(rows), captions, false
