"""What a run of the manifest trains on: its pairs, where their pieces lie in the shards, and the name that
follows from them.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline import MillError
from pipeline.catalog import Catalog
from pipeline.dataset.changes import Renewed, renewed
from pipeline.experiment.addresses import MAP, PairAddresses, fingerprint_with, schema_of
from pipeline.experiment.base import base_fingerprint, base_spec, latent_key, text_keys
from pipeline.experiment.texts import TextKeys, TextPlaces, first_of_each, text_places
from pipeline.manifest import Run
from pipeline.plan import Plan
from pipeline.storage.workspace import Workspace

SMALLEST_SHARE = 0.9  # of each condition's pairs that a joint run must keep
DRAWN = 4  # held-out pairs in the grids of a run on a GPU
TRAIN, HELD_OUT = "train", "validation"  # splits


# condition, split -> where its pairs' pieces lie
Members = Callable[[str, str], PairAddresses]


@dataclass(frozen=True)
class PlannedRun:
    # conditions and 8 hex of everything that decides its weights; one that was begun under an older name
    # keeps it
    name: str
    run: Run
    base: str
    base_fingerprint: str
    pairs: PairAddresses
    held_out: PairAddresses  # of the validation split; they never train
    # what the name is the fingerprint of, with the ids of the pairs
    identity: Mapping[str, Any] = field(default_factory=dict)

    def name_with(self, images: int) -> str:
        """The name of the same run, were it so long."""
        return _name({**self.identity, "run": self.identity["run"] | {"images": images}}, self.pairs.ids)

    def was(self, name: str, images: int, began_with: Mapping[str, Any]) -> bool:
        """Whether `name` is a name of the same run, were it so long and begun with these options."""
        identity = {**self.identity, "run": self.identity["run"] | {"images": images}}
        return name in _names(identity, self.pairs.ids, began_with)


def planned_runs(plan: Plan, catalog: Catalog) -> list[PlannedRun]:
    """The manifest's runs with their pairs and names; MillError where a run has nothing to train on."""
    if plan.manifest.train is None:
        return []
    train, spec = plan.manifest.train, base_spec(plan)
    mark = base_fingerprint(spec)
    made: dict[int, PlannedRun] = {}
    keys = text_keys(plan, spec)
    places = text_places(catalog, keys)
    # runs share conditions
    members = functools.cache(lambda condition, split: _members(catalog, condition, split, keys, places))
    changes = renewed(catalog)
    if keys.drawn:  # `told` tells of all captions
        changes = replace(changes, captions={})
    begun = [run for (run,) in catalog.query("SELECT run FROM runs ORDER BY run")]

    def make(number: int) -> PlannedRun:
        if number not in made:
            sources = {name: make(source).name for name, source in train.waits_for(number).items()}
            run = train.runs[number]
            made[number] = _planned(plan, members, run, spec, mark, sources, begun, changes)
        return made[number]

    return [make(number) for number in range(len(train.runs))]


def called(name: str, given: str | None = None) -> str:
    """A run's name as a page shows it: that which the manifest gives it, else its own, shortened where it is
    one of many conditions: `canny+12-1a2b3c4d`.
    """
    if given:
        return given
    conditions, _, mark = name.rpartition("-")
    first, *others = conditions.split("+")
    return f"{first}+{len(others)}-{mark}" if len(others) > 2 else name


