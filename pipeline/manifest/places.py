"""A YAML file within limits, and where its keys stand: what is wrong with a value can be told with file, line
and key.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline import MillError

MOST_BYTES = 256 * 1024
MOST_NODES = 20_000  # keys, values and sections, with every alias written out
DEEPEST = 40  # sections inside each other
NO_TEXT = re.compile("[\\0\ud800-\udfff]")  # YAML's escapes can spell them
NO_CHARACTER = "a character that no text has"


@dataclass(frozen=True)
class Place:
    """Where a section of a file stands.

    Sections that say the same are equal wherever they stand, so nothing here is compared.
    """

    file: str = field(default="", compare=False)  # '' = the section was not read from a file
    key: str = field(default="", compare=False)  # as train.runs[0]; '' = the whole file
    line: int = field(default=0, compare=False)
    # None = the file does not spell it
    node: yaml.Node | None = field(default=None, compare=False, repr=False)

    def at(self, *steps: str | int) -> "Place":
        """The place of a key below; one that the file does not spell stands on the line of the section that
        would hold it.
        """
        place = self
        for step in steps:
            marked, child = _found(place.node, step) or (None, None)
            if (
                isinstance(step, int)
                and isinstance(place.node, yaml.MappingNode | yaml.ScalarNode)
                and child is None
            ):
                continue  # a list of one, which the file spells without brackets
            named = isinstance(step, str) or isinstance(place.node, yaml.MappingNode)
            key = f"{place.key}.{step}".lstrip(".") if named else f"{place.key}[{step}]"
            place = Place(place.file, key, marked.start_mark.line + 1 if marked else place.line, child)
        return place

    @property
    def where(self) -> str:
        """File and line, for the beginning of a sentence that names the key itself."""
        return f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""

    def __str__(self) -> str:
        return f"{self.where}{self.key or 'the manifest'}"


def _found(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """What has the line of a key or an entry, and what it leads to; the last of equal keys, since merged ones
    (<<) come first.
    """
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in reversed(node.value) if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


class _NoText(ValueError):
    """A string that neither a path nor UTF-8 can hold."""


class _Loader(yaml.SafeLoader):
    """With the line of a value that Python can't make, such as the date 2024-13-45, !!bool maybe or a number
    of 5,000 digits.
    """

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)  # type: ignore[no-untyped-call]
            if isinstance(value, str) and (found := NO_TEXT.search(value)):
                raise _NoText(f"it holds {found[0]!a}")
            if isinstance(value, int):
                float(value)  # OverflowError: no key takes such a number, and it can't even be printed
            return value
        except (ValueError, OverflowError, LookupError, AttributeError) as error:
            raise yaml.MarkedYAMLError(
                problem=f"{NO_CHARACTER if isinstance(error, _NoText) else UNREADABLE} ({error})",
                problem_mark=node.start_mark,
            ) from error


def read(path: Path) -> tuple[Place, Any]:
    """The file's root and its value; MillError where it can't be read, is no YAML, or is larger than any
    manifest.
    """
    text = _text(path)
    try:
        _check_size(path, text)
        loader = _Loader(text)
        root = loader.get_single_node()
        _check_keys(path, root)
        value = loader.construct_document(root) if root else None  # type: ignore[no-untyped-call]
    except yaml.YAMLError as error:
        raise MillError(_not_yaml(path, error)) from error
    return Place(str(path), "", root.start_mark.line + 1 if root else 0, root), value


def _text(path: Path) -> str:
    if path.is_dir():
        raise MillError(f"The manifest {path} can't be read: it is a folder. Name the .yaml file in it.")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise MillError(
                f"{path} is larger than {MOST_BYTES // 1024} KiB, which no manifest is: name the right file."
            )
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise MillError(
            f"{path}:{line}: the manifest can't be read: it is not UTF-8 there. Save it as UTF-8."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise MillError(
            f"The manifest {path} can't be read: {getattr(error, 'strerror', None) or error}. Check its name."
        ) from error


def _check_size(path: Path, text: str) -> None:
    """Counts what the aliases stand for without writing it out: 400 bytes of them can stand for more than a
    machine holds.
    """
    # that are open: anchor, nodes in it, levels below it
    sections: list[tuple[str | None, list[int]]] = [(None, [0, 0])]
    anchors: dict[str, list[int]] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            sections.append((event.anchor, [1, 0]))
        if isinstance(event, yaml.AliasEvent) and any(anchor == event.anchor for anchor, _ in sections):
            raise MillError(
                f"{path}:{line}: the alias *{event.anchor} stands inside what it stands for: write out what"
                " is meant."
            )
        below = anchors.get(str(event.anchor), [1, 0]) if isinstance(event, yaml.AliasEvent) else [1, 0]
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, below = sections.pop()
            anchors |= {anchor: below} if anchor else {}
        if isinstance(event, yaml.CollectionEndEvent | yaml.AliasEvent | yaml.ScalarEvent):
            counts = sections[-1][1]
            counts[0], counts[1] = (
                counts[0] + below[0],
                max(counts[1], below[1] + (not isinstance(event, yaml.ScalarEvent))),
            )
        if sections[-1][1][0] > MOST_NODES:
            raise MillError(
                f"{path}:{line}: aliases make more than {MOST_NODES:,} values of this file: write out what is"
                " meant."
            )
        if len(sections) - 1 + sections[-1][1][1] > DEEPEST:
            raise MillError(
                f"{path}:{line}: nested more than {DEEPEST} levels deep: close the brackets, or mend the"
                " indent."
            )


def _check_keys(path: Path, node: yaml.Node | None, above: Place | None = None) -> None:
    place = above or Place(str(path), "", 0, node)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name in seen:
                within = f" of {place.key}" if place.key else ""
                raise MillError(
                    f"{path}:{key.start_mark.line + 1}: the key {name!r}{within} stands twice; keep one."
                )
            seen.add(name)
            _check_keys(path, value, place.at(name))
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _check_keys(path, item, place.at(number))


UNREADABLE = "a value that is no date and no number, but looks like one"
MENDS = (  # PyYAML's words -> what is meant, and what to do
    (UNREADABLE, f"{UNREADABLE}: mend it, or put it in quotes"),
    ("'\\t' that cannot start", "a tab: indent with spaces"),
    ("cannot start any token",
    " a sign that can't stand there: indent with spaces, and put a value that begins with such a sign "
    "in quotes"),
    ("mapping values are not allowed",
    "a second `:` in one line: put the value in quotes, or give the second key a line of its own"),
    ("undefined alias",
    "an alias (*) of a name that no anchor (&) has above it: put a value that begins with * in quotes"),
    ("found another document", "a second document begins there: keep one, and take the line `---` out"),
    ("could not determine a constructor",
    "a tag (!) that a manifest does not know: take it out, or put the value in quotes"),
    ("found unhashable key",
    "a key that is a list or a mapping: write a name; put a value that begins with a bracket in quotes"),
    ("expected <block end>",
    "a line that does not fit the ones above it: give it their indent, or put the value above it in quotes"),
    ("could not find expected ':'", "a line without `:`: write `key: value`"),
    ("second occurrence", "an anchor (&) of a name that another has above it: give one of them another name"),
    (NO_CHARACTER, f"{NO_CHARACTER}, such as a zero byte or half a surrogate pair: take it out"),
    ("special characters",
    "a character that no text has, such as a zero byte: take it out, or name the right file"),
    ("for merging",
    "`<<` beside something that is no mapping: write `<<: *name`, where &name marks a mapping"),
    ("base64", "!!binary, which a manifest does not need: take it out"),
    ("node, but found", "a tag (!!) that its value does not fit: take it out"),
    ("unexpected end of stream", "a quote that is not closed: close it, on an earlier line"),
    ("expected ',' or", "a bracket that is not closed, or a comma that is missing, before this line: add it"),
)  # fmt: skip


def _not_yaml(path: Path, error: yaml.YAMLError) -> str:
    mark, problem = (
        getattr(error, "problem_mark", None),
        str(getattr(error, "problem", None) or getattr(error, "reason", None) or error),
    )
    line = f":{mark.line + 1}" if mark else ""
    meant = next(
        (meant for words, meant in MENDS if words in problem),
        f"{problem}: mend the brackets, quotes and indents there",
    )
    return f"{path}{line}: not YAML: {meant}."
