"""What the stages that make one shard a job share: adopt what a killed run left whole, make the rest, commit
each as it ends.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.catalog import Catalog
from pipeline.cluster import Cluster, Job
from pipeline.storage import shards


def make_missing(
    catalog: Catalog,
    cluster: Cluster,
    function: Callable[..., str],  # returns the path of the shard it wrote
    jobs: dict[Path, Job],  # by the shard that is not committed; args["facts"] becomes its footer
    *,
    label: str,
    gpus: float = 0,  # of one job, where the cluster has any
) -> int:
    """Returns how many rows there were to make."""

    def missing() -> Iterator[Job]:
        for path, job in jobs.items():
            adopted = shards.adopt(path, job.args["facts"]["made_from"])
            if adopted:
                catalog.commit(adopted)
            else:
                yield job

    def done(job: Job, path: str) -> None:
        catalog.commit(shards.verify(Path(path), job.args["facts"]["made_from"]))

    rows = sum(len(job.rows) for job in jobs.values())
    if rows:
        share = min(gpus, cluster.gpus)
        cluster.run(function, missing(), done, label=label, total=rows, gpus=share)
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


def told(rows: int, unit: str) -> str:
    return f"{rows} {unit} to do" if rows else "nothing to do"
