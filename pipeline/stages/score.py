"""Samples -> scores: what makes the missing ones, and the estimates over all of them."""

from pipeline.benchmark.estimates import estimate
from pipeline.benchmark.scoring import jobs, score_part
from pipeline.stages.stage import StageContext, StageResult, make_missing, result, work

COUNTS = "SELECT status, count(DISTINCT (shard_number, row)) FROM score_rows GROUP BY status"


def score(context: StageContext) -> StageResult:
    plan, catalog, cluster = context.plan, context.catalog, context.cluster
    if plan.manifest.evaluate is None:
        return StageResult("nothing asked for")
    missing = [
        job for job, committed in jobs(plan, catalog, context.systems, cluster.device) if not committed
    ]
    gpus = cluster.share if missing else 0
    to_do = make_missing(context, score_part, missing, label="score", gpus=gpus)
    scores = estimate(plan, catalog, context.systems)
    return result(f"{work(to_do, 'samples')}; {scores} scores", to_do, dict(catalog.query(COUNTS)))
