"""Numbers of a run for Prometheus, through Ray's own endpoint on each node where `ray[default]` is."""

from collections.abc import Mapping
from typing import Any

from pipeline.cluster.progress import Rate

NAMES = {
    "controlmill_rows_total": ("rows committed", ("stage", "name", "status")),
    "controlmill_bytes_total": ("bytes of committed shards", ("stage",)),
    "controlmill_rows_done": ("rows done in the stage, committed or not", ("stage",)),
    "controlmill_rows_to_do": ("rows of the stage in all", ("stage",)),
    "controlmill_jobs_under_way": ("jobs that are submitted", ("stage",)),
    "controlmill_seconds_left": ("seconds until the stage ends, as it goes now", ("stage",)),
}


class Metrics:
    """Tells Ray, which keeps and serves them where it can, and drops them where it can't."""

    def __init__(self) -> None:
        from ray.util import metrics

        self._metrics: dict[str, Any] = {
            name: (metrics.Counter if name.endswith("_total") else metrics.Gauge)(name, what, tag_keys=tags)
            for name, (what, tags) in NAMES.items()
        }

    def committed(self, stage: str, rows: Mapping[str, Mapping[str, int]], size: int) -> None:
        """Rows by condition or kind and status, and bytes."""
        for name, by_status in rows.items():
            for status, count in by_status.items():
                tags = {"stage": stage, "name": name, "status": status}
                self._metrics["controlmill_rows_total"].inc(count, tags=tags)
        if size:
            self._metrics["controlmill_bytes_total"].inc(size, tags={"stage": stage})

    def follow(self, rate: Rate, jobs: int) -> None:
        values = {
            "controlmill_rows_done": rate.done,
            "controlmill_rows_to_do": rate.total,
            "controlmill_jobs_under_way": jobs,
            "controlmill_seconds_left": rate.seconds_left,
        }
        for name, value in values.items():
            if value is not None:
                self._metrics[name].set(value, tags={"stage": rate.label})
