"""Images in, annotations out: steps are run batch by batch; nothing that fails stops the rest."""

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from annotate import memory
from annotate.conditions import CONDITIONS
from annotate.detectors import DETECTORS, PROVIDED, Adapt, Detector, licence, missing
from annotate.maps import RawMap, blank, measures
from annotate.parameters import Values
from annotate.steps import Step, as_before, chain, identity, lack, lacks, resolve

__all__ = [
    "DETECTORS",
    "PROVIDED",
    "Annotation",
    "Detector",
    "Step",
    "Watch",
    "annotate",
    "as_before",
    "chain",
    "identity",
    "lack",
    "lacks",
    "licence",
    "missing",
    "resolve",
]


@dataclass(frozen=True)
class Annotation:
    """What became of one image under one step; a skipped map is kept, a failed one is None.

    An `ok` one has a reason only where a provided map is doubtful.
    """

    status: Literal["ok", "skipped", "failed"]
    reason: str = ""
    map: RawMap | None = None
    measures: dict[str, float] = field(default_factory=dict)
    random_params: Values = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Watch:
    """Who is told what a detector is at, and what it leaves out."""

    # called as it begins with some of the images: the step that leads its pass, their numbers
    begin: Callable[[Step, list[int]], object] = lambda step, chosen: None
    # condition that leads a pass -> image -> why it is not tried there
    not_tried: Callable[[str], dict[int, str]] = lambda condition: {}


def annotate(
    images: list[np.ndarray],  # uint8 [h, w, 3] RGB, of any sizes
    image_ids: list[str],  # seeds of the random parameters
    steps: list[Step],  # in any order; a step's parent must be among them or in `given`
    *,
    # condition -> stored ones to use again, None = draw new ones
    random_params: dict[str, list[Values | None]] | None = None,
    # condition -> annotations of these images that are there already
    given: dict[str, list[Annotation]] | None = None,
    # condition -> the maps that came with the images, or why there is none
    provided: dict[str, list[RawMap | Exception]] | None = None,
    device: str = "cpu",
    watch: Watch = Watch(),
) -> dict[str, list[Annotation]]:  # condition -> one annotation per image
    """Run the steps, each detector pass once however many conditions it serves.

    ValueError: not one id for each image, or a step's parent is neither among the steps nor in `given`.
    """
    if len(images) != len(image_ids):
        raise ValueError(f"{len(images)} images but {len(image_ids)} image ids")
    done: dict[str, list[Annotation]] = dict(given or {})
    for step in steps:
        if step.detector == PROVIDED:
            done[step.condition] = [_judge(step, raw, {}, 0.0) for raw in (provided or {})[step.condition]]
    for group in _passes([step for step in steps if step.detector != PROVIDED], set(done)):
        done.update(_run_pass(group, images, image_ids, random_params or {}, done, device, watch))
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
    watch: Watch,
) -> dict[str, list[Annotation]]:
    step, row = group[0], DETECTORS[group[0].detector]
    stored = random_params.get(step.condition) or [None] * len(images)
    inherited: list[Annotation | None] = [None] * len(images)
    if step.parent is not None:
        inherited = [_inherit(step.parent, parent) for parent in done[step.parent]]
    for i, reason in watch.not_tried(step.condition).items():
        inherited[i] = inherited[i] or Annotation("failed", reason)
    todo = [i for i, annotation in enumerate(inherited) if annotation is None]
    drawn = {i: _draw(row, step, image_ids[i], stored[i]) for i in todo}

    def detect(chosen: list[int]) -> list[RawMap]:
        watch.begin(step, chosen)
        # each call gets its own copy of the parameters, so that no detector can leak into the next
        parents = [done[step.parent][i].map for i in chosen] if step.parent is not None else []
        inputs = [images[i] for i in chosen]
        return row.detect(inputs, dict(step.params), [dict(drawn[i]) for i in chosen], parents, device)  # type: ignore[arg-type]

    outcomes = _isolate(detect, todo)
    results: dict[str, list[Annotation]] = {}
    for member in group:
        annotations = list(inherited)
        for i in todo:
            raw, seconds = outcomes[i]
            annotations[i] = _judge(member, raw, drawn[i], seconds / len(group), row.adapt)
        results[member.condition] = annotations  # type: ignore[assignment]
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
        maps = detect(todo)
        if len(maps) != len(todo):
            raise RuntimeError(f"the detector gave {len(maps)} maps for {len(todo)} images")
        each = (time.perf_counter() - start) / len(todo)
        return {i: (raw, each) for i, raw in zip(todo, maps, strict=True)}
    except Exception as error:
        if len(todo) == 1:
            memory.let_through(error)
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
        empty, note = blank(raw), raw.meta.get("note", "")
        reason = "; ".join(filter(None, (empty, note)))
        return Annotation("skipped" if empty else "ok", reason, raw, measures(raw), dict(drawn), seconds)
    except Exception as error:
        memory.let_through(error)
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
