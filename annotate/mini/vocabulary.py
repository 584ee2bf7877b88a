"""What the numbers of the mini detector's classes mean, and which of them a caption names."""

import json
import re
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotate.label_spaces import SPACES

PERSON = "person"


class Wanted(NamedTuple):
    """What should be seen in a scene."""

    objects: tuple[tuple[str, str], ...]  # shape, colour
    person: bool


@dataclass(frozen=True)
class Vocabulary:
    """Stored with the weights, since they know no others."""

    # own name (a floor, a wall, a shape, "person"), class of COCO-Stuff, class of ADE20K
    classes: tuple[tuple[str, str, str], ...]
    colours: tuple[str, ...]  # of objects; 0 = none
    shapes: tuple[str, ...]  # the classes that are objects

    def number(self, name: str) -> int:
        """Of a class by its own name."""
        return next(number for number, row in enumerate(self.classes) if row[0] == name)

    def ids(self, space: str) -> NDArray[np.uint8]:  # [classes]
        """Own class -> id of a label space of either data set."""
        names, column = SPACES[space].names, 2 if space.startswith("ade20k") else 1
        return np.array([names.index(row[column]) for row in self.classes], np.uint8)

    def wanted(self, caption: str) -> Wanted:
        """The objects and the person that a caption brings in; "the red cone" was named before."""
        thing = re.compile(rf"\ban? ({'|'.join(self.colours[1:])})(?: \w+)? ({'|'.join(self.shapes)})\b")
        pairs = tuple((shape, colour) for colour, shape in thing.findall(caption))
        return Wanted(pairs, re.search(rf"\ba {PERSON}\b", caption) is not None)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        stored = json.loads(text)
        classes = tuple(tuple(row) for row in stored["classes"])
        return cls(classes, tuple(stored["colours"]), tuple(stored["shapes"]))
