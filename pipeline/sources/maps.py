"""Maps that came with images: where they lie, and what they look like from outside."""

import os
import re
from collections import Counter
from functools import cached_property
from typing import Any

from pipeline.manifest import Provided
from pipeline.sources.columns import stamp_of_value
from pipeline.sources.files import ABSENT, stamp_or_absent
from pipeline.sources.names import PICTURES, split
from pipeline.sources.raw import Columns, ProvidedJson


class MapPlaces:
    """What `provided` of a folder or a list says of its images' maps."""

    def __init__(self, root: str, provided: dict[str, Provided]) -> None:
        self.root = root
        self.provided: dict[str, ProvidedJson] = {
            name: given.model_dump() for name, given in provided.items()
        }
        self.templates: dict[str, list[MapTemplate]] = {}  # condition -> of the map and its mask
        self.cells: dict[str, list[str]] = {}  # the same where columns hold them
        for name, given in provided.items():
            if given.path:
                self.templates[name] = [MapTemplate(root, each) for each in (given.path, given.mask) if each]
            else:
                self.cells[name] = [each for each in (given.column, given.mask) if each]
        self.columns = {name for names in self.cells.values() for name in names}
        self.named: set[str] = set()  # maps of images, where a template alone does not tell
        self.found: Counter[str] = Counter()  # files of each template that were met
        self.taken: Counter[str] = Counter()  # files of each template that belong to an image
        self._shared: dict[str, str] = {}  # stamps of maps that all images share

    def lead_to(self, path: str) -> bool:
        """Whether a file below the root is a map of some image, be that image there or not; `path` is
        relative.
        """
        for pair in self.templates.values():
            for template in pair:
                if template.leads_to(path):
                    self.found[template.template] += 1
                    return True
        return False

    def orphans(self) -> int:
        """How many files that were met belong to no image."""
        shares = Counter(template.template for pair in self.templates.values() for template in pair)
        return sum(
            max(0, count - self.taken[name] // shares[name])
            for name, count in self.found.items()
            if "{" in name
        )

    def stamps(self, folder: str, name: str, cells: Columns) -> dict[str, str]:
        """By condition, of the map and its mask of an image: `folder` is the image's below the root, "." for
        the root.
        """
        stamps = {
            condition: " ".join(self._of_template(template, folder, name) for template in pair)
            for condition, pair in self.templates.items()
        }
        for condition, columns in self.cells.items():
            stamps[condition] = " ".join(self._of_cell(cells.get(column)) for column in columns)
        return stamps

    def _of_template(self, template: "MapTemplate", folder: str, name: str) -> str:
        path = template.beside(folder, name)
        if template.expression is None and path.startswith(f"{self.root}/"):
            image = os.path.normpath(f"{self.root}/{folder}/{name}")
            self.named |= {path} - {image}
        if not template.fixed:
            stamp = stamp_or_absent(path)
            self.taken[template.template] += stamp != ABSENT
            return stamp
        if path not in self._shared:
            self._shared[path] = stamp_or_absent(path)
        return self._shared[path]

    def _of_cell(self, cell: Any) -> str:
        """Of the file that a cell names, or a hash of the numbers in it."""
        if cell is None:
            return ABSENT
        if is_path(cell):
            return stamp_or_absent(os.path.join(self.root, cell))  # noqa: PTH118 - for each of many rows
        return stamp_of_value(cell)


def is_path(cell: Any) -> bool:
    """Whether a cell names a file: it is text, and no JSON."""
    return isinstance(cell, str) and cell.lstrip()[:1] not in ("[", "{")


class MapTemplate:
    """A `provided` path or mask, {folder}/{stem}.png: where the map of each image below a folder lies."""

    def __init__(self, root: str, template: str) -> None:
        self.root, self.template = root, template
        self.fixed = "{" not in template  # one file for the whole set
        # neither absolute nor with parts that a path has to be resolved for
        self.is_tidy = all(part.strip(".") for part in template.split("/"))

    def beside(self, folder: str, name: str) -> str:
        """The file that belongs to an image; `folder` is the image's below the root, "." for the root."""
        inner = self.template.format(folder=folder, stem=split(name)[0], name=name)
        if self.is_tidy and folder != ".":
            return f"{self.root}/{inner}"
        return os.path.normpath(os.path.join(self.root, inner))  # noqa: PTH118 - for each of many images

    def leads_to(self, path: str) -> bool:
        """Whether a file below the root is a map of some image, be that image there or not; `path` is
        relative.
        """
        return self.expression is not None and self.expression.fullmatch(path) is not None

    @cached_property
    def expression(self) -> re.Pattern[str] | None:
        """None where only the images can tell: the template leads upwards, or could name any picture."""
        template = self.template.removeprefix("./")
        name, kind = split(template.removeprefix("{folder}/"))
        if ".." in template.split("/") or (name in ("{name}", "{stem}") and (not kind or kind in PICTURES)):
            return None
        pieces = re.split(r"(\{folder\}/|\{[^}]*\})", template)
        return re.compile("".join(map(_piece, pieces)), re.DOTALL)


def _piece(piece: str) -> str:
    """A part of a template, text or {field}, as a regular expression."""
    if not piece.startswith("{"):
        return re.escape(piece)
    if piece.startswith("{folder"):
        return "(?:.*/)?" if piece == "{folder}/" else ".*"
    return "[^/]+"
