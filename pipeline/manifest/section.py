"""What a section of a manifest is: its keys and no others, their types, and where it stands in its file."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from pipeline.manifest.places import Place


def _number(given: Any) -> Any:
    """YAML takes 1e-5 for text, since there is no point in it."""
    try:
        return float(given) if isinstance(given, str) else given
    except ValueError:
        return given


Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_number)]  # no truth value
Seconds = Annotated[Real, Field(gt=0, le=86_400)]
Fraction = Annotated[Real, Field(ge=0, lt=1)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Section(BaseModel):
    """Part of a manifest: its keys and no others.

    It remembers where it stands in the file that it was read from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    _place: Place = PrivateAttr(default=Place())

    def at(self, *steps: str | int) -> Place:
        """Where a key below stands: as text, file, line and key, for the beginning of a sentence about it."""
        return self._place.at(*steps)
