"""Images in, annotations out: steps are resolved once, then run batch by batch; nothing that fails stops the
rest.
"""

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from annotate import weights
from annotate.conditions import CONDITIONS
from annotate.detectors import DETECTORS, PROVIDED, Adapt, Detector, licence, missing
from annotate.maps import RawMap, blank, measures
from annotate.parameters import ParameterError, Values, fill, near
from annotate.weights import PINNED

__all__ = [
    "DETECTORS",
    "PROVIDED",
    "Annotation",
    "Detector",
    "Step",
    "annotate",
    "chain",
    "identity",
    "lack",
    "lacks",
    "licence",
    "missing",
    "resolve",
]


@dataclass(frozen=True)
class Step:
    """One condition to make: which detector, with all its parameters, from which other condition's map."""

    condition: str
    detector: str
    params: Values
    parent: str | None = None


@dataclass(frozen=True)
class Annotation:
    """What became of one image under one step; a skipped map is kept, a failed one is None."""

    status: Literal["ok", "skipped", "failed"]
    reason: str = ""
    map: RawMap | None = None
    measures: dict[str, float] = field(default_factory=dict)
    random_params: Values = field(default_factory=dict)
    seconds: float = 0.0


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
    weights = given.pop("weights", PINNED)
    if detector == "auto":
        detector = PROVIDED if provided else _first(condition, here)
    named = (*row.detectors, *row.by_name)
    if detector not in (*named, PROVIDED):
        known = ", ".join(("auto", *named, PROVIDED))
        raise ParameterError(
            "detector", f"{condition} has no detector {detector!r}{near(detector, named)}; it has: {known}"
        )
    if detector == PROVIDED:
        fill({}, given, owner=f"{condition} ({detector})")
        return Step(condition, PROVIDED, {})
    built = DETECTORS[detector]
    complete = fill(built.parameters, given, owner=f"{condition} ({detector})")
    if weights != PINNED:
        complete["weights"] = _weights(built, weights, here)
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


def _weights(built: Detector, weights: Any, here: bool) -> str:
    if not built.weights:
        raise ParameterError("weights", f"{built.name} has no weights to choose")
    place = Path(str(weights)).expanduser().resolve()
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
    return None if step.detector == PROVIDED else missing(step.detector, step.params.get("weights", PINNED))


def lacks(condition: str) -> str | None:
    """One sentence on why this condition can't be made here; None = some detector is ready."""
    reasons = [missing(name) for name in CONDITIONS[condition].detectors]
    return None if None in reasons else ". Or: ".join(str(reason) for reason in reasons)


def identity(step: Step) -> dict[str, Any]:
    """All that decides the map's bytes beside the image and the parents: JSON-able, the same on
    every call.
    """
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
    library = weights.library(row.distributions)
    return {
        "detector": row.name,
        "version": row.version,
        "weights": weights.identity(row.weights, step.params.get("weights", PINNED)),
        # where they lie says nothing about a map
        "params": {name: value for name, value in step.params.items() if name != "weights"},
        "precision": step.params.get("precision"),
        "library": list(library) if library else None,
    }


def annotate(
    images: list[np.ndarray],  # uint8 [h, w, 3] RGB, of any sizes
    image_ids: list[str],  # seeds of the random draws
    steps: list[Step],  # in any order; a step's parent must be among them or in `given`
    *,
    # condition -> stored draws to use again, None = draw
    random_params: dict[str, list[Values | None]] | None = None,
    # condition -> annotations of these images that are there already
    given: dict[str, list[Annotation]] | None = None,
    # condition -> the maps that came with the images, or why there is none
    provided: dict[str, list[RawMap | Exception]] | None = None,
    device: str = "cpu",
) -> dict[str, list[Annotation]]:  # condition -> one annotation per image
    """Run the steps, each detector pass once however many conditions it serves."""
    if len(images) != len(image_ids):
        raise ValueError(f"{len(images)} images but {len(image_ids)} image ids")
    done: dict[str, list[Annotation]] = dict(given or {})
    for step in steps:
        if step.detector == PROVIDED:
            done[step.condition] = [_judge(step, raw, {}, 0.0) for raw in (provided or {})[step.condition]]
    for group in _passes([step for step in steps if step.detector != PROVIDED], set(done)):
        done.update(_run_pass(group, images, image_ids, random_params or {}, done, device))
    return {step.condition: done[step.condition] for step in steps}


