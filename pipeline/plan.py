"""A manifest made definite: every detector chosen, every parameter filled in, every identity computed.

Nothing here does work.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from annotate import annotator, captions
from annotate.annotator import PROVIDED, Step
from annotate.conditions import CONDITIONS, MEASURES
from annotate.detectors import DETECTORS
from annotate.parameters import ParameterError, near
from annotate.weights import PINNED
from pipeline import MillError, manifest, scenes, sources
from pipeline.catalog.indexing import DetectorRecord
from pipeline.catalog.selections import Selection
from pipeline.manifest import Captions, ConditionSettings, Manifest, ScenesSource, Select
from pipeline.sources import RawImage
from pipeline.storage.workspace import Workspace, fingerprint, write_text


@dataclass(frozen=True)
class Planned:
    """One condition to make.

    `fingerprint` covers detector, weights, parameters, precision, library, image key and parents.
    """

    step: Step
    identity: dict[str, Any]
    fingerprint: str
    select: Select
    asked: bool  # False: made only because another condition is made from it
    lack: str | None = None  # what it misses on this machine

    @property
    def name(self) -> str:
        return self.step.condition

    @property
    def maps(self) -> str:
        """The name under which its maps lie: that of the condition whose maps it shares, else its own."""
        return CONDITIONS[self.name].shares or self.name

    def record(self) -> DetectorRecord:
        """What the catalog and the shard's footer keep of the detector."""
        licence = annotator.licence(self.step.detector, self.step.params.get("weights", PINNED))
        return {
            "condition": self.name,
            "maps": self.maps,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "licence": licence,
        }


@dataclass(frozen=True)
class PlannedCaptions:
    """Captions that a network makes of the canonical images."""

    model: str
    params: dict[str, Any]
    key: str  # fingerprint of captioner, weights, parameters, `when` and image key
    when: str  # missing, always
    lack: str | None


@dataclass(frozen=True)
class Plan:
    manifest: Manifest
    workspace: Workspace
    image_key: str
    conditions: dict[str, Planned]  # parents before their children
    captions: PlannedCaptions | None = None
    # what reads a condition again, where it is not what made it
    readers: dict[str, Planned] = field(default_factory=dict)

    def reader(self, condition: str) -> Planned:
        """What reads the condition from generated images."""
        return self.readers.get(condition, self.conditions[condition])

    def raw_images(self) -> list[RawImage]:
        """Every raw image of the sources, in their order."""
        return sources.listing(
            self.manifest.source, self.manifest.image, without=self.workspace.root, spool=self.workspace.spool
        )

    def maps_of(self, condition: str, part: int) -> Path:
        """The shard of a condition's maps."""
        it = self.conditions[condition]
        return self.workspace.maps(it.maps, it.fingerprint, part)

    def settings(self) -> dict[str, str]:
        """What the catalog's views show: the images, captions and their rule that are in force."""
        chosen = (
            {"caption_key": self.captions.key, "caption_when": self.captions.when} if self.captions else {}
        )
        return {"image_key": self.image_key, **chosen}

    def selections(self) -> dict[str, Selection]:
        """Condition -> what makes its maps pairs."""
        at = self.manifest.at
        return {
            name: Selection(
                (
                    (str(at("where")), self.manifest.where),
                    (str(at("conditions", name, "select", "where")), it.select.where),
                ),
                it.select.order_by,
                it.select.limit,
                str(at("conditions", name, "select", "order_by")),
            )
            for name, it in self.conditions.items()
        }


def image_key(settings: Manifest) -> str:
    return fingerprint({"image": settings.image.model_dump(), "version": 2})