def _planned(
    plan: Plan,
    members: Members,
    run: Run,
    spec: str,
    mark: str,
    sources: Mapping[str, str],
    begun: Sequence[str],
    changes: Renewed,
) -> PlannedRun:
    found = {split: {name: members(name, split) for name in run.conditions} for split in (TRAIN, HELD_OUT)}
    for name in run.conditions:
        if not found[TRAIN][name]:
            raise MillError(
                f"{plan.manifest.at('train')}: {name} has no pairs in the train split: `controlmill status"
                f" {plan.workspace.address}` shows why; loosen conditions.{name}.select, or add images."
            )
    shared = {
        split: of_condition[run.conditions[0]].joined([of_condition[name] for name in run.conditions[1:]])
        for split, of_condition in found.items()
    }
    for name, rows in found[TRAIN].items():
        if len(shared[TRAIN]) < SMALLEST_SHARE * len(rows):
            raise MillError(
                f"{plan.manifest.at('train')}: {' + '.join(run.conditions)} share {len(shared[TRAIN])} pairs,"
                f" under 90 % of the {len(rows)} of {name}: train them apart."
            )
    held_out = shared[HELD_OUT][: max(run.held_out, DRAWN if run.grids is None else run.grids)]
    ids = shared[TRAIN].ids
    identity = {
        "base": mark,
        "latents": latent_key(plan, mark, mirrored=False),
        "run": run.identity,
        "version": 2,
        "conditions": {name: plan.conditions[name].fingerprint for name in run.conditions},
    }
    if drawn := {name: at for name in run.conditions if (at := plan.conditions[name].drawing) > 1}:
        identity["drawing"] = drawn
    if plan.manifest.draws_captions:
        told = shared[TRAIN].table["told"].to_numpy().tobytes()
        identity["captions"] = {"choose": "random", "told": hashlib.sha256(told).hexdigest()[:16]}
    if changed := changes.mark(plan, run.conditions, ids):
        identity["changed"] = changed  # other captions or maps of the same images: another training
    if sources:  # the runs of this manifest that it goes on from
        identity["warm_start"] = sources if isinstance(run.warm_start, dict) else next(iter(sources.values()))
    return PlannedRun(
        name_here(plan.workspace, identity, ids, run, begun),
        run,
        spec,
        mark,
        shared[TRAIN],
        held_out,
        identity,
    )


def name_here(
    workspace: Workspace,
    identity: Mapping[str, Any],
    ids: Iterable[str],  # of the pairs
    run: Run,
    begun: Sequence[str],  # names of the runs that the workspace knows
) -> str:
    """Until micro_batch and checkpoint_every left the identity they were part of the name: a run that was
    begun so is found, and keeps it.
    """
    from train import checkpoint

    name, *older = _names(
        identity, ids, {"micro_batch": run.micro_batch, "checkpoint_every": run.checkpoint_every}
    )
    for known in (*older, name):
        if known in begun:
            return known
    others = (
        checkpoint.newest(workspace.run(other))
        for other in begun
        if other.rpartition("-")[0] == name.rpartition("-")[0]
    )
    same = [
        it
        for it in others
        if it and it.path.parent.name in _names(identity, ids, checkpoint.began_with(it.meta))
    ]
    return max(same, key=lambda it: it.images).path.parent.name if same else name


def _names(identity: Mapping[str, Any], ids: Iterable[str], began_with: Mapping[str, Any]) -> list[str]:
    """The name of a run, then those that it had when it was begun with these options; what it is by default
    was not always told.
    """
    micro, every = began_with.get("micro_batch"), began_with.get("checkpoint_every")
    told = [(None, None), (micro, every), (micro, None)]
    return [
        _name({**identity, "run": identity["run"] | {"micro_batch": one, "checkpoint_every": other}}, ids)
        for one, other in told
    ]


def _name(identity: Mapping[str, Any], ids: Iterable[str]) -> str:
    return f"{'+'.join(identity['run']['conditions'])}-{fingerprint_with(identity, 'pairs', ids)[:8]}"


def _members(
    catalog: Catalog, condition: str, split: str, keys: TextKeys, places: TextPlaces
) -> PairAddresses:
    """The condition's pairs in a split by image id, as far as they are encoded: an image that killed its
    encoder has no latents. Texts that are yet to be encoded change no name of a run.
    """
    rows = catalog.arrow(MEMBERS, {"latents": keys.latents, "condition": condition, "split": split})
    told = places.of(rows["image"].to_numpy())
    if split != TRAIN:
        told = first_of_each(told)  # what is compared over time keeps one text
    maps = rows.column_names[-1]
    table = rows.select(["image_id", "row", "latents", "height", "width"])
    for name in told.column_names:
        table = table.append_column(name, told[name])
    table = table.append_column(MAP + condition, rows[maps])
    schema = schema_of([condition])
    for name in set(told.column_names) - set(schema.names):
        schema = schema.insert(len(schema) - 1, pa.field(name, pa.uint64()))
    return PairAddresses(table.cast(schema), keys.encoder)


MEMBERS = """
    WITH encoded AS (SELECT part, shard AS latents FROM shard_rows WHERE kind = 'latents' AND key = $latents)
    SELECT image_id, image, row, latents, height // 8 AS height, width // 8 AS width,
           map_shard
    FROM pair_rows JOIN encoded USING (part)
    WHERE condition = $condition AND split = $split AND image NOT IN (
        SELECT image FROM latent_rows JOIN shard_rows USING (shard_number)
        WHERE key = $latents AND status <> 'ok')
    ORDER BY image_id"""
