"""Parameters of detectors, declared as data: each knows its default, its type and its range."""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

Values = dict[str, Any]  # JSON-able values by name: parameters of a detector, or the random ones of one image


class ParameterError(ValueError):
    """Names the parameter, so that whoever knows the file can name its line."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name = name


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number, or where `span` allows it a pair [min, max] from which each image draws its own."""

    default: float | tuple[float, float]
    least: float
    most: float
    whole: bool = False  # only integers
    span: bool = False  # [min, max] allowed
    before: float | None = None  # as of a Choice

    def read(self, name: str, value: Any) -> Any:
        """The JSON-able value, or ValueError with one sentence."""
        if isinstance(value, list | tuple) and self.span:
            if len(value) != 2:
                raise ValueError(
                    f"{name}: a range has two numbers, [min, max], not {len(value)}: {list(value)!r}"
                )
            low, high = (self._one(name, v) for v in value)
            if low > high:
                raise ValueError(f"{name}: the range [{low}, {high}] is empty; write [{high}, {low}]")
            return [low, high]
        return self._one(name, value)

    def _one(self, name: str, value: Any) -> int | float:
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or (self.whole and value != int(value)):
            wanted = "an integer" if self.whole else "a number"
            raise ValueError(
                f"{name}: {wanted}{' or a range [min, max]' if self.span else ''} is wanted, not {value!r}"
            )
        if not self.least <= value <= self.most:
            raise ValueError(f"{name}: {value} is out of range; set it between {self.least} and {self.most}")
        return int(value) if self.whole else float(value)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a few words."""

    default: str
    options: tuple[str, ...]
    # what all maps were made with until there was this parameter: then it is no part of their identity
    before: str | None = None

    def read(self, name: str, value: Any) -> str:
        """The word, or ValueError that lists the known ones."""
        if value not in self.options:
            raise ValueError(f"{name}: {value!r} is unknown; set one of {', '.join(self.options)}")
        return str(value)


Parameter = Number | Choice


def fill(declared: dict[str, Parameter], given: Values | None, owner: str) -> Values:
    """All parameters, checked, defaults filled in, JSON-able, in declared order, in a dict of their own.

    ParameterError: a name that is not declared, or a value that its parameter does not allow.
    """
    given = dict(given or {})
    for name in given:
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise ParameterError(
                name, f"{owner} has no parameter {name!r}{near(name, declared)}; it has: {known}"
            )
    try:
        return {
            (now := name): parameter.read(f"{owner}: {name}", given.get(name, parameter.default))
            for name, parameter in declared.items()
        }
    except ValueError as error:
        raise ParameterError(now, str(error)) from error


def near(name: str, known: Any) -> str:
    """' (did you mean …?)' or nothing."""
    close = get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
