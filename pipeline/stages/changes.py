"""Known addresses -> what changed there since they were read: noticed by a look, proved by hashing what looks
otherwise.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.cluster.jobs import Ended, Job
from pipeline.dataset.changes import (
    CHANGED,
    Change,
    Known,
    adopt,
    differences,
    examine,
    known,
    look_far,
    save,
    vanished,
)
from pipeline.sources import RawImage
from pipeline.stages.stage import StageContext

FEW = 64  # addresses that the driver hashes itself: Ray would take longer to start
WORDS = {
    "changed": "changed",
    "gone": "gone",
    "back": "there again",
    "caption": "with other captions",
    "touched": "touched but equal",
}


@dataclass(frozen=True)
class Suspects:
    """Addresses that look otherwise than before, for a worker."""

    members: tuple[tuple[RawImage, Known], ...]


def notice(context: StageContext) -> tuple[list[RawImage], str]:
    """What is to be ingested: addresses that are new or show other bytes; and a sentence of what changed.

    Every change is written down and in the catalog when this returns.
    """
    plan, catalog = context.plan, context.catalog
    adopt(plan, catalog)
    before = known(catalog)
    listed, gone_far = look_far(context.raw_images[: context.limit], before)
    found = differences(listed, before)
    changes = found.certain + _examined(context, found.suspects)
    if not context.keep_gone:
        changes += gone_far + vanished(context.raw_images, before)
    # what was gone and shows other bytes now is told by the images that are there
    told = [change for change in changes if change.change != "changed" or not before[change.uri].gone]
    if told:
        save(plan, catalog, told)
    changed = {change.uri for change in changes if change.change == "changed"}
    failed = {uri for (uri,) in catalog.query(FAILED)} if context.retry_failed else set()
    fresh = {raw.uri for raw in found.new} | changed | failed
    counts = Counter(change.change for change in changes)
    words = [f"{counts[change]} {text}" for change, text in WORDS.items() if counts[change]]
    retried = [f"{len(failed)} tried again"] if failed else []
    sentence = ", ".join([f"{len(found.new)} new addresses", *words, *retried])
    return [raw for raw in context.raw_images[: context.limit] if raw.uri in fresh], sentence


FAILED = "SELECT uri FROM sources JOIN images USING (image_id) WHERE status = 'failed' AND gone IS NULL"


def _examined(context: StageContext, suspects: Sequence[tuple[RawImage, Known]]) -> list[Change]:
    if len(suspects) <= FEW:
        return list(examine(suspects))
    size = context.plan.manifest.shard_images
    found: list[Change] = []

    def jobs() -> Iterator[Job]:
        for start in range(0, len(suspects), size):
            members = tuple(suspects[start : start + size])
            yield Job(f"look again from {start}", Suspects(members), tuple(range(len(members))))

    def done(ended: Ended[list[Change]]) -> None:
        found.extend(change for _, changes in ended for change in changes)

    context.cluster.run(look_again, jobs(), done, label="look again", total=len(suspects))
    return found


def look_again(
    args: Suspects, rows: tuple[int, ...], poison_rows: dict[int, str], dry_run: bool
) -> list[Change]:
    """In a worker: what changed at each address; one that kills its worker counts as changed."""
    poison = [args.members[row] for row in rows if row in poison_rows]
    changed = [Change("changed", raw.uri, was.image_id, CHANGED) for raw, was in poison]
    return changed + list(examine([args.members[row] for row in rows if row not in poison_rows]))
