"""What changed at the addresses of a source since they were read: told by stamps, proved by hashes.

A stamp costs nothing to look at and only says that something may have changed; then the bytes are hashed, and
only other bytes are another image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple

from annotate.annotator import PROVIDED
from pipeline import sources
from pipeline.catalog import Catalog
from pipeline.dataset import provided
from pipeline.dataset.origins import Origins
from pipeline.plan import Plan
from pipeline.sources import Fetched, Gone, RawImage, Unreadable
from pipeline.sources.files import may_pass
from pipeline.storage import shards
from pipeline.storage.workspace import canonical_json, fingerprint, set_aside

CHANGED = "the file at this address has changed"
GONE = "the source no longer has this address"

KNOWN = """SELECT uri, image_id, source_rows.gone IS NOT NULL, coalesce(stamp, ''),
                  coalesce(caption_stamp, ''), captions, fields
           FROM source_rows JOIN shard_rows USING (shard_number) JOIN image_rows USING (image)
           WHERE uri IN (SELECT unnest(?)) AND kind = 'images'
             AND key = (SELECT value FROM settings WHERE name = 'image_key')
           ORDER BY source_rows.gone IS NULL, part, source_rows.row"""


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
    certain: list[Change] = field(default_factory=list)  # other captions, which the listing tells


def known(catalog: Catalog, uris: Sequence[str]) -> dict[str, Known]:
    """Of these addresses, by address; of one that showed several images, what it shows, or showed last."""
    return {uri: Known(*rest) for uri, *rest in catalog.query(KNOWN, [uris])}


def differences(listed: Sequence[RawImage], before: Mapping[str, Known]) -> Differences:
    """Looks at stamps, captions and columns of the listing alone."""
    found = Differences()
    for raw in listed:
        was = before.get(raw.uri)
        if was is None:
            found.new.append(raw)
        elif raw.problem:
            continue
        elif was.gone or _looks_otherwise(raw, was):
            found.suspects.append((raw, was))
        elif change := _other_words(raw, was):
            found.certain.append(change)
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


def look_far(listed: Sequence[RawImage], before: Mapping[str, Known]) -> tuple[list[RawImage], list[Change]]:
    """The listing with what addresses far away look like now, and what is gone there. One that failed before
    is not asked, nor believed to be gone while its server does not answer.
    """
    asked = [raw for raw in listed if raw.reader in sources.FAR and _was_there(before.get(raw.uri))]
    if not asked:
        return list(listed), []
    looks = sources.look(asked, {raw.uri: before[raw.uri].stamp for raw in asked})
    there, gone = [], []
    for raw in listed:
        look = looks.get(raw.uri)
        if isinstance(look, Gone):
            if not before[raw.uri].gone:
                gone.append(Change("gone", raw.uri, before[raw.uri].image_id, look.reason))
        elif raw.uri in looks and before[raw.uri].gone and look is None:
            continue  # still out of reach
        else:
            there.append(replace(raw, stamp=look) if look else raw)
    return there, gone


def _was_there(was: Known | None) -> bool:
    return was is not None and (bool(was.stamp) or was.gone)


def examine(members: Sequence[tuple[RawImage, Known]]) -> Iterator[Change]:
    """Reads what looks otherwise, and says what changed. A file that can't be read counts as changed, and
    becomes a row with its reason when it is ingested; a server that does not answer, and a share that dropped
    out, are asked again by the next run.
    """
    read_again = [was.gone or raw.stamp != was.stamp for raw, was in members]
    answers = sources.read_all([raw for (raw, _), again in zip(members, read_again, strict=True) if again])
    for (raw, was), again in zip(members, read_again, strict=True):
        answer = next(answers) if again else None
        if isinstance(answer, Exception) and (raw.reader in sources.FAR or may_pass(raw, answer)):
            continue
        yield from _examined(raw, was, answer)


def _examined(raw: RawImage, was: Known, answer: Fetched | Exception | None) -> Iterator[Change]:
    """`answer` is None where the bytes need not be looked at."""
    other = isinstance(answer, Fetched) and sources.image_id(answer.data) != was.image_id
    try:
        told = sources.read_captions(raw)
    except Unreadable:
        other = True
    if other or isinstance(answer, Exception):
        yield Change("changed", raw.uri, was.image_id, CHANGED)
        return
    if told.may_pass:
        return
    stamp = answer.stamp if answer else raw.stamp
    kind = "back" if was.gone else "touched"
    same = Change(kind, raw.uri, was.image_id, stamp=stamp, caption_stamp=raw.caption_stamp)
    fields = canonical_json(raw.fields)
    words_differ = was.captions is not None and ([*told.texts] != was.captions or fields != was.fields)
    if was.gone or not words_differ:
        yield same
    if words_differ:
        problem = told.problem or None
        yield replace(same, change="caption", captions=told.texts, caption_problem=problem, fields=fields)


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
    catalog.commit(shards.write(path, [asdict(change) for change in changes], shards.CHANGES, metadata))


def adopt(plan: Plan, catalog: Catalog) -> None:
    """Carries out what a killed run had written down and not yet carried out; a broken file is removed, since
    its changes are noticed again.
    """
    committed = catalog.committed("changes", plan.image_key)
    for path in plan.workspace.all_changes(plan.image_key):
        try:
            shard = shards.verify(path)
        except shards.BROKEN:
            set_aside(path)
            continue
        if shard.metadata["part"] not in committed:
            catalog.commit(shard)


def map_stamp(raw: RawImage, condition: str) -> str:
    """Of the file that holds the image's map of a condition; "" where nothing is known of it."""
    return provided.of_condition(raw.map_stamps, condition) or ""


def changed_maps(plan: Plan, catalog: Catalog, origins: Origins) -> list[tuple[str, int, int]]:
    """Condition, part and row of maps that came with the images and are others now; it is written down."""
    changes, changed = [], []
    for first, last in origins.ranges():
        images: dict[int, dict[int, RawImage]] = {}
        for condition, part, row, image_id, stamp, digest in catalog.query(
            PROVIDED_MAPS, [PROVIDED, first, last]
        ):
            if part not in images:  # rows come part by part
                images = {part: origins.of_part(part)}
            raw = images[part].get(row)
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
                     AND part BETWEEN ? AND ?
                   ORDER BY part, condition, row"""


@dataclass(frozen=True)
class Renewed:
    """What of the images is not what it was when they were read: their captions, and maps that came with
    them.
    """

    captions: Mapping[str, str]  # by image id
    maps: Mapping[tuple[str, str], str]  # by the name of the maps and the image id: the hash of the file

    def mark(self, plan: Plan, conditions: Sequence[str], image_ids: Sequence[str]) -> str | None:
        """Identity of the captions and maps that are others now; None = all are as they were."""
        if not self.captions and not self.maps:
            return None
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
