"""One condition with a detector and all its parameters: chosen and checked before any work."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from annotate import weights
from annotate.conditions import CONDITIONS
from annotate.detectors import BROKEN, DETECTORS, PROVIDED, Detector, missing, named
from annotate.parameters import ParameterError, Values, fill, near
from annotate.weights import PINNED, Identity


@dataclass(frozen=True)
class Step:
    """One condition to make: which detector, with all its parameters, from which other condition's map."""

    condition: str
    detector: str
    params: Values
    parent: str | None = None


def resolve(
    condition: str,
    detector: str = "auto",
    params: Values | None = None,
    *,
    provided: bool = False,
    here: bool = True,
) -> Step:
    """A complete, checked step; ValueError with one sentence where that can't be.

    `auto` is the source's own map where it is `provided`, else the row's first detector that is ready here.
    With here=False a detector need not be ready, so that a plan for another machine can be made; `lack` says
    what it misses.
    """
    if condition not in CONDITIONS:
        raise ValueError(
            f"unknown condition {condition!r}{near(condition, CONDITIONS)}; known: {', '.join(CONDITIONS)}"
        )
    row, given = CONDITIONS[condition], dict(params or {})
    place = given.pop("weights", PINNED)
    if detector == "auto":
        detector = PROVIDED if provided else _first(condition, here)
    there = named(condition)
    if detector in BROKEN:
        raise ParameterError("detector", f"{detector}: {BROKEN[detector]}")
    if detector not in (*there, PROVIDED):
        known = ", ".join(("auto", *there, PROVIDED))
        raise ParameterError(
            "detector", f"{condition} has no detector {detector!r}{near(detector, there)}; it has: {known}"
        )
    if detector == PROVIDED:
        fill({}, given, owner=f"{condition} ({detector})")
        return Step(condition, PROVIDED, {})
    built = DETECTORS[detector]
    complete = fill(built.parameters, _preset(built, given) | given, owner=f"{condition} ({detector})")
    if place != PINNED:
        complete["weights"] = _weights(built, place, here)
    step = Step(condition, detector, complete, row.parent if built.reads_parent else None)
    problem = lack(step)
    if problem and here:
        raise ValueError(f"{condition}: {problem}")
    if built.check:
        built.check(complete)
    return replace(step, params=built.settle(complete)) if built.settle else step


def _first(condition: str, here: bool) -> str:
    """What `auto` means: the first detector that is ready; with here=False the first of all where none is."""
    names = CONDITIONS[condition].detectors
    ready = next((name for name in names if missing(name) is None), None)
    if ready is None and here:
        raise ValueError(f"{condition} can't be made here: {lacks(condition)}")
    return ready or names[0]


def as_before(detector: str, params: Values) -> Values:
    """All parameters of a step that an earlier version settled: what came later stands for what was before
    it.
    """
    row = DETECTORS.get(detector)
    later = {} if row is None else {name: it.before for name, it in row.parameters.items()}
    return {name: value for name, value in later.items() if value is not None} | params


def _preset(built: Detector, given: Values) -> Values:
    """The parameters that `preset` stands for, which is taken out of what is given."""
    if not built.presets or "preset" not in given:
        return {}
    name = str(given.pop("preset"))
    if name not in built.presets:
        known = ", ".join(built.presets)
        raise ParameterError(
            "preset", f"{built.name} has no preset {name!r}{near(name, built.presets)}; it has: {known}"
        )
    return built.presets[name]


def _weights(built: Detector, given: Any, here: bool) -> str:
    if not built.weights:
        raise ParameterError("weights", f"{built.name} has no weights to choose")
    place = Path(str(given)).expanduser().resolve()
    if here and not place.exists():
        remedy = "name a file or a folder, or leave it out for the pinned weights"
        raise ParameterError("weights", f"{built.name}: weights: {place} does not exist; {remedy}")
    return str(place)


def chain(condition: str, step_of: Callable[[str], Step]) -> list[Step]:
    """The condition's step after those of the conditions that it is made from."""
    step = step_of(condition)
    return [*(chain(step.parent, step_of) if step.parent else []), step]


def lack(step: Step) -> str | None:
    """One sentence on what this step misses here; None = it can run."""
    if step.detector == PROVIDED:
        return None
    unable = DETECTORS[step.detector].unable
    return missing(step.detector, step.params.get("weights", PINNED)) or (unable and unable(step.params))


def lacks(condition: str) -> str | None:
    """One sentence on why this condition can't be made here; None = some detector is ready."""
    reasons = [missing(name) for name in CONDITIONS[condition].detectors]
    return None if None in reasons else ". Or: ".join(str(reason) for reason in reasons)


def identity(step: Step) -> Identity:
    """All that decides the map's bytes beside the image and the parents."""
    if step.detector == PROVIDED:
        return {
            "detector": PROVIDED,
            "version": 1,
            "weights": None,
            "params": {},
            "precision": None,
            "library": None,
        }
    row = DETECTORS[step.detector]
    params = {
        name: value
        for name, value in step.params.items()
        if (declared := row.parameters.get(name)) is None or value != declared.before
    }
    return weights.identity_of(row.name, row.version, row.weights, row.distributions, params)
