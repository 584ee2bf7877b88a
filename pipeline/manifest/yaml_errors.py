"""A YAML file as a checked section: every mistake names file, line, key and fix."""

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from pipeline import MillError
from pipeline.manifest import places, wording
from pipeline.manifest.places import Place

OURS = "ours"  # the type of a mistake that a section's own rule finds


Model = TypeVar("Model", bound=BaseModel)


def read(
    path: Path,
    kind: type[Model],
    update: Callable[[Any], Any] = lambda value: value,
    what: str = "a manifest",
) -> Model:
    """MillError has one line for each mistake; `update` brings what an earlier version wrote up to date."""
    place, value = places.read(path)
    if not isinstance(value, dict):
        first = ", ".join(f"`{key}: …`" for key in list(kind.model_fields)[:3])
        holds = (
            "is empty" if value is None else "holds a list" if isinstance(value, list) else "holds one value"
        )
        raise MillError(
            f"{path}:{place.line or 1}: {what} is a mapping of keys, and this file {holds}: begin with"
            f" {first}."
        )
    try:
        made = kind.model_validate(update(value))
    except ValidationError as error:
        raise MillError(sentences(error, place, kind)) from None
    _remember(made, place)
    return made


def wrong(sentence: str, *steps: str | int) -> PydanticCustomError:
    """To be raised by a section's own rule: what is wrong and what to do, and the key below the section that
    it is about.
    """
    return PydanticCustomError(OURS, "{sentence}", {"sentence": sentence, "steps": steps})


def _remember(section: Any, place: Place) -> None:
    """Tells every section where it stands (pipeline.manifest.Section)."""
    if hasattr(section, "_place"):
        section._place = place
    values = (
        dict(section)
        if isinstance(section, BaseModel | dict)
        else dict(enumerate(section))
        if isinstance(section, list)
        else {}
    )
    for step, value in values.items():
        below = place.at(step)
        if below.node is not None:  # a default is shared by all who leave it out
            _remember(value, below)


def sentences(error: ValidationError, place: Place, kind: Any) -> str:
    """A line for each mistake; what several members of a union say of one value is one mistake."""
    found: dict[tuple[str | int, ...], list[Any]] = {}
    for mistake in error.errors(include_url=False):
        it = _Found(kind, place, mistake)
        found.setdefault(it.steps, []).append(it)
    deepest = [
        steps
        for steps in found
        if not any(other[: len(steps)] == steps and other != steps for other in found)
    ]
    lines = dict.fromkeys(sentence for steps in deepest for sentence in _told(found[steps]))
    return "\n".join(lines).encode(errors="backslashreplace").decode()  # a lone surrogate can't be printed


class _Found:
    """One of pydantic's mistakes, with the key that it is about and what may stand there."""

    def __init__(self, kind: Any, place: Place, mistake: Any) -> None:
        self.mistake, self.parent, self.here, self.place, self.of_key = mistake, None, kind, place, False
        steps: list[str | int] = []
        for step in (*mistake["loc"], *mistake.get("ctx", {}).get("steps", ())):
            members = list(wording.options(self.here))
            tagged = next(
                (it for it in members if len(members) > 1 and step in wording.tags(it, "kind")), None
            )
            if tagged:
                self.here = tagged  # a union's branch, which the file spells in `kind`
                continue
            spelled = place.at(step).node is not None
            below = wording.below(self.here, step, spelled)
            self.of_key |= step == "[key]"
            if below is None and not spelled:
                continue  # a union's branch or an implied list, which the file does not spell
            steps.append(step)
            self.parent, self.here, place = self.here, below, place.at(step)
        self.steps, self.place = tuple(steps), place


def _told(found: list[_Found]) -> Iterator[str]:
    """What is wrong with one key."""
    it = found[0]
    mistake, step = it.mistake, it.steps[-1] if it.steps else ""
    if mistake["type"] == OURS:
        for one in found:
            yield f"{one.place}: {one.mistake['ctx']['sentence']}."
        return
    match mistake["type"]:
        case "extra_forbidden" if new := _new_name(it.parent, str(step)):
            yield f"{it.place}: is called {new} now: rename it{_new_values(it.parent, new)}."
        case "extra_forbidden":
            known = sorted({key for one in wording.options(it.parent) for key in wording.fields(one)})
            close = difflib.get_close_matches(str(step), known, n=1)
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else f"known keys: {', '.join(known)}."
                if known
                else "remove it."
            )
            yield f"{it.place}: unknown key; {hint}"
        case "missing":
            yield f"{it.place}: missing; add it."
        case "value_error":
            yield f"{it.place}: {mistake['ctx']['error']!s}."
        case "union_tag_invalid" | "union_tag_not_found":
            tag = mistake["ctx"]["discriminator"].strip("'")
            words = [word for one in wording.options(it.here) for word in wording.tags(one, tag)]
            yield f"{it.place}: `{tag}:` must be one of {', '.join(words)}."
        case _:
            yield _written_wrong(found)


def _new_name(parent: Any, key: str) -> str | None:
    """What a key of an earlier version is called now."""
    names = (getattr(one, "renamed", {}) for one in wording.options(parent))
    return next((known[key] for known in names if key in known), None)


def _new_values(parent: Any, key: str) -> str:
    words = [word for one in wording.options(parent) for word in wording.tags(one, key)]
    return f", and write {wording.either(words)}" if words else ""


def _written_wrong(found: list[_Found]) -> str:
    found = [one for one in found if one.of_key] or found  # of a key that is no key the value says nothing
    it = found[0]
    null = ["null"] if it.here is not None and type(None) in wording.options(it.here) else []
    want = wording.either(list(dict.fromkeys([*(wording.wanted(one.mistake) for one in found), *null])))
    given = it.mistake["input"]
    if it.of_key or it.mistake["type"] == "invalid_key":
        known = want if it.mistake["type"] == "literal_error" else f'"{given}"'
        return f"{it.place}: unknown key {given!r}: write {known}."
    examples = (wording.instead(one.mistake["type"], given, it.place.node, it.here) for one in found)
    example = next(filter(None, examples), "")
    fields = [wording.fields(one) for one in wording.options(it.parent)]
    default = next((one[str(it.steps[-1])][1] for one in fields if it.steps and it.steps[-1] in one), ...)
    told = f"write {want}, not {wording.shown(given, it.place.node)}"
    absent = "" if null and default is None else wording.left_out(default)
    return f"{it.place}: {told}{f': {example}' if example else ''}{absent}."