def _passes(steps: list[Step], ready: set[str]) -> list[list[Step]]:
    """Steps that share one run of a detector, parents before children."""
    groups: list[list[Step]] = []
    waiting = list(steps)
    while waiting:
        first = next((step for step in waiting if step.parent is None or step.parent in ready), None)
        if first is None:
            step = waiting[0]
            raise ValueError(
                f"{step.condition} is made from {step.parent}: add {step.parent} to the conditions"
            )
        group = [
            s
            for s in waiting
            if s is first or (replace(s, condition=first.condition) == first and _share(s, first))
        ]
        waiting = [s for s in waiting if not any(s is member for member in group)]
        ready = ready | {s.condition for s in group}
        groups.append(group)
    return groups


def _share(one: Step, other: Step) -> bool:
    """Whether two conditions that are made alike can be had from one run: the detector fits its find to each,
    or the maps are the same.
    """
    names = {CONDITIONS[step.condition].shares or step.condition for step in (one, other)}
    return DETECTORS[one.detector].adapt is not None or len(names) == 1


def _run_pass(
    group: list[Step],
    images: list[np.ndarray],
    image_ids: list[str],
    random_params: dict[str, list[Values | None]],
    done: dict[str, list[Annotation]],
    device: str,
) -> dict[str, list[Annotation]]:
    step, row = group[0], DETECTORS[group[0].detector]
    stored = random_params.get(step.condition) or [None] * len(images)
    found: list[Annotation | None] = [None] * len(images)
    if step.parent is not None:
        found = [_inherit(step.parent, parent) for parent in done[step.parent]]
    todo = [i for i, outcome in enumerate(found) if outcome is None]
    drawn = {i: _draw(row, step, image_ids[i], stored[i]) for i in todo}

    def detect(chosen: list[int]) -> list[RawMap]:
        # each call gets its own copy of the parameters and draws, so that no detector can leak into the next
        parents = [done[step.parent][i].map for i in chosen] if step.parent is not None else []
        inputs = [images[i] for i in chosen]
        return row.detect(inputs, dict(step.params), [dict(drawn[i]) for i in chosen], parents, device)  # type: ignore[arg-type]

    outcomes = _isolate(detect, todo)
    results: dict[str, list[Annotation]] = {}
    for member in group:
        made = list(found)
        for i in todo:
            raw, seconds = outcomes[i]
            made[i] = _judge(member, raw, drawn[i], seconds / len(group), row.adapt)
        results[member.condition] = made  # type: ignore[assignment]
    return results


def _isolate(
    detect: Callable[[list[int]], list[RawMap]], todo: list[int]
) -> dict[int, tuple[RawMap | Exception, float]]:
    """Whole batch first; if that raises, image by image, so that only the bad one fails.

    Image -> (map or error, seconds).
    """
    if not todo:
        return {}
    try:
        start = time.perf_counter()
        found = detect(todo)
        if len(found) != len(todo):
            raise RuntimeError(f"the detector gave {len(found)} maps for {len(todo)} images")
        each = (time.perf_counter() - start) / len(todo)
        return {i: (raw, each) for i, raw in zip(todo, found, strict=True)}
    except Exception as error:
        if len(todo) == 1:
            return {todo[0]: (error, time.perf_counter() - start)}
        return {i: outcome for one in todo for i, outcome in _isolate(detect, [one]).items()}


def _judge(
    step: Step, raw: RawMap | Exception, drawn: Values, seconds: float, adapt: Adapt | None = None
) -> Annotation:
    """A map is ok, or kept and skipped where it holds nothing; what raised is failed."""
    try:
        if isinstance(raw, Exception):
            raise raw
        raw = adapt(raw, CONDITIONS[step.condition], step.params) if adapt else raw
        reason = blank(raw)
        return Annotation(
            "skipped" if reason else "ok", reason or "", raw, measures(raw), dict(drawn), seconds
        )
    except Exception as error:
        return Annotation(
            "failed", f"{type(error).__name__}: {error}", random_params=dict(drawn), seconds=seconds
        )


def _inherit(parent: str, outcome: Annotation) -> Annotation | None:
    """A child of a skipped parent is skipped, of a failed one failed; None = the child is to be made."""
    if outcome.status == "ok":
        return None
    return Annotation(outcome.status, f"{parent} was {outcome.status}: {outcome.reason}")


def _draw(row: Detector, step: Step, image_id: str, stored: Values | None) -> Values:
    """The image's random numbers depend on its id and the detector, never on the batch or the order."""
    if row.draw_params is None:
        return {}
    if stored:
        return dict(stored)
    seed = hashlib.sha256(f"{step.detector}\0{image_id}".encode()).digest()
    return row.draw_params(step.params, random.Random(int.from_bytes(seed[:8], "big")))
