"""Makes the mini detector from rendered scenes: renders them with their truth, trains, measures, and writes
what is shipped.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from annotate.mini.vocabulary import PERSON
from pipeline.manifest import NAME, Section, yaml_errors
from pipeline.mini import manifests, training, truth
from pipeline.mini.manifests import RecipeKeys
from pipeline.mini.scenes import MiniScenes
from pipeline.mini.training import Schedule
from pipeline.mini.truth import SceneTruths, Vae, vocabulary
from pipeline.storage.workspace import sha256_file

if TYPE_CHECKING:
    from annotate.mini.losses import Truth
    from annotate.mini.scores import Scores

DENSE, JOINTS = "detector", "figure"  # its two networks, in the log and in the work folder
WATCHED = 64  # held-out scenes that each is measured on as it trains


@dataclass(frozen=True, kw_only=True)
class DetectorRecipe:
    """Sizes and schedule."""

    seed: int = 0
    widths: tuple[int, ...] = (32, 64, 96, 128)
    images: int = 48_000
    figures: int = 16_000  # that are cut out and seen by the network of their joints
    batch: int = 16
    lr: float = 2e-3
    returned: float = 0.4  # share of the pictures that have been through the base's VAE
    half_life: float = 4_000  # images, of the average
    bf16: bool = True

    def schedule(self, part: str, images: int) -> Schedule:
        half_life = min(self.half_life, images / 8)
        return Schedule(
            part=part, seed=self.seed, images=images, batch=self.batch, lr=self.lr, half_life=half_life
        )


class MiniDetector(Section):
    """manifests/mini/detector.yaml."""

    name: Annotated[str, Field(pattern=NAME)]
    scenes: MiniScenes
    base: str | None = None  # a folder with a VAE, whose reconstructions are learned from too
    recipe: RecipeKeys  # of DetectorRecipe


def load(path: Path) -> MiniDetector:
    return yaml_errors.read(path, MiniDetector)


def recipe_of(plan: MiniDetector) -> DetectorRecipe:
    return manifests.recipe(plan, DetectorRecipe)


def render(plan: MiniDetector, work: Path) -> tuple[SceneTruths, SceneTruths]:  # of training and held out
    vae = Vae.load(Path(plan.base), plan.at("base")) if plan.base else None
    return truth.render(plan.scenes, work, vae)


def make_detector(
    manifest: Path,
    work: Path,  # scenes, state, log.jsonl
    *,
    seconds: float = float("inf"),
    device: str = "cpu",
) -> bool:  # whether the recipe's images have all been seen
    """First what is everywhere, then the joints of figures.

    Stops after `seconds` or at SIGTERM; the same call goes on.
    """
    from annotate.mini.network import DetectorNetwork, JointNetwork

    until = time.monotonic() + seconds
    plan = load(manifest)
    recipe = recipe_of(plan)
    seen, held_out = render(plan, work)
    with training.seeded(recipe.seed):
        dense = DetectorNetwork(vocabulary(), recipe.widths).to(device)
        joints = JointNetwork(recipe.widths).to(device)
    session = _Session(recipe, seen, held_out, work, until, device)
    if not _train_dense(dense, session):
        return False
    return not seen.with_person() or _train_joints(joints, session)


@dataclass(frozen=True)
class _Session:
    """What both networks are trained with."""

    recipe: DetectorRecipe
    scenes: SceneTruths
    held_out: SceneTruths
    work: Path
    until: float
    device: str

    def batch(self, rows: list[int], schedule: Schedule, rng: np.random.Generator, seen: int) -> "Truth":
        """The next of `rows` after so many images: some of the pictures through the VAE, half of them
        mirrored, all of them degraded.
        """
        from annotate.mini import losses

        places = [rows[i] for i in schedule.rows(len(rows), seen)]
        batch = self.scenes.truth(places, returned=rng.random(len(places)) < self.recipe.returned)
        batch = losses.mirrored(batch, rng.random(len(places)) < 0.5)
        return dataclasses.replace(batch, images=losses.degraded(batch.images, rng))


def _train_dense(net: Any, session: _Session) -> bool:
    from annotate.mini import losses, scores

    recipe, held_out = session.recipe, session.held_out
    schedule, everything = recipe.schedule(DENSE, recipe.images), list(range(len(session.scenes)))

    def loss(net: Any, seen: int) -> Any:
        batch = session.batch(everything, schedule, schedule.rng(seen), seen)
        return losses.loss(net, batch, session.device, bf16=recipe.bf16)

    def measure(mean: Any) -> dict[str, float]:
        rows = list(range(min(WATCHED, len(held_out))))
        values = scores.measure(mean, held_out.truth(rows), [held_out.wanted[row] for row in rows])
        return {
            name: value[0] if isinstance(value, list) else value
            for name, value in values.items()
            if value is not None
        }

    return training.train(net, schedule, loss, measure, session.work, session.until)


def _train_joints(net: Any, session: _Session) -> bool:
    from annotate.mini import losses, scores

    recipe, held_out, person = session.recipe, session.held_out, vocabulary().number(PERSON)
    schedule, peopled = recipe.schedule(JOINTS, recipe.figures), session.scenes.with_person()

    def loss(net: Any, seen: int) -> Any:
        rng = schedule.rng(seen)
        figures = losses.figures_of(session.batch(peopled, schedule, rng, seen), person, rng)
        return losses.figure_loss(net, figures, session.device, bf16=recipe.bf16)

    def measure(mean: Any) -> dict[str, float]:
        hits = scores.figure_hits(mean, held_out.truth(held_out.with_person()[:WATCHED]), person)
        return {"pck_0.1": float(np.mean(hits))} if hits else {}

    return training.train(net, schedule, loss, measure, session.work, session.until)


def export_detector(manifest: Path, work: Path, dest: Path) -> "dict[str, Scores]":
    """Writes the detector as it is now, with its card; scored as it is shipped, on scenes and on a VAE's
    pictures of them.
    """
    from annotate.mini import card, network, scores
    from annotate.mini.detect import WEIGHTS
    from train.mini.card import machine
    from train.mini.learning import Spent

    plan = load(manifest)
    recipe = recipe_of(plan)
    net = network.DetectorNetwork(vocabulary(), recipe.widths)
    spent = training.load_average(net, work, DENSE)
    if spent is None:
        raise training.not_begun(work)
    joints = network.JointNetwork(recipe.widths)
    spent_on_figures = training.load_average(joints, work, JOINTS)
    if spent_on_figures:
        net.figure = joints
    seen, held_out = render(plan, work)
    path = dest / WEIGHTS.name
    network.save(net, path)
    net = network.load(path)
    whole = held_out.truth(list(range(len(held_out))))
    measured = {"scenes": scores.measure(net, whole, held_out.wanted)}
    if held_out.returned is not None:
        measured["after the VAE"] = scores.measure(net, whole, held_out.wanted, held_out.returned)
    note: dict[str, Any] = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "sha256": sha256_file(path),
        "scores": measured,
        "spent": vars(spent),
        "spent_on_figures": vars(spent_on_figures or Spent()),
        "machine": machine(),
    }
    made_from = {**plan.model_dump(exclude={"base", "recipe"}), "recipe": dataclasses.asdict(recipe)}
    path.with_suffix(".json").write_text(json.dumps({**note, "made_from": made_from}, indent=1) + "\n")
    side = plan.scenes.resolution
    data = (
        f"{len(seen):,} rendered scenes (seed {plan.scenes.seed}, {side}x{side}) with at most"
        f" {plan.scenes.most_objects} objects, and their mirror images; held out: seed"
        f" {plan.scenes.held_out.seed}."
    )
    returned = recipe.returned if plan.base else None
    text = card.write(
        card.Trained(**note), wanted=(recipe.images, recipe.figures), data=data, returned=returned
    )
    (dest / "README.md").write_text(text)
    return measured
