"""What stands in a rendered scene: floors, walls and objects; and what they are called."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.scenes.bodies import SOLIDS, Part

RGB = tuple[float, float, float]
Choice = TypeVar("Choice")


class Surface(NamedTuple):
    """A floor or wall: its names and its pattern."""

    looks: dict[str, tuple[RGB, RGB]]  # words of the caption -> colour, second colour
    coco: str  # class of COCO-Stuff
    ade: str  # class of ADE20K
    cell: tuple[float, float] = (0, 0)  # period of the pattern in metres, along and across; 0 = none
    shift: float = 0  # share of a cell by which every second row is moved; -1: each row by its own
    seam: float = 0  # width in metres, drawn in the second colour
    chequered: bool = False  # cells in both colours by turns, seams grey
    tones: float = 0  # spread of brightness from cell to cell
    grain: tuple[float, float, float] = (0.04, 0.1, 0.1)  # strength of the noise, and its period in metres


WHITE, DARK = (0.93, 0.92, 0.9), (0.16, 0.15, 0.15)
FLOORS = {
    "wood": Surface(
        {"light wooden floor": ((0.80, 0.62, 0.40), (0.42, 0.28, 0.15)),
        "dark wooden floor": ((0.50, 0.31, 0.19), (0.22, 0.12, 0.07))},
        "floor-wood", "floor", (1.7, 0.3), -1, 0.022, tones=0.35, grain=(0.07, 0.5, 0.03),
    ),
    "tiles": Surface(
        {
            "black and white tiled floor": ((0.92, 0.91, 0.89), (0.2, 0.2, 0.22)),
            "blue and white tiled floor": ((0.90, 0.92, 0.94), (0.40, 0.55, 0.74)),
            "brown and white tiled floor": ((0.92, 0.88, 0.80), (0.62, 0.42, 0.30)),
        },
        "floor-tile", "floor", (0.55, 0.55), seam=0.016, chequered=True, grain=(0.02, 0.2, 0.2),
    ),
    "stone": Surface({"grey stone floor": ((0.62, 0.61, 0.58), (0.33, 0.32, 0.3))}, "floor-stone", "floor",
    (0.95, 0.6), -1, 0.035,
                     tones=0.3, grain=(0.09, 0.07, 0.07)),
    "carpet": Surface(
        {"green carpet": ((0.38, 0.56, 0.42), DARK), "red carpet": ((0.62, 0.26, 0.28), DARK),
        "blue carpet": ((0.33, 0.42, 0.62), DARK)},
        "carpet", "rug", grain=(0.2, 0.035, 0.035),
    ),
    "plain": Surface({"plain grey floor": ((0.68, 0.68, 0.67), DARK),
    "plain white floor": ((0.86, 0.85, 0.83), DARK)},
                     "floor-other", "floor"),
}  # fmt: skip
WALLS = {
    "brick": Surface(
        {"red brick wall": ((0.70, 0.36, 0.27), (0.84, 0.79, 0.72)),
        "white brick wall": ((0.88, 0.87, 0.84), (0.62, 0.60, 0.57))},
        "wall-brick", "wall", (0.55, 0.24), 0.5, 0.035, tones=0.25, grain=(0.06, 0.05, 0.05),
    ),
    "tiles": Surface(
        {"white tiled wall": ((0.90, 0.92, 0.92), (0.55, 0.60, 0.62)),
        "turquoise tiled wall": ((0.55, 0.80, 0.80), (0.90, 0.93, 0.93))},
        "wall-tile", "wall", (0.4, 0.4), seam=0.026, tones=0.08, grain=(0.01, 0.2, 0.2),
    ),
    "panels": Surface({"wooden panel wall": ((0.70, 0.50, 0.32), (0.33, 0.21, 0.12))}, "wall-panel", "wall",
    (0.42, 0), 0, 0.03, tones=0.2,
                      grain=(0.06, 0.03, 0.6)),
    "concrete": Surface({"concrete wall": ((0.66, 0.67, 0.68), (0.40, 0.41, 0.42))}, "wall-concrete", "wall",
    (1.5, 0.9), 0, 0.025,
                        tones=0.12, grain=(0.07, 0.12, 0.12)),
    "striped": Surface(
        {"pink striped wall": ((0.90, 0.68, 0.70), WHITE), "blue striped wall": ((0.62, 0.72, 0.88), WHITE)},
        "wall-other", "wall", (0.3, 0), chequered=True, grain=(0.01, 0.2, 0.2),
    ),
    "plain": Surface(
        {"plain yellow wall": ((0.93, 0.86, 0.60), DARK), "plain blue wall": ((0.62, 0.75, 0.88), DARK),
         "plain green wall": ((0.66, 0.80, 0.64), DARK), "plain white wall": ((0.90, 0.89, 0.87), DARK)},
        "wall-other", "wall", grain=(0.015, 0.2, 0.2),
    ),
}  # fmt: skip
# what the shapes are called in COCO-Stuff and in ADE20K: they are toys, so what has no name of its own is
# plastic there, a plaything here
CLASSES = {
    "person": ("person", "person"),
    "sphere": ("sports ball", "ball"),
    "box": ("cardboard", "box"),
    "cylinder": ("plastic", "column"),
    "cone": ("plastic", "plaything"),
    "pyramid": ("plastic", "plaything"),
}
COLOURS: dict[str, RGB] = {
    "red": (0.86, 0.12, 0.11), "orange": (0.98, 0.50, 0.06), "yellow": (0.98, 0.85, 0.10),
    "green": (0.10, 0.60, 0.20),
    "blue": (0.10, 0.27, 0.85), "purple": (0.52, 0.18, 0.68), "white": (0.96, 0.96, 0.96),
    "black": (0.11, 0.11, 0.12),
}  # fmt: skip
PATTERNED = ("striped", "checked")
MATERIALS = ("matte", "glossy", *PATTERNED)


@dataclass(frozen=True)
class Thing:
    """An object on the floor: half extents and yaw in its own space, where it stands."""

    shape: str
    colour: str
    material: str
    half: tuple[float, float, float]
    turn: float
    at: tuple[float, float]  # world x, z

    def parts(self) -> list[Part]:
        """Its body; second colours are black on yellow and orange, white on the rest."""
        form, spread = {
            "sphere": ("ball", ()),
            "cylinder": ("frustum", (1.0, 1.0)),
            "cone": ("frustum", (1.0, 0.0)),
        }.get(self.shape, (self.shape, ()))
        second = DARK if self.colour in ("yellow", "orange") else (0.96, 0.96, 0.94)
        pattern = self.material if self.material in PATTERNED else "plain"
        gloss = {"matte": 0.0, "glossy": 1.0}.get(self.material, 0.25)
        place = np.array([self.at[0], self.half[1], self.at[1]])
        return [
            Part(
                form,
                yaw(self.turn) * self.half,
                place,
                self.shape,
                spread,
                (pattern, COLOURS[self.colour], second, gloss),
            )
        ]


def draw_thing(rng: np.random.Generator, colour: str, at: tuple[float, float], turn: float) -> Thing:
    """A random object of 0.4 to 0.9 metres; `turn` is the yaw that turns its edge to the camera."""
    shape = pick(rng, [name for name in CLASSES if name != "person"])
    width, ratio = span(rng, 0.25, 0.38), span(rng, 0.75, 1.25)
    half = {
        "sphere": (width, width, width),
        "box": (width, width * ratio, width * span(rng, 0.8, 1.2)),
        "cylinder": (0.85 * width, width * (0.3 + ratio), 0.85 * width),
        "cone": (width, width * (0.3 + ratio), width),
        "pyramid": (width, width * (0.1 + ratio), width),
    }[shape]
    # a flat face shows no gloss
    materials = [name for name in MATERIALS if name != "glossy" or shape not in SOLIDS]
    if colour == "white":  # with a pattern it would pass for the pattern's colour
        materials = [name for name in materials if name not in PATTERNED]
    return Thing(shape, colour, pick(rng, materials), half, turn + math.radians(span(rng, 22, 68)), at)


def yaw(angle: float) -> np.ndarray:
    """Turns +z towards +x."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def span(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number."""
    return low + (high - low) * float(rng.random())


def pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    """One of a sequence."""
    return choices[int(rng.random() * len(choices))]