def make(given: Manifest, *, here: bool = True) -> Plan:
    """Resolves the manifest against what its workspace already settled; MillError where the two don't fit or
    a detector can't run.

    With here=False it is enough that the detectors exist; what they miss on this machine is in Planned.lack.
    """
    try:
        workspace = Workspace(Path(given.workspace).expanduser().resolve())
    except (RuntimeError, ValueError, OSError) as error:
        raise MillError(
            f"{given.at('workspace')}: {given.workspace!r} is no path: {str(error).rstrip('.')}. Write the"
            " path of a folder."
        ) from error
    saved = _saved(workspace)
    if saved and saved.name != given.name:
        raise MillError(
            f"{given.at('workspace')}: {workspace.root} belongs to {saved.name!r}, this manifest is"
            f" {given.name!r}: give this one a `workspace:` of its own (or the same name, to go on with that"
            " one)."
        )
    if saved and saved.split != given.split:
        raise MillError(
            f"{given.at('split')}: the workspace {workspace.root} was split with {_short(saved.split)} and a"
            " split never changes: set it back, or use another `workspace:`."
        )
    for number, source in enumerate(given.source):
        for name in getattr(source, "provided", {}):
            if name not in CONDITIONS:
                place = given.at("source", number, "provided", name)
                raise MillError(
                    f"{place}: unknown condition {name!r}{near(name, CONDITIONS)}; known:"
                    f" {', '.join(CONDITIONS)}."
                )
    key = image_key(given)
    chosen: dict[str, ConditionSettings] = {}
    planned: dict[str, Planned] = {}
    for name in given.conditions:
        _plan(name, given, saved, key, planned, chosen, here)
    for name in given.conditions:
        planned[name] = replace(planned[name], asked=True)
    made = _captions(given, key, here) if given.captions else None
    settled = {"conditions": chosen} | (
        {"captions": Captions(model=made.model, when=made.when, **made.params)} if made else {}
    )
    return Plan(
        given.model_copy(update=settled),
        workspace,
        key,
        planned,
        made,
        _readers(given, saved, key, planned, here),
    )


def provided_by(given: Manifest, condition: str) -> list[Any] | None:
    """How each source of the manifest provides the maps of a condition; None where one does not."""
    settings = []
    for source in given.source:
        if isinstance(source, ScenesSource):
            found: Any = {"scenes": scenes.VERSION} if condition in scenes.PROVIDES else None
        else:
            given_maps = getattr(source, "provided", {})
            found = (
                given_maps.get(condition) or given_maps.get(CONDITIONS[condition].shares)
                if condition in CONDITIONS
                else None
            )
            found = found.model_dump(exclude_none=True) if found else None
        if found is None:
            return None
        settings.append(found)
    return settings


def load_saved(workspace: Workspace) -> Plan:
    """The plan of a workspace as its last run left it."""
    saved = _saved(workspace)
    if saved is None:
        raise MillError(
            f"{workspace.root} is no workspace: it has no manifest.yaml. `controlmill run MANIFEST` makes"
            " one."
        )
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


def _plan(
    name: str,
    given: Manifest,
    saved: Manifest | None,
    key: str,
    planned: dict[str, Planned],
    chosen: dict[str, ConditionSettings],
    here: bool,
) -> None:
    if name in planned:
        return
    asked = given.conditions.get(name, ConditionSettings())
    earlier = saved.conditions.get(name) if saved else None
    # `auto` is resolved once: a workspace keeps the detector, and what that detector settled by itself, that
    # it began with.
    detector, params = asked.detector, dict(asked.params)
    if detector == "auto" and earlier is not None:
        detector = earlier.detector
    if earlier is not None and earlier.detector == detector:
        params = {k: v for k, v in earlier.params.items() if k in _settled(detector)} | params
    try:
        provided = provided_by(given, name)
        step = annotator.resolve(name, detector, params, provided=provided is not None, here=here)
        if step.detector == PROVIDED and provided is None:
            raise ValueError(
                "detector: provided, but not every source has `provided:` maps for it; add them, or name a"
                " detector"
            )
    except ValueError as error:
        raise _wrong(given, error, "conditions", name) from error
    if step.parent:
        _plan(step.parent, given, saved, key, planned, chosen, here)
    identity = annotator.identity(step) | (
        {"params": {"sources": provided}} if step.detector == PROVIDED else {}
    )
    parents = [planned[step.parent].fingerprint] if step.parent else []
    maps = CONDITIONS[name].shares or name
    mark = fingerprint({"condition": maps, "identity": identity, "image_key": key, "parents": parents})
    lack = annotator.lack(step)
    if lack and asked.detector == "auto" and earlier is None:
        lack = f"{name} can't be made here: {annotator.lacks(name)}"
    planned[name] = Planned(step, identity, mark, asked.select, asked=False, lack=lack)
    chosen[name] = ConditionSettings(detector=step.detector, select=asked.select, **step.params)


