"""Known addresses -> what changed there since they were read: noticed by a look, proved by hashing what looks
otherwise.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.catalog import addresses
from pipeline.cluster.jobs import Ended, Job
from pipeline.dataset.changes import CHANGED, Change, Known, adopt, differences, examine, look_far, save
from pipeline.dataset.comparison import MANY, Doubtful, compare, doubtful, vanished
from pipeline.plan.parts import MOST
from pipeline.sources import RawImage
from pipeline.sources.listed import Positions
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


@dataclass(frozen=True)
class Noticed:
    """Rising positions in the listing, and a sentence of what changed."""

    fresh: Positions  # to be ingested: addresses that are new, show other bytes, or are tried again
    again: Positions  # of those, what failed before
    sentence: str


def notice(context: StageContext) -> Noticed:
    """What of the listing is to be ingested.

    Every change is written down and in the catalog when this returns.
    """
    plan, catalog, listed = context.plan, context.catalog, context.raw_images
    adopt(plan, catalog)
    found = compare(listed, addresses.known(catalog, retry_failed=context.retry_failed), context.limit)
    fresh, new = [found.new, found.again], len(found.new)
    counts: Counter[str] = Counter()
    waiting: list[Change] = []  # changes that are not written down yet

    def write_down(changes: list[Change], most: int = MANY) -> None:
        waiting.extend(changes)
        counts.update(change.change for change in changes)
        if len(waiting) > most:
            save(plan, catalog, waiting)
            waiting.clear()

    for some in doubtful(listed, catalog, found.doubtful):
        unknown, changes = _changes(context, some)
        changed = [change for change in changes if change.change == "changed"]
        # what was gone and shows other bytes now is told by the images that are there
        counts["changed"] += sum(some.before[change.uri].gone for change in changed)
        write_down([it for it in changes if it.change != "changed" or not some.before[it.uri].gone])
        uris = [raw.uri for raw in unknown] + [change.uri for change in changed]
        fresh.append(np.array([some.positions[uri] for uri in uris], np.int64))
        new += len(unknown)
    if not context.keep_gone:
        for gone in vanished(catalog, found.vanished):
            write_down(gone)
    write_down([], 0)
    words = [f"{counts[change]} {text}" for change, text in WORDS.items() if counts[change]]
    retried = [f"{len(found.again)} tried again"] if len(found.again) else []
    sentence = ", ".join([f"{new} new addresses", *words, *retried])
    return Noticed(np.unique(np.concatenate(fresh)), found.again, sentence)


def _changes(context: StageContext, some: Doubtful) -> tuple[list[RawImage], list[Change]]:
    """What is not known after all, since two addresses may have one hash; and what changed."""
    listed, gone_far = look_far(some.raw_images, some.before)
    found = differences(listed, some.before)
    changes = found.certain + _examined(context, found.suspects)
    return found.new, changes if context.keep_gone else changes + gone_far


def _examined(context: StageContext, suspects: Sequence[tuple[RawImage, Known]]) -> list[Change]:
    if len(suspects) <= FEW:
        return list(examine(suspects))
    given = context.plan.manifest.shard_images
    size = MOST if given == "auto" else given
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
