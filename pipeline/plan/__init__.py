"""A manifest made definite: every detector chosen, every parameter filled in, every identity computed.

Nothing here does work.
"""

from dataclasses import dataclass, replace
from typing import Any

import yaml

from annotate import annotator, captions
from annotate.annotator import PROVIDED
from annotate.conditions import CONDITIONS, MEASURES
from annotate.detectors import DETECTORS
from annotate.parameters import ParameterError, Values, near
from annotate.weights import PINNED, Identity
from pipeline import MillError, scenes
from pipeline.cluster.position import Limit
from pipeline.manifest import Captions, ConditionSettings, Manifest, ScenesSource
from pipeline.plan.kept import damage, saved
from pipeline.plan.kept import save as write_saved
from pipeline.plan.records import Plan, Planned, PlannedCaptions
from pipeline.storage import copies, stores
from pipeline.storage.workspace import Workspace, fingerprint, workspace_at


def image_key(settings: Manifest) -> str:
    """Hash of what decides the canonical images: settings that are not at their default, and the decoders'
    version.
    """
    decisive = settings.image.model_dump(exclude_defaults=True, exclude={"time_limit"})
    return fingerprint({"image": decisive, "version": 3})


def make(given: Manifest, *, here: bool = True) -> Plan:
    """Resolves the manifest against what its workspace already settled; MillError where the two don't fit or
    a detector can't run.

    With here=False it is enough that the detectors exist; what they miss on this machine is in Planned.lack.
    """
    try:
        workspace = workspace_at(given.workspace)
    except MillError as error:
        raise MillError(f"{given.at('workspace')}: {error}") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise MillError(
            f"{given.at('workspace')}: {given.workspace!r} is no path: {str(error).rstrip('.')}. Write the"
            " path of a folder."
        ) from error
    stores.reach(workspace.root)
    asked = _Asked(given, _saved(workspace), image_key(given), here)
    _refuse_other(asked, workspace)
    conditions: dict[str, Planned] = {}
    for name in given.conditions:
        _plan(name, asked, conditions)
    for name in given.conditions:
        conditions[name] = replace(conditions[name], asked=True)
    by_network = _captions(asked) if given.captioner else None
    settled: dict[str, Any] = {
        "conditions": {
            name: ConditionSettings(
                detector=planned.step.detector,
                select=planned.select,
                time_limit=planned.time_limit,
                **planned.step.params,
            )
            for name, planned in conditions.items()
        }
    }
    if by_network:
        settled["captions"] = Captions(
            model=by_network.model,
            when=by_network.when,
            choose=given.captions.choose if given.captions else "first",
            time_limit=by_network.limit.seconds,
            **by_network.params,
        )
    return Plan(
        given.model_copy(update=settled),
        workspace,
        asked.image_key,
        conditions,
        by_network,
        _readers(asked, conditions),
    )


@dataclass(frozen=True)
class _Asked:
    """What a plan is made from."""

    manifest: Manifest
    saved: Manifest | None  # the workspace's own copy of its last run's
    image_key: str
    here: bool  # whether all must be able to run on this machine

    def params(self, condition: ConditionSettings, earlier: ConditionSettings | None) -> Values:
        """As the manifest gives them; `auto` is settled once, so what it came to in the earlier run stays.

        So does what a parameter stood for that came later, where the manifest names all that there were.
        """
        if earlier is None or earlier.detector != condition.detector or earlier.detector not in DETECTORS:
            return condition.params
        declared = DETECTORS[earlier.detector].parameters
        automatic = {name for name, parameter in declared.items() if parameter.default == "auto"}
        stays = set(automatic)
        later = {name for name, parameter in declared.items() if parameter.before is not None}
        if condition.params.keys() >= declared.keys() - later:
            stays |= {name for name in later if earlier.params.get(name) == declared[name].before}
        given = {
            name: value
            for name, value in condition.params.items()
            if value != "auto" or name not in automatic
        }
        return {name: value for name, value in earlier.params.items() if name in stays} | given

    def fingerprint(self, condition: str, identity: Identity, parent: Planned | None) -> str:
        return fingerprint(
            {
                "condition": CONDITIONS[condition].shares or condition,
                "identity": identity,
                "image_key": self.image_key,
                "parents": [parent.fingerprint] if parent else [],
            }
        )


def _refuse_other(asked: _Asked, workspace: Workspace) -> None:
    """MillError where the manifest is of another workspace, or provides maps of no condition."""
    given, saved = asked.manifest, asked.saved
    if saved and saved.name != given.name:
        raise MillError(
            f"{given.at('workspace')}: {workspace.address} belongs to {saved.name!r}, this manifest is"
            f" {given.name!r}: give this one a `workspace:` of its own (or the same name, to go on with that"
            " one)."
        )
    if saved and saved.split != given.split:
        raise MillError(
            f"{given.at('split')}: the workspace {workspace.address} was split with {_short(saved.split)} and"
            " a split never changes: set it back, or use another `workspace:`."
        )
    for number, source in enumerate(given.source):
        for name in getattr(source, "provided", {}):
            if name not in CONDITIONS:
                place = given.at("source", number, "provided", name)
                raise MillError(
                    f"{place}: unknown condition {name!r}{near(name, CONDITIONS)}; known:"
                    f" {', '.join(CONDITIONS)}."
                )


