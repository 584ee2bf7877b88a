"""What changed at the addresses of a source since they were read: told by stamps, proved by hashes.

A stamp costs nothing to look at and only says that something may have changed; then the bytes are hashed, and
only other bytes are another image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple

from annotate.annotator import PROVIDED
from annotate.conditions import CONDITIONS
from pipeline import sources
from pipeline.catalog import Catalog
from pipeline.dataset import provided
from pipeline.plan import Plan
from pipeline.sources import RawImage, Unreadable
from pipeline.storage import shards
from pipeline.storage.workspace import canonical_json, fingerprint

CHANGED = "the file at this address has changed"
GONE = "the source no longer has this address"

KNOWN = """SELECT uri, image_id, gone IS NOT NULL, coalesce(stamp, ''), coalesce(caption_stamp, ''), captions,
                  fields
           FROM sources ORDER BY part, position"""


class Known(NamedTuple):  # made by the hundred thousand
    """What the catalog knows of an address: what it showed last, and what it looked like then."""

    image_id: str
    gone: bool
    stamp: str
    caption_stamp: str
    captions: list[str] | None  # None: there was nothing to be read
    fields: str  # JSON


@dataclass(frozen=True)
class Change:
    """What was noticed at an address; a row of shards.CHANGES."""

    change: str  # changed, gone, back, caption, map, touched
    uri: str
    image_id: str  # what it showed before
    reason: str = ""
    stamp: str = ""
    caption_stamp: str = ""
    captions: tuple[str, ...] = ()
    caption_problem: str | None = None
    fields: str = "{}"
    condition: str | None = None  # of a map
    source_hash: str | None = None  # of a map


@dataclass
class Differences:
    """Of a listing from what the catalog knows, before anything is hashed."""

    new: list[RawImage] = field(default_factory=list)
    suspects: list[tuple[RawImage, Known]] = field(default_factory=list)  # what they show must be read
    certain: list[Change] = field(default_factory=list)  # captions that the listing tells, and what is gone

    def count(self, change: str) -> int:
        return sum(each.change == change for each in self.certain)


def known(catalog: Catalog) -> dict[str, Known]:
    """By address; of one that showed several images, the last."""
    return {uri: Known(*rest) for uri, *rest in catalog.query(KNOWN)}


def differences(
    listed: Sequence[RawImage],
    before: Mapping[str, Known],
    limit: int | None = None,  # only the first so many addresses are looked at
    *,
    keep_gone: bool = False,
) -> Differences:
    """Looks at stamps, captions and columns of the listing alone."""
    found = Differences()
    for raw in listed[:limit]:
        was = before.get(raw.uri)
        if was is None:
            found.new.append(raw)
        elif raw.problem:
            continue
        elif was.gone or _looks_otherwise(raw, was):
            found.suspects.append((raw, was))
        elif change := _other_words(raw, was):
            found.certain.append(change)
    if not keep_gone:
        there = {raw.uri for raw in listed}
        vanished = [uri for uri, was in before.items() if not was.gone and uri not in there]
        found.certain += [Change("gone", uri, before[uri].image_id, GONE) for uri in vanished]
    return found


def _looks_otherwise(raw: RawImage, was: Known) -> bool:
    if raw.stamp != was.stamp and raw.stamp:
        return True
    if raw.caption is not None:
        return False
    no_sidecar = raw.reader == "file" and not raw.caption_stamp
    return raw.caption_stamp != was.caption_stamp or (no_sidecar and bool(was.captions))


def _other_words(raw: RawImage, was: Known) -> Change | None:
    """A caption, or another column, that the listing itself tells otherwise than before."""
    fields = canonical_json(raw.fields) if raw.fields else "{}"
    texts = was.captions if raw.caption is None else [*sources.read_captions(raw).texts]
    if was.captions is None or (fields == was.fields and texts == was.captions):
        return None
    return Change(
        "caption",
        raw.uri,
        was.image_id,
        stamp=raw.stamp,
        caption_stamp=raw.caption_stamp,
        captions=tuple(texts or ()),
        fields=fields,
    )


def examine(raw: RawImage, was: Known) -> list[Change]:
    """Reads what looks otherwise, and says what changed; what can't be read counts as changed, and becomes a
    row with its reason when it is ingested.
    """
    changed = [Change("changed", raw.uri, was.image_id, CHANGED)]
    try:
        if (was.gone or raw.stamp != was.stamp) and sources.image_id(sources.read(raw)) != was.image_id:
            return changed
        told = sources.read_captions(raw)
    except Unreadable:
        return changed
    same = Change(
        "back" if was.gone else "touched",
        raw.uri,
        was.image_id,
        stamp=raw.stamp,
        caption_stamp=raw.caption_stamp,
    )
    fields = canonical_json(raw.fields)
    if was.captions is None or ([*told.texts] == was.captions and fields == was.fields):
        return [same]
    caption = replace(
        same, change="caption", captions=told.texts, caption_problem=told.problem or None, fields=fields
    )
    return [same, caption] if was.gone else [caption]


def save(plan: Plan, catalog: Catalog, changes: Sequence[Change]) -> None:
    """Writes what was noticed as one file and carries it out in the catalog."""
    key, workspace = plan.image_key, plan.workspace
    number = max(catalog.committed("changes", key), default=-1) + 1
    metadata = {
        "kind": "changes",
        "key": key,
        "part": number,
        "made_from": shards.made_from(key, number),
        "after_part": max(catalog.committed("images", key), default=-1),
        "noticed": datetime.now(UTC).replace(tzinfo=None).isoformat(),
    }
    path = workspace.changes(key, number)
    shards.write(path, [asdict(change) for change in changes], shards.CHANGES, metadata)
    catalog.commit(shards.verify(path))


def adopt(plan: Plan, catalog: Catalog) -> None:
    """Carries out what a killed run had written down and not yet carried out; a broken file is removed, since
    its changes are noticed again.
    """
    committed = catalog.committed("changes", plan.image_key)
    for path in sorted(plan.workspace.changes(plan.image_key, 0).parent.glob("part-*.parquet")):
        try:
            shard = shards.verify(path)
        except shards.BROKEN:
            path.unlink()
            continue
        if shard.metadata["part"] not in committed:
            catalog.commit(shard)


def map_stamp(raw: RawImage, condition: str) -> str:
    """Of the file that holds the image's map of a condition; "" where nothing is known of it."""
    return raw.map_stamps.get(condition) or raw.map_stamps.get(CONDITIONS[condition].shares or "") or ""