def _readers(
    given: Manifest, saved: Manifest | None, key: str, planned: dict[str, Planned], here: bool
) -> dict[str, Planned]:
    """The detectors of evaluate.readers; maps that come with the images can't be read from others, so
    `provided` is refused.
    """
    readers: dict[str, Planned] = {}
    for name, asked in given.evaluate.readers.items() if given.evaluate else ():
        earlier = saved.evaluate.readers.get(name) if saved and saved.evaluate else None
        kept = earlier.params if earlier is not None and earlier.detector == asked.detector else {}
        try:
            if asked.detector in ("auto", PROVIDED):
                raise ValueError("name the detector that reads generated images")
            params = {k: v for k, v in kept.items() if k in _settled(asked.detector)} | asked.params
            step = annotator.resolve(name, asked.detector, params, provided=False, here=here)
        except ValueError as error:
            raise _wrong(given, error, "evaluate", "readers", name) from error
        identity = annotator.identity(step)
        parents = [readers.get(step.parent, planned[step.parent]).fingerprint] if step.parent else []
        mark = fingerprint(
            {
                "condition": CONDITIONS[name].shares or name,
                "identity": identity,
                "image_key": key,
                "parents": parents,
            }
        )
        readers[name] = Planned(step, identity, mark, asked.select, asked=True, lack=annotator.lack(step))
    return readers


def _captions(given: Manifest, key: str, here: bool) -> PlannedCaptions:
    """The captioner with all its parameters; MillError where it can't run here."""
    asked = given.captions
    assert asked is not None
    try:
        params = captions.resolve(asked.model, asked.params)
    except ValueError as error:
        raise _wrong(given, error, "captions") from error
    lack = captions.missing(asked.model, params.get("weights", PINNED))
    if lack and here:
        raise MillError(f"{given.at('captions')}: {lack}")
    mark = fingerprint(
        {"captions": captions.identity(asked.model, params), "when": asked.when, "image_key": key}
    )
    return PlannedCaptions(asked.model, params, mark, asked.when, lack)


def _wrong(given: Manifest, error: ValueError, *steps: str) -> MillError:
    """With the line of the parameter that a detector complains of, where it says which."""
    named = (error.name,) if isinstance(error, ParameterError) else ()
    return MillError(f"{given.at(*steps, *named)}: {str(error).rstrip('.')}.")


def _settled(detector: str) -> set[str]:
    """Parameters that the detector settles by what the machine can do, once for a workspace."""
    return (
        {name for name, parameter in DETECTORS[detector].parameters.items() if parameter.default == "auto"}
        if detector in DETECTORS
        else set()
    )


def _saved(workspace: Workspace) -> Manifest | None:
    return saved(workspace) if workspace.manifest.exists() else None


def saved(workspace: Workspace) -> Manifest:
    """The manifest that a workspace keeps of its last run."""
    try:
        return manifest.load_saved(workspace.manifest)
    except MillError as error:
        raise MillError(
            f"{error}\n{workspace.manifest} is the workspace's own copy of the manifest of its last run, and"
            " is damaged: delete it, then `controlmill run MANIFEST` with yours goes on and writes it again."
        ) from error


def _short(section: Any) -> str:
    return yaml.safe_dump(section.model_dump(), default_flow_style=True).strip()


__all__ = ["MEASURES", "Plan", "Planned", "image_key", "lines", "load_saved", "make", "save"]
