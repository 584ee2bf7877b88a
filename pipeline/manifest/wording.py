"""What is wanted in place of a value, in plain words: pydantic's own are for those who write models."""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel

LONGEST = 60  # characters of a value that are shown
TEXTS = ("string_type", "string_unicode")
INTEGERS = ("int_type", "int_parsing", "int_parsing_size", "int_from_float")
MAPPINGS = (
    "model_type",
    "model_attributes_type",
    "dataclass_type",
    "dataclass_exact_type",
    "dict_type",
    "mapping_type",
)
LISTS = ("list_type", "tuple_type", "iterable_type")

# the type of pydantic's error -> what is wanted, filled in from the error's context
WANTED: dict[str, str] = {
    **dict.fromkeys(TEXTS, "a text"),
    "string_too_short": "a text that is not empty",
    "string_too_long": "a text of at most {max_length} characters",
    "string_pattern_mismatch": (
        "a name of letters, digits and any of _ . - (the first one a letter or a digit)"
    ),
    **dict.fromkeys(INTEGERS, "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "literal_error": "{words}",
    **dict.fromkeys(MAPPINGS, "a mapping of keys"),
    **dict.fromkeys(LISTS, "a list in brackets"),
    "too_short": "at least {min_length} of them",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "invalid_key": "a name",
}


def wanted(mistake: Mapping[str, Any]) -> str:
    """What should stand there, by one of pydantic's errors."""
    context = dict(mistake.get("ctx", {}))
    words = [
        word or other.lower()
        for word, other in re.findall(r"'([^']*)'|\b(True|False|\d+)\b", str(context.get("expected", "")))
    ]
    return WANTED.get(mistake["type"], "another value").format_map(context | {"words": either(words)})


def either(words: Sequence[str]) -> str:
    """a, b or c"""
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def shown(value: Any, node: yaml.Node | None) -> str:
    """The value as the file spells it, and how YAML reads it where that is not plain."""
    if isinstance(value, dict | list | tuple):
        return ("a " if value else "an empty ") + ("mapping of keys" if isinstance(value, dict) else "list")
    if value is None:
        return "nothing"
    written = node.value if isinstance(node, yaml.ScalarNode) else str(value)
    written = written if len(written) <= LONGEST else f"{written[:LONGEST]}…"
    text = repr(written) if isinstance(value, str) else " ".join(written.split())
    if isinstance(value, bool) and written.lower() not in ("true", "false"):
        return f"{text}, which YAML reads as {str(value).lower()}"
    return text


def instead(kind: str, value: Any, node: yaml.Node | None, annotation: Any) -> str:
    """An example of what to write, made of what stands there; '' = there is none to be made."""
    written = node.value if isinstance(node, yaml.ScalarNode) else ""
    if kind == "string_type" and written and value is not None:
        return f'"{written}"'
    if (
        kind in INTEGERS
        and re.fullmatch(r"[+-]?\d+(\.\d*)?([eE]\+?\d{1,2})?", written)
        and float(written).is_integer()
    ):
        return str(int(float(written)))
    if kind in LISTS and written and value is not None:
        return f"[{written}]"
    if kind in MAPPINGS:
        if (
            isinstance(value, list)
            and value
            and all(isinstance(one, str) for one in value)
            and any(map(_names, options(annotation)))
        ):
            return "{" + ", ".join(f"{one}: {{}}" for one in value) + "}"
        section = next(filter(fields, options(annotation)), None)
        needed = [name for name, (_, default) in fields(section).items() if default is ...]
        examples = [f"{name}: {next(iter(tags(section, name)), '…')}" for name in needed]
        return f"{{{', '.join(examples)}}}" if examples else ""
    return ""


def left_out(default: Any) -> str:
    """What the key's absence means; '' = it must be there."""
    if default is ...:
        return ""
    if isinstance(default, dict | list | tuple | BaseModel) or dataclasses.is_dataclass(default):
        return "; left out, it has its defaults"
    if default == "":
        return "; left out, it is empty"
    return (
        "; left out, it is"
        f" {'null' if default is None else str(default).lower() if isinstance(default, bool) else default}"
    )


# -- what a model's annotation says --------------------------------------------------------------------------


def options(annotation: Any) -> Iterator[Any]:
    """What a value may be: the members of a union, without what only annotates them."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from options(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from options(inner)
    else:
        yield annotation


def fields(section: Any) -> dict[str, tuple[Any, Any]]:
    """Key -> its annotation and its default (... = it must be there) of a model or a dataclass; empty for
    everything else.
    """
    if isinstance(section, type) and issubclass(section, BaseModel):
        keys = section.model_fields.items()
        defaults = {name: it.get_default(call_default_factory=True, validated_data={}) for name, it in keys}
        return {name: (it.annotation, ... if it.is_required() else defaults[name]) for name, it in keys}
    if isinstance(section, type) and dataclasses.is_dataclass(section):
        hints = typing.get_type_hints(section)
        absent = dataclasses.MISSING
        defaults = {
            it.name: it.default_factory() if it.default_factory is not absent else it.default
            for it in dataclasses.fields(section)
        }
        return {
            name: (hints[name], ... if default is absent else default) for name, default in defaults.items()
        }
    return {}


def tags(section: Any, key: str) -> tuple[Any, ...]:
    """The words that a key may have, such as the `kind` of one kind of source."""
    annotation = fields(section).get(key, (None, None))[0]
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def below(annotation: Any, step: str | int, spelled: bool) -> Any:
    """The annotation of what a key leads to, None = no such key; `spelled`: the file has it, so it is no name
    of a union's branch.
    """
    for one in options(annotation):
        if step in fields(one):
            return fields(one)[str(step)][0]
        arguments = typing.get_args(one)
        if typing.get_origin(one) is dict and spelled:
            return arguments[1]
        if typing.get_origin(one) in (list, tuple) and isinstance(step, int):
            return arguments[0]
    return None


def _names(annotation: Any) -> bool:
    """Whether it is a mapping of names to sections."""
    return typing.get_origin(annotation) is dict and any(map(fields, options(typing.get_args(annotation)[1])))