def changed_maps(
    plan: Plan,
    catalog: Catalog,
    addresses: Mapping[int, Mapping[int, RawImage]],  # part -> row -> where the image came from
) -> list[tuple[str, int, int]]:
    """Condition, part and row of maps that came with the images and are others now; it is written down."""
    changes, changed = [], []
    for condition, part, row, image_id, stamp, digest in catalog.query(PROVIDED_MAPS, [PROVIDED]):
        raw = addresses.get(part, {}).get(row)
        now = map_stamp(raw, condition) if raw else ""
        if raw is None or not now or now == stamp:
            continue
        fresh = provided.source_hash(raw, condition)
        kind = "touched" if fresh == digest else "map"
        name = plan.conditions[condition].maps
        changes.append(Change(kind, raw.uri, image_id, stamp=now, condition=name, source_hash=fresh))
        if kind == "map":
            changed.append((name, part, row))
    if changes:
        save(plan, catalog, changes)
    return changed


PROVIDED_MAPS = """SELECT condition, part, row, image_id, source_stamp, source_hash FROM all_annotations
                   WHERE current AND (condition, fingerprint) IN
                       (SELECT (condition, fingerprint) FROM detectors WHERE detector = ?)
                   ORDER BY ALL"""


@dataclass(frozen=True)
class Renewed:
    """What of the images is not what it was when they were read: their captions, and maps that came with
    them.
    """

    captions: Mapping[str, str]  # by image id
    maps: Mapping[tuple[str, str], str]  # by the name of the maps and the image id: the hash of the file

    def mark(self, plan: Plan, conditions: Sequence[str], image_ids: Sequence[str]) -> str | None:
        """Identity of the captions and maps that are others now; None = all are as they were."""
        names = {name for condition in conditions for name in plan.ancestry(condition)}
        captions = [(each, self.captions[each]) for each in image_ids if each in self.captions]
        maps = [
            (name, each, self.maps[name, each])
            for name in sorted(names)
            for each in image_ids
            if (name, each) in self.maps
        ]
        return fingerprint([captions, maps]) if captions or maps else None


def renewed(catalog: Catalog) -> Renewed:
    """Asked before anything is trained or generated."""
    maps = catalog.query(RENEWED_MAPS)
    return Renewed(
        dict(catalog.query("SELECT image_id, source_caption FROM captions WHERE caption_changed")),
        {(name, image_id): digest for name, image_id, digest in maps},
    )


RENEWED_MAPS = """SELECT DISTINCT name, image_id, source_hash
                  FROM annotation_rows JOIN shard_rows USING (shard_number) JOIN image_rows USING (image)
                  WHERE (name, image_id) IN (SELECT (condition, image_id) FROM changes WHERE change = 'map')
                    AND key IN (SELECT fingerprint FROM detectors WHERE current)"""
