"""What all stages share: what they are given, what they give back, and the making of one shard a job."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pipeline.benchmark.systems import System, systems
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster
from pipeline.cluster.jobs import Ended, Job, Resources
from pipeline.plan import Plan
from pipeline.sources import Listing
from pipeline.storage import shards
from pipeline.storage.shards import Shard

READABLE = """SELECT part, row, image_id, gone IS NOT NULL
              FROM image_rows JOIN shard_rows USING (shard_number)
              WHERE status = 'ok' AND key = (SELECT value FROM settings WHERE name = 'image_key')
                AND part IN (SELECT unnest(?))
              ORDER BY part, row"""
PARTS = """SELECT DISTINCT part FROM image_rows JOIN shard_rows USING (shard_number)
           WHERE status = 'ok' AND key = (SELECT value FROM settings WHERE name = 'image_key')
           ORDER BY part"""
GONE = "its image is gone from the source"  # the reason of a row that was not made


@dataclass(frozen=True)
class StageContext:
    """What every stage is given."""

    plan: Plan
    catalog: Catalog
    cluster: Cluster
    limit: int | None = None  # take only the first N addresses of the source
    retry_failed: bool = False
    keep_gone: bool = False  # what the source no longer has stays among the pairs
    notes: list[str] = field(default_factory=list)  # of what the sources left out, until they are told

    @cached_property
    def raw_images(self) -> Listing:
        """Every raw image of the sources in their order: listed once a run."""
        return self.plan.raw_images(self.notes)

    @cached_property
    def systems(self) -> list[System]:
        """Who is compared: derived once, by the first stage that asks, when everything is trained.

        MillError where a benchmark is too small, or a checkpoint is damaged or gone.
        """
        return systems(self.plan, self.catalog)


@dataclass(frozen=True)
class StageResult:
    """What every stage gives back; its unit is the stage's own: images, maps, runs, samples, scores."""

    sentence: str  # what the stage did and what there is now, for a person
    to_do: int = 0  # what was missing when the stage began
    done: int = 0  # what there is now, without what failed or was skipped
    failed: int = 0
    skipped: int = 0


def result(sentence: str, to_do: int, counts: Mapping[str, int]) -> StageResult:
    """With the counts of the rows that there are now, by status."""
    return StageResult(
        sentence, to_do, counts.get("ok", 0), counts.get("failed", 0), counts.get("skipped", 0)
    )


def make_missing(
    context: StageContext,
    function: Callable[..., Shard | None],  # returns the shard that it wrote
    jobs: Iterable[Job],  # of the shards that are not committed; their args have `path` and `made_from`
    *,
    label: str,
    gpus: float = 0,  # of one job, where the cluster has any
) -> int:
    """Adopts what a killed run left whole, makes the rest, commits shards as they end.

    Returns how many rows there were to make.
    """
    jobs, catalog, cluster = list(jobs), context.catalog, context.cluster

    def missing() -> Iterator[Job]:
        for job in jobs:
            # a job that makes some rows of a shard again finds the others in it
            if getattr(job.args, "again", None) is not None:
                catalog.remove_shard(catalog.workspace.relative(job.args.path))  # until it is whole again
                yield job
            elif adopted := shards.adopt(job.args.path, job.args.made_from):
                catalog.commit(adopted)
            else:
                yield job

    def commit(ended: Ended[Shard]) -> None:
        catalog.commit(*(shard for _, shard in ended))

    rows = sum(len(job.rows) for job in jobs)
    if rows:
        each = Resources(gpus=min(gpus, cluster.gpus))
        cluster.run(function, missing(), commit, label=label, total=rows, each=each)
    return rows


def of_one_size(
    rows: Iterable[int],
    size: Callable[[int], tuple[int, int]],  # row -> (height, width) of its picture
    count: int,
) -> Iterator[list[int]]:
    """Rows in batches of at most `count`, the pictures of each of one size."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        by_size.setdefault(size(row), []).append(row)
    for members in by_size.values():
        yield from (members[start : start + count] for start in range(0, len(members), count))


@dataclass
class ReadableImages:
    """The images of one part that could be read, in the order of their rows.

    What is made of images has a row for each of them, also for those whose addresses are gone: a part keeps
    its rows, whatever the source loses.
    """

    members: list[tuple[int, str]] = field(default_factory=list)  # row, image id
    gone: set[int] = field(default_factory=set)  # rows

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(row for row, _ in self.members)


def readable_images(catalog: Catalog, parts: Iterable[int]) -> dict[int, ReadableImages]:
    """Of these parts."""
    found: dict[int, ReadableImages] = {}
    for part, row, image_id, gone in catalog.query(READABLE, [list(parts)]):
        images = found.setdefault(part, ReadableImages())
        images.members.append((row, image_id))
        if gone:
            images.gone.add(row)
    return found


def readable_parts(catalog: Catalog) -> list[int]:
    """The parts with an image that could be read, in their order."""
    return [part for (part,) in catalog.query(PARTS)]


def rows_by_part(rows: Iterable[tuple[int, int]]) -> dict[int, set[int]]:
    """Part -> rows, of pairs of both."""
    parts: dict[int, set[int]] = {}
    for part, row in rows:
        parts.setdefault(part, set()).add(row)
    return parts


def work(rows: int, unit: str) -> str:
    """How much there was to do, in words."""
    return f"{rows} {unit} to do" if rows else "nothing to do"
