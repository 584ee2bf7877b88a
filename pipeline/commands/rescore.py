"""`controlmill verify --rescore N`: stored scores beside those that the stored samples have now."""

import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evaluate import fidelity
from pipeline.catalog import Catalog
from pipeline.plan import Plan
from pipeline.storage import shards
from pipeline.storage.workspace import TEMPORARY

TOLERANCE = 1e-4  # of a score, relative: networks round differently from batch to batch


def rescored(
    plan: Plan,
    catalog: Catalog,
    samples: int,  # at least so many are scored again, chosen at random, by whole shards
    *,
    seed: int | None = None,  # None = others each time
    say: Callable[[str], None],
) -> list[str]:  # a sentence for each number that is not what is stored
    """Scores stored samples again: what the leaderboard says must follow from the pictures that it shows."""
    from pipeline.benchmark.scoring import jobs, score_part
    from pipeline.benchmark.systems import systems
    from pipeline.experiment.base import device

    scored = [job for job, committed in jobs(plan, catalog, systems(plan, catalog), device()) if committed]
    random.Random(seed).shuffle(scored)
    sentences: list[str] = []
    count = compared = 0
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=plan.workspace.scratch) as folder:
        for job in scored:
            if count >= samples:
                break
            again = Path(folder) / f"{count}.parquet"
            score_part(replace(job.args, path=again), job.rows, {}, False)
            for old, new in zip(
                *(
                    shards.read(file, ["image_id", "seed", "values"]).to_pylist()
                    for file in (job.args.path, again)
                ),
                strict=True,
            ):
                stored, fresh = (
                    {name: value for name, value in row["values"] or () if not fidelity.retired(name)}
                    for row in (old, new)
                )
                compared += len(stored)
                sentences += [
                    f"{job.name}: {name} of {old['image_id'][:12]} seed {old['seed']} is {fresh.get(name)},"
                    f" stored is {stored.get(name)}"
                    for name in sorted(stored.keys() | fresh.keys())
                    if name not in stored
                    or name not in fresh
                    or not math.isclose(stored[name], fresh[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
                ]
            count += len(job.rows)
    for sentence in sentences:
        say(sentence)
    say(f"{count} samples scored again, {compared} numbers compared, {len(sentences)} differ")
    return sentences
