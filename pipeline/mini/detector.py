"""Makes the mini detector from rendered scenes: renders them with their truth, trains, measures, and writes
what is shipped.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from annotate.mini.words import PERSON, Wanted, Words
from pipeline import MillError, scenes
from pipeline.manifest import NAME, Section, yaml_errors
from pipeline.mini import manifests
from pipeline.mini.scenes import PART, MiniScenes
from pipeline.scenes.props import CLASSES, COLOURS, FLOORS, WALLS
from pipeline.scenes.raster import FLOOR, WALL

NONE = "none"
FIELDS = ("images", "depth", "normals", "classes", "colours", "joints")


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


class MiniDetector(Section):
    """manifests/mini/detector.yaml."""

    name: Annotated[str, Field(pattern=NAME)]
    scenes: MiniScenes
    base: str | None = None  # a folder with a VAE, whose reconstructions are learned from too
    recipe: Annotated[dict[str, Any], Field(default_factory=dict)]


def load(path: Path) -> MiniDetector:
    return yaml_errors.read(path, MiniDetector)


def recipe_of(plan: MiniDetector) -> DetectorRecipe:
    return manifests.recipe(plan, DetectorRecipe)


def words() -> Words:
    """Every floor, wall and shape is a class; COCO-Stuff and ADE20K call some of them the same."""
    rows = [(f"{name} floor", it.coco, it.ade) for name, it in FLOORS.items()]
    rows += [(f"{name} wall", it.coco, it.ade) for name, it in WALLS.items()]
    rows += [(name, *both) for name, both in CLASSES.items()]
    return Words(tuple(rows), (NONE, *COLOURS), tuple(name for name in CLASSES if name != PERSON))


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
    import time

    import torch

    from annotate.mini import losses, scores
    from annotate.mini.network import Detector, Figure
    from train.batches import draws
    from train.mini import learning

    until = time.monotonic() + seconds
    plan = load(manifest)
    recipe = recipe_of(plan)
    training, held_out = render(plan, work)
    with_figure, person = training.figures(), words().number(PERSON)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net, figure = Detector(words(), recipe.widths).to(device), Figure(recipe.widths).to(device)

    def batch(part: str, rows: list[int], seen: int) -> tuple[Any, np.random.Generator]:
        """Of losses.Truth: some of the pictures through the VAE, half of them mirrored, all of
        them spoiled.
        """
        rng = draws(recipe.seed, part, seen)
        places = [rows[learning.place(len(rows), recipe.seed, seen + i)] for i in range(recipe.batch)]
        truth = training.truth(places, returned=rng.random(recipe.batch) < recipe.returned)
        truth = losses.mirrored(truth, rng.random(recipe.batch) < 0.5)
        return losses.replace_images(truth, losses.spoiled(truth.images, rng)), rng

    def loss_at(net: Any, seen: int) -> Any:
        return losses.loss(
            net, batch("detector", list(range(len(training))), seen)[0], device, bf16=recipe.bf16
        )

    def figure_loss_at(net: Any, seen: int) -> Any:
        truth, rng = batch("figure", with_figure, seen)
        return losses.figure_loss(net, losses.figures_of(truth, person, rng), device, bf16=recipe.bf16)

    def measure(mean: Any) -> dict[str, float]:
        rows = list(range(min(64, len(held_out))))
        told = scores.measure(mean, held_out.truth(rows), [held_out.wanted[row] for row in rows])
        return {
            name: value[0] if isinstance(value, list) else value
            for name, value in told.items()
            if value is not None
        }

    def measure_joints(mean: Any) -> dict[str, float]:
        found = scores.figure_hits(mean, held_out.truth(held_out.figures()[:64]), person)
        return {"pck_0.1": float(np.mean(found))} if found else {}

    def learn(part: str, net: Any, images: int, loss_at: Any, measure: Any) -> tuple[Any, Any, bool]:
        loop = learning.Loop(
            part=part,
            images=images,
            batch=recipe.batch,
            half_life=min(recipe.half_life, images / 8),
            measure_every=16_000,
        )
        groups = [{"params": list(net.parameters()), "lr": 1.0}]

        def rate(seen: int) -> float:
            return recipe.lr * 0.5 * (1 + math.cos(math.pi * min(seen / images, 1)))

        return learning.learn(
            net, groups, loss_at, rate, measure, loop, work / part, spent=learning.Spent(), until=until
        )

    if not learn("detector", net, recipe.images, loss_at, measure)[2]:
        return False
    return not with_figure or learn("figure", figure, recipe.figures, figure_loss_at, measure_joints)[2]


def export_detector(manifest: Path, work: Path, dest: Path) -> dict[str, Any]:  # its scores
    """Writes the detector as it is now, with its card; scored as it is shipped, on scenes and on a VAE's
    pictures of them.
    """
    from annotate.mini import card, network, scores
    from annotate.mini.detect import WEIGHTS
    from train.mini import learning
    from train.mini.card import machine

    plan = load(manifest)
    recipe = recipe_of(plan)
    net = network.Detector(words(), recipe.widths)
    spent = learning.spent_of(work / "detector")
    if spent is None or not learning.average_of(work / "detector", net):
        raise manifests.not_begun(work)
    if spent_on_figures := learning.spent_of(work / "figure"):
        net.figure = network.Figure(recipe.widths)
        learning.average_of(work / "figure", net.figure)
    training, held_out = render(plan, work)
    path = dest / WEIGHTS.name
    network.save(net, path)
    net = network.load(path)
    truth = held_out.truth(list(range(len(held_out))))
    found = {"scenes": scores.measure(net, truth, held_out.wanted)}
    if held_out.returned is not None:
        found["after the VAE"] = scores.measure(net, truth, held_out.wanted, held_out.returned)
    facts: dict[str, Any] = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "scores": found,
        "spent": vars(spent),
        "spent_on_figures": vars(spent_on_figures or learning.Spent()),
        "machine": machine(),
    }
    made_from = {**plan.model_dump(exclude={"base", "recipe"}), "recipe": dataclasses.asdict(recipe)}
    path.with_suffix(".json").write_text(json.dumps({**facts, "made_from": made_from}, indent=1) + "\n")
    returned = recipe.returned if plan.base else None
    data = (
        f"{len(training):,} rendered scenes (seed {plan.scenes.seed},"
        f" {plan.scenes.resolution}x{plan.scenes.resolution}) with at most "
    )
    data += (
        f"{plan.scenes.most_objects} objects, and their mirror images; held out: seed"
        f" {plan.scenes.held_out.seed}."
    )
    (dest / "README.md").write_text(
        card.write(
            card.Trained(**facts), wanted=(recipe.images, recipe.figures), data=data, returned=returned
        )
    )
    return found


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes with their truth, as memory maps of parts put one after the other."""

    arrays: dict[str, list[np.ndarray]]
    wanted: list[Wanted]
    returned_parts: list[np.ndarray] | None

    def __len__(self) -> int:
        return len(self.wanted)

    @property
    def returned(self) -> np.ndarray | None:
        return None if self.returned_parts is None else np.concatenate(self.returned_parts)

    def figures(self) -> list[int]:
        """The scenes with somebody in sight."""
        person = words().number(PERSON)
        parts = [(part == person).any(axis=(1, 2)) for part in self.arrays["classes"]]
        return np.flatnonzero(np.concatenate(parts)).tolist()

    # annotate.mini.losses.Truth
    def truth(self, rows: list[int], *, returned: np.ndarray | None = None) -> Any:
        """Copies; where `returned` says so, the picture is the one that has been through the VAE."""
        from annotate.mini.losses import Truth

        def take(parts: list[np.ndarray], row: int) -> np.ndarray:
            for part in parts:
                if row < len(part):
                    return np.asarray(part[row])
                row -= len(part)
            raise IndexError(row)

        found = {name: np.stack([take(self.arrays[name], row) for row in rows]) for name in FIELDS}
        if returned is not None and self.returned_parts is not None:
            for i in np.flatnonzero(returned):
                found["images"][i] = take(self.returned_parts, rows[i])
        return Truth(**found)


