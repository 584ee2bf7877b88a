"""Samples -> scores: what makes the missing ones, and the estimates over all of them."""

from pipeline.benchmark.estimates import estimate
from pipeline.benchmark.scoring import jobs, score_part
from pipeline.catalog import Catalog
from pipeline.cluster import Cluster
from pipeline.plan import Plan
from pipeline.stages.parts import make_missing, told


def score(plan: Plan, catalog: Catalog, cluster: Cluster) -> str:
    if plan.manifest.evaluate is None:
        return "nothing asked for"
    todo = {path: job for path, job, done in jobs(plan, catalog, cluster.device) if not done}
    made = make_missing(catalog, cluster, score_part, todo, label="score", gpus=cluster.share if todo else 0)
    return f"{told(made, 'samples')}; {estimate(plan, catalog)} scores"
