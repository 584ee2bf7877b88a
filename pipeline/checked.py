"""A YAML file as a checked section: every mistake names file, line, key and fix."""

import difflib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline import MillError

Model = TypeVar("Model", bound=BaseModel)


def read(path: Path, kind: type[Model]) -> Model:
    """MillError has one line for each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MillError(f"The manifest {path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
        doubled = next(_doubled_keys(tree), None)
    except RecursionError:
        raise MillError(f"{path}: nested too deeply for a manifest.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise MillError(f"{path}{f':{mark.line + 1}' if mark else ''}: not YAML: {getattr(error, 'problem', error)}.") from error
    if not isinstance(value, dict):
        keys = ", ".join(list(kind.model_fields)[:3])
        raise MillError(f"{path}: a manifest is a mapping of keys ({keys}, …); this file holds {type(value).__name__}.")
    if doubled:
        raise MillError(f"{path}:{doubled.start_mark.line + 1}: the key {doubled.value!r} stands twice; keep one.")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise MillError("\n".join(dict.fromkeys(_sentence(path, tree, kind, mistake) for mistake in error.errors()))) from None


def _doubled_keys(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key
            seen.add(key.value)
            yield from _doubled_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _doubled_keys(item)


def _sentence(path: Path, tree: yaml.Node | None, kind: type[BaseModel], mistake: Any) -> str:
    """One of pydantic's mistakes as `file:line: key: what is wrong, what to do`."""
    steps: list[str | int] = []
    node, line = tree, None
    model: Any = kind
    for depth, step in enumerate(mistake["loc"], start=1):
        child = _child(node, step)
        absent = mistake["type"] == "missing" and depth == len(mistake["loc"])
        if child is None and not absent and (isinstance(step, int) or step not in getattr(model, "model_fields", {})):
            continue  # a union's branch or an implied list, which the file does not spell
        steps.append(step)
        if child is not None:
            node, line = child, _key_line(node, step)
        model = _model_of(model, step)
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".") or "the manifest"
    where = f"{path}:{line}" if line else f"{path}"
    given = mistake.get("input")
    message = mistake["msg"].removeprefix("Value error, ")
    match mistake["type"]:
        case "extra_forbidden":
            parent = _model_at(kind, steps[:-1])
            known = sorted(parent.model_fields) if parent else []
            close = difflib.get_close_matches(str(steps[-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}." if known else "remove it."
            return f"{where}: {key}: unknown key; {hint}"
        case "missing":
            return f"{where}: {key}: missing; add it."
        case "value_error":
            return f"{where}: {key}: {message}." if key != "the manifest" else f"{where}: {message}."
        case "union_tag_invalid" | "union_tag_not_found":
            tag = mistake["ctx"]["discriminator"].strip("'")
            names = [step for step in steps if isinstance(step, str)]
            parent = _model_at(kind, list(names[:-1]))
            tags = _tags(parent.model_fields[names[-1]].annotation, tag) if parent else ()
            return f"{where}: {key}: `{tag}:` must be one of {', '.join(tags)}."
    shown = "" if isinstance(given, dict | list) else f" (found {given!r})"
    return f"{where}: {key}: {message[0].lower()}{message[1:]}{shown}."


def _child(node: yaml.Node | None, step: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step]
    return None


def _key_line(node: yaml.Node | None, step: str | int) -> int | None:
    if isinstance(node, yaml.MappingNode):
        return next((key.start_mark.line + 1 for key, _ in node.value if key.value == str(step)), None)
    child = _child(node, step)
    return child.start_mark.line + 1 if child else None


def _model_at(kind: type[BaseModel], steps: list[str | int]) -> type[BaseModel] | None:
    model: Any = kind
    for step in steps:
        model = _model_of(model, step)
    return model


def _model_of(model: Any, step: str | int) -> Any:
    """The section that a key leads to, looking through lists, optional values and unions of one section."""
    if model is None:
        return None
    if isinstance(step, int) or "model_fields" not in dir(model):
        return model
    field = model.model_fields.get(step)
    return _sections(field.annotation) if field else model


def _sections(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, dict, typing.Union, types.UnionType, Annotated):
        found = [inner for inner in map(_sections, typing.get_args(annotation)) if inner]
        return found[0] if found else None
    return None


def _tags(annotation: Any, tag: str) -> Iterator[str]:
    """What tells the sections of a union apart."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from typing.get_args(annotation.model_fields[tag].annotation)
    else:
        for inner in typing.get_args(annotation):
            yield from _tags(inner, tag)
