"""The recipes in the manifests of the mini models."""

import dataclasses
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from pipeline import MillError
from pipeline.manifest import Section, yaml_errors

Recipe = TypeVar("Recipe")
RecipeKeys = Annotated[dict[str, Any], Field(default_factory=dict)]  # as a person wrote them; see `recipe`


def recipe(given: Section, kind: type[Recipe]) -> Recipe:
    """A library's own dataclass from the manifest's section `recipe`; what is left out is its default.
    MillError where a key is unknown or its value does not fit.
    """
    values = dict(given)["recipe"]
    _refuse_unknown(values, kind, given)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise MillError(yaml_errors.sentences(error, given.at("recipe"), kind)) from None


def _refuse_unknown(value: Any, kind: Any, given: Section, *steps: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name not in fields:
            raise MillError(
                f"{given.at('recipe', *steps, name)}: unknown key; known keys: {', '.join(fields)}."
            )
        if dataclasses.is_dataclass(fields[name].type):
            _refuse_unknown(inner, fields[name].type, given, *steps, name)
