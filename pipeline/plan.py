"""A manifest made definite: every detector chosen, every parameter filled in, every identity computed. Nothing here does work."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from annotate import annotator
from annotate.annotator import Step
from annotate.conditions import MEASURES
from annotate.detectors import DETECTORS
from pipeline import MillError, manifest
from pipeline.manifest import Condition, Manifest, Select
from pipeline.workspace import Workspace, fingerprint, write_text


@dataclass(frozen=True)
class Planned:
    """One condition to make. `fingerprint` covers detector, weights, parameters, precision, library, image key and parents."""

    step: Step
    identity: dict[str, Any]
    fingerprint: str
    select: Select
    asked: bool  # False: made only because another condition is made from it

    @property
    def name(self) -> str:
        return self.step.condition

    def record(self) -> dict[str, Any]:
        """What the catalog and the shard's footer keep of the detector."""
        licence = annotator.licence(self.step.detector)
        return {"condition": self.name, "fingerprint": self.fingerprint, "identity": self.identity, "licence": licence}


@dataclass(frozen=True)
class Plan:
    manifest: Manifest
    workspace: Workspace
    image_key: str
    conditions: dict[str, Planned]  # parents before their children

    def selections(self) -> dict[str, tuple[str, str | None, int | None]]:
        return {name: (it.select.where, it.select.order_by, it.select.limit) for name, it in self.conditions.items()}


def image_key(settings: Manifest) -> str:
    return fingerprint({"image": settings.image.model_dump(), "version": 1})


def make(given: Manifest) -> Plan:
    """Resolves the manifest against what its workspace already settled; MillError where the two don't fit or a detector can't run."""
    try:
        workspace = Workspace(Path(given.workspace).expanduser().resolve())
    except (RuntimeError, ValueError, OSError) as error:
        raise MillError(f"workspace: {given.workspace!r} is no path: {error}.") from error
    saved = _saved(workspace)
    if saved and saved.name != given.name:
        raise MillError(
            f"The workspace {workspace.root} belongs to {saved.name!r}, this manifest is {given.name!r}: "
            "give this one a `workspace:` of its own (or the same name, to go on with that one)."
        )
    if saved and saved.split != given.split:
        raise MillError(
            f"split: the workspace {workspace.root} was split with {_short(saved.split)} and a split never changes: "
            "set it back, or use another `workspace:`."
        )
    key = image_key(given)
    chosen: dict[str, Condition] = {}
    planned: dict[str, Planned] = {}
    for name in given.conditions:
        _plan(name, given, saved, key, planned, chosen)
    for name in given.conditions:
        planned[name] = replace(planned[name], asked=True)
    return Plan(given.model_copy(update={"conditions": chosen}), workspace, key, planned)


def load_saved(workspace: Workspace) -> Plan:
    """The plan of a workspace as its last run left it."""
    saved = _saved(workspace)
    if saved is None:
        raise MillError(f"{workspace.root} is no workspace: it has no manifest.yaml. `controlmill run MANIFEST` makes one.")
    return make(saved.model_copy(update={"workspace": str(workspace.root)}))


def save(plan: Plan) -> None:
    write_text(plan.workspace.manifest, manifest.dump(plan.manifest))


def lines(plan: Plan) -> list[str]:
    """One line a condition: what makes it, and whether it was asked for."""
    out = []
    for it in plan.conditions.values():
        params = ", ".join(f"{key} {value}" for key, value in it.step.params.items())
        why = "" if it.asked else "  (made because another condition is made from it)"
        out.append(f"  {it.name:<16} {it.step.detector:<16} {it.fingerprint}  {params}{why}")
    return out


def _plan(name: str, given: Manifest, saved: Manifest | None, key: str, planned: dict[str, Planned], chosen: dict[str, Condition]) -> None:
    if name in planned:
        return
    asked = given.conditions.get(name, Condition())
    earlier = saved.conditions.get(name) if saved else None
    # `auto` is resolved once: a workspace keeps the detector, and what that detector settled by itself, that it began with.
    detector, params = asked.detector, dict(asked.params)
    if detector == "auto" and earlier is not None:
        detector = earlier.detector
    if earlier is not None and earlier.detector == detector:
        params = {k: v for k, v in earlier.params.items() if k in _settled(detector)} | params
    try:
        step = annotator.resolve(name, detector, params)
    except ValueError as error:
        raise MillError(f"conditions.{name}: {error}") from error
    if step.parent:
        _plan(step.parent, given, saved, key, planned, chosen)
    identity = annotator.identity(step)
    parents = [planned[step.parent].fingerprint] if step.parent else []
    mark = fingerprint({"condition": name, "identity": identity, "image_key": key, "parents": parents})
    planned[name] = Planned(step, identity, mark, asked.select, asked=False)
    chosen[name] = Condition(detector=step.detector, select=asked.select, **step.params)


def _settled(detector: str) -> set[str]:
    """Parameters that the detector settles by what the machine can do, once for a workspace."""
    return (
        {name for name, parameter in DETECTORS[detector].parameters.items() if parameter.default == "auto"}
        if detector in DETECTORS
        else set()
    )


def _saved(workspace: Workspace) -> Manifest | None:
    return manifest.load(workspace.manifest) if workspace.manifest.is_file() else None


def _short(section: Any) -> str:
    return yaml.safe_dump(section.model_dump(), default_flow_style=True).strip()


__all__ = ["MEASURES", "Plan", "Planned", "image_key", "lines", "load_saved", "make", "save"]
