"""The manifests of the mini models: YAML in, checked sections and recipes out."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline import MillError
from pipeline.manifest import Section

Plan = TypeVar("Plan", bound=Section)
Recipe = TypeVar("Recipe")


def read(path: Path, kind: type[Plan]) -> Plan:
    """MillError has one line for each mistake."""
    try:
        return kind.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise MillError(f"The manifest {path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.YAMLError as error:
        raise MillError(f"{path}: not YAML: {getattr(error, 'problem', error)}.") from error
    except ValidationError as error:
        raise MillError("\n".join(f"{path}: {_where(one['loc'])}: {one['msg'].lower()}." for one in error.errors())) from None


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
