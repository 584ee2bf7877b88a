"""The recipes in the manifests of the mini models."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline import MillError

Recipe = TypeVar("Recipe")


def recipe(values: dict[str, Any], kind: type[Recipe], path: Path) -> Recipe:
    """A library's own dataclass from the manifest's section `recipe`; what is left out is its default."""
    _refuse_unknown(values, kind, path, "recipe")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise MillError("\n".join(f"{path}: recipe.{_where(one['loc'])}: {one['msg'].lower()}." for one in error.errors())) from None


def _refuse_unknown(value: Any, kind: Any, path: Path, key: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, inner in (value or {}).items():
        if name not in fields:
            raise MillError(f"{path}: {key}.{name}: unknown key; known keys: {', '.join(fields)}.")
        if dataclasses.is_dataclass(fields[name].type):
            _refuse_unknown(inner, fields[name].type, path, f"{key}.{name}")


def _where(steps: tuple[Any, ...]) -> str:
    return ".".join(map(str, steps)) or "the manifest"


def not_begun(work: Path) -> MillError:
    return MillError(f"{work} holds no training yet: run the command without --export first.")