def render(plan: MiniDetector, work: Path) -> tuple[Scenes, Scenes]:  # of training and held out
    """Each part once; pictures through the VAE beside them, for each VAE."""
    facts = {"version": scenes.VERSION, **plan.scenes.model_dump(exclude={"count", "held_out", "seed"})}
    folder = work / "truth" / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    vae = _vae(plan) if plan.base else None
    out = []
    for seed, count in (
        (plan.scenes.seed, plan.scenes.count),
        (plan.scenes.held_out.seed, plan.scenes.held_out.count),
    ):
        arrays: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
        wanted: list[Wanted] = []
        returned: list[np.ndarray] = []
        for first in range(0, count, PART):
            stem = folder / f"{seed}-{count}" / f"{first:08d}"
            if not stem.with_suffix(".json").is_file():
                _write(stem, plan.scenes, seed, range(first, min(first + PART, count)))
            for name in FIELDS:
                arrays[name].append(np.load(f"{stem}-{name}.npy", mmap_mode="r"))
            rows = json.loads(stem.with_suffix(".json").read_text())
            wanted += [
                Wanted(tuple((shape, colour) for shape, colour in row["objects"]), row["person"])
                for row in rows
            ]
            if vae is not None:
                returned.append(_returned(stem, arrays["images"][-1], vae))
        out.append(Scenes(arrays, wanted, returned or None))
    return out[0], out[1]