def provided_by(given: Manifest, condition: str) -> list[dict[str, Any]] | None:
    """How each source of the manifest provides the maps of a condition; None where one does not."""
    settings = []
    for source in given.source:
        if isinstance(source, ScenesSource):
            setting = {"scenes": scenes.VERSION} if condition in scenes.PROVIDES else None
        elif condition in CONDITIONS:
            maps = getattr(source, "provided", {})
            provided = maps.get(condition) or maps.get(CONDITIONS[condition].shares)
            setting = provided.model_dump(exclude_none=True) if provided else None
        else:
            setting = None
        if setting is None:
            return None
        settings.append(setting)
    return settings


def load_saved(workspace: Workspace) -> Plan:
    """The plan of a workspace as its last run left it.

    MillError where the folder is no workspace, its manifest is damaged, or a detector can't run here.
    """
    saved = _saved(workspace)
    if saved is None:
        raise MillError(
            f"{workspace.address} is no workspace: it has no manifest.yaml. `controlmill run MANIFEST` makes"
            " one."
        )
    return make(saved.model_copy(update={"workspace": str(workspace.root)}))


def save(plan: Plan) -> None:
    write_saved(plan.workspace, plan.manifest)


def lines(plan: Plan) -> list[str]:
    """One line a condition: what makes it, and whether it was asked for."""
    out = []
    for planned in plan.conditions.values():
        params = ", ".join(f"{key} {value}" for key, value in planned.step.params.items())
        why = "" if planned.asked else "  (made because another condition is made from it)"
        out.append(f"  {planned.name:<16} {planned.step.detector:<16} {planned.fingerprint}  {params}{why}")
    return out


def _plan(name: str, asked: _Asked, planned: dict[str, Planned]) -> None:
    """Adds the condition to what is planned, after the one that it is made from."""
    if name in planned:
        return
    given = asked.manifest.conditions.get(name, ConditionSettings())
    earlier = asked.saved.conditions.get(name) if asked.saved else None
    # `auto` is resolved once: a workspace keeps the detector that it began with
    chosen = (
        given.model_copy(update={"detector": earlier.detector})
        if given.detector == "auto" and earlier is not None
        else given
    )
    params = asked.params(chosen, earlier)
    try:
        provided = provided_by(asked.manifest, name)
        step = annotator.resolve(
            name, chosen.detector, params, provided=provided is not None, here=asked.here
        )
        if step.detector == PROVIDED and provided is None:
            raise ValueError(
                "detector: provided, but not every source has `provided:` maps for it; add them, or name a"
                " detector"
            )
    except ValueError as error:
        raise _wrong(asked.manifest, error, "conditions", name) from error
    if step.parent:
        _plan(step.parent, asked, planned)
    identity = annotator.identity(step)
    if step.detector == PROVIDED:
        identity["params"] = {"sources": provided}
    lack = annotator.lack(step)
    if lack and given.detector == "auto" and earlier is None:
        lack = f"{name} can't be made here: {annotator.lacks(name)}"
    mark = asked.fingerprint(name, identity, planned[step.parent] if step.parent else None)
    planned[name] = Planned(
        step, identity, mark, given.select, asked=False, lack=lack, time_limit=given.time_limit
    )


def _readers(asked: _Asked, conditions: dict[str, Planned]) -> dict[str, Planned]:
    """The detectors of evaluate.readers; maps that come with the images can't be read from others, so
    `provided` is refused.
    """
    readers: dict[str, Planned] = {}
    evaluation, saved = asked.manifest.evaluate, asked.saved and asked.saved.evaluate
    for name, given in evaluation.readers.items() if evaluation else ():
        earlier = saved.readers.get(name) if saved else None
        try:
            if given.detector in ("auto", PROVIDED):
                raise ValueError("name the detector that reads generated images")
            params = asked.params(given, earlier)
            step = annotator.resolve(name, given.detector, params, provided=False, here=asked.here)
        except ValueError as error:
            raise _wrong(asked.manifest, error, "evaluate", "readers", name) from error
        identity = annotator.identity(step)
        parent = readers.get(step.parent, conditions[step.parent]) if step.parent else None
        mark = asked.fingerprint(name, identity, parent)
        readers[name] = Planned(
            step,
            identity,
            mark,
            given.select,
            asked=True,
            lack=annotator.lack(step),
            time_limit=given.time_limit,
            section="evaluate.readers",
        )
    return readers


def _captions(asked: _Asked) -> PlannedCaptions:
    """The captioner with all its parameters; MillError where it can't run here."""
    given = asked.manifest.captions
    assert given is not None and given.model is not None
    try:
        params = captions.resolve(given.model, given.params)
    except ValueError as error:
        raise _wrong(asked.manifest, error, "captions") from error
    lack = captions.missing(given.model, params.get("weights", PINNED))
    if lack and asked.here:
        raise MillError(f"{asked.manifest.at('captions')}: {lack}")
    identity = captions.identity(given.model, params)
    mark = fingerprint({"captions": identity, "when": given.when, "image_key": asked.image_key})
    limit = Limit(given.time_limit, "captions.time_limit")
    return PlannedCaptions(given.model, params, mark, given.when, lack, limit)


def _wrong(given: Manifest, error: ValueError, *steps: str) -> MillError:
    """With the line of the parameter that a detector complains of, where it says which."""
    named = (error.name,) if isinstance(error, ParameterError) else ()
    return MillError(f"{given.at(*steps, *named)}: {str(error).rstrip('.')}.")


def _saved(workspace: Workspace) -> Manifest | None:
    return saved(workspace) if copies.has_copy(workspace.manifest) else None


def _short(section: Any) -> str:
    return yaml.safe_dump(section.model_dump(), default_flow_style=True).strip()


__all__ = [
    "MEASURES",
    "Plan",
    "Planned",
    "damage",
    "image_key",
    "lines",
    "load_saved",
    "make",
    "save",
    "saved",
]
