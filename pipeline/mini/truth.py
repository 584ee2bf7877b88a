"""The rendered scenes that the mini detector learns from, with their truth, as arrays on disk."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotate.mini.vocabulary import PERSON, Vocabulary, Wanted
from pipeline import MillError, scenes
from pipeline.manifest.places import Place
from pipeline.mini.scenes import MiniScenes, parts_of
from pipeline.scenes.props import CLASSES, COLOURS, FLOORS, WALLS
from pipeline.scenes.raster import FLOOR, WALL
from pipeline.storage.workspace import TEMPORARY, sha256_file

if TYPE_CHECKING:
    from annotate.mini.losses import Truth

NONE = "none"
FIELDS = ("images", "depth", "normals", "classes", "colours", "joints")  # of annotate.mini.losses.Truth


def vocabulary() -> Vocabulary:
    """Every floor, wall and shape is a class; COCO-Stuff and ADE20K call some of them the same."""
    rows = [(f"{name} floor", floor.coco, floor.ade) for name, floor in FLOORS.items()]
    rows += [(f"{name} wall", wall.coco, wall.ade) for name, wall in WALLS.items()]
    rows += [(name, *both) for name, both in CLASSES.items()]
    return Vocabulary(tuple(rows), (NONE, *COLOURS), tuple(name for name in CLASSES if name != PERSON))


@dataclass(frozen=True)
class SceneTruths:
    """Rendered scenes with their truth, as memory maps of parts put one after the other."""

    arrays: dict[str, list[np.ndarray]]  # by FIELDS
    wanted: list[Wanted]
    returned_parts: list[np.ndarray] | None  # the pictures after a VAE

    def __len__(self) -> int:
        return len(self.wanted)

    @property
    def returned(self) -> np.ndarray | None:
        return None if self.returned_parts is None else np.concatenate(self.returned_parts)

    def with_person(self) -> list[int]:
        """The scenes with somebody in sight."""
        person = vocabulary().number(PERSON)
        parts = [(part == person).any(axis=(1, 2)) for part in self.arrays["classes"]]
        return np.flatnonzero(np.concatenate(parts)).tolist()

    def truth(self, rows: list[int], *, returned: np.ndarray | None = None) -> "Truth":
        """Copies; where `returned` says so, the picture is the one that has been through the VAE."""
        from annotate.mini.losses import Truth

        arrays = {name: np.stack([_row(self.arrays[name], row) for row in rows]) for name in FIELDS}
        if returned is not None and self.returned_parts is not None:
            for i in np.flatnonzero(returned):
                arrays["images"][i] = _row(self.returned_parts, rows[i])
        return Truth(**arrays)


def _row(parts: list[np.ndarray], row: int) -> np.ndarray:
    for part in parts:
        if row < len(part):
            return np.asarray(part[row])
        row -= len(part)
    raise IndexError(row)


@dataclass(frozen=True)
class Vae:
    network: Any
    key: str  # identity of all its weights: pictures depend on the decoder too

    @classmethod
    def load(cls, base: Path, where: Place) -> "Vae":
        """Of a base's folder; `where` the manifest names it. MillError where that folder holds no VAE."""
        from train.mini import base as bases

        path = base / "vae" / bases.VAE_FILE
        if not path.is_file():
            raise MillError(
                f"{where}: there is no {path}: make one with `controlmill mini base`, or leave the key out."
            )
        return cls(bases.load_vae(base), sha256_file(path)[:16])


def render(plan: MiniScenes, work: Path, vae: Vae | None) -> tuple[SceneTruths, SceneTruths]:
    """Of training and held out; each part once, pictures through the VAE beside them, for each VAE."""
    training, held_out = (_render(plan, work / "truth" / plan.key, *each, vae) for each in plan.splits)
    return training, held_out


def _render(plan: MiniScenes, folder: Path, seed: int, count: int, vae: Vae | None) -> SceneTruths:
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
    wanted: list[Wanted] = []
    returned: list[np.ndarray] = []
    for name, indices in parts_of(count):
        stem = folder / f"{seed}-{count}" / name
        if not stem.with_suffix(".json").is_file():
            _write(stem, plan, seed, indices)
        for field in FIELDS:
            arrays[field].append(np.load(f"{stem}-{field}.npy", mmap_mode="r"))
        for row in json.loads(stem.with_suffix(".json").read_text()):
            wanted.append(Wanted(tuple((shape, colour) for shape, colour in row["objects"]), row["person"]))
        if vae is not None:
            returned.append(_returned(stem, arrays["images"][-1], vae))
    return SceneTruths(arrays, wanted, returned or None)


def _write(stem: Path, plan: MiniScenes, seed: int, indices: range) -> None:
    """The list of what is wanted last: where it is, the part is whole."""
    truths = list(_truths(plan, seed, indices))
    stem.parent.mkdir(parents=True, exist_ok=True)
    for name in FIELDS:
        np.save(f"{stem}-{name}.npy", np.stack([arrays[name] for arrays, _ in truths]))
    temporary = stem.with_name(f"{TEMPORARY}{stem.name}-{os.getpid()}")
    temporary.write_text(json.dumps([wanted._asdict() for _, wanted in truths]))
    temporary.rename(stem.with_suffix(".json"))


def _truths(plan: MiniScenes, seed: int, indices: range) -> Iterator[tuple[dict[str, np.ndarray], Wanted]]:
    """FIELDS of each scene that is simple enough, and what a caption may name of it."""
    known = vocabulary()
    names = [name for name, *_ in known.classes]
    for index in indices:
        scene = scenes.render(seed, index, plan.resolution)
        if not plan.limits.hold(scene.graph):
            continue
        room = scenes.draw_plan(seed, index)
        classes, colours = np.zeros(256, np.uint8), np.zeros(256, np.uint8)  # of each instance
        classes[FLOOR] = names.index(f"{room.floor[0]} floor")
        classes[WALL] = names.index(f"{room.wall[0]} wall")
        for one in scene.graph.objects:
            classes[one.instance] = names.index(one.shape)
            colours[one.instance] = known.colours.index(one.colour)
        if scene.graph.person:
            classes[scene.graph.person.instance] = names.index(PERSON)
        people = scene.maps["pose_openpose"].array
        arrays = {
            "images": scene.image,
            "depth": scene.maps["depth_large"].array.astype(np.float16),
            "normals": (scene.maps["normal"].array * 127).round().astype(np.int8),
            "classes": classes[scene.instances],
            "colours": colours[scene.instances],
            "joints": people[0] if len(people) else np.zeros((18, 3), np.float32),
        }
        objects = tuple((one.shape, one.colour) for one in scene.graph.objects)
        yield arrays, Wanted(objects, scene.graph.person is not None)


def _returned(stem: Path, images: np.ndarray, vae: Vae) -> np.ndarray:
    import torch

    from train.mini import autoencoder

    path = stem.with_name(f"{stem.name}-returned-{vae.key}.npy")
    if not path.is_file():
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}.npy")
        with torch.autocast("cpu", torch.bfloat16):
            pictures = autoencoder.reconstruct(vae.network, np.array(images))
        np.save(temporary, pictures)
        temporary.rename(path)
    return np.load(path, mmap_mode="r")