def _write(stem: Path, plan: MiniScenes, seed: int, indices: range) -> None:
    """The list of what is wanted last: where it is, the part is whole."""
    rows = list(_truths(plan, seed, indices))
    stem.parent.mkdir(parents=True, exist_ok=True)
    for name in FIELDS:
        np.save(f"{stem}-{name}.npy", np.stack([row[name] for row in rows]))
    work = stem.with_name(f".tmp-{stem.name}-{os.getpid()}")
    work.write_text(json.dumps([row["wanted"] for row in rows]))
    work.rename(stem.with_suffix(".json"))


def _truths(plan: MiniScenes, seed: int, indices: range) -> Iterator[dict[str, Any]]:
    meaning = words()
    names = [name for name, *_ in meaning.classes]
    for index in indices:
        scene = scenes.render(seed, index, plan.resolution)
        if not plan.limits.hold(scene.facts):
            continue
        drawn = scenes.draw_plan(seed, index)
        table, colours = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
        table[FLOOR], table[WALL] = (
            names.index(f"{drawn.floor[0]} floor"),
            names.index(f"{drawn.wall[0]} wall"),
        )
        for one in scene.facts["objects"]:
            table[one["instance"]] = names.index(one["shape"])
            colours[one["instance"]] = meaning.colours.index(one["colour"])
        if scene.facts["figure"]:
            table[scene.facts["figure"]["instance"]] = names.index(PERSON)
        people = scene.maps["pose_openpose"].array
        yield {
            "images": scene.image,
            "depth": scene.maps["depth_large"].array.astype(np.float16),
            "normals": (scene.maps["normal"].array * 127).round().astype(np.int8),
            "classes": table[scene.instances],
            "colours": colours[scene.instances],
            "joints": people[0] if len(people) else np.zeros((18, 3), np.float32),
            "wanted": {
                "objects": [[one["shape"], one["colour"]] for one in scene.facts["objects"]],
                "person": scene.facts["figure"] is not None,
            },
        }


def _vae(plan: MiniDetector) -> tuple[Any, str]:
    """And the identity of all its weights: pictures depend on the decoder too."""
    from train.mini import base as bases

    path = Path(str(plan.base)) / "vae" / bases.VAE_FILE
    if not path.is_file():
        raise MillError(
            f"{plan.at('base')}: there is no {path}: make one with `controlmill mini base`, or leave the key"
            " out."
        )
    return bases.load_vae(path.parent.parent), hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _returned(stem: Path, images: np.ndarray, vae: tuple[Any, str]) -> np.ndarray:
    import torch

    from train.mini import autoencoder

    path = stem.with_name(f"{stem.name}-returned-{vae[1]}.npy")
    if not path.is_file():
        work = path.with_name(f".tmp-{os.getpid()}.npy")
        with torch.autocast("cpu", torch.bfloat16):
            made = autoencoder.reconstruct(vae[0], np.array(images))
        np.save(work, made)
        work.rename(path)
    return np.load(path, mmap_mode="r")
